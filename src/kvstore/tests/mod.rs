//! The node status as a replicated application.
#![forbid(unsafe_code)]

mod hostile;

use super::*;
use crate::status::members::{ClusterInfo, Node};

const ME: MemberId = MemberId { nodeid: 1, pid: 10 };
const YOU: MemberId = MemberId { nodeid: 2, pid: 20 };
const STRANGER: MemberId = MemberId { nodeid: 9, pid: 90 };

/// `node1` of two that are configured.
fn kvstore() -> (Kvstore, Arc<Status>) {
    let status = Arc::new(Status::new("node1", 1000, ME.pid));
    let node = |id: u32| Node {
        id,
        name: format!("node{id}"),
    };
    status.set_cluster_info(ClusterInfo {
        name: "lab".into(),
        config_version: 1,
        nodes: vec![node(1), node(2)],
    });
    (Kvstore::new(status.clone(), "10.0.0.1"), status)
}

fn ctx() -> Ctx<Action> {
    Ctx::new(2000, ME, true)
}

fn deliver(kvstore: &mut Kvstore, from: MemberId, message: &Outgoing) {
    let delivery = Delivery {
        from,
        subtype: message.subtype,
        time: 2000,
        payload: &message.payload,
    };
    let verdict = kvstore.deliver(delivery, &mut ctx());
    // Nothing that another node sends breaks the group.
    assert_eq!(verdict, Verdict::Applied(()));
}

#[test]
fn values_of_others_are_kept_and_own_messages_ignored() {
    let (mut kvstore, status) = kvstore();
    let update = wire::encode_update(b"key", b"value");
    for (from, node, kept) in [
        (YOU, "node2", true),
        (ME, "node1", false),
        (STRANGER, "node9", false),
    ] {
        deliver(&mut kvstore, from, &update);
        let value = status.get_kv(b"key", node.as_bytes());
        assert_eq!(value.as_deref(), kept.then_some(&b"value"[..]), "{node}");
    }
    deliver(&mut kvstore, YOU, &wire::encode_update(b"key", b""));
    assert_eq!(status.get_kv(b"key", b"node2"), None);
}

#[test]
fn what_cannot_be_understood_is_ignored() {
    let (mut kvstore, _status) = kvstore();
    for (subtype, payload) in [
        (0, &b""[..]),
        (2, b""),
        (4, b"later"),
        (wire::UPDATE, b"short"),
        (wire::UPDATE, &[b'k'; 300]),
        (wire::LOG, b""),
        (wire::LOG, &[0; 48]),
        (wire::LOG, &[0xff; 200]),
    ] {
        let payload = payload.to_vec();
        deliver(&mut kvstore, YOU, &Outgoing { subtype, payload });
    }
    // Only an update as the leader of a synchronisation would send it is fatal.
    assert!(!kvstore.process_update(b"", &mut ctx()));
}

#[test]
fn members_of_the_group_are_online() {
    let (mut kvstore, status) = kvstore();
    let online = |kvstore: &mut Kvstore, members: &[MemberId]| {
        kvstore.confchg(members, &mut ctx());
        let text = String::from_utf8(status.members_text().to_vec()).unwrap();
        text.matches("\"online\": 1").count()
    };
    assert_eq!(online(&mut kvstore, &[ME]), 1);
    assert_eq!(online(&mut kvstore, &[ME, YOU, STRANGER]), 2);
    assert_eq!(online(&mut kvstore, &[ME]), 1);
}

#[test]
fn a_synchronisation_sends_all_own_values_and_merges_the_logs() {
    let (mut kvstore, status) = kvstore();
    let other = Status::new("node2", 1000, YOU.pid);
    for (status, text) in [(&*status, "mine"), (&other, "theirs")] {
        let entry = status.log(b"root", b"tag", 1, 6, text.as_bytes(), 2000);
        assert!(entry.is_some());
    }
    status.set_kv(b"a", b"1", 2000).unwrap();
    status.set_kv(b"b", b"2", 2000).unwrap();
    let state = |status: &Status| status.log_state().into_boxed_slice();
    let states = [
        (ME, state(&status)),
        (YOU, state(&other)),
        (STRANGER, Box::from(&b"not a log"[..])),
    ];
    let mut ctx = ctx();
    let plan = kvstore.process_states(&states, &mut ctx).unwrap();
    assert_eq!((plan.leader, plan.synced), (None, vec![true; 3]));
    let mut sent: Vec<_> = ctx.take().0;
    sent.sort_by(|a, b| a.payload.cmp(&b.payload));
    let want = [(b"a", b"1"), (b"b", b"2")].map(|(key, value)| wire::encode_update(key, value));
    assert_eq!(sent, want);
    let log = String::from_utf8(status.clusterlog_text(b"", 50).to_vec()).unwrap();
    assert!(log.contains("mine") && log.contains("theirs"), "{log}");
}

#[test]
fn the_address_is_announced_when_all_is_up_to_date() {
    let (mut kvstore, status) = kvstore();
    let announced = |kvstore: &mut Kvstore| {
        let mut ctx = ctx();
        kvstore.synced(&mut ctx);
        ctx.take().0
    };
    let nodeip = |ip: &[u8]| wire::encode_update(b"nodeip", ip);
    assert_eq!(announced(&mut kvstore), [nodeip(b"10.0.0.1\0")]);
    status.set_kv(b"nodeip", b"10.0.0.7\0", 2000).unwrap();
    assert_eq!(announced(&mut kvstore), [nodeip(b"10.0.0.7\0")]);
}
