//! The connection and its prepared statements as one value that threads can hand to each other.
//!
//! `rusqlite` ties statements to a borrowed connection, which only ever lets one thread use them.
//! The change of a client is written by whichever thread has it in hand (`docs/adr/003`), so both
//! live in one value here, behind one lock.
#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Result, ffi};

use super::commit::{Write, Writer};

/// Pages in the log from which on it is moved into the database (SQLite's own default).
const CHECKPOINT_PAGES: usize = 1000;
/// A transaction that follows another within this time keeps its read lock for the next one.
const BURST: Duration = Duration::from_millis(20);

/// State of the connection between two transactions.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct State {
    /// The next transaction may start the log anew, and SQLite waits for the disk then.
    pub fresh_log: bool,
    /// The log is long enough to be moved into the database.
    pub long_log: bool,
    /// A read lock is kept that stops other processes from finishing a checkpoint.
    pub snapshot: bool,
}

/// Pages in the log, and how many of them are in the database, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub log: i64,
    pub moved: i64,
}

/// The one connection that writes, with its statements.
pub(super) struct Db {
    /// Refers to `*conn`. Dropped before it.
    writer: ManuallyDrop<Writer<'static>>,
    /// From `Box::into_raw`; only ever lent out as a shared reference.
    conn: NonNull<Connection>,
    last_commit: Option<Instant>,
    /// About how many pages were put into the log since the last checkpoint.
    pages: usize,
    fresh_log: bool,
}

// SAFETY: `Connection` is `Send`. What is not are the statements in `writer`, because they hold a
// shared reference to it; but every reference to this connection is in this one value (nothing in
// here gives one out), so they all move together, and `&mut self` everywhere keeps two threads from
// using them at once. SQLite itself has no state of the thread in a connection (multi-thread mode:
// one thread at a time).
unsafe impl Send for Db {}

impl Db {
    /// Prepares the statements. From now on a lock of another process is an error at once: whoever
    /// calls decides what waits.
    pub(super) fn new(conn: Connection) -> Result<Self> {
        conn.busy_timeout(Duration::ZERO)?;
        let conn = NonNull::from(Box::leak(Box::new(conn)));
        // SAFETY: the pointer comes from a box that was just leaked; the connection lives until
        // `drop` or the error below takes it back, and nothing has a unique reference until then.
        match Writer::new(unsafe { conn.as_ref() }) {
            Ok(writer) => Ok(Db {
                writer: ManuallyDrop::new(writer),
                conn,
                last_commit: None,
                pages: 0,
                fresh_log: true,
            }),
            Err(error) => {
                // SAFETY: made by `Box::leak` above, and the writer that borrowed it was not made.
                drop(unsafe { Box::from_raw(conn.as_ptr()) });
                Err(error)
            }
        }
    }

