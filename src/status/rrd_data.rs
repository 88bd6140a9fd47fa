//! The last round-robin data of every node, guest and storage, as sent (status.md 9.1, 9.6).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::SetError;
use super::kvstore::c_string;

/// Largest value in bytes, its NUL included.
pub const MAX_VALUE: usize = 4095;
/// Entries that were not refreshed for more than this many seconds leave the dump.
const EXPIRY: u32 = 300;
/// Keys of guests (status.md 9.2), before the slash and the VMID.
const GUEST_KEYS: [&str; 2] = ["pve-vm-9.0", "pve2.3-vm"];
/// A dump is given out again for this many seconds.
const CACHE: u32 = 2;

/// Most memory all entries may take, in bytes: some 150,000 guests.
const MAX_BYTES: usize = 64 << 20;
/// Memory an entry takes beside its texts, about.
const OVERHEAD: usize = 96;

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

impl Entry {
    fn size(&self, key: &[u8]) -> usize {
        key.len() + self.line.len() + OVERHEAD
    }
}

#[derive(Debug)]
pub(super) struct RrdTable {
    entries: BTreeMap<Box<[u8]>, Entry>,
    /// Size of all entries, and the most it may be.
    bytes: usize,
    limit: usize,
    dump: Option<(u32, Arc<[u8]>)>,
    /// When what is too old was removed last.
    expired_at: Option<u32>,
}

impl Default for RrdTable {
    fn default() -> Self {
        RrdTable {
            entries: BTreeMap::new(),
            bytes: 0,
            limit: MAX_BYTES,
            dump: None,
            expired_at: None,
        }
    }
}

impl RrdTable {
    /// Stores a value under `key` (without `rrd/`).
    ///
    /// # Errors
    /// [`SetError::Malformed`] if the value is not a C string of 1 to [`MAX_VALUE`] bytes;
    /// [`SetError::Full`].
    pub(super) fn set(&mut self, key: &[u8], value: &[u8], now: u32) -> Result<(), SetError> {
        let line = c_string(value, MAX_VALUE).ok_or(SetError::Malformed)?;
        let entry = Entry {
            line: Box::from(line),
            arrival: now,
        };
        let size = entry.size(key);
        let old = self.entries.get(key).map_or(0, |old| old.size(key));
        let mut bytes = self.bytes - old + size;
        if bytes > self.limit {
            // Whoever reads the dump has the same done. At most once a second: it looks at all.
            if self.expired_at != Some(now) {
                self.expire(now);
            }
            let old = self.entries.get(key).map_or(0, |old| old.size(key));
            bytes = self.bytes - old + size;
            if bytes > self.limit {
                return Err(SetError::Full);
            }
        }
        self.bytes = bytes;
        match self.entries.get_mut(key) {
            Some(old) => *old = entry,
            None => {
                self.entries.insert(Box::from(key), entry);
            }
        }
        Ok(())
    }

    fn expire(&mut self, now: u32) {
        self.expired_at = Some(now);
        let mut bytes = 0;
        self.entries.retain(|key, entry| {
            let stays = now.saturating_sub(entry.arrival) <= EXPIRY;
            bytes += if stays { entry.size(key) } else { 0 };
            stays
        });
        self.bytes = bytes;
    }

    /// Forgets a guest that is no more, in the dump that is given out again, too.
    pub(super) fn remove_guest(&mut self, vmid: u32) {
        for kind in GUEST_KEYS {
            let key = format!("{kind}/{vmid}").into_bytes();
            if let Some(entry) = self.entries.remove(&*key) {
                self.bytes -= entry.size(&key);
                self.dump = None;
            }
        }
    }

    /// One line `<key>:<value>` per entry. At most 2 s old.
    pub(super) fn dump(&mut self, now: u32) -> Arc<[u8]> {
        self.dump_within(now, usize::MAX).unwrap_or_default()
    }

    /// [`RrdTable::dump`], not made if it is longer than `limit`.
    pub(super) fn dump_within(&mut self, now: u32, limit: usize) -> Option<Arc<[u8]>> {
        if !self.expired_at.is_some_and(|at| is_fresh(at, now)) {
            self.expire(now);
        }
        let text = match &self.dump {
            Some((made, text)) if is_fresh(*made, now) => text,
            _ => {
                let size = self.text_size();
                if size > limit {
                    return None;
                }
                let mut out = Vec::with_capacity(size);
                for (key, entry) in &self.entries {
                    out.extend_from_slice(key);
                    out.push(b':');
                    out.extend_from_slice(&entry.line);
                    out.push(b'\n');
                }
                &self.dump.insert((now, Arc::from(out))).1
            }
        };
        (text.len() <= limit).then(|| Arc::clone(text))
    }

