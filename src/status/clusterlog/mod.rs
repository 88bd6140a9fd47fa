//! The cluster log: a ring of entries that all nodes share (status.md 10, cluster-sync.md 4).
#![forbid(unsafe_code)]

mod encode;
mod entry;
mod merge;
mod ring;

pub use encode::digest;
pub use entry::{BadEntry, Entry, Key, MAX_ENTRY, NewEntry};
pub use merge::merge;
pub use ring::{BadRing, RING_SIZE, Ring, parse};

use std::collections::HashMap;
use std::sync::Arc;

/// Entries shown when the client names no number.
pub const DEFAULT_MAX: u32 = 50;

/// Nodes whose newest entry is known although the ring may have lost it. More than this only if
/// somebody invents them: a ring has room for 2,500 entries.
const MAX_NODES: usize = 4096;

/// The log of this node.
pub(super) struct ClusterLog {
    ring: Ring,
    /// Newest (time, uid) by node digest.
    newest: HashMap<u64, (u32, u32)>,
    /// Of the entry made last by this process.
    uid: u32,
    /// Text of the unfiltered default view.
    text: Option<Arc<[u8]>>,
}

impl ClusterLog {
    pub(super) fn new() -> Self {
        ClusterLog {
            ring: Ring::new(),
            newest: HashMap::new(),
            uid: 0,
            text: None,
        }
    }

    /// Makes an entry and stores it. `None` if it was refused as a duplicate: only at the end of
    /// time (2106).
    ///
    /// Every node drops what is not newer than the last entry it has of this node: after the clock
    /// was set back, or when the daemon was restarted (uids begin again) within the second of its
    /// last entry. The C daemon loses such entries; here they get the earliest time that is newer.
    pub(super) fn log(&mut self, new: &NewEntry<'_>, now: u32) -> Option<Entry> {
        self.uid = self.uid.wrapping_add(1);
        let time = match self.newest.get(&entry::name_digest(new.node)) {
            Some((time, uid)) if (now, self.uid) <= (*time, *uid) => {
                if self.uid > *uid {
                    *time
                } else {
                    time.saturating_add(1)
                }
            }
            _ => now,
        };
        let entry = Entry::new(new, self.uid, time);
        self.insert(&entry).then_some(entry)
    }

    /// Stores an entry unless it is not newer than what its node sent before.
    pub(super) fn insert(&mut self, entry: &Entry) -> bool {
        let Key {
            time,
            node_digest,
            uid,
        } = entry.key();
        if self
            .newest
            .get(&node_digest)
            .is_some_and(|newest| (time, uid) <= *newest)
        {
            return false;
        }
        if self.newest.len() >= MAX_NODES && !self.newest.contains_key(&node_digest) {
            self.newest = newest(&self.ring.iter().collect::<Vec<_>>());
        }
        self.newest.insert(node_digest, (time, uid));
        self.ring.append(entry);
        self.text = None;
        true
    }

    /// The sorted ring that is sent as state at a synchronisation.
    pub(super) fn state(&mut self) -> Vec<u8> {
        let mut entries: Vec<Entry> = self.ring.iter().collect();
        entries.sort_unstable();
        entries.dedup_by_key(|entry| entry.key());
        self.replace(&entries);
        self.ring.as_bytes().to_vec()
    }

    /// Takes in the logs of the other members.
    pub(super) fn merge(&mut self, others: &[Vec<Entry>]) {
        let own = self.ring.iter().collect::<Vec<_>>();
        let merged = merge(others.iter().chain([&own]).flatten());
        self.newest = newest(&merged);
        self.replace(&merged);
    }

    fn replace(&mut self, ascending: &[Entry]) {
        self.ring = Ring::new();
        for entry in ascending {
            self.ring.append(entry);
        }
        self.text = None;
    }

    /// The newest `max` entries (0: 50), newest first; with a `user` only those of it.
    pub(super) fn text(&mut self, user: &[u8], max: u32) -> Arc<[u8]> {
        let max = if max == 0 { DEFAULT_MAX } else { max };
        let default = user.is_empty() && max == DEFAULT_MAX;
        if let (true, Some(text)) = (default, &self.text) {
            return Arc::clone(text);
        }
        let text: Arc<[u8]> = Arc::from(self.build(user, max));
        if default {
            self.text = Some(Arc::clone(&text));
        }
        text
    }

    fn build(&self, user: &[u8], max: u32) -> Vec<u8> {
        let filter = (!user.is_empty()).then(|| digest(user));
        let shown = self
            .ring
            .iter()
            .filter(|entry| filter.is_none_or(|digest| entry.ident_digest() == digest))
            .take(usize::try_from(max).unwrap_or(usize::MAX));
        let mut out = b"{\n\"data\": [\n".to_vec();
        let mut first = true;
        for entry in shown {
            if !first {
                out.extend_from_slice(b",\n");
            }
            first = false;
            entry.push_json(&mut out);
        }
        if !first {
            out.push(b'\n');
        }
        out.extend_from_slice(b"]\n}\n");
        out
    }
}

