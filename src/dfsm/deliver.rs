//! Deliveries (cluster-protocol.md 7.2) and the two queues (7.3).
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::app::{Delivery, Verdict};
use super::machine::{Machine, list};
use super::queue::Queued;
use super::wire::{self, Base, Body, Message, Type};
use super::{Application, Epoch, Level, MemberId, Mode};
use crate::le::u64_at;

impl<A: Application> Machine<A> {
    pub(super) fn deliver(&mut self, from: MemberId, bytes: &[u8]) {
        if self.mode.is_error() {
            return;
        }
        if self.members.is_empty() {
            self.log(Level::Critical, "received message without member list");
            return self.leave();
        }
        let base = match Base::parse(bytes) {
            Ok(base) => base,
            Err(err) => {
                self.log(
                    Level::Critical,
                    format!("received short message from {from}: {err}"),
                );
                return self.leave();
            }
        };
        if base.protocol > A::PROTOCOL {
            return self.set_mode(Mode::VersionError);
        }
        if base.protocol < A::PROTOCOL {
            return self.log_message(Level::Notice, || {
                format!(
                    "ignore message of older protocol {} from {from}",
                    base.protocol
                )
            });
        }
        match Message::parse(bytes) {
            Ok(Message {
                base,
                body: Body::Normal { count, payload },
            }) => {
                self.deliver_normal(from, base, count, payload, bytes);
            }
            Ok(Message {
                base,
                body: Body::State { epoch, payload },
            }) => {
                self.deliver_state(from, base.kind, epoch, payload);
            }
            Err(err) => {
                self.log(
                    Level::Critical,
                    format!("received short message from {from}: {err}"),
                );
                self.leave();
            }
        }
    }

    fn deliver_normal(
        &mut self,
        from: MemberId,
        base: Base,
        count: u64,
        payload: &[u8],
        bytes: &[u8],
    ) {
        match self.mode {
            Mode::Synced => self.apply(from, base, count, payload),
            Mode::Start | Mode::StartSync | Mode::Update => {
                if !self.members.iter().any(|m| m.id == from) {
                    let text = format!("received message from {from} who is not a member");
                    self.log(Level::Critical, text);
                    return self.leave();
                }
                let message = Queued {
                    from,
                    count,
                    bytes: bytes.into(),
                };
                if self.mode == Mode::Update {
                    // Whoever sent it: the synced members apply it at this very moment, so it
                    // comes behind the updates and before what was queued earlier for unsynced
                    // senders (7.3, first measure).
                    self.sync_queue.push(message);
                } else {
                    self.msg_queue.insert(message);
                }
                self.bound_queues();
            }
            Mode::Leave | Mode::VersionError => {}
        }
    }

    /// Leaves the group if what waits for the end of the synchronisation takes too much memory.
    fn bound_queues(&mut self) {
        let bytes = self.msg_queue.bytes() + self.sync_queue.bytes();
        if bytes > self.config.queue_bytes {
            let missing = self.missing().unwrap_or_default();
            let text = format!(
                "{} MiB of messages wait for {missing} - leaving the group, to come back later",
                bytes >> 20
            );
            self.log(Level::Critical, text);
            self.leave();
        }
    }

    /// The delivery procedure proper: mode SYNCED.
    fn apply(&mut self, from: MemberId, base: Base, count: u64, payload: &[u8]) {
        if from == self.own && self.config.hold_back && self.is_cut_off() {
            // Nobody else gets it: it is as if it had never been sent. (The old rule, to leave the
            // group and synchronise again, would keep this node out when the others are back.)
            self.log(
                Level::Debug,
                "drop own message - no quorum, no other member",
            );
            return self.refuse(count);
        }
        let delivery = Delivery {
            from,
            subtype: base.subtype,
            time: base.time,
            payload,
        };
        let changes = self.app.changes();
        match self.with_app(|app, ctx| app.deliver(delivery, ctx)) {
            Verdict::Applied(reply) => {
                if from == self.own {
                    self.confirm.message(count);
                    let pending = self.waiting_for(count);
                    if A::has_changed(&reply) {
                        self.applied(pending, reply, changes);
                    } else {
                        self.reply(pending.map(|p| p.ticket), Ok(reply));
                    }
                }
            }
            Verdict::Leave => self.leave(),
        }
    }

