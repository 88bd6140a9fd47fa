//! Rounds through corosync and behind all its members: a group of which this process is the only
//! member (see [`crate::dfsm::Action::Round`]).
//!
//! Corosync orders the messages of all groups in one ring, so the message comes back after everything
//! that was sent before it, in whatever group, and only when the token has been everywhere. No
//! other node has a process in the group, so none of them wakes up.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::group::{Channel, Request};
use super::logs::log;
use crate::corosync::Error;
use crate::corosync::cpg::{Event, Member};
use crate::dfsm::Level;

/// Domain of its log lines.
pub(super) const NAME: &str = "dcdb";
/// Between two attempts to open the group.
const RETRY: Duration = Duration::from_millis(500);

enum Link {
    None { retry_at: Duration },
    Opening,
    Open(Box<dyn Channel>),
}

/// The group as the core drives it.
pub(super) struct Rounds {
    link: Link,
    /// Counts connections: answers about an earlier one are void.
    generation: u64,
    pid: u32,
    /// The last number that was asked for, until it is back.
    wanted: Option<u64>,
    /// `wanted` was given to this connection.
    sent: bool,
    requests: Box<dyn FnMut(Request) + Send>,
}

impl Rounds {
    /// `requests` takes what other threads have to do; it must not wait.
    pub fn new(pid: u32, requests: Box<dyn FnMut(Request) + Send>) -> Self {
        Rounds {
            link: Link::None {
                retry_at: Duration::ZERO,
            },
            generation: 0,
            pid,
            wanted: None,
            sent: false,
            requests,
        }
    }

