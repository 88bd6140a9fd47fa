//! The thread that owns the database: group commit.
#![forbid(unsafe_code)]

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;

use super::DOMAIN;
use super::commit::Writer;
use super::open::{Store, sqlite_text};
use crate::memdb::{Change, Error, Inode, RootRow, Row};

/// Called exactly once: the change is in the database, or never will be ([`Error::Io`]).
pub type Ticket = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Pages in the log from which on it is moved into the database (SQLite's own default).
const CHECKPOINT_PAGES: usize = 1000;

/// What a synchronisation changes: one transaction of its own.
pub(super) struct SyncRows {
    pub delete: Vec<Inode>,
    pub put: Vec<Row>,
    /// `None`: the version row stays as it is.
    pub root: Option<RootRow>,
}

enum Write {
    Change(Change),
    Sync(SyncRows),
    /// Ends what a failed synchronisation began.
    Resume,
    /// Nothing: its turn is what counts.
    Nothing,
}

struct Pending {
    write: Write,
    ticket: Ticket,
}

impl Pending {
    fn change(&self) -> Option<&Change> {
        match &self.write {
            Write::Change(change) => Some(change),
            Write::Sync(_) | Write::Resume | Write::Nothing => None,
        }
    }

    /// Calls the ticket. One that panics must not take the database from all the others.
    fn answer(self, result: Result<(), Error>) {
        if catch_unwind(AssertUnwindSafe(|| (self.ticket)(result))).is_err() {
            log::error!(target: DOMAIN, "the answer to a change panicked");
        }
    }
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Pending>,
    /// The thread has taken changes and not yet answered all of their tickets.
    busy: bool,
    /// Nothing more is accepted; what waits is still written.
    closing: bool,
    /// The thread has ended.
    ended: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Changes are waiting, or the end is asked for.
    work: Condvar,
    /// The queue ran empty, or the thread has ended.
    quiet: Condvar,
    errors: Arc<AtomicBool>,
}

/// Hands changes to the store thread. Cheap to clone.
#[derive(Clone)]
pub struct StoreHandle(Arc<Shared>);

impl Store {
    /// Starts the thread that writes to this database.
    ///
    /// # Errors
    /// If the thread cannot be made.
    pub fn spawn(self) -> io::Result<StoreHandle> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            quiet: Condvar::new(),
            errors: Arc::default(),
        });
        let for_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || for_thread.run(self.conn))?;
        Ok(StoreHandle(shared))
    }
}

impl StoreHandle {
    /// Queues a change; never waits. All changes that wait together become one transaction, in
    /// order; then their tickets are called in that order, on the store thread.
    pub fn enqueue(&self, change: Change, ticket: Ticket) {
        self.push(Write::Change(change), ticket);
    }

    /// Queues the result of a synchronisation, in order with the changes: rows that are gone, rows
    /// that are new or different, and the version row, in a transaction of their own. If that
    /// fails, everything behind it is refused until [`StoreHandle::resume`], and the database is as
    /// if the synchronisation had not begun: unlike a failed change this is no lasting error.
    pub fn enqueue_sync(
        &self,
        delete: Vec<Inode>,
        put: Vec<Row>,
        root: Option<RootRow>,
        ticket: Ticket,
    ) {
        self.push(Write::Sync(SyncRows { delete, put, root }), ticket);
    }

    /// What is queued from now on is written again after a synchronisation that could not be: what
    /// is in memory is what is in the database.
    pub fn resume(&self) {
        self.push(Write::Resume, Box::new(|_| ()));
    }

    /// Calls `ticket` when everything queued so far was written or refused; in its turn, with the
    /// result that a change would have had.
    pub fn after(&self, ticket: Ticket) {
        self.push(Write::Nothing, ticket);
    }

    fn push(&self, write: Write, ticket: Ticket) {
        let mut queue = self.0.queue.lock();
        if queue.closing || queue.ended {
            drop(queue);
            ticket(Err(Error::Io));
            return;
        }
        queue.waiting.push(Pending { write, ticket });
        // While the thread is busy it looks by itself before it sleeps.
        if !queue.busy {
            self.0.work.notify_one();
        }
    }

    /// Waits until everything queued so far is written (or refused) and its tickets were called.
    pub fn flush(&self) {
        let mut queue = self.0.queue.lock();
        while (queue.busy || !queue.waiting.is_empty()) && !queue.ended {
            self.0.quiet.wait(&mut queue);
        }
    }

