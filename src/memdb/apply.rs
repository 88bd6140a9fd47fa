//! Applying one operation: every check in the order of database.md and cluster-sync.md 1.3, then
//! the change in memory and a [`Change`] that says what to store and announce.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::MAX_FILE_SIZE;
use super::change::{Change, Effects, GuestEvent, RemovedEntry, RootRow};
use super::entry::{Entry, Inode, Kind, ROOT_INODE};
use super::error::Error;
use super::op::{Op, Stamp};
use super::path::TreePath;
use super::tree::Tree;

/// An entry taken out of the tree, and the name that is free now.
struct Unlinked {
    entry: Entry,
    /// Directory and name; `None` if the entry was only there under an alias.
    freed: Option<(Inode, Arc<[u8]>)>,
}

impl Tree {
    /// Applies what a peer (or this node) asked for. Nothing changes if it is refused.
    ///
    /// `uptime` is a monotonic time in seconds: only the age of locks depends on it; everything else
    /// takes its time from `stamp`, so that all nodes come to the same result.
    ///
    /// # Errors
    /// Those of cluster-sync.md 1.3, checked in that order. [`Error::Io`] if the version counter
    /// cannot grow.
    pub fn apply(&mut self, op: &Op, stamp: Stamp, uptime: u32) -> Result<Change, Error> {
        match op {
            Op::Create { path } => self.create(path, stamp),
            Op::Mkdir { path } => self.mkdir(path, stamp, uptime),
            Op::Write {
                path,
                offset,
                data,
                truncate,
            } => self.write(path, *offset, data, *truncate, stamp),
            Op::Delete { path } => self.delete(path, stamp),
            Op::Rename { from, to } => self.rename(from, to, stamp),
            Op::SetMtime { path, mtime } => self.set_mtime(
                path,
                Stamp {
                    mtime: *mtime,
                    ..stamp
                },
                uptime,
            ),
        }
    }

    fn create(&mut self, path: &TreePath, stamp: Stamp) -> Result<Change, Error> {
        let (dir, name) = self.dir_and_name(path)?;
        self.check_vmid(path)?;
        if let Some(inode) = self.child(dir, name) {
            return Err(if self.is_dir(inode) {
                Error::NotADirectory
            } else {
                Error::Exists
            });
        }
        let inode = self.add(dir, name, Kind::File(Arc::from(&b""[..])), stamp)?;
        let mut effects = Effects {
            touched: vec![path.clone()],
            guests: Vec::new(),
        };
        self.register_guest(path, &mut effects.guests);
        Ok(self.changed(inode, effects))
    }

    fn mkdir(&mut self, path: &TreePath, stamp: Stamp, uptime: u32) -> Result<Change, Error> {
        let (dir, name) = self.dir_and_name(path)?;
        if self.child(dir, name).is_some() {
            return Err(Error::Exists);
        }
        let inode = self.add(dir, name, Kind::Dir(Default::default()), stamp)?;
        self.start_lock(path, inode, uptime);
        Ok(self.changed(inode, Effects::default()))
    }

    fn write(
        &mut self,
        path: &TreePath,
        offset: u64,
        data: &[u8],
        truncate: bool,
        stamp: Stamp,
    ) -> Result<Change, Error> {
        let end = offset
            .checked_add(data.len() as u64)
            .filter(|end| *end <= MAX_FILE_SIZE)
            .ok_or(Error::TooBig)?;
        let (dir, name) = self.dir_and_name(path)?;
        self.check_vmid(path)?;
        let inode = self.child(dir, name).ok_or(Error::NotFound)?;
        self.check_own_name(inode)?;
        let old = self
            .get(inode)
            .and_then(Entry::data)
            .ok_or(Error::NotADirectory)?;
        // `end` fits: MAX_FILE_SIZE is far below 2^32.
        let new = splice(old, end as usize - data.len(), data, truncate);
        let version = self.next_version()?;
        if let Some(entry) = self.entries.get_mut(&inode) {
            entry.kind = Kind::File(new);
        }
        self.bump(inode, version, stamp);
        let mut effects = Effects {
            touched: vec![path.clone()],
            guests: Vec::new(),
        };
        self.register_guest(path, &mut effects.guests);
        Ok(self.changed(inode, effects))
    }

    fn set_mtime(&mut self, path: &TreePath, stamp: Stamp, uptime: u32) -> Result<Change, Error> {
        let (dir, name) = self.dir_and_name(path)?;
        let inode = self.child(dir, name).ok_or(Error::NotFound)?;
        self.check_own_name(inode)?;
        let entry = self.entries.get(&inode).ok_or(Error::NotFound)?;
        let is_lock = entry.is_dir() && path.is_lock();
        if is_lock && (stamp.mtime < entry.mtime || stamp.writer != entry.writer) {
            return Err(Error::Access);
        }
        let version = self.next_version()?;
        self.bump(inode, version, stamp);
        if is_lock {
            self.start_lock(path, inode, uptime);
        }
        let effects = Effects {
            touched: vec![path.clone()],
            guests: Vec::new(),
        };
        Ok(self.changed(inode, effects))
    }

