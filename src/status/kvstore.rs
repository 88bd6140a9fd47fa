//! Key/value tables: what this node and its peers told the cluster (status.md 6).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::json::{push_escaped, push_u64};

/// Largest value a client may set, in bytes (status.md 6.1).
pub const MAX_VALUE: usize = 32_768;

#[derive(Debug, Clone)]
struct Entry {
    value: Arc<[u8]>,
    version: u32,
}

/// The table of one node, in key order.
#[derive(Debug, Clone, Default)]
pub(super) struct KvTable(BTreeMap<Box<[u8]>, Entry>);

impl KvTable {
    /// An empty value removes the key. A new key starts at version 0, a known one counts up even if
    /// the value is the same.
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) {
        if value.is_empty() {
            self.0.remove(key);
        } else if let Some(entry) = self.0.get_mut(key) {
            entry.value = Arc::from(value);
            entry.version = entry.version.wrapping_add(1);
        } else {
            self.0.insert(
                Box::from(key),
                Entry {
                    value: Arc::from(value),
                    version: 0,
                },
            );
        }
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Arc<[u8]>> {
        self.0.get(key).map(|entry| Arc::clone(&entry.value))
    }

    /// Every key with its value: what a node sends after a synchronisation (status.md 6.4).
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &Arc<[u8]>)> {
        self.0.iter().map(|(key, entry)| (&**key, &entry.value))
    }

    /// Appends the block of one node in `.version`, without what separates blocks.
    pub(super) fn push_block(&self, node: &str, out: &mut Vec<u8>) {
        out.push(b'"');
        push_escaped(out, node.as_bytes());
        out.extend_from_slice(b"\": {\n");
        let mut first = true;
        for (key, entry) in &self.0 {
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
        table.set(b"a\"b", b"1");
        table.set(b"a\"b", b"1");
        table.set(b"zz", b"\0\xff");
        let mut out = Vec::new();
        table.push_block("node1", &mut out);
        assert_eq!(out, b"\"node1\": {\n\"a\\\"b\": 1,\n\"zz\": 0}\n");
        assert_eq!(table.get(b"zz").as_deref(), Some(&b"\0\xff"[..]));
        table.set(b"a\"b", b"");
        table.set(b"a\"b", b"");
        table.set(b"a\"b", b"x");
        out.clear();
        table.push_block("node1", &mut out);
        assert_eq!(out, b"\"node1\": {\n\"a\\\"b\": 0,\n\"zz\": 0}\n");
        assert_eq!(table.iter().count(), 2);
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
