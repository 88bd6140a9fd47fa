//! One cluster log entry and its binary form (cluster-sync.md 4.1).
#![forbid(unsafe_code)]

use super::encode;
use crate::le::{u32_at, u64_at};
use crate::status::json::{push_preescaped, push_u64};

/// Largest declared size of an entry in bytes.
pub const MAX_ENTRY: usize = 4096;
/// Bytes before the strings.
const STRINGS: usize = 44;
/// The declared size counts four bytes more than header and strings: stray bytes at the end.
pub(super) const HEADER: usize = 48;
/// Longest node, ident or tag without its NUL.
const MAX_NAME: usize = 254;

/// Why bytes are not an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    #[error("got short log message")]
    Short,
    #[error("log message with wrong size")]
    Size,
    #[error("log message with unterminated string")]
    Unterminated,
}

/// Order of entries and their identity: equal keys are the same entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub time: u32,
    pub node_digest: u64,
    pub uid: u32,
}

/// A validated entry. `prev` and `next` are places in a ring and not part of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    key: Key,
    ident_digest: u64,
    pid: u32,
    priority: u8,
    node_len: usize,
    ident_len: usize,
    tag_len: usize,
    /// Node, ident, tag and message, each with its NUL.
    strings: Box<[u8]>,
}

/// What goes into a new entry.
#[derive(Debug, Clone, Copy)]
pub struct NewEntry<'a> {
    pub node: &'a [u8],
    pub ident: &'a [u8],
    pub tag: &'a [u8],
    pub pid: u32,
    /// Syslog priority, 0 to 7.
    pub priority: u8,
    pub message: &'a [u8],
}

impl Entry {
    /// Packs an entry. Names are cut to 254 bytes, the message to what fits [`MAX_ENTRY`]. Texts
    /// end at their first NUL.
    pub fn new(new: &NewEntry<'_>, uid: u32, time: u32) -> Self {
        let mut strings = Vec::with_capacity(256);
        let mut lens = [0; 3];
        for (len, text) in lens.iter_mut().zip([new.node, new.ident, new.tag]) {
            let text = until_nul(text);
            let text = &text[..text.len().min(MAX_NAME)];
            strings.extend_from_slice(text);
            strings.push(0);
            *len = text.len() + 1;
        }
        // Three names have 765 bytes at most.
        let room = MAX_ENTRY - STRINGS - strings.len();
        strings.extend_from_slice(&encode::message(until_nul(new.message), room));
        strings.push(0);
        let [node_len, ident_len, tag_len] = lens;
        Entry {
            key: Key {
                time,
                node_digest: name_digest(new.node),
                uid,
            },
            ident_digest: name_digest(new.ident),
            pid: new.pid,
            priority: new.priority,
            node_len,
            ident_len,
            tag_len,
            strings: strings.into(),
        }
    }

    /// A complete LOG message: exactly the declared size.
    pub fn from_message(bytes: &[u8]) -> Result<Self, BadEntry> {
        let entry = Entry::from_prefix(bytes)?;
        if bytes.len() != entry.size() {
            return Err(BadEntry::Size);
        }
        Ok(entry)
    }

    /// The entry at the start of `bytes`; what follows its declared size is ignored.
    pub(super) fn from_prefix(bytes: &[u8]) -> Result<Self, BadEntry> {
        if bytes.len() < HEADER {
            return Err(BadEntry::Short);
        }
        let lens = [bytes[37], bytes[38], bytes[39]].map(usize::from);
        let [node_len, ident_len, tag_len] = lens;
        // On 32-bit machines the sum of an absurd length could wrap; it is refused before.
        let msg_len = u32_at(bytes, 40) as usize;
        if msg_len > MAX_ENTRY {
            return Err(BadEntry::Size);
        }
        let end = STRINGS + node_len + ident_len + tag_len + msg_len;
        if end + 4 > MAX_ENTRY || end + 4 > bytes.len() {
            return Err(BadEntry::Size);
        }
        let strings = &bytes[STRINGS..end];
        let mut rest = strings;
        for len in [node_len, ident_len, tag_len, msg_len] {
            let (string, behind) = rest.split_at(len);
            if string.last() != Some(&0) {
                return Err(BadEntry::Unterminated);
            }
            rest = behind;
        }
        Ok(Entry {
            key: Key {
                time: u32_at(bytes, 12),
                node_digest: u64_at(bytes, 16),
                uid: u32_at(bytes, 8),
            },
            ident_digest: u64_at(bytes, 24),
            pid: u32_at(bytes, 32),
            priority: bytes[36],
            node_len,
            ident_len,
            tag_len,
            strings: Box::from(strings),
        })
    }

