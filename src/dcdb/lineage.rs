//! Whose history this node's database is: what of it a synchronisation takes away, and whether it
//! may lead one (`docs/adr/008`).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;

use super::sync::Comparison;
use super::{Action, COROSYNC_CONF, Dcdb, TreeHost};
use crate::dfsm::{Ctx, Level, MemberId};
use crate::memdb::{Entry, Index, Inode, MAX_DEPTH, RootRow, Row, Tree, TreePath};

/// What is known of the history of this node's database.
#[derive(Debug, Default)]
pub(super) struct Lineage {
    /// The version row when this node was last one with the cluster, if it was changed in local mode
    /// since and the others have not taken that over.
    pub base: Option<RootRow>,
    /// The others have moved since, too: this node takes part in a synchronisation as one that has
    /// nothing, so that it cannot lead.
    pub yields: bool,
    /// Version when this node began to be in a quorate membership that lasts.
    since: u64,
    members: Vec<u32>,
    /// Version when a node was a member last.
    left: BTreeMap<u32, u64>,
}

/// What comes after the states were compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lead {
    /// As the protocol says.
    Fine,
    /// This node would lead, but the others have moved: it comes back as a follower.
    Yield,
    /// Nobody is left who has more than nothing: it comes back with what it has.
    Resume,
}

impl Lineage {
    pub fn new(version: u64) -> Self {
        Lineage {
            since: version,
            ..Lineage::default()
        }
    }

    /// Whatever this node has now, others may go on from.
    pub fn begin(&mut self, version: u64) {
        self.since = version;
    }

    /// These are members now.
    pub fn members(&mut self, members: &[MemberId], version: u64) {
        let members: Vec<u32> = members.iter().map(|member| member.nodeid).collect();
        for nodeid in std::mem::replace(&mut self.members, members) {
            if !self.members.contains(&nodeid) {
                self.left.insert(nodeid, version);
            }
        }
    }

    /// Did this node, at `version`, apply changes in its quorate membership after `leader` was a member of
    /// it? Then what that node has did not go on from them.
    fn is_ahead_of(&self, leader: u32, version: u64) -> bool {
        let left = self.left.get(&leader).copied().unwrap_or(0);
        version > self.since.max(left)
    }

    /// May the member at position `own` do what the comparison says?
    fn lead(&mut self, comparison: &Comparison, own: usize) -> Lead {
        let Some(base) = self.base else {
            return Lead::Fine;
        };
        let (leader, indexes) = (comparison.leader, &comparison.indexes);
        if self.yields {
            self.yields = indexes[leader].root.version != NOTHING;
            return if leader == own {
                Lead::Resume
            } else {
                Lead::Fine
            };
        }
        let moved = |(i, index): (usize, &Index)| {
            i != own && !comparison.synced[i] && is_beyond(index.root, base)
        };
        self.yields = leader == own && indexes.iter().enumerate().any(moved);
        if self.yields { Lead::Yield } else { Lead::Fine }
    }
}

/// Another version than `base`, and not an older one.
fn is_beyond(root: RootRow, base: RootRow) -> bool {
    root.version > base.version || (root.version == base.version && root != base)
}

/// No database has this version: it ranks behind each.
const NOTHING: u64 = 0;

/// The index of a node that has nothing; no two nodes have the same.
pub(super) fn nothing(nodeid: u32) -> Vec<u8> {
    let mut index = Tree::new().index();
    index.root = RootRow {
        version: NOTHING,
        writer: nodeid,
        mtime: 0,
    };
    let mut out = Vec::new();
    index.encode_into(&mut out);
    out
}

/// Was all that came after `base` made in local mode? If not, somebody else had this database since.
pub fn is_local_since(tree: &Tree, base: RootRow) -> bool {
    let root = tree.root_row();
    let local = |(_, entry): (Inode, &Entry)| entry.version <= base.version || entry.writer == 0;
    root.version > base.version && root.writer == 0 && tree.iter().all(local)
}

/// Can `new` be what became of `old`? It can if each entry of `new` that has not changed since the
/// version of `old` is in `old`, and `old` has no more entries than could be removed since.
fn continues(old: &Tree, new: &Tree) -> bool {
    let (then, now) = (old.root_row().version, new.root_row().version);
    let known = |inode: Inode| match (old.get(inode), new.get(inode)) {
        (Some(before), Some(after)) => {
            before.is_dir() == after.is_dir()
                && (after.version > then || old.row(inode) == new.row(inode))
        }
        (None, Some(after)) => inode > then && after.version > then,
        _ => false,
    };
    let removed = old.iter().filter(|(inode, _)| new.get(*inode).is_none());
    let removed = removed.count() as u64;
    now >= then && new.iter().all(|(inode, _)| known(inode)) && removed <= now - then
}

