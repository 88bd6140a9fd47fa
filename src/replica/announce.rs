//! Announces changes after they are visible (design.md 6: first the file, then its version).
//!
//! The kernel knows a new name only when the caller of `rename` has taken our answer and is back
//! in the VFS. If `.version` rose before the answer, a reader could see the new version, open the
//! name and still get the old file from the dentry cache. If it rose some time after the answer,
//! the caller could see an old version after its own rename. So: the answer is sent, then this
//! thread waits until the kernel has left the directory (the *barrier*: an invalidation of a name
//! that does not exist takes the directory's lock), then it announces; and whoever asks for
//! versions in between waits for that, some microseconds, [`PATIENCE`] at most.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::memdb::{Change, Effects};

/// How long a question for versions waits for announcements before it gets the old ones.
pub const PATIENCE: Duration = Duration::from_millis(100);

/// Makes a change visible that came through the mount and was answered before.
pub trait Barrier: Send + Sync {
    /// Returns when the kernel has finished the operation. May take as long as another operation
    /// holds the directory.
    fn settle(&self, change: &Change);
}

/// Where announcements go: counters and guest list.
pub type Sink = Arc<dyn Fn(&Effects) + Send + Sync>;
/// Called after each announcement (wakes deferred IPC requests).
pub type Progress = Arc<dyn Fn() + Send + Sync>;

type Waiter = Box<dyn FnOnce() + Send>;

enum Job {
    /// Settle the change, then announce its effects.
    Change(Box<Change>),
    /// Announce only, in turn.
    Effects(Effects),
    Stop,
}

#[derive(Default)]
struct Queues {
    jobs: VecDeque<Job>,
    /// Questions: (number of the announcement they wait for, deadline, what to call).
    waiters: Vec<(u64, Instant, Waiter)>,
    stopping: bool,
}

struct Shared {
    queues: Mutex<Queues>,
    new_job: Condvar,
    new_waiter: Condvar,
    /// Announcements promised so far.
    promised: AtomicU64,
    /// Announcements made so far.
    made: AtomicU64,
    sink: Sink,
    progress: Mutex<Option<Progress>>,
    barrier: Mutex<Option<Arc<dyn Barrier>>>,
}

impl Shared {
    fn push(&self, job: Job) {
        self.queues.lock().jobs.push_back(job);
        self.new_job.notify_one();
    }
}

/// Handle of the two notify threads.
pub struct Announcer {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Announcer {
    /// Starts the threads. Until a barrier is set, announcements are made at once.
    pub fn start(sink: Sink) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            queues: Mutex::new(Queues::default()),
            new_job: Condvar::new(),
            new_waiter: Condvar::new(),
            promised: AtomicU64::new(0),
            made: AtomicU64::new(0),
            sink,
            progress: Mutex::new(None),
            barrier: Mutex::new(None),
        });
        let spawn = |name: &str, run: fn(&Shared)| {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(name.into())
                .spawn(move || run(&shared))
        };
        let threads = vec![
            spawn("notify", announce_loop)?,
            spawn("patience", patience_loop)?,
        ];
        Ok(Arc::new(Announcer {
            shared,
            threads: Mutex::new(threads),
        }))
    }

    /// The mounted file system's barrier.
    pub fn set_barrier(&self, barrier: Arc<dyn Barrier>) {
        *self.shared.barrier.lock() = Some(barrier);
    }

    /// Called after every announcement.
    pub fn set_progress(&self, progress: Progress) {
        *self.shared.progress.lock() = Some(progress);
    }

    /// Is an announcement under way?
    pub fn pending(&self) -> bool {
        self.shared.made.load(SeqCst) != self.shared.promised.load(SeqCst)
    }

    /// Announces now, or behind those that are under way: their order decides what the guest list
    /// says. For changes that need no barrier.
    pub fn announce(&self, effects: Effects) {
        if self.pending() {
            self.shared.promised.fetch_add(1, SeqCst);
            self.shared.push(Job::Effects(effects));
        } else {
            (self.shared.sink)(&effects);
        }
    }

    /// Promises an announcement **before** the caller's answer is sent; the returned function makes
    /// the promise true and is to be called **after** the answer.
    pub fn promise(&self, change: Box<Change>) -> impl FnOnce() + use<> {
        self.shared.promised.fetch_add(1, SeqCst);
        let shared = self.shared.clone();
        move || shared.push(Job::Change(change))
    }

    /// Calls `ready` when everything promised until now is announced: at once if nothing is under
    /// way, else from another thread, after [`PATIENCE`] at the latest.
    pub fn when_announced(&self, ready: Waiter) {
        let target = self.shared.promised.load(SeqCst);
        if self.shared.made.load(SeqCst) >= target {
            return ready();
        }
        let mut queues = self.shared.queues.lock();
        if queues.stopping || self.shared.made.load(SeqCst) >= target {
            drop(queues);
            return ready();
        }
        queues
            .waiters
            .push((target, Instant::now() + PATIENCE, ready));
        self.shared.new_waiter.notify_one();
    }

    /// Ends both threads; questions still waiting are answered. Does not wait for a barrier that
    /// hangs in the kernel.
    pub fn stop(&self) {
        self.shared.queues.lock().stopping = true;
        self.shared.push(Job::Stop);
        self.shared.new_waiter.notify_one();
        for thread in self.threads.lock().drain(..) {
            if thread.thread().name() == Some("patience") {
                // A panic there was logged by the panic hook; nothing is left to do.
                let _ = thread.join();
            }
        }
    }
}

