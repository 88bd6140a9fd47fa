//! Changes: checked here as far as only this mount is concerned, then handed to the replica
//! together with the reply.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{EACCES, EIO, ENOENT, Inner, NO_TTL, Node, SECOND, check_name, plugin};
use crate::fs::DotFile;
use crate::fs::attr;
use crate::fs::known::Orphan;
use crate::fs::ops::{AttrReply, Entry, Errno, Ino, ROOT_INO, Reply, SetAttr, SetTime};
use crate::memdb::{Inode, MAX_FILE_SIZE, Op, Tree, TreePath};
use crate::replica::Applied;

const EFBIG: Errno = Errno(libc::EFBIG);
const EPERM: Errno = Errno(libc::EPERM);

/// What is left of a `setattr` once the rules for mode and owner are satisfied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Nothing,
    Size(u64),
    Mtime(u32),
}

impl Inner {
    /// Hands `op` to the replica. `then` makes the answer of a success.
    fn submit<T: 'static>(
        self: &Arc<Self>,
        op: Op,
        reply: Reply<T>,
        then: impl FnOnce(&Inner, Applied) -> Result<T, Errno> + Send + 'static,
    ) {
        let inner = Arc::clone(self);
        self.replica.submit(
            op,
            Box::new(move |result| match result {
                Ok(applied) => reply(then(&inner, applied)),
                Err(err) => reply(Err(err.into())),
            }),
        );
    }

    /// Counts a change of names in the root from now until `reply` is sent.
    fn marking_root<T: 'static>(self: &Arc<Self>, dirs: &[Ino], reply: Reply<T>) -> Reply<T> {
        if !dirs.contains(&ROOT_INO) {
            return reply;
        }
        let change = RootChange::start(self);
        Box::new(move |result| {
            reply(result);
            drop(change);
        })
    }

    fn check_quorum(&self) -> Result<(), Errno> {
        if self.replica.quorate() {
            Ok(())
        } else {
            Err(EACCES)
        }
    }

    /// Path of `name` in directory `dir`, if it may be changed now.
    fn name_to_change(&self, tree: &Tree, dir: Ino, name: &[u8]) -> Result<TreePath, Errno> {
        check_name(name)?;
        if plugin(dir, name).is_some() || name == b"." || name == b".." {
            return Err(EACCES);
        }
        self.check_quorum()?;
        let (_, path) = self.dir(tree, dir)?;
        Ok(path.join(name))
    }

    pub(super) fn create(
        self: &Arc<Self>,
        dir: Ino,
        name: &[u8],
        is_dir: bool,
        reply: Reply<Entry>,
    ) {
        let path = self.name_to_change(&self.tree.read(), dir, name);
        let path = match path {
            // Written through the links in the root while the guest directory is missing: as a
            // file it would keep the C daemon from starting (database.md 6).
            Ok(path) if !is_dir && path.is_guest_dir() => return reply(Err(EACCES)),
            Ok(path) => path,
            Err(err) => return reply(Err(err)),
        };
        let op = if is_dir {
            Op::Mkdir { path: path.clone() }
        } else {
            Op::Create { path: path.clone() }
        };
        let reply = self.marking_root(&[dir], reply);
        self.submit(op, reply, move |inner, applied| {
            let tree = inner.tree.read();
            Ok(inner
                .found(&tree, applied.inode)
                .unwrap_or_else(|| inner.stillborn(applied.inode, path, is_dir)))
        });
    }

    /// Somebody removed the new entry before its creator got the answer.
    fn stillborn(&self, inode: Inode, path: TreePath, is_dir: bool) -> Entry {
        let content = if is_dir {
            None
        } else {
            Some(Arc::from(&b""[..]))
        };
        let orphan = Orphan {
            content,
            mtime: now(),
            path,
        };
        let ino = self.inodes.lock().stillborn(inode, orphan.clone());
        Entry::Found {
            attr: self.orphan_attr(ino, orphan),
            attr_ttl: SECOND,
            entry_ttl: NO_TTL,
        }
    }

    pub(super) fn remove(
        self: &Arc<Self>,
        dir: Ino,
        name: &[u8],
        want_dir: bool,
        reply: Reply<()>,
    ) {
        match self.checked_remove(dir, name, want_dir) {
            Ok(path) => {
                let reply = self.marking_root(&[dir], reply);
                self.submit(Op::Delete { path }, reply, |_, _| Ok(()));
            }
            Err(err) => reply(Err(err)),
        }
    }

    fn checked_remove(&self, dir: Ino, name: &[u8], want_dir: bool) -> Result<TreePath, Errno> {
        let tree = self.tree.read();
        let path = self.name_to_change(&tree, dir, name)?;
        let inode = tree.lookup(&path).ok_or(ENOENT)?;
        match (
            want_dir,
            tree.get(inode).is_some_and(|entry| entry.is_dir()),
        ) {
            (true, false) => Err(Errno(libc::ENOTDIR)),
            (false, true) => Err(Errno(libc::EISDIR)),
            _ => Ok(path),
        }
    }

    pub(super) fn rename(self: &Arc<Self>, from: (Ino, &[u8]), to: (Ino, &[u8]), reply: Reply<()>) {
        let dirs = [from.0, to.0];
        match self.checked_rename(from, to) {
            Ok((from, to, refresh)) => {
                let reply = self.marking_root(&dirs, reply);
                self.submit(Op::Rename { from, to }, reply, move |inner, applied| {
                    if refresh {
                        inner.refresh_attr(applied.inode);
                    }
                    Ok(())
                });
            }
            Err(err) => reply(Err(err)),
        }
    }

    /// Both paths, and whether the mode of what is moved changes by that.
    fn checked_rename(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
    ) -> Result<(TreePath, TreePath, bool), Errno> {
        let tree = self.tree.read();
        let from = self.name_to_change(&tree, from.0, from.1)?;
        let to = self.name_to_change(&tree, to.0, to.1)?;
        let inode = tree.lookup(&from).ok_or(ENOENT)?;
        let is_dir = tree.get(inode).is_some_and(|entry| entry.is_dir());
        if !is_dir && to.is_guest_dir() {
            return Err(EACCES);
        }
        let refresh = attr::mode(&from, is_dir, true) != attr::mode(&to, is_dir, true);
        Ok((from, to, refresh))
    }

    /// Has the kernel ask again for the attributes of an entry that is just being renamed. The
    /// kernel itself expects a new change time only, and would go on checking the old mode.
    ///
    fn refresh_attr(&self, inode: Inode) {
        let ino = self.inodes.lock().numbers.known_number(inode);
        if let (Some(ino), Some(kernel)) = (ino, self.kernel.get()) {
            kernel.inval_attr(ino);
        }
    }

    pub(super) fn write(self: &Arc<Self>, ino: Ino, offset: u64, data: &[u8], reply: Reply<u32>) {
        let path = {
            let tree = self.tree.read();
            match self.node(&tree, ino) {
                Ok(Node::Tree(inode)) => path_to_change(&tree, inode),
                Ok(Node::Orphan(_)) => {
                    drop(tree);
                    return reply(self.write_orphan(ino, offset, data));
                }
                Ok(Node::Dot(file)) => {
                    drop(tree);
                    return self.write_dot(ino, file, offset, data, reply);
                }
                Ok(Node::Link(_)) => Err(EACCES),
                Err(err) => Err(err),
            }
        };
        let checked = self
            .check_quorum()
            .and(check_range(offset, data.len()))
            .and(path);
        match checked {
            Ok(path) => {
                let op = Op::Write {
                    path,
                    offset,
                    data: data.to_vec(),
                    truncate: false,
                };
                // At most MAX_FILE_SIZE.
                let count = data.len() as u32;
                self.submit(op, reply, move |_, _| Ok(count));
            }
            Err(err) => reply(Err(err)),
        }
    }

    fn write_orphan(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        self.check_quorum()?;
        check_range(offset, data.len())?;
        self.change_orphan(ino, |content| {
            // Fits: checked against MAX_FILE_SIZE.
            let start = offset as usize;
            let end = start + data.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[start..end].copy_from_slice(data);
        })?;
        Ok(data.len() as u32)
    }

    fn change_orphan(&self, ino: Ino, change: impl FnOnce(&mut Vec<u8>)) -> Result<(), Errno> {
        let mut known = self.inodes.lock();
        let orphan = known.orphan_mut(ino).ok_or(ENOENT)?;
        let mut content = orphan.content.as_ref().ok_or(Errno(libc::EISDIR))?.to_vec();
        change(&mut content);
        orphan.content = Some(Arc::from(content));
        orphan.mtime = now();
        Ok(())
    }

    pub(super) fn setattr(self: &Arc<Self>, ino: Ino, set: SetAttr, reply: Reply<AttrReply>) {
        match self.checked_setattr(ino, set) {
            Ok(Some(op)) => self.submit(op, reply, move |inner, _| inner.attr_after_setattr(ino)),
            Ok(None) => {
                let attr = self.attr_after_setattr(ino);
                reply(attr);
            }
            Err(err) => reply(Err(err)),
        }
    }

    /// Unlike those of any other answer, the kernel takes these attributes even if it was told meanwhile
    /// to forget all, and it takes a new edition without dropping what it has cached. So they hold for a
    /// second, or, if there was another edition, not at all, and the next ones have yet another.
    fn attr_after_setattr(&self, ino: Ino) -> Result<AttrReply, Errno> {
        let AttrReply { attr, ttl } = self.attr_now(ino)?;
        if attr.edition == 0 {
            let ttl = ttl.min(SECOND);
            return Ok(AttrReply { attr, ttl });
        }
        self.inodes.lock().outdate(ino);
        Ok(AttrReply { attr, ttl: NO_TTL })
    }

    /// The change that is to be made in the tree, if any.
    fn checked_setattr(&self, ino: Ino, set: SetAttr) -> Result<Option<Op>, Errno> {
        let tree = self.tree.read();
        let node = self.node(&tree, ino)?;
        let path = match &node {
            Node::Tree(inode) => path_to_change(&tree, *inode)?,
            Node::Orphan(orphan) => orphan.path.clone(),
            Node::Link(_) | Node::Dot(_) => TreePath::root(),
        };
        drop(tree);
        if set
            .mode
            .is_some_and(|mode| !attr::chmod_allowed(path.is_private(), mode))
            || !attr::chown_allowed(set.uid, set.gid, self.gid)
        {
            return Err(EPERM);
        }
        match (want(&set), node) {
            (Want::Nothing, _) => Ok(None),
            (Want::Size(_), Node::Dot(DotFile::Debug)) => Ok(None),
            (Want::Size(_), Node::Dot(_)) => Err(EIO),
            (_, Node::Dot(_) | Node::Link(_)) => Err(EACCES),
            (Want::Mtime(_), _) if path.is_root() => Err(EACCES),
            (want, node) => {
                self.check_quorum()?;
                if let Want::Size(size) = want {
                    check_range(size, 0)?;
                }
                match (node, want) {
                    (Node::Orphan(_), want) => self.setattr_orphan(ino, want).map(|()| None),
                    (_, Want::Mtime(mtime)) => Ok(Some(Op::SetMtime { path, mtime })),
                    (_, Want::Size(size)) => Ok(Some(truncation(path, size))),
                    (_, Want::Nothing) => Ok(None),
                }
            }
        }
    }

    fn setattr_orphan(&self, ino: Ino, want: Want) -> Result<(), Errno> {
        match want {
            // Fits: checked against MAX_FILE_SIZE.
            Want::Size(size) => self.change_orphan(ino, |data| data.resize(size as usize, 0)),
            Want::Mtime(mtime) => {
                if let Some(orphan) = self.inodes.lock().orphan_mut(ino) {
                    orphan.mtime = mtime;
                }
                Ok(())
            }
            Want::Nothing => Ok(()),
        }
    }
}

