//! What comes with time: ends of waits, new attempts, and who everybody waits for.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::link::Link;
use super::machine::{Machine, Member};
use super::{Application, Level, Mode};

/// How often the members that hold everybody up are named.
const MISSING_EVERY: Duration = Duration::from_secs(5);

impl<A: Application> Machine<A> {
    /// Requests that are not sent, or not acknowledged, because a member is behind.
    fn has_waiters(&self) -> bool {
        !self.held.is_empty() || self.confirm.has_waiters()
    }

    pub(super) fn tick(&mut self) {
        self.expire();
        self.ask_for_round(true);
        match self.link {
            Link::Down { retry_at } if self.now.mono >= retry_at && self.app.may_join() => {
                self.restart();
            }
            Link::Leaving { until } if self.now.mono >= until => {
                self.log(
                    Level::Warning,
                    "own leave was not delivered - closing the connection",
                );
                self.left();
            }
            _ => {}
        }
        if self.link == Link::Up && self.now.mono >= self.missing_at {
            if let Some(missing) = self.missing() {
                self.missing_at = self.now.mono + MISSING_EVERY;
                let seconds = self.now.mono.saturating_sub(self.waiting_since).as_secs();
                let text = format!("waiting for {missing} since {seconds} s");
                self.log(Level::Warning, text);
            }
        }
        if self.verify_at.is_some_and(|at| self.now.mono >= at) {
            self.verify_at = self.config.verify_every.map(|every| self.now.mono + every);
            self.start_verify();
        }
    }

    /// A wait begins that others have to end.
    pub(super) fn wait_from_now(&mut self) {
        self.waiting_since = self.now.mono;
        self.missing_at = self.now.mono + MISSING_EVERY;
    }

    /// What this node waits for, if for anything.
    pub(super) fn missing(&self) -> Option<String> {
        match self.mode {
            Mode::Start => Some("membership".to_owned()),
            Mode::StartSync if self.members.iter().all(|m| m.state.is_none()) => {
                let lowest = self.names(self.members.iter().take(1));
                Some(format!("sync request from {lowest}"))
            }
            Mode::StartSync => {
                let silent = self.names(self.members.iter().filter(|m| m.state.is_none()));
                Some(format!("state of members {silent}"))
            }
            Mode::Update => {
                let leader = self
                    .members
                    .iter()
                    .filter(|m| self.leader.map_or(m.synced, |leader| leader == m.id));
                Some(format!(
                    "updates from leader {}",
                    self.names(leader.take(1))
                ))
            }
            // Requests wait for those who are behind.
            Mode::Synced if !self.settled() && self.has_waiters() => {
                let behind = self.names(self.members.iter().filter(|m| !m.synced));
                Some(format!("end of the synchronisation of {behind}"))
            }
            Mode::Synced | Mode::Leave | Mode::VersionError => None,
        }
    }

    /// Names of members; whose name is not known: node id and process id.
    fn names<'m>(&self, members: impl Iterator<Item = &'m Member>) -> String {
        let name = |m: &Member| {
            self.app
                .node_name(m.id.nodeid)
                .unwrap_or_else(|| m.id.to_string())
        };
        members.map(name).collect::<Vec<_>>().join(", ")
    }
}
