//! A model of the C daemon's rules for the database group, known defects included
//! (cluster-protocol.md 6 to 9). Written from the specification, apart from our state machine; it
//! shares only the byte formats and the tree.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use pmxcfs::dcdb::wire::{Message as Payload, Update};
use pmxcfs::dcdb::{SyncCommit, Write};
use pmxcfs::dfsm::wire::{self, Body, Message, Type};
use pmxcfs::dfsm::{Epoch, MemberId, Now};
use pmxcfs::memdb::{Index, Op, RootRow, Row, Stamp, Tree};

use super::disk::Disk;
use super::process::{Effect, Wish};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub enum Mode {
    Start,
    StartSync,
    Synced,
    Update,
    Leave,
    Error,
}

pub struct Member {
    id: MemberId,
    state: Option<Vec<u8>>,
    pub synced: bool,
}

#[derive(Clone)]
struct Queued {
    from: MemberId,
    count: u64,
    bytes: Rc<[u8]>,
}

pub struct CModel {
    pub tree: Tree,
    pub quorate: bool,
    pub outbox: VecDeque<Rc<[u8]>>,
    pub members: Vec<Member>,
    pub epoch: Epoch,
    mode: Mode,
    own: MemberId,
    handle: bool,
    joined: bool,
    is_member: bool,
    counter: u32,
    lowest: u32,
    msg_queue: Vec<Queued>,
    sync_queue: VecDeque<Queued>,
    sent: u64,
    waiting: BTreeMap<u64, u64>,
    master: Option<Vec<u8>>,
    updates: Vec<Update>,
    failed: bool,
    csum: (u64, u64, Option<Epoch>, [u8; 32]),
    retry_at: Option<Duration>,
}

