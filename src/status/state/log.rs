//! The cluster log as the rest of the daemon uses it.
#![forbid(unsafe_code)]

use std::sync::Arc;

use tracing::debug;

use super::{DOMAIN, Status};
use crate::status::clusterlog::{self, BadEntry, BadRing, Entry, NewEntry};

impl Status {
    /// Logs an event of this node. Returns the binary entry for the other nodes; `None` if nothing
    /// was logged (`priority` above 7).
    pub fn log(
        &self,
        ident: &[u8],
        tag: &[u8],
        pid: u32,
        priority: u8,
        message: &[u8],
        now: u32,
    ) -> Option<Vec<u8>> {
        if priority > 7 {
            debug!(target: DOMAIN, "ignore cluster log message with priority {priority}");
            return None;
        }
        let new = NewEntry {
            node: self.node.as_bytes(),
            ident,
            tag,
            pid,
            priority,
            message,
        };
        let entry = self.log.lock().log(&new, now);
        if entry.is_none() {
            self.complain(format_args!("ignore insert of duplicate cluster log"));
        }
        entry.map(|entry| entry.to_bytes(0, 0))
    }

    /// Takes the binary entry another node sent.
    ///
    /// # Errors
    /// [`BadEntry`] if it is none.
    pub fn log_receive(&self, message: &[u8]) -> Result<(), BadEntry> {
        let entry = Entry::from_message(message)?;
        debug!(target: DOMAIN, "received log");
        if !self.log.lock().insert(&entry) {
            self.complain(format_args!("ignore insert of duplicate cluster log"));
        }
        Ok(())
    }

    /// The ring this node sends at a synchronisation: always 131,072 bytes.
    pub fn log_state(&self) -> Vec<u8> {
        self.log.lock().state()
    }

    /// Merges the rings of the other members into the log of this node. Each one that is not a ring
    /// is passed over and its place in `states` returned with the reason.
    pub fn log_merge(&self, states: &[&[u8]]) -> Vec<(usize, BadRing)> {
        let mut good = Vec::new();
        let mut bad = Vec::new();
        for (i, state) in states.iter().enumerate() {
            match clusterlog::parse(state) {
                Ok(entries) => good.push(entries),
                Err(error) => bad.push((i, error)),
            }
        }
        self.log.lock().merge(&good);
        bad
    }

    /// Content of `.clusterlog` (status.md 10.1): the newest `max` entries (0: 50), of one user
    /// unless `user` is empty.
    pub fn clusterlog_text(&self, user: &[u8], max: u32) -> Arc<[u8]> {
        self.log.lock().text(user, max)
    }
}
