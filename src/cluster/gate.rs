//! Answers that wait for two things: the disk, and the other nodes.
//!
//! Both come in the order of the changes, but neither waits for the other. What becomes visible
//! (a success, a counter of `.version`) does so in that order, too. A refusal waits for nothing.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use crate::dfsm::Ticket;
use crate::failure::contain;
use crate::memdb::Error;
use crate::replica::Done;

/// May the caller be told?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Every member has it.
    Release,
    /// It is not known.
    Refuse,
}

/// Somebody who waits for a change.
pub(super) struct Waiter {
    pub ticket: Ticket,
    pub done: Done,
    /// He is refused then.
    pub until: Instant,
}

/// What is done when both are known, with whoever is not answered yet.
pub(super) type Then = Box<dyn FnOnce(Verdict, Option<Done>) + Send>;

struct Entry {
    /// `None`: nobody waits, or he was refused.
    waiter: Option<Waiter>,
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
    fn pop_ready(&mut self) -> Option<(Then, Verdict, Option<Done>)> {
        let front = self.entries.front_mut()?;
        let verdict = front.verdict?;
        let then = front.then.take()?;
        let waiter = self.entries.pop_front()?.waiter;
        self.first += 1;
        Some((then, verdict, waiter.map(|waiter| waiter.done)))
    }

    /// Takes away whoever is refused.
    fn refuse(&mut self, which: impl Fn(&Waiter, Option<Verdict>) -> bool) -> Vec<Done> {
        let mut refused = Vec::new();
        for entry in &mut self.entries {
            let verdict = entry.verdict;
            if let Some(waiter) = entry.waiter.take_if(|waiter| which(waiter, verdict)) {
                entry.verdict = Some(Verdict::Refuse);
                refused.push(waiter.done);
            }
        }
        refused
    }
}

/// The queue, for the core and whichever thread writes.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<Mutex<Queue>>);

