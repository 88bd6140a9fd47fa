//! The guest list: which guest is where (status.md 5).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::json::push_u64;
use crate::memdb::{GuestEvent, GuestType};

/// The text about a guest has more bytes than this.
pub(super) const MIN_ENTRY: usize = 40;

/// Where a guest is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    pub node: Arc<str>,
    pub kind: GuestType,
    /// From one counter for all guests: differs after every change of the config.
    pub version: u32,
}

/// Guests by VMID, as they were at one moment.
pub type GuestMap = Arc<BTreeMap<u32, Guest>>;

/// The published list and its counters.
#[derive(Debug, Default)]
pub(super) struct Guests {
    /// `vmlist` in `.version`.
    pub(super) version: u32,
    /// Counts every insertion of any guest.
    counter: u32,
    /// Shared with queries: copied on write while one of them looks at it.
    list: GuestMap,
}

impl Guests {
    pub(super) fn list(&self) -> &GuestMap {
        &self.list
    }

    pub(super) fn apply(&mut self, event: &GuestEvent) {
        self.version = self.version.wrapping_add(1);
        match event {
            GuestEvent::Set { vmid, node, kind } => {
                self.counter = self.counter.wrapping_add(1);
                let guest = Guest {
                    node: Arc::clone(node),
                    kind: *kind,
                    version: self.counter,
                };
                Arc::make_mut(&mut self.list).insert(*vmid, guest);
            }
            GuestEvent::Remove { vmid } => {
                Arc::make_mut(&mut self.list).remove(vmid);
            }
        }
    }

    /// A new list; every guest in it gets a new version.
    pub(super) fn rebuild(&mut self, guests: Vec<(u32, Arc<str>, GuestType)>) {
        self.version = self.version.wrapping_add(1);
        let mut list = BTreeMap::new();
        for (vmid, node, kind) in guests {
            self.counter = self.counter.wrapping_add(1);
            list.insert(
                vmid,
                Guest {
                    node,
                    kind,
                    version: self.counter,
                },
            );
        }
        self.list = Arc::new(list);
    }

    /// Text of `.vmlist`.
    pub(super) fn text(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.list.len() * 64);
        out.extend_from_slice(b"{\n\"version\": ");
        push_u64(&mut out, self.version.into());
        if self.list.is_empty() {
            out.extend_from_slice(b"\n\n}\n");
            return out;
        }
        out.extend_from_slice(b",\n\"ids\": {\n");
        let mut first = true;
        for (vmid, guest) in self.list.iter() {
            if !first {
                out.extend_from_slice(b",\n");
            }
            first = false;
            out.push(b'"');
            push_u64(&mut out, (*vmid).into());
            out.extend_from_slice(b"\": { \"node\": \"");
            // A node name has only letters, digits and hyphens: nothing to escape.
            out.extend_from_slice(guest.node.as_bytes());
            out.extend_from_slice(b"\", \"type\": \"");
            out.extend_from_slice(guest.kind.name().as_bytes());
            out.extend_from_slice(b"\", \"version\": ");
            push_u64(&mut out, guest.version.into());
            out.extend_from_slice(b" }");
        }
        out.extend_from_slice(b"}\n\n}\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(vmid: u32, node: &str, kind: GuestType) -> GuestEvent {
        GuestEvent::Set {
            vmid,
            node: Arc::from(node),
            kind,
        }
    }

    #[test]
    fn versions_as_recorded() {
        let mut guests = Guests::default();
        assert_eq!(guests.text(), b"{\n\"version\": 0\n\n}\n");
        for _ in 0..4 {
            guests.apply(&set(100, "node1", GuestType::Qemu));
        }
        for _ in 0..2 {
            guests.apply(&set(101, "node1", GuestType::Lxc));
        }
        guests.apply(&GuestEvent::Remove { vmid: 100 });
        guests.apply(&set(100, "node2", GuestType::Qemu));
        assert_eq!(
            String::from_utf8(guests.text()).unwrap(),
            "{\n\"version\": 8,\n\"ids\": {\n\"100\": { \"node\": \"node2\", \"type\": \"qemu\", \
             \"version\": 7 },\n\"101\": { \"node\": \"node1\", \"type\": \"lxc\", \"version\": 6 \
             }}\n\n}\n"
        );
    }

    #[test]
    fn an_entry_has_a_least_size() {
        let mut guests = Guests::default();
        guests.apply(&set(1, "a", GuestType::Lxc));
        let one = guests.text().len();
        guests.apply(&set(2, "a", GuestType::Lxc));
        assert!(guests.text().len() - one > MIN_ENTRY);
    }

    #[test]
    fn a_rebuild_gives_new_versions() {
        let mut guests = Guests::default();
        guests.apply(&set(7, "a", GuestType::OpenVz));
        let before = Arc::clone(guests.list());
        guests.rebuild(vec![(7, Arc::from("a"), GuestType::OpenVz)]);
        assert_eq!(guests.version, 2);
        assert_eq!(guests.list()[&7].version, 2);
        assert_eq!(before[&7].version, 1);
    }
}
