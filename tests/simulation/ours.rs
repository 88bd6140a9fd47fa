//! A process that runs our state machine, with its driver and its store thread.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use pmxcfs::dcdb::{self, Dcdb, Write};
use pmxcfs::dfsm::{Action, ActionOf, Busy, Config, Event, Machine, MemberId, Mode, Now};
use pmxcfs::memdb::{Error, Op, RootRow, Tree};

use super::disk::Disk;
use super::process::{Effect, Wish};

/// Something in the queue of the store thread.
enum Job {
    Write(Box<Write>),
    /// Local mode is forgotten.
    Shared,
    /// Answer once everything before is durable.
    Reply(u64),
}

/// Something for corosync.
pub enum Out {
    Message(Rc<[u8]>),
    Round(u64),
}

pub struct Ours {
    pub machine: Machine<Dcdb<Tree>>,
    outbox: VecDeque<Out>,
    jobs: VecDeque<Job>,
    /// The disk fails until then.
    broken_until: Option<Duration>,
    pub log: Vec<String>,
}

impl Ours {
    pub fn new(
        tree: Tree,
        quorate: bool,
        write_timeout: Duration,
        local_since: Option<RootRow>,
    ) -> Self {
        let config = Config {
            write_timeout,
            bulk_bytes: 200,
            ..Config::default()
        };
        let mut dcdb = Dcdb::new(tree);
        if let Some(base) = local_since {
            dcdb.changed_since(base);
        }
        let mut ours = Ours {
            machine: Machine::new(dcdb, config),
            outbox: VecDeque::new(),
            jobs: VecDeque::new(),
            broken_until: None,
            log: Vec::new(),
        };
        let mut effects = Vec::new();
        let event = Event::App(dcdb::Event::Quorate(quorate));
        ours.handle(Now::default(), event, &mut effects);
        ours
    }

    pub fn handle(&mut self, now: Now, event: Event<'_, Op, dcdb::Event>, out: &mut Vec<Effect>) {
        let mut actions = Vec::new();
        self.machine.handle(now, event, &mut actions);
        for action in actions {
            let done = matches!(action, Action::Release { .. });
            if done && !self.machine.app().quorate() {
                out.push(Effect::Broken("acknowledged without quorum"));
            }
            let changed = matches!(
                &action,
                Action::App(dcdb::Action::Store(write)) if matches!(**write, Write::Change(_))
            );
            if changed && !self.machine.app().quorate() {
                out.push(Effect::Broken("changed without quorum"));
            }
            self.act(action, out);
        }
    }

    fn act(&mut self, action: ActionOf<Dcdb<Tree>>, out: &mut Vec<Effect>) {
        match action {
            Action::Send(bytes) => self.outbox.push_back(Out::Message(bytes.into())),
            Action::Round(number) => self.outbox.push_back(Out::Round(number)),
            Action::Applied { .. } => {}
            Action::Release { ticket } => self.jobs.push_back(Job::Reply(ticket)),
            Action::Reply { ticket, result } => {
                let error = match result {
                    Ok(Ok(_)) => return out.push(Effect::Broken("success without a change")),
                    Ok(Err(error)) => Some(error),
                    Err(Busy) => None,
                };
                out.push(Effect::Reply(ticket, Err(error)));
            }
            Action::Leave => {
                self.outbox.clear();
                out.push(Effect::Wish(Wish::Leave));
            }
            Action::Restart => {
                self.outbox.clear();
                out.push(Effect::Wish(Wish::Join));
            }
            Action::Close => {
                self.outbox.clear();
                out.push(Effect::Wish(Wish::Close));
            }
            Action::Log { text, .. } => self.log.push(text),
            Action::App(dcdb::Action::Store(write)) => self.jobs.push_back(Job::Write(write)),
            Action::App(dcdb::Action::Shared) => self.jobs.push_back(Job::Shared),
            Action::App(dcdb::Action::KeepAside(aside)) => {
                let (gone, changed) = (aside.gone, aside.changed);
                self.log
                    .push(format!("kept aside: {gone} gone, {changed} changed"));
            }
            Action::App(dcdb::Action::Replaced | dcdb::Action::ExportCorosyncConf { .. }) => {}
        }
    }

    pub fn connected(&mut self, now: Now, own: MemberId, out: &mut Vec<Effect>) {
        self.handle(now, Event::Connected { own }, out);
    }

    pub fn sending(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// First message of the send queue; the leader refills it.
    pub fn send(&mut self, now: Now, out: &mut Vec<Effect>) -> Option<Out> {
        let bytes = self.outbox.pop_front();
        if self.outbox.len() < 2 && self.machine.has_bulk() {
            self.handle(now, Event::Room, out);
        }
        bytes
    }

    /// A client waits for the disk alone.
    pub fn answering(&self) -> bool {
        self.jobs.iter().any(|job| matches!(job, Job::Reply(_)))
    }

    pub fn storing(&self) -> bool {
        !self.jobs.is_empty() || self.broken_until.is_some()
    }

    /// The disk fails from now on: nothing can be written until `until`. Whoever waits is told so, and
    /// what he asked for is written later.
    pub fn break_disk(&mut self, now: Now, until: Duration, out: &mut Vec<Effect>) {
        self.broken_until = Some(until);
        self.handle(now, Event::App(dcdb::Event::Writable(false)), out);
        self.send_away(out);
    }

    fn send_away(&mut self, out: &mut Vec<Effect>) {
        self.jobs.retain(|job| {
            if let Job::Reply(ticket) = job {
                out.push(Effect::Reply(*ticket, Err(Some(Error::Io))));
            }
            matches!(job, Job::Write(_) | Job::Shared)
        });
    }

    pub fn disk_is_broken(&self) -> bool {
        self.broken_until.is_some()
    }

    /// One transaction of at most `limit` jobs.
    pub fn store(&mut self, now: Now, disk: &mut Disk, limit: usize, out: &mut Vec<Effect>) {
        if self.broken_until.is_some_and(|until| now.mono < until) {
            return self.send_away(out);
        }
        for job in self.jobs.drain(..limit.min(self.jobs.len())) {
            match job {
                Job::Reply(ticket) => out.push(Effect::Reply(ticket, Ok(()))),
                Job::Write(write) => disk.write(&write),
                Job::Shared => disk.base = None,
            }
        }
        if self.jobs.is_empty() && self.broken_until.take().is_some() {
            self.handle(now, Event::App(dcdb::Event::Writable(true)), out);
        }
    }

    pub fn tree(&self) -> &Tree {
        self.machine.app().host()
    }

    pub fn synced(&self) -> bool {
        self.machine.mode() == Mode::Synced
    }

    pub fn broken(&self) -> bool {
        self.machine.mode().is_permanent()
    }
}

/// What a wait may take beyond the write timeout: a tick, and a slow store.
pub const WAIT_SLACK: Duration = Duration::from_secs(1);
