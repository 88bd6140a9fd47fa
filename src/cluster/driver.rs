//! The thread that receives everything and runs the machines. It never waits for anything but the
//! next event.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::connector::Job;
use super::database::{Database, Host};
use super::group::{Group, Request, Surroundings};
use super::inbox::{Inbox, wait};
use super::logs::log;
use super::rounds::Rounds;
use super::{Command, GroupName, Overview};
use crate::clock::monotonic;
use crate::corosync::quorum::Quorum;
use crate::dcdb::{self, Dcdb};
use crate::dfsm::{Application, Busy, Event, Level, Now, Ticket};
use crate::kvstore::{self, Kvstore};
use crate::replica::Announcer;
use crate::replica::Clock;
use crate::status::Status;

/// What the machines are told of the passing time.
const TICK: Duration = Duration::from_millis(250);
/// Between two attempts to send while corosync has no room.
const SEND_RETRY: Duration = Duration::from_millis(1);
/// Bytes of the status that may wait for a corosync that takes nothing: beyond that round-robin data
/// are not sent, and beyond four times that nothing is. The next synchronisation brings the values.
const STATUS_QUEUE: usize = 4 << 20;
/// The end of the groups at a stop.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// What stands around the node status.
pub(super) struct NodeStatus;

impl Surroundings<Kvstore> for NodeStatus {
    fn act(&mut self, action: kvstore::Action) {
        match action {}
    }

    /// Nobody waits for the result of a status message.
    fn applied(&mut self, _ticket: Ticket, _reply: ()) {}
    fn release(&mut self, _ticket: Ticket) {}
    fn reply(&mut self, _ticket: Ticket, _result: Result<(), Busy>) {}
}

/// State of the thread.
pub(super) struct Core {
    pub inbox: Arc<Inbox<Command>>,
    pub jobs: Arc<Inbox<Job>>,
    pub dcdb: Group<Dcdb<Host>, Database>,
    pub kvstore: Group<Kvstore, NodeStatus>,
    pub rounds: Rounds,
    /// A round that is back, while there may be something before it.
    pub round_seen: Option<u64>,
    pub quorum: Option<Quorum>,
    pub status: Arc<Status>,
    pub announcer: Arc<Announcer>,
    pub clock: Clock,
    pub stop_at: Option<Duration>,
    /// What dcdb was told of the disk.
    pub writable: bool,
    /// For whoever wants to know.
    pub overview: Arc<Mutex<Overview>>,
}

/// What a group hands to the connector.
pub(super) fn requests(jobs: Arc<Inbox<Job>>, group: GroupName) -> Box<dyn FnMut(Request) + Send> {
    Box::new(move |request| {
        let job = match request {
            Request::Open(generation) => Job::Open { group, generation },
            Request::Leave(generation, channel) => Job::Leave {
                group,
                generation,
                channel,
            },
            Request::Discard(channel) => Job::Discard(Box::new(channel)),
        };
        // The connector outlives the core.
        drop(jobs.push(job));
    })
}

impl Core {
    /// Until both groups are closed after [`Command::Stop`]. Needs a stack of
    /// [`crate::corosync::STACK_SIZE`].
    pub fn run(mut self) {
        drop(self.jobs.push(Job::Quorum));
        let mut commands = Vec::new();
        let mut tick_at = Duration::ZERO;
        while !self.is_over() {
            let now = self.now();
            if now.mono >= tick_at {
                tick_at = now.mono + TICK;
                self.dcdb.handle(now, Event::Tick);
                self.dcdb.surroundings.expire();
                self.kvstore.handle(now, Event::Tick);
                self.connect_rounds(now);
            }
            self.watch_disk(now);
            self.send(now);
            // On the way to the others meanwhile: what was sent.
            self.dcdb.surroundings.write();
            self.show();
            // The rounds first: poll looks at them in this order, so whatever came before a round that
            // is back shows, too.
            let [rounds, commanded, quorum, dcdb, kvstore] = wait(
                [
                    self.rounds.fd(),
                    Some(self.inbox.as_fd()),
                    self.quorum.as_ref().map(Quorum::fd),
                    self.dcdb.fd(),
                    self.kvstore.fd(),
                ],
                self.patience(tick_at),
            );
            let now = self.now();
            if rounds {
                self.round_seen = self.rounds.dispatch(now.mono).or(self.round_seen);
            }
            // A message must not be taken for one without quorum that has come back already.
            if quorum || dcdb {
                self.dispatch_quorum(now);
            }
            self.deliver(now, dcdb);
            // Behind what was delivered: a message that is sent now will show that the others have it.
            if commanded {
                self.inbox.take(&mut commands);
                for command in commands.drain(..) {
                    self.obey(now, command);
                }
            }
            self.dcdb.handle(now, Event::Idle);
            if kvstore {
                self.kvstore.dispatch(now);
            }
        }
    }

    fn now(&self) -> Now {
        Now {
            wall: (self.clock)(),
            mono: monotonic(),
        }
    }

    fn is_over(&self) -> bool {
        self.stop_at.is_some_and(|at| {
            (self.dcdb.is_closed() && self.kvstore.is_closed()) || monotonic() >= at
        })
    }

    /// How long to wait for the next event.
    fn patience(&self, tick_at: Duration) -> Duration {
        let limit = tick_at.saturating_sub(monotonic());
        if self.dcdb.is_blocked() || self.kvstore.is_blocked() || self.rounds.is_blocked() {
            limit.min(SEND_RETRY)
        } else if self.dcdb.wants_room() || self.round_seen.is_some() {
            Duration::ZERO
        } else {
            limit
        }
    }

