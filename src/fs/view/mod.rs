//! Answers what the kernel asks, from the tree.
#![forbid(unsafe_code)]

mod change;
mod dots;
mod list;
#[cfg(test)]
mod tests;

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use super::attr;
use super::inode::{Link, Plugin};
use super::known::{Inodes, Orphan};
use super::notify::{Kernel, NameCache};
use super::ops::{
    Attr, AttrReply, DirEntry, Entry, Errno, FileKind, Ino, Operations, ROOT_INO, Reply, SetAttr,
    Slice, StatFs,
};
use super::{DotFile, DotFiles};
use crate::memdb::{Inode, MAX_ENTRIES, MAX_TOTAL_SIZE, ROOT_INODE, Tree, TreePath};
use crate::replica::{Replica, SharedTree};

/// How long the kernel may keep what it is told the end of.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long it may keep what it cannot be told the end of: as long as with the C daemon.
const SECOND: Duration = Duration::from_secs(1);
/// Names of dot files and locks are looked up each time.
const NO_TTL: Duration = Duration::ZERO;
/// Longest name in bytes. Newer kernels let longer ones through; the C daemon's mount never did.
const NAME_MAX: usize = 1024;
/// What statfs says about names, wrong as it is (database.md 8).
const STATFS_NAME_MAX: u32 = 256;

pub(super) const EACCES: Errno = Errno(libc::EACCES);
pub(super) const EIO: Errno = Errno(libc::EIO);
pub(super) const ENOENT: Errno = Errno(libc::ENOENT);

/// What the view has to know about its surroundings.
#[derive(Debug, Clone)]
pub struct ViewConfig {
    /// Name of this node: where the links in the root point to.
    pub node: String,
    /// Group that owns everything (www-data).
    pub gid: u32,
}

/// The filesystem below the mount point.
#[derive(Clone)]
pub struct View(Arc<Inner>);

/// The shared part of a [`View`]. Lock order: tree → inodes, tree → listings; no other two locks are held
/// at once.
struct Inner {
    tree: SharedTree,
    replica: Arc<dyn Replica>,
    dots: Arc<dyn DotFiles>,
    inodes: Arc<Inodes>,
    gid: u32,
    /// Targets of the links in the root, by [`Link`].
    targets: [Arc<[u8]>; Link::ALL.len()],
    /// The mount, once it is served.
    kernel: OnceLock<Arc<dyn Kernel>>,
    names: OnceLock<NameCache>,
    /// Changes of names in the root that are under way: the kernel has locked it for them.
    root_changes: AtomicUsize,
    listings: Mutex<list::Cache>,
}

/// What an inode number stands for.
enum Node {
    Tree(Inode),
    Link(Link),
    Dot(DotFile),
    Orphan(Orphan),
}

/// What attributes are made of, taken from the tree while it is locked.
struct Facts {
    is_dir: bool,
    size: u64,
    mtime: u32,
    path: TreePath,
    nlink: Option<u32>,
}

impl View {
    /// A view of `tree`. `inodes` has to see every change of the tree from now on
    /// ([`crate::replica::Observer`]); `replica` takes the changes that are asked for here.
    pub fn new(
        config: ViewConfig,
        tree: SharedTree,
        replica: Arc<dyn Replica>,
        dots: Arc<dyn DotFiles>,
        inodes: Arc<Inodes>,
    ) -> Self {
        let targets = Link::ALL.map(|link| Arc::from(link.target(&config.node).as_bytes()));
        View(Arc::new(Inner {
            tree,
            replica,
            dots,
            inodes,
            gid: config.gid,
            targets,
            kernel: OnceLock::new(),
            names: OnceLock::new(),
            root_changes: AtomicUsize::new(0),
            listings: Mutex::default(),
        }))
    }

    pub(super) fn attach(&self, kernel: Arc<dyn Kernel>, names: NameCache) {
        // A view serves one mount; a second one would only lose some invalidations.
        let _ = self.0.kernel.set(kernel);
        let _ = self.0.names.set(names);
    }

    pub(super) fn inodes(&self) -> &Arc<Inodes> {
        &self.0.inodes
    }

    pub(super) fn tree(&self) -> &SharedTree {
        &self.0.tree
    }
}

/// How long the kernel may keep an answer.
struct Lifetimes {
    names: Duration,
    /// That a name does not exist.
    missing: Duration,
    attributes: Duration,
}

impl Inner {
    fn lifetimes(&self) -> Lifetimes {
        match self.names.get() {
            Some(NameCache::Lifetime) => Lifetimes {
                names: SECOND,
                missing: NO_TTL,
                attributes: SECOND,
            },
            Some(NameCache::Epoch) | None => Lifetimes {
                names: DAY,
                missing: DAY,
                attributes: DAY,
            },
        }
    }

