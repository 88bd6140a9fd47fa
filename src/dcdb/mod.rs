//! The replicated database: the tree as an application of [`dfsm`](crate::dfsm), group
//! `pve_dcdb_v1` (spec: `docs/protocol/cluster-sync.md` 1).
//!
//! Changes go to memory at delivery and, as [`Action::Store`], to disk in the same order. A disk that
//! cannot be written ([`Event::Writable`]) takes nothing back: the store keeps what it was given and
//! tries again. Until it succeeds the node is no member of the group, so that no more than that piles
//! up, its callers get EIO, and the others do not count on it. Then it joins and synchronises again.
#![forbid(unsafe_code)]

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, VecDeque};

use crate::dfsm::{
    Application, Consequence, Ctx, Delivery, Level, MemberId, Outgoing, Plan, Verdict,
};
use crate::memdb::{
    Change, Error, Index, Inode, MAX_TOTAL_SIZE, Op, ROOT_INODE, RootRow, Stamp, Tree,
};
use crate::replica::Applied;

mod history;
mod host;
mod lineage;
mod locks;
mod sync;
#[cfg(test)]
mod tests;
mod truncate;
pub mod wire;

use history::{Before, History};
pub use host::TreeHost;
use lineage::Lineage;
pub use lineage::{Aside, is_local_since};
pub use sync::SyncCommit;
use wire::{Message, Update};

/// Path of the corosync configuration that is copied to the host.
const COROSYNC_CONF: &[u8] = b"corosync.conf";
/// Lines about unwanted updates that one synchronisation may cost.
const UNWANTED_LINES: u32 = 5;
/// Lines about what is odd in the database of the leader.
const NOTE_LINES: usize = 20;
/// Content that a leader may send in one synchronisation: far more than a tree holds.
const MAX_UPDATE_BYTES: usize = 4 * MAX_TOTAL_SIZE as usize;

/// Something for the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// One change; any number of them may share a transaction.
    Change(Change),
    /// The result of a synchronisation: one transaction.
    Sync(SyncCommit),
}

/// What the surroundings have to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Store this, in order.
    Store(Box<Write>),
    /// Save this as a database of its own, before anything else is stored.
    KeepAside(Box<Aside>),
    /// What was changed in local mode is the cluster's now, or gone.
    Shared,
    /// The whole tree was replaced: everything kept about it is old (change counters, guest list).
    Replaced,
    /// Look whether the host's corosync.conf has to be rewritten, and with `notify` tell corosync
    /// to read it, at least a second later. Never inline: it waits.
    ExportCorosyncConf { notify: bool },
}

/// What the surroundings tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// This node is (not) quorate.
    Quorate(bool),
    /// The disk can (not) be written. True only once everything it was given is durable.
    Writable(bool),
}

/// The tree, replicated.
#[derive(Debug)]
pub struct Dcdb<H: TreeHost> {
    host: H,
    quorate: bool,
    /// The disk can be written; if not, memory is ahead of it.
    writable: bool,
    /// Follower: index of the leader, and what it sent so far.
    master: Option<Index>,
    updates: BTreeMap<Inode, Update>,
    /// Content of these.
    update_bytes: usize,
    /// Lines about updates that were not asked for, in this synchronisation.
    unwanted: u32,
    /// Leader: what is still to be sent, as it was when the states were compared.
    outgoing: VecDeque<Update>,
    /// Own changes that the others may not have.
    history: History,
    lineage: Lineage,
    /// Of the synchronisation under way.
    leader: Option<MemberId>,
}

impl<H: TreeHost> Dcdb<H> {
    /// Replicates the tree of `host`; not quorate until told so.
    pub fn new(host: H) -> Self {
        let version = host.read(|tree| tree.root_row().version);
        Dcdb {
            host,
            quorate: false,
            writable: true,
            master: None,
            updates: BTreeMap::new(),
            update_bytes: 0,
            unwanted: 0,
            outgoing: VecDeque::new(),
            history: History::default(),
            lineage: Lineage::new(version),
            leader: None,
        }
    }

