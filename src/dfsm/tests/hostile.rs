//! Members that send what they should not, or keep back what they should send.
#![forbid(unsafe_code)]

use super::*;

const THIRD: MemberId = MemberId { nodeid: 3, pid: 30 };

/// Three members, no state of `THIRD`.
fn waiting(queue_bytes: usize) -> Bench {
    let mut bench = Bench::alone();
    bench.machine.config.queue_bytes = queue_bytes;
    let out = bench.give(Event::Confchg {
        members: &[ME, YOU, THIRD],
        joined: &[YOU, THIRD],
    });
    bench.deliver(ME, &sends(&out)[0]);
    bench.state(ME, Type::State, &[0]);
    bench.state(YOU, Type::State, &[9]);
    bench
}

fn message(count: u64, len: usize) -> Vec<u8> {
    wire::normal(1, 1, 0, count, &vec![b'x'; len])
}

/// Fills the queues until the machine has enough of it; the number of messages and the last actions.
fn fill(bench: &mut Bench, len: usize) -> (u64, Vec<Act>) {
    for count in 1.. {
        let out = bench.deliver(YOU, &message(count, len));
        if bench.machine.mode() == Mode::Leave {
            return (count, out);
        }
        assert!(count < 1_000_000, "the queues have no bound");
    }
    unreachable!()
}

#[test]
fn what_waits_for_a_silent_member_has_a_bound() {
    let mut bench = waiting(1 << 20);
    let (count, out) = fill(&mut bench, 64 << 10);
    assert!((14..=16).contains(&count), "{count}");
    assert!(out.contains(&Action::Leave), "{out:?}");
    assert_eq!(
        logs(&out)[0],
        "1 MiB of messages wait for state of members node3 - leaving the group, to come back later"
    );
    // The memory is free before the way back begins.
    assert_eq!(bench.machine.msg_queue.bytes(), 0);
    let out = bench.give(Event::Confchg {
        members: &[YOU, THIRD],
        joined: &[],
    });
    assert!(out.contains(&Action::Restart));
    bench.give(Event::Connected { own: ME });
    bench.give(Event::Confchg {
        members: &[ME],
        joined: &[ME],
    });
    assert_eq!(bench.machine.mode(), Mode::Synced);
}

#[test]
fn small_messages_count_too() {
    let (count, _) = fill(&mut waiting(1 << 20), 0);
    assert!(count <= 1024, "{count}");
}

#[test]
fn what_waits_for_updates_has_a_bound_and_does_not_count_twice() {
    let mut bench = waiting(1 << 20);
    bench.deliver(YOU, &message(1, 500 << 10));
    bench.state(THIRD, Type::State, &[0]);
    assert_eq!(bench.machine.mode(), Mode::Update);
    // It went over to the other queue.
    bench.deliver(YOU, &message(2, 400 << 10));
    assert_eq!(bench.machine.mode(), Mode::Update);
    let out = bench.deliver(YOU, &message(3, 400 << 10));
    assert_eq!(bench.machine.mode(), Mode::Leave);
    assert!(
        logs(&out)[0].contains("wait for updates from leader node2 - leaving the group"),
        "{out:?}"
    );
    assert_eq!(bench.machine.sync_queue.bytes(), 0);
}

#[test]
fn what_was_applied_is_not_counted_any_more() {
    let mut bench = waiting(1 << 20);
    for round in 0..5 {
        bench.deliver(YOU, &message(round, 700 << 10));
        bench.state(THIRD, Type::State, &[9]);
        bench.state(YOU, Type::UpdateComplete, b"");
        assert_eq!(bench.machine.mode(), Mode::Synced);
        let out = bench.give(Event::Confchg {
            members: &[ME, YOU, THIRD],
            joined: &[],
        });
        bench.deliver(ME, &sends(&out)[0]);
        bench.state(ME, Type::State, &[0]);
        bench.state(YOU, Type::State, &[9]);
    }
}

#[test]
fn updates_come_from_the_leader_only() {
    let mut bench = waiting(1 << 20);
    bench.state(THIRD, Type::State, &[0]);
    let out = bench.state(THIRD, Type::Update, b"not mine to send");
    assert_eq!(
        logs(&out),
        ["ignore update from 3/30 who is not the leader"]
    );
    bench.state(THIRD, Type::UpdateComplete, b"");
    assert_eq!(bench.machine.mode(), Mode::Update);
    bench.state(YOU, Type::Update, b"base");
    bench.state(YOU, Type::UpdateComplete, b"");
    assert_eq!(bench.machine.mode(), Mode::Synced);
    assert_eq!(bench.machine.app().items, [b"base"]);
}

/// Nor is a member taken for synchronised because another one says so.
#[test]
fn the_end_of_the_updates_comes_from_the_leader_only() {
    let mut bench = Bench::alone();
    bench.deliver(ME, &message(1, 1));
    let out = bench.give(Event::Confchg {
        members: &[ME, YOU],
        joined: &[YOU],
    });
    bench.deliver(ME, &sends(&out)[0]);
    bench.state(ME, Type::State, &[1]);
    bench.state(YOU, Type::State, &[0]);
    let behind = |bench: &Bench| bench.machine.members().any(|(_, synced)| !synced);
    bench.state(YOU, Type::UpdateComplete, b"");
    assert!(behind(&bench));
    bench.state(ME, Type::UpdateComplete, b"");
    assert!(!behind(&bench));
}

#[test]
fn one_member_cannot_fill_the_log() {
    let mut bench = Bench::alone();
    let old = wire::normal(0, 1, 0, 1, b"");
    let mut lines = 0;
    for _ in 0..1000 {
        lines += logs(&bench.deliver(YOU, &old)).len();
    }
    assert_eq!(lines, 20);
    bench.time += Duration::from_secs(60);
    let out = bench.deliver(YOU, &old);
    assert_eq!(
        logs(&out),
        [
            "980 lines left out",
            "ignore message of older protocol 0 from 2/20"
        ]
    );
}
