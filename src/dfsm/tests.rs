//! The state machine by itself, with the smallest application there is.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::wire::{self, Body, Message, Type};
use super::*;

/// A list of texts, replicated. The longest list leads.
#[derive(Default)]
struct List {
    items: Vec<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
    incoming: Vec<Vec<u8>>,
    refuse: bool,
    verdict: Option<Verdict<usize>>,
    commits: bool,
    stays_out: bool,
}

impl Application for List {
    const NAME: &'static str = "list";
    const PROTOCOL: u32 = 1;
    type Request = Vec<u8>;
    type Reply = usize;
    type Action = ();
    type Event = Consequence;

    fn admit(&self, _: &Vec<u8>) -> Result<(), usize> {
        if self.refuse { Err(999) } else { Ok(()) }
    }
    fn may_join(&self) -> bool {
        !self.stays_out
    }
    fn node_name(&self, nodeid: u32) -> Option<String> {
        (nodeid != 1).then(|| format!("node{nodeid}"))
    }
    fn may_acknowledge(&self) -> bool {
        !self.refuse
    }
    fn prepare(&mut self, request: Vec<u8>, _: &mut Ctx<()>) -> Result<Vec<Outgoing>, usize> {
        Ok(vec![Outgoing {
            subtype: 1,
            payload: request,
        }])
    }
    fn deliver(&mut self, delivery: Delivery<'_>, _: &mut Ctx<()>) -> Verdict<usize> {
        self.items.push(delivery.payload.to_vec());
        self.verdict
            .take()
            .unwrap_or(Verdict::Applied(self.items.len()))
    }
    fn confchg(&mut self, _: &[MemberId], _: &mut Ctx<()>) {}
    fn state(&mut self, _: &mut Ctx<()>) -> Option<Vec<u8>> {
        Some(vec![self.items.len() as u8])
    }
    fn process_states(
        &mut self,
        states: &[(MemberId, Box<[u8]>)],
        ctx: &mut Ctx<()>,
    ) -> Option<Plan> {
        let longest = states.iter().map(|(_, s)| s[0]).max()?;
        let leader = states.iter().find(|(_, s)| s[0] == longest)?.0;
        if leader == ctx.own {
            self.outgoing = self.items.clone();
        }
        let synced = states.iter().map(|(_, s)| s[0] == longest).collect();
        Some(Plan {
            leader: Some(leader),
            synced,
        })
    }
    fn next_update(&mut self) -> Option<Vec<u8>> {
        if self.outgoing.is_empty() {
            None
        } else {
            Some(self.outgoing.remove(0))
        }
    }
    fn process_update(&mut self, payload: &[u8], _: &mut Ctx<()>) -> bool {
        self.incoming.push(payload.to_vec());
        true
    }
    fn commit(&mut self, _: &mut Ctx<()>) -> bool {
        self.items = std::mem::take(&mut self.incoming);
        self.commits
    }
    fn forget_sync(&mut self) {
        self.outgoing.clear();
        self.incoming.clear();
    }
    fn synced(&mut self, _: &mut Ctx<()>) {}
    fn checksum(&mut self) -> Option<[u8; 32]> {
        Some([self.items.len() as u8; 32])
    }
    fn event(&mut self, event: Consequence, _: &mut Ctx<()>) -> Consequence {
        event
    }
}

type Act = Action<usize, ()>;

struct Bench {
    machine: Machine<List>,
    time: Duration,
}

const ME: MemberId = MemberId { nodeid: 1, pid: 10 };
const YOU: MemberId = MemberId { nodeid: 2, pid: 20 };

impl Bench {
    fn new() -> Self {
        let app = List {
            commits: true,
            ..List::default()
        };
        let config = Config {
            bulk_bytes: 60,
            ..Config::default()
        };
        Bench {
            machine: Machine::new(app, config),
            time: Duration::ZERO,
        }
    }

    fn give(&mut self, event: Event<'_, Vec<u8>, Consequence>) -> Vec<Act> {
        let now = Now {
            wall: 1000 + self.time.as_secs() as u32,
            mono: self.time,
        };
        let mut out = Vec::new();
        self.machine.handle(now, event, &mut out);
        out
    }

    fn after(&mut self, time: Duration, event: Event<'_, Vec<u8>, Consequence>) -> Vec<Act> {
        self.time += time;
        self.give(event)
    }

    fn tick(&mut self, millis: u64) -> Vec<Act> {
        self.after(Duration::from_millis(millis), Event::Tick)
    }

    fn deliver(&mut self, from: MemberId, bytes: &[u8]) -> Vec<Act> {
        self.give(Event::Deliver { from, bytes })
    }

    fn state(&mut self, from: MemberId, kind: Type, payload: &[u8]) -> Vec<Act> {
        let bytes = wire::state(1, kind, 1000, self.machine.epoch(), payload);
        self.deliver(from, &bytes)
    }

    fn submit(&mut self, ticket: u64, text: &str) -> Vec<Act> {
        self.give(Event::Submit {
            ticket: Some(ticket),
            request: text.into(),
        })
    }

    /// Connected and alone.
    fn alone() -> Self {
        let mut bench = Bench::new();
        assert!(bench.give(Event::Tick).contains(&Action::Restart));
        bench.give(Event::Connected { own: ME });
        bench.give(Event::Confchg {
            members: &[ME],
            joined: &[ME],
        });
        assert_eq!(bench.machine.mode(), Mode::Synced);
        bench
    }

    /// With one other member, before any state.
    fn syncing() -> Self {
        let mut bench = Bench::alone();
        bench.start_sync();
        bench
    }

    /// The other member joins; the own state is delivered.
    fn start_sync(&mut self) {
        let out = self.give(Event::Confchg {
            members: &[YOU, ME],
            joined: &[YOU],
        });
        let sent = sends(&out);
        assert_eq!(sent.len(), 1, "the lowest asks for states");
        let answer = self.deliver(ME, &sent[0]);
        assert_eq!(kinds(&answer), [Type::State]);
        self.deliver(ME, &sends(&answer)[0]);
    }
}

fn sends(actions: &[Act]) -> Vec<Vec<u8>> {
    let bytes = |action: &Act| match action {
        Action::Send(bytes) => Some(bytes.clone()),
        _ => None,
    };
    actions.iter().filter_map(bytes).collect()
}

fn kinds(actions: &[Act]) -> Vec<Type> {
    sends(actions)
        .iter()
        .map(|bytes| Message::parse(bytes).unwrap().base.kind)
        .collect()
}

fn replies(actions: &[Act]) -> Vec<(u64, Result<usize, Busy>)> {
    let reply = |action: &Act| match action {
        Action::Reply { ticket, result } => Some((*ticket, *result)),
        _ => None,
    };
    actions.iter().filter_map(reply).collect()
}

fn logs(actions: &[Act]) -> Vec<&str> {
    fn text(action: &Act) -> Option<&str> {
        match action {
            Action::Log { text, .. } => Some(text.as_str()),
            _ => None,
        }
    }
    actions.iter().filter_map(text).collect()
}

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
    assert_eq!(replies(&bench.deliver(ME, &sent[0])), [(7, Ok(1))]);
}

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
    assert_eq!(replies(&bench.deliver(ME, &sent[0])), [(2, Ok(1))]);
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
    assert!(replies(&bench.state(YOU, Type::State, &[0])).is_empty());
    assert_eq!(bench.machine.app().items.len(), 2);
    let out = bench.state(ME, Type::UpdateComplete, b"");
    assert_eq!(replies(&out), [(1, Ok(2))]);
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
