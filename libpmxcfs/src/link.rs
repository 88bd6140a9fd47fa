//! One connection to the daemon: service socket, handshake, request and answer
//! (ipc-transport.md 2, 4, 7.1).
#![forbid(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
    connect, recv, send, shutdown, socket_with,
};
use rustix::process::geteuid;

use crate::messages::*;
use crate::ring::{Requests, Responses, Wait};
use crate::sys::peer_uid;

/// When this exists, libqb uses sockets with a place in the file system.
const FORCE_FILE: &str = "/etc/libqb/force-filesystem-sockets";
/// Where libqb has them then.
const SOCKET_DIR: &str = "/var/run";
/// `sun_path` of an abstract socket without its leading NUL.
const ABSTRACT_NAME: usize = 107;
/// Bytes of the connection response.
const RESPONSE: usize = size_of::<pmxcfs_connect_response>();
/// Largest message a daemon may offer.
const MAX_OFFER: u32 = 64 << 20;

/// Where the payload of an answer goes.
pub trait Place {
    /// Memory for `len` bytes, which will be filled; `None` when there is none.
    fn place(&mut self, len: usize) -> Option<&mut [MaybeUninit<u8>]>;
}

/// An answer that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub id: i32,
    /// Bytes of the payload, or what the daemon said instead.
    pub result: Result<usize, Errno>,
}

/// What waiting for an answer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Answer(Answer),
    /// Not until now.
    Nothing,
    /// A signal came.
    Interrupted,
}

/// A connected socket on which the answer of the daemon is awaited.
pub struct Handshake {
    socket: OwnedFd,
    bytes: Vec<u8>,
}

impl Handshake {
    /// Connects to `service` and asks for messages of [`PMXCFS_MAX_MESSAGE`] bytes.
    ///
    /// # Errors
    /// Of the system calls: `ECONNREFUSED` when nobody listens, `EAGAIN` when too many wait.
    /// `EPERM` when the service belongs to another user than root or this one: it would have the
    /// names of files that are written.
    pub fn start(service: &str) -> Result<Self, Errno> {
        let address = if Path::new(FORCE_FILE).exists() {
            SocketAddrUnix::new(Path::new(SOCKET_DIR).join(service))?
        } else {
            let mut name = [0u8; ABSTRACT_NAME];
            let place = name.get_mut(..service.len()).ok_or(Errno::INVAL)?;
            place.copy_from_slice(service.as_bytes());
            SocketAddrUnix::new_abstract_name(&name)?
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &address)?;
        let uid = peer_uid(socket.as_fd())?;
        if uid != 0 && uid != geteuid().as_raw() {
            return Err(Errno::PERM);
        }
        let mut request = [0u8; 24];
        request[0..4].copy_from_slice(&PMXCFS_IPC_AUTHENTICATE.to_le_bytes());
        request[8..12].copy_from_slice(&24i32.to_le_bytes());
        request[16..20].copy_from_slice(&PMXCFS_MAX_MESSAGE.to_le_bytes());
        if send(&socket, &request, SendFlags::NOSIGNAL)? != request.len() {
            return Err(Errno::PROTO);
        }
        Ok(Self {
            socket,
            bytes: Vec::with_capacity(RESPONSE),
        })
    }

    /// Waits at most `limit` for the response; a handshake again if it is not complete by then or
    /// a signal came.
    ///
    /// # Errors
    /// `ECONNRESET` when the daemon closed the connection; what it said when it refuses; of the
    /// system calls.
    pub fn step(mut self, limit: Duration) -> Result<Progress, Errno> {
        let end = Instant::now() + limit;
        let mut part = [0u8; RESPONSE];
        loop {
            let left = RESPONSE - self.bytes.len();
            match recv(&self.socket, &mut part[..left], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(Errno::CONNRESET),
                Ok((_, count)) => {
                    self.bytes.extend_from_slice(&part[..count]);
                    if self.bytes.len() == RESPONSE {
                        return self.accepted().map(Progress::Done);
                    }
                }
                Err(Errno::AGAIN) => {
                    let now = Instant::now();
                    if now >= end || poll_for(&self.socket, PollFlags::IN, end - now).is_none() {
                        return Ok(Progress::Waiting(self));
                    }
                }
                Err(Errno::INTR) => return Ok(Progress::Waiting(self)),
                Err(error) => return Err(error),
            }
        }
    }

    fn accepted(self) -> Result<Link, Errno> {
        let int = |at: usize| int_at(&self.bytes, at);
        if int(0) != PMXCFS_IPC_AUTHENTICATE {
            return Err(Errno::PROTO);
        }
        if int(16) != 0 {
            // The reference says +1.
            return Err(errno(int(16)));
        }
        let max_message = int(28) as u32;
        if int(24) != PMXCFS_IPC_SHARED_MEMORY || !(24..=MAX_OFFER).contains(&max_message) {
            return Err(Errno::PROTO);
        }
        let prefix = |at| text(&self.bytes[at..at + PMXCFS_PATH_SIZE as usize]);
        // Nothing is ever sent through the event ring: it is left alone.
        let requests = Requests::open(prefix(40)?, max_message)?;
        let responses = Responses::open(prefix(4136)?, max_message)?;
        Ok(Link {
            socket: self.socket,
            requests,
            responses,
            max_message,
            pid: std::process::id(),
        })
    }
}

