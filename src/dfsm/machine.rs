//! The state machine of one group: modes, connection, deadlines. Members, deliveries and requests
//! have files of their own.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::app::{Consequence, Effect};
use super::confirm::Confirm;
use super::link::Link;
use super::queue::{CountQueue, Fifo};
use super::requests::{Held, Pending};
use super::{
    Action, ActionOf, Application, Ctx, Epoch, Event, EventOf, Level, MemberId, Mode, Now, wire,
};

/// Members that are behind hold requests back no longer than this: their leader may be an old node
/// that never says they are done.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

/// As much as all files of the database are meant to hold.
const QUEUE_BYTES: usize = 128 << 20;

/// What can be set.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// A request without result by then is refused with [`Busy`] (`--write-timeout`).
    pub write_timeout: Duration,
    /// Time between two checksum rounds; `None`: only on [`Event::Verify`].
    pub verify_every: Option<Duration>,
    /// Messages of other members may wait for the end of a synchronisation up to so many bytes; then
    /// this node leaves the group. A member that never says what it has could fill the memory of all.
    pub queue_bytes: usize,
    /// Update bytes yielded at once (at least one message).
    pub bulk_bytes: usize,
    /// Keep local requests back while this node is not SYNCED, so that an old node never has to
    /// order them (cluster-protocol.md 7.3, second measure), and while another member is not: if
    /// this node died then, the others could not have what was acknowledged. Off only to replay
    /// what an old node did.
    pub hold_back: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            write_timeout: Duration::from_secs(30),
            verify_every: None,
            queue_bytes: QUEUE_BYTES,
            bulk_bytes: 256 << 10,
            hold_back: true,
        }
    }
}

/// A member and its part in the synchronisation.
#[derive(Debug)]
pub(super) struct Member {
    pub id: MemberId,
    pub state: Option<Box<[u8]>>,
    pub synced: bool,
}

/// The last checksum taken.
#[derive(Debug, Default)]
pub(super) struct Checksum {
    /// Number of the last round this node started.
    pub counter: u64,
    pub id: u64,
    /// `None`: nothing saved.
    pub epoch: Option<Epoch>,
    pub sum: [u8; 32],
}

/// Lines of one level about single messages of others: so many in so long.
const LINES: u32 = 20;
const LINES_EVERY: Duration = Duration::from_secs(60);

/// Counts them.
#[derive(Debug, Default)]
pub(super) struct Lines {
    until: Duration,
    written: u32,
    left_out: u64,
}

/// One group. See the [module documentation](super) for the border to its driver.
pub struct Machine<A: Application> {
    pub(super) app: A,
    pub(super) config: Config,
    pub(super) now: Now,
    pub(super) mode: Mode,
    pub(super) link: Link,
    pub(super) own: MemberId,
    pub(super) epoch_counter: u32,
    pub(super) epoch: Epoch,
    /// Sorted; empty while there is no membership.
    pub(super) members: Vec<Member>,
    pub(super) lowest: u32,
    /// Of the last synchronisation.
    pub(super) leader: Option<MemberId>,
    pub(super) msg_queue: CountQueue,
    pub(super) sync_queue: Fifo,
    /// Count of the last NORMAL message sent.
    pub(super) sent: u64,
    pub(super) pending: BTreeMap<u64, Pending>,
    /// Applied, but some member may still come to lack it.
    pub(super) confirm: Confirm,
    pub(super) held: VecDeque<Held<A::Request>>,
    pub(super) checksum: Checksum,
    /// Updates of the current epoch are still to be sent; so many were.
    pub(super) bulk: Option<usize>,
    pub(super) out: Vec<ActionOf<A>>,
    /// Connecting failed and has not worked since.
    pub(super) outage: bool,
    pub(super) stopping: bool,
    /// Attempts since the last calm.
    pub(super) attempts: u32,
    pub(super) synced_since: Option<Duration>,
    pub(super) waiting_since: Duration,
    pub(super) missing_at: Duration,
    pub(super) verify_at: Option<Duration>,
    /// By level.
    pub(super) lines: [Lines; 4],
}

