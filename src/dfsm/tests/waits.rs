//! Requests, results, and who keeps them waiting.
#![forbid(unsafe_code)]

use super::*;

#[test]
fn a_request_is_sent_delivered_and_answered() {
    let mut bench = Bench::alone();
    let out = bench.submit(7, "a");
    let sent = sends(&out);
    let message = Message::parse(&sent[0]).unwrap();
    assert_eq!(
        message.body,
        Body::Normal {
            count: 1,
            payload: b"a"
        }
    );
    let reply = Action::Applied {
        ticket: 7,
        reply: 1,
    };
    assert_eq!(bench.deliver(ME, &sent[0]), [reply]);
    assert_eq!(released(&bench.round()), [7]);
}

#[test]
fn requests_are_held_back_while_synchronising_and_end_in_time() {
    let mut bench = Bench::syncing();
    assert!(bench.submit(1, "a").is_empty());
    bench.time += Duration::from_secs(20);
    bench.submit(2, "b");
    assert!(replies(&bench.tick(9_999)).is_empty());
    assert_eq!(replies(&bench.tick(1)), [(1, Err(Busy))]);
    // The other one goes out when all are synchronised.
    let out = bench.state(YOU, Type::State, &[0]);
    let sent: Vec<Vec<u8>> = sends(&out);
    assert_eq!(kinds(&out), [Type::UpdateComplete, Type::Normal]);
    let sent = &sent[1..];
    bench.deliver(ME, &sent[0]);
    bench.state(ME, Type::UpdateComplete, b"");
    assert_eq!(released(&bench.round()), [2]);
}

#[test]
fn of_what_nobody_waits_for_only_so_much_is_held_back() {
    let mut bench = Bench::syncing();
    for number in 0..1010 {
        let request = format!("{number}").into_bytes();
        let ticket = None;
        bench.give(Event::Submit { ticket, request });
    }
    let sent = sends(&bench.state(YOU, Type::State, &[0]));
    // Behind the end of the updates.
    assert_eq!(sent.len(), 1001);
    assert!(sent[1].ends_with(b"10") && sent[1000].ends_with(b"1009"));
}

#[test]
fn a_lost_message_ends_in_time() {
    let mut bench = Bench::alone();
    bench.submit(1, "a");
    assert!(replies(&bench.tick(29_000)).is_empty());
    assert_eq!(replies(&bench.tick(1_000)), [(1, Err(Busy))]);
}

#[test]
fn missing_members_are_named_every_five_seconds() {
    let mut bench = Bench::syncing();
    let mut lines = Vec::new();
    for _ in 0..32 {
        lines.extend(logs(&bench.tick(500)).iter().map(|text| text.to_string()));
    }
    let want = [5, 10, 15].map(|s| format!("waiting for state of members node2 since {s} s"));
    assert_eq!(lines, want);
}

#[test]
fn whoever_keeps_a_follower_waiting_is_named() {
    let mut bench = Bench::syncing();
    bench.state(YOU, Type::State, &[1]);
    assert_eq!(bench.machine.mode(), Mode::Update);
    let want = ["waiting for updates from leader node2 since 5 s"];
    assert_eq!(logs(&bench.tick(5_000)), want);

    let mut bench = Bench::syncing();
    bench.give(Event::Confchg {
        members: &[ME, YOU],
        joined: &[],
    });
    let want = ["waiting for sync request from 1/10 since 6 s"];
    assert_eq!(logs(&bench.tick(6_000)), want);

    // A leader is kept waiting by those who are behind, if somebody wants to write.
    let mut bench = Bench::alone();
    bench.machine.app_mut().items.push(b"x".to_vec());
    bench.start_sync();
    bench.state(YOU, Type::State, &[0]);
    assert_eq!(bench.machine.mode(), Mode::Synced);
    assert!(logs(&bench.tick(5_000)).is_empty());
    bench.submit(1, "a");
    let want = ["waiting for end of the synchronisation of node2 since 5 s"];
    assert_eq!(logs(&bench.tick(0)), want);
}

#[test]
fn results_wait_until_all_members_are_synchronised() {
    let mut bench = Bench::alone();
    let sent = sends(&bench.submit(1, "a"));
    bench.give(Event::Confchg {
        members: &[ME, YOU],
        joined: &[YOU],
    });
    bench.deliver(ME, &sent[0]);
    bench.state(ME, Type::SyncStart, b"");
    bench.machine.app_mut().items.push(b"more".to_vec());
    bench.state(ME, Type::State, &[1]);
    // Applied here at once, but the other one does not have it yet.
    bench.state(YOU, Type::State, &[0]);
    assert!(bench.give(Event::Idle).is_empty());
    assert_eq!(bench.machine.app().items.len(), 2);
    bench.state(ME, Type::UpdateComplete, b"");
    assert_eq!(released(&bench.round()), [1]);
}

#[test]
fn results_are_refused_if_the_others_may_go_on_without_them() {
    let mut bench = Bench::alone();
    let sent = sends(&bench.submit(1, "a"));
    bench.give(Event::Confchg {
        members: &[ME, YOU],
        joined: &[YOU],
    });
    bench.deliver(ME, &sent[0]);
    bench.state(ME, Type::SyncStart, b"");
    bench.machine.app_mut().items.push(b"more".to_vec());
    bench.state(ME, Type::State, &[1]);
    bench.state(YOU, Type::State, &[0]);
    bench.machine.app_mut().refuse = true;
    let out = bench.give(Event::Confchg {
        members: &[ME],
        joined: &[],
    });
    assert_eq!(replies(&out), [(1, Err(Busy))]);
}