    fn watch_disk(&mut self, now: Now) {
        let writable = self.dcdb.surroundings.is_writable();
        if std::mem::replace(&mut self.writable, writable) != writable {
            let event = Event::App(dcdb::Event::Writable(writable));
            self.dcdb.handle(now, event);
        }
    }

    /// There is something to connect to while the other group is open.
    fn connect_rounds(&mut self, now: Now) {
        if self.dcdb.fd().is_some() && self.stop_at.is_none() {
            self.rounds.tick(now.mono);
        }
    }

    /// What corosync has for the database, if it has, and the round behind all that.
    fn deliver(&mut self, now: Now, ready: bool) {
        let mut all = !ready || self.dcdb.dispatch(now);
        if self.round_seen.is_some() && !all {
            // Once is not enough to know. What comes too fast has its next chance soon.
            all = self.dcdb.dispatch(now);
        }
        if all {
            if let Some(number) = self.round_seen.take() {
                self.dcdb.handle(now, Event::Round(number));
            }
        }
    }

    fn send(&mut self, now: Now) {
        if self.dcdb.wants_room() {
            self.dcdb.handle(now, Event::Room);
        }
        self.dcdb.flush(now);
        match self.dcdb.take_round() {
            Some(number) => self.rounds.ask(now.mono, number),
            None => self.rounds.flush(now.mono),
        }
        self.kvstore.flush(now);
    }

    fn show(&self) {
        let mut overview = self.overview.lock();
        let overview = &mut *overview;
        self.dcdb.show(&mut overview.dcdb);
        self.kvstore.show(&mut overview.kvstore);
    }

    fn obey(&mut self, now: Now, command: Command) {
        match command {
            Command::Submit(op, done) => {
                let ticket = Some(self.dcdb.surroundings.ticket(done));
                self.dcdb.handle(
                    now,
                    Event::Submit {
                        ticket,
                        request: op,
                    },
                );
            }
            Command::Kvstore(request) => {
                let limit = if request.is_fleeting() { 1 } else { 4 } * STATUS_QUEUE;
                if self.kvstore.queued() > limit {
                    return;
                }
                self.kvstore.handle(
                    now,
                    Event::Submit {
                        ticket: None,
                        request,
                    },
                );
            }
            Command::Opened {
                group: GroupName::Dcdb,
                generation,
                channel,
            } => {
                self.dcdb.opened(now, generation, channel);
                self.connect_rounds(now);
            }
            Command::Opened {
                group: GroupName::Kvstore,
                generation,
                channel,
            } => {
                self.kvstore.opened(now, generation, channel);
            }
            Command::Opened {
                group: GroupName::Rounds,
                generation,
                channel,
            } => {
                self.rounds.opened(now.mono, generation, channel);
            }
            Command::Left {
                group: GroupName::Dcdb,
                generation,
            } => self.dcdb.left(now, generation),
            Command::Left {
                group: GroupName::Kvstore,
                generation,
            } => {
                self.kvstore.left(now, generation);
            }
            // Nobody has to know when it is left: its handle is closed.
            Command::Left {
                group: GroupName::Rounds,
                ..
            } => {}
            Command::Quorum(quorum) => {
                self.quorum = Some(quorum);
                self.dispatch_quorum(now);
            }
            Command::Verify => self.dcdb.handle(now, Event::Verify),
            // Whoever asked may have given up.
            Command::Ping(answer) => drop(answer.try_send(())),
            Command::Stop => {
                self.stop_at = Some(now.mono + STOP_LIMIT);
                self.dcdb.handle(now, Event::Stop);
                self.kvstore.handle(now, Event::Stop);
            }
        }
    }

    fn dispatch_quorum(&mut self, now: Now) {
        let Some(quorum) = &mut self.quorum else {
            return;
        };
        match quorum.dispatch() {
            Ok(events) => {
                for event in events {
                    self.set_quorate(now, event.quorate);
                }
            }
            Err(err) => {
                log(
                    "quorum",
                    Level::Critical,
                    &format!("quorum_dispatch failed: {err}"),
                );
                if let Some(quorum) = self.quorum.take() {
                    drop(self.jobs.push(Job::Discard(Box::new(quorum))));
                }
                self.set_quorate(now, false);
                if self.stop_at.is_none() {
                    drop(self.jobs.push(Job::Quorum));
                }
            }
        }
    }

    fn set_quorate(&mut self, now: Now, quorate: bool) {
        if self.status.set_quorate(quorate) {
            let text = if quorate {
                "node has quorum"
            } else {
                "node lost quorum"
            };
            log(Kvstore::NAME, Level::Notice, text);
            self.announcer.quorum_changed();
        }
        self.dcdb
            .handle(now, Event::App(dcdb::Event::Quorate(quorate)));
    }
}

/// Nothing is replicated from now on: whoever waits is told so, and whoever comes is refused.
impl Drop for Core {
    fn drop(&mut self) {
        self.status.set_quorate(false);
        for command in self.inbox.close() {
            command.refuse();
        }
        self.dcdb.surroundings.refuse_all();
        self.rounds.close();
        // Handles that are left are closed by this thread, which nobody waits for any more.
        drop(self.jobs.push(Job::Stop));
    }
}
