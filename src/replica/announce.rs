//! Announces changes after they are visible (first the file, then its version).
//!
//! The kernel knows a new name only when the caller of `rename` has taken our answer and is back
//! in the VFS. If `.version` rose before the answer, a reader could see the new version, open the
//! name and still get the old file from the dentry cache. If it rose some time after the answer,
//! the caller could see an old version after its own rename. So: the answer is sent, then this
//! thread waits until the kernel's caches show the change ([`Barrier::settle`], which is bounded),
//! then it announces; and whoever asks for versions in between waits for that, some microseconds,
//! [`PATIENCE`] at most.
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

/// Makes changes visible through the mount. Nothing here waits for a request that this process has to
/// answer.
pub trait Barrier: Send + Sync {
    /// A change that came through the mount and was answered before: returns when the kernel has
    /// finished the operation, after a quarter of a second at the latest.
    fn settle(&self, change: &Change);

    /// Makes a change visible of which the kernel does not know.
    fn invalidate(&self, change: &Change);

    /// This node may (not) write any more: the kernel has to forget all modes.
    fn quorum_changed(&self);
}

/// Where announcements go: counters and guest list.
pub type Sink = Arc<dyn Fn(&Effects) + Send + Sync>;
/// Called after each announcement (wakes deferred IPC requests).
pub type Progress = Arc<dyn Fn() + Send + Sync>;

type Waiter = Box<dyn FnOnce() + Send>;

/// What is to be done before an announcement.
enum Before {
    Nothing,
    /// The kernel has to be through with a change that was answered.
    Settle(Box<Change>),
    /// The kernel has to forget the differences of a tree that was replaced.
    Differences(Vec<Change>),
    Quorum,
}

impl Before {
    fn pass(&self, barrier: &dyn Barrier) {
        match self {
            Before::Nothing => {}
            Before::Settle(change) => barrier.settle(change),
            Before::Differences(changes) => changes.iter().for_each(|c| barrier.invalidate(c)),
            Before::Quorum => barrier.quorum_changed(),
        }
    }
}

/// What is announced.
enum News {
    None,
    Effects(Effects),
    Call(Box<dyn FnOnce() + Send>),
}

enum Job {
    Announce(Before, News),
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

    fn tell(&self, news: News) {
        match news {
            News::None => {}
            News::Effects(effects) => (self.sink)(&effects),
            News::Call(call) => call(),
        }
    }
}

fn spawn(shared: &Arc<Shared>, name: &str, run: fn(&Arc<Shared>)) -> io::Result<JoinHandle<()>> {
    let shared = shared.clone();
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || run(&shared))
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
        let threads = vec![
            spawn(&shared, "notify", announce_loop)?,
            spawn(&shared, "patience", patience_loop)?,
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
            self.enqueue(Before::Nothing, News::Effects(effects));
        } else {
            self.shared.tell(News::Effects(effects));
        }
    }

    /// Promises an announcement **before** the caller's answer is sent; the returned function makes
    /// the promise true and is to be called **after** the answer.
    pub fn promise(&self, change: Box<Change>) -> impl FnOnce() + use<> {
        self.shared.promised.fetch_add(1, SeqCst);
        let shared = self.shared.clone();
        move || {
            let news = News::Effects(change.effects.clone());
            shared.push(Job::Announce(Before::Settle(change), news));
        }
    }

    fn enqueue(&self, before: Before, news: News) {
        self.shared.promised.fetch_add(1, SeqCst);
        self.shared.push(Job::Announce(before, news));
    }

    /// A change of another node, or of this one whose caller was told that it is unknown: the kernel
    /// forgets what it touched. To be called at once, for readers; its effects are announced later,
    /// in turn.
    pub fn forget(&self, change: &Change) {
        let barrier = self.shared.barrier.lock().clone();
        if let Some(barrier) = barrier {
            barrier.invalidate(change);
        }
    }

    /// The tree was replaced by another one: the kernel forgets the differences. Their effects are not
    /// announced; see [`Announcer::call`].
    pub fn replaced(&self, differences: Vec<Change>) {
        self.enqueue(Before::Differences(differences), News::None);
    }

    /// Calls `tell` in turn.
    pub fn call(&self, tell: Box<dyn FnOnce() + Send>) {
        self.enqueue(Before::Nothing, News::Call(tell));
    }

    /// The quorum came or went, and whoever asks is told so already.
    pub fn quorum_changed(&self) {
        self.enqueue(Before::Quorum, News::None);
    }

    /// Announces a change whose caller is told that it failed, although it is in the tree and will
    /// be in the database later: the kernel believes the caller and has to be corrected. To be
    /// called **before** the answer.
    pub fn refused(&self, change: Change) {
        self.forget(&change);
        self.announce(change.effects);
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

    /// Ends both threads; questions still waiting are answered.
    pub fn stop(&self) {
        self.shared.queues.lock().stopping = true;
        self.shared.push(Job::Stop);
        self.shared.new_waiter.notify_one();
        for thread in self.threads.lock().drain(..) {
            // A panic there was logged by the panic hook; nothing is left to do.
            let _ = thread.join();
        }
    }
}

fn announce_loop(shared: &Arc<Shared>) {
    loop {
        let job = {
            let mut queues = shared.queues.lock();
            while queues.jobs.is_empty() {
                shared.new_job.wait(&mut queues);
            }
            queues.jobs.pop_front()
        };
        match job {
            Some(Job::Announce(before, news)) => {
                if let Some(barrier) = shared.barrier.lock().clone() {
                    before.pass(&*barrier);
                }
                shared.tell(news);
            }
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

/// Answers questions whose patience is over: the process whose change is waited for may not get a
/// processor for a while.
fn patience_loop(shared: &Arc<Shared>) {
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
mod tests;
