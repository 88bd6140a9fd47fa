//! Local requests: held back, sent, waited for (cluster-protocol.md 6).
#![forbid(unsafe_code)]

use std::time::Duration;

use super::app::Outgoing;
use super::machine::Machine;
use super::{Action, Application, Busy, Ticket, wire};

/// Requests without a ticket that are held back: the oldest is dropped for one more.
const HELD_LIMIT: usize = 1000;

/// A request that was not sent yet.
#[derive(Debug)]
pub(super) struct Held<R> {
    pub ticket: Option<Ticket>,
    pub request: R,
    pub deadline: Duration,
}

/// A message that was sent and whose sender waits.
#[derive(Debug)]
pub(super) struct Pending {
    pub ticket: Ticket,
    pub deadline: Duration,
}

impl<A: Application> Machine<A> {
    pub(super) fn submit(&mut self, ticket: Option<Ticket>, request: A::Request) {
        if let Err(reply) = self.app.admit(&request) {
            return self.reply(ticket, Ok(reply));
        }
        if self.closed_to_requests() {
            return self.reply(ticket, Err(Busy));
        }
        // Whoever waits bounds the number of requests by waiting; nobody waits for these.
        if ticket.is_none() && self.held.len() >= HELD_LIMIT {
            self.held.pop_front();
        }
        let deadline = self.now.mono + self.config.write_timeout;
        self.held.push_back(Held {
            ticket,
            request,
            deadline,
        });
    }

    /// Sends what was held back, in order, if it may go out now.
    pub(super) fn send_held(&mut self) {
        while self.sending() {
            let Some(held) = self.held.pop_front() else {
                return;
            };
            let request = held.request;
            match self.with_app(|app, ctx| app.prepare(request, ctx)) {
                Err(reply) => self.reply(held.ticket, Ok(reply)),
                Ok(messages) => {
                    for message in &messages {
                        self.send_normal(message);
                    }
                    if let (Some(ticket), false) = (held.ticket, messages.is_empty()) {
                        self.pending.insert(
                            self.sent,
                            Pending {
                                ticket,
                                deadline: held.deadline,
                            },
                        );
                    }
                }
            }
        }
    }

    /// Sends one application message; counts go on over reconnects.
    pub(super) fn send_normal(&mut self, message: &Outgoing) {
        self.sent += 1;
        let bytes = wire::normal(
            A::PROTOCOL,
            message.subtype,
            self.now.wall,
            self.sent,
            &message.payload,
        );
        self.out.push(Action::Send(bytes));
    }

    /// Whoever waits for the own message `count`. Whoever waits for an earlier one gets no result any
    /// more.
    pub(super) fn waiting_for(&mut self, count: u64) -> Option<Pending> {
        while let Some(entry) = self.pending.first_entry() {
            let at = *entry.key();
            if at > count {
                return None;
            }
            let pending = entry.remove();
            if at == count {
                return Some(pending);
            }
            self.reply(Some(pending.ticket), Err(Busy));
        }
        None
    }

    /// Whether the own message `count` has an effect is not known here.
    pub(super) fn refuse(&mut self, count: u64) {
        let ticket = self.waiting_for(count).map(|pending| pending.ticket);
        self.reply(ticket, Err(Busy));
    }

    pub(super) fn refuse_pending(&mut self) {
        self.refuse_applied();
        for pending in std::mem::take(&mut self.pending).into_values() {
            self.reply(Some(pending.ticket), Err(Busy));
        }
    }

    pub(super) fn refuse_held(&mut self) {
        for held in std::mem::take(&mut self.held) {
            self.reply(held.ticket, Err(Busy));
        }
    }

    /// Refuses what may no longer wait, after something changed outside.
    pub(super) fn recheck_held(&mut self) {
        for held in std::mem::take(&mut self.held) {
            match self.app.admit(&held.request) {
                Ok(()) => self.held.push_back(held),
                Err(reply) => self.reply(held.ticket, Ok(reply)),
            }
        }
    }

    /// Ends every wait that is over.
    pub(super) fn expire(&mut self) {
        let now = self.now.mono;
        // All are in order of their deadlines: one timeout for all, and counts grow.
        while self.held.front().is_some_and(|held| now >= held.deadline) {
            let ticket = self.held.pop_front().and_then(|held| held.ticket);
            self.reply(ticket, Err(Busy));
        }
        self.expire_applied();
        while let Some(entry) = self.pending.first_entry() {
            if now < entry.get().deadline {
                return;
            }
            let pending = entry.remove();
            self.reply(Some(pending.ticket), Err(Busy));
        }
    }

    pub(super) fn reply(&mut self, ticket: Option<Ticket>, result: Result<A::Reply, Busy>) {
        if let Some(ticket) = ticket {
            self.out.push(Action::Reply { ticket, result });
        }
    }
}
