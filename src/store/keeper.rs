//! Looks after the files of the database: that they are there, and that the log stays short.
//!
//! Runs on the store thread while that has the turn.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rusqlite::{ErrorCode, ffi};

use super::DOMAIN;
use super::db::{Checkpoint, Db};
use super::format::beside;
use super::open::sqlite_text;
use super::queue::Shared;
use super::rescue::{self, Placed, Reason};
use super::watch::{Look, Loss, Watch};

/// A log of this length is moved and cut whenever nothing else is to be done, …
const LONG_LOG: u64 = 8 << 20;
/// … from this length on the log of the daemon says what keeps it so long, …
const TELL_LOG: u64 = 16 << 20;
/// … and at this length the store goes on with another file.
const MOST_LOG: u64 = 256 << 20;
/// Between two lines about that.
const TELL_AGAIN: Duration = Duration::from_secs(600);

pub(super) struct Keeper {
    shared: Arc<Shared>,
    /// Where the daemon was told that its database is.
    home: PathBuf,
    watch: Watch,
    /// When it was said that the log is long.
    told: Option<Instant>,
    /// The files are lost, and there is no other one yet, or it could not be opened yet.
    lost: Option<(Reason, Option<Placed>)>,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, home: PathBuf) -> io::Result<Self> {
        Ok(Keeper {
            shared,
            watch: Watch::new(&home)?,
            home,
            told: None,
            lost: None,
        })
    }

    /// The file in use.
    pub(super) fn path(&self) -> &Path {
        self.watch.path()
    }

    pub(super) fn next_look(&self) -> Instant {
        self.watch.next()
    }

    fn with_db<T>(&self, job: impl FnOnce(&mut Db) -> T) -> Option<T> {
        self.shared.db.lock().as_mut().map(job)
    }

    /// Moves the log into the database, as far as that can be. Not from a log that is damaged.
    pub(super) fn checkpoint(&mut self) {
        if !self.look() {
            self.move_log();
        }
    }

    /// True: there is another file now.
    fn move_log(&mut self) -> bool {
        if let Some(Err(error)) = self.with_db(Db::checkpoint) {
            let text = sqlite_text(&error);
            log::warn!(target: DOMAIN, "checkpoint failed: {text}");
        }
        self.bound_log()
    }

    /// Looks at the files, and does what is to be done about them. True: there is another file now.
    pub(super) fn look(&mut self) -> bool {
        if let Some((reason, placed)) = self.lost.take() {
            self.watch.put_off();
            return match placed.filter(Placed::is_there) {
                Some(placed) => self.go_on(&reason, placed),
                None => self.rescue(&reason),
            };
        }
        let in_log = self.with_db(|db| db.has_log()).unwrap_or(false);
        let loss = match self.watch.look(in_log) {
            Look::Good => None,
            Look::Shorter => self.confirm(),
            Look::Lost(loss) => Some(loss),
        };
        if let Some(loss) = loss {
            return self.rescue(&Reason::Lost(loss));
        }
        if self.watch.log_length() > LONG_LOG {
            return self.move_log();
        }
        self.log_is_short();
        false
    }

    /// A transaction failed: perhaps because of what happened to the files. True: there is another
    /// file now.
    pub(super) fn failed(&mut self, error: &rusqlite::Error) -> bool {
        let damaged = [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase];
        match error.sqlite_error_code() {
            Some(code) if damaged.contains(&code) => {
                let path = self.watch.path().display();
                self.rescue(&Reason::Lost(Loss::Broken(format!("'{path}' was damaged"))))
            }
            _ => self.look(),
        }
    }

    /// Before the end: what is acknowledged has to be in a file that is found again.
    pub(super) fn end(&mut self) {
        self.look();
        if self.watch.path() != self.home {
            let (home, path) = (self.home.display(), self.watch.path().display());
            log::warn!(
                target: DOMAIN,
                "the state of this node is in '{path}'; the next start uses '{home}', which somebody \
                 else put there"
            );
        }
    }

    /// A file is shorter than it was. That is fine if everything is in the database.
    fn confirm(&mut self) -> Option<Loss> {
        let path = self.watch.path().to_owned();
        let lost = |suffix: &str| {
            let file = beside(&path, suffix);
            Some(Loss::Broken(format!("'{}' was truncated", file.display())))
        };
        let asked = self.with_db(|db| Ok::<_, rusqlite::Error>((db.checkpoint()?, db.size()?)))?;
        let (Checkpoint { log, moved }, (pages, page_size)) = match asked {
            Ok(answer) => answer,
            Err(error) if is_loss(&error) => return lost("-wal"),
            // A lock, a full disk: says nothing about the file, and the next look asks again.
            Err(_) => return None,
        };
        self.watch.settle();
        let length = |suffix| std::fs::metadata(beside(&path, suffix)).map_or(0, |meta| meta.len());
        /// What the log has before each page.
        const FRAME: i64 = 24;
        if log > moved && (length("-wal") as i64) < log * (page_size + FRAME) {
            return lost("-wal");
        }
        if log == moved && (length("") as i64) < pages * page_size {
            return lost("");
        }
        None
    }

    /// True: there is another file now.
    fn bound_log(&mut self) -> bool {
        let log = beside(self.watch.path(), "-wal");
        let length = std::fs::metadata(&log).map_or(0, |meta| meta.len());
        if length >= MOST_LOG {
            return self.rescue(&Reason::LongLog(length));
        }
        if length < LONG_LOG {
            self.log_is_short();
            return false;
        }
        let due = self.told.is_none_or(|told| told.elapsed() >= TELL_AGAIN);
        if length >= TELL_LOG && due {
            self.told = Some(Instant::now());
            log::warn!(
                target: DOMAIN,
                "the log '{}' is {} MiB long and grows, because another process reads the database \
                 and does not stop: find it with 'fuser -v {}' and end it",
                log.display(),
                length >> 20,
                beside(self.watch.path(), "-shm").display()
            );
        }
        false
    }

    fn log_is_short(&mut self) {
        if self.told.take().is_some() {
            let log = beside(self.watch.path(), "-wal");
            log::info!(target: DOMAIN, "the log '{}' is short again", log.display());
        }
    }

    /// Goes on with another file: true. If that cannot be made, no change is accepted until it can.
    fn rescue(&mut self, reason: &Reason) -> bool {
        let Some(source) = self.shared.source.get() else {
            return false;
        };
        // What comes from now on is written to the new file, again or for the first time.
        let rows = source();
        let written = rescue::write_beside(&self.home, &rows);
        if written.is_err() && matches!(reason, Reason::LongLog(_)) {
            return false;
        }
        let old = self.shared.db.lock().take();
        if let Some(db) = old {
            db.abandon();
        }
        let placed = written
            .and_then(|rescued| rescue::put_in_place(rescued, &self.home, &self.watch, reason));
        match placed {
            Ok(placed) => self.go_on(reason, placed),
            Err(error) => self.wait_for(reason, None, &error.to_string()),
        }
    }

    /// Opens the new file. True: it is used now.
    fn go_on(&mut self, reason: &Reason, mut placed: Placed) -> bool {
        let (db, watch) = match placed.open(reason) {
            Ok(opened) => opened,
            // The whole tree is in there: the next look only opens it.
            Err(error) => return self.wait_for(reason, Some(placed), &error),
        };
        *self.shared.db.lock() = Some(db);
        self.watch = watch;
        self.told = None;
        self.shared.errors.store(false, Ordering::Release);
        rescue::report(reason, &self.home, placed.path(), &placed.aside);
        true
    }

    fn wait_for(&mut self, reason: &Reason, placed: Option<Placed>, error: &str) -> bool {
        self.shared.errors.store(true, Ordering::Release);
        let home = self.home.display();
        let cannot = match &placed {
            Some(placed) => format!(
                "the new database '{}' cannot be opened",
                placed.path().display()
            ),
            None => "a new database cannot be made beside it".to_owned(),
        };
        log::error!(
            target: DOMAIN,
            "the files of '{home}' are lost ({reason:?}), and {cannot}: {error}. No change is \
             accepted until it can; reads go on. Look at the file system of '{home}' (df -h, df -i, \
             dmesg)"
        );
        self.lost = Some((reason.clone(), placed));
        false
    }
}

/// The log does not have what SQLite knows to be there.
fn is_loss(error: &rusqlite::Error) -> bool {
    let damaged = [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase];
    error.sqlite_error().is_some_and(|cause| {
        damaged.contains(&cause.code) || cause.extended_code == ffi::SQLITE_IOERR_SHORT_READ
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_disk_is_no_loss() {
        let is_loss = |code| is_loss(&rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        for loss in [
            ffi::SQLITE_IOERR_SHORT_READ,
            ffi::SQLITE_CORRUPT,
            ffi::SQLITE_NOTADB,
        ] {
            assert!(is_loss(loss), "{loss}");
        }
        for other in [
            ffi::SQLITE_FULL,
            ffi::SQLITE_IOERR_WRITE,
            ffi::SQLITE_IOERR_READ,
            ffi::SQLITE_IOERR_FSYNC,
            ffi::SQLITE_BUSY,
            ffi::SQLITE_LOCKED,
            ffi::SQLITE_READONLY,
            ffi::SQLITE_CANTOPEN,
            ffi::SQLITE_NOMEM,
        ] {
            assert!(!is_loss(other), "{other}");
        }
    }
}
