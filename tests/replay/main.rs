//! Replays what was recorded of a cluster of C daemons (`compat-tests/golden/cluster`): every node
//! of every scenario is replaced by our state machine, which gets the recorded events and has to
//! send the same messages and end with the same database.
//!
//! Free by the protocol (cluster-protocol.md 12): the order of UPDATE messages of one
//! synchronisation and of status values at one; bytes behind the NUL of a key; the last four bytes
//! of a log entry and what lies between the entries of a ring; the moment within a callback.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod compare;
mod node;
mod raw;
mod start;
mod transcript;

use std::collections::BTreeMap;

use node::Node;
use transcript::{Kind, Transcript};

/// Replays one scenario; returns how many messages were compared.
fn replay(name: &str) -> usize {
    let transcript = Transcript::load(name);
    let mut compared = 0;
    let mut nodes: BTreeMap<u32, Node> = BTreeMap::new();
    for (at, event) in transcript.events.iter().enumerate() {
        if let Kind::Start { pid } = event.kind {
            let ended = nodes.remove(&event.node).map(Node::end);
            let disk = ended.map(|(disk, messages)| {
                compared += messages;
                disk
            });
            nodes.insert(
                event.node,
                Node::start(&transcript, at, event.node, pid, disk),
            );
        } else if let Some(node) = nodes.get_mut(&event.node) {
            node.event(&transcript, event);
        }
    }
    compared
        + nodes
            .into_values()
            .map(|node| node.compared())
            .sum::<usize>()
}

macro_rules! scenarios {
    ($($test:ident $file:literal $least:literal,)*) => {
        $(
            #[test]
            fn $test() {
                let compared = replay($file);
                assert!(compared >= $least, "only {compared} messages were compared");
            }
        )*
    };
}

// The number is the least count of reactions and local messages that must have been compared.
scenarios! {
    corosync_conf "corosync-conf" 30,
    corosync_restart "corosync-restart" 70,
    crash_rejoin "crash-rejoin" 70,
    file_ops "file-ops" 70,
    join_divergent "join-divergent" 35,
    join_from_empty "join-from-empty" 30,
    join_node1_ahead "join-node1-ahead" 30,
    join_node2_ahead "join-node2-ahead" 30,
    join_node3_ahead "join-node3-ahead" 30,
    join_version_tie "join-version-tie" 30,
    kvstore_and_log "kvstore-and-log" 40,
    member_change_in_sync "member-change-in-sync" 250,
    partition_heal "partition-heal" 80,
    quorum_loss_and_return "quorum-loss-and-return" 50,
    sync_1mib_file "sync-1mib-file" 40,
    sync_200_files "sync-200-files" 600,
    unlock "unlock" 40,
    verify "verify" 40,
    write_during_update_phase "write-during-update-phase" 150,
}