    /// Of the dump: a colon and a newline with each entry.
    fn text_size(&self) -> usize {
        self.bytes - self.entries.len() * OVERHEAD + 2 * self.entries.len()
    }
}

/// Can what was made then be given out again? A clock that went back makes it old.
fn is_fresh(made: u32, now: u32) -> bool {
    now.wrapping_sub(made) < CACHE
}

#[cfg(test)]
mod tests {
    use super::*;

    const MALFORMED: Result<(), SetError> = Err(SetError::Malformed);

    #[test]
    fn bad_values_are_refused() {
        let mut table = RrdTable::default();
        assert_eq!(table.set(b"k", b"", 1), MALFORMED);
        assert_eq!(table.set(b"k", b"1:2", 1), MALFORMED);
        let long = |len| [vec![b'1'; len], vec![0]].concat();
        assert_eq!(table.set(b"k", &long(4095), 1), MALFORMED);
        assert_eq!(table.set(b"k", &long(4094), 1), Ok(()));
        assert_eq!(table.dump(1).len(), 2 + 4094 + 1);
    }

    #[test]
    fn the_line_ends_at_the_first_nul() {
        let mut table = RrdTable::default();
        table.set(b"pve-vm-9.0/100", b"1:2\0:3\0", 10).unwrap();
        table.set(b"a", b"x\0", 10).unwrap();
        assert_eq!(&*table.dump(10), b"a:x\npve-vm-9.0/100:1:2\n");
    }

    #[test]
    fn dumps_are_cached_and_entries_expire() {
        let mut table = RrdTable::default();
        assert_eq!(&*table.dump(99), b"");
        table.set(b"a", b"1\0", 100).unwrap();
        table.set(b"b", b"1\0", 101).unwrap();
        assert_eq!(&*table.dump(100), b"");
        assert_eq!(&*table.dump(101), b"a:1\nb:1\n");
        assert_eq!(&*table.dump(400), b"a:1\nb:1\n");
        assert_eq!(&*table.dump(401), b"a:1\nb:1\n");
        assert_eq!(&*table.dump(402), b"");
    }

    #[test]
    fn a_dump_too_long_is_not_made() {
        let mut table = RrdTable::default();
        table.set(b"a", b"1\0", 100).unwrap();
        table.set(b"b", b"22\0", 100).unwrap();
        assert_eq!(table.dump_within(100, 8), None);
        assert!(table.dump.is_none());
        assert_eq!(
            table.dump_within(100, 9).as_deref(),
            Some(&b"a:1\nb:22\n"[..])
        );
        // Nor given out if it was made for somebody who can take more.
        assert_eq!(table.dump_within(101, 8), None);
        assert_eq!(table.dump_within(500, 0).as_deref(), Some(&b""[..]));
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
            table.set(key, b"1\0", 5).unwrap();
        }
        table.dump(5);
        table.remove_guest(100);
        assert_eq!(&*table.dump(5), b"pve-node-9.0/100:1\npve-vm-9.0/1000:1\n");
    }

    #[test]
    fn a_clock_that_goes_back_does_no_harm() {
        let mut table = RrdTable::default();
        table.set(b"a", b"1\0", 1000).unwrap();
        table.dump(1000);
        table.set(b"b", b"1\0", 10).unwrap();
        assert_eq!(&*table.dump(10), b"a:1\nb:1\n");
    }

    #[test]
    fn memory_has_a_limit() {
        let entry = OVERHEAD + 1 + 10;
        let mut table = RrdTable {
            limit: 3 * entry,
            ..RrdTable::default()
        };
        let line = |len: usize| [vec![b'1'; len], vec![0]].concat();
        for (key, now) in [(b"a", 1), (b"b", 200), (b"c", 301)] {
            table.set(key, &line(10), now).unwrap();
        }
        assert_eq!(table.set(b"d", &line(1), 301), Err(SetError::Full));
        assert_eq!(table.set(b"c", &line(11), 301), Err(SetError::Full));
        table.set(b"c", &line(10), 301).unwrap();
        // `a` makes room when its time is over, and a removed guest does at once.
        table.set(b"d", &line(10), 302).unwrap();
        assert_eq!(table.bytes, 3 * entry);
        assert_eq!(table.dump(302).iter().filter(|b| **b == b'\n').count(), 3);
        let mut table = RrdTable::default();
        table.set(b"pve-vm-9.0/100", b"1\0", 1).unwrap();
        table.remove_guest(100);
        assert_eq!(table.bytes, 0);
    }
}