    fn delete(&mut self, path: &TreePath, stamp: Stamp) -> Result<Change, Error> {
        let inode = self.lookup(path).ok_or(Error::NotFound)?;
        if inode == ROOT_INODE {
            return Err(Error::Access);
        }
        if self.has_children(inode) {
            return Err(Error::NotEmpty);
        }
        let version = self.next_version()?;
        let Unlinked { entry, freed } = self.unlink(inode).ok_or(Error::NotFound)?;
        self.root = RootRow {
            version,
            writer: stamp.writer,
            mtime: stamp.mtime,
        };
        let mut effects = Effects {
            touched: vec![path.clone()],
            guests: Vec::new(),
        };
        if entry.is_dir() {
            self.locks.remove(path);
        } else {
            self.forget_guest(path, &mut effects.guests);
        }
        self.promote(freed, &mut effects.guests);
        Ok(Change {
            delete: Some(inode),
            put: None,
            root: self.root,
            removed: Some(removed(inode, entry, path)),
            inode,
            effects,
        })
    }

    fn rename(&mut self, from: &TreePath, to: &TreePath, stamp: Stamp) -> Result<Change, Error> {
        let inode = self.lookup(from).ok_or(Error::NotFound)?;
        if inode == ROOT_INODE {
            return Err(Error::Access);
        }
        let is_dir = self.is_dir(inode);
        let moves_guest = from.guest().map(|g| g.vmid);
        if !is_dir && (moves_guest.is_none() || moves_guest != to.guest().map(|g| g.vmid)) {
            self.check_vmid(to)?;
        }
        if is_dir && from.is_below_lock_dir() {
            return Err(Error::Access);
        }
        let target = self.lookup(to).filter(|target| *target != inode);
        if target.is_some_and(|target| self.has_children(target)) {
            return Err(Error::NotEmpty);
        }
        let (dir_path, name) = to.split_last().ok_or(Error::NotEmpty)?;
        let dir = self.lookup_bytes(dir_path).ok_or(Error::NotFound)?;
        if !self.is_dir(dir) {
            return Err(Error::NotADirectory);
        }
        // Looked at before the target goes, unlike in the C daemon (database.md 5).
        if self.has_children(inode) {
            return Err(Error::NotEmpty);
        }
        let version = self.next_version()?;

        let replaced = target.and_then(|target| Some((target, self.unlink(target)?)));
        let Unlinked { mut entry, freed } = self.unlink(inode).ok_or(Error::NotFound)?;
        let name: Arc<[u8]> = Arc::from(name);
        entry.parent = dir;
        entry.name = Arc::clone(&name);
        self.entries.insert(inode, entry);
        if let Some(children) = self.children_mut(dir).filter(|_| dir != inode) {
            children.insert(name, inode);
        }
        self.bump(inode, version, stamp);

        let mut effects = Effects {
            touched: vec![from.clone(), to.clone()],
            guests: Vec::new(),
        };
        if !is_dir {
            self.forget_guest(from, &mut effects.guests);
        }
        if let Some((_, old)) = &replaced {
            if old.entry.is_dir() {
                self.locks.remove(to);
            } else if is_dir {
                self.forget_guest(to, &mut effects.guests);
            }
        }
        if !is_dir {
            self.register_guest(to, &mut effects.guests);
        }
        self.promote(freed, &mut effects.guests);
        let mut change = self.changed(inode, effects);
        if let Some((target, old)) = replaced {
            change.delete = Some(target);
            change.removed = Some(removed(target, old.entry, to));
        }
        Ok(change)
    }

