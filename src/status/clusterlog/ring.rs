//! The ring that nodes exchange at a synchronisation (cluster-sync.md 4.2).
#![forbid(unsafe_code)]

use super::entry::{BadEntry, Entry, HEADER, MAX_ENTRY};
use crate::le::u32_at;

/// Size of a ring in bytes, its header included.
pub const RING_SIZE: usize = 131_072;
/// Size and position of the newest entry.
const RING_HEADER: usize = 8;

/// Why bytes are not a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRing {
    #[error("cluster log state too short")]
    Short,
    #[error("cluster log state with wrong size field")]
    Size,
}

/// A ring of entries, the newest overwriting the oldest. Only this type writes its bytes, so the
/// chain of entries in it is always sound.
#[derive(Clone)]
pub struct Ring {
    bytes: Box<[u8]>,
}

impl Default for Ring {
    fn default() -> Self {
        Ring::new()
    }
}

impl Ring {
    /// An empty ring.
    pub fn new() -> Self {
        let mut bytes = vec![0; RING_SIZE].into_boxed_slice();
        put_u32(&mut bytes, 0, RING_SIZE as u32);
        Ring { bytes }
    }

    /// Appends an entry of at most 4096 bytes (every [`Entry`] is).
    pub fn append(&mut self, entry: &Entry) {
        let room = entry.size().next_multiple_of(8);
        let newest = u32_at(&self.bytes, 4) as usize;
        let mut pos = match newest {
            0 => RING_HEADER,
            newest => u32_at(&self.bytes, newest + 4) as usize,
        };
        if pos + room >= RING_SIZE {
            pos = RING_HEADER;
        }
        // Offsets are below 131,072.
        let bytes = entry.to_bytes(newest as u32, (pos + room) as u32);
        self.bytes[pos..pos + bytes.len()].copy_from_slice(&bytes);
        self.bytes[pos + bytes.len()..pos + room].fill(0);
        put_u32(&mut self.bytes, 4, pos as u32);
    }

    /// Entries from the newest to the oldest that is still whole.
    pub fn iter(&self) -> Walk<'_> {
        Walk::new(&self.bytes)
    }

    /// The ring as it goes over the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Entries of a ring that came from another node, newest first.
///
/// Nothing in it is believed: every offset and length is checked, a chain that runs in circles or
/// out of the ring ends there. Entries before that point are good.
pub fn parse(bytes: &[u8]) -> Result<Vec<Entry>, BadRing> {
    if bytes.len() <= RING_HEADER {
        return Err(BadRing::Short);
    }
    if u32_at(bytes, 0) as usize != bytes.len() {
        return Err(BadRing::Size);
    }
    Ok(Walk::new(bytes).collect())
}

/// Follows the chain of entries (cluster-sync.md 4.2, walk).
pub struct Walk<'a> {
    bytes: &'a [u8],
    newest: usize,
    /// Next entry to look at, 0 at the end.
    pos: usize,
    /// The chain went over the start of the ring: it can do so only once.
    wrapped: bool,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let newest = u32_at(bytes, 4) as usize;
        Walk {
            bytes,
            newest,
            pos: newest,
            wrapped: false,
        }
    }

    fn entry_at(&self, pos: usize) -> Result<Entry, BadEntry> {
        if pos < RING_HEADER || pos % 8 != 0 || pos + HEADER > self.bytes.len() {
            return Err(BadEntry::Size);
        }
        Entry::from_prefix(&self.bytes[pos..])
    }
}