    /// What `ino` stands for.
    fn node(&self, tree: &Tree, ino: Ino) -> Result<Node, Errno> {
        if let Some(link) = Link::from_ino(ino) {
            return Ok(Node::Link(link));
        }
        let known = self.inodes.lock();
        if let Some(inode) = known.numbers.tree_number(ino) {
            if tree.get(inode).is_some() {
                return Ok(Node::Tree(inode));
            }
        }
        let dot = || known.dot_file(ino).map(Node::Dot);
        known
            .orphan(ino)
            .cloned()
            .map(Node::Orphan)
            .or_else(dot)
            .ok_or(ENOENT)
    }

    /// The directory `ino` of the tree and its path.
    fn dir(&self, tree: &Tree, ino: Ino) -> Result<(Inode, TreePath), Errno> {
        let inode = self.inodes.lock().numbers.tree_number(ino).ok_or(ENOENT)?;
        let entry = tree.get(inode).ok_or(ENOENT)?;
        if !entry.is_dir() {
            return Err(Errno(libc::ENOTDIR));
        }
        Ok((inode, tree.path_of(inode).ok_or(ENOENT)?))
    }

    fn facts(tree: &Tree, inode: Inode) -> Option<Facts> {
        let entry = tree.get(inode)?;
        let path = tree.path_of(inode)?;
        let (is_dir, size) = (entry.is_dir(), u64::from(entry.size()));
        let mtime = if inode == ROOT_INODE { 0 } else { entry.mtime };
        Some(Facts {
            is_dir,
            size,
            mtime,
            path,
            nlink: None,
        })
    }

    /// Attributes for the kernel. Quorum is asked for last: if it changes after this, whoever
    /// invalidates attributes already finds the inode among those the kernel knows.
    fn attr(&self, ino: Ino, facts: &Facts) -> Attr {
        let perm = attr::mode(&facts.path, facts.is_dir, self.replica.quorate());
        let mut attr = attr::entry(ino, facts.is_dir, facts.size, facts.mtime, perm, self.gid);
        attr.nlink = facts.nlink.unwrap_or(attr.nlink);
        attr.edition = self.inodes.lock().edition(ino);
        attr
    }

    fn orphan_attr(&self, ino: Ino, orphan: Orphan) -> Attr {
        let size = orphan.content.as_ref().map_or(0, |data| data.len() as u64);
        let is_dir = orphan.content.is_none();
        let Orphan { mtime, path, .. } = orphan;
        self.attr(
            ino,
            &Facts {
                is_dir,
                size,
                mtime,
                path,
                nlink: Some(0),
            },
        )
    }

    fn link_attr(&self, link: Link) -> Attr {
        let size = self.targets[link as usize].len() as u64;
        let perm = attr::link_mode(self.replica.quorate());
        attr::plugin(link.ino(), FileKind::Symlink, size, perm, self.gid)
    }

    fn dot_attr(&self, ino: Ino, file: DotFile, size: u64) -> Attr {
        let mut attr = attr::plugin(ino, FileKind::Regular, size, attr::dot_mode(file), self.gid);
        attr.edition = self.inodes.lock().edition(ino);
        attr
    }

    /// Answer that hands a reference to `inode` to the kernel.
    fn found(&self, tree: &Tree, inode: Inode) -> Option<Entry> {
        let facts = Inner::facts(tree, inode)?;
        let mut known = self.inodes.lock();
        let ino = known.refer(inode);
        let is_new = known.references(ino) == 1;
        drop(known);
        let Lifetimes {
            names, attributes, ..
        } = self.lifetimes();
        // Only an inode that the kernel has made can be invalidated, and it makes this one when the
        // answer has reached the caller. What changes until then it has to ask for itself.
        let attr_ttl = if is_new {
            attributes.min(SECOND)
        } else {
            attributes
        };
        let entry_ttl = if facts.path.is_below_lock_dir() {
            NO_TTL
        } else {
            names
        };
        Some(Entry::Found {
            attr: self.attr(ino, &facts),
            attr_ttl,
            entry_ttl,
        })
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Entry, Errno> {
        let tree = self.tree.read();
        let inode = self.inodes.lock().numbers.tree_number(dir).ok_or(ENOENT)?;
        let children = tree
            .get(inode)
            .ok_or(ENOENT)?
            .children()
            .ok_or(Errno(libc::ENOTDIR))?;
        match children.get(name) {
            Some(child) => self.found(&tree, *child).ok_or(EIO),
            None => {
                let ttl = match tree.path_of(inode) {
                    Some(path) if path.join(name).is_below_lock_dir() => NO_TTL,
                    _ => self.lifetimes().missing,
                };
                Ok(Entry::Missing { ttl })
            }
        }
    }

    fn lookup_link(&self, link: Link) -> Entry {
        let Lifetimes {
            names, attributes, ..
        } = self.lifetimes();
        Entry::Found {
            attr: self.link_attr(link),
            attr_ttl: attributes,
            entry_ttl: names,
        }
    }

    fn getattr(&self, ino: Ino, node: Node, tree: &Tree) -> Result<Attr, Errno> {
        match node {
            Node::Tree(inode) => {
                let facts = Inner::facts(tree, inode).ok_or(ENOENT)?;
                Ok(self.attr(ino, &facts))
            }
            Node::Link(link) => Ok(self.link_attr(link)),
            Node::Orphan(orphan) => Ok(self.orphan_attr(ino, orphan)),
            Node::Dot(file) => {
                let known = self.inodes.lock();
                let size = known.text(ino).map_or(0, |text| text.len() as u64);
                drop(known);
                Ok(self.dot_attr(ino, file, size))
            }
        }
    }

    /// Attributes of `ino` as they are now.
    fn attr_now(&self, ino: Ino) -> Result<AttrReply, Errno> {
        let tree = self.tree.read();
        let node = self.node(&tree, ino)?;
        Ok(AttrReply {
            attr: self.getattr(ino, node, &tree)?,
            ttl: self.lifetimes().attributes,
        })
    }
}

/// The plugin entry `name` in directory `dir`.
fn plugin(dir: Ino, name: &[u8]) -> Option<Plugin> {
    if dir == ROOT_INO {
        Plugin::by_name(name)
    } else {
        None
    }
}

/// Refuses names that are too long.
fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > NAME_MAX {
        Err(Errno(libc::ENAMETOOLONG))
    } else {
        Ok(())
    }
}