    /// All changes since this version row were made in local mode.
    pub fn changed_since(&mut self, base: RootRow) {
        self.lineage.base = Some(base);
    }

    /// Where the tree lives.
    pub fn host(&self) -> &H {
        &self.host
    }

    /// Is this node quorate?
    pub fn quorate(&self) -> bool {
        self.quorate
    }

    fn apply(
        &mut self,
        op: &Op,
        from: MemberId,
        time: u32,
        ctx: &mut Ctx<Action>,
    ) -> Result<Applied, Error> {
        let stamp = Stamp {
            writer: from.nodeid,
            mtime: time,
        };
        let before = (from == ctx.own).then(|| self.host.read(|tree| Before::new(op, tree)));
        let change = self.host.apply(op, stamp, ctx.uptime)?;
        self.history.push(before, &change);
        let inode = change.inode;
        ctx.act(Action::Store(Box::new(Write::Change(change))));
        if writes_corosync_conf(op) {
            ctx.act(Action::ExportCorosyncConf {
                notify: from == ctx.own,
            });
        }
        Ok(Applied { inode })
    }

    /// Each entry of the leader's index comes once. Anything else would only fill the memory.
    fn take_update(&mut self, update: Update, ctx: &mut Ctx<Action>) {
        let inode = update.0.inode;
        let announced = self.master.as_ref().is_some_and(|master| master.has(inode));
        match self.updates.entry(inode) {
            Slot::Vacant(slot) if announced => {
                self.update_bytes += update.0.data.as_ref().map_or(0, |data| data.len());
                slot.insert(update);
            }
            _ => {
                self.unwanted += 1;
                if self.unwanted <= UNWANTED_LINES {
                    let what = if announced { "second" } else { "unannounced" };
                    let text = format!("ignore {what} update of inode {inode:016X}");
                    ctx.log(Level::Warning, text);
                }
            }
        }
    }

    /// Another tree takes the place of this one.
    fn replace(&mut self, tree: Tree, commit: SyncCommit, ctx: &mut Ctx<Action>) {
        self.host.replace(tree);
        ctx.act(Action::Store(Box::new(Write::Sync(commit))));
        ctx.act(Action::Replaced);
        ctx.act(Action::ExportCorosyncConf { notify: false });
    }

    fn set_writable(&mut self, writable: bool, ctx: &mut Ctx<Action>) -> Consequence {
        let was = std::mem::replace(&mut self.writable, writable);
        match (was, writable) {
            (true, false) => {
                ctx.log(
                    Level::Critical,
                    "the database cannot be written - out of the group until it can",
                );
                Consequence::Leave
            }
            (false, true) => {
                ctx.log(
                    Level::Notice,
                    "the database can be written again - back to the group",
                );
                Consequence::None
            }
            _ => Consequence::None,
        }
    }
}

fn writes_corosync_conf(op: &Op) -> bool {
    match op {
        Op::Create { path } | Op::Write { path, .. } | Op::Rename { to: path, .. } => {
            path.as_bytes() == COROSYNC_CONF
        }
        Op::Mkdir { .. } | Op::Delete { .. } | Op::SetMtime { .. } => false,
    }
}

impl<H: TreeHost> Application for Dcdb<H> {
    const NAME: &'static str = "dcdb";
    const PROTOCOL: u32 = 1;

    type Request = Op;
    type Reply = Result<Applied, Error>;
    type Action = Action;
    type Event = Event;

    fn admit(&self, _request: &Op) -> Result<(), Self::Reply> {
        if !self.quorate {
            Err(Err(Error::Access))
        } else if !self.writable {
            Err(Err(Error::Io))
        } else {
            Ok(())
        }
    }

