//! One group: its machine, its connection, its send queue.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::GroupView;
use super::logs::log;
use crate::corosync::Error;
use crate::corosync::cpg::{Cpg, Event as CpgEvent, Member};
use crate::dfsm::wire::{Base, Type};
use crate::dfsm::{
    Action, ActionOf, Application, Busy, Event, EventOf, Level, Machine, MemberId, Now, Ticket,
};

/// Own messages that corosync has been given and not yet delivered. More would gain nothing, and
/// the library rings a bell for each in a socket that holds some 280 of them: if corosync is stopped
/// then, it tries the next one for ever.
const WINDOW: usize = 128;
/// Below this many bytes in the send queue the leader of a synchronisation yields more.
const SHORT_QUEUE: usize = 1 << 20;
/// The C daemon tries ten times a second and says so every tenth time.
const RETRY: Duration = Duration::from_millis(100);
const RETRIES_PER_LINE: u128 = 10;

/// A membership, as far as a group needs one. Nothing here waits.
pub(super) trait Channel: Send {
    fn fd(&self) -> BorrowedFd<'_>;
    fn nodeid(&self) -> u32;
    fn send(&mut self, message: &[u8]) -> Result<(), Error>;
    fn dispatch(&mut self) -> Result<Vec<CpgEvent>, Error>;
    /// Leaves; returns when that is over. May wait: not for the core.
    fn leave(&mut self);
}

/// What carries out the actions of an application.
pub(super) trait Surroundings<A: Application> {
    fn act(&mut self, action: A::Action);
    /// What a request has changed; its caller is told once it is released.
    fn applied(&mut self, ticket: Ticket, reply: A::Reply);
    /// The caller may be told.
    fn release(&mut self, ticket: Ticket);
    /// The answer, at once.
    fn reply(&mut self, ticket: Ticket, result: Result<A::Reply, Busy>);
    /// All actions of one event were given.
    fn finish(&mut self) {}
}

/// What only another thread can do, because it may wait.
pub(super) enum Request {
    /// Connect and join; answer with the generation.
    Open(u64),
    /// Leave and close; answer with the generation.
    Leave(u64, Box<dyn Channel>),
    /// Close.
    Discard(Box<dyn Channel>),
}

enum Link {
    None,
    Opening,
    Open(Box<dyn Channel>),
    Leaving,
    Closed,
}

struct Outgoing {
    bytes: Vec<u8>,
    /// Nobody waits for it any more then; it must not come into effect hours later. `None`: part of
    /// a synchronisation.
    until: Option<Duration>,
}

/// Messages in the order in which they have to go out.
#[derive(Default)]
struct SendQueue {
    messages: VecDeque<Outgoing>,
    bytes: usize,
    /// Since when the first one is tried, and how often that was said.
    trying: Option<(Duration, u128)>,
}

impl SendQueue {
    fn push(&mut self, bytes: Vec<u8>, until: Option<Duration>) {
        self.bytes += bytes.len();
        self.messages.push_back(Outgoing { bytes, until });
    }

    fn pop(&mut self) {
        if let Some(message) = self.messages.pop_front() {
            self.bytes -= message.bytes.len();
        }
    }

    /// Drops what comes too late. Returns the number of messages.
    fn expire(&mut self, mono: Duration) -> usize {
        let late = |message: &Outgoing| message.until.is_some_and(|until| mono >= until);
        let mut dropped = 0;
        while self.messages.front().is_some_and(late) {
            self.pop();
            dropped += 1;
            // The next one begins anew.
            self.trying = None;
        }
        dropped
    }

    fn clear(&mut self) {
        *self = SendQueue::default();
    }

    /// The first message went out. Returns how many tries of the C daemon that took.
    fn sent(&mut self, mono: Duration) -> u128 {
        self.pop();
        self.trying
            .take()
            .map_or(0, |(since, _)| tries(since, mono))
    }

    /// The first message could not go out. Returns the number of tries if that is to be said.
    fn refused(&mut self, mono: Duration) -> Option<u128> {
        let (since, said) = self.trying.get_or_insert((mono, 0));
        let tries = tries(*since, mono);
        let due = tries >= *said + RETRIES_PER_LINE;
        due.then(|| {
            *said = tries;
            tries
        })
    }
}

fn tries(since: Duration, mono: Duration) -> u128 {
    mono.saturating_sub(since).as_millis() / RETRY.as_millis()
}

