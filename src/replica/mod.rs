//! The one door through which every change passes.
#![forbid(unsafe_code)]

use std::sync::Arc;

use parking_lot::RwLock;

use crate::memdb::{Change, Error, Inode, Op, Tree};

/// The tree as all threads share it. Held for microseconds only: never across a system call.
pub type SharedTree = Arc<RwLock<Tree>>;

/// Wall clock in seconds since the epoch (low 32 bits).
pub type Clock = Arc<dyn Fn() -> u32 + Send + Sync>;

/// What a successful change gives back to its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Inode the operation was about.
    pub inode: Inode,
}

/// Called exactly once, from any thread, when the change is stored (or refused).
pub type Done = Box<dyn FnOnce(Result<Applied, Error>) + Send>;

/// Takes changes. Local mode applies them at once; cluster mode sends them and applies them when
/// they come back in order.
pub trait Replica: Send + Sync {
    /// Never waits. `done` is called when the change is in the database, or was refused.
    fn submit(&self, op: Op, done: Done);

    /// May this node change anything now?
    fn quorate(&self) -> bool;
}

/// Sees every change at the moment it enters the tree.
pub trait Observer: Send + Sync {
    /// Called with the tree locked for writing: must be quick and must not touch the tree.
    fn applied(&self, change: &Change);
}

pub mod announce;
pub mod local;

pub use announce::{Announcer, Barrier};
pub use local::LocalReplica;