    /// With changes of local mode only among the majority: those who meet without it may be behind, and
    /// would take over what the others have moved on from.
    fn may_join(&self) -> bool {
        self.writable && (self.quorate || self.lineage.base.is_none())
    }

    fn node_name(&self, nodeid: u32) -> Option<String> {
        self.host.node_name(nodeid)
    }

    fn may_acknowledge(&self) -> bool {
        self.quorate
    }

    fn has_changed(reply: &Self::Reply) -> bool {
        reply.is_ok()
    }

    fn prepare(
        &mut self,
        request: Op,
        ctx: &mut Ctx<Action>,
    ) -> Result<Vec<Outgoing>, Self::Reply> {
        self.host
            .read(|tree| tree.check_local(&request))
            .map_err(Err)?;
        let mut messages = Vec::from_iter(self.unlock(&request, ctx.uptime));
        let op = self
            .host
            .read(|tree| truncate::without_growing_truncate(request, tree));
        messages.push(Message::Op(op).encode());
        Ok(messages)
    }

    fn deliver(&mut self, delivery: Delivery<'_>, ctx: &mut Ctx<Action>) -> Verdict<Self::Reply> {
        if !self.quorate {
            ctx.log(
                Level::Critical,
                "received write while not quorate - trigger resync",
            );
            return Verdict::Leave;
        }
        let Delivery {
            from,
            subtype,
            time,
            payload,
        } = delivery;
        let message = match Message::parse(subtype, payload) {
            Ok(message) => message,
            Err(error) => {
                ctx.log(
                    Level::Critical,
                    format!("malformed message from {from}: {error}"),
                );
                return Verdict::Leave;
            }
        };
        // Nobody waits for the result of a lock message.
        match message {
            Message::Op(op) => Verdict::Applied(self.apply(&op, from, time, ctx)),
            Message::UnlockRequest { checksum, path } => {
                self.unlock_request(path, checksum, ctx);
                Verdict::Applied(Ok(Applied { inode: ROOT_INODE }))
            }
            Message::Unlock { checksum, path } => {
                Verdict::Applied(if self.is_lock(&path, &checksum) {
                    self.apply(&Op::Delete { path }, from, time, ctx)
                } else {
                    Err(Error::NotFound)
                })
            }
        }
    }

    fn confchg(&mut self, members: &[MemberId], _ctx: &mut Ctx<Action>) {
        let version = self.host.read(|tree| tree.root_row().version);
        self.lineage.members(members, version);
    }

    fn left(&mut self) {
        self.begin();
    }

    fn state(&mut self, ctx: &mut Ctx<Action>) -> Option<Vec<u8>> {
        if self.lineage.yields {
            return Some(lineage::nothing(ctx.own.nodeid));
        }
        Some(self.host.read(Tree::encode_index))
    }

    fn process_states(
        &mut self,
        states: &[(MemberId, Box<[u8]>)],
        ctx: &mut Ctx<Action>,
    ) -> Option<Plan> {
        let mut comparison = match sync::compare(states) {
            Ok(comparison) => comparison,
            Err(error) => {
                ctx.log(
                    Level::Critical,
                    format!("received malformed index: {error}"),
                );
                return None;
            }
        };
        let leader = states.get(comparison.leader)?.0;
        let own = states.iter().position(|(id, _)| *id == ctx.own)?;
        if !self.goes_on(&comparison, own, ctx) {
            return None;
        }
        self.leader = Some(leader);
        if leader == ctx.own {
            self.says_what_it_leads_with(&comparison, ctx);
            let wanted = sync::wanted(&comparison);
            self.outgoing = self.host.read(|tree| {
                let update = |inode| match inode {
                    ROOT_INODE => Some(Update::root(tree.root_row())),
                    _ => tree.row(inode).map(Update),
                };
                wanted.into_iter().filter_map(update).collect()
            });
        } else {
            self.master = Some(comparison.indexes.swap_remove(comparison.leader));
        }
        Some(Plan {
            leader: Some(leader),
            synced: comparison.synced,
        })
    }

