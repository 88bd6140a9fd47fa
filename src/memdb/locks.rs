//! Locks: directories directly in `priv/lock`, and how long each has been seen (database.md 11).
//!
//! The ages are local to this node and in memory only. They are counted by a clock that nobody can
//! set (`uptime`, in seconds): a step of the wall clock must not give a lock to two.
#![forbid(unsafe_code)]

use super::LOCK_TIMEOUT_SECS;
use super::digest::Digest;
use super::entry::Inode;
use super::path::TreePath;
use super::tree::Tree;

/// What is known about the age of one lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LockRecord {
    /// Monotonic time in seconds at which the lock was first seen like this.
    since: u32,
    /// Lock checksum at that time.
    checksum: Digest,
}

impl Tree {
    /// May the lock at `path` be taken away? Yes if it was seen unchanged for more than
    /// [`LOCK_TIMEOUT_SECS`] seconds. A lock not seen before, or changed since, starts at age 0.
    pub fn lock_expired(&mut self, path: &TreePath, checksum: &Digest, uptime: u32) -> bool {
        match self.locks.get(path) {
            Some(record) if record.checksum == *checksum => {
                uptime.saturating_sub(record.since) > LOCK_TIMEOUT_SECS
            }
            _ => {
                self.locks.insert(
                    path.clone(),
                    LockRecord {
                        since: uptime,
                        checksum: *checksum,
                    },
                );
                false
            }
        }
    }

    /// Age 0 for the lock at `path`, if a directory at `path` is one.
    pub(super) fn start_lock(&mut self, path: &TreePath, inode: Inode, uptime: u32) {
        if path.is_lock() {
            if let Some(checksum) = self.lock_checksum(inode) {
                self.locks.insert(
                    path.clone(),
                    LockRecord {
                        since: uptime,
                        checksum,
                    },
                );
            }
        }
    }

    /// Builds the table anew from the tree, every lock at age 0.
    pub fn rebuild_locks(&mut self, uptime: u32) {
        self.locks.clear();
        let dir = TreePath::new(b"priv/lock");
        let Some(children) = self
            .lookup(&dir)
            .and_then(|inode| self.get(inode)?.children())
        else {
            return;
        };
        let locks: Vec<_> = children
            .iter()
            .filter(|(name, inode)| Tree::servable_name(name) && self.is_dir(**inode))
            .map(|(name, &inode)| (dir.join(name), inode))
            .collect();
        for (path, inode) in locks {
            self.start_lock(&path, inode, uptime);
        }
    }

    /// As [`Tree::rebuild_locks`], but a lock that stood in `old` with the same checksum keeps its
    /// age. For the tree that replaces `old` after a sync.
    pub fn rebuild_locks_keeping(&mut self, old: &Tree, uptime: u32) {
        self.rebuild_locks(uptime);
        for (path, record) in &mut self.locks {
            if let Some(before) = old
                .locks
                .get(path)
                .filter(|o| o.checksum == record.checksum)
            {
                record.since = before.since;
            }
        }
    }
}