/// The database as it was before a synchronisation that takes something away, and what that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    pub root: RootRow,
    pub rows: Vec<Row>,
    /// Whose state it is now.
    pub leader: String,
    /// Paths that are not there any more, and files that have another content.
    pub gone: usize,
    pub changed: usize,
    /// One of them, if one is a file.
    pub example: Option<(Inode, TreePath)>,
}

impl Aside {
    /// `None` if nothing is lost. Up to the version `since` nothing can be.
    pub(super) fn new(old: &Tree, new: &Tree, since: u64, leader: String) -> Option<Self> {
        let (mut gone, mut changed, mut example) = (0, 0, None);
        for (inode, entry) in old.iter().filter(|(_, entry)| entry.version > since) {
            // Deeper than clients make them: not looked for, which would cost the square of the depth.
            let path = old.path_within(inode, MAX_DEPTH);
            let there = path.as_ref().and_then(|path| new.lookup(path));
            match there.and_then(|there| new.get(there)) {
                Some(now) if now.data() == entry.data() => continue,
                Some(_) => changed += 1,
                None => gone += 1,
            }
            if !entry.is_dir() {
                example = example.or(path.map(|path| (inode, path)));
            }
        }
        (gone + changed > 0).then(|| Aside {
            root: old.root_row(),
            rows: old.iter().filter_map(|(inode, _)| old.row(inode)).collect(),
            leader,
            gone,
            changed,
            example,
        })
    }
}

/// A database in a few words.
struct Brief<'a>(pub &'a Tree);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RootRow {
            version,
            writer,
            mtime,
        } = self.0.root_row();
        let entries = self.0.len() - 1;
        let conf = self.0.lookup(&TreePath::new(COROSYNC_CONF)).is_some();
        if entries == usize::from(conf) {
            let what = if conf { "corosync.conf" } else { "nothing" };
            return write!(f, "a new database (version {version}, {what} in it)");
        }
        write!(
            f,
            "version {version} with {entries} entries (last change: date -d @{mtime}, by node {writer})"
        )
    }
}

impl<H: TreeHost> Dcdb<H> {
    /// Others may go on from what this node has now.
    pub(super) fn begin(&mut self) {
        let version = self.host.read(|tree| tree.root_row().version);
        self.lineage.begin(version);
    }

    /// Says what a synchronisation brings, and has kept what it takes away.
    pub(super) fn compare(&self, new: &Tree, ctx: &mut Ctx<Action>) {
        let leader = self.leader.map_or_else(String::new, |leader| {
            let name = self.host.node_name(leader.nodeid);
            name.unwrap_or_else(|| format!("node {}", leader.nodeid))
        });
        let base = self.lineage.base;
        let ahead = |version| {
            let leader = self.leader;
            leader.is_some_and(|leader| self.lineage.is_ahead_of(leader.nodeid, version))
        };
        let (text, aside) = self.host.read(|old| {
            let text = format!(
                "this node had {}; it gets {} from {leader}",
                Brief(old),
                Brief(new)
            );
            let older = base.is_none() && !ahead(old.root_row().version) && continues(old, new);
            let since = base.map_or(0, |base| base.version);
            let aside = if older {
                None
            } else {
                Aside::new(old, new, since, leader)
            };
            (text, aside)
        });
        ctx.log(Level::Notice, text);
        if let Some(aside) = aside {
            ctx.act(Action::KeepAside(Box::new(aside)));
        }
    }

    /// Others get what this node has.
    pub(super) fn says_what_it_leads_with(&self, comparison: &Comparison, ctx: &mut Ctx<Action>) {
        let behind = comparison.synced.iter().filter(|synced| !**synced).count();
        if behind > 0 {
            let text = self.host.read(|tree| {
                format!(
                    "{behind} nodes get the database of this one: {}",
                    Brief(tree)
                )
            });
            ctx.log(Level::Notice, text);
        }
    }

    /// Does this node, at position `own`, go on with this synchronisation?
    pub(super) fn goes_on(
        &mut self,
        comparison: &Comparison,
        own: usize,
        ctx: &mut Ctx<Action>,
    ) -> bool {
        let text = match self.lineage.lead(comparison, own) {
            Lead::Fine => return true,
            Lead::Yield => {
                "the others have changed the database since this node was in local mode: it does not lead, \
                 but comes back and takes what they have"
            }
            Lead::Resume => "no other node has a database: coming back with that of this node",
        };
        ctx.log(Level::Warning, text);
        false
    }
}

#[cfg(test)]
mod tests;
