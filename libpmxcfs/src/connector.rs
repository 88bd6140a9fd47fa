//! Making a connection, also while the daemon is restarted (ipc-messages.md 1.5, perl.md 3).
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, fstat, openat, unlink};
use rustix::io::Errno;
use rustix::thread::nanosleep;
use rustix::time::Timespec;

use crate::link::{Handshake, Link, Progress};
use crate::messages::{PMXCFS_RESTART_FLAG, PMXCFS_RESTART_LIMIT_MS};

/// How long a daemon that left the flag is waited for.
pub const RESTART_LIMIT: Duration = Duration::from_millis(PMXCFS_RESTART_LIMIT_MS as u64);
/// Pause between two attempts. An attempt costs some microseconds; the reference waits 100 ms.
const PAUSE: Duration = Duration::from_millis(10);

/// The restart flag, if it is there.
pub fn open_flag() -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    openat(CWD, PMXCFS_RESTART_FLAG, flags, Mode::empty()).ok()
}

/// A connection in the making.
pub struct Connector {
    handshake: Option<Handshake>,
    /// The restart flag since when it was seen.
    flag: Option<(OwnedFd, Instant)>,
    /// Since when the service had no place for one more.
    crowded: Option<Instant>,
    /// There was no flag at the last failure.
    no_flag: bool,
    /// When the next attempt is due.
    next: Option<Instant>,
}

impl Connector {
    /// The first attempt is made at once, or after the usual pause.
    pub fn new(pause: bool) -> Self {
        Self {
            handshake: None,
            flag: None,
            crowded: None,
            no_flag: false,
            next: pause.then(|| Instant::now() + PAUSE),
        }
    }

    /// Goes on for at most `limit`; `None` when it is not done by then or a signal came.
    ///
    /// # Errors
    /// Of the last attempt. A service that is not there is an error at once without the restart
    /// flag, and after [`RESTART_LIMIT`] with it; the flag is removed then.
    pub fn step(&mut self, service: &str, limit: Duration) -> Result<Option<Link>, Errno> {
        let end = Instant::now() + limit;
        loop {
            let now = Instant::now();
            if let Some(next) = self.next {
                if now < next {
                    if now >= end || !sleep(next.min(end) - now) {
                        return Ok(None);
                    }
                    continue;
                }
                self.next = None;
            }
            let outcome = match self.handshake.take() {
                None => Handshake::start(service).map(Progress::Waiting),
                Some(started) => match started.step(end.saturating_duration_since(now)) {
                    Ok(Progress::Waiting(started)) => {
                        self.handshake = Some(started);
                        return Ok(None);
                    }
                    outcome => outcome,
                },
            };
            match outcome {
                Ok(Progress::Done(link)) => return Ok(Some(link)),
                Ok(Progress::Waiting(started)) => self.handshake = Some(started),
                Err(error) => self.failed(error)?,
            }
        }
    }

    /// Whether there is another attempt, and when.
    fn failed(&mut self, error: Errno) -> Result<(), Errno> {
        let now = Instant::now();
        match error {
            // The queue of the service is full of others: they are being let in.
            Errno::AGAIN => {
                let since = *self.crowded.get_or_insert(now);
                if now - since >= RESTART_LIMIT {
                    return Err(error);
                }
                self.next = Some(now + PAUSE);
                Ok(())
            }
            Errno::CONNREFUSED | Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN | Errno::NOENT => {
                self.flagged(error, now)
            }
            error => Err(error),
        }
    }

    fn flagged(&mut self, error: Errno, now: Instant) -> Result<(), Errno> {
        if self.flag.is_none() {
            let Some(flag) = open_flag() else {
                // It may have been removed since, by a daemon that listens now: one more attempt.
                if self.no_flag {
                    return Err(error);
                }
                self.no_flag = true;
                return Ok(());
            };
            self.flag = Some((flag, now));
        }
        if let Some((flag, since)) = &self.flag {
            if now - *since >= RESTART_LIMIT {
                if fstat(flag).is_ok_and(|stat| stat.st_nlink > 0) {
                    let _ = unlink(PMXCFS_RESTART_FLAG);
                }
                return Err(error);
            }
        }
        self.next = Some(now + PAUSE);
        Ok(())
    }
}

/// Sleeps; false when a signal came.
fn sleep(time: Duration) -> bool {
    let request = Timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    matches!(
        nanosleep(&request),
        rustix::thread::NanosleepRelativeResult::Ok
    )
}
