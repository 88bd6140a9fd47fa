//! What a group replicates.
#![forbid(unsafe_code)]

use super::{Level, MemberId};

/// An application message to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    pub subtype: u16,
    pub payload: Vec<u8>,
}

/// A NORMAL message that is to be applied now.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    pub from: MemberId,
    pub subtype: u16,
    /// Wall clock of the sender: the time every node applies.
    pub time: u32,
    pub payload: &'a [u8],
}

/// What became of a delivered message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<P> {
    /// Applied, or refused the same way on every node.
    Applied(P),
    /// It must not be applied here: leave the group and synchronise again.
    Leave,
}

/// What an event of the application means for the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consequence {
    /// Go on.
    None,
    /// Leave the group and synchronise again.
    Leave,
}

/// How a synchronisation goes on once all states are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Whose data everybody gets; `None` if nobody is behind by definition (kvstore).
    pub leader: Option<MemberId>,
    /// For each member, in member order: does it have the leader's data?
    pub synced: Vec<bool>,
}

/// What an application may do while it is called.
#[derive(Debug)]
pub struct Ctx<X> {
    /// Wall clock of this node, seconds.
    pub now: u32,
    /// Monotonic clock of this node, seconds.
    pub uptime: u32,
    /// This process.
    pub own: MemberId,
    /// True if no member has a lower node id.
    pub lowest: bool,
    pub(super) effects: Vec<Effect<X>>,
}

/// One thing an application did, in order.
#[derive(Debug)]
pub(super) enum Effect<X> {
    Send(Outgoing),
    Log(Level, String),
    Action(X),
}

impl<X> Ctx<X> {
    /// A context of its own, for tests of an application without a machine. Both clocks say `now`.
    pub fn new(now: u32, own: MemberId, lowest: bool) -> Self {
        Ctx {
            now,
            uptime: now,
            own,
            lowest,
            effects: Vec::new(),
        }
    }

    /// Multicast a message; nobody waits for it.
    pub fn send(&mut self, subtype: u16, payload: Vec<u8>) {
        self.effects
            .push(Effect::Send(Outgoing { subtype, payload }));
    }

    /// Write a log line.
    pub fn log(&mut self, level: Level, text: impl Into<String>) {
        self.effects.push(Effect::Log(level, text.into()));
    }

    /// Ask the surroundings for something.
    pub fn act(&mut self, action: X) {
        self.effects.push(Effect::Action(action));
    }

    /// What was sent and asked for so far, without log lines.
    pub fn take(&mut self) -> (Vec<Outgoing>, Vec<X>) {
        let mut sends = Vec::new();
        let mut actions = Vec::new();
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Send(outgoing) => sends.push(outgoing),
                Effect::Action(action) => actions.push(action),
                Effect::Log(..) => {}
            }
        }
        (sends, actions)
    }
}

/// A replicated application. Called by the machine only; must be pure.
pub trait Application {
    /// Log domain.
    const NAME: &'static str;
    /// Protocol version in the base header.
    const PROTOCOL: u32;

    /// What a local caller asks for.
    type Request;
    /// What a caller is told.
    type Reply;
    /// What it asks its surroundings to do.
    type Action;
    /// What its surroundings tell it.
    type Event;

    /// May this request be taken in now? Asked when it comes and whenever something changed while
    /// it is held back. An error is the caller's answer.
    fn admit(&self, request: &Self::Request) -> Result<(), Self::Reply>;

    /// May this node be a member? Asked before each attempt to join.
    fn may_join(&self) -> bool {
        true
    }

    /// Name of a node, for the log.
    fn node_name(&self, _nodeid: u32) -> Option<String> {
        None
    }

    /// May a caller be told that something is done? Not if another part of the cluster goes on
    /// without this one.
    fn may_acknowledge(&self) -> bool;

    /// Has a request with this result changed anything? Whoever asked for it is told only when the
    /// others have it; anything else is told at once.
    fn has_changed(reply: &Self::Reply) -> bool;

    /// Messages for a request, asked immediately before they are sent. The result of the *last*
    /// one is the result of the request. An error is the caller's answer, and nothing is sent.
    fn prepare(
        &mut self,
        request: Self::Request,
        ctx: &mut Ctx<Self::Action>,
    ) -> Result<Vec<Outgoing>, Self::Reply>;

    /// Apply a message. Every node calls this in the same order.
    fn deliver(
        &mut self,
        delivery: Delivery<'_>,
        ctx: &mut Ctx<Self::Action>,
    ) -> Verdict<Self::Reply>;

    /// The membership changed. Not called while this process is out of the group.
    fn confchg(&mut self, members: &[MemberId], ctx: &mut Ctx<Self::Action>);

    /// This process is out of the group, or about to come in.
    fn left(&mut self) {}

    /// The state this node takes part in a synchronisation with. `None`: leave.
    fn state(&mut self, ctx: &mut Ctx<Self::Action>) -> Option<Vec<u8>>;

    /// All states are there, sorted by member. `None`: leave; why was logged.
    fn process_states(
        &mut self,
        states: &[(MemberId, Box<[u8]>)],
        ctx: &mut Ctx<Self::Action>,
    ) -> Option<Plan>;

    /// The leader's next UPDATE payload; `None` when all were given.
    fn next_update(&mut self) -> Option<Vec<u8>>;

    /// An UPDATE message came while this node is behind. `false`: leave.
    fn process_update(&mut self, payload: &[u8], ctx: &mut Ctx<Self::Action>) -> bool;

    /// All updates are there: make them the state of this node. `false`: leave (nothing changed).
    fn commit(&mut self, ctx: &mut Ctx<Self::Action>) -> bool;

    /// Drop everything that belongs to the synchronisation.
    fn forget_sync(&mut self);

    /// The mode became SYNCED.
    fn synced(&mut self, ctx: &mut Ctx<Self::Action>);

    /// All members of a synchronisation have its result, or have it from this moment on.
    fn all_synced(&mut self, _ctx: &mut Ctx<Self::Action>) {}

    /// Number of all changes ever applied.
    fn changes(&self) -> u64 {
        0
    }

    /// The first `changes` of them are with the others: they stay for good.
    fn keep(&mut self, _changes: u64) {}

    /// This node has lost all others: whatever does not stay for good is undone, as they may go on
    /// without it.
    fn take_back(&mut self, _ctx: &mut Ctx<Self::Action>) {}

    /// Checksum over the whole state; `None` if this group is not verified.
    fn checksum(&mut self) -> Option<[u8; 32]>;

    /// Something happened outside.
    fn event(&mut self, event: Self::Event, ctx: &mut Ctx<Self::Action>) -> Consequence;
}
