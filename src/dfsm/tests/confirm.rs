//! When a caller is told.
#![forbid(unsafe_code)]

use super::*;

impl Bench {
    /// Sends a request and gets it back; nothing is told yet.
    fn applied(&mut self, ticket: u64) -> Vec<Act> {
        let sent = sends(&self.submit(ticket, "a"));
        self.deliver(ME, &sent[0])
    }

    /// With one other member, synchronised; the first item is with everybody, two more may not be.
    fn in_the_middle() -> Self {
        let mut bench = Bench::syncing();
        bench.state(YOU, Type::State, &[0]);
        bench.applied(1);
        assert_eq!(released(&bench.round()), [1]);
        bench.applied(2);
        // Sent together: they show that the ones before are with everybody.
        let next = [3, 4].map(|ticket| sends(&bench.submit(ticket, "b")));
        assert_eq!(released(&bench.deliver(ME, &next[0][0])), [2]);
        bench.deliver(ME, &next[1][0]);
        assert_eq!(bench.items(), 4);
        bench
    }

    fn items(&self) -> usize {
        self.machine.app().items.len()
    }

    /// The quorum is lost or gained.
    fn quorum(&mut self, quorate: bool) -> Vec<Act> {
        self.machine.app_mut().refuse = !quorate;
        self.give(Event::App(Consequence::None))
    }

    fn left_with(&mut self, members: &[MemberId]) -> Vec<Act> {
        let joined = &[];
        self.give(Event::Confchg { members, joined })
    }
}

#[test]
fn a_caller_is_told_when_a_round_is_back() {
    let mut bench = Bench::alone();
    let out = bench.applied(7);
    let reply = Action::Applied {
        ticket: 7,
        reply: 1,
    };
    assert_eq!(out, [reply]);
    assert_eq!(bench.give(Event::Idle), [Action::Round(1)]);
    // Once only.
    assert!(bench.give(Event::Idle).is_empty());
    let out = bench.give(Event::Round(1));
    assert_eq!(out, [Action::Release { ticket: 7 }]);
    assert!(bench.give(Event::Idle).is_empty());
}

#[test]
fn an_own_message_that_was_sent_later_is_as_good() {
    let mut bench = Bench::alone();
    bench.applied(1);
    let next = sends(&bench.submit(2, "b"));
    // It is under way: no round is needed.
    assert!(bench.give(Event::Idle).is_empty());
    let out = bench.deliver(ME, &next[0]);
    assert_eq!(released(&out), [1]);
    // For the last one it is.
    assert_eq!(bench.give(Event::Idle), [Action::Round(1)]);
    assert_eq!(released(&bench.give(Event::Round(1))), [2]);
}

#[test]
fn what_was_sent_before_shows_nothing() {
    let mut bench = Bench::alone();
    let first = sends(&bench.submit(1, "a"));
    let second = sends(&bench.submit(2, "b"));
    // Both may have been put on the wire by the same token.
    assert!(released(&bench.deliver(ME, &first[0])).is_empty());
    assert_eq!(bench.give(Event::Idle), [Action::Round(1)]);
    assert!(released(&bench.deliver(ME, &second[0])).is_empty());
    assert!(bench.give(Event::Idle).is_empty());
    assert_eq!(released(&bench.give(Event::Round(1))), [1]);
    assert_eq!(bench.give(Event::Idle), [Action::Round(2)]);
    assert_eq!(released(&bench.give(Event::Round(2))), [2]);
}

#[test]
fn messages_of_others_show_nothing() {
    let mut bench = Bench::alone();
    bench.applied(1);
    let other = wire::normal(1, 1, 1000, 77, b"other");
    assert!(released(&bench.deliver(YOU, &other)).is_empty());
    assert_eq!(bench.give(Event::Idle), [Action::Round(1)]);
}

#[test]
fn another_membership_needs_another_round() {
    let mut bench = Bench::alone();
    bench.applied(1);
    bench.give(Event::Idle);
    let next = sends(&bench.submit(2, "b"));
    bench.give(Event::Confchg {
        members: &[ME],
        joined: &[],
    });
    assert!(bench.give(Event::Round(1)).is_empty());
    assert_eq!(bench.give(Event::Idle), [Action::Round(2)]);
    // Sent in the old one.
    assert!(released(&bench.deliver(ME, &next[0])).is_empty());
    assert_eq!(released(&bench.give(Event::Round(2))), [1]);
    assert_eq!(bench.give(Event::Idle), [Action::Round(3)]);
    assert_eq!(released(&bench.give(Event::Round(3))), [2]);
}

