//! The last round-robin data of every node, guest and storage, as sent (status.md 9.1, 9.6).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::kvstore::c_string;

/// Largest value in bytes, its NUL included.
pub const MAX_VALUE: usize = 4095;
/// Entries that were not refreshed for more than this many seconds leave the dump.
const EXPIRY: u32 = 300;
/// Keys of guests (status.md 9.2), before the slash and the VMID.
const GUEST_KEYS: [&str; 2] = ["pve-vm-9.0", "pve2.3-vm"];
/// A dump is given out again for this many seconds.
const CACHE: u32 = 2;

/// Takes every accepted value on to its file.
pub trait RrdSink: Send + Sync {
    /// `key` without `rrd/`, whatever it is; `value` as sent. Must not wait.
    fn submit(&self, key: &[u8], value: &[u8], now: u32);
}

#[derive(Debug)]
struct Entry {
    /// Text up to the first NUL.
    line: Box<[u8]>,
    arrival: u32,
}

#[derive(Debug, Default)]
pub(super) struct RrdTable {
    entries: BTreeMap<Box<[u8]>, Entry>,
    dump: Option<(u32, Arc<[u8]>)>,
}

impl RrdTable {
    /// Stores a value under `key` (without `rrd/`). False: the value is not a C string of
    /// 1 to [`MAX_VALUE`] bytes.
    pub(super) fn set(&mut self, key: &[u8], value: &[u8], now: u32) -> bool {
        let Some(line) = c_string(value, MAX_VALUE) else {
            return false;
        };
        let entry = Entry {
            line: Box::from(line),
            arrival: now,
        };
        match self.entries.get_mut(key) {
            Some(old) => *old = entry,
            None => {
                self.entries.insert(Box::from(key), entry);
            }
        }
        true
    }

    /// Forgets a guest that is no more, in the dump that is given out again, too.
    pub(super) fn remove_guest(&mut self, vmid: u32) {
        for kind in GUEST_KEYS {
            if self
                .entries
                .remove(format!("{kind}/{vmid}").as_bytes())
                .is_some()
            {
                self.dump = None;
            }
        }
    }

    /// One line `<key>:<value>` per entry. At most 2 s old.
    pub(super) fn dump(&mut self, now: u32) -> Arc<[u8]> {
        if let Some((made, text)) = &self.dump {
            // A clock that went back makes this large: the dump is made anew.
            if now.wrapping_sub(*made) < CACHE {
                return Arc::clone(text);
            }
        }
        self.entries
            .retain(|_, entry| now.saturating_sub(entry.arrival) <= EXPIRY);
        let size = self
            .entries
            .iter()
            .map(|(key, entry)| key.len() + entry.line.len() + 2)
            .sum();
        let mut out = Vec::with_capacity(size);
        for (key, entry) in &self.entries {
            out.extend_from_slice(key);
            out.push(b':');
            out.extend_from_slice(&entry.line);
            out.push(b'\n');
        }
        let text: Arc<[u8]> = Arc::from(out);
        self.dump = Some((now, Arc::clone(&text)));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_values_are_refused() {
        let mut table = RrdTable::default();
        assert!(!table.set(b"k", b"", 1));
        assert!(!table.set(b"k", b"1:2", 1));
        assert!(!table.set(b"k", &[&[b'1'; 4095][..], b"\0"].concat(), 1));
        assert!(table.set(b"k", &[&[b'1'; 4094][..], b"\0"].concat(), 1));
        assert_eq!(table.dump(1).len(), 2 + 4094 + 1);
    }

    #[test]
    fn the_line_ends_at_the_first_nul() {
        let mut table = RrdTable::default();
        assert!(table.set(b"pve-vm-9.0/100", b"1:2\0:3\0", 10));
        assert!(table.set(b"a", b"x\0", 10));
        assert_eq!(&*table.dump(10), b"a:x\npve-vm-9.0/100:1:2\n");
    }

    #[test]
    fn dumps_are_cached_and_entries_expire() {
        let mut table = RrdTable::default();
        assert_eq!(&*table.dump(99), b"");
        table.set(b"a", b"1\0", 100);
        table.set(b"b", b"1\0", 101);
        assert_eq!(&*table.dump(100), b"");
        assert_eq!(&*table.dump(101), b"a:1\nb:1\n");
        assert_eq!(&*table.dump(400), b"a:1\nb:1\n");
        assert_eq!(&*table.dump(401), b"a:1\nb:1\n");
        assert_eq!(&*table.dump(402), b"");
    }

    #[test]
    fn a_removed_guest_is_gone_at_once() {
        let mut table = RrdTable::default();
        for key in [
            &b"pve-vm-9.0/100"[..],
            b"pve2.3-vm/100",
            b"pve-vm-9.0/1000",
            b"pve-node-9.0/100",
        ] {
            table.set(key, b"1\0", 5);
        }
        table.dump(5);
        table.remove_guest(100);
        assert_eq!(&*table.dump(5), b"pve-node-9.0/100:1\npve-vm-9.0/1000:1\n");
    }

    #[test]
    fn a_clock_that_goes_back_does_no_harm() {
        let mut table = RrdTable::default();
        table.set(b"a", b"1\0", 1000);
        table.dump(1000);
        table.set(b"b", b"1\0", 10);
        assert_eq!(&*table.dump(10), b"a:1\nb:1\n");
    }
}
