//! The guest list: which VMID lives on which node (database.md 10, status.md 5).
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::sync::Arc;

use super::alias::rank;
use super::change::GuestEvent;
use super::entry::{Entry, Inode, ROOT_INODE};
use super::error::Error;
use super::path::{GuestType, TreePath, valid_node_name, vmid_of_file_name};
use super::tree::Tree;

/// Where a guest lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Node whose directory holds the config.
    pub node: Arc<str>,
    /// Kind by directory.
    pub kind: GuestType,
}

/// Two config files of one VMID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DuplicateGuest {
    pub vmid: u32,
    /// Config that is registered: the newest.
    pub kept: TreePath,
    /// Config that is served as a file only.
    pub other: TreePath,
}

/// A guest config found while walking the tree.
struct Found {
    vmid: u32,
    guest: Guest,
    rank: (u64, u32, Inode),
}

impl Found {
    fn path(&self) -> TreePath {
        let Guest { node, kind } = &self.guest;
        TreePath::new(format!("nodes/{node}/{}/{}.conf", kind.dir(), self.vmid).as_bytes())
    }
}

impl Tree {
    /// Node and type of a registered guest.
    pub fn guest(&self, vmid: u32) -> Option<&Guest> {
        self.guests.get(&vmid)
    }

    /// All registered guests, ascending by VMID.
    pub fn guests(&self) -> impl Iterator<Item = (u32, &Guest)> {
        self.guests.iter().map(|(vmid, guest)| (*vmid, guest))
    }

    /// Builds the guest list anew from the tree. Of several configs of one VMID the newest is
    /// registered; the others are reported, never fatal.
    pub fn rebuild_guests(&mut self) -> Vec<DuplicateGuest> {
        let mut all = self.guest_configs(None);
        // The newest of each VMID first.
        all.sort_by_key(|found| (found.vmid, Reverse(found.rank)));
        let others = all.windows(2).filter(|pair| pair[0].vmid == pair[1].vmid);
        let duplicates: Vec<DuplicateGuest> = others
            .map(|pair| {
                let vmid = pair[0].vmid;
                let kept = all
                    .iter()
                    .find(|found| found.vmid == vmid)
                    .unwrap_or(&pair[0]);
                DuplicateGuest {
                    vmid,
                    kept: kept.path(),
                    other: pair[1].path(),
                }
            })
            .collect();
        self.guest_duplicates = duplicates.iter().map(|duplicate| duplicate.vmid).collect();
        all.dedup_by_key(|found| found.vmid);
        self.guests = all
            .into_iter()
            .map(|found| (found.vmid, found.guest))
            .collect();
        duplicates
    }

    /// Refuses a guest config whose VMID is registered with another node or type.
    pub(super) fn check_vmid(&self, path: &TreePath) -> Result<(), Error> {
        let Some(wanted) = path.guest() else {
            return Ok(());
        };
        match self.guests.get(&wanted.vmid) {
            Some(guest) if *guest.node != *wanted.node || guest.kind != wanted.kind => {
                Err(Error::Exists)
            }
            _ => Ok(()),
        }
    }

    /// Registers the guest whose config was written at `path`, if it is one.
    pub(super) fn register_guest(&mut self, path: &TreePath, events: &mut Vec<GuestEvent>) {
        let Some(new) = path.guest() else { return };
        let node = match self.guests.get(&new.vmid) {
            Some(old) if *old.node == *new.node => Arc::clone(&old.node),
            _ => Arc::from(new.node),
        };
        self.guests.insert(
            new.vmid,
            Guest {
                node: Arc::clone(&node),
                kind: new.kind,
            },
        );
        events.push(GuestEvent::Set {
            vmid: new.vmid,
            node,
            kind: new.kind,
        });
    }

    /// A regular file left `path`: takes the guest off the list if it was registered there, and
    /// registers another config of the same VMID, should there be one.
    pub(super) fn forget_guest(&mut self, path: &TreePath, events: &mut Vec<GuestEvent>) {
        let Some(gone) = path.guest() else { return };
        let registered = self.guests.get(&gone.vmid);
        if registered.is_none_or(|guest| *guest.node != *gone.node || guest.kind != gone.kind) {
            return;
        }
        self.guests.remove(&gone.vmid);
        events.push(GuestEvent::Remove { vmid: gone.vmid });
        if self.guest_duplicates.contains(&gone.vmid) {
            let next = self
                .guest_configs(Some(gone.vmid))
                .into_iter()
                .max_by_key(|f| f.rank);
            if let Some(found) = next {
                self.register_guest(&found.path(), events);
            }
        }
    }

    /// Every guest config of the tree (of one VMID), by node and type.
    fn guest_configs(&self, only: Option<u32>) -> Vec<Found> {
        let mut all = Vec::new();
        let nodes = self
            .child(ROOT_INODE, b"nodes")
            .and_then(|inode| self.get(inode)?.children());
        for (name, &node_inode) in nodes.into_iter().flatten() {
            let Some(node) = valid_node_name(name) else {
                continue;
            };
            let node: Arc<str> = Arc::from(node);
            for kind in [GuestType::Qemu, GuestType::OpenVz, GuestType::Lxc] {
                // A regular file of that name has no children: ignored.
                let configs = self
                    .child(node_inode, kind.dir().as_bytes())
                    .and_then(|inode| self.get(inode)?.children());
                for (name, &inode) in configs.into_iter().flatten() {
                    let Some(vmid) = vmid_of_file_name(name) else {
                        continue;
                    };
                    let entry: Option<&Entry> = self.get(inode).filter(|entry| !entry.is_dir());
                    if let Some(entry) = entry.filter(|_| only.is_none_or(|only| only == vmid)) {
                        let guest = Guest {
                            node: Arc::clone(&node),
                            kind,
                        };
                        all.push(Found {
                            vmid,
                            guest,
                            rank: rank(inode, entry),
                        });
                    }
                }
            }
        }
        all
    }
}
