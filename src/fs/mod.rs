//! The FUSE view of the tree (spec: `docs/protocol/filesystem.md`).
#![forbid(unsafe_code)]

use std::sync::Arc;

/// The computed files in the root of the mount (status.md 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DotFile {
    Version,
    Members,
    Vmlist,
    Rrd,
    Clusterlog,
    Debug,
}

/// Receives the text of a dot file.
pub type DotReady = Box<dyn FnOnce(Arc<[u8]>) + Send>;

/// Where the dot files come from.
pub trait DotFiles: Send + Sync {
    /// Hands the current text to `ready`: at once, or (bounded, some milliseconds) from another
    /// thread when a change that was already answered is about to be announced.
    fn content(&self, file: DotFile, ready: DotReady);

    /// Switches debug logging (`.debug`).
    fn set_debug(&self, on: bool);
}
