//! Where the replicated tree lives.
#![forbid(unsafe_code)]

use crate::memdb::{Change, Error, Op, Stamp, Tree};

/// The tree as this application sees it. A bare [`Tree`] is one; the daemon's is shared with its
/// readers and shows every change to its observers before the lock on it is given back.
pub trait TreeHost {
    /// Looks at the tree.
    fn read<T>(&self, look: impl FnOnce(&Tree) -> T) -> T;

    /// Changes what only this node knows about it (lock ages).
    fn adjust<T>(&mut self, change: impl FnOnce(&mut Tree) -> T) -> T;

    /// Applies one operation ([`Tree::apply`]); `uptime` is for the ages of locks.
    ///
    /// # Errors
    /// Those of [`Tree::apply`].
    fn apply(&mut self, op: &Op, stamp: Stamp, uptime: u32) -> Result<Change, Error>;

    /// Puts another tree in its place after a synchronisation.
    fn replace(&mut self, tree: Tree);

    /// Name of a node, for the log.
    fn node_name(&self, _nodeid: u32) -> Option<String> {
        None
    }
}

impl TreeHost for Tree {
    fn read<T>(&self, look: impl FnOnce(&Tree) -> T) -> T {
        look(self)
    }

    fn adjust<T>(&mut self, change: impl FnOnce(&mut Tree) -> T) -> T {
        change(self)
    }

    fn apply(&mut self, op: &Op, stamp: Stamp, uptime: u32) -> Result<Change, Error> {
        Tree::apply(self, op, stamp, uptime)
    }

    fn replace(&mut self, tree: Tree) {
        *self = tree;
    }
}