    /// Writes all changes in one transaction. Never waits for a lock.
    ///
    /// # Errors
    /// SQLite's; nothing of `changes` is in the database then.
    pub(super) fn commit<'a>(
        &mut self,
        changes: impl DoubleEndedIterator<Item = Write<'a>> + ExactSizeIterator + Clone,
    ) -> Result<()> {
        let now = Instant::now();
        if self.fresh_log {
            self.number_log()?;
        }
        if self.last_commit.is_some_and(|last| now - last < BURST) {
            // If that fails, so does the transaction, which reports it.
            let _ = self.writer.hold_snapshot();
        }
        let mut done = self.writer.commit(changes.clone());
        if self.writer.holds_snapshot() && done.as_ref().is_err_and(is_stale) {
            // Another process wrote since the last transaction.
            self.writer.release_snapshot();
            done = self.writer.commit(changes);
        }
        match done {
            Ok(pages) => {
                self.pages += pages;
                self.last_commit = Some(now);
                self.fresh_log = false;
                Ok(())
            }
            Err(error) => {
                // In nobody's way while something is wrong.
                self.writer.release_snapshot();
                Err(error)
            }
        }
    }

    /// Writes page 1 as it is, but for SQLite's change counter. As the first transaction of a log
    /// this gives each log a number of its own, by which a database that was put beside a log of
    /// another time is noticed (`format::belongs`). SQLite counts on from the page as it last read
    /// it, so the page has to go from its memory before.
    fn number_log(&mut self) -> Result<()> {
        self.release_snapshot();
        // SAFETY: the connection lives as long as `self`, and is only shared.
        let conn = unsafe { self.conn.as_ref() };
        conn.execute_batch("PRAGMA shrink_memory")?;
        let kept: i64 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        conn.execute_batch(&format!("PRAGMA user_version={kept}"))
    }

    /// What those who plan the next step have to know.
    pub(super) fn state(&self) -> State {
        State {
            fresh_log: self.fresh_log,
            long_log: self.pages >= CHECKPOINT_PAGES,
            snapshot: self.writer.holds_snapshot(),
        }
    }

    /// Moves the log into the database as far as readers allow, and says how far that was; the rest
    /// waits for the next time. A long log that was moved completely is made short.
    ///
    /// # Errors
    /// SQLite's. The database is as good as before.
    pub(super) fn checkpoint(&mut self) -> Result<Checkpoint> {
        self.release_snapshot();
        self.pages = 0;
        self.fresh_log = true;
        let done = self.run_checkpoint("PASSIVE")?;
        if done.log > CHECKPOINT_PAGES as i64 && done.log == done.moved {
            // Somebody may begin to read just now: then the next time.
            return self.run_checkpoint("TRUNCATE");
        }
        Ok(done)
    }

    fn run_checkpoint(&self, mode: &str) -> Result<Checkpoint> {
        // SAFETY: the connection lives as long as `self`, and is only shared.
        let conn = unsafe { self.conn.as_ref() };
        conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
            Ok(Checkpoint {
                log: row.get(1)?,
                moved: row.get(2)?,
            })
        })
    }

    /// Whether something was written into the log since the last checkpoint.
    pub(super) fn has_log(&self) -> bool {
        self.pages > 0
    }

    /// Pages of the whole database as SQLite knows it, and bytes of a page.
    ///
    /// # Errors
    /// SQLite's.
    pub(super) fn size(&self) -> Result<(i64, i64)> {
        // SAFETY: the connection lives as long as `self`, and is only shared.
        let conn = unsafe { self.conn.as_ref() };
        let number = |what| conn.query_row(what, [], |row| row.get::<_, i64>(0));
        Ok((number("PRAGMA page_count")?, number("PRAGMA page_size")?))
    }

    /// Closes the connection and leaves its files as they are: they are not to be trusted.
    pub(super) fn abandon(self) {
        // SAFETY: the connection lives as long as `self`, and is only shared.
        let conn = unsafe { self.conn.as_ref() };
        // A failure is a bug of SQLite's build: then it does what it does at every end.
        let _ = conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    }

    /// Gives back the read lock that was kept for the next transaction.
    pub(super) fn release_snapshot(&mut self) {
        self.writer.release_snapshot();
    }

    /// Moves the log into the database and closes it.
    ///
    /// # Errors
    /// SQLite's; everything committed is safe in the log then.
    pub(super) fn close(self) -> Result<()> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped nor used again, so this is the only time for both parts,
        // and in the right order: the statements go before the connection they refer to.
        let conn = unsafe {
            ManuallyDrop::drop(&mut this.writer);
            Box::from_raw(this.conn.as_ptr())
        };
        conn.close().map_err(|(_, error)| error)
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        // SAFETY: as in `close`, which does not come here.
        unsafe {
            ManuallyDrop::drop(&mut self.writer);
            drop(Box::from_raw(self.conn.as_ptr()));
        }
    }
}

/// The kept snapshot is not the newest any more: the transaction cannot be built on it.
fn is_stale(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::SqliteFailure(cause, _)
        if cause.extended_code == ffi::SQLITE_BUSY_SNAPSHOT)
}
