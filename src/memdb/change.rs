//! What an applied operation did: rows to store, things to announce.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::entry::{Inode, Kind};
use super::path::{GuestType, TreePath};

/// A row of table `tree` (database.md 3), version row excepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub inode: Inode,
    pub parent: Inode,
    pub version: u64,
    pub writer: u32,
    pub mtime: u32,
    /// 4 directory, 8 file.
    pub type_code: u8,
    pub name: Arc<[u8]>,
    /// `None`: directory. An empty file is stored as NULL, too.
    pub data: Option<Arc<[u8]>>,
}

/// The version row (inode 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootRow {
    pub version: u64,
    pub writer: u32,
    pub mtime: u32,
}

/// An entry that left the tree: replaced by a rename, or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedEntry {
    pub inode: Inode,
    pub mtime: u32,
    pub kind: Kind,
    /// Path it had.
    pub path: TreePath,
}

/// A change of the guest list (status.md 5.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEvent {
    /// Guest registered (again): its version grows.
    Set {
        vmid: u32,
        node: Arc<str>,
        kind: GuestType,
    },
    /// Guest gone.
    Remove { vmid: u32 },
}

/// What others have to be told once the change is stored and visible.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effects {
    /// Paths whose change counter rises by one each, in order.
    pub touched: Vec<TreePath>,
    /// Changes of the guest list, in order.
    pub guests: Vec<GuestEvent>,
}

/// The outcome of one successful operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Row to delete (before `put`).
    pub delete: Option<Inode>,
    /// Row to write.
    pub put: Option<Row>,
    /// New version row.
    pub root: RootRow,
    /// Entry that is no longer reachable by a name.
    pub removed: Option<RemovedEntry>,
    /// Inode the operation was about (created, written, moved; the removed one for a delete).
    pub inode: Inode,
    /// What to announce.
    pub effects: Effects,
}

impl Change {
    /// False for a change of content and times only: no name was made, moved or removed.
    pub fn changes_names(&self) -> bool {
        // A new entry has the version as its inode; only a rename touches two paths.
        let created = self
            .put
            .as_ref()
            .is_some_and(|row| row.inode == row.version);
        created || self.removed.is_some() || self.effects.touched.len() > 1
    }
}