impl Gate {
    /// The place of a change in the order; returns its number. With a waiter it needs a verdict.
    pub fn enter(&self, waiter: Option<Waiter>) -> u64 {
        let mut queue = self.0.lock();
        queue.entries.push_back(Entry {
            verdict: waiter.is_none().then_some(Verdict::Release),
            waiter,
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

    /// The caller may be told when it is stored. A ticket that is not here was answered before.
    pub fn release(&self, ticket: Ticket) {
        let mut queue = self.0.lock();
        let of = |e: &&mut Entry| e.waiter.as_ref().is_some_and(|w| w.ticket == ticket);
        if let Some(entry) = queue.entries.iter_mut().find(of) {
            entry.verdict.get_or_insert(Verdict::Release);
        }
        Gate::run(&mut queue);
    }

    /// The caller is refused, at once, unless he may be told.
    pub fn refuse(&self, ticket: Ticket) {
        self.refuse_those(|waiter, verdict| waiter.ticket == ticket && verdict.is_none());
    }

    /// Whoever has waited long enough, for the others or for the disk, is refused.
    pub fn expire(&self, now: Instant) {
        self.refuse_those(|waiter, _| waiter.until <= now);
    }

    /// Nobody will be told anything any more that was not confirmed.
    pub fn refuse_all(&self) {
        self.refuse_those(|_, verdict| verdict.is_none());
    }

    fn refuse_those(&self, which: impl Fn(&Waiter, Option<Verdict>) -> bool) {
        let refused = self.0.lock().refuse(which);
        for done in refused {
            done(Err(Error::Busy));
        }
        Gate::run(&mut self.0.lock());
    }

    /// In order, and without the lock: a caller may come back with the next change.
    fn run(queue: &mut MutexGuard<'_, Queue>) {
        if std::mem::replace(&mut queue.running, true) {
            return;
        }
        while let Some((then, verdict, done)) = queue.pop_ready() {
            let told = || MutexGuard::unlocked(queue, || then(verdict, done));
            // Those that come behind must not wait for ever.
            contain("answering a change", told);
        }
        queue.running = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of what was done, and answers.
    type Told = Arc<Mutex<Vec<(&'static str, Result<(), Error>)>>>;

    fn then(told: &Told, name: &'static str) -> Then {
        let told = told.clone();
        Box::new(move |verdict, done| {
            let result = match verdict {
                Verdict::Release => Ok(()),
                Verdict::Refuse => Err(Error::Busy),
            };
            told.lock().push((name, result));
            assert_eq!(done.is_some(), result.is_ok() && name != "nobody");
        })
    }

    fn waiter(told: &Told, ticket: Ticket) -> Option<Waiter> {
        let told = told.clone();
        Some(Waiter {
            ticket,
            done: Box::new(move |result| told.lock().push(("answer", result.map(drop)))),
            until: Instant::now() + LIMIT,
        })
    }

    const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);
    const REFUSED: Result<(), Error> = Err(Error::Busy);

    #[test]
    fn both_are_needed_in_whatever_order_they_come() {
        let (gate, told) = (Gate::default(), Told::default());
        let [a, b] = [1, 2].map(|ticket| gate.enter(waiter(&told, ticket)));
        gate.stored(a, then(&told, "a"));
        assert!(told.lock().is_empty());
        gate.release(1);
        gate.release(2);
        assert_eq!(*told.lock(), [("a", Ok(()))]);
        gate.stored(b, then(&told, "b"));
        assert_eq!(told.lock()[1], ("b", Ok(())));
        // Twice is once.
        gate.refuse(2);
        assert_eq!(told.lock().len(), 2);
    }

    #[test]
    fn a_refusal_does_not_wait_for_the_disk() {
        let (gate, told) = (Gate::default(), Told::default());
        let [a, b, c] = [1, 2, 3].map(|ticket| gate.enter(waiter(&told, ticket)));
        gate.refuse(2);
        assert_eq!(*told.lock(), [("answer", REFUSED)]);
        // Confirmed, but the disk takes too long.
        gate.release(1);
        gate.release(3);
        gate.expire(Instant::now());
        assert_eq!(told.lock().len(), 1);
        gate.expire(Instant::now() + LIMIT);
        assert_eq!(*told.lock(), [("answer", REFUSED); 3]);
        // Written after all: what follows does, in order.
        for (number, name) in [(b, "b"), (a, "a"), (c, "c")] {
            gate.stored(number, then(&told, name));
        }
        let want = [("a", REFUSED), ("b", REFUSED), ("c", REFUSED)];
        assert_eq!(told.lock()[3..], want);
    }

    #[test]
    fn what_nobody_waits_for_keeps_its_place() {
        let (gate, told) = (Gate::default(), Told::default());
        let first = gate.enter(waiter(&told, 1));
        let second = gate.enter(None);
        gate.stored(first, then(&told, "first"));
        gate.stored(second, then(&told, "nobody"));
        assert!(told.lock().is_empty());
        gate.refuse_all();
        let want = [("answer", REFUSED), ("first", REFUSED), ("nobody", Ok(()))];
        assert_eq!(*told.lock(), want);
    }

    #[test]
    fn a_panic_ends_one_answer_only() {
        let (gate, told) = (Gate::default(), Told::default());
        gate.stored(gate.enter(None), Box::new(|_, _| panic!("on purpose")));
        gate.stored(gate.enter(None), then(&told, "nobody"));
        assert_eq!(*told.lock(), [("nobody", Ok(()))]);
    }

    #[test]
    fn a_caller_may_come_back_with_the_next_change() {
        let (gate, told) = (Gate::default(), Told::default());
        let first = gate.enter(waiter(&told, 1));
        let (again, next) = (gate.clone(), then(&told, "next"));
        let second = waiter(&told, 2);
        let come_back = move |_, _| {
            let second = again.enter(second);
            again.release(2);
            again.stored(second, next);
        };
        gate.release(1);
        gate.stored(first, Box::new(come_back));
        assert_eq!(*told.lock(), [("next", Ok(()))]);
    }
}