/// Newest (time, uid) by node digest.
fn newest(entries: &[Entry]) -> HashMap<u64, (u32, u32)> {
    let mut newest = HashMap::new();
    for entry in entries {
        let Key {
            time,
            node_digest,
            uid,
        } = entry.key();
        let known = newest.entry(node_digest).or_insert((time, uid));
        *known = (*known).max((time, uid));
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(message: &str) -> NewEntry<'_> {
        NewEntry {
            node: b"node1",
            ident: b"root@pam",
            tag: b"t",
            pid: 5,
            priority: 6,
            message: message.as_bytes(),
        }
    }

    #[test]
    fn an_empty_log() {
        assert_eq!(&*ClusterLog::new().text(b"", 0), b"{\n\"data\": [\n]\n}\n");
    }

    #[test]
    fn duplicates_are_refused() {
        let mut log = ClusterLog::new();
        let entry = Entry::new(&new("a"), 1, 100);
        assert!(log.insert(&entry));
        assert!(!log.insert(&entry));
        assert!(!log.insert(&Entry::new(&new("b"), 9, 99)));
        assert!(log.insert(&Entry::new(&new("b"), 1, 101)));
    }

    #[test]
    fn invented_nodes_are_forgotten() {
        let mut log = ClusterLog::new();
        for i in 0..3 * MAX_NODES as u32 {
            let name = format!("invented{i}");
            let mut entry = new("x");
            entry.node = name.as_bytes();
            assert!(log.insert(&Entry::new(&entry, 1, 100)));
            assert!(log.newest.len() <= MAX_NODES);
        }
        let last = Entry::new(&new("own"), 1, 100);
        assert!(log.insert(&last));
        assert!(!log.insert(&last));
    }

    #[test]
    fn a_clock_that_goes_back_loses_nothing() {
        let mut log = ClusterLog::new();
        assert!(log.log(&new("a"), 100).is_some());
        let entry = log.log(&new("b"), 50).unwrap();
        assert_eq!((entry.key().time, entry.key().uid), (100, 2));
    }

    #[test]
    fn a_restart_within_a_second_loses_nothing() {
        let mut before = ClusterLog::new();
        for _ in 0..5 {
            before.log(&new("before"), 100);
        }
        let mut log = ClusterLog::new();
        log.log(&new("start"), 100);
        log.merge(&[parse(&before.state()).unwrap()]);
        assert_eq!(
            log.ring.iter().count(),
            5,
            "the start entry is the same as one of them"
        );
        let keys = [log.log(&new("a"), 100), log.log(&new("b"), 100)].map(|e| e.unwrap().key());
        assert_eq!(keys.map(|key| (key.time, key.uid)), [(101, 2), (101, 3)]);
    }

    #[test]
    fn filter_and_cache() {
        let mut log = ClusterLog::new();
        log.log(&new("a"), 100);
        let text = log.text(b"", 0);
        assert!(Arc::ptr_eq(&text, &log.text(b"", 50)));
        assert_eq!(log.text(b"joe", 0).len(), 16);
        assert_eq!(log.text(b"root@pam", 7), text);
        log.log(&new("b"), 100);
        assert_ne!(log.text(b"", 0), text);
        assert_eq!(log.text(b"", 1).iter().filter(|b| **b == b'\n').count(), 5);
    }

    #[test]
    fn state_is_a_sorted_ring() {
        let mut log = ClusterLog::new();
        let mut other = new("from node2");
        other.node = b"node2";
        log.log(&new("a"), 100);
        log.insert(&Entry::new(&other, 1, 90));
        let times = |state: &[u8]| -> Vec<u32> {
            parse(state).unwrap().iter().map(|e| e.key().time).collect()
        };
        assert_eq!(times(log.ring.as_bytes()), [90, 100]);
        assert_eq!(times(&log.state()), [100, 90]);
    }

    #[test]
    fn merging_keeps_everything_once() {
        let mut one = ClusterLog::new();
        let mut two = ClusterLog::new();
        one.log(&new("a"), 100);
        let mut other = new("b");
        other.node = b"node2";
        two.log(&other, 101);
        let (from_one, from_two) = (parse(&one.state()).unwrap(), parse(&two.state()).unwrap());
        one.merge(std::slice::from_ref(&from_two));
        two.merge(&[from_one.clone(), from_two]);
        assert_eq!(one.state(), two.state());
        assert_eq!(one.ring.iter().count(), 2);
        assert!(!one.insert(&from_one[0]));
        assert_eq!(one.log(&new("c"), 102).unwrap().key().uid, 2);
    }
}
