//! The CPG handle: coming, going, coming back (cluster-protocol.md 9).
#![forbid(unsafe_code)]

use std::time::Duration;

use super::machine::Machine;
use super::{Action, Application, MemberId, Mode};

/// A leave that corosync does not deliver by then is taken for done.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);
/// After this long in SYNCED the next restart is immediate again.
const CALM: Duration = Duration::from_secs(10);
/// First and longest pause between two attempts to come back.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_LAST: Duration = Duration::from_secs(15);
/// Pause while there is no connection: asking costs next to nothing, and corosync's return is to be
/// noticed at once.
const PAUSE_OUTAGE: Duration = Duration::from_millis(500);

/// Where the CPG handle stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// None; the next attempt is due then.
    Down { retry_at: Duration },
    /// Asked for; the answer is outstanding.
    Connecting,
    /// Joined.
    Up,
    /// `cpg_leave` was asked for; its confchg is expected until then.
    Leaving { until: Duration },
    /// For good.
    Closed,
}

impl<A: Application> Machine<A> {
    pub(super) fn connected(&mut self, own: MemberId) {
        if self.stopping || self.mode.is_permanent() {
            self.link = Link::Closed;
            self.out.push(Action::Close);
            return;
        }
        self.own = own;
        self.outage = false;
        self.link = Link::Up;
        self.reset();
        self.wait_from_now();
        if !self.app.may_join() {
            self.leave();
        }
    }

    pub(super) fn disconnected(&mut self) {
        self.take_back();
        self.refuse_pending();
        self.refuse_held();
        if self.stopping || self.mode.is_permanent() {
            self.link = Link::Closed;
            return;
        }
        self.outage = true;
        self.link = Link::Down {
            retry_at: self.now.mono + PAUSE_OUTAGE,
        };
        self.reset();
    }

    /// Back to the state before the first membership. Message counts and epoch counter go on.
    fn reset(&mut self) {
        self.refuse_pending();
        self.app.left();
        self.forget_sync();
        self.sync_queue.take();
        self.msg_queue.take();
        self.members.clear();
        self.set_mode(Mode::Start);
    }

    pub(super) fn restart(&mut self) {
        self.reset();
        self.link = Link::Connecting;
        self.out.push(Action::Restart);
    }

    /// The own leave is done (or will never be delivered).
    pub(super) fn left(&mut self) {
        if self.stopping || self.mode.is_permanent() {
            self.link = Link::Closed;
            self.out.push(Action::Close);
            return;
        }
        if self
            .synced_since
            .is_some_and(|since| self.now.mono >= since + CALM)
        {
            self.attempts = 0;
        }
        self.synced_since = None;
        if self.attempts == 0 && self.app.may_join() {
            self.attempts = 1;
            self.restart();
        } else {
            self.link = Link::Down {
                retry_at: self.now.mono + self.pause(),
            };
        }
    }

    /// Pause before the next attempt; doubles each time.
    fn pause(&mut self) -> Duration {
        let pause = PAUSE_FIRST * (1u32 << self.attempts.min(8));
        self.attempts += 1;
        pause.min(PAUSE_LAST)
    }

    pub(super) fn stop(&mut self) {
        self.stopping = true;
        // Where this process meets the others again is not known.
        self.take_back();
        self.refuse_pending();
        self.refuse_held();
        match self.link {
            Link::Up => self.start_leaving(),
            Link::Leaving { .. } | Link::Closed => {}
            Link::Down { .. } | Link::Connecting => {
                self.link = Link::Closed;
                self.out.push(Action::Close);
            }
        }
    }

    pub(super) fn start_leaving(&mut self) {
        if self.link == Link::Up {
            self.link = Link::Leaving {
                until: self.now.mono + LEAVE_LIMIT,
            };
            self.out.push(Action::Leave);
        }
    }

    /// A new request cannot even wait.
    pub(super) fn closed_to_requests(&self) -> bool {
        self.mode.is_permanent() || self.outage || self.stopping
    }
}
