//! What a client of this node may ask, beyond what peers may send.
#![forbid(unsafe_code)]

use super::change::Change;
use super::entry::{Inode, ROOT_INODE};
use super::error::Error;
use super::op::{Op, Stamp};
use super::path::TreePath;
use super::tree::Tree;
use super::{MAX_DEPTH, MAX_FILE_SIZE};

impl Tree {
    /// Applies an operation of a local client in local mode: writer 0, wall clock `now`; `uptime` as
    /// for [`Tree::apply`].
    ///
    /// A set-mtime to 0 below `priv/lock/` is an unlock request: it removes the directory if it has
    /// expired (database.md 11), else it is the plain operation.
    ///
    /// # Errors
    /// Those of [`Tree::check_local`] and [`Tree::apply`].
    pub fn apply_local(&mut self, op: &Op, now: u32, uptime: u32) -> Result<Change, Error> {
        self.check_local(op)?;
        let stamp = Stamp {
            writer: 0,
            mtime: now,
        };
        if let Some((path, inode)) = self.unlock_request(op) {
            if let Some(checksum) = self.lock_checksum(inode) {
                if self.lock_expired(path, &checksum, uptime) {
                    return self.apply(&Op::Delete { path: path.clone() }, stamp, uptime);
                }
            }
        }
        self.apply(op, stamp, uptime)
    }

    /// Path and inode of the directory `op` asks to unlock, if it is an unlock request.
    pub fn unlock_request<'o>(&self, op: &'o Op) -> Option<(&'o TreePath, Inode)> {
        match op {
            Op::SetMtime { path, mtime: 0 } if path.is_below_lock_dir() => {
                let inode = self.lookup(path).filter(|inode| self.is_dir(*inode))?;
                Some((path, inode))
            }
            _ => None,
        }
    }

    /// What must be refused on the node where it is asked, before it is sent to others: peers that
    /// run the C daemon would accept it and be damaged or differ.
    ///
    /// # Errors
    /// * [`Error::TooBig`]: the message has 32 bits for the offset only.
    /// * [`Error::TooDeep`]: a new name below too many directories.
    /// * [`Error::Access`]: a regular file where guest configs belong (`nodes/<node>/lxc`), after
    ///   which a C node does not start; a rename to `.` or `..`, or of a directory into itself.
    /// * [`Error::NotEmpty`]: rename of a directory that is not empty; the C daemon refuses, too, but
    ///   drops the target first.
    ///
    /// Everything that [`Tree::apply`] refuses before these is refused with the same error.
    pub fn check_local(&self, op: &Op) -> Result<(), Error> {
        if let Op::Create { path } | Op::Mkdir { path } | Op::Rename { to: path, .. } = op {
            if path.components().nth(MAX_DEPTH).is_some() {
                return Err(Error::TooDeep);
            }
        }
        match op {
            Op::Create { path } if path.is_guest_dir() => {
                let (dir, name) = self.dir_and_name(path)?;
                if self.child(dir, name).is_some() {
                    Ok(())
                } else {
                    Err(Error::Access)
                }
            }
            Op::Write { offset, data, .. } => {
                let end = offset.checked_add(data.len() as u64);
                if end.is_some_and(|end| end <= MAX_FILE_SIZE) {
                    Ok(())
                } else {
                    Err(Error::TooBig)
                }
            }
            Op::Rename { from, to } => self.check_local_rename(from, to),
            _ => Ok(()),
        }
    }

    fn check_local_rename(&self, from: &TreePath, to: &TreePath) -> Result<(), Error> {
        let inode = self.lookup(from).ok_or(Error::NotFound)?;
        let name_ok = to
            .split_last()
            .is_none_or(|(_, name)| Tree::servable_name(name));
        if inode == ROOT_INODE || !name_ok {
            return Err(Error::Access);
        }
        if !self.is_dir(inode) {
            // A file that stands there already (a peer made it) may be replaced, to clean up; a
            // directory with something in it, or none to put it in, is refused anyway.
            let free = match self.lookup(to) {
                Some(target) => self.is_dir(target) && !self.has_children(target),
                None => self.dir_and_name(to).is_ok(),
            };
            return if to.is_guest_dir() && free {
                Err(Error::Access)
            } else {
                Ok(())
            };
        }
        if from.is_below_lock_dir() {
            return Err(Error::Access);
        }
        let target = self.lookup(to).filter(|target| *target != inode);
        if target.is_some_and(|target| self.has_children(target)) {
            return Err(Error::NotEmpty);
        }
        if let Some((dir, _)) = to.split_last() {
            let dir = self.lookup_bytes(dir).ok_or(Error::NotFound)?;
            if !self.is_dir(dir) {
                return Err(Error::NotADirectory);
            }
            if dir == inode && !self.has_children(inode) {
                return Err(Error::Access);
            }
        }
        if self.has_children(inode) {
            Err(Error::NotEmpty)
        } else {
            Ok(())
        }
    }

    /// Makes the regular file `path` with content `data`, as the first start does with the host's
    /// corosync.conf and `create_pmxcfs_db` with every file: one creation, one write, writer 0.
    ///
    /// # Errors
    /// As for the two operations; [`Error::Exists`] if the name is taken.
    pub fn import(&mut self, path: &TreePath, data: &[u8], now: u32) -> Result<[Change; 2], Error> {
        let stamp = Stamp {
            writer: 0,
            mtime: now,
        };
        // No lock is made: no age is needed.
        let create = self.apply(&Op::Create { path: path.clone() }, stamp, 0)?;
        let write = Op::Write {
            path: path.clone(),
            offset: 0,
            data: data.to_vec(),
            truncate: true,
        };
        Ok([create, self.apply(&write, stamp, 0)?])
    }
}
