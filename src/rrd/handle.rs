//! The door to the thread `rrd`.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use parking_lot::{Condvar, Mutex};
use tracing::{error, info, warn};

use super::key::Target;
use super::librrd;
use super::queue::{MAX_BYTES, MAX_VALUES, Queue, Update};
use super::rrdcached::Timeouts;
use super::writer::Writer;
use super::{DOMAIN, LOG_LIMIT, may_log};
use crate::failure::contain;
use crate::log_limit::LogLimit;
use crate::status::RrdSink;

/// Updates that are written together.
const BATCH: usize = 64;
/// So long a value waits for others: each batch costs some switches of threads and of processes.
/// The files have one point a minute, nobody misses the time.
const GATHER: Duration = Duration::from_millis(50);
/// How long [`RrdHandle::stop`] gives the thread.
const STOP: Duration = Duration::from_secs(1);

/// What tests have otherwise than the daemon.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) base_dir: PathBuf,
    pub(super) rrdcached_socket: PathBuf,
    pub(super) library: String,
    pub(super) timeouts: Timeouts,
    /// `None`: the one of the machine.
    pub(super) zone: Option<TimeZone>,
}

impl Settings {
    pub(super) fn new(base_dir: PathBuf, rrdcached_socket: PathBuf) -> Self {
        Settings {
            base_dir,
            rrdcached_socket,
            library: librrd::LIBRARY.to_owned(),
            timeouts: Timeouts::default(),
            zone: None,
        }
    }
}

/// Makes [`RrdHandle`]s.
#[derive(Debug)]
pub enum Rrd {}

impl Rrd {
    /// Round-robin files below `base_dir` (absolute; [`super::BASE_DIR`]), which must exist when
    /// the first value comes. Nothing is read, loaded or started before.
    ///
    /// # Errors
    /// A relative `base_dir`: rrdcached would look elsewhere.
    pub fn start(base_dir: PathBuf, rrdcached_socket: PathBuf) -> io::Result<RrdHandle> {
        RrdHandle::new(Settings::new(base_dir, rrdcached_socket))
    }
}

struct State {
    queue: Queue,
    /// Values the thread has taken and not finished.
    writing: usize,
    running: bool,
    /// When the thread must have ended.
    stop_at: Option<Instant>,
    limit: LogLimit,
}

struct Shared {
    settings: Settings,
    state: Mutex<State>,
    /// There are values, or it is time to stop.
    work: Condvar,
    /// It is time to stop.
    stopping: Condvar,
    ended: Condvar,
}

/// Takes values. Clones are the same.
#[derive(Clone)]
pub struct RrdHandle(Arc<Shared>);

impl RrdHandle {
    pub(super) fn new(settings: Settings) -> io::Result<Self> {
        if !settings.base_dir.is_absolute() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(RrdHandle(Arc::new(Shared {
            settings,
            state: Mutex::new(State {
                queue: Queue::new(MAX_VALUES, MAX_BYTES),
                writing: 0,
                running: false,
                stop_at: None,
                limit: LOG_LIMIT,
            }),
            work: Condvar::new(),
            stopping: Condvar::new(),
            ended: Condvar::new(),
        })))
    }

    /// Takes a value on its way to its file (status.md 9.2). `key` is without `rrd/`; `value` as
    /// sent, it ends at its first NUL; `now` in seconds since the epoch. Never waits; what is wrong
    /// with the value, and what could not be kept, is in the log.
    pub fn submit(&self, key: &[u8], value: &[u8], now: u32) {
        let Some(target) = Target::parse(key) else {
            if may_log(&mut self.0.state.lock().limit) {
                let key = String::from_utf8_lossy(key);
                error!(target: DOMAIN, "RRD update error: unknown/wrong key {key}");
            }
            return;
        };
        let file = target.file();
        match target.line(value) {
            Ok(line) => self.0.push(Update {
                file: file.into(),
                kind: target.kind(),
                line: line.into(),
                arrival: now,
            }),
            Err(why) => {
                if may_log(&mut self.0.state.lock().limit) {
                    let file = self.0.settings.base_dir.join(file);
                    info!(target: DOMAIN, "RRD update error {}: {why}", file.display());
                }
            }
        }
    }

