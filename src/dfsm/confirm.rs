//! When a caller may be told: the others have what was applied here.
//!
//! Corosync delivers a message to its sender as soon as it has put it on the wire, while the
//! others may never get it: if the sender loses them at that moment they go on without it
//! (cluster-protocol.md 11.14). So what was applied here is told only when something that was
//! sent *afterwards* has come back. For that the token had to go round: every member has held it
//! behind the message, and what one of them lacked it has asked for.
//!
//! What shows it is the next own message, or, if there is none, a *round*: a message of the driver
//! to itself, through corosync and behind the members, which no other node ever sees.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::Duration;

use super::machine::Machine;
use super::requests::Pending;
use super::{Action, Application, Busy};

/// An own message that has changed something here, while it is not known that the others have it.
#[derive(Debug)]
struct Applied {
    /// Whoever is to be told; `None` if nobody ever waited, or was refused meanwhile.
    pending: Option<Pending>,
    /// Count of the last own message that was sent before it was applied.
    sent: u64,
    /// Changes of the application before this one.
    changes: u64,
    confirmed: bool,
}

/// Own messages that were applied and are not confirmed, in order. A caller who is refused does not take
/// his message out of here: the first one says from where on the application may have to undo.
#[derive(Debug, Default)]
pub(super) struct Confirm {
    applied: VecDeque<Applied>,
    /// Number of the last round.
    round: u64,
    /// The last round is under way, and so many of `applied` are older than it.
    covers: Option<usize>,
}

impl Confirm {
    /// Somebody waits to be told.
    pub fn has_waiters(&self) -> bool {
        self.applied.iter().any(|a| a.pending.is_some())
    }

    /// All of it is undone or replaced.
    pub fn clear(&mut self) {
        self.applied.clear();
        self.covers = None;
    }

    /// The own message `count` has come back: what was applied before it was sent is with everybody.
    pub fn message(&mut self, count: u64) {
        for applied in self.applied.iter_mut().take_while(|a| a.sent < count) {
            applied.confirmed = true;
        }
    }

    /// Whoever waits for the first message, if that is confirmed.
    fn pop_confirmed(&mut self) -> Option<Option<Pending>> {
        if !self.applied.front()?.confirmed {
            return None;
        }
        self.covers = self.covers.map(|covers| covers.saturating_sub(1));
        self.applied.pop_front().map(|applied| applied.pending)
    }

    /// Number of a new round, if one is needed. `sent`: count of the last own message. An own message
    /// that is under way is as good, unless `insist` (it may have been dropped).
    fn ask(&mut self, sent: u64, insist: bool) -> Option<u64> {
        let last = self.applied.back()?;
        let needed = !last.confirmed && (last.sent == sent || insist);
        if !needed || self.covers.is_some() {
            return None;
        }
        self.covers = Some(self.applied.len());
        self.round += 1;
        Some(self.round)
    }

    /// The round `number` is back.
    pub fn round(&mut self, number: u64) {
        if number == self.round {
            let covers = self.covers.take().unwrap_or(0);
            for applied in self.applied.iter_mut().take(covers) {
                applied.confirmed = true;
            }
        }
    }

    /// The membership is another one: nothing that is under way shows anything any more.
    pub fn start_again(&mut self, sent: u64) {
        self.covers = None;
        for applied in &mut self.applied {
            applied.sent = sent;
            applied.confirmed = false;
        }
    }
}

impl<A: Application> Machine<A> {
    /// An own message was applied, and the application had made so many changes before it.
    pub(super) fn applied(&mut self, pending: Option<Pending>, reply: A::Reply, changes: u64) {
        match &pending {
            Some(Pending { ticket, .. }) => {
                let ticket = *ticket;
                self.out.push(Action::Applied { ticket, reply });
            }
            None if self.app.changes() == changes => return,
            None => {}
        }
        self.confirm.applied.push_back(Applied {
            pending,
            sent: self.sent,
            changes,
            confirmed: !self.config.hold_back,
        });
    }

    /// Asks for what is needed to tell those that wait.
    pub(super) fn ask_for_round(&mut self, insist: bool) {
        if self.settled() {
            if let Some(number) = self.confirm.ask(self.sent, insist) {
                self.out.push(Action::Round(number));
            }
        }
    }

    /// Tells whoever may be told.
    pub(super) fn release(&mut self) {
        if !self.settled() {
            return;
        }
        if self.config.hold_back && !self.app.may_acknowledge() {
            return self.refuse_applied();
        }
        while let Some(pending) = self.confirm.pop_confirmed() {
            if let Some(Pending { ticket, .. }) = pending {
                self.out.push(Action::Release { ticket });
            }
        }
    }

    /// What is confirmed stays.
    pub(super) fn keep(&mut self) {
        let first = self.confirm.applied.front().map(|a| a.changes);
        self.app.keep(first.unwrap_or(u64::MAX));
    }

    /// This node has lost the others. They may go on without what is not confirmed here; it would
    /// count in the version of this node when they are back, and the newer version wins.
    pub(super) fn take_back(&mut self) {
        self.refuse_applied();
        if self.config.hold_back && !self.confirm.applied.is_empty() {
            self.with_app(|app, ctx| app.take_back(ctx));
            self.confirm.clear();
        }
    }

    /// What was applied here may be lost after all.
    pub(super) fn refuse_applied(&mut self) {
        self.refuse_applied_until(Duration::MAX);
    }

    pub(super) fn expire_applied(&mut self) {
        self.refuse_applied_until(self.now.mono);
    }

    /// Whose wait ends by then.
    fn refuse_applied_until(&mut self, end: Duration) {
        for applied in &mut self.confirm.applied {
            if let Some(Pending { ticket, .. }) = applied.pending.take_if(|p| p.deadline <= end) {
                let result = Err(Busy);
                self.out.push(Action::Reply { ticket, result });
            }
        }
    }
}
