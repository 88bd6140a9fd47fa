//! Import of the host's corosync.conf into a database that was just created (database.md 2).
#![forbid(unsafe_code)]

use std::path::Path;

use crate::memdb::{Op, TreePath};

/// Name of the file in the tree.
pub const COROSYNC_CONF: &[u8] = b"corosync.conf";
/// The host's copy.
pub const HOST_COROSYNC_CONF: &str = "/etc/corosync/corosync.conf";

/// The operations that bring the host's file into the tree: create, then one write with truncate.
/// A file that cannot be read is not there.
pub fn operations(host_file: &Path) -> Vec<Op> {
    let Ok(data) = std::fs::read(host_file) else {
        return Vec::new();
    };
    let path = TreePath::new(COROSYNC_CONF);
    vec![
        Op::Create { path: path.clone() },
        Op::Write {
            path,
            offset: 0,
            data,
            truncate: true,
        },
    ]
}
