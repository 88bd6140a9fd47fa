//! Answers that wait for two things: the disk, and the other nodes.
//!
//! Both come in the order of the changes, but neither waits for the other. What becomes visible
//! (an answer, a counter of `.version`) does so in that order, too.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::dfsm::Ticket;
use crate::failure::contain;

/// May the caller be told?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Every member has it.
    Release,
    /// It is not known.
    Refuse,
}

/// What is done when both are known.
pub(super) type Then = Box<dyn FnOnce(Verdict) + Send>;

struct Entry {
    /// `None`: nobody waits, there is nothing to be said.
    ticket: Option<Ticket>,
    verdict: Option<Verdict>,
    /// Set when it is stored.
    then: Option<Then>,
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Entry>,
    /// Number of the first entry.
    first: u64,
    /// A thread is at it: it takes what becomes ready meanwhile.
    running: bool,
}

impl Queue {
    fn pop_ready(&mut self) -> Option<(Then, Verdict)> {
        let front = self.entries.front_mut()?;
        let verdict = front.verdict?;
        let then = front.then.take()?;
        self.entries.pop_front();
        self.first += 1;
        Some((then, verdict))
    }
}

/// The queue, for the core and whichever thread writes.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<Mutex<Queue>>);

impl Gate {
    /// The place of a change in the order; returns its number. With a ticket it waits for a verdict.
    pub fn enter(&self, ticket: Option<Ticket>) -> u64 {
        let mut queue = self.0.lock();
        queue.entries.push_back(Entry {
            ticket,
            verdict: ticket.is_none().then_some(Verdict::Release),
            then: None,
        });
        queue.first + queue.entries.len() as u64 - 1
    }

    /// It is stored (or is known not to be soon): `then` is what follows.
    pub fn stored(&self, number: u64, then: Then) {
        let mut queue = self.0.lock();
        let index = number - queue.first;
        queue.entries[index as usize].then = Some(then);
        Gate::run(&mut queue);
    }

    /// Its caller may be told, or not. A ticket that is not here was answered before.
    pub fn judge(&self, ticket: Ticket, verdict: Verdict) {
        let mut queue = self.0.lock();
        let waits = |e: &&mut Entry| e.ticket == Some(ticket) && e.verdict.is_none();
        let Some(entry) = queue.entries.iter_mut().find(waits) else {
            return;
        };
        entry.verdict = Some(verdict);
        Gate::run(&mut queue);
    }

    /// Nobody will be told anything any more.
    pub fn refuse_all(&self) {
        let mut queue = self.0.lock();
        for entry in &mut queue.entries {
            entry.verdict.get_or_insert(Verdict::Refuse);
        }
        Gate::run(&mut queue);
    }

    /// In order, and without the lock: a caller may come back with the next change.
    fn run(queue: &mut MutexGuard<'_, Queue>) {
        if std::mem::replace(&mut queue.running, true) {
            return;
        }
        while let Some((then, verdict)) = queue.pop_ready() {
            let told = || MutexGuard::unlocked(queue, || then(verdict));
            // Those that come behind must not wait for ever.
            contain("answering a change", told);
        }
        queue.running = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Told = Arc<Mutex<Vec<(&'static str, Verdict)>>>;

    fn then(told: &Told, name: &'static str) -> Then {
        let told = told.clone();
        Box::new(move |verdict| told.lock().push((name, verdict)))
    }

    #[test]
    fn both_are_needed_in_whatever_order_they_come() {
        let (gate, told) = (Gate::default(), Told::default());
        let [a, b] = [1, 2].map(|ticket| gate.enter(Some(ticket)));
        gate.stored(a, then(&told, "a"));
        assert!(told.lock().is_empty());
        gate.judge(1, Verdict::Release);
        gate.judge(2, Verdict::Refuse);
        assert_eq!(*told.lock(), [("a", Verdict::Release)]);
        gate.stored(b, then(&told, "b"));
        assert_eq!(told.lock()[1], ("b", Verdict::Refuse));
        // Twice is once.
        gate.judge(2, Verdict::Release);
        assert_eq!(told.lock().len(), 2);
    }

    #[test]
    fn what_nobody_waits_for_keeps_its_place() {
        let (gate, told) = (Gate::default(), Told::default());
        let first = gate.enter(Some(1));
        let second = gate.enter(None);
        gate.stored(first, then(&told, "first"));
        gate.stored(second, then(&told, "second"));
        assert!(told.lock().is_empty());
        gate.refuse_all();
        let want = [("first", Verdict::Refuse), ("second", Verdict::Release)];
        assert_eq!(*told.lock(), want);
    }

    #[test]
    fn a_panic_ends_one_answer_only() {
        let (gate, told) = (Gate::default(), Told::default());
        gate.stored(gate.enter(None), Box::new(|_| panic!("on purpose")));
        gate.stored(gate.enter(None), then(&told, "next"));
        assert_eq!(*told.lock(), [("next", Verdict::Release)]);
    }

    #[test]
    fn a_caller_may_come_back_with_the_next_change() {
        let (gate, told) = (Gate::default(), Told::default());
        let first = gate.enter(Some(1));
        let (again, next) = (gate.clone(), then(&told, "next"));
        let come_back = move |_| {
            let second = again.enter(Some(2));
            again.judge(2, Verdict::Release);
            again.stored(second, next);
        };
        gate.judge(1, Verdict::Release);
        gate.stored(first, Box::new(come_back));
        assert_eq!(*told.lock(), [("next", Verdict::Release)]);
    }
}
