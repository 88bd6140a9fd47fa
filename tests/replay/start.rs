//! What a recorded process started with.

use std::sync::Arc;

use pmxcfs::dfsm::wire;
use pmxcfs::memdb::{LoadRow, Tree};
use pmxcfs::status::members::{ClusterInfo, Node as ClusterNode};
use pmxcfs::status::{Status, clusterlog};

use super::node::Disk;
use super::transcript::{Event, Group, Kind, Transcript};

pub fn load(rows: &[LoadRow]) -> Tree {
    Tree::load(rows.iter().cloned(), 0).unwrap().0
}

/// The first message of a kind that this process sent.
fn first_state<'a>(life: &[&'a Event], wanted: Group) -> Option<&'a [u8]> {
    life.iter().find_map(|e| match &e.kind {
        Kind::Send {
            group, bytes, note, ..
        } if *group == wanted && note.starts_with("STATE") => Some(&bytes[wire::STATE_LEN..]),
        _ => None,
    })
}

/// The database this process started with: what the process before left, or what was recorded
/// nearest, without what was written in between.
pub fn first_rows(
    transcript: &Transcript,
    at: usize,
    node: u32,
    life: &[&Event],
    disk: Option<Disk>,
) -> Option<Vec<LoadRow>> {
    let state = first_state(life, Group::Dcdb);
    if let Some(disk) = disk.filter(|disk| !disk.is_empty()) {
        return Some(disk.into_values().collect());
    }
    // Own databases first: the last one before, then those after, then what others have.
    let recorded = |e: &&Event| matches!(e.kind, Kind::Db(_));
    let (before, after) = transcript.events.split_at(at);
    let own = |e: &&Event| recorded(e) && e.node == node;
    let before = before.iter().rfind(own);
    let others = transcript.events.iter().filter(recorded);
    for event in before
        .into_iter()
        .chain(after.iter().filter(own))
        .chain(others)
    {
        let Kind::Db(db) = &event.kind else {
            continue;
        };
        let Some(state) = state else {
            return Some(db.rows.clone());
        };
        for rows in [
            db.rows.clone(),
            earlier(&db.rows, state),
            imported(&db.rows, state),
        ] {
            if load(&rows).encode_index() == state {
                return Some(rows);
            }
        }
    }
    let any = transcript.events.iter().any(|e| recorded(&e));
    assert!(
        !any,
        "{}: database of node {node} at its start is unknown",
        transcript.name
    );
    None
}

/// Version row of a state.
fn version_row(state: &[u8]) -> LoadRow {
    let u32_at = |at: usize| u32::from_le_bytes(state[at..at + 4].try_into().unwrap());
    LoadRow {
        version: u64::from_le_bytes(state[..8].try_into().unwrap()) as i64,
        writer: i64::from(u32_at(16)),
        mtime: i64::from(u32_at(20)),
        type_code: 8,
        name: Some(b"__version__"[..].into()),
        ..LoadRow::default()
    }
}

/// The rows as they were at the version of `state`: nothing newer.
fn earlier(rows: &[LoadRow], state: &[u8]) -> Vec<LoadRow> {
    let root = version_row(state);
    let old = rows
        .iter()
        .filter(|row| row.inode != 0 && row.version <= root.version)
        .cloned();
    let old: Vec<LoadRow> = old.collect();
    [vec![root], old].concat()
}

/// A database as the first start makes it: the host's corosync.conf and nothing else.
fn imported(rows: &[LoadRow], state: &[u8]) -> Vec<LoadRow> {
    let root = version_row(state);
    let name = Some(b"corosync.conf"[..].into());
    let file = rows
        .iter()
        .find(|row| row.parent == 0 && row.name == name)
        .cloned();
    let (version, mtime) = (root.version, root.mtime);
    let file = file.map(|file| LoadRow {
        inode: 2,
        version,
        writer: 0,
        mtime,
        ..file
    });
    Vec::from_iter([root].into_iter().chain(file))
}

/// The status of a process that has just started.
pub fn first_status(transcript: &Transcript, node: u32, pid: u32, life: &[&Event]) -> Arc<Status> {
    let name = &transcript.nodes[&node].0;
    // The start entry has the time of the process start, which only its first log shows.
    let start = first_state(life, Group::Kv).map_or(transcript.t0, |state| {
        let entries = clusterlog::parse(state).unwrap();
        let bytes = entries.iter().map(|e| e.to_bytes(0, 0));
        let own = bytes.filter(|b| b[32..36] == pid.to_le_bytes() && b[8..12] == [1, 0, 0, 0]);
        own.map(|b| u32::from_le_bytes(b[12..16].try_into().unwrap()))
            .next()
            .unwrap()
    });
    let status = Status::new(name, u64::from(start), pid);
    let nodes = transcript.nodes.iter();
    let nodes = nodes
        .map(|(id, (name, _))| ClusterNode {
            id: *id,
            name: name.clone(),
        })
        .collect();
    let (name, config_version) = ("lab".to_owned(), 2);
    status.set_cluster_info(ClusterInfo {
        name,
        config_version,
        nodes,
    });
    Arc::new(status)
}
