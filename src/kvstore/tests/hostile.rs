//! What other nodes may send, and what becomes of it.

use std::sync::Arc;

use proptest::prelude::*;

use crate::dfsm::{Application, Ctx, Delivery, MemberId, Verdict};
use crate::kvstore::{Kvstore, wire};
use crate::status::Status;
use crate::status::clusterlog::RING_SIZE;
use crate::status::members::{ClusterInfo, Node};

const OWN: MemberId = member(1);

const fn member(nodeid: u32) -> MemberId {
    MemberId { nodeid, pid: 100 }
}

/// Node 1 of two.
fn node() -> (Arc<Status>, Kvstore) {
    let status = Arc::new(Status::new("node1", 1000, 1));
    let name = |id| Node {
        id,
        name: format!("node{id}"),
    };
    status.set_cluster_info(ClusterInfo {
        name: "lab".into(),
        config_version: 1,
        nodes: vec![name(1), name(2)],
    });
    (status.clone(), Kvstore::new(status, "10.0.0.1"))
}

fn give(kvstore: &mut Kvstore, from: u32, subtype: u16, payload: &[u8]) {
    let delivery = Delivery {
        from: member(from),
        subtype,
        time: 1000,
        payload,
    };
    let mut ctx = Ctx::new(1000, OWN, true);
    assert_eq!(kvstore.deliver(delivery, &mut ctx), Verdict::Applied(()));
    let (sent, _) = ctx.take();
    assert_eq!(sent, [], "nobody can make this node send");
}

fn update(kvstore: &mut Kvstore, from: u32, key: &[u8], value: &[u8]) {
    let payload = wire::encode_update(key, value).payload;
    give(kvstore, from, wire::UPDATE, &payload);
}

/// Every text a client may get is JSON for a strict parser.
fn check(status: &Status) {
    for text in [
        status.version_text(),
        status.members_text(),
        status.vmlist_text(),
        status.clusterlog_text(b"", 1000),
    ] {
        serde_json::from_slice::<serde_json::Value>(&text).unwrap();
    }
    status.rrd_text(1000);
}

#[test]
fn values_of_others() {
    let (status, mut kvstore) = node();
    update(&mut kvstore, 2, b"k", b"1");
    update(&mut kvstore, 2, b"k", b"2");
    assert_eq!(status.get_kv(b"k", b"node2").as_deref(), Some(&b"2"[..]));
    let text = String::from_utf8(status.version_text().to_vec()).unwrap();
    assert!(text.contains("\"node2\": {\n\"k\": 1}"), "{text}");
    update(&mut kvstore, 2, b"k", b"");
    assert_eq!(status.get_kv(b"k", b"node2"), None);
    // Own messages come back; they are known. Strangers are not listened to.
    update(&mut kvstore, 1, b"own", b"x");
    update(&mut kvstore, 7, b"k", b"x");
    assert_eq!(status.get_kv(b"own", b""), None);
    // The process before this one on the same node is somebody else.
    let payload = wire::encode_update(b"before", b"x").payload;
    let delivery = Delivery {
        from: MemberId { nodeid: 1, pid: 99 },
        subtype: wire::UPDATE,
        time: 1000,
        payload: &payload,
    };
    kvstore.deliver(delivery, &mut Ctx::new(1000, OWN, true));
    assert_eq!(status.get_kv(b"before", b""), None);
    check(&status);
}

#[test]
fn keys_and_values_of_all_kinds() {
    let (status, mut kvstore) = node();
    // No NUL in the field of the key; no key; nothing at all.
    give(&mut kvstore, 2, wire::UPDATE, &[b'k'; 400]);
    give(&mut kvstore, 2, wire::UPDATE, &[b'k'; 20]);
    give(&mut kvstore, 2, wire::UPDATE, b"");
    give(&mut kvstore, 2, wire::LOG, b"");
    give(&mut kvstore, 2, 77, b"x");
    assert!(!String::from_utf8_lossy(&status.version_text()).contains("node2"));
    let keys: [&[u8]; 5] = [b"", b"\xff\xfe", b"a\"b\\c\n", &[b'k'; 255], b"rrd"];
    for key in keys {
        update(&mut kvstore, 2, key, &[0xff; 40_000]);
        assert_eq!(status.get_kv(key, b"node2").map(|v| v.len()), Some(40_000));
    }
    for value in [&b""[..], b"no end", &[b'1'; 300], b"\xff\"\0"] {
        update(&mut kvstore, 2, b"nodeip", value);
        update(&mut kvstore, 2, b"rrd/pve-vm-9.0/100", value);
    }
    assert_eq!(status.node_ip("node2").as_deref(), Some(&b"\xff\""[..]));
    check(&status);
}

/// A node that sends more and more is not given all memory, and what it has is kept.
#[test]
fn memory_for_others_has_a_limit() {
    let (status, mut kvstore) = node();
    update(&mut kvstore, 2, b"first", b"kept");
    let large = vec![1; 1 << 20];
    for i in 0..100 {
        update(&mut kvstore, 2, format!("k{i}").as_bytes(), &large);
    }
    let have = (0..100).filter(|i| {
        status
            .get_kv(format!("k{i}").as_bytes(), b"node2")
            .is_some()
    });
    assert!((20..40).contains(&have.count()));
    update(&mut kvstore, 2, b"first", b"new");
    assert_eq!(
        status.get_kv(b"first", b"node2").as_deref(),
        Some(&b"new"[..])
    );
    let line = [vec![b'1'; 4000], vec![0]].concat();
    for i in 0..30_000 {
        update(&mut kvstore, 2, format!("rrd/{i}").as_bytes(), &line);
    }
    let size = status.rrd_text(1000).len();
    assert!(((32 << 20)..(64 << 20)).contains(&size), "{size}");
}

proptest! {
    #[test]
    fn any_messages(
        messages in prop::collection::vec(
            (1u32..4, 0u16..5, prop::collection::vec(any::<u8>(), 0..600), any::<bool>()), 0..30),
    ) {
        let (status, mut kvstore) = node();
        for (from, subtype, mut payload, ended) in messages {
            if ended && payload.len() > 20 {
                payload[20] = 0;
            }
            give(&mut kvstore, from, subtype, &payload);
        }
        check(&status);
    }

    #[test]
    fn any_states(
        states in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..4),
        entry in prop::collection::vec(any::<u8>(), 0..200), pos in 0u32..200,
    ) {
        let (status, mut kvstore) = node();
        let mut huge = vec![0; 1 << 20];
        huge[..4].copy_from_slice(&(1u32 << 20).to_le_bytes());
        huge[4..8].copy_from_slice(&(pos & !7).to_le_bytes());
        huge[8..8 + entry.len()].copy_from_slice(&entry);
        let mut all = vec![(OWN, Box::from(status.log_state()))];
        all.push((member(2), huge.into()));
        all.extend(states.into_iter().map(|state| (member(3), Box::from(state))));
        let mut ctx = Ctx::new(1000, OWN, true);
        let plan = kvstore.process_states(&all, &mut ctx).unwrap();
        prop_assert_eq!(plan.synced, vec![true; all.len()]);
        prop_assert_eq!(status.log_state().len(), RING_SIZE);
        check(&status);
    }
}