#[test]
fn without_quorum_nobody_is_told_that_it_worked() {
    let mut bench = Bench::alone();
    bench.applied(1);
    bench.give(Event::Idle);
    bench.machine.app_mut().refuse = true;
    let out = bench.give(Event::Round(1));
    assert_eq!(replies(&out), [(1, Err(Busy))]);
    assert!(released(&out).is_empty());
    // What comes afterwards begins anew.
    bench.machine.app_mut().refuse = false;
    bench.applied(2);
    assert_eq!(bench.give(Event::Idle), [Action::Round(2)]);
    assert_eq!(released(&bench.give(Event::Round(2))), [2]);
}

#[test]
fn a_message_that_does_not_come_back_is_replaced_by_a_round() {
    let mut bench = Bench::alone();
    bench.applied(1);
    bench.submit(2, "dropped on the way");
    assert!(bench.give(Event::Idle).is_empty());
    assert_eq!(bench.tick(250), [Action::Round(1)]);
    assert!(bench.tick(250).is_empty());
    assert_eq!(released(&bench.give(Event::Round(1))), [1]);
}

#[test]
fn a_caller_waits_for_a_round_as_long_as_for_anything() {
    let mut bench = Bench::alone();
    bench.applied(1);
    bench.give(Event::Idle);
    assert!(bench.tick(29_999).is_empty());
    assert_eq!(replies(&bench.tick(1)), [(1, Err(Busy))]);
    assert!(bench.give(Event::Round(1)).is_empty());
}

#[test]
fn no_round_is_asked_for_while_a_member_is_behind() {
    let mut bench = Bench::alone();
    bench.applied(1);
    bench.start_sync();
    assert!(bench.give(Event::Idle).is_empty());
    bench.state(YOU, Type::State, &[0]);
    assert!(bench.give(Event::Idle).is_empty());
    bench.state(ME, Type::UpdateComplete, b"");
    assert_eq!(bench.give(Event::Idle), [Action::Round(1)]);
}

#[test]
fn what_changed_nothing_is_told_at_once() {
    let mut bench = Bench::alone();
    let sent = sends(&bench.submit(1, "a"));
    bench.machine.app_mut().verdict = Some(Verdict::Applied(NOTHING));
    let out = bench.deliver(ME, &sent[0]);
    assert_eq!(replies(&out), [(1, Ok(NOTHING))]);
    assert!(bench.give(Event::Idle).is_empty());
}

#[test]
fn a_node_that_has_lost_the_others_takes_back_what_nobody_was_told_of() {
    let mut bench = Bench::in_the_middle();
    let refused = [(3, Err(Busy)), (4, Err(Busy))];
    assert_eq!(replies(&bench.quorum(false)), refused);
    // Whether the other one has it is not known yet.
    assert_eq!(bench.items(), 4);
    assert!(replies(&bench.left_with(&[ME])).is_empty());
    assert_eq!(bench.items(), 2);
    // The other way round.
    let mut bench = Bench::in_the_middle();
    bench.left_with(&[ME]);
    assert_eq!(bench.items(), 4);
    assert_eq!(replies(&bench.quorum(false)), refused);
    assert_eq!(bench.items(), 2);
    // Corosync itself is gone.
    let mut bench = Bench::in_the_middle();
    assert_eq!(replies(&bench.give(Event::Disconnected)), refused);
    assert_eq!(bench.items(), 2);
}

#[test]
fn what_is_with_the_majority_is_not_taken_back() {
    let mut bench = Bench::in_the_middle();
    // Alone, but nobody else can go on.
    bench.left_with(&[ME]);
    assert_eq!(released(&bench.round()), [3, 4]);
    bench.quorum(false);
    assert_eq!(bench.items(), 4);
}

