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

// The frame of an answer, and what stands between guests.
const HEAD: &[u8] = b"{\n";
const COMMA: &[u8] = b",\n";
const TAIL: &[u8] = b"\n}\n";

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
    fn push_guest(&self, vmid: u32, config: &[u8], first: bool, out: &mut Vec<u8>) {
        let mut values = Vec::new();
        self.scan(config, &mut values);
        if values.iter().all(Option::is_none) {
            return;
        }
        if !first {
            out.extend_from_slice(COMMA);
        }
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
        let mut out = HEAD.to_vec();
        self.push_guest(vmid, config, true, &mut out);
        out.extend_from_slice(TAIL);
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

/// What one guest contributed to an answer.
#[derive(Debug, Clone)]
struct Part {
    vmid: u32,
    inode: Inode,
    /// Of the entry: a rename changes it, too.
    version: u64,
    config: Arc<[u8]>,
    /// End of its text in the answer; it begins where that of the guest before ends.
    end: usize,
}

#[derive(Debug)]
struct Answer {
    names: PropertyNames,
    /// State of the tree and of the guest list it was made from.
    state: (RootRow, u32),
    /// By VMID.
    parts: Vec<Part>,
    text: Arc<[u8]>,
}

/// Answers for all guests. One is given again as it is while nothing in the tree changes; after a
/// change only the configs that are not the same any more are searched again.
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
        // A change that comes in while the answer is made belongs to no state for sure: the state
        // before is noted, so that the next query looks again.
        let state = (tree.read().root_row(), list_version);
        let known = self
            .answers
            .iter()
            .position(|answer| answer.names == *names);
        let old = known.map(|at| self.answers.remove(at));
        let answer = match old {
            Some(old) if old.state == state => old,
            old => {
                let mut build = Build::new(names, old.as_ref());
                build.guests(tree, list);
                build.finish(state)
            }
        };
        let text = Arc::clone(&answer.text);
        self.answers.truncate(ANSWERS - 1);
        self.answers.insert(0, answer);
        text
    }
}

/// An answer in the making.
struct Build<'a> {
    names: &'a PropertyNames,
    old_text: &'a [u8],
    /// What is left of the parts of the old answer, and where the text of its first one begins.
    old_parts: &'a [Part],
    old_start: usize,
    parts: Vec<Part>,
    out: Vec<u8>,
}

/// A config as found in the tree.
struct Found<'a> {
    /// Its end is not known yet.
    part: Part,
    /// Text of the same config in the old answer.
    same: Option<&'a [u8]>,
}

impl<'a> Build<'a> {
    fn new(names: &'a PropertyNames, old: Option<&'a Answer>) -> Self {
        let (old_text, old_parts): (&[u8], &[Part]) =
            old.map_or((&[], &[]), |old| (&old.text, &old.parts));
        let mut out = Vec::with_capacity(old_text.len() + 256);
        out.extend_from_slice(HEAD);
        let parts = Vec::with_capacity(old_parts.len());
        Build {
            names,
            old_text,
            old_parts,
            old_start: HEAD.len(),
            parts,
            out,
        }
    }

    fn guests(&mut self, tree: &SharedTree, list: &GuestMap) {
        let mut guests = list.iter().peekable();
        let mut found = Vec::with_capacity(CHUNK.min(list.len()));
        while guests.peek().is_some() {
            {
                let tree = tree.read();
                let mut dirs = Dirs {
                    tree: &tree,
                    known: HashMap::new(),
                };
                for (vmid, guest) in guests.by_ref().take(CHUNK) {
                    found.extend(self.find(*vmid, guest, &mut dirs));
                }
            }
            for config in found.drain(..) {
                self.push(config);
            }
        }
    }

    fn find<'t>(&mut self, vmid: u32, guest: &'t Guest, dirs: &mut Dirs<'t>) -> Option<Found<'a>> {
        let old = self.old_part(vmid);
        let dir = dirs.dir(guest)?;
        if let Some((old, same)) = old {
            let entry = dirs.tree.get(old.inode).filter(|entry| entry.parent == dir);
            let entry = entry.filter(|entry| entry.version == old.version);
            if entry
                .and_then(|e| e.data())
                .is_some_and(|data| Arc::ptr_eq(data, &old.config))
            {
                return Some(Found {
                    part: old.clone(),
                    same: Some(same),
                });
            }
        }
        // Ten digits and the suffix at most.
        let mut name = Vec::with_capacity(16);
        push_u64(&mut name, vmid.into());
        name.extend_from_slice(b".conf");
        let inode = dirs.tree.child(dir, &name)?;
        let entry = dirs.tree.get(inode)?;
        let config = Arc::clone(entry.data()?);
        let part = Part {
            vmid,
            inode,
            version: entry.version,
            config,
            end: 0,
        };
        Some(Found { part, same: None })
    }

    /// What the old answer has for a guest. To be asked in the order of VMIDs.
    fn old_part(&mut self, vmid: u32) -> Option<(&'a Part, &'a [u8])> {
        while let [part, rest @ ..] = self.old_parts {
            if part.vmid > vmid {
                return None;
            }
            let text = &self.old_text[self.old_start..part.end];
            self.old_parts = rest;
            self.old_start = part.end;
            if part.vmid == vmid {
                return Some((part, text));
            }
        }
        None
    }

    fn push(&mut self, Found { part, same }: Found<'_>) {
        let start = self.out.len();
        match same {
            // The first guest has no comma in front, a later one has.
            Some(text) => {
                let text = text.strip_prefix(COMMA).unwrap_or(text);
                if !text.is_empty() && start > HEAD.len() {
                    self.out.extend_from_slice(COMMA);
                }
                self.out.extend_from_slice(text);
            }
            None => {
                self.names
                    .push_guest(part.vmid, &part.config, start == HEAD.len(), &mut self.out)
            }
        }
        self.parts.push(Part {
            end: self.out.len(),
            ..part
        });
    }

    fn finish(mut self, state: (RootRow, u32)) -> Answer {
        self.out.extend_from_slice(TAIL);
        let text = Arc::from(self.out);
        Answer {
            names: self.names.clone(),
            state,
            parts: self.parts,
            text,
        }
    }
}

/// Finds the directories of guests without walking to the same ones again and again.
struct Dirs<'a> {
    tree: &'a Tree,
    known: HashMap<(&'a str, GuestType), Option<Inode>>,
}

impl<'a> Dirs<'a> {
    fn dir(&mut self, guest: &'a Guest) -> Option<Inode> {
        let tree = self.tree;
        *self
            .known
            .entry((&guest.node, guest.kind))
            .or_insert_with(|| {
                let nodes = tree.child(ROOT_INODE, b"nodes")?;
                let node = tree.child(nodes, guest.node.as_bytes())?;
                tree.child(node, guest.kind.dir().as_bytes())
            })
    }
}

#[cfg(test)]
mod tests;
