//! Properties of guests, read from their config files (status.md 7).
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::BufRead as _;
use std::sync::Arc;

use super::guests::{Guest, GuestMap};
use super::json::{push_escaped, push_u64};
use crate::memdb::{self, GuestType, Inode, ROOT_INODE, RootRow, Tree, TreePath};
use crate::replica::SharedTree;

/// Guests whose config is picked while the tree is locked once: some ten microseconds.
const CHUNK: usize = 256;
/// Answers kept for all guests; clients ask for few different sets of names.
const ANSWERS: usize = 4;

/// The names of one query, in the order of the request. A name given twice is answered twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PropertyNames {
    names: Vec<Box<[u8]>>,
    /// Smallest and largest first byte.
    first: (u8, u8),
}

impl PropertyNames {
    /// Names may be anything without a NUL, even empty (nothing is found then).
    pub fn new<'a>(names: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let names: Vec<Box<[u8]>> = names.into_iter().map(Box::from).collect();
        let firsts = || names.iter().map(|name| name.first().copied().unwrap_or(0));
        let first = (firsts().min().unwrap_or(0), firsts().max().unwrap_or(0));
        PropertyNames { names, first }
    }

    /// The value of each name in `config`, in order.
    ///
    /// Of several lines with one name the last one before the first `[` counts, except that the
    /// search ends once as many values were replaced as there are names: what the C daemon does.
    fn scan<'a>(&self, config: &'a [u8], values: &mut Vec<Option<&'a [u8]>>) {
        values.clear();
        values.resize(self.names.len(), None);
        let mut replaced = 0;
        let mut rest = config;
        while !rest.is_empty() {
            let from = rest;
            // Finds newlines many bytes at a time; reading from memory cannot fail.
            let len = rest.skip_until(b'\n').unwrap_or(from.len());
            let line = &from[..len];
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            match line.first() {
                None | Some(0) => continue,
                Some(b'[') => break,
                Some(first) if *first < self.first.0 || *first > self.first.1 => continue,
                Some(_) => {}
            }
            for (name, value) in self.names.iter().zip(&mut *values) {
                if let Some(new) = value_of(line, name) {
                    replaced += usize::from(value.replace(new).is_some());
                }
            }
            // Not "at least": one line can serve two names and jump past it.
            if replaced == self.names.len() {
                break;
            }
        }
    }

    /// Appends `"<vmid>":{…}`; nothing if the guest has none of the properties.
    fn push_guest(&self, vmid: u32, config: &[u8], first: &mut bool, out: &mut Vec<u8>) {
        let mut values = Vec::new();
        self.scan(config, &mut values);
        if values.iter().all(Option::is_none) {
            return;
        }
        if !*first {
            out.extend_from_slice(b",\n");
        }
        *first = false;
        out.push(b'"');
        push_u64(out, vmid.into());
        out.extend_from_slice(b"\":{");
        let mut comma = false;
        for (name, value) in self.names.iter().zip(values) {
            let Some(value) = value else { continue };
            if comma {
                out.push(b',');
            }
            comma = true;
            out.push(b'"');
            push_escaped(out, name);
            out.extend_from_slice(b"\": \"");
            push_escaped(out, value);
            out.push(b'"');
        }
        out.push(b'}');
    }

    /// The answer for one guest with this config.
    pub fn answer_one(&self, vmid: u32, config: &[u8]) -> Vec<u8> {
        let mut out = b"{\n".to_vec();
        self.push_guest(vmid, config, &mut true, &mut out);
        out.extend_from_slice(b"\n}\n");
        out
    }
}

/// The value in `line` if the line is for `name`: trimmed, cut at a NUL, at least one byte of the
/// line even if that is a blank.
fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let value = line.strip_prefix(name)?.strip_prefix(b":")?;
    let last = value.len().checked_sub(1)?;
    let start = value[..last]
        .iter()
        .position(|byte| !is_space(*byte))
        .unwrap_or(last);
    let end = value[start + 1..].iter().rposition(|byte| !is_space(*byte));
    let value = &value[start..end.map_or(start + 1, |end| start + 1 + end + 1)];
    value.split(|byte| *byte == 0).next()
}

