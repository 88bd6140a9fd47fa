//! One entry of the tree, as it stands in memory.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

/// Inode number of an entry: 64 bit, unsigned. 0 is the root (and the version row on disk).
pub type Inode = u64;

/// The root directory; it has no row of its own in the database.
pub const ROOT_INODE: Inode = 0;

/// What an entry is and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Regular file with its complete content.
    File(Arc<[u8]>),
    /// Directory: name to inode. A name that two rows claim points to the newest of them.
    Dir(BTreeMap<Arc<[u8]>, Inode>),
}

/// One entry: a row of `config.db` without its inode number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Inode of the directory that holds it; [`ROOT_INODE`] for the top level.
    pub parent: Inode,
    /// Root version at its last change.
    pub version: u64,
    /// Corosync node id of the node that changed it last; 0 in local mode.
    pub writer: u32,
    /// Seconds since the epoch, low 32 bits.
    pub mtime: u32,
    /// Last path component; empty for the root.
    pub name: Arc<[u8]>,
    /// Directory or file.
    pub kind: Kind,
}

impl Entry {
    /// Size in bytes as hashed and shown by stat: 0 for directories.
    pub fn size(&self) -> u32 {
        match &self.kind {
            // A row larger than 4 GiB cannot exist: SQLite refuses blobs beyond 2^31 - 1 bytes.
            Kind::File(data) => data.len() as u32,
            Kind::Dir(_) => 0,
        }
    }

    /// `type` column and hash input: 4 for a directory, 8 for a regular file (database.md 3).
    pub fn type_code(&self) -> u8 {
        match self.kind {
            Kind::Dir(_) => 4,
            Kind::File(_) => 8,
        }
    }

    /// True for a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir(_))
    }

    /// Content of a regular file.
    pub fn data(&self) -> Option<&Arc<[u8]>> {
        match &self.kind {
            Kind::File(data) => Some(data),
            Kind::Dir(_) => None,
        }
    }

    /// Children of a directory by name.
    pub fn children(&self) -> Option<&BTreeMap<Arc<[u8]>, Inode>> {
        match &self.kind {
            Kind::Dir(children) => Some(children),
            Kind::File(_) => None,
        }
    }
}