    /// The binary form with the given ring offsets (0 and 0 in a LOG message).
    pub fn to_bytes(&self, prev: u32, next: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.size());
        out.extend_from_slice(&prev.to_le_bytes());
        out.extend_from_slice(&next.to_le_bytes());
        out.extend_from_slice(&self.key.uid.to_le_bytes());
        out.extend_from_slice(&self.key.time.to_le_bytes());
        out.extend_from_slice(&self.key.node_digest.to_le_bytes());
        out.extend_from_slice(&self.ident_digest.to_le_bytes());
        out.extend_from_slice(&self.pid.to_le_bytes());
        out.push(self.priority);
        // Checked to fit a byte when the entry was made.
        out.extend([self.node_len, self.ident_len, self.tag_len].map(|len| len as u8));
        out.extend_from_slice(&(self.msg_len() as u32).to_le_bytes());
        out.extend_from_slice(&self.strings);
        out.extend_from_slice(&[0; 4]);
        out
    }

    /// Declared size: 48 bytes and the strings.
    pub fn size(&self) -> usize {
        HEADER + self.strings.len()
    }

    /// Time, node and uid.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Digest of the ident: what a user filter compares.
    pub fn ident_digest(&self) -> u64 {
        self.ident_digest
    }

    fn msg_len(&self) -> usize {
        self.strings.len() - self.node_len - self.ident_len - self.tag_len
    }

    /// Appends the entry as a JSON object (status.md 10.1).
    pub(super) fn push_json(&self, out: &mut Vec<u8>) {
        let (node, rest) = self.strings.split_at(self.node_len);
        let (ident, rest) = rest.split_at(self.ident_len);
        let (tag, message) = rest.split_at(self.tag_len);
        let number = |out: &mut Vec<u8>, name: &[u8], value: u32| {
            out.extend_from_slice(name);
            push_u64(out, value.into());
        };
        let string = |out: &mut Vec<u8>, name: &[u8], text: &[u8]| {
            out.extend_from_slice(name);
            push_preescaped(out, until_nul(text));
            out.push(b'"');
        };
        number(out, b"{\"uid\": ", self.key.uid);
        number(out, b", \"time\": ", self.key.time);
        number(out, b", \"pri\": ", self.priority.into());
        string(out, b", \"tag\": \"", tag);
        number(out, b", \"pid\": ", self.pid);
        string(out, b", \"node\": \"", node);
        string(out, b", \"user\": \"", ident);
        string(out, b", \"msg\": \"", message);
        out.push(b'}');
    }
}

/// Digest of a name as packed: of 255 bytes at most, the NUL included.
pub(super) fn name_digest(text: &[u8]) -> u64 {
    let text = until_nul(text);
    if text.len() <= MAX_NAME {
        encode::digest(text)
    } else {
        encode::digest_raw(&text[..=MAX_NAME])
    }
}

fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(message: &[u8]) -> Entry {
        let new = NewEntry {
            node: b"node1",
            ident: b"root@pam",
            tag: b"t",
            pid: 7,
            priority: 6,
            message,
        };
        Entry::new(&new, 3, 1000)
    }

    #[test]
    fn layout() {
        let bytes = sample(b"hi").to_bytes(0x18, 0x58);
        assert_eq!(bytes.len(), 48 + 6 + 9 + 2 + 3);
        assert_eq!(&bytes[..16], b"\x18\0\0\0\x58\0\0\0\x03\0\0\0\xe8\x03\0\0");
        assert_eq!(
            &bytes[32..],
            b"\x07\0\0\0\x06\x06\x09\x02\x03\0\0\0node1\0root@pam\0t\0hi\0\0\0\0\0"
        );
    }

    #[test]
    fn largest_message() {
        assert_eq!(sample(&[b'x'; 5000]).size(), 4094);
        assert!(sample(&[b'\t'; 5000]).size() <= MAX_ENTRY);
    }

    #[test]
    fn refused() {
        let good = sample(b"hi").to_bytes(0, 0);
        assert_eq!(Entry::from_message(&good).as_ref(), Ok(&sample(b"hi")));
        assert_eq!(Entry::from_message(&good[..40]), Err(BadEntry::Short));
        assert_eq!(
            Entry::from_message(&good[..good.len() - 1]),
            Err(BadEntry::Size)
        );
        assert_eq!(
            Entry::from_message(&[&good[..], b"\0"].concat()),
            Err(BadEntry::Size)
        );
        let mut unterminated = good.clone();
        unterminated[44 + 5] = b'x';
        assert_eq!(
            Entry::from_message(&unterminated),
            Err(BadEntry::Unterminated)
        );
        let mut empty_tag = good.clone();
        // The message takes the two bytes over: lengths fit, but the tag has none.
        empty_tag[39] = 0;
        empty_tag[40] = 5;
        assert_eq!(Entry::from_message(&empty_tag), Err(BadEntry::Unterminated));
    }

    proptest! {
        #[test]
        fn round_trip(
            node: Vec<u8>, ident in prop::collection::vec(any::<u8>(), 0..300),
            tag: Vec<u8>, message in prop::collection::vec(any::<u8>(), 0..6000),
            uid: u32, time: u32, pid: u32, priority in 0u8..8,
        ) {
            let new = NewEntry {
                node: &node, ident: &ident, tag: &tag, pid, priority, message: &message,
            };
            let entry = Entry::new(&new, uid, time);
            prop_assert!(entry.size() <= MAX_ENTRY);
            let bytes = entry.to_bytes(0, 0);
            prop_assert_eq!(bytes.len(), entry.size());
            prop_assert_eq!(Entry::from_message(&bytes), Ok(entry.clone()));
            let mut json = Vec::new();
            entry.push_json(&mut json);
            serde_json::from_slice::<serde_json::Value>(&json).unwrap();
        }

        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Entry::from_message(&bytes);
            let _ = Entry::from_prefix(&bytes);
        }
    }
}