/// White space of the C locale.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// Path of a guest's config.
pub fn config_path(vmid: u32, guest: &memdb::Guest) -> TreePath {
    TreePath::new(format!("nodes/{}/{}/{vmid}.conf", guest.node, guest.kind.dir()).as_bytes())
}

#[derive(Debug)]
struct Answer {
    names: PropertyNames,
    /// State of the tree and of the guest list it was made from.
    state: (RootRow, u32),
    text: Arc<[u8]>,
}

/// Answers for all guests, kept until anything in the tree changes.
#[derive(Debug, Default)]
pub struct PropertyCache {
    /// The one used last comes first.
    answers: Vec<Answer>,
}

impl PropertyCache {
    /// The properties of every guest in `list`, by VMID. Guests without a config are left out.
    ///
    /// `list_version` tells one guest list from another.
    pub fn all(
        &mut self,
        names: &PropertyNames,
        tree: &SharedTree,
        list: &GuestMap,
        list_version: u32,
    ) -> Arc<[u8]> {
        let state = (tree.read().root_row(), list_version);
        if let Some(at) = self
            .answers
            .iter()
            .position(|answer| answer.names == *names)
        {
            let answer = self.answers.remove(at);
            if answer.state == state {
                let text = Arc::clone(&answer.text);
                self.answers.insert(0, answer);
                return text;
            }
        }
        let text: Arc<[u8]> = Arc::from(build_all(names, tree, list));
        // A change in between belongs to neither state for sure.
        if tree.read().root_row() == state.0 {
            self.answers.truncate(ANSWERS - 1);
            self.answers.insert(
                0,
                Answer {
                    names: names.clone(),
                    state,
                    text: Arc::clone(&text),
                },
            );
        }
        text
    }
}

fn build_all(names: &PropertyNames, tree: &SharedTree, list: &GuestMap) -> Vec<u8> {
    let mut out = b"{\n".to_vec();
    let mut first = true;
    let mut guests = list.iter().peekable();
    let mut configs: Vec<(u32, Arc<[u8]>)> = Vec::with_capacity(CHUNK.min(list.len()));
    while guests.peek().is_some() {
        {
            let tree = tree.read();
            let mut dirs = Dirs {
                tree: &tree,
                known: HashMap::new(),
            };
            let chunk = guests.by_ref().take(CHUNK);
            configs.extend(
                chunk.filter_map(|(vmid, guest)| {
                    Some((*vmid, Arc::clone(dirs.config(*vmid, guest)?)))
                }),
            );
        }
        for (vmid, config) in configs.drain(..) {
            names.push_guest(vmid, &config, &mut first, &mut out);
        }
    }
    out.extend_from_slice(b"\n}\n");
    out
}

/// Looks configs up without walking to the same directories again and again.
struct Dirs<'a> {
    tree: &'a Tree,
    known: HashMap<(&'a str, GuestType), Option<Inode>>,
}

