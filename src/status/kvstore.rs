//! Key/value tables: what this node and its peers told the cluster (status.md 6).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::json::{push_escaped, push_u64};

/// Largest value a client may set, in bytes (status.md 6.1).
pub const MAX_VALUE: usize = 32_768;

/// Most memory the keys and values of one node may take, in bytes: a hundred times what nodes have.
/// Nobody checks what a node sends, and it stays until this daemon ends.
pub(super) const MAX_NODE: usize = 32 << 20;
/// Most bytes of `.version` that tell of the keys of one node: thousands of keys. Every client reads
/// that text, all nodes in one message of 1 MiB.
const MAX_KEY_TEXT: usize = 128 << 10;
/// Memory an entry takes beside its key and value, about.
const OVERHEAD: usize = 96;

#[derive(Debug, Clone)]
struct Entry {
    value: Arc<[u8]>,
    version: u32,
}

impl Entry {
    fn size(&self, key: &[u8]) -> usize {
        key.len() + self.value.len() + OVERHEAD
    }
}

/// The table of one node, in key order.
#[derive(Debug, Clone, Default)]
pub(super) struct KvTable {
    entries: BTreeMap<Box<[u8]>, Entry>,
    /// Size of all entries.
    bytes: usize,
    /// Most bytes their keys take in `.version`.
    key_text: usize,
}

/// Most bytes a key takes in `.version`: escaped, with its version and what stands around.
fn key_text(key: &[u8]) -> usize {
    let escaped = key.iter().map(|byte| match byte {
        b'"' | b'\\' => 2,
        0x20..=0x7e => 1,
        _ => 6,
    });
    escaped.sum::<usize>() + 16
}

impl KvTable {
    /// An empty value removes the key. A new key starts at version 0, a known one counts up even if
    /// the value is the same. False: the table would be larger than `limit`, or its keys too much
    /// for `.version`; nothing was done.
    pub(super) fn set(&mut self, key: &[u8], value: &[u8], limit: usize) -> bool {
        let old = self.entries.get_mut(key);
        let rest = self.bytes - old.as_ref().map_or(0, |entry| entry.size(key));
        if value.is_empty() {
            if self.entries.remove(key).is_some() {
                self.key_text -= key_text(key);
            }
            self.bytes = rest;
            return true;
        }
        let mut new = Entry {
            value: Arc::from(value),
            version: 0,
        };
        let bytes = rest + new.size(key);
        if bytes > limit {
            return false;
        }
        if let Some(old) = old {
            new.version = old.version.wrapping_add(1);
            *old = new;
        } else {
            let text = self.key_text + key_text(key);
            if text > MAX_KEY_TEXT {
                return false;
            }
            self.key_text = text;
            self.entries.insert(Box::from(key), new);
        }
        self.bytes = bytes;
        true
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Arc<[u8]>> {
        self.entries.get(key).map(|entry| Arc::clone(&entry.value))
    }

    /// Every key with its value: what a node sends after a synchronisation (status.md 6.4).
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &Arc<[u8]>)> {
        self.entries
            .iter()
            .map(|(key, entry)| (&**key, &entry.value))
    }

    /// Appends the block of one node in `.version`, without what separates blocks.
    pub(super) fn push_block(&self, node: &str, out: &mut Vec<u8>) {
        out.push(b'"');
        push_escaped(out, node.as_bytes());
        out.extend_from_slice(b"\": {\n");
        let mut first = true;
        for (key, entry) in &self.entries {
            if !first {
                out.extend_from_slice(b",\n");
            }
            first = false;
            out.push(b'"');
            push_escaped(out, key);
            out.extend_from_slice(b"\": ");
            push_u64(out, entry.version.into());
        }
        out.extend_from_slice(b"}\n");
    }
}

/// The text of a C string value: 1 to `max` bytes, the last one NUL, cut at the first NUL.
pub(super) fn c_string(value: &[u8], max: usize) -> Option<&[u8]> {
    if value.len() > max || value.last() != Some(&0) {
        return None;
    }
    value.split(|byte| *byte == 0).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_live_as_long_as_the_key() {
        let mut table = KvTable::default();
        let set = |table: &mut KvTable, key: &[u8], value: &[u8]| {
            assert!(table.set(key, value, usize::MAX));
        };
        set(&mut table, b"a\"b", b"1");
        set(&mut table, b"a\"b", b"1");
        set(&mut table, b"zz", b"\0\xff");
        let mut out = Vec::new();
        table.push_block("node1", &mut out);
        assert_eq!(out, b"\"node1\": {\n\"a\\\"b\": 1,\n\"zz\": 0}\n");
        assert_eq!(table.get(b"zz").as_deref(), Some(&b"\0\xff"[..]));
        set(&mut table, b"a\"b", b"");
        set(&mut table, b"a\"b", b"");
        set(&mut table, b"a\"b", b"x");
        out.clear();
        table.push_block("node1", &mut out);
        assert_eq!(out, b"\"node1\": {\n\"a\\\"b\": 0,\n\"zz\": 0}\n");
        assert_eq!(table.iter().count(), 2);
    }

    #[test]
    fn a_table_has_a_limit() {
        let limit = 3 * (OVERHEAD + 1 + 10);
        let mut table = KvTable::default();
        for key in [b"a", b"b", b"c"] {
            assert!(table.set(key, &[1; 10], limit));
        }
        assert!(!table.set(b"d", &[1], limit));
        assert!(!table.set(b"a", &[1; 11], limit));
        assert_eq!(table.get(b"a").as_deref(), Some(&[1; 10][..]));
        // What fits goes on: the same size, smaller ones, and what was made room for.
        assert!(table.set(b"a", &[2; 10], limit));
        assert!(table.set(b"b", b"", limit));
        assert!(table.set(b"b", b"", limit));
        assert!(table.set(b"d", &[1; 10], limit));
        for key in [b"a", b"c", b"d"] {
            assert!(table.set(key, b"", limit));
        }
        assert_eq!(table.bytes, 0);
    }

    #[test]
    fn the_keys_fit_into_the_text() {
        let mut table = KvTable::default();
        let key = |n: u32, byte: u8| [&n.to_string().into_bytes()[..], &[byte; 200]].concat();
        let mut keys = 0;
        for byte in [b'k', b'\x01', b'\xff', b'"'] {
            while table.set(&key(keys, byte), b"1", usize::MAX) {
                table.set(&key(keys, byte), b"2", usize::MAX);
                keys += 1;
            }
            let mut out = Vec::new();
            table.push_block("n", &mut out);
            assert!(out.len() <= MAX_KEY_TEXT + 64, "{}", out.len());
            // Known ones may still change, and what is removed makes room.
            table.set(&key(0, b'k'), b"3", usize::MAX);
            for n in 0..10 {
                table.set(&key(n, b'k'), b"", usize::MAX);
            }
        }
        assert!(keys > 300, "{keys}");
        let all: Vec<Box<[u8]>> = table.entries.keys().cloned().collect();
        for key in all {
            assert!(table.set(&key, b"", usize::MAX));
        }
        assert_eq!((table.key_text, table.bytes), (0, 0));
    }

    #[test]
    fn c_strings() {
        assert_eq!(c_string(b"a\0", 255), Some(&b"a"[..]));
        assert_eq!(c_string(b"a\0b\0", 255), Some(&b"a"[..]));
        assert_eq!(c_string(b"\0", 255), Some(&b""[..]));
        assert_eq!(c_string(b"", 255), None);
        assert_eq!(c_string(b"a", 255), None);
        assert_eq!(c_string(b"abc\0", 3), None);
    }
}
