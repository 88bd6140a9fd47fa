//! Synchronisation, queues, checksum rounds.
#![forbid(unsafe_code)]

use super::*;

#[test]
fn own_queued_messages_are_sent_again_when_somebody_joins() {
    let mut bench = Bench::alone();
    let sent = sends(&bench.submit(1, "a"));
    bench.give(Event::Confchg {
        members: &[ME, YOU],
        joined: &[YOU],
    });
    bench.deliver(YOU, &wire::normal(1, 1, 0, 5, b"theirs"));
    bench.deliver(ME, &sent[0]);
    let third = MemberId { nodeid: 3, pid: 30 };
    let out = bench.give(Event::Confchg {
        members: &[ME, YOU, third],
        joined: &[third],
    });
    let again = sends(&out);
    assert_eq!(again[0], sent[0], "byte for byte");
    assert_eq!(kinds(&out), [Type::Normal, Type::SyncStart]);
    // Nobody joins: the queue stays.
    bench.deliver(ME, &again[0]);
    let out = bench.give(Event::Confchg {
        members: &[ME, YOU],
        joined: &[],
    });
    assert_eq!(kinds(&out), [Type::SyncStart]);
}

#[test]
fn the_leader_sends_updates_in_small_lots_and_stops_with_the_epoch() {
    let mut bench = Bench::alone();
    for number in 0..9u64 {
        bench.deliver(ME, &wire::normal(1, 1, 0, number + 1, &[number as u8; 30]));
    }
    bench.give(Event::Confchg {
        members: &[ME, YOU],
        joined: &[YOU],
    });
    bench.state(ME, Type::SyncStart, b"");
    bench.state(ME, Type::State, &[9]);
    let out = bench.state(YOU, Type::State, &[0]);
    assert_eq!(kinds(&out), [Type::Update]);
    assert!(bench.machine.has_bulk());
    assert_eq!(kinds(&bench.give(Event::Room)), [Type::Update]);
    bench.give(Event::Confchg {
        members: &[ME],
        joined: &[],
    });
    assert!(!bench.machine.has_bulk());
    assert!(bench.give(Event::Room).is_empty());
}

#[test]
fn the_end_of_the_updates_is_sent_behind_the_last_and_logged() {
    let mut bench = Bench::alone();
    for number in 0..3u64 {
        bench.deliver(ME, &wire::normal(1, 1, 0, number + 1, &[number as u8; 30]));
    }
    bench.start_sync();
    let mut out = bench.state(YOU, Type::State, &[0]);
    while bench.machine.has_bulk() {
        out.extend(bench.give(Event::Room));
    }
    let mut want = vec![Type::Update; 3];
    want.push(Type::UpdateComplete);
    assert_eq!(kinds(&out), want);
    assert_eq!(logs(&out).last(), Some(&"sent all (3) updates"));
}

/// The first measure of cluster-protocol.md 7.3: what synced members apply at this moment is applied
/// behind the updates in the same order, whoever sent it; old nodes kept that of `third` for later.
#[test]
fn in_update_mode_the_order_of_arrival_is_kept() {
    let third = MemberId { nodeid: 3, pid: 30 };
    let mut bench = Bench::alone();
    let members = [ME, YOU, third];
    let out = bench.give(Event::Confchg {
        members: &members,
        joined: &members[1..],
    });
    bench.deliver(ME, &sends(&out)[0]);
    // Before all states are there: by the sender's state, then by count.
    let early = |count, text: &[u8]| wire::normal(1, 1, 0, count, text);
    bench.deliver(third, &early(1, b"early, not synced"));
    bench.deliver(YOU, &early(2, b"early, synced"));
    bench.state(ME, Type::State, &[0]);
    bench.state(YOU, Type::State, &[9]);
    bench.state(third, Type::State, &[0]);
    assert_eq!(bench.machine.mode(), Mode::Update);
    bench.deliver(third, &early(7, b"late, not synced"));
    bench.deliver(YOU, &early(3, b"late, synced"));
    bench.state(YOU, Type::Update, b"update");
    assert!(bench.machine.app().items.is_empty());
    let out = bench.state(YOU, Type::UpdateComplete, b"");
    let lines = [
        "all data is up to date",
        "dfsm_deliver_sync_queue: queue length 3",
        "dfsm_deliver_queue: queue length 1",
    ];
    assert_eq!(logs(&out), lines);
    let want: [&[u8]; 5] = [
        b"update",
        b"early, synced",
        b"late, not synced",
        b"late, synced",
        b"early, not synced",
    ];
    assert_eq!(bench.machine.app().items, want);
}

#[test]
fn in_update_mode_it_ignores_late_requests_and_checksum_rounds() {
    let mut bench = Bench::syncing();
    bench.state(YOU, Type::State, &[3]);
    assert_eq!(bench.machine.mode(), Mode::Update);
    bench.state(YOU, Type::SyncStart, b"");
    bench.state(YOU, Type::VerifyRequest, &1u64.to_le_bytes());
    assert_eq!(bench.machine.mode(), Mode::Update);
    // Whoever sends in this phase: applied behind the updates, in order of arrival.
    bench.deliver(YOU, &wire::normal(1, 1, 0, 9, b"synced"));
    bench.deliver(ME, &wire::normal(1, 1, 0, 1, b"own"));
    bench.deliver(YOU, &wire::normal(1, 1, 0, 10, b"last"));
    bench.state(YOU, Type::Update, b"base");
    bench.state(YOU, Type::UpdateComplete, b"");
    assert_eq!(bench.machine.mode(), Mode::Synced);
    let items: Vec<&[u8]> = bench.machine.app().items.iter().map(|i| &i[..]).collect();
    assert_eq!(items, [&b"base"[..], b"synced", b"own", b"last"]);
}

#[test]
fn a_commit_that_fails_is_tried_again() {
    let mut bench = Bench::syncing();
    bench.machine.app_mut().commits = false;
    bench.state(YOU, Type::State, &[3]);
    let out = bench.state(YOU, Type::UpdateComplete, b"");
    assert_eq!(bench.machine.mode(), Mode::Leave);
    assert!(out.contains(&Action::Leave));
    let out = bench.give(Event::Confchg {
        members: &[YOU],
        joined: &[],
    });
    assert!(out.contains(&Action::Restart));
}

#[test]
fn checksum_rounds() {
    let mut bench = Bench::alone();
    let out = bench.give(Event::Verify);
    assert_eq!(kinds(&out), [Type::VerifyRequest]);
    assert!(logs(&bench.give(Event::Verify)).contains(&"delay verify request"));
    let out = bench.deliver(ME, &sends(&out)[0]);
    assert_eq!(kinds(&out), [Type::Verify]);
    let answer = sends(&out)[0].clone();
    assert_eq!(
        logs(&bench.deliver(ME, &answer)),
        ["data verification successful"]
    );
    let mut wrong = answer;
    wrong[40] ^= 1;
    let out = bench.deliver(ME, &wrong);
    assert!(logs(&out)[0].ends_with("- restarting"), "{out:?}");
    assert_eq!(bench.machine.mode(), Mode::Leave);
}
