//! The tree itself: look-ups here, changes in `apply`.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::change::{RootRow, Row};
use super::entry::{Entry, Inode, Kind, ROOT_INODE};
use super::guests::Guest;
use super::locks::LockRecord;
use super::path::TreePath;

/// Tells a tree from every other one, its copies included.
#[derive(Debug, Default)]
struct Identity(Arc<()>);

impl Clone for Identity {
    /// The copy goes its own way.
    fn clone(&self) -> Self {
        Identity::default()
    }
}

/// A state of a tree: equal only for the same tree without a change in between. Versions alone do
/// not tell: a tree that replaces another one may have the same.
#[derive(Debug)]
pub struct Moment {
    tree: Arc<()>,
    version: u64,
}

impl PartialEq for Moment {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.tree, &other.tree) && self.version == other.version
    }
}

/// The in-memory database.
#[derive(Debug, Clone)]
pub struct Tree {
    identity: Identity,
    /// Every entry, root excepted, by inode (ascending: the order of index and checksum).
    pub(super) entries: BTreeMap<Inode, Entry>,
    /// Children of the root.
    pub(super) top: Entry,
    /// Version row.
    pub(super) root: RootRow,
    /// Entries that lost their name to a newer row: the name they are served under instead.
    pub(super) aliases: BTreeMap<Inode, Arc<[u8]>>,
    /// Registered guests by VMID.
    pub(super) guests: BTreeMap<u32, Guest>,
    /// VMIDs that more than one config file claims.
    pub(super) guest_duplicates: BTreeSet<u32>,
    /// Age of the locks, local to this node.
    pub(super) locks: BTreeMap<TreePath, LockRecord>,
}

impl Default for Tree {
    fn default() -> Self {
        Tree::new()
    }
}

impl Tree {
    /// An empty tree at version 0, as before the first start wrote the version row.
    pub fn new() -> Self {
        Tree {
            identity: Identity::default(),
            entries: BTreeMap::new(),
            top: Entry {
                parent: ROOT_INODE,
                version: 0,
                writer: 0,
                mtime: 0,
                name: Arc::from(&b""[..]),
                kind: Kind::Dir(BTreeMap::new()),
            },
            root: RootRow {
                version: 0,
                writer: 0,
                mtime: 0,
            },
            aliases: BTreeMap::new(),
            guests: BTreeMap::new(),
            guest_duplicates: BTreeSet::new(),
            locks: BTreeMap::new(),
        }
    }

    /// Version, writer and mtime of the whole database.
    pub fn root_row(&self) -> RootRow {
        self.root
    }

    /// The state the tree is in.
    pub fn moment(&self) -> Moment {
        Moment {
            tree: Arc::clone(&self.identity.0),
            version: self.root.version,
        }
    }

    /// Number of entries, the root included (statfs, index header).
    pub fn len(&self) -> usize {
        self.entries.len() + 1
    }

    /// True if there is no entry but the root.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sum of all file sizes in bytes (statfs).
    pub fn total_size(&self) -> u64 {
        self.entries.values().map(|e| u64::from(e.size())).sum()
    }

    /// Entry by inode; [`ROOT_INODE`] gives the root directory.
    pub fn get(&self, inode: Inode) -> Option<&Entry> {
        if inode == ROOT_INODE {
            Some(&self.top)
        } else {
            self.entries.get(&inode)
        }
    }

    /// Inode of `name` in directory `dir`.
    pub fn child(&self, dir: Inode, name: &[u8]) -> Option<Inode> {
        self.get(dir)?.children()?.get(name).copied()
    }

    /// Inode of a path.
    pub fn lookup(&self, path: &TreePath) -> Option<Inode> {
        self.lookup_bytes(path.as_bytes())
    }

    /// [`Tree::lookup`] of a path or a part of one, without a leading slash.
    pub(super) fn lookup_bytes(&self, path: &[u8]) -> Option<Inode> {
        path.split(|&b| b == b'/')
            .filter(|name| !name.is_empty())
            .try_fold(ROOT_INODE, |dir, name| self.child(dir, name))
    }

    /// Content of the regular file at `path`.
    pub fn read(&self, path: &TreePath) -> Option<&Arc<[u8]>> {
        self.get(self.lookup(path)?)?.data()
    }

    /// Name an entry is served under: its own, or its alias if a newer row has that name.
    pub fn served_name(&self, inode: Inode) -> Option<&Arc<[u8]>> {
        self.aliases
            .get(&inode)
            .or_else(|| self.get(inode).map(|entry| &entry.name))
    }

    /// True if the entry is only served under an alias, because a newer row has its name.
    pub fn is_alias(&self, inode: Inode) -> bool {
        self.aliases.contains_key(&inode)
    }

    /// False for names a damaged database can hold but no file system can show: empty, `.`, `..`
    /// or with a slash. Such entries stay in the tree and in every digest, and keep their directory
    /// from being removed, but nobody can reach them.
    pub fn servable_name(name: &[u8]) -> bool {
        !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/')
    }

    /// Path of an entry; `None` if it is not reachable from the root by names.
    pub fn path_of(&self, inode: Inode) -> Option<TreePath> {
        self.path_within(inode, self.entries.len() + 1)
    }

    /// [`Tree::path_of`], also `None` if it has more than `depth` components.
    pub(crate) fn path_within(&self, inode: Inode, depth: usize) -> Option<TreePath> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = inode;
        while at != ROOT_INODE {
            let parent = self.entries.get(&at)?.parent;
            let name = self.served_name(at)?;
            // A damaged database can hold directory cycles; no real tree is that deep.
            if names.len() >= depth || !Tree::servable_name(name) {
                return None;
            }
            // Not so if the parent turned out to be a file, or is the entry itself.
            if self.child(parent, name) != Some(at) {
                return None;
            }
            names.push(name);
            at = parent;
        }
        names.reverse();
        Some(TreePath::new(&names.join(&b'/')))
    }

    /// Every entry, root excepted, ascending by inode.
    pub fn iter(&self) -> impl Iterator<Item = (Inode, &Entry)> {
        self.entries.iter().map(|(inode, entry)| (*inode, entry))
    }

    /// Row of an entry as the database holds it; `None` for the root, which has none.
    pub fn row(&self, inode: Inode) -> Option<Row> {
        let entry = self.entries.get(&inode)?;
        Some(Row {
            inode,
            parent: entry.parent,
            version: entry.version,
            writer: entry.writer,
            mtime: entry.mtime,
            type_code: entry.type_code(),
            name: Arc::clone(&entry.name),
            data: entry.data().map(Arc::clone),
        })
    }

    /// Children of directory `dir`, for changing them.
    pub(super) fn children_mut(&mut self, dir: Inode) -> Option<&mut BTreeMap<Arc<[u8]>, Inode>> {
        let entry = if dir == ROOT_INODE {
            &mut self.top
        } else {
            self.entries.get_mut(&dir)?
        };
        match &mut entry.kind {
            Kind::Dir(children) => Some(children),
            Kind::File(_) => None,
        }
    }
}

#[cfg(test)]
impl Tree {
    /// Sets the version of the database to what the C daemon would go on from.
    pub(crate) fn set_version_for_test(&mut self, version: u64) {
        self.root.version = version;
    }
}