/// A group as the core drives it.
pub(super) struct Group<A: Application, S> {
    machine: Machine<A>,
    pub surroundings: S,
    link: Link,
    /// Counts connections: answers about an earlier one are void.
    generation: u64,
    queue: SendQueue,
    /// Own messages sent and not delivered.
    in_flight: usize,
    actions: Vec<ActionOf<A>>,
    pid: u32,
    /// A round the machine wants.
    round: Option<u64>,
    requests: Box<dyn FnMut(Request) + Send>,
}

impl<A: Application, S: Surroundings<A>> Group<A, S> {
    /// `requests` takes what other threads have to do; it must not wait.
    pub fn new(
        machine: Machine<A>,
        surroundings: S,
        pid: u32,
        requests: Box<dyn FnMut(Request) + Send>,
    ) -> Self {
        Group {
            machine,
            surroundings,
            link: Link::None,
            generation: 0,
            queue: SendQueue::default(),
            in_flight: 0,
            actions: Vec::new(),
            pid,
            round: None,
            requests,
        }
    }

    /// Brings `view` up to date.
    pub fn show(&self, view: &mut GroupView) {
        view.mode = self.machine.mode();
        if !self.machine.members().eq(view.members.iter().copied()) {
            view.members = self.machine.members().collect();
        }
    }