    fn deliver_state(&mut self, from: MemberId, kind: Type, epoch: Epoch, payload: &[u8]) {
        if kind == Type::SyncStart {
            return self.sync_start(from, epoch);
        }
        if epoch != self.epoch {
            let now = self.epoch;
            return self.log_message(Level::Debug, || {
                format!("ignore message of epoch {epoch} from {from} (now {now})")
            });
        }
        let of_leader = matches!(kind, Type::Update | Type::UpdateComplete);
        if of_leader && self.leader.is_some_and(|leader| leader != from) {
            return self.log_message(Level::Warning, || {
                format!("ignore update from {from} who is not the leader")
            });
        }
        match (self.mode, kind) {
            (Mode::StartSync, Type::State) => self.sync_state(from, payload),
            (Mode::Update, Type::Update) => {
                if !self.with_app(|app, ctx| app.process_update(payload, ctx)) {
                    self.leave();
                }
            }
            (Mode::Update, Type::UpdateComplete) => self.update_complete(),
            (Mode::Synced, Type::UpdateComplete) => {
                for member in &mut self.members {
                    member.synced = true;
                }
                self.with_app(|app, ctx| app.all_synced(ctx));
                self.deliver_msg_queue();
            }
            (Mode::Synced, Type::State | Type::Update) => {}
            (Mode::Synced, Type::VerifyRequest) => self.verify_request(from, payload),
            (Mode::Synced, Type::Verify) => self.verify(payload),
            (Mode::StartSync | Mode::Update, Type::VerifyRequest | Type::Verify) => {
                self.log_message(Level::Debug, || {
                    "ignore verify message while not synced".to_owned()
                });
            }
            _ => {
                let code = kind.code();
                let text = format!("received unexpected message (type {code}) from {from}");
                self.log(Level::Critical, text);
                self.leave();
            }
        }
    }

    fn sync_start(&mut self, from: MemberId, epoch: Epoch) {
        match self.mode {
            Mode::StartSync => {}
            // Two requests in flight: the first round is complete, and so is everybody's state.
            Mode::Synced | Mode::Update => {
                return self.log_message(Level::Debug, || {
                    format!("ignore sync request from {from} (epoch {epoch})")
                });
            }
            _ => return self.leave(),
        }
        self.log_message(Level::Notice, || {
            format!("received sync request (epoch {epoch})")
        });
        if from.nodeid != self.lowest {
            self.log_message(Level::Critical, || {
                format!("ignore sync request from wrong member {from}")
            });
        }
        self.epoch = epoch;
        self.forget_sync();
        match self.with_app(|app, ctx| app.state(ctx)) {
            Some(state) => self.send_state(Type::State, &state),
            None => {
                self.log(Level::Critical, "could not get state");
                self.leave();
            }
        }
    }

    fn sync_state(&mut self, from: MemberId, payload: &[u8]) {
        match self.members.iter_mut().find(|m| m.id == from) {
            Some(member) if member.state.is_none() => member.state = Some(payload.into()),
            Some(_) => {
                self.log(
                    Level::Critical,
                    format!("received state twice from member {from}"),
                );
                return self.leave();
            }
            None => {
                self.log(
                    Level::Critical,
                    format!("received state from non-member {from}"),
                );
                return self.leave();
            }
        }
        if self.members.iter().any(|m| m.state.is_none()) {
            return;
        }
        self.log(Level::Notice, "received all states");
        let states: Vec<(MemberId, Box<[u8]>)> = self
            .members
            .iter_mut()
            .filter_map(|m| m.state.take().map(|state| (m.id, state)))
            .collect();
        let plan = self.with_app(|app, ctx| app.process_states(&states, ctx));
        let Some(plan) = plan.filter(|plan| plan.synced.len() == self.members.len()) else {
            return self.leave();
        };
        self.start_phase_two(plan.leader, &plan.synced);
    }

