//! A client: a connection that is made when it is needed and again when the daemon has gone, and
//! the calls on it (perl.md 3, ipc-messages.md 1.4).
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::connector::{Connector, RESTART_LIMIT, open_flag};
use crate::link::{Link, Outcome, Place};
use crate::messages::PMXCFS_MAX_REQUEST_PAYLOAD;

/// First and longest time between two looks whether the daemon still lives.
const FIRST_SLICE: Duration = Duration::from_millis(5);
const LAST_SLICE: Duration = Duration::from_millis(50);

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub op: i32,
    pub payload: &'a [u8],
}

/// How a call is made.
#[derive(Debug, Clone, Copy)]
pub struct Mode {
    /// Longest time for all of it, connecting included.
    pub timeout: Option<Duration>,
    /// Comes back with `EINTR` when a signal came, and after [`LAST_SLICE`] at the latest.
    pub interruptible: bool,
    /// Goes on with the call that came back with `EINTR`.
    pub resume: bool,
}

/// A call that is not done.
struct Pending {
    op: i32,
    started: Instant,
    /// Connections that broke under it.
    broken: u32,
    slice: Duration,
    phase: Phase,
}

enum Phase {
    Connect(Connector),
    Send,
    Receive,
}

/// Without locking and regardless of forks: see `handle`.
pub struct Client {
    service: String,
    link: Option<Link>,
    pending: Option<Pending>,
    /// Requests sent with [`Client::send`] whose answers were not received.
    outstanding: u32,
}

impl Client {
    pub fn new(service: &str) -> Self {
        Self {
            service: service.to_owned(),
            link: None,
            pending: None,
            outstanding: 0,
        }
    }

    /// Ends the connection; the next call makes another one.
    pub fn disconnect(&mut self) {
        self.link = None;
        self.pending = None;
        self.outstanding = 0;
    }

    /// Makes the connection if there is none.
    ///
    /// # Errors
    /// As [`Connector::step`]; `ETIMEDOUT`.
    pub fn connect(&mut self, timeout: Option<Duration>) -> Result<(), Errno> {
        if self.link.is_some() {
            return Ok(());
        }
        let started = Instant::now();
        let mut connector = Connector::new(false);
        loop {
            let limit = slice(LAST_SLICE, started, timeout)?;
            if let Some(link) = connector.step(&self.service, limit)? {
                self.disconnect();
                self.link = Some(link);
                return Ok(());
            }
        }
    }

    /// Sends a request and waits for its answer, whose payload goes to `place`; its size.
    ///
    /// A connection that breaks is made anew and the request sent again, once; while the restart
    /// flag is there, as often as it takes within [`RESTART_LIMIT`].
    ///
    /// # Errors
    /// What the daemon answers; what connecting says; `ENOTCONN` or `EBADMSG` when the connection
    /// broke again; `EMSGSIZE`; `ETIMEDOUT`, after which the connection is closed; `EBUSY` while
    /// answers to [`Client::send`] are outstanding; `EINTR` if so wished.
    pub fn call(
        &mut self,
        mode: Mode,
        request: Request<'_>,
        place: &mut dyn Place,
    ) -> Result<usize, Errno> {
        if request.payload.len() > PMXCFS_MAX_REQUEST_PAYLOAD as usize {
            return Err(Errno::MSGSIZE);
        }
        if self.outstanding > 0 {
            return Err(Errno::BUSY);
        }
        let mut pending = match self.pending.take() {
            Some(pending) if mode.resume && pending.op == request.op => pending,
            other => {
                if other.is_some_and(|pending| matches!(pending.phase, Phase::Receive)) {
                    // The answer to a call that was given up would be taken for this one's.
                    self.link = None;
                }
                self.begin(request.op)
            }
        };
        loop {
            let outcome = self.step(&mut pending, mode, request, place);
            match outcome {
                Ok(Some(size)) => return Ok(size),
                Ok(None) if mode.interruptible => {
                    self.pending = Some(pending);
                    return Err(Errno::INTR);
                }
                Ok(None) => {}
                Err(error) => {
                    if error == Errno::TIMEDOUT {
                        self.link = None;
                    }
                    return Err(error);
                }
            }
        }
    }

    fn begin(&self, op: i32) -> Pending {
        Pending {
            op,
            started: Instant::now(),
            broken: 0,
            slice: FIRST_SLICE,
            phase: match self.link {
                Some(_) => Phase::Send,
                None => Phase::Connect(Connector::new(false)),
            },
        }
    }