    /// Directory and last component of a path something is to be made or changed at.
    pub(super) fn dir_and_name<'p>(&self, path: &'p TreePath) -> Result<(Inode, &'p [u8]), Error> {
        // The root: a parent that exists and an empty name.
        let (dir, name) = path.split_last().ok_or(Error::Access)?;
        let dir = self.lookup_bytes(dir).ok_or(Error::NotFound)?;
        if !self.is_dir(dir) {
            return Err(Error::NotADirectory);
        }
        if name == b"." || name == b".." {
            return Err(Error::Access);
        }
        Ok((dir, name))
    }

    /// An entry that lost its name can be read, removed and renamed, nothing else: a newer version
    /// would give it the name back, on some nodes now and on others at their next start.
    fn check_own_name(&self, inode: Inode) -> Result<(), Error> {
        if self.is_alias(inode) {
            Err(Error::Access)
        } else {
            Ok(())
        }
    }

    pub(super) fn is_dir(&self, inode: Inode) -> bool {
        self.get(inode).is_some_and(Entry::is_dir)
    }

    pub(super) fn has_children(&self, inode: Inode) -> bool {
        self.get(inode)
            .and_then(Entry::children)
            .is_some_and(|children| !children.is_empty())
    }

    /// Version the next change will have.
    fn next_version(&self) -> Result<u64, Error> {
        self.root.version.checked_add(1).ok_or(Error::Io)
    }

    /// Version and inode of the next new entry. If the version row lags behind the entries, as in a
    /// damaged database, numbers in use are left out: the C daemon would take over such a row.
    fn next_free(&self) -> Result<u64, Error> {
        let mut free = self.next_version()?;
        for (inode, _) in self.entries.range(free..) {
            if *inode != free {
                break;
            }
            free = free.checked_add(1).ok_or(Error::Io)?;
        }
        Ok(free)
    }

    /// Adds an entry whose inode is the next version.
    fn add(&mut self, dir: Inode, name: &[u8], kind: Kind, stamp: Stamp) -> Result<Inode, Error> {
        let inode = self.next_free()?;
        let name: Arc<[u8]> = Arc::from(name);
        let children = self.children_mut(dir).ok_or(Error::NotADirectory)?;
        children.insert(Arc::clone(&name), inode);
        let entry = Entry {
            parent: dir,
            version: 0,
            writer: 0,
            mtime: 0,
            name,
            kind,
        };
        self.entries.insert(inode, entry);
        self.bump(inode, inode, stamp);
        Ok(inode)
    }

    /// Stamps an entry and the version row.
    fn bump(&mut self, inode: Inode, version: u64, stamp: Stamp) {
        if let Some(entry) = self.entries.get_mut(&inode) {
            entry.version = version;
            entry.writer = stamp.writer;
            entry.mtime = stamp.mtime;
        }
        self.root = RootRow {
            version,
            writer: stamp.writer,
            mtime: stamp.mtime,
        };
    }

    /// Takes an entry out of the tree.
    fn unlink(&mut self, inode: Inode) -> Option<Unlinked> {
        let entry = self.entries.remove(&inode)?;
        let alias = self.aliases.remove(&inode);
        let key = alias.as_ref().unwrap_or(&entry.name);
        if let Some(children) = self.children_mut(entry.parent) {
            // A damaged tree may have someone else under that name.
            if children.get(key) == Some(&inode) {
                children.remove(key);
            }
        }
        let freed = match alias {
            Some(_) => None,
            None => Some((entry.parent, Arc::clone(&entry.name))),
        };
        Some(Unlinked { entry, freed })
    }

    /// Gives a name that became free to the newest entry that had lost it.
    fn promote(&mut self, freed: Option<(Inode, Arc<[u8]>)>, events: &mut Vec<GuestEvent>) {
        if self.aliases.is_empty() {
            return;
        }
        if let Some(inode) = freed.and_then(|(dir, name)| self.restore_name(dir, &name)) {
            if let Some(path) = self.path_of(inode).filter(|_| !self.is_dir(inode)) {
                if self.check_vmid(&path).is_ok() {
                    self.register_guest(&path, events);
                }
            }
        }
    }

    /// The [`Change`] of an operation that wrote the row of `inode`.
    fn changed(&self, inode: Inode, effects: Effects) -> Change {
        let put = self.row(inode);
        Change {
            delete: None,
            put,
            root: self.root,
            removed: None,
            inode,
            effects,
        }
    }
}

fn removed(inode: Inode, entry: Entry, path: &TreePath) -> RemovedEntry {
    RemovedEntry {
        inode,
        mtime: entry.mtime,
        kind: entry.kind,
        path: path.clone(),
    }
}

/// Content rule of a write (cluster-sync.md 1.3): the range is replaced, a gap is zero-filled, and
/// only `truncate` makes a file shorter.
fn splice(old: &[u8], offset: usize, data: &[u8], truncate: bool) -> Arc<[u8]> {
    let end = offset + data.len();
    let len = if truncate { end } else { end.max(old.len()) };
    if offset == 0 && data.len() == len {
        return Arc::from(data);
    }
    let mut new: Arc<[u8]> = if len == old.len() {
        Arc::from(old)
    } else {
        std::iter::repeat_n(0, len).collect()
    };
    let bytes = Arc::get_mut(&mut new).expect("nobody else has the new content yet");
    if len != old.len() {
        let kept = len.min(old.len());
        bytes[..kept].copy_from_slice(&old[..kept]);
    }
    bytes[offset..end].copy_from_slice(data);
    new
}
