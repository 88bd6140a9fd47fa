//! Ordered replication: every node of a group applies the same messages in the same order
//! (spec: `docs/protocol/cluster-protocol.md`).
//!
//! Pure: no I/O, no clock, no thread. A [`Machine`] takes an [`Event`] and the time, and appends
//! [`Action`]s. What stands behind a group (the tree, the node status) is an [`Application`].
//!
//! # The border: what a driver does
//!
//! One driver per group owns a CPG handle, a FIFO send queue and the machine. It
//!
//! * calls [`Machine::handle`] for every event, in the order corosync reports confchg and deliver
//!   callbacks of the group, and at least every 500 ms with [`Event::Tick`];
//! * carries out the actions of one call in order, before the next call;
//! * puts the bytes of [`Action::Send`] at the end of its send queue and keeps trying the first one
//!   while corosync says "try again" (also `CS_ERR_INTERRUPT`): nothing is ever dropped while the
//!   handle lives. Each message is one contiguous buffer;
//! * gives [`Event::Room`] whenever its send queue has become short (say, below 1 MiB) and
//!   [`Machine::has_bulk`] is true: the leader of a synchronisation then yields more updates;
//! * on [`Action::Leave`] empties the send queue and calls `cpg_leave`; the handle stays open until
//!   the machine says otherwise, because the own leave is still to be delivered as a confchg;
//! * on [`Action::Restart`] closes the handle if there is one, empties the send queue, opens a *new*
//!   handle (joining again on an old one fails with `CS_ERR_EXIST`), joins, and reports
//!   [`Event::Connected`] *before* the first confchg, or [`Event::Disconnected`] if any of that
//!   failed. The machine decides when to try again, with growing pauses;
//! * on [`Action::Close`] closes the handle for good: the group is in a permanent error;
//! * reports [`Event::Disconnected`] when dispatch or a send fails for good (library or handle
//!   error); later events of the old handle must not be handed in;
//! * answers the ticket of an [`Action::Applied`] when it is released and everything the application
//!   asked to store *earlier than the result* in the action stream is durable. Every other answer is
//!   an [`Action::Reply`] and goes out at once. A ticket gets exactly one answer;
//! * gives [`Event::Idle`] when it has handed in all that there was, and carries out
//!   [`Action::Round`].
//!
//! [`Machine::handle`] costs microseconds per message, except a checksum round and the commit of a
//! synchronisation, which read every byte of the database once.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

mod app;
mod confirm;
mod deliver;
mod link;
mod machine;
mod members;
mod queue;
mod requests;
#[cfg(test)]
mod tests;
mod waiting;
pub mod wire;

pub use app::{Application, Consequence, Ctx, Delivery, Outgoing, Plan, Verdict};
pub use machine::{Config, Machine};

/// A member of a group: corosync node id and process id. Ordered by node id, then pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MemberId {
    pub nodeid: u32,
    pub pid: u32,
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.nodeid, self.pid)
    }
}

/// Names one synchronisation; every confchg makes a new one (cluster-protocol.md 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Epoch {
    pub counter: u32,
    /// Wall clock of `from`, seconds.
    pub time: u32,
    pub from: MemberId,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:08X}", self.from, self.counter)
    }
}

/// The time of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Wall clock, whole seconds, low 32 bits: goes into messages.
    pub wall: u32,
    /// Monotonic clock, since any fixed moment: drives every deadline.
    pub mono: Duration,
}

/// Names one waiting caller; chosen by whoever submits, unique among those that wait.
pub type Ticket = u64;

/// Cluster-protocol.md 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Connected or connecting, no membership yet.
    Start = 0,
    /// Collecting states.
    StartSync = 1,
    /// Normal operation.
    Synced = 2,
    /// Behind: collecting updates.
    Update = 3,
    /// Recoverable error: leave the group, then start again.
    Leave = 253,
    /// A newer protocol was seen. Permanent.
    VersionError = 254,
}

impl Mode {
    /// True for the modes in which nothing is delivered any more.
    pub fn is_error(self) -> bool {
        self >= Mode::Leave
    }

    /// True if only a restart of the process helps.
    pub fn is_permanent(self) -> bool {
        self > Mode::Leave
    }
}

/// What happens to a group. `R` is a local request, `E` an event of the application.
#[derive(Debug)]
pub enum Event<'a, R, E> {
    /// A new handle has joined the group as `own`.
    Connected { own: MemberId },
    /// No handle any more, or connecting failed.
    Disconnected,
    /// The membership changed.
    Confchg {
        members: &'a [MemberId],
        joined: &'a [MemberId],
    },
    /// A message was delivered.
    Deliver { from: MemberId, bytes: &'a [u8] },
    /// A local caller wants something replicated. Without a ticket nobody waits for the result.
    Submit { ticket: Option<Ticket>, request: R },
    /// The send queue is short again.
    Room,
    /// Time has passed.
    Tick,
    /// The round with this number has come back ([`Action::Round`]).
    Round(u64),
    /// Everything that had come was given: time to ask for what is still needed.
    Idle,
    /// Start a checksum round now if this node is the one to do it.
    Verify,
    /// Something the application has to know.
    App(E),
    /// The process ends: leave, refuse whoever waits, never start again.
    Stop,
}

/// A request got no result from the application: not connected, restarted while it waited, or no
/// answer in time. It may have been applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[error("resource busy")]
pub struct Busy;

/// What the driver has to do. `P` is a result of the application, `X` an action of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<P, X> {
    /// Multicast these bytes to the group.
    Send(Vec<u8>),
    /// A request has changed something here. Its caller is told this result when the ticket is
    /// released, or that it is refused by a [`Action::Reply`].
    Applied { ticket: Ticket, reply: P },
    /// The caller may be told what [`Action::Applied`] said: every member has it.
    Release { ticket: Ticket },
    /// Send this number through corosync to this process alone, and give [`Event::Round`] when it is
    /// back, *after* every confchg and every change of the quorum that came before it. Only the last
    /// one counts.
    Round(u64),
    /// Tell a caller the result.
    Reply {
        ticket: Ticket,
        result: Result<P, Busy>,
    },
    /// Leave the group, keep the handle.
    Leave,
    /// Close the handle, open a new one and join.
    Restart,
    /// Close the handle for good.
    Close,
    /// Write a line to the log, domain [`Application::NAME`].
    Log { level: Level, text: String },
    /// Something only the application's surroundings understand.
    App(X),
}

/// Priority of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    Debug,
    Notice,
    Warning,
    Critical,
}

/// Actions of a machine that replicates `A`.
pub type ActionOf<A> = Action<<A as Application>::Reply, <A as Application>::Action>;
/// Events of a machine that replicates `A`.
pub type EventOf<'a, A> = Event<'a, <A as Application>::Request, <A as Application>::Event>;