    /// To be polled.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.link {
            Link::Open(channel) => Some(channel.fd()),
            _ => None,
        }
    }

    /// Nothing more will happen.
    pub fn is_closed(&self) -> bool {
        matches!(self.link, Link::Closed)
    }

    /// A message waits because corosync has no room for it.
    pub fn is_blocked(&self) -> bool {
        matches!(self.link, Link::Open(_)) && self.queue.trying.is_some()
    }

    /// The round the machine has asked for since the last call.
    pub fn take_round(&mut self) -> Option<u64> {
        self.round.take()
    }

    /// Bytes that wait for corosync.
    pub fn queued(&self) -> usize {
        self.queue.bytes
    }

    /// There is something to send at once.
    pub fn wants_room(&self) -> bool {
        self.machine.has_bulk() && self.queue.bytes < SHORT_QUEUE
    }

    /// Hands one event to the machine and carries out what it asks for.
    pub fn handle(&mut self, now: Now, event: EventOf<'_, A>) {
        let mut actions = std::mem::take(&mut self.actions);
        self.machine.handle(now, event, &mut actions);
        for action in actions.drain(..) {
            match action {
                Action::Send(message) => {
                    let normal = Base::parse(&message).is_ok_and(|base| base.kind == Type::Normal);
                    let until = normal.then(|| now.mono + self.machine.config().write_timeout);
                    self.queue.push(message, until);
                }
                Action::Applied { ticket, reply } => self.surroundings.applied(ticket, reply),
                Action::Release { ticket } => self.surroundings.release(ticket),
                Action::Round(number) => self.round = Some(number),
                Action::Reply { ticket, result } => self.surroundings.reply(ticket, result),
                Action::App(action) => self.surroundings.act(action),
                Action::Log { level, text } => log(A::NAME, level, &text),
                Action::Leave => self.leave(),
                Action::Restart => self.restart(),
                Action::Close => {
                    self.close_link();
                    self.link = Link::Closed;
                }
            }
        }
        self.actions = actions;
        self.surroundings.finish();
    }

    /// Sends what waits, as long as corosync takes it.
    pub fn flush(&mut self, now: Now) {
        let late = self.queue.expire(now.mono);
        if late > 0 {
            let text = format!("{late} messages could not be sent in time - dropped");
            log(A::NAME, Level::Warning, &text);
        }
        while let (Link::Open(channel), Some(message)) =
            (&mut self.link, self.queue.messages.front())
        {
            if self.in_flight >= WINDOW {
                return;
            }
            match channel.send(&message.bytes) {
                Ok(()) => {
                    self.in_flight += 1;
                    let tries = self.queue.sent(now.mono);
                    if tries > 0 {
                        let text = format!("cpg_send_message retried {tries} times");
                        log(A::NAME, Level::Notice, &text);
                    }
                }
                // A long message of which parts went out: nobody has put it together.
                Err(Error::TryAgain | Error::Interrupt) => {
                    if let Some(tries) = self.queue.refused(now.mono) {
                        let text = format!("cpg_send_message retry {tries}");
                        log(A::NAME, Level::Notice, &text);
                    }
                    return;
                }
                Err(err) => {
                    let text = format!("cpg_send_message failed: {err}");
                    log(A::NAME, Level::Critical, &text);
                    return self.lost(now);
                }
            }
        }
    }

    /// Takes in what corosync has for us. True if that was all.
    pub fn dispatch(&mut self, now: Now) -> bool {
        let Link::Open(channel) = &mut self.link else {
            return true;
        };
        let events = match channel.dispatch() {
            Ok(events) => events,
            Err(err) => {
                log(
                    A::NAME,
                    Level::Critical,
                    &format!("cpg_dispatch failed: {err}"),
                );
                self.lost(now);
                return true;
            }
        };
        let generation = self.generation;
        let own = Member {
            nodeid: channel.nodeid(),
            pid: self.pid,
        };
        let all = events.is_empty();
        for event in events {
            // The machine may have given this membership up.
            if !matches!(self.link, Link::Open(_)) || self.generation != generation {
                return true;
            }
            match event {
                CpgEvent::Deliver { sender, message } => {
                    if sender == own {
                        self.in_flight = self.in_flight.saturating_sub(1);
                    }
                    self.handle(
                        now,
                        Event::Deliver {
                            from: id(&sender),
                            bytes: &message,
                        },
                    );
                }
                CpgEvent::Confchg {
                    members, joined, ..
                } => {
                    let (members, joined) = (ids(&members), ids(&joined));
                    self.handle(
                        now,
                        Event::Confchg {
                            members: &members,
                            joined: &joined,
                        },
                    );
                }
            }
        }
        all
    }

    /// The answer to [`Request::Open`].
    pub fn opened(&mut self, now: Now, generation: u64, channel: Option<Box<dyn Channel>>) {
        if generation != self.generation || !matches!(self.link, Link::Opening) {
            if let Some(channel) = channel {
                (self.requests)(Request::Discard(channel));
            }
            return;
        }
        match channel {
            Some(channel) => {
                let own = MemberId {
                    nodeid: channel.nodeid(),
                    pid: self.pid,
                };
                self.link = Link::Open(channel);
                self.in_flight = 0;
                self.handle(now, Event::Connected { own });
            }
            None => {
                self.link = Link::None;
                self.handle(now, Event::Disconnected);
            }
        }
    }

    /// The answer to [`Request::Leave`]: the group goes on without this process.
    pub fn left(&mut self, now: Now, generation: u64) {
        if generation == self.generation && matches!(self.link, Link::Leaving) {
            self.link = Link::None;
            self.handle(
                now,
                Event::Confchg {
                    members: &[],
                    joined: &[],
                },
            );
        }
    }

    fn leave(&mut self) {
        self.queue.clear();
        match std::mem::replace(&mut self.link, Link::Leaving) {
            Link::Open(channel) => (self.requests)(Request::Leave(self.generation, channel)),
            // Nothing to leave: the machine takes it for done after a while.
            other => self.link = other,
        }
    }

    fn restart(&mut self) {
        self.close_link();
        self.generation += 1;
        self.link = Link::Opening;
        (self.requests)(Request::Open(self.generation));
    }

    fn lost(&mut self, now: Now) {
        self.close_link();
        self.handle(now, Event::Disconnected);
    }

    fn close_link(&mut self) {
        self.queue.clear();
        if let Link::Open(channel) = std::mem::replace(&mut self.link, Link::None) {
            (self.requests)(Request::Discard(channel));
        }
    }
}

fn id(member: &Member) -> MemberId {
    MemberId {
        nodeid: member.nodeid,
        pid: member.pid,
    }
}

fn ids(members: &[Member]) -> Vec<MemberId> {
    members.iter().map(id).collect()
}

impl Channel for Cpg {
    fn fd(&self) -> BorrowedFd<'_> {
        Cpg::fd(self)
    }

    fn nodeid(&self) -> u32 {
        Cpg::nodeid(self)
    }

    fn send(&mut self, message: &[u8]) -> Result<(), Error> {
        Cpg::send(self, message)
    }

    fn dispatch(&mut self) -> Result<Vec<CpgEvent>, Error> {
        Cpg::dispatch(self)
    }

    fn leave(&mut self) {
        super::connector::leave(self);
    }
}

#[cfg(test)]
mod tests;