    fn next_update(&mut self) -> Option<Vec<u8>> {
        self.outgoing.pop_front().map(|update| update.encode())
    }

    fn process_update(&mut self, payload: &[u8], ctx: &mut Ctx<Action>) -> bool {
        match Update::parse(payload) {
            Ok(update) => {
                self.take_update(update, ctx);
                if self.update_bytes > MAX_UPDATE_BYTES {
                    let text = "the leader sends more than a tree can hold";
                    ctx.log(Level::Critical, text.to_owned());
                    return false;
                }
                true
            }
            Err(error) => {
                ctx.log(
                    Level::Critical,
                    format!("received malformed update: {error}"),
                );
                false
            }
        }
    }

    fn commit(&mut self, ctx: &mut Ctx<Action>) -> bool {
        let updates: Vec<Update> = std::mem::take(&mut self.updates).into_values().collect();
        let count = updates.len();
        let text = format!("update complete - trying to commit (got {count} inode updates)");
        ctx.log(Level::Notice, text);
        let Some(master) = self.master.take() else {
            return false;
        };
        let uptime = ctx.uptime;
        let outcome = self
            .host
            .read(|tree| sync::build(tree, &master, &updates, uptime));
        let sync::Outcome {
            tree,
            commit,
            notes,
        } = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                ctx.log(Level::Critical, error.to_string());
                return false;
            }
        };
        self.history.clear();
        for note in notes.iter().take(NOTE_LINES) {
            ctx.log(Level::Warning, note.to_string());
        }
        if let Some(more @ 1..) = notes.len().checked_sub(NOTE_LINES) {
            ctx.log(Level::Warning, format!("{more} more entries are odd"));
        }
        self.compare(&tree, ctx);
        self.lineage.begin(tree.root_row().version);
        self.replace(tree, commit, ctx);
        true
    }

    fn forget_sync(&mut self) {
        self.master = None;
        self.updates.clear();
        self.update_bytes = 0;
        self.unwanted = 0;
        self.outgoing.clear();
    }

    fn synced(&mut self, _ctx: &mut Ctx<Action>) {}

    fn all_synced(&mut self, ctx: &mut Ctx<Action>) {
        self.lineage.yields = false;
        if self.lineage.base.take().is_some() {
            ctx.log(Level::Notice, "one database with the others again");
            ctx.act(Action::Shared);
        }
    }

    fn checksum(&mut self) -> Option<[u8; 32]> {
        Some(self.host.read(Tree::checksum))
    }

    fn changes(&self) -> u64 {
        self.history.count()
    }

    fn keep(&mut self, changes: u64) {
        self.history.keep(changes);
    }

    fn take_back(&mut self, ctx: &mut Ctx<Action>) {
        if self.history.is_empty() {
            return;
        }
        let before = self.history.count();
        let history = &mut self.history;
        let outcome = self.host.read(|tree| history.take_back(tree, ctx.uptime));
        match outcome {
            Ok(sync::Outcome { tree, commit, .. }) => {
                let count = before - self.history.count();
                ctx.log(
                    Level::Warning,
                    format!("took {count} changes back that the other nodes may not have"),
                );
                self.replace(tree, commit, ctx);
                self.begin();
            }
            // The rows are those of trees that were there: this does not happen.
            Err(error) => ctx.log(
                Level::Critical,
                format!("cannot take changes back: {error}"),
            ),
        }
    }

    fn event(&mut self, event: Event, ctx: &mut Ctx<Action>) -> Consequence {
        match event {
            Event::Quorate(quorate) => {
                self.quorate = quorate;
                if !quorate {
                    self.begin();
                }
                if self.may_join() {
                    Consequence::None
                } else {
                    Consequence::Leave
                }
            }
            Event::Writable(writable) => self.set_writable(writable, ctx),
        }
    }
}
