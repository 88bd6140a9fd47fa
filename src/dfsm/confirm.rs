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

use super::machine::Machine;
use super::requests::Pending;
use super::{Action, Application, Busy};

/// A request that was applied here, and whose caller is not told yet.
#[derive(Debug)]
struct Applied {
    pending: Pending,
    /// Count of the last own message that was sent before it was applied.
    sent: u64,
    /// Changes of the application before this one.
    changes: u64,
    confirmed: bool,
}

/// Everything that is applied and not told, in order.
#[derive(Debug, Default)]
pub(super) struct Confirm {
    applied: VecDeque<Applied>,
    /// Number of the last round.
    round: u64,
    /// The last round is under way, and so many of `applied` are older than it.
    covers: Option<usize>,
    /// Some were refused because the quorum was lost, and it is not known yet whether another node
    /// is left.
    undecided: bool,
}

impl Confirm {
    pub fn is_empty(&self) -> bool {
        self.applied.is_empty()
    }

    /// The own message `count` has come back: what was applied before it was sent is with everybody.
    pub fn message(&mut self, count: u64) {
        for applied in self.applied.iter_mut().take_while(|a| a.sent < count) {
            applied.confirmed = true;
        }
    }

    fn pop(&mut self) -> Option<Pending> {
        let applied = self.applied.pop_front()?;
        self.covers = self.covers.map(|covers| covers.saturating_sub(1));
        Some(applied.pending)
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
    /// A request that somebody waits for was applied.
    pub(super) fn applied(&mut self, pending: Pending, reply: A::Reply) {
        let ticket = pending.ticket;
        self.out.push(Action::Applied { ticket, reply });
        self.confirm.applied.push_back(Applied {
            pending,
            sent: self.sent,
            changes: self.app.changes().saturating_sub(1),
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
        if self.confirm.is_empty() || !self.settled() {
            return;
        }
        if self.config.hold_back && !self.app.may_acknowledge() {
            self.confirm.undecided = true;
            return self.refuse_applied();
        }
        while self.confirm.applied.front().is_some_and(|a| a.confirmed) {
            if let Some(Pending { ticket, .. }) = self.confirm.pop() {
                self.out.push(Action::Release { ticket });
            }
        }
    }

    /// What nobody is going to be refused any more stays.
    pub(super) fn keep(&mut self) {
        self.confirm.undecided &= !self.app.may_acknowledge();
        if self.confirm.undecided {
            return;
        }
        let first = self.confirm.applied.front().map(|a| a.changes);
        self.app.keep(first.unwrap_or(u64::MAX));
    }

    /// This node has lost the others. They may go on without what nobody was told of here; it would
    /// count in the version of this node when they are back, and the newer version wins.
    pub(super) fn take_back(&mut self) {
        let undecided = std::mem::take(&mut self.confirm.undecided);
        if self.config.hold_back && (undecided || !self.confirm.is_empty()) {
            self.with_app(|app, ctx| app.take_back(ctx));
            self.refuse_applied();
        }
    }

    /// What was applied here may be lost after all.
    pub(super) fn refuse_applied(&mut self) {
        while let Some(pending) = self.confirm.pop() {
            self.reply(Some(pending.ticket), Err(Busy));
        }
    }

    pub(super) fn expire_applied(&mut self) {
        let now = self.now.mono;
        while self
            .confirm
            .applied
            .front()
            .is_some_and(|a| now >= a.pending.deadline)
        {
            if let Some(pending) = self.confirm.pop() {
                self.reply(Some(pending.ticket), Err(Busy));
            }
        }
    }
}