/// A change of names in the root that is under way.
struct RootChange(Arc<Inner>);

impl RootChange {
    fn start(inner: &Arc<Inner>) -> Self {
        inner.root_changes.fetch_add(1, SeqCst);
        RootChange(Arc::clone(inner))
    }
}

impl Drop for RootChange {
    fn drop(&mut self) {
        self.0.root_changes.fetch_sub(1, SeqCst);
    }
}

/// Path of an entry of the tree.
fn path_to_change(tree: &Tree, inode: Inode) -> Result<TreePath, Errno> {
    tree.path_of(inode).ok_or(EIO)
}

fn truncation(path: TreePath, size: u64) -> Op {
    Op::Write {
        path,
        offset: size,
        data: Vec::new(),
        truncate: true,
    }
}

/// A request that reaches behind the largest size is refused as a whole.
fn check_range(offset: u64, len: usize) -> Result<(), Errno> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= MAX_FILE_SIZE => Ok(()),
        _ => Err(EFBIG),
    }
}

/// Size wins over times: the kernel never asks for both. Times count only together (an omitted one
/// means that nothing changes, filesystem.md 9), and of them only the modification time.
fn want(set: &SetAttr) -> Want {
    match (set.size, set.atime, set.mtime) {
        (Some(size), _, _) => Want::Size(size),
        (None, Some(_), Some(SetTime::Now)) => Want::Mtime(now()),
        // Reduced modulo 2^32.
        (None, Some(_), Some(SetTime::Seconds(secs))) => Want::Mtime(secs as u32),
        _ => Want::Nothing,
    }
}

