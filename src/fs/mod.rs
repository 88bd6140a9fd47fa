//! The FUSE view of the tree (spec: `docs/protocol/filesystem.md`).
//!
//! * `ops`      – what a filesystem is asked, in plain values; the border to the protocol
//! * `adapter`  – the only place that knows `fuser`: decodes, counts, runs the workers
//! * `mount`    – mount point: dead mounts, refusals, mount and unmount
//! * `view`     – the answers: names, attributes, content, changes
//! * `inode`, `known` – inode numbers; what the kernel refers to
//! * `attr`     – modes and attributes
//! * `cached`   – what the kernel shows of a file, asked without a request
//! * `notify`   – what the kernel has to forget when something changed that did not come through it
//!
//! The kernel keeps names, attributes and content for a day and is told what changed
//! ([`Notifier`]); most reads therefore never reach this process. Changes are handed to the
//! [`Replica`](crate::replica::Replica) together with the reply, so no worker ever waits.
#![forbid(unsafe_code)]

use std::sync::Arc;

mod adapter;
mod attr;
mod cached;
mod counters;
mod inode;
mod known;
pub mod mount;
mod notify;
pub mod ops;
mod view;

pub use adapter::{Served, Tuning, serve};
pub use counters::RequestCounts;
pub use known::Inodes;
pub use notify::{NameCache, Notifier};
pub use view::{View, ViewConfig};

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

impl DotFile {
    /// All of them.
    pub const ALL: [DotFile; 6] = [
        DotFile::Version,
        DotFile::Members,
        DotFile::Vmlist,
        DotFile::Rrd,
        DotFile::Clusterlog,
        DotFile::Debug,
    ];

    /// Name in the root of the mount.
    pub fn name(self) -> &'static str {
        match self {
            DotFile::Version => ".version",
            DotFile::Members => ".members",
            DotFile::Vmlist => ".vmlist",
            DotFile::Rrd => ".rrd",
            DotFile::Clusterlog => ".clusterlog",
            DotFile::Debug => ".debug",
        }
    }
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