impl<A: Application> Machine<A> {
    /// A machine without connection; the first [`Event::Tick`] asks for one.
    pub fn new(app: A, config: Config) -> Self {
        Machine {
            app,
            config,
            now: Now::default(),
            mode: Mode::Start,
            link: Link::Down {
                retry_at: Duration::ZERO,
            },
            own: MemberId::default(),
            epoch_counter: 0,
            epoch: Epoch::default(),
            members: Vec::new(),
            lowest: 0,
            leader: None,
            msg_queue: CountQueue::default(),
            sync_queue: Fifo::default(),
            sent: 0,
            pending: BTreeMap::new(),
            confirm: Confirm::default(),
            held: VecDeque::new(),
            checksum: Checksum::default(),
            bulk: None,
            out: Vec::new(),
            outage: false,
            stopping: false,
            attempts: 0,
            synced_since: None,
            waiting_since: Duration::ZERO,
            missing_at: Duration::ZERO,
            verify_at: None,
            lines: Default::default(),
        }
    }

    /// The replicated application.
    pub fn app(&self) -> &A {
        &self.app
    }

    /// The replicated application; for what needs no replication.
    pub fn app_mut(&mut self) -> &mut A {
        &mut self.app
    }

    /// What was set.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Current mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Members in order, each with its synced flag.
    pub fn members(&self) -> impl Iterator<Item = (MemberId, bool)> + '_ {
        self.members.iter().map(|m| (m.id, m.synced))
    }

    /// The current epoch: equal on two members of one synchronisation.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// May local requests be sent now?
    pub(super) fn sending(&self) -> bool {
        self.link == Link::Up && self.settled()
    }

    /// This node is synchronised, and so are all others (or they take too long).
    pub(super) fn settled(&self) -> bool {
        let late = || {
            self.synced_since
                .is_some_and(|since| self.now.mono >= since + SETTLE_LIMIT)
        };
        !self.config.hold_back
            || (self.mode == Mode::Synced && (self.members.iter().all(|m| m.synced) || late()))
    }

    /// True while the leader has updates left: give [`Event::Room`] when the send queue is short.
    pub fn has_bulk(&self) -> bool {
        self.bulk.is_some()
    }

    /// Takes one event; appends what is to be done to `out`.
    pub fn handle(&mut self, now: Now, event: EventOf<'_, A>, out: &mut Vec<ActionOf<A>>) {
        self.now = now;
        match event {
            Event::Connected { own } => self.connected(own),
            Event::Disconnected => self.disconnected(),
            Event::Confchg { members, joined } => self.confchg(members, joined),
            Event::Deliver { from, bytes } => self.deliver(from, bytes),
            Event::Submit { ticket, request } => self.submit(ticket, request),
            Event::Room => self.send_bulk(),
            Event::Tick => self.tick(),
            Event::Verify => self.start_verify(),
            Event::App(event) => self.app_event(event),
            Event::Round(number) => self.confirm.round(number),
            Event::Idle => self.ask_for_round(false),
            Event::Stop => self.stop(),
        }
        self.release();
        self.keep();
        self.send_held();
        out.append(&mut self.out);
    }

    // --- modes --------------------------------------------------------------------------------

    /// Changes the mode by the transition rule of cluster-protocol.md 7.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        if mode == self.mode || (mode.is_error() && self.mode > mode) {
            return;
        }
        // The error modes end only by a restart of the group, and then not the permanent ones.
        if self.mode.is_permanent() && !mode.is_error() {
            return;
        }
        self.mode = mode;
        let (level, text) = match mode {
            Mode::Start => (Level::Notice, "start cluster connection"),
            Mode::StartSync => (Level::Notice, "starting data syncronisation"),
            Mode::Synced => (Level::Notice, "all data is up to date"),
            Mode::Update => (Level::Notice, "waiting for updates from leader"),
            Mode::Leave => (Level::Critical, "leaving CPG group"),
            Mode::VersionError => (
                Level::Critical,
                "detected newer protocol - please update this node",
            ),
        };
        self.log(level, text);
        match mode {
            Mode::Synced => {
                self.synced_since = Some(self.now.mono);
                if let Some(every) = self.config.verify_every {
                    self.verify_at.get_or_insert(self.now.mono + every);
                }
                self.with_app(|app, ctx| app.synced(ctx));
            }
            Mode::StartSync => self.wait_from_now(),
            Mode::Update => {
                // The leader goes on without it.
                self.refuse_applied();
                self.wait_from_now();
            }
            Mode::Start => {}
            Mode::Leave | Mode::VersionError => self.entered_error(),
        }
    }

    fn entered_error(&mut self) {
        self.refuse_pending();
        self.forget_sync();
        // Nothing is delivered any more, and the way back may take a while.
        self.sync_queue.take();
        self.msg_queue.take();
        let permanent = self.mode.is_permanent();
        if permanent {
            self.refuse_held();
        }
        match self.link {
            Link::Up => self.start_leaving(),
            Link::Down { .. } | Link::Connecting if permanent => {
                self.link = Link::Closed;
                self.out.push(Action::Close);
            }
            _ => {}
        }
    }

    /// Recoverable error: out of the group, then back.
    pub(super) fn leave(&mut self) {
        self.set_mode(Mode::Leave);
        self.forget_sync();
    }

    /// Frees what belongs to the current synchronisation.
    pub(super) fn forget_sync(&mut self) {
        self.bulk = None;
        self.app.forget_sync();
        for member in &mut self.members {
            member.state = None;
        }
    }

    // --- application --------------------------------------------------------------------------

    pub(super) fn log(&mut self, level: Level, text: impl Into<String>) {
        self.out.push(Action::Log {
            level,
            text: text.into(),
        });
    }

    /// Writes a line that every message of another member could cost.
    pub(super) fn log_message(&mut self, level: Level, text: impl FnOnce() -> String) {
        let mono = self.now.mono;
        let lines = &mut self.lines[level as usize];
        let mut left_out = 0;
        if mono >= lines.until {
            left_out = std::mem::take(lines).left_out;
            lines.until = mono + LINES_EVERY;
        }
        if lines.written == LINES {
            lines.left_out += 1;
            return;
        }
        lines.written += 1;
        if left_out > 0 {
            self.log(level, format!("{left_out} lines left out"));
        }
        self.log(level, text());
    }

    /// Calls the application and carries out what it asked for, in order.
    pub(super) fn with_app<T>(&mut self, call: impl FnOnce(&mut A, &mut Ctx<A::Action>) -> T) -> T {
        let lowest = !self.members.is_empty() && self.own.nodeid == self.lowest;
        let mut ctx = Ctx {
            uptime: self.now.mono.as_secs() as u32,
            ..Ctx::new(self.now.wall, self.own, lowest)
        };
        let result = call(&mut self.app, &mut ctx);
        for effect in ctx.effects {
            match effect {
                Effect::Send(outgoing) => {
                    // Without a joined handle it could reach nobody.
                    if self.link == Link::Up {
                        self.send_normal(&outgoing);
                    }
                }
                Effect::Log(level, text) => self.log(level, text),
                Effect::Action(action) => self.out.push(Action::App(action)),
            }
        }
        result
    }

    fn app_event(&mut self, event: A::Event) {
        let consequence = self.with_app(|app, ctx| app.event(event, ctx));
        self.take_back_alone();
        self.recheck_held();
        match consequence {
            Consequence::Leave if self.link == Link::Up => self.leave(),
            Consequence::Leave | Consequence::None => {}
        }
    }

    // --- state messages -----------------------------------------------------------------------

    pub(super) fn send_state(&mut self, kind: wire::Type, payload: &[u8]) {
        let bytes = wire::state(A::PROTOCOL, kind, self.now.wall, self.epoch, payload);
        self.out.push(Action::Send(bytes));
    }

    /// Sends updates until about `bulk_bytes` are out, and UPDATE_COMPLETE behind the last.
    pub(super) fn send_bulk(&mut self) {
        let mut bytes = 0;
        while let Some(sent) = self.bulk.filter(|_| bytes < self.config.bulk_bytes) {
            match self.app.next_update() {
                Some(payload) => {
                    bytes += wire::STATE_LEN + payload.len();
                    self.bulk = Some(sent + 1);
                    self.send_state(wire::Type::Update, &payload);
                }
                None => {
                    self.bulk = None;
                    self.log(Level::Notice, format!("sent all ({sent}) updates"));
                    self.send_state(wire::Type::UpdateComplete, b"");
                }
            }
        }
    }

    pub(super) fn start_verify(&mut self) {
        if self.mode != Mode::Synced || self.own.nodeid != self.lowest {
            return;
        }
        // A verify message of this epoch would make an old node in UPDATE leave.
        let busy = self.bulk.is_some() || self.members.iter().any(|m| !m.synced);
        if busy || self.checksum.counter != self.checksum.id {
            self.log(Level::Notice, "delay verify request");
            return;
        }
        self.checksum.counter += 1;
        let id = self.checksum.counter.to_le_bytes();
        self.send_state(wire::Type::VerifyRequest, &id);
    }
}

/// `1/123, 2/456`
pub(super) fn list(members: &[MemberId]) -> String {
    members
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