impl Operations for View {
    fn lookup(&self, dir: Ino, name: &[u8], reply: Reply<Entry>) {
        if let Err(err) = check_name(name) {
            return reply(Err(err));
        }
        match plugin(dir, name) {
            Some(Plugin::Dot(file)) => Inner::lookup_dot(&self.0, file, reply),
            Some(Plugin::Link(link)) => reply(Ok(self.0.lookup_link(link))),
            None => {
                let entry = self.0.lookup(dir, name);
                reply(entry);
            }
        }
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.0.inodes.lock().forget(ino, count);
    }

    fn getattr(&self, ino: Ino, reply: Reply<AttrReply>) {
        Inner::when_text_is_there(&self.0, ino, move |inner| {
            let attr = inner.attr_now(ino);
            reply(attr);
        });
    }

    fn setattr(&self, ino: Ino, set: SetAttr, reply: Reply<AttrReply>) {
        Inner::setattr(&self.0, ino, set, reply);
    }

    fn readlink(&self, ino: Ino) -> Result<Slice, Errno> {
        let link = Link::from_ino(ino).ok_or(Errno(libc::EINVAL))?;
        Ok(Slice::new(
            Arc::clone(&self.0.targets[link as usize]),
            0,
            u32::MAX,
        ))
    }

    fn create(&self, dir: Ino, name: &[u8], reply: Reply<Entry>) {
        Inner::create(&self.0, dir, name, false, reply);
    }

    fn mkdir(&self, dir: Ino, name: &[u8], reply: Reply<Entry>) {
        Inner::create(&self.0, dir, name, true, reply);
    }

    fn unlink(&self, dir: Ino, name: &[u8], reply: Reply<()>) {
        Inner::remove(&self.0, dir, name, false, reply);
    }

    fn rmdir(&self, dir: Ino, name: &[u8], reply: Reply<()>) {
        Inner::remove(&self.0, dir, name, true, reply);
    }

    fn rename(&self, dir: Ino, name: &[u8], to_dir: Ino, to_name: &[u8], reply: Reply<()>) {
        Inner::rename(&self.0, (dir, name), (to_dir, to_name), reply);
    }

    fn read(&self, ino: Ino, offset: u64, size: u32, reply: Reply<Slice>) {
        Inner::when_text_is_there(&self.0, ino, move |inner| {
            let slice = inner
                .content(ino)
                .map(|data| Slice::new(data, offset, size));
            reply(slice);
        });
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8], reply: Reply<u32>) {
        Inner::write(&self.0, ino, offset, data, reply);
    }

    fn readdir(
        &self,
        ino: Ino,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        self.0.readdir(ino, offset, add)
    }

    fn statfs(&self) -> StatFs {
        let tree = self.0.tree.read();
        let (used, entries) = (tree.total_size().div_ceil(attr::BLOCK), tree.len() as u64);
        drop(tree);
        let blocks = MAX_TOTAL_SIZE / attr::BLOCK;
        StatFs {
            block_size: attr::BLOCK as u32,
            blocks,
            blocks_free: blocks.saturating_sub(used),
            files: MAX_ENTRIES,
            files_free: MAX_ENTRIES.saturating_sub(entries),
            name_max: STATFS_NAME_MAX,
        }
    }
}

impl Inner {
    /// Whole content of a regular file.
    fn content(&self, ino: Ino) -> Result<Arc<[u8]>, Errno> {
        let tree = self.tree.read();
        let content = match self.node(&tree, ino)? {
            Node::Tree(inode) => tree.get(inode).and_then(|entry| entry.data().cloned()),
            Node::Orphan(orphan) => orphan.content,
            Node::Dot(_) => self.inodes.lock().text(ino).cloned(),
            Node::Link(_) => None,
        };
        content.ok_or(Errno(libc::EISDIR))
    }
}
