//! Where the dot files of the mount get their text from.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::logging;
use crate::fs::{DotFile, DotFiles, DotReady};
use crate::replica::Announcer;
use crate::replica::Clock;
use crate::status::Status;

/// Number of entries in `.clusterlog` (status.md 10.1).
const CLUSTERLOG_ENTRIES: u32 = 50;

/// Texts from [`Status`], after whatever was answered already is announced.
pub struct StatusDots {
    pub status: Arc<Status>,
    pub announcer: Arc<Announcer>,
    pub clock: Clock,
}

impl DotFiles for StatusDots {
    fn content(&self, file: DotFile, ready: DotReady) {
        let (status, now) = (self.status.clone(), (self.clock)());
        match file {
            DotFile::Version => {
                self.announcer
                    .when_announced(Box::new(move || ready(status.version_text())));
            }
            DotFile::Vmlist => {
                self.announcer
                    .when_announced(Box::new(move || ready(status.vmlist_text())));
            }
            DotFile::Members => ready(status.members_text()),
            DotFile::Rrd => ready(status.rrd_text(now)),
            DotFile::Clusterlog => ready(status.clusterlog_text(b"", CLUSTERLOG_ENTRIES)),
            DotFile::Debug => ready(Arc::from(
                if logging::debug() { b"1\n" } else { b"0\n" }.as_slice(),
            )),
        }
    }

    fn set_debug(&self, on: bool) {
        logging::set_debug(on);
    }
}
