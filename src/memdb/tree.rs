//! The tree itself: look-ups here, changes in `apply`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::change::RootRow;
use super::entry::{Entry, Inode, Kind, ROOT_INODE};
use super::path::TreePath;

/// The in-memory database.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Every entry, root excepted, by inode (ascending: the order of index and checksum).
    pub(super) entries: BTreeMap<Inode, Entry>,
    /// Children of the root.
    pub(super) top: Entry,
    /// Version row.
    pub(super) root: RootRow,
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
        }
    }

    /// Version, writer and mtime of the whole database.
    pub fn root_row(&self) -> RootRow {
        self.root
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
        path.components()
            .try_fold(ROOT_INODE, |dir, name| self.child(dir, name))
    }

    /// Content of the regular file at `path`.
    pub fn read(&self, path: &TreePath) -> Option<&Arc<[u8]>> {
        self.get(self.lookup(path)?)?.data()
    }

    /// Path of an entry; `None` if it is not reachable from the root by names.
    pub fn path_of(&self, inode: Inode) -> Option<TreePath> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = inode;
        while at != ROOT_INODE {
            let entry = self.entries.get(&at)?;
            // A damaged database can hold directory cycles; no real tree is that deep.
            if names.len() > self.entries.len() {
                return None;
            }
            names.push(&entry.name);
            at = entry.parent;
        }
        names.reverse();
        Some(TreePath::new(&names.join(&b'/')))
    }

    /// Every entry, root excepted, ascending by inode.
    pub fn iter(&self) -> impl Iterator<Item = (Inode, &Entry)> {
        self.entries.iter().map(|(inode, entry)| (*inode, entry))
    }
}
