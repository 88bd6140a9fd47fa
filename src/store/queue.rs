//! The queue of changes, and who writes them: the thread that has just brought one, or the store
//! thread (`docs/adr/003-inline-commit.md`).
//!
//! Whoever has the *turn* ([`Turn`]) writes what waits and looks into the queue again, under its
//! lock, before giving the turn back. So a change that is queued under that lock is either seen by
//! that last look, or was queued after the turn became free, and then whoever queued it finds it
//! free. There is no third case: no change is forgotten.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::commit::{SyncRows, Write};
use super::db::{Db, State};
use crate::dcdb::Aside;
use crate::failure::contain;
use crate::memdb::{Change, Error, Inode, LoadRow, RootRow, Row};

/// Called exactly once: the change is in the database ([`Ok`]), or it cannot be said when it will
/// be ([`Error::Busy`], [`Error::Io`]).
pub type Ticket = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// The most that is written in a thread of another trade before the store thread takes over:
/// transactions in a row, changes in one, bytes of content in one.
const INLINE_ROUNDS: usize = 4;
const INLINE_CHANGES: usize = 32;
const INLINE_BYTES: usize = 64 << 10;
/// What nobody waits for is written after this time at the latest, …
pub(super) const LAZY: Duration = Duration::from_millis(10);
/// … or when that many changes wait, or that many bytes of content came in one of them.
const LAZY_CHANGES: usize = 256;
const LAZY_BYTES: usize = 64 << 10;
/// An empty queue keeps memory for that many changes.
const KEPT_CAPACITY: usize = 64;

/// Called with a change before its ticket says that it failed, although it stays queued.
type OnRefusal = Box<dyn Fn(&Change) + Send + Sync>;

/// Gives all rows of the tree in memory, the version row among them.
type Source = Box<dyn Fn() -> Vec<LoadRow> + Send + Sync>;

enum Work {
    Change(Change),
    Sync(SyncRows),
    /// A database to be kept before anything else is written.
    Aside(Box<Aside>),
    Nothing,
}

pub(super) struct Pending {
    work: Work,
    /// `None`: called, but not written yet.
    ticket: Option<Ticket>,
}

impl Pending {
    fn write(&self) -> Write<'_> {
        match &self.work {
            Work::Change(change) => Write::Change(change),
            Work::Sync(rows) => Write::Sync(rows),
            Work::Aside(_) | Work::Nothing => Write::Nothing,
        }
    }

    /// The database that is to be kept, if that is it.
    pub(super) fn aside(&self) -> Option<&Aside> {
        match &self.work {
            Work::Aside(aside) => Some(aside),
            _ => None,
        }
    }

    pub(super) fn kept(&mut self) {
        self.work = Work::Nothing;
    }

    /// Bytes of content.
    fn size(&self) -> usize {
        let rows = match &self.work {
            Work::Change(change) => change.put.as_slice(),
            Work::Sync(rows) => &rows.put[..],
            Work::Aside(_) | Work::Nothing => &[],
        };
        let data = rows.iter().filter_map(|row| row.data.as_ref());
        data.map(|data| data.len()).sum()
    }

    /// Calls the ticket if it was not yet.
    pub(super) fn answer(&mut self, result: Result<(), Error>) {
        if let Some(ticket) = self.ticket.take() {
            contain("answering a change", || ticket(result));
        }
    }
}

/// Who writes now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Turn {
    #[default]
    Free,
    /// The thread that brought a change.
    Inline,
    /// The store thread; it may have to be woken for it.
    Thread,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) waiting: Vec<Pending>,
    /// Somebody waits for something in `waiting`, or it is enough.
    pub(super) urgent: bool,
    /// When the first of `waiting` has to be written although nobody waits.
    pub(super) due: Option<Instant>,
    pub(super) turn: Turn,
    /// Of the connection, when the turn was last given back.
    pub(super) db: State,
    /// Transactions written inline: when that stands still, a burst is over.
    pub(super) commits: u64,
    /// The store thread wants the turn as soon as it is free.
    pub(super) wanted: bool,
    /// Nothing more is accepted; what waits is still written.
    pub(super) closing: bool,
    /// The store thread has ended.
    pub(super) ended: bool,
}

