//! Locks that somebody wants to take over (cluster-sync.md 1.4).
#![forbid(unsafe_code)]

use super::wire::Message;
use super::{Action, Dcdb, TreeHost};
use crate::dfsm::{Ctx, Outgoing};
use crate::memdb::{Op, TreePath};

impl<H: TreeHost> Dcdb<H> {
    /// The lock at `path`, if it is one and still the one that `checksum` was taken of.
    pub(super) fn is_lock(&self, path: &TreePath, checksum: &[u8; 32]) -> bool {
        path.is_lock()
            && self.host.read(|tree| {
                tree.lookup(path).is_some_and(|inode| {
                    tree.get(inode).is_some_and(|entry| entry.is_dir())
                        && tree.lock_checksum(inode).as_ref() == Some(checksum)
                })
            })
    }

    /// What goes ahead of a request to unlock. A lock that this node has seen unchanged for long
    /// enough is unlocked by this node itself, so it is gone when the request is answered, and
    /// whoever asked can take it at once. Nobody is harmed if it has changed meanwhile: the checksum
    /// is compared again on delivery. Of any other lock the lowest node may know more.
    pub(super) fn unlock(&mut self, request: &Op, uptime: u32) -> Option<Outgoing> {
        let (path, checksum) = self.host.read(|tree| {
            let (path, inode) = tree.unlock_request(request)?;
            Some((path.clone(), tree.lock_checksum(inode)?))
        })?;
        let expired = path.is_lock()
            && self
                .host
                .adjust(|tree| tree.lock_expired(&path, &checksum, uptime));
        let message = if expired {
            Message::Unlock { checksum, path }
        } else {
            Message::UnlockRequest { checksum, path }
        };
        Some(message.encode())
    }

    pub(super) fn unlock_request(
        &mut self,
        path: TreePath,
        checksum: [u8; 32],
        ctx: &mut Ctx<Action>,
    ) {
        // One answer is enough: that of the lowest node.
        if !ctx.lowest || !self.is_lock(&path, &checksum) {
            return;
        }
        let uptime = ctx.uptime;
        if self
            .host
            .adjust(|tree| tree.lock_expired(&path, &checksum, uptime))
        {
            let Outgoing { subtype, payload } = Message::Unlock { checksum, path }.encode();
            ctx.send(subtype, payload);
        }
    }
}