fn announce_loop(shared: &Shared) {
    loop {
        let job = {
            let mut queues = shared.queues.lock();
            while queues.jobs.is_empty() {
                shared.new_job.wait(&mut queues);
            }
            queues.jobs.pop_front()
        };
        match job {
            Some(Job::Change(change)) => {
                let barrier = shared.barrier.lock().clone();
                if let Some(barrier) = barrier {
                    barrier.settle(&change);
                }
                (shared.sink)(&change.effects);
            }
            Some(Job::Effects(effects)) => (shared.sink)(&effects),
            Some(Job::Stop) | None => return,
        }
        let made = shared.made.fetch_add(1, SeqCst) + 1;
        let ready: Vec<Waiter> = {
            let mut queues = shared.queues.lock();
            let waiting = std::mem::take(&mut queues.waiters);
            let (ready, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|w| w.0 <= made);
            queues.waiters = rest;
            ready.into_iter().map(|w| w.2).collect()
        };
        ready.into_iter().for_each(|waiter| waiter());
        let progress = shared.progress.lock().clone();
        if let Some(progress) = progress {
            progress();
        }
    }
}

/// Answers questions whose patience is over: a barrier can be held up by other users of the
/// directory, and reads never wait for those.
fn patience_loop(shared: &Shared) {
    let mut queues = shared.queues.lock();
    loop {
        let now = Instant::now();
        let stopping = queues.stopping;
        let waiting = std::mem::take(&mut queues.waiters);
        let (over, rest): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|w| stopping || w.1 <= now);
        queues.waiters = rest;
        if !over.is_empty() {
            parking_lot::MutexGuard::unlocked(&mut queues, || {
                over.into_iter().for_each(|waiter| (waiter.2)());
            });
            continue;
        }
        if stopping {
            return;
        }
        match queues.waiters.iter().map(|w| w.1).min() {
            Some(deadline) => {
                shared.new_waiter.wait_until(&mut queues, deadline);
            }
            None => shared.new_waiter.wait(&mut queues),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    use super::*;

    struct Gate(Mutex<mpsc::Receiver<()>>);

    impl Barrier for Gate {
        fn settle(&self, _: &Change) {
            let _ = self.0.lock().recv();
        }
    }

    fn change() -> Box<Change> {
        let root = crate::memdb::RootRow {
            version: 2,
            writer: 0,
            mtime: 0,
        };
        let effects = Effects::default();
        Box::new(Change {
            delete: None,
            put: None,
            root,
            removed: None,
            inode: 2,
            effects,
        })
    }

    fn announcer() -> (Arc<Announcer>, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        let sink = Arc::new(move |_: &Effects| {
            counter.fetch_add(1, SeqCst);
        });
        (Announcer::start(sink).unwrap(), count)
    }

    #[test]
    fn without_promises_nothing_waits() {
        let (announcer, count) = announcer();
        announcer.announce(Effects::default());
        assert_eq!(count.load(SeqCst), 1);
        let (tx, rx) = mpsc::channel();
        announcer.when_announced(Box::new(move || tx.send(()).unwrap()));
        rx.try_recv().unwrap();
        announcer.stop();
    }

    #[test]
    fn a_question_waits_for_the_promise_that_was_before_it() {
        let (announcer, count) = announcer();
        let (open, gate) = mpsc::channel();
        announcer.set_barrier(Arc::new(Gate(Mutex::new(gate))));
        let keep = announcer.promise(change());
        assert!(announcer.pending());
        keep();
        let (tx, rx) = mpsc::channel();
        let seen = count.clone();
        announcer.when_announced(Box::new(move || tx.send(seen.load(SeqCst)).unwrap()));
        assert!(rx.try_recv().is_err());
        open.send(()).unwrap();
        assert_eq!(rx.recv_timeout(Duration::from_secs(5)).unwrap(), 1);
        announcer.stop();
    }

    #[test]
    fn patience_ends_when_the_barrier_does_not() {
        let (announcer, count) = announcer();
        let (_open, gate) = mpsc::channel();
        announcer.set_barrier(Arc::new(Gate(Mutex::new(gate))));
        announcer.promise(change())();
        let (tx, rx) = mpsc::channel();
        announcer.when_announced(Box::new(move || tx.send(()).unwrap()));
        rx.recv_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!(count.load(SeqCst), 0);
        announcer.stop();
    }

    #[test]
    fn later_announcements_stay_behind_earlier_promises() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let log = order.clone();
        let sink = Arc::new(move |e: &Effects| log.lock().push(e.guests.len()));
        let announcer = Announcer::start(sink).unwrap();
        let keep = announcer.promise(change());
        keep();
        let remove = crate::memdb::GuestEvent::Remove { vmid: 1 };
        announcer.announce(Effects {
            touched: Vec::new(),
            guests: vec![remove],
        });
        let (tx, rx) = mpsc::channel();
        announcer.when_announced(Box::new(move || tx.send(()).unwrap()));
        rx.recv_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!(*order.lock(), [0, 1]);
        announcer.stop();
    }
}