/// The quorum comes back before anybody is missed: a round shows who has it, nothing else does.
#[test]
fn a_quorum_that_comes_back_confirms_nothing() {
    let mut bench = Bench::in_the_middle();
    bench.quorum(false);
    bench.quorum(true);
    bench.quorum(false);
    bench.left_with(&[ME]);
    assert_eq!(bench.items(), 2);
    let mut bench = Bench::in_the_middle();
    bench.quorum(false);
    bench.quorum(true);
    bench.round();
    bench.quorum(false);
    bench.left_with(&[ME]);
    assert_eq!(bench.items(), 4);
}

/// Token and consensus may take longer than a caller waits.
#[test]
fn review_expired_then_cut_off() {
    let mut bench = Bench::in_the_middle();
    let out = bench.tick(30_001);
    assert_eq!(replies(&out), [(3, Err(Busy)), (4, Err(Busy))]);
    bench.quorum(false);
    bench.left_with(&[ME]);
    assert_eq!(bench.items(), 2, "nobody was told of the last two");
    // And if it was only slow, they are confirmed later.
    let mut bench = Bench::in_the_middle();
    let out = bench.tick(30_001);
    assert_eq!(out.last(), Some(&Action::Round(2)));
    assert!(released(&bench.give(Event::Round(2))).is_empty());
    bench.quorum(false);
    bench.left_with(&[ME]);
    assert_eq!(bench.items(), 4);
}

/// Its caller was refused before it came back at all; or nobody ever waited for it.
#[test]
fn what_nobody_waits_for_is_taken_back_too() {
    for expired in [true, false] {
        let mut bench = Bench::syncing();
        bench.state(YOU, Type::State, &[0]);
        let ticket = expired.then_some(1);
        let request = b"a".to_vec();
        let sent = sends(&bench.give(Event::Submit { ticket, request }));
        if expired {
            assert_eq!(replies(&bench.tick(30_001)), [(1, Err(Busy))]);
        }
        assert!(replies(&bench.deliver(ME, &sent[0])).is_empty());
        assert_eq!(bench.items(), 1);
        bench.quorum(false);
        bench.left_with(&[ME]);
        assert_eq!(bench.items(), 0, "expired: {expired}");
    }
}

/// Its last changes were not confirmed when the node left the group, or ended.
#[test]
fn whoever_leaves_or_ends_knows_what_nobody_was_told_of() {
    let mut bench = Bench::in_the_middle();
    let out = bench.give(Event::App(Consequence::Leave));
    assert_eq!(replies(&out), [(3, Err(Busy)), (4, Err(Busy))]);
    assert_eq!(bench.items(), 4);
    assert!(bench.left_with(&[YOU]).contains(&Action::Restart));
    bench.give(Event::Connected { own: ME });
    bench.quorum(false);
    bench.left_with(&[ME]);
    assert_eq!(bench.items(), 2);

    let mut bench = Bench::in_the_middle();
    let out = bench.give(Event::Stop);
    assert_eq!(replies(&out), [(3, Err(Busy)), (4, Err(Busy))]);
    assert_eq!(bench.items(), 2);
}

/// What the leader sent takes the place of everything.
#[test]
fn a_synchronisation_leaves_nothing_to_be_taken_back() {
    let mut bench = Bench::in_the_middle();
    bench.start_sync();
    bench.state(YOU, Type::State, &[9]);
    assert_eq!(bench.machine.mode(), Mode::Update);
    for _ in 0..9 {
        bench.state(YOU, Type::Update, b"theirs");
    }
    bench.state(YOU, Type::UpdateComplete, b"");
    assert!(bench.give(Event::Idle).is_empty());
    bench.quorum(false);
    bench.left_with(&[ME]);
    assert_eq!(bench.items(), 9);
}

#[test]
fn what_another_node_has_too_is_not_taken_back() {
    let mut bench = Bench::in_the_middle();
    bench.quorum(false);
    bench.left_with(&[ME, YOU]);
    assert_eq!(bench.items(), 4);
}

#[test]
fn what_reaches_nobody_else_is_dropped() {
    let mut bench = Bench::in_the_middle();
    let late = sends(&bench.submit(5, "late"));
    bench.quorum(false);
    bench.left_with(&[ME]);
    let out = bench.deliver(ME, &late[0]);
    assert_eq!(replies(&out), [(5, Err(Busy))]);
    assert_eq!(bench.items(), 2);
    // It stays where it is, ready for the others.
    assert_eq!(bench.machine.mode(), Mode::Synced);
    bench.start_sync();
}
