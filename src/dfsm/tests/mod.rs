//! The state machine by itself, with the smallest application there is.
#![forbid(unsafe_code)]

mod confirm;
mod hostile;
mod link;
mod sync;
mod waits;

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
    /// So many of `items` stay for good.
    kept: usize,
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
    fn has_changed(reply: &usize) -> bool {
        *reply != NOTHING
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
    fn changes(&self) -> u64 {
        self.items.len() as u64
    }
    fn keep(&mut self, changes: u64) {
        self.kept = self.items.len().min(changes as usize);
    }
    fn take_back(&mut self, _: &mut Ctx<()>) {
        self.items.truncate(self.kept);
    }
    fn event(&mut self, event: Consequence, _: &mut Ctx<()>) -> Consequence {
        event
    }
}

/// The result of a request that has changed nothing.
const NOTHING: usize = 0;

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

    /// The round the machine asks for now comes back.
    fn round(&mut self) -> Vec<Act> {
        match self.give(Event::Idle)[..] {
            [Action::Round(number)] => self.give(Event::Round(number)),
            ref other => panic!("no round: {other:?}"),
        }
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

fn released(actions: &[Act]) -> Vec<u64> {
    let ticket = |action: &Act| match action {
        Action::Release { ticket } => Some(*ticket),
        _ => None,
    };
    actions.iter().filter_map(ticket).collect()
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
