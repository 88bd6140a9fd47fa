//! Looks after the files of the database: that they are there, and that the log stays short.
//!
//! Runs on the store thread while that has the turn.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rusqlite::ErrorCode;

use super::DOMAIN;
use super::db::{Checkpoint, Db};
use super::format::beside;
use super::open::sqlite_text;
use super::queue::Shared;
use super::rescue::{self, Reason};
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
    /// The files are lost, and there is no other one yet.
    lost: Option<Reason>,
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

    fn move_log(&mut self) {
        match self.with_db(Db::checkpoint) {
            Some(Err(error)) => {
                let text = sqlite_text(&error);
                log::warn!(target: DOMAIN, "checkpoint failed: {text}");
            }
            Some(Ok(done)) if done.log > done.moved => {
                self.bound_log();
            }
            _ => {}
        }
    }

    /// Looks at the files, and does what is to be done about them. True: there is another file now.
    pub(super) fn look(&mut self) -> bool {
        if let Some(reason) = self.lost.take() {
            self.watch.put_off();
            return self.rescue(&reason);
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
            self.move_log();
            return self.bound_log();
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
            Err(error) if is_lock(&error) => return None,
            Err(_) => return lost("-wal"),
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
        let result = written
            .map_err(|error| error.to_string())
            .and_then(|rescued| {
                let (path, aside) = rescue::put_in_place(rescued, &self.home, &self.watch, reason);
                let (db, watch) = rescue::reopen(&path)?;
                Ok((path, aside, db, watch))
            });
        match result {
            Ok((path, aside, db, watch)) => {
                *self.shared.db.lock() = Some(db);
                self.watch = watch;
                self.told = None;
                self.shared.errors.store(false, Ordering::Release);
                rescue::report(reason, &self.home, &path, &aside);
                true
            }
            Err(error) => {
                self.shared.errors.store(true, Ordering::Release);
                self.lost = Some(reason.clone());
                let home = self.home.display();
                log::error!(
                    target: DOMAIN,
                    "the files of '{home}' are lost ({reason:?}), and a new database cannot be \
                     made beside it: {error}. No change is accepted until it can; reads go on. \
                     Look at the file system of '{home}' (df -h, df -i, dmesg)"
                );
                false
            }
        }
    }
}

/// Another process is in the way for a moment.
fn is_lock(error: &rusqlite::Error) -> bool {
    let locked = [ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked];
    error
        .sqlite_error_code()
        .is_some_and(|code| locked.contains(&code))
}
