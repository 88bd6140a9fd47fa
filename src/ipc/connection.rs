//! One accepted connection: takes requests out of its ring, asks the service, answers.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::handshake::{DISCONNECT, response_header};
use super::ring::files::ConnectionDir;
use super::ring::{PutError, Rings, Take};
use super::{Answer, Client, Service};

/// Requests answered for one connection before others get their turn.
const REQUESTS_PER_TURN: usize = 16;
/// Notification bytes taken at a time; more make the socket readable again.
const BYTES_PER_TURN: usize = 256;
/// Largest answer buffer kept between requests.
const KEEP_BUFFER: usize = 2 * 1024 * 1024;

/// Buffers of the server thread, shared by all connections.
#[derive(Debug, Default)]
pub struct Scratch {
    message: Vec<u8>,
    payload: Vec<u8>,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing left to do until the socket is readable.
    Idle,
    /// Requests are left; to be continued when the others had their turn.
    More,
    /// The service answers a request later.
    Deferred,
    /// To be disconnected, as the client wishes or (with a reason) because of what it does.
    Close(Option<&'static str>),
}

/// A request that the service could not answer yet.
struct Deferred {
    message: Vec<u8>,
    deadline: Instant,
}

/// State of one connection.
pub struct Connection {
    socket: OwnedFd,
    client: Client,
    rings: Rings,
    dir: ConnectionDir,
    message_size: u32,
    deferred: Option<Deferred>,
}

impl Connection {
    pub fn new(
        socket: OwnedFd,
        client: Client,
        rings: Rings,
        dir: ConnectionDir,
        message_size: u32,
    ) -> Self {
        Self {
            socket,
            client,
            rings,
            dir,
            message_size,
            deferred: None,
        }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Where its files are.
    pub fn dir(&self) -> &ConnectionDir {
        &self.dir
    }

    /// Largest message in bytes, as agreed in the handshake.
    pub fn message_size(&self) -> u32 {
        self.message_size
    }

    /// When the deferred request has to be answered.
    pub fn deadline(&self) -> Option<Instant> {
        self.deferred.as_ref().map(|d| d.deadline)
    }

    /// The socket is readable: takes the notification bytes, whose number and values mean
    /// nothing, then requests.
    pub fn readable(&mut self, service: &mut dyn Service, scratch: &mut Scratch) -> Turn {
        let mut bytes = [0u8; BYTES_PER_TURN];
        match recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Turn::Close(None),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => self.requests(service, scratch),
            Err(_) => Turn::Close(None),
        }
    }

    /// Answers what stands in the request ring, with a limit per turn.
    pub fn requests(&mut self, service: &mut dyn Service, scratch: &mut Scratch) -> Turn {
        if self.deferred.is_some() {
            return Turn::Deferred;
        }
        for _ in 0..REQUESTS_PER_TURN {
            match self.rings.take(&mut scratch.message) {
                Take::Nothing => return Turn::Idle,
                Take::Broken(reason) => return Turn::Close(Some(reason)),
                Take::Message => {}
            }
            if request_id(&scratch.message) == DISCONNECT {
                return Turn::Close(None);
            }
            let Scratch { message, payload } = scratch;
            match ask(service, &self.client, message, false, payload) {
                Answer::Reply(error) => {
                    if let Err(turn) = self.reply(request_id(message), error, payload) {
                        return turn;
                    }
                }
                Answer::Later => {
                    let deadline = Instant::now() + super::server::DEFER_LIMIT;
                    self.deferred = Some(Deferred {
                        message: std::mem::take(message),
                        deadline,
                    });
                    return Turn::Deferred;
                }
            }
        }
        if self.rings.has_request() {
            Turn::More
        } else {
            Turn::Idle
        }
    }

    /// Asks the service again for the deferred request, finally when `last` is set, and goes on
    /// with the requests behind it.
    pub fn ask_again(
        &mut self,
        service: &mut dyn Service,
        scratch: &mut Scratch,
        last: bool,
    ) -> Turn {
        let Some(deferred) = self.deferred.take() else {
            return Turn::Idle;
        };
        let error = match ask(
            service,
            &self.client,
            &deferred.message,
            last,
            &mut scratch.payload,
        ) {
            Answer::Reply(error) => error,
            Answer::Later if last => -libc::EIO,
            Answer::Later => {
                self.deferred = Some(deferred);
                return Turn::Deferred;
            }
        };
        if let Err(turn) = self.reply(request_id(&deferred.message), error, &scratch.payload) {
            return turn;
        }
        scratch.message = deferred.message;
        self.requests(service, scratch)
    }

    /// Ends the connection for the client; files and mappings go when self is dropped.
    pub fn close(&self) {
        self.rings.close();
    }

    fn reply(&mut self, id: i32, error: i32, payload: &[u8]) -> Result<(), Turn> {
        // Positive results are success, and an error never has a payload (ipc-messages.md 1.2).
        let error = error.min(0);
        let payload = if error == 0 { payload } else { &[] };
        let size = 24 + payload.len();
        let header = response_header(id, u32::try_from(size).unwrap_or(u32::MAX), error);
        match self.rings.put(&header, payload) {
            Ok(()) => return Ok(()),
            Err(PutError::Broken(reason)) => return Err(Turn::Close(Some(reason))),
            Err(PutError::NoSpace) => {}
        }
        // Said at once instead of a broken connection (ipc-transport.md 7.3).
        match self
            .rings
            .put(&response_header(id, 24, -libc::ENOBUFS), &[])
        {
            Ok(()) => Ok(()),
            Err(PutError::Broken(reason)) => Err(Turn::Close(Some(reason))),
            Err(PutError::NoSpace) => Err(Turn::Close(Some("response ring full"))),
        }
    }
}

/// `message` is at least 16 bytes long.
fn request_id(message: &[u8]) -> i32 {
    message
        .first_chunk::<4>()
        .map_or(0, |id| i32::from_le_bytes(*id))
}

/// One question to the service. A panic there costs this answer, not the service of everybody.
fn ask(
    service: &mut dyn Service,
    client: &Client,
    message: &[u8],
    last: bool,
    payload: &mut Vec<u8>,
) -> Answer {
    if payload.capacity() > KEEP_BUFFER {
        *payload = Vec::new();
    }
    payload.clear();
    catch_unwind(AssertUnwindSafe(|| {
        service.handle(client, message, last, payload)
    }))
    .unwrap_or_else(|_| {
        tracing::error!(target: "ipcs", "request {} failed: internal error", request_id(message));
        Answer::Reply(-libc::EIO)
    })
}