impl CModel {
    pub fn new(tree: Tree, quorate: bool) -> Self {
        CModel {
            tree,
            quorate,
            outbox: VecDeque::new(),
            members: Vec::new(),
            epoch: Epoch::default(),
            mode: Mode::Start,
            own: MemberId::default(),
            handle: false,
            joined: false,
            is_member: false,
            counter: 0,
            lowest: 0,
            msg_queue: Vec::new(),
            sync_queue: VecDeque::new(),
            sent: 0,
            waiting: BTreeMap::new(),
            master: None,
            updates: Vec::new(),
            failed: false,
            csum: (0, 0, None, [0; 32]),
            retry_at: Some(Duration::ZERO),
        }
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    pub fn synced(&self) -> bool {
        self.mode == Mode::Synced && self.handle
    }

    pub fn broken(&self) -> bool {
        self.mode == Mode::Error
    }

    // --- connection (section 9) ---

    pub fn connected(&mut self, own: MemberId) {
        self.own = own;
        self.msg_queue.clear();
        self.members.clear();
        self.mode = Mode::Start;
        self.handle = true;
        self.joined = true;
        self.is_member = false;
        self.retry_at = None;
    }

    pub fn lost(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.abort_waiters(out);
        self.handle = false;
        self.joined = false;
        self.outbox.clear();
        if !self.broken() {
            self.retry_at = Some(now.mono + Duration::from_secs(6));
        }
    }

    pub fn after_dispatch(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.mode < Mode::Leave || !self.handle {
            return;
        }
        if self.joined {
            self.joined = false;
            out.push(Effect::Wish(Wish::Leave));
        } else if !self.is_member {
            // The attempt on the old handle fails; the next one comes six seconds later.
            self.lost(now, out);
            out.push(Effect::Wish(Wish::Close));
        }
    }

    pub fn tick(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.retry_at.is_some_and(|at| now.mono >= at) && !self.broken() {
            self.retry_at = None;
            self.abort_waiters(out);
            out.push(Effect::Wish(Wish::Join));
        }
    }

    fn abort_waiters(&mut self, out: &mut Vec<Effect>) {
        for ticket in std::mem::take(&mut self.waiting).into_values() {
            out.push(Effect::Reply(ticket, Err(None)));
        }
    }

    fn leave(&mut self) {
        if self.mode < Mode::Leave {
            self.mode = Mode::Leave;
        }
        self.free_sync();
    }

    fn free_sync(&mut self) {
        self.master = None;
        self.updates.clear();
        for member in &mut self.members {
            member.state = None;
        }
    }

    // --- sending (section 6) ---

    fn send_state(&mut self, now: Now, kind: Type, payload: &[u8]) {
        self.outbox
            .push_back(wire::state(1, kind, now.wall, self.epoch, payload).into());
    }

    fn send_normal(&mut self, now: Now, message: &Payload) {
        self.sent += 1;
        let out = message.encode();
        let bytes = wire::normal(1, out.subtype, now.wall, self.sent, &out.payload);
        self.outbox.push_back(bytes.into());
    }

    pub fn submit(&mut self, now: Now, ticket: u64, op: &Op, out: &mut Vec<Effect>) {
        if !self.quorate {
            out.push(Effect::Reply(
                ticket,
                Err(Some(pmxcfs::memdb::Error::Access)),
            ));
        } else if !self.handle {
            out.push(Effect::Reply(ticket, Err(None)));
        } else {
            self.send_normal(now, &Payload::Op(op.clone()));
            self.waiting.insert(self.sent, ticket);
        }
    }

    // --- membership (7.1) ---

    pub fn confchg(
        &mut self,
        now: Now,
        members: &[MemberId],
        joined: &[MemberId],
        disk: &mut Disk,
        out: &mut Vec<Effect>,
    ) {
        self.is_member = members.contains(&self.own);
        self.counter += 1;
        self.epoch = Epoch {
            counter: self.counter,
            time: now.wall,
            from: self.own,
        };
        self.csum.1 = self.csum.0;
        self.csum.2 = None;
        self.sync_queue.clear();
        if self.mode >= Mode::Leave {
            return;
        }
        self.free_sync();
        let mut ids = members.to_vec();
        ids.sort();
        self.lowest = ids.first().map_or(0, |m| m.nodeid);
        self.members = ids
            .iter()
            .map(|id| Member {
                id: *id,
                state: None,
                synced: false,
            })
            .collect();
        if !self.is_member {
            if self.mode != Mode::Start {
                self.leave();
            }
            return;
        }
        if ids.len() > 1 {
            if !joined.is_empty() {
                for queued in std::mem::take(&mut self.msg_queue) {
                    if queued.from == self.own {
                        self.outbox.push_back(queued.bytes);
                    }
                }
            }
            self.mode = Mode::StartSync;
            if self.lowest == self.own.nodeid {
                self.send_state(now, Type::SyncStart, b"");
            }
        } else {
            self.mode = Mode::Synced;
            self.members[0].synced = true;
            self.deliver_msg_queue(now, disk, out);
        }
    }

    // --- delivery (7.2) ---

    pub fn deliver(
        &mut self,
        now: Now,
        from: MemberId,
        bytes: &Rc<[u8]>,
        disk: &mut Disk,
        out: &mut Vec<Effect>,
    ) {
        if self.mode >= Mode::Leave || self.members.is_empty() {
            return self.leave();
        }
        let Ok(message) = Message::parse(bytes) else {
            return self.leave();
        };
        let (epoch, payload) = match message.body {
            Body::Normal { count, .. } => {
                let queued = Queued {
                    from,
                    count,
                    bytes: Rc::clone(bytes),
                };
                return self.normal(now, queued, disk, out);
            }
            Body::State { epoch, payload } => (epoch, payload),
        };
        let kind = message.base.kind;
        if kind == Type::SyncStart {
            return match self.mode {
                Mode::StartSync => {
                    self.epoch = epoch;
                    self.free_sync();
                    let index = self.tree.encode_index();
                    self.send_state(now, Type::State, &index);
                }
                Mode::Synced => {}
                _ => self.leave(),
            };
        }
        if epoch != self.epoch {
            return;
        }
        match (self.mode, kind) {
            (Mode::StartSync, Type::State) => self.state(now, from, payload, disk, out),
            (Mode::Update, Type::Update) => match Update::parse(payload) {
                Ok(update) => self.updates.push(update),
                Err(_) => self.leave(),
            },
            (Mode::Update, Type::UpdateComplete) => self.commit(now, disk, out),
            (Mode::Synced, Type::UpdateComplete) => {
                self.members.iter_mut().for_each(|m| m.synced = true);
                self.deliver_msg_queue(now, disk, out);
            }
            (Mode::Synced, Type::VerifyRequest) => {
                let id = wire::parse_verify_request(payload).expect("from our kind");
                self.csum = (self.csum.0, id, Some(epoch), self.tree.checksum());
                if from == self.own {
                    let payload = wire::verify_payload(id, &self.csum.3);
                    self.send_state(now, Type::Verify, &payload);
                }
            }
            (Mode::Synced, Type::Verify) => {
                let (id, sum) = wire::parse_verify(payload).expect("from our kind");
                if (id, Some(epoch)) == (self.csum.1, self.csum.2) && sum != self.csum.3 {
                    self.leave();
                }
            }
            (Mode::Synced, _) => {}
            _ => self.leave(),
        }
    }

    fn normal(&mut self, now: Now, message: Queued, disk: &mut Disk, out: &mut Vec<Effect>) {
        if self.mode == Mode::Synced {
            return self.apply(now, &message, disk, out);
        }
        let Some(sender) = self.members.iter().find(|m| m.id == message.from) else {
            return self.leave();
        };
        if self.mode == Mode::Update && sender.synced {
            self.sync_queue.push_back(message);
        } else {
            let after = |have: &Queued| (have.count.wrapping_sub(message.count) as u32 as i32) > 0;
            let at = self
                .msg_queue
                .iter()
                .position(after)
                .unwrap_or(self.msg_queue.len());
            self.msg_queue.insert(at, message);
        }
    }

    fn apply(&mut self, now: Now, queued: &Queued, disk: &mut Disk, out: &mut Vec<Effect>) {
        let message = Message::parse(&queued.bytes).expect("parsed before");
        let Body::Normal { payload, .. } = message.body else {
            return;
        };
        if self.failed {
            self.mode = Mode::Error;
            return;
        }
        let own = queued.from == self.own;
        let result = match Payload::parse(message.base.subtype, payload) {
            Ok(Payload::Op(op)) if self.quorate => {
                let stamp = Stamp {
                    writer: queued.from.nodeid,
                    mtime: message.base.time,
                };
                self.tree.apply(&op, stamp, now.wall).map(|change| {
                    disk.write(&Write::Change(change));
                })
            }
            _ => {
                if let Some(ticket) = self.waiting.remove(&queued.count).filter(|_| own) {
                    out.push(Effect::Reply(ticket, Err(None)));
                }
                return self.leave();
            }
        };
        if own {
            while let Some((count, ticket)) = self.waiting.pop_first() {
                if count > queued.count {
                    self.waiting.insert(count, ticket);
                    break;
                }
                let result = if count == queued.count {
                    result.map_err(Some)
                } else {
                    Err(None)
                };
                out.push(Effect::Reply(ticket, result));
            }
        }
    }

    fn state(
        &mut self,
        now: Now,
        from: MemberId,
        payload: &[u8],
        disk: &mut Disk,
        out: &mut Vec<Effect>,
    ) {
        match self.members.iter_mut().find(|m| m.id == from) {
            Some(member) if member.state.is_none() => member.state = Some(payload.to_vec()),
            _ => return self.leave(),
        }
        if self.members.iter().any(|m| m.state.is_none()) {
            return;
        }
        let states: Vec<Vec<u8>> = self
            .members
            .iter_mut()
            .filter_map(|m| m.state.take())
            .collect();
        let indexes: Vec<Index> = states
            .iter()
            .map(|s| Index::decode(s).expect("an index"))
            .collect();
        let mut leader = 0;
        for (i, index) in indexes.iter().enumerate() {
            let best = &indexes[leader].root;
            if (index.root.version, index.root.mtime) > (best.version, best.mtime) {
                leader = i;
            }
        }
        for (member, state) in self.members.iter_mut().zip(&states) {
            member.synced = *state == states[leader];
        }
        if self.members[leader].id == self.own {
            self.send_updates(now, &indexes, leader);
        }
        self.master = Some(states[leader].clone());
        let me = self.members.iter().find(|m| m.id == self.own);
        self.mode = if me.is_some_and(|m| m.synced) {
            Mode::Synced
        } else {
            Mode::Update
        };
        self.deliver_msg_queue(now, disk, out);
    }

    fn send_updates(&mut self, now: Now, indexes: &[Index], leader: usize) {
        let mut wanted = BTreeSet::new();
        for (i, index) in indexes.iter().enumerate().filter(|(i, _)| *i != leader) {
            let _ = i;
            for entry in &indexes[leader].entries {
                if !index.entries.contains(entry) {
                    wanted.insert(entry.inode);
                }
            }
        }
        for inode in wanted {
            let update = match inode {
                0 => Update::root(self.tree.root_row()),
                _ => Update(self.tree.row(inode).expect("in the own index")),
            };
            self.send_state(now, Type::Update, &update.encode());
        }
        self.send_state(now, Type::UpdateComplete, b"");
    }

    fn commit(&mut self, now: Now, disk: &mut Disk, out: &mut Vec<Effect>) {
        let master = self.master.take().unwrap_or_default();
        let index = Index::decode(&master).expect("an index");
        let keep: BTreeSet<u64> = index.entries.iter().map(|e| e.inode).collect();
        let delete = self
            .tree
            .iter()
            .map(|(i, _)| i)
            .filter(|i| !keep.contains(i))
            .collect();
        let mut put: Vec<Row> = Vec::new();
        let mut root: Option<RootRow> = None;
        for Update(row) in std::mem::take(&mut self.updates) {
            if row.inode == 0 {
                root = Some(RootRow {
                    version: row.version,
                    writer: row.writer,
                    mtime: row.mtime,
                });
            } else {
                put.push(row);
            }
        }
        let mut next = disk.clone();
        next.write(&Write::Sync(SyncCommit { delete, put, root }));
        let tree = next.load(now.wall);
        if tree.encode_index() != master {
            self.failed = true;
            return self.leave();
        }
        *disk = next;
        self.tree = tree;
        self.members.iter_mut().for_each(|m| m.synced = true);
        self.mode = Mode::Synced;
        for message in std::mem::take(&mut self.sync_queue) {
            if self.mode == Mode::Synced {
                self.apply(now, &message, disk, out);
            }
        }
        self.deliver_msg_queue(now, disk, out);
    }

    fn deliver_msg_queue(&mut self, now: Now, disk: &mut Disk, out: &mut Vec<Effect>) {
        let mut rest = Vec::new();
        for message in std::mem::take(&mut self.msg_queue) {
            let sender = self
                .members
                .iter()
                .find(|m| m.id == message.from)
                .map(|m| m.synced);
            match (self.mode, sender) {
                (Mode::Synced | Mode::Update, None) => {}
                (Mode::Synced, Some(true)) => self.apply(now, &message, disk, out),
                (Mode::Update, Some(true)) => self.sync_queue.push_back(message),
                (Mode::Synced | Mode::Update, Some(false)) => rest.push(message),
                _ => return self.leave(),
            }
        }
        self.msg_queue = rest;
    }

    /// The hourly timer (7.4).
    pub fn verify_timer(&mut self, now: Now) {
        if self.lowest == self.own.nodeid && self.synced() && self.csum.0 == self.csum.1 {
            self.csum.0 += 1;
            let id = self.csum.0.to_le_bytes();
            self.send_state(now, Type::VerifyRequest, &id);
        }
    }
}