fn now() -> u32 {
    // Modulo 2^32 like every time in the database; a clock before 1970 gives 0.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_count_together_and_modulo_2_32() {
        let set = |atime, mtime| {
            want(&SetAttr {
                atime,
                mtime,
                ..SetAttr::default()
            })
        };
        let at = |secs| Some(SetTime::Seconds(secs));
        assert_eq!(set(at(5), at(6)), Want::Mtime(6));
        assert_eq!(set(at(5), at((1 << 32) + 7)), Want::Mtime(7));
        assert_eq!(set(at(-1), at(-1)), Want::Mtime(u32::MAX));
        assert_eq!(set(Some(SetTime::Now), at(88)), Want::Mtime(88));
        assert_eq!(set(None, at(1)), Want::Nothing);
        assert_eq!(set(at(1), None), Want::Nothing);
        assert!(matches!(set(Some(SetTime::Now), Some(SetTime::Now)), Want::Mtime(t) if t > 0));
        let both = SetAttr {
            size: Some(3),
            atime: at(1),
            mtime: at(2),
            ..SetAttr::default()
        };
        assert_eq!(want(&both), Want::Size(3));
    }

    #[test]
    fn ranges_end_at_one_mebibyte() {
        assert_eq!(check_range(0, 1 << 20), Ok(()));
        assert_eq!(check_range((1 << 20) - 1, 1), Ok(()));
        assert_eq!(check_range(1 << 20, 0), Ok(()));
        for (offset, len) in [
            (0, (1 << 20) + 1),
            (1 << 20, 1),
            (1 << 32, 0),
            (u64::MAX, 2),
        ] {
            assert_eq!(check_range(offset, len), Err(EFBIG));
        }
    }
}