    /// Writes what waits, closes the database (which removes its log) and ends the thread. True if
    /// that was done within `limit`; if not, it goes on in the background, and everything
    /// acknowledged is in the log already.
    pub fn shutdown(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut queue = self.0.queue.lock();
        queue.closing = true;
        self.0.work.notify_one();
        while !queue.ended {
            if self.0.quiet.wait_until(&mut queue, end).timed_out() {
                return queue.ended;
            }
        }
        true
    }

    /// Has a write failed? Then no change may be accepted any more.
    pub fn failed(&self) -> bool {
        self.0.errors.load(Ordering::Acquire)
    }

    /// The errors flag (database.md 9): set once a write has failed, never cleared. From then on
    /// memory and database differ and no change may be accepted.
    pub fn errors(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0.errors)
    }
}

impl Shared {
    fn run(&self, conn: Connection) {
        // However the thread ends: nobody waits for it any longer.
        let _guard = Ending(self);
        match Writer::new(&conn) {
            Ok(writer) => self.serve(&conn, writer),
            Err(error) => self.failed(&error),
        }
        if let Err((_, error)) = conn.close() {
            log::error!(target: DOMAIN, "closing the database failed: {}", sqlite_text(&error));
        }
    }

    fn serve(&self, conn: &Connection, mut writer: Writer<'_>) {
        let mut batch: Vec<Pending> = Vec::new();
        let mut pages = 0;
        // A synchronisation failed: memory has gone on from there, the database has not.
        let mut astray = false;
        while self.next(&mut batch) {
            while !batch.is_empty() {
                let changes = batch.iter().take_while(|p| p.change().is_some()).count();
                let part = &batch[..changes.max(1)];
                let result = self.write(&mut writer, part, &mut astray);
                for pending in batch.drain(..changes.max(1)) {
                    pending.answer(result.map(drop));
                }
                pages += result.unwrap_or(0);
            }
            // Only now: nobody waits for it but the next change.
            if pages >= CHECKPOINT_PAGES {
                pages = 0;
                checkpoint(conn);
            }
        }
    }

    /// Writes some changes, or the one other thing in `part`. Returns about how many pages that put
    /// into the log.
    fn write(
        &self,
        writer: &mut Writer<'_>,
        part: &[Pending],
        astray: &mut bool,
    ) -> Result<usize, Error> {
        if let [
            Pending {
                write: Write::Resume,
                ..
            },
        ] = part
        {
            *astray = false;
            return Ok(0);
        }
        if *astray || self.errors.load(Ordering::Acquire) {
            return Err(Error::Io);
        }
        if let [
            Pending {
                write: Write::Sync(rows),
                ..
            },
        ] = part
        {
            return writer.sync(rows).map_err(|error| {
                let text = sqlite_text(&error);
                log::error!(target: DOMAIN, "writing a synchronisation failed: {text}");
                *astray = true;
                Error::Io
            });
        }
        let changes: Vec<&Change> = part.iter().filter_map(Pending::change).collect();
        writer.commit(changes.into_iter()).map_err(|error| {
            self.failed(&error);
            Error::Io
        })
    }

    /// Waits for changes and takes all of them; false if the end is asked for and all is written.
    fn next(&self, batch: &mut Vec<Pending>) -> bool {
        let mut queue = self.queue.lock();
        if queue.busy {
            queue.busy = false;
            if queue.waiting.is_empty() {
                self.quiet.notify_all();
            }
        }
        while queue.waiting.is_empty() {
            if queue.closing {
                return false;
            }
            self.work.wait(&mut queue);
        }
        std::mem::swap(&mut queue.waiting, batch);
        queue.busy = true;
        true
    }

    fn failed(&self, error: &rusqlite::Error) {
        log::error!(
            target: DOMAIN,
            "writing to the database failed: {} - no change is accepted until restart",
            sqlite_text(error)
        );
        self.errors.store(true, Ordering::Release);
    }
}

/// Moves the log into the database as far as readers allow; the rest waits for the next time.
fn checkpoint(conn: &Connection) {
    if let Err(error) = conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
        log::warn!(target: DOMAIN, "checkpoint failed: {}", sqlite_text(&error));
    }
}

/// Marks the end of the thread and refuses what still waits.
struct Ending<'a>(&'a Shared);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.ended = true;
        queue.busy = false;
        let left = std::mem::take(&mut queue.waiting);
        self.0.quiet.notify_all();
        drop(queue);
        if std::thread::panicking() || !left.is_empty() {
            self.0.errors.store(true, Ordering::Release);
        }
        for pending in left {
            pending.answer(Err(Error::Io));
        }
    }
}
