//! When the database cannot be written: how long who waits, and what the log says.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::ErrorCode;

use super::DOMAIN;
use super::open::sqlite_text;
use crate::memdb::Error;

/// Bounds of waiting.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    /// A lock of another process that lasts longer is trouble (database.md 4: the busy timeout).
    pub lock: Duration,
    /// A caller that waited so long is told that it takes longer.
    pub caller: Duration,
    /// Between two lines of the log.
    pub log: Duration,
    /// The longest pause between two attempts.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            lock: Duration::from_secs(10),
            caller: Duration::from_secs(30),
            log: Duration::from_secs(5),
            pause: Duration::from_millis(100),
        }
    }
}

/// What to do after a failed attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// No change may be accepted until this is over.
    pub refuse_new: bool,
    /// What callers are told now; their changes stay and are written later.
    pub answer: Option<Error>,
    /// Until the next attempt.
    pub pause: Duration,
}

/// One row of failures, from the first to the next success.
pub(super) struct Trouble {
    path: PathBuf,
    patience: Patience,
    since: Instant,
    logged: Option<Instant>,
    pause: Duration,
}

impl Trouble {
    pub(super) fn new(path: &Path, patience: &Patience) -> Self {
        Trouble {
            path: path.to_owned(),
            patience: patience.clone(),
            since: Instant::now(),
            logged: None,
            pause: Duration::from_millis(1),
        }
    }

    /// An attempt to write `changes` changes failed at `now`.
    pub(super) fn failed(
        &mut self,
        error: &rusqlite::Error,
        changes: usize,
        now: Instant,
    ) -> Verdict {
        let kind = Kind::of(error);
        let lasted = now.saturating_duration_since(self.since);
        let refuse_new = kind != Kind::Locked || lasted >= self.patience.lock;
        let due = |last| now.saturating_duration_since(last) >= self.patience.log;
        if refuse_new && self.logged.is_none_or(due) {
            self.logged = Some(now);
            log::error!(
                target: DOMAIN,
                "unable to write to the database (since {} s): {} - {}. {changes} change(s) wait, \
                 new ones are refused until it works again",
                lasted.as_secs(),
                sqlite_text(error),
                kind.way_out(&self.path)
            );
        }
        let answer = if kind == Kind::Lasting {
            Some(Error::Io)
        } else if lasted >= self.patience.caller {
            Some(Error::Busy)
        } else {
            None
        };
        let pause = self.pause;
        self.pause = (pause * 2).min(self.patience.pause);
        Verdict {
            refuse_new,
            answer,
            pause,
        }
    }

    /// An attempt succeeded.
    pub(super) fn is_over(&self, changes: usize) {
        if self.logged.is_some() {
            log::info!(
                target: DOMAIN,
                "the database can be written again after {} s: {changes} change(s) that waited are \
                 in it",
                self.since.elapsed().as_secs()
            );
        }
    }

    /// The daemon ends and nobody waits any more.
    pub(super) fn give_up(&self, changes: usize) {
        log::error!(
            target: DOMAIN,
            "{changes} change(s) could not be written to '{}' before the end and are lost; none of \
             them was acknowledged",
            self.path.display()
        );
    }
}

/// What a failure is, as far as it matters for what can be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Locked,
    Full,
    Device,
    ReadOnly,
    /// Does not go away by itself: callers need not wait for it.
    Lasting,
}

impl Kind {
    fn of(error: &rusqlite::Error) -> Kind {
        match error.sqlite_error_code() {
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::FileLockingProtocolFailed,
            ) => Kind::Locked,
            Some(ErrorCode::DiskFull) => Kind::Full,
            Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::OutOfMemory) => {
                Kind::Device
            }
            Some(ErrorCode::ReadOnly) => Kind::ReadOnly,
            _ => Kind::Lasting,
        }
    }

    /// What an operator can do.
    fn way_out(self, path: &Path) -> String {
        let db = path.display();
        match self {
            Kind::Locked => format!(
                "another process holds a lock on it: find it with 'fuser -v {db}' and end it"
            ),
            Kind::Full => {
                format!("make room on the file system of '{db}' (df -h, df -i)")
            }
            Kind::Device => format!(
                "look for errors of the disk or the file system of '{db}' (dmesg) and for limits \
                 of file sizes and quotas; if it lasts although that is fine, restart pmxcfs"
            ),
            Kind::ReadOnly => format!(
                "'{db}' cannot be written: see whether its file system became read-only (dmesg)"
            ),
            Kind::Lasting => format!(
                "see what 'sqlite3 {db} .schema' and 'sqlite3 {db} \"PRAGMA integrity_check\"' \
                 say, and undo what was changed in it; if it is damaged: systemctl stop \
                 pve-cluster; pmxcfs --salvage '{db}' '{db}.salvaged'"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::ffi;

    fn error(code: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some("text".into()))
    }

    #[test]
    fn verdicts_by_kind_and_time() {
        let mut trouble = Trouble::new(Path::new("db"), &Patience::default());
        let start = trouble.since;
        let mut at = |code, secs| {
            let verdict = trouble.failed(&error(code), 1, start + Duration::from_secs(secs));
            (verdict.refuse_new, verdict.answer)
        };
        for code in [
            ffi::SQLITE_BUSY,
            ffi::SQLITE_BUSY_RECOVERY,
            ffi::SQLITE_BUSY_SNAPSHOT,
        ] {
            assert_eq!(at(code, 0), (false, None));
            assert_eq!(at(code, 9), (false, None));
            assert_eq!(at(code, 10), (true, None));
            assert_eq!(at(code, 30), (true, Some(Error::Busy)));
        }
        for code in [
            ffi::SQLITE_FULL,
            ffi::SQLITE_IOERR_WRITE,
            ffi::SQLITE_READONLY_DBMOVED,
        ] {
            assert_eq!(at(code, 0), (true, None));
            assert_eq!(at(code, 30), (true, Some(Error::Busy)));
        }
        for code in [
            ffi::SQLITE_CORRUPT,
            ffi::SQLITE_CONSTRAINT_TRIGGER,
            ffi::SQLITE_ERROR,
        ] {
            assert_eq!(at(code, 0), (true, Some(Error::Io)));
        }
    }

    #[test]
    fn pauses_grow_to_their_limit() {
        let mut trouble = Trouble::new(Path::new("db"), &Patience::default());
        let now = trouble.since;
        let mut pause = || {
            trouble
                .failed(&error(ffi::SQLITE_BUSY), 1, now)
                .pause
                .as_millis()
        };
        let pauses: Vec<u128> = (0..9).map(|_| pause()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 100, 100]);
    }
}