    /// To be polled.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.link {
            Link::Open(channel) => Some(channel.fd()),
            _ => None,
        }
    }

    /// A round waits because corosync has no room for it.
    pub fn is_blocked(&self) -> bool {
        matches!(self.link, Link::Open(_)) && self.wanted.is_some() && !self.sent
    }

    /// Connects if there is something to connect to.
    pub fn tick(&mut self, now: Duration) {
        if matches!(self.link, Link::None { retry_at } if now >= retry_at) {
            self.generation += 1;
            self.link = Link::Opening;
            (self.requests)(Request::Open(self.generation));
        }
    }

    /// The answer to [`Request::Open`].
    pub fn opened(&mut self, now: Duration, generation: u64, channel: Option<Box<dyn Channel>>) {
        let expected = generation == self.generation && matches!(self.link, Link::Opening);
        match channel {
            Some(channel) if expected => {
                self.link = Link::Open(channel);
                self.sent = false;
                self.flush(now);
            }
            Some(channel) => (self.requests)(Request::Discard(channel)),
            None if expected => self.retry(now),
            None => {}
        }
    }

    /// Sends `number`, now or as soon as that is possible.
    pub fn ask(&mut self, now: Duration, number: u64) {
        self.wanted = Some(number);
        self.sent = false;
        self.flush(now);
    }

    /// Sends what waits, if corosync takes it.
    pub fn flush(&mut self, now: Duration) {
        let (Link::Open(channel), Some(number), false) = (&mut self.link, self.wanted, self.sent)
        else {
            return;
        };
        match channel.send(&number.to_le_bytes()) {
            Ok(()) => self.sent = true,
            Err(Error::TryAgain | Error::Interrupt) => {}
            Err(err) => self.lost(now, "cpg_send_message", err),
        }
    }

    /// Takes in what corosync has; the wanted number if it is back.
    pub fn dispatch(&mut self, now: Duration) -> Option<u64> {
        let Link::Open(channel) = &mut self.link else {
            return None;
        };
        let own = Member {
            nodeid: channel.nodeid(),
            pid: self.pid,
        };
        let wanted = self.wanted.map(u64::to_le_bytes);
        let is_wanted = |event: &Event| match event {
            Event::Deliver { sender, message } => {
                *sender == own && wanted.is_some_and(|wanted| message[..] == wanted)
            }
            Event::Confchg { .. } => false,
        };
        match channel.dispatch() {
            Ok(events) if events.iter().any(is_wanted) => self.wanted.take(),
            Ok(_) => None,
            Err(err) => {
                self.lost(now, "cpg_dispatch", err);
                None
            }
        }
    }

    fn lost(&mut self, now: Duration, call: &str, err: Error) {
        let text = format!("{call} failed: {err} - connecting for rounds once more");
        log(NAME, Level::Notice, &text);
        self.close();
        self.retry(now);
    }

    /// For good.
    pub fn close(&mut self) {
        if let Link::Open(channel) = std::mem::replace(&mut self.link, Link::Opening) {
            (self.requests)(Request::Discard(channel));
        }
    }

    fn retry(&mut self, now: Duration) {
        self.link = Link::None {
            retry_at: now + RETRY,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::super::fake::{self, Script};
    use super::*;

    const OWN: Member = Member { nodeid: 1, pid: 7 };

    struct Lab {
        rounds: Rounds,
        script: Arc<Mutex<Script>>,
        opened: Arc<Mutex<Vec<u64>>>,
    }

    impl Lab {
        fn new() -> Lab {
            let opened: Arc<Mutex<Vec<u64>>> = Arc::default();
            let into = opened.clone();
            let requests = move |request| {
                if let Request::Open(generation) = request {
                    into.lock().push(generation);
                }
            };
            let mut lab = Lab {
                rounds: Rounds::new(OWN.pid, Box::new(requests)),
                script: Arc::default(),
                opened,
            };
            lab.rounds.tick(Duration::ZERO);
            lab.open(1);
            lab
        }

        fn open(&mut self, generation: u64) {
            let channel = fake::channel(&self.script);
            self.rounds
                .opened(Duration::ZERO, generation, Some(channel));
        }

        fn sent(&self) -> Vec<u64> {
            let number = |message: &Vec<u8>| u64::from_le_bytes(message[..].try_into().unwrap());
            self.script.lock().sent.iter().map(number).collect()
        }

        fn back(&mut self, sender: Member, number: u64) -> Option<u64> {
            let message = number.to_le_bytes().to_vec();
            let event = Event::Deliver { sender, message };
            self.script.lock().dispatch.push_back(Ok(vec![event]));
            self.rounds.dispatch(Duration::ZERO)
        }
    }

    #[test]
    fn only_the_last_own_number_counts() {
        let mut lab = Lab::new();
        lab.rounds.ask(Duration::ZERO, 1);
        lab.rounds.ask(Duration::ZERO, 2);
        assert_eq!(lab.sent(), [1, 2]);
        assert_eq!(lab.back(OWN, 1), None);
        assert_eq!(lab.back(Member { pid: 8, ..OWN }, 2), None);
        assert_eq!(lab.back(OWN, 2), Some(2));
        assert_eq!(lab.back(OWN, 2), None);
    }

    #[test]
    fn no_room_is_tried_again() {
        let mut lab = Lab::new();
        lab.script.lock().send.push_back(Err(Error::TryAgain));
        lab.rounds.ask(Duration::ZERO, 5);
        assert!(lab.rounds.is_blocked());
        lab.rounds.flush(Duration::ZERO);
        assert!(!lab.rounds.is_blocked());
        lab.rounds.flush(Duration::ZERO);
        assert_eq!(lab.sent(), [5]);
    }

    #[test]
    fn a_new_connection_is_asked_for_what_the_old_one_did_not_bring_back() {
        let mut lab = Lab::new();
        lab.rounds.ask(Duration::ZERO, 5);
        lab.script.lock().dispatch.push_back(Err(Error::Library));
        assert_eq!(lab.rounds.dispatch(Duration::ZERO), None);
        assert!(lab.rounds.fd().is_none());
        // Not at once: corosync is starting.
        lab.rounds.tick(RETRY / 2);
        assert_eq!(*lab.opened.lock(), [1]);
        lab.rounds.tick(RETRY);
        assert_eq!(*lab.opened.lock(), [1, 2]);
        // The answer to an earlier question.
        lab.open(1);
        assert!(lab.rounds.fd().is_none());
        lab.open(2);
        assert_eq!(lab.sent(), [5, 5]);
        assert_eq!(lab.back(OWN, 5), Some(5));
    }

    #[test]
    fn a_connection_that_fails_is_tried_again() {
        let mut lab = Lab::new();
        lab.script.lock().send.push_back(Err(Error::BadHandle));
        lab.rounds.ask(Duration::ZERO, 1);
        lab.rounds.tick(RETRY);
        lab.rounds.opened(RETRY, 2, None);
        lab.rounds.tick(RETRY);
        assert_eq!(*lab.opened.lock(), [1, 2]);
        lab.rounds.tick(RETRY * 2);
        assert_eq!(*lab.opened.lock(), [1, 2, 3]);
    }
}
