//! One log out of several (cluster-sync.md 4.3).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::entry::{Entry, Key, MAX_ENTRY};
use super::ring::RING_SIZE;

/// The newest entries of all logs, ascending, as many as surely fit a ring. Depends only on the
/// set of entries, not on their order: every node that merges the same logs gets the same result.
///
/// Entries of time 0 are never taken. Of entries that claim the same identity one is taken.
pub fn merge<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Vec<Entry> {
    let mut by_key: BTreeMap<Key, &Entry> = BTreeMap::new();
    for entry in entries {
        if entry.key().time == 0 {
            continue;
        }
        by_key
            .entry(entry.key())
            .and_modify(|known| *known = (*known).max(entry))
            .or_insert(entry);
    }
    let mut used = 0;
    let mut newest: Vec<Entry> = Vec::new();
    for entry in by_key.values().rev() {
        newest.push((*entry).clone());
        used += entry.size().next_multiple_of(8);
        if used >= RING_SIZE - 8 - MAX_ENTRY {
            break;
        }
    }
    newest.reverse();
    newest
}

#[cfg(test)]
mod tests {
    use super::super::{NewEntry, Ring};
    use super::*;
    use proptest::prelude::*;

    fn entry((node, uid, time, len): (u8, u32, u32, usize)) -> Entry {
        let message = vec![b'm'; len];
        let new = NewEntry {
            node: &[b'a' + node],
            ident: b"root",
            tag: b"t",
            pid: 1,
            priority: 6,
            message: &message,
        };
        Entry::new(&new, uid, time)
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let one = (0u8..3, 0u32..50, 0u32..6, 0usize..3500).prop_map(entry);
        prop::collection::vec(one, 0..120)
    }

    proptest! {
        #[test]
        fn order_of_logs_does_not_matter(logs in prop::collection::vec(entries(), 0..4), turn: u8) {
            let merged = merge(logs.iter().flatten());
            let mut turned: Vec<&Entry> = logs.iter().flatten().collect();
            turned.reverse();
            if !turned.is_empty() {
                let by = usize::from(turn) % turned.len();
                turned.rotate_left(by);
            }
            prop_assert_eq!(&merge(turned), &merged);
            // Merging again, or with a part of it, changes nothing.
            prop_assert_eq!(&merge(&merged), &merged);
            prop_assert_eq!(&merge(logs.iter().flatten().chain(&merged)), &merged);
        }

        #[test]
        fn the_result_fits_and_keeps_the_newest(log in entries()) {
            let merged = merge(&log);
            prop_assert!(merged.windows(2).all(|w| w[0].key() < w[1].key()));
            let mut ring = Ring::new();
            for entry in &merged {
                ring.append(entry);
            }
            prop_assert!(ring.iter().eq(merged.iter().rev().cloned()));
            for entry in &log {
                let kept = merged.iter().any(|m| m.key() == entry.key());
                let older = merged.first().is_some_and(|oldest| entry.key() < oldest.key());
                prop_assert!(kept || older || entry.key().time == 0);
            }
        }
    }
}