    /// Goes on until the call is done, or (`None`) for a slice of time.
    fn step(
        &mut self,
        pending: &mut Pending,
        mode: Mode,
        request: Request<'_>,
        place: &mut dyn Place,
    ) -> Result<Option<usize>, Errno> {
        loop {
            let limit = slice(pending.slice, pending.started, mode.timeout)?;
            match (&mut pending.phase, &mut self.link) {
                (Phase::Connect(connector), _) => match connector.step(&self.service, limit)? {
                    Some(link) => {
                        self.link = Some(link);
                        pending.phase = Phase::Send;
                    }
                    None => return Ok(None),
                },
                (Phase::Send, Some(link)) => match link.send(request.op, request.payload) {
                    Ok(()) => pending.phase = Phase::Receive,
                    Err(Errno::MSGSIZE) => return Err(Errno::MSGSIZE),
                    Err(error) => self.again(pending, error)?,
                },
                (Phase::Receive, Some(link)) => {
                    match link.receive(limit, Some(request.op), place) {
                        Ok(Outcome::Answer(answer)) => return answer.result.map(Some),
                        Ok(Outcome::Interrupted) => return Ok(None),
                        Ok(Outcome::Nothing) => {
                            pending.slice = (2 * pending.slice).min(LAST_SLICE);
                            return Ok(None);
                        }
                        Err(error) => self.again(pending, error)?,
                    }
                }
                (_, None) => self.again(pending, Errno::NOTCONN)?,
            }
        }
    }

    /// The connection broke: makes another one, if it is worth the try.
    fn again(&mut self, pending: &mut Pending, error: Errno) -> Result<(), Errno> {
        self.link = None;
        pending.broken += 1;
        let restarting = || pending.started.elapsed() < RESTART_LIMIT && open_flag().is_some();
        if pending.broken > 1 && !restarting() {
            return Err(error);
        }
        pending.slice = FIRST_SLICE;
        pending.phase = Phase::Connect(Connector::new(pending.broken > 1));
        Ok(())
    }

    /// Sends a request without waiting for its answer, which [`Client::receive`] gets. A broken
    /// connection is made anew only before anything is outstanding.
    ///
    /// # Errors
    /// As [`Client::connect`]; `EMSGSIZE`; `EAGAIN` while there is no space for more requests;
    /// `ENOTCONN` when the connection broke: outstanding answers are lost.
    pub fn send(&mut self, timeout: Option<Duration>, request: Request<'_>) -> Result<(), Errno> {
        if request.payload.len() > PMXCFS_MAX_REQUEST_PAYLOAD as usize {
            return Err(Errno::MSGSIZE);
        }
        if self.pending.is_some() {
            self.disconnect();
        }
        for last in [false, true] {
            self.connect(timeout)?;
            let Some(link) = &mut self.link else {
                return Err(Errno::NOTCONN);
            };
            match link.send(request.op, request.payload) {
                Ok(()) => {
                    self.outstanding += 1;
                    return Ok(());
                }
                Err(error @ (Errno::AGAIN | Errno::MSGSIZE)) => return Err(error),
                Err(error) => {
                    let lost = self.outstanding > 0;
                    self.disconnect();
                    if lost || last {
                        return Err(error);
                    }
                }
            }
        }
        Err(Errno::NOTCONN)
    }

    /// Waits for the next answer to [`Client::send`]: operation and size of its payload.
    ///
    /// # Errors
    /// What the daemon answers, with the operation; `EINVAL` when nothing is outstanding;
    /// `ETIMEDOUT`, after which it can be waited for again; `ENOTCONN` or `EBADMSG`: all
    /// outstanding answers are lost.
    pub fn receive(
        &mut self,
        timeout: Option<Duration>,
        place: &mut dyn Place,
    ) -> Result<(i32, Result<usize, Errno>), Errno> {
        let Some(link) = self.link.as_mut().filter(|_| self.outstanding > 0) else {
            return Err(Errno::INVAL);
        };
        let started = Instant::now();
        let mut wait = FIRST_SLICE;
        loop {
            match link.receive(slice(wait, started, timeout)?, None, place) {
                Ok(Outcome::Answer(answer)) => {
                    self.outstanding -= 1;
                    return Ok((answer.id, answer.result));
                }
                Ok(_) => wait = (2 * wait).min(LAST_SLICE),
                Err(error) => {
                    self.disconnect();
                    return Err(error);
                }
            }
        }
    }
}

/// The next wait: `wait`, or what is left of the time-out.
fn slice(wait: Duration, started: Instant, timeout: Option<Duration>) -> Result<Duration, Errno> {
    let Some(timeout) = timeout else {
        return Ok(wait);
    };
    match timeout.checked_sub(started.elapsed()) {
        Some(left) if !left.is_zero() => Ok(left.min(wait)),
        _ => Err(Errno::TIMEDOUT),
    }
}
