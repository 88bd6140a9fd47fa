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
        let mut all = self.guest_configs();
        // The newest of each VMID first.
        all.sort_by_key(|found| (found.vmid, Reverse(found.rank)));
        let duplicates: Vec<DuplicateGuest> = all
            .chunk_by(|a, b| a.vmid == b.vmid)
            .flat_map(|same| {
                let (kept, others) = (&same[0], &same[1..]);
                others.iter().map(|other| DuplicateGuest {
                    vmid: kept.vmid,
                    kept: kept.path(),
                    other: other.path(),
                })
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
            if let Some(found) = self.newest_config(gone.vmid) {
                self.register_guest(&found.path(), events);
            }
        }
    }

    /// Every directory of guest configs: its node, its type, its inode.
    fn guest_dirs(&self) -> impl Iterator<Item = (&str, GuestType, Inode)> {
        let nodes = self
            .child(ROOT_INODE, b"nodes")
            .and_then(|inode| self.get(inode)?.children());
        nodes.into_iter().flatten().flat_map(move |(name, &node)| {
            let kinds = [GuestType::Qemu, GuestType::OpenVz, GuestType::Lxc];
            let name = valid_node_name(name);
            name.into_iter().flat_map(move |name| {
                let dir = move |kind: GuestType| {
                    Some((name, kind, self.child(node, kind.dir().as_bytes())?))
                };
                kinds.into_iter().filter_map(dir)
            })
        })
    }

    /// The entry `inode` as the config of `vmid`, unless it is a directory.
    fn found(&self, vmid: u32, guest: Guest, inode: Inode) -> Option<Found> {
        let entry = self.get(inode).filter(|entry| !entry.is_dir())?;
        let rank = rank(inode, entry);
        Some(Found { vmid, guest, rank })
    }

    /// Every guest config of the tree, by node and type.
    fn guest_configs(&self) -> Vec<Found> {
        let mut all = Vec::new();
        let mut last: Arc<str> = Arc::from("");
        for (node, kind, dir) in self.guest_dirs() {
            if *last != *node {
                last = Arc::from(node);
            }
            // A regular file of that name has no children: ignored.
            let configs = self.get(dir).and_then(Entry::children);
            all.extend(configs.into_iter().flatten().filter_map(|(name, &inode)| {
                let node = Arc::clone(&last);
                self.found(vmid_of_file_name(name)?, Guest { node, kind }, inode)
            }));
        }
        all
    }

    /// The newest config of one VMID: a look-up in each directory of guest configs.
    fn newest_config(&self, vmid: u32) -> Option<Found> {
        // The only name that this VMID can have.
        let name = format!("{vmid}.conf");
        self.guest_dirs()
            .filter_map(|(node, kind, dir)| {
                let inode = self.child(dir, name.as_bytes())?;
                let node = Arc::from(node);
                self.found(vmid, Guest { node, kind }, inode)
            })
            .max_by_key(|found| found.rank)
    }
}
