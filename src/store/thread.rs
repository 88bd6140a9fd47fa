//! The store thread: what takes long (large groups, checkpoints) and what has to wait (locks of
//! other processes, a full disk).
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::DOMAIN;
use super::aside;
use super::db::Db;
use super::keeper::Keeper;
use super::open::{Store, sqlite_text};
use super::queue::{Pending, Shared, StoreHandle, Turn};
use super::trouble::{Patience, Trouble};
use crate::memdb::Error;

/// The read lock that a burst of transactions keeps is given back when none came for so long.
const IDLE: Duration = Duration::from_millis(50);

impl Store {
    /// Starts the thread that writes to this database.
    ///
    /// # Errors
    /// If the thread cannot be made, or the statements.
    pub fn spawn(self) -> io::Result<StoreHandle> {
        self.spawn_with(Patience::default())
    }

    /// As [`Store::spawn`]; while the database cannot be written a caller waits no longer than this.
    ///
    /// # Errors
    /// As [`Store::spawn`].
    pub fn spawn_for(self, longest_wait: Duration) -> io::Result<StoreHandle> {
        self.spawn_with(Patience {
            caller: longest_wait,
            ..Patience::default()
        })
    }

    pub(super) fn spawn_with(self, patience: Patience) -> io::Result<StoreHandle> {
        let (conn, path) = self.into_parts();
        let db = Db::new(conn).map_err(|error| io::Error::other(sqlite_text(&error)))?;
        let shared = Arc::new(Shared::new(db));
        let mut worker = Worker {
            shared: Arc::clone(&shared),
            patience,
            keeper: Keeper::new(Arc::clone(&shared), path)?,
        };
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || worker.run())?;
        Ok(StoreHandle(shared))
    }
}

/// What the thread does next.
enum Job {
    Write,
    Checkpoint,
    /// At the files.
    Look,
    ReleaseSnapshot,
    End,
}

struct Worker {
    shared: Arc<Shared>,
    patience: Patience,
    keeper: Keeper,
}

impl Worker {
    fn run(&mut self) {
        let shared = Arc::clone(&self.shared);
        // However the thread ends: nobody waits for it any longer.
        let _guard = Ending(&shared);
        let mut batch: Vec<Pending> = Vec::new();
        loop {
            match self.next(&mut batch) {
                Job::Write => self.persist(&mut batch),
                Job::Checkpoint => self.keeper.checkpoint(),
                Job::Look => drop(self.keeper.look()),
                Job::ReleaseSnapshot => self.with_db(Db::release_snapshot),
                Job::End => break,
            }
        }
        self.keeper.end();
        let db = self.shared.db.lock().take();
        if let Some(Err(error)) = db.map(Db::close) {
            let text = sqlite_text(&error);
            log::error!(target: DOMAIN, "closing the database failed: {text}");
        }
    }

    fn with_db(&self, job: impl FnOnce(&mut Db)) {
        if let Some(db) = &mut *self.shared.db.lock() {
            job(db);
        }
    }

    /// Gives the turn back, waits for something to do, and takes the turn for it.
    fn next(&self, batch: &mut Vec<Pending>) -> Job {
        let state = self.shared.db_state();
        let mut queue = self.shared.queue.lock();
        queue.db = state;
        loop {
            let look_at = self.keeper.next_look();
            let look_is_due = look_at <= Instant::now();
            if queue.turn == Turn::Inline {
                queue.wanted = look_is_due;
            } else {
                queue.wanted = false;
                // The checkpoint first: under load there is always something waiting.
                let job = if queue.db.long_log {
                    Some(Job::Checkpoint)
                } else if look_is_due {
                    Some(Job::Look)
                } else if queue.is_due() {
                    queue.take(batch);
                    Some(Job::Write)
                } else if queue.closing {
                    Some(Job::End)
                } else {
                    None
                };
                if let Some(job) = job {
                    queue.turn = Turn::Thread;
                    return job;
                }
                queue.turn = Turn::Free;
                self.shared.quiet.notify_all();
                if let (Some(due), false) = (queue.due, queue.waiting.is_empty()) {
                    self.shared.work.wait_until(&mut queue, due.min(look_at));
                    continue;
                }
            }
            if queue.wanted {
                // Whoever has the turn wakes this thread.
                self.shared.work.wait(&mut queue);
                continue;
            }
            if !queue.db.snapshot {
                self.shared.work.wait_until(&mut queue, look_at);
                continue;
            }
            let seen = queue.commits;
            let idle = self.shared.work.wait_for(&mut queue, IDLE).timed_out();
            if idle && queue.commits == seen && queue.turn == Turn::Free {
                queue.turn = Turn::Thread;
                return Job::ReleaseSnapshot;
            }
        }
    }

    /// Writes the batch and whatever comes meanwhile, however long that takes.
    fn persist(&mut self, batch: &mut Vec<Pending>) {
        let mut trouble: Option<Trouble> = None;
        while let Err(error) = self.write(batch) {
            if trouble.is_none() || self.keeper.next_look() <= Instant::now() {
                // With another file it is tried again at once.
                if self.keeper.failed(&error) {
                    continue;
                }
            }
            let path = self.keeper.path();
            let trouble = trouble.get_or_insert_with(|| Trouble::new(path, &self.patience));
            if !self.endure(trouble, &error, batch) {
                trouble.give_up(batch.len());
                batch.clear();
                return;
            }
        }
        if let Some(trouble) = trouble {
            self.shared.errors.store(false, Ordering::Release);
            trouble.is_over(batch.len());
        }
        for mut pending in batch.drain(..) {
            pending.answer(Ok(()));
        }
    }

    fn write(&self, batch: &mut [Pending]) -> rusqlite::Result<()> {
        for pending in &mut *batch {
            if let Some(aside) = pending.aside() {
                aside::keep(self.keeper.path(), aside)?;
                pending.kept();
            }
        }
        self.shared.write(batch)
    }

    /// After a failure: refuses new changes if it is more than a short lock, answers those who
    /// have waited long enough, pauses, and takes in what came meanwhile. False: no more attempts.
    fn endure(
        &self,
        trouble: &mut Trouble,
        error: &rusqlite::Error,
        batch: &mut Vec<Pending>,
    ) -> bool {
        let state = trouble.failed(error, batch.len(), Instant::now());
        if state.refuse_new {
            self.shared.errors.store(true, Ordering::Release);
            self.shared.quiet.notify_all();
        }
        let impatient = state.refuse_new && self.shared.impatient.load(Ordering::Acquire);
        let answer = state.answer.or(impatient.then_some(Error::Io));
        if let Some(answer) = answer {
            self.shared.send_away(batch, answer);
        }
        let mut queue = self.shared.queue.lock();
        if queue.closing && answer.is_some() {
            return false;
        }
        // Woken early by the end only.
        self.shared.work.wait_for(&mut queue, state.pause);
        batch.append(&mut queue.waiting);
        true
    }
}

/// Marks the end of the thread and refuses what still waits.
struct Ending<'a>(&'a Shared);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.ended = true;
        if queue.turn == Turn::Thread {
            queue.turn = Turn::Free;
        }
        let left = std::mem::take(&mut queue.waiting);
        self.0.quiet.notify_all();
        drop(queue);
        if std::thread::panicking() {
            self.0.errors.store(true, Ordering::Release);
        }
        self.0.refuse(left);
    }
}