impl Queue {
    /// Takes all that waits; `batch` is empty.
    pub(super) fn take(&mut self, batch: &mut Vec<Pending>) {
        self.urgent = false;
        self.due = None;
        std::mem::swap(&mut self.waiting, batch);
    }

    /// Has something to be written at once?
    pub(super) fn is_due(&self) -> bool {
        !self.waiting.is_empty()
            && (self.urgent || self.closing || self.due.is_none_or(|due| due <= Instant::now()))
    }

    /// Is what waits too much for a thread that has other things to do?
    fn is_long(&self) -> bool {
        self.waiting.len() > INLINE_CHANGES
            || self.waiting.iter().any(|pending| pending.aside().is_some())
            || self.waiting.iter().map(Pending::size).sum::<usize>() > INLINE_BYTES
    }
}

pub(super) struct Shared {
    pub(super) queue: Mutex<Queue>,
    /// Never waited for: only who has the turn takes it. `None` once the database is closed.
    pub(super) db: Mutex<Option<Db>>,
    /// Something for the store thread.
    pub(super) work: Condvar,
    /// The queue ran empty, or the thread has ended, or is in trouble.
    pub(super) quiet: Condvar,
    pub(super) errors: Arc<AtomicBool>,
    /// Nobody waits for a full or broken disk.
    pub(super) impatient: AtomicBool,
    on_refusal: OnceLock<OnRefusal>,
    /// All rows of the tree in memory.
    pub(super) source: OnceLock<Source>,
}

impl Shared {
    pub(super) fn new(db: Db) -> Self {
        let queue = Queue {
            // Which gives it back when it has started.
            turn: Turn::Thread,
            ..Queue::default()
        };
        Shared {
            queue: Mutex::new(queue),
            db: Mutex::new(Some(db)),
            work: Condvar::new(),
            quiet: Condvar::new(),
            errors: Arc::default(),
            impatient: AtomicBool::new(false),
            on_refusal: OnceLock::new(),
            source: OnceLock::new(),
        }
    }

    /// Writes `batch` in one transaction.
    pub(super) fn write(&self, batch: &[Pending]) -> rusqlite::Result<()> {
        match &mut *self.db.lock() {
            Some(db) => db.commit(batch.iter().map(Pending::write)),
            // Not thinkable: it is closed when nothing waits and nothing more is accepted.
            None => Err(rusqlite::Error::InvalidQuery),
        }
    }

    /// Tells those who still wait that they wait in vain. Their changes stay.
    pub(super) fn send_away(&self, batch: &mut [Pending], answer: Error) {
        for pending in batch.iter_mut().filter(|pending| pending.ticket.is_some()) {
            if let (Some(on_refusal), Work::Change(change)) = (self.on_refusal.get(), &pending.work)
            {
                on_refusal(change);
            }
            pending.answer(Err(answer));
        }
    }

    pub(super) fn db_state(&self) -> State {
        self.db.lock().as_ref().map(Db::state).unwrap_or_default()
    }

    /// Says of changes that nobody will write them.
    pub(super) fn refuse(&self, changes: Vec<Pending>) {
        if !changes.is_empty() {
            self.errors.store(true, Ordering::Release);
        }
        for mut pending in changes {
            pending.answer(Err(Error::Io));
        }
    }

    /// Takes the turn if it is free and there is something to write that is fit for this thread.
    fn take_turn(&self) -> Option<Inline<'_>> {
        let mut queue = self.queue.lock();
        if queue.turn != Turn::Free || queue.ended || queue.waiting.is_empty() || !queue.urgent {
            return None;
        }
        if queue.db.fresh_log || queue.closing || queue.wanted || queue.is_long() {
            drop(queue);
            self.work.notify_one();
            return None;
        }
        queue.turn = Turn::Inline;
        let mut batch = Vec::new();
        queue.take(&mut batch);
        Some(Inline {
            shared: self,
            batch,
        })
    }

    fn write_inline(&self) {
        let Some(mut turn) = self.take_turn() else {
            return;
        };
        for _ in 0..INLINE_ROUNDS {
            if self.write(&turn.batch).is_err() {
                // A lock of another process, a full disk: the store thread waits and reports.
                return;
            }
            for mut pending in turn.batch.drain(..) {
                pending.answer(Ok(()));
            }
            if !turn.next_round() {
                return;
            }
        }
    }
}