impl<'a> Dirs<'a> {
    fn config(&mut self, vmid: u32, guest: &'a Guest) -> Option<&'a Arc<[u8]>> {
        let tree = self.tree;
        let dir = *self
            .known
            .entry((&guest.node, guest.kind))
            .or_insert_with(|| {
                let nodes = tree.child(ROOT_INODE, b"nodes")?;
                let node = tree.child(nodes, guest.node.as_bytes())?;
                tree.child(node, guest.kind.dir().as_bytes())
            });
        // Ten digits and the suffix at most.
        let mut name = Vec::with_capacity(16);
        push_u64(&mut name, vmid.into());
        name.extend_from_slice(b".conf");
        tree.get(tree.child(dir?, &name)?)?.data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ask(config: &[u8], names: &[&str]) -> String {
        let names = PropertyNames::new(names.iter().map(|name| name.as_bytes()));
        let text = String::from_utf8(names.answer_one(7, config)).unwrap();
        text.strip_prefix("{\n")
            .unwrap()
            .strip_suffix("\n}\n")
            .unwrap()
            .to_owned()
    }

    #[test]
    fn which_line_counts() {
        assert_eq!(
            ask(b"lock: a\nlock: b\nlock: c\n", &["lock"]),
            r#""7":{"lock": "b"}"#
        );
        assert_eq!(
            ask(b"lock: a\nlock: b\nlock: c\n", &["lock", "x"]),
            r#""7":{"lock": "c"}"#
        );
        assert_eq!(ask(b"a: 1\n\n[snap]\na: 2\n", &["a"]), r#""7":{"a": "1"}"#);
        assert_eq!(ask(b"[PENDING]\na: 2\n", &["a"]), "");
        assert_eq!(
            ask(b"a:b\nab: c", &["a", "ab"]),
            r#""7":{"a": "b","ab": "c"}"#
        );
        assert_eq!(
            ask(b"b: 1\na: 2\n", &["a", "b"]),
            r#""7":{"a": "2","b": "1"}"#
        );
    }

    #[test]
    fn what_the_value_is() {
        assert_eq!(ask(b"m: \t 512 \t \r\n", &["m"]), r#""7":{"m": "512"}"#);
        assert_eq!(ask(b"m:\n", &["m"]), "");
        assert_eq!(ask(b"m:  \n", &["m"]), r#""7":{"m": " "}"#);
        assert_eq!(ask(b"m:x", &["m"]), r#""7":{"m": "x"}"#);
        assert_eq!(ask(b"m :x\n m: y\n", &["m"]), "");
        assert_eq!(ask(b"m: x\0y\n", &["m"]), r#""7":{"m": "x"}"#);
        assert_eq!(ask(b":x\n", &[""]), "");
        assert_eq!(
            ask(b"m: a\"b\\c\td\xff\n", &["m"]),
            "\"7\":{\"m\": \"a\\\"b\\\\c\\u0009d\u{fffd}\"}"
        );
    }

    /// The rules of the specification, told again in another way.
    fn slow(config: &[u8], names: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
        let mut values: Vec<Option<Vec<u8>>> = vec![None; names.len()];
        let firsts: Vec<u8> = names
            .iter()
            .map(|n| n.first().copied().unwrap_or(0))
            .collect();
        let (lo, hi) = (*firsts.iter().min().unwrap(), *firsts.iter().max().unwrap());
        let mut replaced = 0;
        for line in config.split(|b| *b == b'\n') {
            if line.is_empty()
                || line[0] == 0
                || (line[0] != b'[' && (line[0] < lo || line[0] > hi))
            {
                continue;
            }
            if line[0] == b'[' {
                break;
            }
            for (i, name) in names.iter().enumerate() {
                let n = name.len();
                if line.len() > n + 1 && line[n] == b':' && line[..n] == **name {
                    let (mut start, mut end) = (n + 1, line.len() - 1);
                    while start < line.len() - 1 && is_space(line[start]) {
                        start += 1;
                    }
                    while end > start && is_space(line[end]) {
                        end -= 1;
                    }
                    let value = &line[start..=end];
                    let nul = value.iter().position(|b| *b == 0).unwrap_or(value.len());
                    replaced += usize::from(values[i].is_some());
                    values[i] = Some(value[..nul].to_vec());
                }
            }
            if replaced == names.len() {
                break;
            }
        }
        values
    }

    proptest! {
        #[test]
        fn same_as_the_rules(config in "([ab\\[]{0,2}[: \\t\\x00a]{0,4}\\n){0,12}[ab]{0,2}:? ?a?",
                             names in prop::collection::vec("[ab:]{0,2}", 1..4)) {
            let names: Vec<&[u8]> = names.iter().map(|n| n.as_bytes()).collect();
            let expected = slow(config.as_bytes(), &names);
            let mut values = Vec::new();
            PropertyNames::new(names.iter().copied()).scan(config.as_bytes(), &mut values);
            let values: Vec<_> = values.into_iter().map(|v| v.map(<[u8]>::to_vec)).collect();
            prop_assert_eq!(values, expected);
        }

        #[test]
        fn always_valid_json(config: Vec<u8>, name in "[a-z\"\\\\\\x01]{1,3}", value: Vec<u8>) {
            let names = PropertyNames::new([name.as_bytes(), b"a"]);
            let config = [name.as_bytes(), b":", &value, b"\n", &config].concat();
            serde_json::from_slice::<serde_json::Value>(&names.answer_one(1, &config)).unwrap();
        }
    }
}