/// How far a handshake is.
pub enum Progress {
    Waiting(Handshake),
    Done(Link),
}

/// A connection that is made.
pub struct Link {
    socket: OwnedFd,
    requests: Requests,
    responses: Responses,
    max_message: u32,
    /// Process that made it.
    pid: u32,
}

impl Drop for Link {
    fn drop(&mut self) {
        // A child that was forked meanwhile has the socket, too: closing it here would not tell
        // the daemon. The child itself only lets go what is its parent's.
        if self.pid == std::process::id() {
            let _ = shutdown(&self.socket, Shutdown::Both);
        }
    }
}

impl Link {
    /// Sends a request without waiting for its answer.
    ///
    /// # Errors
    /// `EMSGSIZE` for more than the connection takes; `EAGAIN` while the ring is full of requests
    /// that are not answered; `ENOTCONN` or `EPIPE` when the daemon has gone.
    pub fn send(&mut self, id: i32, payload: &[u8]) -> Result<(), Errno> {
        if !self.requests.is_shared() {
            return Err(Errno::NOTCONN);
        }
        let size = 16 + payload.len();
        if size > self.max_message as usize {
            return Err(Errno::MSGSIZE);
        }
        let mut header = [0u8; 16];
        header[0..4].copy_from_slice(&id.to_le_bytes());
        header[8..12].copy_from_slice(&(size as u32).to_le_bytes());
        self.requests.put(&header, payload)?;
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match send(&self.socket, &header[8..9], flags) {
            // A full socket holds more bytes than anybody counts: one more tells nothing.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(Errno::NOTCONN),
            Err(error) => Err(error),
        }
    }

    /// Waits at most `limit` for the next answer, which has to be one to `wanted` if that is given.
    ///
    /// # Errors
    /// `ENOTCONN` when the daemon has gone, `EBADMSG` for an answer that cannot be, `ENOMEM` when
    /// there is no place for it (the answer is lost). The first two are the end of the connection.
    pub fn receive(
        &mut self,
        limit: Duration,
        wanted: Option<i32>,
        place: &mut dyn Place,
    ) -> Result<Outcome, Errno> {
        match self.responses.wait(limit) {
            Wait::Ready => self.take(wanted, place).map(Outcome::Answer),
            Wait::Interrupted => Ok(Outcome::Interrupted),
            Wait::Nothing if !self.is_hung_up() => Ok(Outcome::Nothing),
            // It may have answered before it went.
            Wait::Nothing if self.responses.wait(Duration::ZERO) == Wait::Ready => {
                self.take(wanted, place).map(Outcome::Answer)
            }
            Wait::Nothing => Err(Errno::NOTCONN),
        }
    }

    /// Whether the daemon has closed the connection.
    fn is_hung_up(&self) -> bool {
        let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP | PollFlags::NVAL;
        poll_for(&self.socket, PollFlags::RDHUP, Duration::ZERO)
            .is_some_and(|seen| seen.intersects(gone))
    }

    fn take(&mut self, wanted: Option<i32>, place: &mut dyn Place) -> Result<Answer, Errno> {
        let chunk = self.responses.peek()?;
        let int = |at| int_at(&chunk.header, at);
        let other = wanted.is_some_and(|id| id != int(0));
        if other || int(8) as usize != chunk.payload + chunk.header.len() {
            return Err(Errno::BADMSG);
        }
        let result = match int(16) {
            error if error < 0 => Err(errno(error)),
            _ if chunk.payload == 0 => Ok(0),
            _ => match place.place(chunk.payload) {
                Some(out) if out.len() == chunk.payload => {
                    self.responses.copy(&chunk, out);
                    Ok(chunk.payload)
                }
                _ => Err(Errno::NOMEM),
            },
        };
        self.responses.done(&chunk);
        Ok(Answer { id: int(0), result })
    }
}

/// Polls one descriptor; `None` when nothing happened in time or a signal came.
fn poll_for(socket: &OwnedFd, events: PollFlags, limit: Duration) -> Option<PollFlags> {
    let timeout = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    let mut fds = [PollFd::new(socket, events)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(count) if count > 0 => Some(fds[0].revents()),
        _ => None,
    }
}

/// The error of a response; what is no errno becomes `EPROTO`.
fn errno(error: i32) -> Errno {
    match error.unsigned_abs() {
        error @ 1..=4095 => Errno::from_raw_os_error(error as i32),
        _ => Errno::PROTO,
    }
}

fn int_at(bytes: &[u8], at: usize) -> i32 {
    let mut word = [0u8; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    i32::from_le_bytes(word)
}

/// The absolute path in a field filled up with NUL.
fn text(field: &[u8]) -> Result<&str, Errno> {
    let end = field.iter().position(|byte| *byte == 0);
    let path = std::str::from_utf8(&field[..end.ok_or(Errno::PROTO)?]);
    path.ok()
        .filter(|path| path.starts_with('/'))
        .ok_or(Errno::PROTO)
}