    /// Writes what waits, but returns after at most a second; what is left then is lost. Values
    /// that come later are not taken.
    pub fn stop(&self) {
        let stop_at = Instant::now() + STOP;
        let mut state = self.0.state.lock();
        state.stop_at = Some(stop_at);
        self.0.work.notify_all();
        self.0.stopping.notify_all();
        while state.running {
            if self.0.ended.wait_until(&mut state, stop_at).timed_out() {
                let left = state.queue.len() + state.writing;
                warn!(target: DOMAIN, "RRD thread is busy, not waiting for {left} values");
                return;
            }
        }
    }
}

#[cfg(test)]
impl RrdHandle {
    /// Is there a thread?
    pub(super) fn running(&self) -> bool {
        self.0.state.lock().running
    }

    /// Values that are not finished.
    pub(super) fn waiting(&self) -> usize {
        let state = self.0.state.lock();
        state.queue.len() + state.writing
    }
}

impl RrdSink for RrdHandle {
    fn submit(&self, key: &[u8], value: &[u8], now: u32) {
        RrdHandle::submit(self, key, value, now);
    }
}

impl std::fmt::Debug for RrdHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RrdHandle")
            .field("base_dir", &self.0.settings.base_dir)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn push(self: &Arc<Self>, update: Update) {
        let mut state = self.state.lock();
        if state.stop_at.is_some() {
            return;
        }
        state.queue.push(update);
        let dropped = state.queue.report(Instant::now());
        let failed = if state.running {
            None
        } else {
            self.spawn().err()
        };
        state.running = failed.is_none();
        let failed = failed.filter(|_| may_log(&mut state.limit));
        drop(state);
        self.work.notify_one();
        if let Some(error) = failed {
            error!(target: DOMAIN, "unable to start thread 'rrd': {error}");
        }
        if let Some(count) = dropped {
            warn!(target: DOMAIN, "RRD queue full, dropped {count} values");
        }
    }

    /// Starts the thread. The lock is held: it waits until the value is there.
    fn spawn(self: &Arc<Self>) -> io::Result<()> {
        let shared = Arc::clone(self);
        thread::Builder::new()
            .name("rrd".to_owned())
            .spawn(move || {
                let _ended = Ended(&shared);
                // Files and values come from elsewhere: whatever they make of the thread, the next
                // value starts it again.
                contain("writing round-robin data", || {
                    let mut writer = Writer::new(&shared.settings);
                    while let Some(batch) = shared.next() {
                        writer.write(&batch, || shared.late());
                    }
                });
            })
            .map(|_| ())
    }

    /// The next updates; waits for them. `None`: the thread has to end.
    fn next(&self) -> Option<Vec<Update>> {
        let mut state = self.state.lock();
        state.writing = 0;
        while state.queue.is_empty() && state.stop_at.is_none() {
            self.work.wait(&mut state);
        }
        if state.queue.len() < BATCH && state.stop_at.is_none() {
            // Whether the time is over or the end has come: what is there is taken.
            let _ = self.stopping.wait_for(&mut state, GATHER);
        }
        let late = state.stop_at.is_some_and(|at| Instant::now() >= at);
        if late || state.queue.is_empty() {
            return None;
        }
        let batch = state.queue.take(BATCH);
        state.writing = batch.len();
        Some(batch)
    }

    /// Is the time over that [`RrdHandle::stop`] gives?
    fn late(&self) -> bool {
        let stop_at = self.state.lock().stop_at;
        stop_at.is_some_and(|at| Instant::now() >= at)
    }
}

/// Tells that the thread has ended, also if by a panic: the next value starts it again.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.state.lock().running = false;
        self.0.ended.notify_all();
    }
}
