//! A query for all guests.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::cache::{Answer, Part};
use super::names::{PIECE, PropertyNames, Scan};
use super::{COMMA, HEAD, PropertyCache, TAIL, TooLong, put};
use crate::memdb::{GuestType, Inode, ROOT_INODE, RootRow, Tree};
use crate::replica::SharedTree;
use crate::status::Status;
use crate::status::guests::{Guest, GuestMap};
use crate::status::json::push_u64;

/// Guests whose config is picked while the tree is locked once: some ten microseconds.
const CHUNK: usize = 256;

/// A query for all guests, by VMID. Guests without a config are left out.
pub struct AllGuests {
    names: PropertyNames,
    tree: SharedTree,
    status: Arc<Status>,
    cache: Arc<Mutex<PropertyCache>>,
    limit: usize,
    /// Absent until the first piece: a query that waits takes no memory.
    build: Option<Build>,
}

impl AllGuests {
    /// A query whose answer may have `limit` bytes.
    pub fn new(
        names: PropertyNames,
        tree: SharedTree,
        status: Arc<Status>,
        cache: Arc<Mutex<PropertyCache>>,
        limit: usize,
    ) -> Self {
        AllGuests {
            names,
            tree,
            status,
            cache,
            limit,
            build: None,
        }
    }

    /// The kept answer, if nothing has changed since it was made.
    pub fn known(&self) -> Option<Arc<Vec<u8>>> {
        let (_, version) = self.status.guests();
        let state = (self.tree.read().root_row(), version);
        let old = self.cache.lock().get(&self.names)?;
        (old.state == state).then(|| Arc::clone(&old.text))
    }

    /// Does a piece. `Some`: done, the answer stands in `out`, which was empty.
    pub fn go_on(&mut self, out: &mut Vec<u8>) -> Option<Result<(), TooLong>> {
        let Some(build) = &mut self.build else {
            if let Some(text) = self.known() {
                return Some(put(out, &text, self.limit));
            }
            // A change that comes in while the answer is made belongs to no state for sure: the
            // state before is noted, so that the next query looks again.
            let (list, version) = self.status.guests();
            let state = (self.tree.read().root_row(), version);
            let old = self.cache.lock().get(&self.names);
            self.build = Some(Build::new(old, list, state, self.limit));
            return None;
        };
        match build.go_on(&self.names, &self.tree) {
            Ok(false) => None,
            Ok(true) => {
                let answer = Arc::new(build.finish(&self.names));
                out.extend_from_slice(&answer.text);
                self.cache.lock().insert(answer);
                Some(Ok(()))
            }
            Err(TooLong) => Some(Err(TooLong)),
        }
    }
}

/// An answer in the making.
struct Build {
    old: Option<Arc<Answer>>,
    /// The next part of the old answer, and where its text begins.
    old_at: usize,
    old_start: usize,
    list: GuestMap,
    /// First VMID that was not looked for yet; none after the last one.
    next: Option<u32>,
    found: VecDeque<Found>,
    /// The config that is being searched.
    scan: Option<(Part, Scan)>,
    state: (RootRow, u32),
    parts: Vec<Part>,
    out: Vec<u8>,
    limit: usize,
}

/// A config as found in the tree.
struct Found {
    /// Its end is not known yet.
    part: Part,
    /// Text of the same config in the old answer.
    same: Option<Range<usize>>,
}

impl Build {
    fn new(old: Option<Arc<Answer>>, list: GuestMap, state: (RootRow, u32), limit: usize) -> Self {
        let parts = Vec::with_capacity(list.len());
        Build {
            old,
            old_at: 0,
            old_start: HEAD.len(),
            list,
            next: Some(0),
            found: VecDeque::new(),
            scan: None,
            state,
            parts,
            out: HEAD.to_vec(),
            // For what every answer ends with.
            limit: limit - TAIL.len(),
        }
    }

    /// Does a piece. True: every guest is in the answer.
    fn go_on(&mut self, names: &PropertyNames, tree: &SharedTree) -> Result<bool, TooLong> {
        let mut piece = PIECE;
        while piece > 0 {
            let before = self.out.len();
            if let Some((part, mut scan)) = self.scan.take() {
                if !scan.go_on(names, &mut piece) {
                    self.scan = Some((part, scan));
                    return Ok(false);
                }
                let first = before == HEAD.len();
                names.push_guest(part.vmid, &scan, first, self.limit, &mut self.out)?;
                self.end(part);
            } else if let Some(Found { part, same }) = self.found.pop_front() {
                match same {
                    Some(text) => {
                        self.push_old(text)?;
                        self.end(part);
                    }
                    None => {
                        let scan = Scan::new(names, Arc::clone(&part.config));
                        self.scan = Some((part, scan));
                    }
                }
            } else if self.next.is_some() {
                self.find_some(&tree.read());
                piece /= 2;
            } else {
                return put(&mut self.out, b"", self.limit).map(|()| true);
            }
            piece = piece.saturating_sub(self.out.len() - before + 1);
        }
        Ok(false)
    }

    /// Picks the configs of the next guests.
    fn find_some(&mut self, tree: &Tree) {
        let mut dirs = Dirs {
            tree,
            known: HashMap::new(),
        };
        let list = Arc::clone(&self.list);
        let Some(next) = self.next else { return };
        let mut guests = list.range(next..);
        for (vmid, guest) in guests.by_ref().take(CHUNK) {
            let found = self.find(*vmid, guest, &mut dirs);
            self.found.extend(found);
        }
        self.next = guests.next().map(|(vmid, _)| *vmid);
    }

    fn find<'t>(&mut self, vmid: u32, guest: &'t Guest, dirs: &mut Dirs<'t>) -> Option<Found> {
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
                    part: old,
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
    fn old_part(&mut self, vmid: u32) -> Option<(Part, Range<usize>)> {
        let old = self.old.as_ref()?;
        while let Some(part) = old.parts.get(self.old_at) {
            if part.vmid > vmid {
                return None;
            }
            let text = self.old_start..part.end;
            self.old_at += 1;
            self.old_start = part.end;
            if part.vmid == vmid {
                return Some((part.clone(), text));
            }
        }
        None
    }

    /// Takes a guest's text over from the old answer.
    fn push_old(&mut self, text: Range<usize>) -> Result<(), TooLong> {
        let Some(old) = &self.old else { return Ok(()) };
        let text = &old.text[text];
        // The first guest has no comma in front, a later one has.
        let text = text.strip_prefix(COMMA).unwrap_or(text);
        if !text.is_empty() && self.out.len() > HEAD.len() {
            self.out.extend_from_slice(COMMA);
        }
        put(&mut self.out, text, self.limit)
    }

    /// The text of this guest is complete.
    fn end(&mut self, part: Part) {
        let end = self.out.len();
        self.parts.push(Part { end, ..part });
    }

    fn finish(&mut self, names: &PropertyNames) -> Answer {
        let mut out = std::mem::take(&mut self.out);
        out.extend_from_slice(TAIL);
        out.shrink_to_fit();
        Answer {
            names: names.clone(),
            state: self.state,
            parts: std::mem::take(&mut self.parts),
            text: Arc::new(out),
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