/// The turn of a thread of another trade. Given back when dropped, also by a panic; what is not
/// written by then goes to the store thread, first in line.
struct Inline<'a> {
    shared: &'a Shared,
    batch: Vec<Pending>,
}

impl Inline<'_> {
    fn next_round(&mut self) -> bool {
        let mut queue = self.shared.queue.lock();
        let more = queue.urgent && !queue.waiting.is_empty() && !queue.is_long();
        if more {
            queue.take(&mut self.batch);
        }
        more
    }
}

impl Drop for Inline<'_> {
    fn drop(&mut self) {
        let state = self.shared.db_state();
        let mut queue = self.shared.queue.lock();
        put_back(&mut queue, &mut self.batch);
        queue.commits += 1;
        // The rest is for the store thread.
        let more = queue.is_due() || state.long_log || queue.closing || queue.wanted;
        queue.turn = if more { Turn::Thread } else { Turn::Free };
        // Also to begin to watch over the read lock, or over what is due later.
        if more || !queue.waiting.is_empty() || state.snapshot && !queue.db.snapshot {
            self.shared.work.notify_one();
        }
        queue.db = state;
        self.shared.quiet.notify_all();
        if queue.ended {
            // Only thinkable after a panic of the store thread.
            let left = std::mem::take(&mut queue.waiting);
            drop(queue);
            self.shared.refuse(left);
        }
    }
}

/// Puts what could not be written in front of what waits; keeps the memory of the batch otherwise.
fn put_back(queue: &mut Queue, batch: &mut Vec<Pending>) {
    if batch.is_empty() && (!queue.waiting.is_empty() || batch.capacity() > KEPT_CAPACITY) {
        return;
    }
    queue.urgent |= !batch.is_empty();
    batch.append(&mut queue.waiting);
    std::mem::swap(&mut queue.waiting, batch);
}

/// Hands changes to the database. Cheap to clone.
#[derive(Clone)]
pub struct StoreHandle(pub(super) Arc<Shared>);

/// A queued change that somebody has to write: [`Queued::write`], or else the store thread.
#[must_use = "the change waits for it"]
pub struct Queued<'a> {
    shared: &'a Shared,
    refused: Option<Ticket>,
}

impl Queued<'_> {
    /// Writes everything that waits and calls the tickets, in this thread, unless another one is
    /// at it (then that one does), or it may take long (then the store thread does). Takes some
    /// ten microseconds, rarely up to a millisecond; never waits for another process.
    ///
    /// To be called without any lock: the tickets are called from here.
    pub fn write(mut self) {
        match self.refused.take() {
            Some(ticket) => ticket(Err(Error::Io)),
            None => self.shared.write_inline(),
        }
        std::mem::forget(self);
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.refused.take() {
            ticket(Err(Error::Io));
        } else if self.shared.queue.lock().turn == Turn::Free {
            self.shared.work.notify_one();
        }
    }
}

