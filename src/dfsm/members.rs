//! Membership changes (cluster-protocol.md 7.1).
#![forbid(unsafe_code)]

use super::link::Link;
use super::machine::{Machine, Member, list};
use super::{Action, Application, Epoch, Level, MemberId, Mode, wire};

impl<A: Application> Machine<A> {
    pub(super) fn confchg(&mut self, members: &[MemberId], joined: &[MemberId]) {
        let is_member = members.contains(&self.own);
        match self.link {
            Link::Up | Link::Leaving { .. } => {}
            Link::Down { .. } | Link::Connecting | Link::Closed => return,
        }
        self.epoch_counter = self.epoch_counter.wrapping_add(1);
        self.epoch = Epoch {
            counter: self.epoch_counter,
            time: self.now.wall,
            from: self.own,
        };
        self.checksum.id = self.checksum.counter;
        self.checksum.epoch = None;
        self.confirm.start_again(self.sent);
        self.drop_sync_queue();
        if let Link::Leaving { .. } = self.link {
            // Also when the process stops: nothing of this membership matters any more.
            if !is_member {
                self.left();
            }
            return;
        }
        if self.mode.is_error() {
            return;
        }
        let mut sorted = members.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        if is_member || self.mode != Mode::Start {
            self.log(Level::Notice, format!("members: {}", list(&sorted)));
        }
        self.forget_sync();
        self.leader = None;
        self.lowest = sorted.first().map_or(0, |m| m.nodeid);
        self.members = sorted
            .iter()
            .map(|id| Member {
                id: *id,
                state: None,
                synced: false,
            })
            .collect();
        if !is_member {
            self.members.clear();
            if self.mode != Mode::Start {
                self.log(
                    Level::Critical,
                    format!("we ({}) left the process group", self.own),
                );
                self.leave();
                self.left();
            }
            return;
        }
        if sorted.len() > 1 {
            self.resend_queued(joined);
            self.set_mode(Mode::StartSync);
            if self.lowest == self.own.nodeid {
                self.send_state(wire::Type::SyncStart, b"");
            }
        } else {
            self.take_back_alone();
            for member in &mut self.members {
                member.synced = true;
            }
            self.set_mode(Mode::Synced);
            self.deliver_msg_queue();
        }
        if !self.mode.is_error() {
            self.with_app(|app, ctx| app.confchg(&sorted, ctx));
        }
    }

    /// No other member, and the majority, if there is one, is elsewhere.
    pub(super) fn is_cut_off(&self) -> bool {
        let alone = self.members.len() == 1 && self.members[0].id == self.own;
        alone && !self.app.may_acknowledge()
    }

    pub(super) fn take_back_alone(&mut self) {
        if self.is_cut_off() {
            self.take_back();
        }
    }

    /// Who joined never saw what is queued here: everybody sends his own part of it once more.
    fn resend_queued(&mut self, joined: &[MemberId]) {
        if joined.is_empty() || self.msg_queue.is_empty() {
            return;
        }
        let queue = self.msg_queue.take();
        self.log(
            Level::Notice,
            format!("queue not emtpy - resening {} messages", queue.len()),
        );
        let own = self.own;
        let again = queue.into_iter().filter(|m| m.from == own);
        self.out
            .extend(again.map(|m| Action::Send(m.bytes.into_vec())));
    }

    /// Drops what was to be applied after the updates: the synced members have applied it, and the
    /// next synchronisation compares the data again. Callers here cannot know the outcome.
    fn drop_sync_queue(&mut self) {
        let own = self.own;
        let dropped = self.sync_queue.take();
        for message in dropped.into_iter().filter(|m| m.from == own) {
            self.refuse(message.count);
        }
    }
}