impl Iterator for Walk<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        let pos = self.pos;
        self.pos = 0;
        if pos == 0 || (pos > self.newest && pos <= self.newest + MAX_ENTRY) {
            return None;
        }
        let entry = self.entry_at(pos).ok()?;
        let prev = u32_at(self.bytes, pos) as usize;
        let overwritten = pos < prev && prev <= self.newest;
        // Offsets fall from entry to entry except for one jump to the end of the ring.
        let goes_on = prev < pos || (prev > pos && !self.wrapped);
        if !overwritten && goes_on {
            self.wrapped |= prev > pos;
            self.pos = prev;
        }
        Some(entry)
    }
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::entry::NewEntry;
    use super::*;
    use proptest::prelude::*;

    pub(super) fn entry(uid: u32, time: u32, message: &[u8]) -> Entry {
        let new = NewEntry {
            node: b"node1",
            ident: b"root@pam",
            tag: b"pvedaemon",
            pid: 1,
            priority: 6,
            message,
        };
        Entry::new(&new, uid, time)
    }

    #[test]
    fn an_empty_ring() {
        let ring = Ring::new();
        assert_eq!(&ring.as_bytes()[..8], b"\0\0\x02\0\0\0\0\0");
        assert_eq!(ring.iter().count(), 0);
        assert_eq!(parse(ring.as_bytes()), Ok(Vec::new()));
    }

    #[test]
    fn a_full_ring_keeps_the_newest() {
        let mut ring = Ring::new();
        let all: Vec<Entry> = (1..500)
            .map(|i| entry(i, i, &vec![b'm'; 37 * i as usize % 3000]))
            .collect();
        for entry in &all {
            ring.append(entry);
        }
        let kept: Vec<Entry> = ring.iter().collect();
        assert!(kept.iter().eq(all.iter().rev().take(kept.len())));
        let used: usize = kept.iter().map(|e| e.size().next_multiple_of(8)).sum();
        assert!(used > RING_SIZE - 3 * MAX_ENTRY, "{used}");
        assert_eq!(parse(ring.as_bytes()), Ok(kept));
    }

    #[test]
    fn bad_rings() {
        assert_eq!(parse(b"\x08\0\0\0\0\0\0\0"), Err(BadRing::Short));
        assert_eq!(parse(&[0; 100]), Err(BadRing::Size));
        let mut ring = Ring::new();
        for i in 1..4 {
            ring.append(&entry(i, i, b"x"));
        }
        let newest = u32_at(ring.as_bytes(), 4) as usize;
        // An entry whose older one is itself, or lies outside.
        for prev in [newest as u32, RING_SIZE as u32 - 8, u32::MAX, 9] {
            let mut bytes = ring.as_bytes().to_vec();
            put_u32(&mut bytes, newest, prev);
            assert_eq!(parse(&bytes).unwrap().len(), 1, "{prev}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(mut bytes in prop::collection::vec(any::<u8>(), 9..2000), pos in 0u32..2000) {
            let len = bytes.len() as u32;
            put_u32(&mut bytes, 0, len);
            let _ = parse(&bytes);
            put_u32(&mut bytes, 4, pos & !7);
            let _ = parse(&bytes);
        }

        #[test]
        fn damaged_rings(
            sizes in prop::collection::vec(0usize..4000, 1..60),
            damage in prop::collection::vec((0usize..RING_SIZE - 4, any::<u32>()), 0..20),
            links in prop::collection::vec((0usize..60, 0usize..60), 0..20),
        ) {
            let mut ring = Ring::new();
            let mut places = Vec::new();
            for (i, size) in sizes.iter().enumerate() {
                ring.append(&entry(i as u32, 5, &vec![b'x'; *size]));
                places.push(u32_at(ring.as_bytes(), 4));
            }
            let mut bytes = ring.as_bytes().to_vec();
            for (from, to) in links {
                let from = places[from % places.len()] as usize;
                put_u32(&mut bytes, from, places[to % places.len()]);
            }
            for (at, value) in damage {
                put_u32(&mut bytes, at, value);
            }
            put_u32(&mut bytes, 0, RING_SIZE as u32);
            let entries = parse(&bytes).unwrap();
            prop_assert!(entries.len() <= RING_SIZE / 48 * 2);
        }
    }
}
