//! Synchronisation of the database (cluster-sync.md 1.5): whose data counts, who lacks what, and
//! the tree that results.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::wire::Update;
use crate::dfsm::MemberId;
use crate::memdb::load::VERSION_ROW_NAME;
use crate::memdb::{
    Index, IndexError, Inode, LoadError, LoadNote, LoadRow, ROOT_INODE, RootRow, Row, Tree,
};

/// What one synchronisation changes on disk: one transaction, deletions first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncCommit {
    /// Rows that are gone.
    pub delete: Vec<Inode>,
    /// Rows to replace.
    pub put: Vec<Row>,
    /// Version row, with `type` 4; `None` if the leader did not send it: it stays as it is.
    pub root: Option<RootRow>,
}

/// The states of all members, compared.
#[derive(Debug)]
pub(super) struct Comparison {
    /// Position of the leader in member order.
    pub leader: usize,
    /// Does a member have the leader's data?
    pub synced: Vec<bool>,
    pub indexes: Vec<Index>,
}

/// Highest version, then highest mtime, then first in member order.
pub(super) fn compare(states: &[(MemberId, Box<[u8]>)]) -> Result<Comparison, IndexError> {
    let indexes = states
        .iter()
        .map(|(_, state)| Index::decode(state))
        .collect::<Result<Vec<_>, _>>()?;
    let rank = |i: usize| (indexes[i].root.version, indexes[i].root.mtime);
    let leader = (0..indexes.len()).fold(0, |best, i| if rank(i) > rank(best) { i } else { best });
    let synced = states
        .iter()
        .map(|(_, state)| *state == states[leader].1)
        .collect();
    Ok(Comparison {
        leader,
        synced,
        indexes,
    })
}

/// Inodes of the leader that some other member lacks or has with another digest.
pub(super) fn wanted(comparison: &Comparison) -> BTreeSet<Inode> {
    let mut wanted = BTreeSet::new();
    let leader = &comparison.indexes[comparison.leader];
    for (index, synced) in comparison.indexes.iter().zip(&comparison.synced) {
        if *synced {
            continue;
        }
        let have: BTreeMap<Inode, _> = index.entries.iter().map(|e| (e.inode, e.digest)).collect();
        let lacks = leader
            .entries
            .iter()
            .filter(|e| have.get(&e.inode) != Some(&e.digest));
        wanted.extend(lacks.map(|e| e.inode));
    }
    wanted
}

/// Why a synchronisation cannot be committed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommitError {
    #[error("new tree cannot be built: {0}")]
    Load(LoadError),
    #[error("new index does not match master index - internal error")]
    Mismatch,
}

/// The tree after a synchronisation, and what has to be stored.
pub(super) struct Outcome {
    pub tree: Tree,
    pub commit: SyncCommit,
    pub notes: Vec<LoadNote>,
}

/// Builds the leader's tree from the own one and the updates, in order of arrival.
pub(super) fn build(
    old: &Tree,
    master: &Index,
    updates: &[Update],
    uptime: u32,
) -> Result<Outcome, CommitError> {
    let keep: BTreeSet<Inode> = master.entries.iter().map(|e| e.inode).collect();
    let delete: Vec<Inode> = old
        .iter()
        .map(|(inode, _)| inode)
        .filter(|inode| !keep.contains(inode))
        .collect();
    let mut root = None;
    let mut rows = rows_of(old, |inode| keep.contains(&inode));
    let mut put: BTreeMap<Inode, Row> = BTreeMap::new();
    for Update(row) in updates {
        if row.inode == ROOT_INODE {
            root = Some(RootRow {
                version: row.version,
                writer: row.writer,
                mtime: row.mtime,
            });
        } else {
            rows.insert(row.inode as i64, LoadRow::from(row));
            put.insert(row.inode, row.clone());
        }
    }
    let version = root.unwrap_or_else(|| old.root_row());
    let (tree, notes) = successor(old, rows, version, uptime).map_err(CommitError::Load)?;
    if tree.index() != *master {
        return Err(CommitError::Mismatch);
    }
    let commit = SyncCommit {
        delete,
        put: put.into_values().collect(),
        root,
    };
    Ok(Outcome {
        tree,
        commit,
        notes,
    })
}

/// Rows of a tree, the version row excepted, by signed inode, as SQLite returns them.
pub(super) fn rows_of(tree: &Tree, keep: impl Fn(Inode) -> bool) -> BTreeMap<i64, LoadRow> {
    let kept = tree.iter().filter(|(inode, _)| keep(*inode));
    kept.filter_map(|(inode, _)| tree.row(inode))
        .map(|row| (row.inode as i64, LoadRow::from(&row)))
        .collect()
}

/// The tree of these rows, with the lock ages of the one it replaces.
pub(super) fn successor(
    old: &Tree,
    mut rows: BTreeMap<i64, LoadRow>,
    root: RootRow,
    uptime: u32,
) -> Result<(Tree, Vec<LoadNote>), LoadError> {
    rows.insert(ROOT_INODE as i64, version_row(root));
    let (mut tree, notes) = Tree::load(rows.into_values(), uptime)?;
    tree.rebuild_locks_keeping(old, uptime);
    Ok((tree, notes))
}

pub(super) fn version_row(root: RootRow) -> LoadRow {
    LoadRow {
        inode: ROOT_INODE as i64,
        parent: ROOT_INODE as i64,
        version: root.version as i64,
        writer: i64::from(root.writer),
        mtime: i64::from(root.mtime),
        type_code: 4,
        name: Some(VERSION_ROW_NAME.into()),
        data: None,
    }
}
