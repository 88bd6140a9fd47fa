//! What can be asked of the tree: plain values, the same for a local call and a replicated message.
#![forbid(unsafe_code)]

use super::path::TreePath;

/// One change that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// New empty regular file.
    Create { path: TreePath },
    /// New directory.
    Mkdir { path: TreePath },
    /// Replace `data.len()` bytes at `offset`; a gap is zero-filled. With `truncate` the file ends
    /// behind the written range (`data` empty: truncate to `offset` bytes).
    Write {
        path: TreePath,
        offset: u64,
        data: Vec<u8>,
        truncate: bool,
    },
    /// Remove a file or an empty directory.
    Delete { path: TreePath },
    /// Move an entry; a file or empty directory that has the new name is replaced.
    Rename { from: TreePath, to: TreePath },
    /// Set the modification time (seconds).
    SetMtime { path: TreePath, mtime: u32 },
}

/// Who changes and when: goes into the changed entry and the version row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Corosync node id of the sender; 0 in local mode.
    pub writer: u32,
    /// Seconds since the epoch at the sender.
    pub mtime: u32,
}