impl StoreHandle {
    /// Queues a change; the caller gives it to the database after it has given back its locks.
    /// Changes are written, and their tickets called, in the order of these calls.
    pub fn queue(&self, change: Change, ticket: Ticket) -> Queued<'_> {
        self.push(Work::Change(change), ticket)
    }

    /// Queues a change for the store thread; never waits. All changes that wait together become
    /// one transaction, in order; then their tickets are called in that order.
    pub fn enqueue(&self, change: Change, ticket: Ticket) {
        drop(self.queue(change, ticket));
    }

    /// As [`StoreHandle::enqueue`], but wakes nobody: the caller has to call
    /// [`StoreHandle::write`] soon, after the last of several such changes.
    pub fn put(&self, change: Change, ticket: Ticket) {
        let mut queued = self.queue(change, ticket);
        if let Some(ticket) = queued.refused.take() {
            ticket(Err(Error::Io));
        }
        std::mem::forget(queued);
    }

    /// Writes what [`StoreHandle::put`] left, as [`Queued::write`] does.
    pub fn write(&self) {
        self.0.write_inline();
    }

    /// Queues a change that nobody waits for. It is written with the next one that somebody waits
    /// for, or after 10 ms, or when a few hundred wait (`docs/adr/004`); in order, as all are.
    pub fn enqueue_lazily(&self, change: Change, ticket: Ticket) {
        let mut queue = self.0.queue.lock();
        if queue.closing || queue.ended {
            drop(queue);
            return ticket(Err(Error::Io));
        }
        let pending = Pending {
            work: Work::Change(change),
            ticket: Some(ticket),
        };
        let enough = queue.waiting.len() >= LAZY_CHANGES || pending.size() >= LAZY_BYTES;
        queue.urgent |= enough;
        let first = queue.waiting.is_empty();
        if first {
            queue.due = Some(Instant::now() + LAZY);
        }
        queue.waiting.push(pending);
        if (first || enough) && queue.turn == Turn::Free {
            self.0.work.notify_one();
        }
    }

    /// Queues the result of a synchronisation for the store thread, in order with the changes and
    /// as a whole: rows that are gone, rows that are new or different, and the version row if that
    /// is different.
    pub fn enqueue_sync(
        &self,
        delete: Vec<Inode>,
        put: Vec<Row>,
        root: Option<RootRow>,
        ticket: Ticket,
    ) {
        drop(self.push(Work::Sync(SyncRows { delete, put, root }), ticket));
    }

    /// Keeps a database as a file of its own, on the store thread, before anything that is queued from
    /// now on is written. If that fails the database counts as one that cannot be written.
    pub fn keep_aside(&self, aside: Box<Aside>) {
        drop(self.push(Work::Aside(aside), Box::new(|_| ())));
    }

    /// Calls `ticket`, on the store thread, when everything queued so far is written, or with the
    /// error that a change would have got.
    pub fn after(&self, ticket: Ticket) {
        drop(self.push(Work::Nothing, ticket));
    }

    fn push(&self, work: Work, ticket: Ticket) -> Queued<'_> {
        let mut queue = self.0.queue.lock();
        let mut refused = None;
        if queue.closing || queue.ended {
            refused = Some(ticket);
        } else {
            let ticket = Some(ticket);
            queue.waiting.push(Pending { work, ticket });
            queue.urgent = true;
        }
        Queued {
            shared: &self.0,
            refused,
        }
    }

    /// Waits until everything queued so far is written and its tickets were called. Returns also
    /// when the database is in trouble.
    pub fn flush(&self) {
        let mut queue = self.0.queue.lock();
        queue.urgent |= !queue.waiting.is_empty();
        self.0.work.notify_one();
        while (queue.turn != Turn::Free || !queue.waiting.is_empty())
            && !queue.ended
            && !self.0.errors.load(Ordering::Acquire)
        {
            self.0.quiet.wait(&mut queue);
        }
    }

    /// Writes what waits, closes the database (which removes its log) and ends the thread. True if
    /// that was done within `limit`; if not, it goes on in the background, and everything
    /// acknowledged is in the log already, unless that was lost.
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

    /// The errors flag (database.md 9): set while the database cannot be written. No change may be
    /// accepted then: memory is ahead of the database by what waits. Unlike in the C daemon it is
    /// cleared when everything could be written after all.
    pub fn errors(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0.errors)
    }

    /// From now on a change that meets a disk that cannot be written is answered with
    /// [`Error::Io`] at once. It is kept and written later, as if its caller had waited in vain.
    pub fn be_impatient(&self) {
        self.0.impatient.store(true, Ordering::Release);
    }

    /// `hook` is called with each change whose ticket gets an error although the change is kept and
    /// written later, before that ticket. It must be quick. Only the first hook counts.
    pub fn on_refusal(&self, hook: impl Fn(&Change) + Send + Sync + 'static) {
        // A second hook is a bug of the caller, but none that needs an answer.
        let _ = self.0.on_refusal.set(Box::new(hook));
    }

    /// Where the store takes all rows from ([`super::rows_of`] the tree) when its files are removed
    /// or replaced by somebody else: from then on it looks after them. Called on the store thread,
    /// without any lock. Only the first source counts.
    pub fn set_source(&self, source: impl Fn() -> Vec<LoadRow> + Send + Sync + 'static) {
        // A second source is a bug of the caller, but none that needs an answer.
        let _ = self.0.source.set(Box::new(source));
    }
}