    fn start_phase_two(&mut self, leader: Option<MemberId>, synced: &[bool]) {
        for (member, synced) in self.members.iter_mut().zip(synced) {
            member.synced = *synced;
        }
        self.leader = leader;
        if let Some(leader) = leader {
            let synced: Vec<MemberId> = self
                .members
                .iter()
                .filter(|m| m.synced)
                .map(|m| m.id)
                .collect();
            self.log(Level::Notice, format!("leader is {leader}"));
            self.log(Level::Notice, format!("synced members: {}", list(&synced)));
        }
        if leader == Some(self.own) {
            self.log(Level::Notice, "start sending inode updates");
            self.bulk = Some(0);
            self.send_bulk();
        }
        if self.members.iter().any(|m| m.id == self.own && m.synced) {
            self.set_mode(Mode::Synced);
        } else {
            self.set_mode(Mode::Update);
        }
        self.deliver_msg_queue();
    }

    fn update_complete(&mut self) {
        if !self.with_app(|app, ctx| app.commit(ctx)) {
            return self.leave();
        }
        // What was applied here before is now what the leader has.
        self.confirm.clear();
        for member in &mut self.members {
            member.synced = true;
        }
        self.with_app(|app, ctx| app.all_synced(ctx));
        self.set_mode(Mode::Synced);
        let queue = self.sync_queue.take();
        self.log_queue("dfsm_deliver_sync_queue", queue.len());
        for message in queue {
            if self.mode != Mode::Synced {
                return;
            }
            self.apply_queued(&message);
        }
        self.deliver_msg_queue();
        self.app.forget_sync();
    }

    /// Applies what may be applied; moves what comes behind the updates; keeps what has to wait.
    pub(super) fn deliver_msg_queue(&mut self) {
        let queue = self.msg_queue.take();
        self.log_queue("dfsm_deliver_queue", queue.len());
        let mut rest = VecDeque::new();
        for message in queue {
            let sender = self.members.iter().find(|m| m.id == message.from);
            match (self.mode, sender.map(|m| m.synced)) {
                (Mode::Synced | Mode::Update, None) => {}
                (Mode::Synced, Some(true)) => self.apply_queued(&message),
                (Mode::Update, Some(true)) => self.sync_queue.push(message),
                (Mode::Synced | Mode::Update, Some(false)) => rest.push_back(message),
                _ => return self.leave(),
            }
        }
        for message in rest {
            self.msg_queue.insert(message);
        }
    }

    fn log_queue(&mut self, name: &str, length: usize) {
        if length > 0 {
            self.log(Level::Notice, format!("{name}: queue length {length}"));
        }
    }

    fn apply_queued(&mut self, message: &Queued) {
        // It was parsed once already, or it would not be queued.
        if let Ok(Message {
            base,
            body: Body::Normal { count, payload },
        }) = Message::parse(&message.bytes)
        {
            self.apply(message.from, base, count, payload);
        }
    }

    fn verify_request(&mut self, from: MemberId, payload: &[u8]) {
        let id = match wire::parse_verify_request(payload) {
            Ok(id) => id,
            Err(err) => {
                self.log(
                    Level::Critical,
                    format!("received bad verify request: {err}"),
                );
                return self.leave();
            }
        };
        let Some(sum) = self.app.checksum() else {
            return self.leave();
        };
        self.checksum.id = id;
        self.checksum.epoch = Some(self.epoch);
        self.checksum.sum = sum;
        if from == self.own {
            self.send_state(Type::Verify, &wire::verify_payload(id, &sum));
        }
    }

    fn verify(&mut self, payload: &[u8]) {
        let (id, sum) = match wire::parse_verify(payload) {
            Ok(parsed) => parsed,
            Err(err) => {
                self.log(
                    Level::Critical,
                    format!("received bad verify message: {err}"),
                );
                return self.leave();
            }
        };
        if self.checksum.id != id || self.checksum.epoch != Some(self.epoch) {
            return self.log_message(Level::Notice, || {
                "skip verification - no checksum saved".to_owned()
            });
        }
        if self.checksum.sum == sum {
            return self.log(Level::Notice, "data verification successful");
        }
        let (ours, theirs) = (u64_at(&self.checksum.sum, 0), u64_at(&sum, 0));
        let text = format!("wrong checksum {theirs:016X} != {ours:016X} - restarting");
        self.log(Level::Critical, text);
        self.leave();
    }
}
