//! Coming, going, errors.
#![forbid(unsafe_code)]

use super::*;

#[test]
fn connecting_is_tried_again_twice_a_second() {
    let mut bench = Bench::new();
    let mut attempts = Vec::new();
    while bench.time < Duration::from_secs(30) {
        if bench.tick(50).contains(&Action::Restart) {
            attempts.push(bench.time);
            bench.give(Event::Disconnected);
            assert_eq!(replies(&bench.submit(1, "x")), [(1, Err(Busy))]);
        }
    }
    let pauses: Vec<Duration> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.len() > 50);
    let half = Duration::from_millis(500);
    assert!(pauses.iter().all(|pause| *pause == half), "{pauses:?}");
}

#[test]
fn a_recoverable_error_leaves_and_comes_back_at_once_then_slower() {
    let mut bench = Bench::alone();
    bench.submit(1, "a");
    let out = bench.give(Event::App(Consequence::Leave));
    assert!(out.contains(&Action::Leave));
    assert_eq!(replies(&out), [(1, Err(Busy))]);
    // What comes while it leaves is not applied; what is asked for waits.
    assert!(bench.submit(2, "b").is_empty());
    let out = bench.give(Event::Confchg {
        members: &[],
        joined: &[],
    });
    assert!(out.contains(&Action::Restart));
    bench.give(Event::Connected { own: ME });
    let out = bench.give(Event::Confchg {
        members: &[ME],
        joined: &[ME],
    });
    assert_eq!(sends(&out).len(), 1);

    bench.give(Event::App(Consequence::Leave));
    let out = bench.give(Event::Confchg {
        members: &[],
        joined: &[],
    });
    assert!(!out.contains(&Action::Restart));
    assert!(bench.tick(1_000).contains(&Action::Restart));
}

#[test]
fn an_own_leave_that_never_comes_is_not_waited_for() {
    let mut bench = Bench::alone();
    bench.give(Event::App(Consequence::Leave));
    assert!(!bench.tick(1_900).contains(&Action::Restart));
    assert!(bench.tick(100).contains(&Action::Restart));
}

#[test]
fn who_may_not_join_stays_out_and_refuses_at_once() {
    let mut bench = Bench::alone();
    bench.submit(1, "a");
    let app = bench.machine.app_mut();
    (app.stays_out, app.refuse) = (true, true);
    let out = bench.give(Event::App(Consequence::Leave));
    assert_eq!(replies(&out), [(1, Err(Busy))]);
    assert!(out.contains(&Action::Leave));
    assert_eq!(replies(&bench.submit(2, "b")), [(2, Ok(999))]);
    bench.give(Event::Confchg {
        members: &[],
        joined: &[],
    });
    for _ in 0..100 {
        assert!(!bench.tick(500).contains(&Action::Restart));
    }
    bench.machine.app_mut().stays_out = false;
    assert!(bench.tick(500).contains(&Action::Restart));
    // It may have changed again until the answer comes.
    bench.machine.app_mut().stays_out = true;
    let out = bench.give(Event::Connected { own: ME });
    assert!(out.contains(&Action::Leave));
}

#[test]
fn a_newer_protocol_is_permanent_an_older_is_ignored() {
    let mut bench = Bench::alone();
    bench.deliver(ME, &wire::normal(0, 1, 0, 1, b"old"));
    assert_eq!(bench.machine.mode(), Mode::Synced);
    assert!(bench.machine.app().items.is_empty());
    bench.deliver(ME, &wire::normal(2, 1, 0, 1, b"new"));
    assert_eq!(bench.machine.mode(), Mode::VersionError);
    assert_eq!(replies(&bench.submit(1, "a")), [(1, Err(Busy))]);
}

#[test]
fn short_messages_make_it_leave() {
    for length in [0, 15, 16, 23] {
        let mut bench = Bench::alone();
        let mut bytes = wire::normal(1, 1, 0, 1, b"");
        bytes.truncate(length);
        bench.deliver(YOU, &bytes);
        assert_eq!(bench.machine.mode(), Mode::Leave, "{length} bytes");
    }
}

#[test]
fn stopping_is_bounded_and_final() {
    let mut bench = Bench::alone();
    bench.submit(1, "a");
    let out = bench.give(Event::Stop);
    assert!(out.contains(&Action::Leave));
    assert_eq!(replies(&out), [(1, Err(Busy))]);
    assert!(bench.tick(2_000).contains(&Action::Close));
    assert!(!bench.tick(60_000).contains(&Action::Restart));
    assert_eq!(replies(&bench.submit(2, "b")), [(2, Err(Busy))]);
}
