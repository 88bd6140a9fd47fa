//! One accepted connection: takes requests out of its ring, asks the service, answers.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::handshake::{DISCONNECT, response_header};
use super::message::HEADER;
use super::ring::files::ConnectionDir;
use super::ring::{PutError, Rings, Take};
use super::{Answer, Client, Service, Work};
use crate::failure::contain;

/// Requests answered for one connection before others get their turn.
const REQUESTS_PER_TURN: usize = 16;
/// The same in time. No request takes longer than this by itself, or it is [`Answer::Work`].
pub const TURN: Duration = Duration::from_millis(1);
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

impl Scratch {
    /// Empty, for an answer.
    fn payload(&mut self) -> &mut Vec<u8> {
        if self.payload.capacity() > KEEP_BUFFER {
            self.payload = Vec::new();
        }
        self.payload.clear();
        &mut self.payload
    }
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
    /// A request is being worked off: [`Connection::go_on`].
    Working,
    /// To be disconnected, as the client wishes or (with a reason) because of what it does.
    Close(Option<&'static str>),
}

/// A request that is not answered yet; those behind it wait in the ring.
enum Waiting {
    Later { message: Vec<u8>, deadline: Instant },
    Work { id: i32, work: Box<dyn Work> },
}

/// State of one connection.
pub struct Connection {
    socket: OwnedFd,
    client: Client,
    rings: Rings,
    dir: ConnectionDir,
    message_size: u32,
    waiting: Option<Waiting>,
    /// Stands in the reactor's queue.
    pub queued: bool,
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
            waiting: None,
            queued: false,
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
        match self.waiting {
            Some(Waiting::Later { deadline, .. }) => Some(deadline),
            _ => None,
        }
    }

    /// Is a request of it being worked off?
    pub fn is_working(&self) -> bool {
        matches!(self.waiting, Some(Waiting::Work { .. }))
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
        match self.waiting {
            Some(Waiting::Later { .. }) => return Turn::Deferred,
            Some(Waiting::Work { .. }) => return Turn::Working,
            None => {}
        }
        let mut since = None;
        for number in 0..REQUESTS_PER_TURN {
            match self.rings.take(&mut scratch.message) {
                Take::Nothing => return Turn::Idle,
                Take::Broken(reason) => return Turn::Close(Some(reason)),
                Take::Message => {}
            }
            if request_id(&scratch.message) == DISCONNECT {
                return Turn::Close(None);
            }
            // Most turns are one request: they do not look at the clock.
            if number == 1 {
                since = Some(Instant::now());
            }
            let answer = ask(service, &self.client, false, scratch);
            if let Err(turn) = self.answered(answer, scratch) {
                return turn;
            }
            if since.is_some_and(|since| since.elapsed() >= TURN) {
                break;
            }
        }
        self.rest()
    }

    /// Whether requests are left.
    fn rest(&self) -> Turn {
        if self.rings.has_request() {
            Turn::More
        } else {
            Turn::Idle
        }
    }

    /// Sends the answer to the request in `scratch`, or notes that it comes later.
    fn answered(&mut self, answer: Answer, scratch: &Scratch) -> Result<(), Turn> {
        let Scratch { message, payload } = scratch;
        let id = request_id(message);
        match answer {
            Answer::Reply(error) => self.reply(id, error, payload),
            Answer::Later => {
                self.waiting = Some(Waiting::Later {
                    message: request_alone(message).to_vec(),
                    deadline: Instant::now() + super::server::DEFER_LIMIT,
                });
                Err(Turn::Deferred)
            }
            Answer::Work(work) => {
                self.waiting = Some(Waiting::Work { id, work });
                Err(Turn::Working)
            }
        }
    }

    /// Asks the service again for the deferred request, finally when `last` is set, and goes on
    /// without the requests behind it.
    pub fn ask_again(
        &mut self,
        service: &mut dyn Service,
        scratch: &mut Scratch,
        last: bool,
    ) -> Turn {
        match self.waiting.take() {
            Some(Waiting::Later { message, deadline }) => {
                scratch.message = message;
                let answer = match ask(service, &self.client, last, scratch) {
                    Answer::Later if last => Answer::Reply(-libc::EIO),
                    Answer::Later => {
                        let message = std::mem::take(&mut scratch.message);
                        self.waiting = Some(Waiting::Later { message, deadline });
                        return Turn::Deferred;
                    }
                    answer => answer,
                };
                match self.answered(answer, scratch) {
                    // Its next requests have a turn of their own, behind those of root.
                    Ok(()) => self.rest(),
                    Err(turn) => turn,
                }
            }
            other => {
                self.waiting = other;
                Turn::Idle
            }
        }
    }

    /// Does a piece of the work for a request.
    pub fn go_on(&mut self, scratch: &mut Scratch) -> Turn {
        let Some(Waiting::Work { id, work }) = &mut self.waiting else {
            return Turn::Idle;
        };
        let id = *id;
        let payload = scratch.payload();
        let done = contain("answering a request", || work.go_on(payload));
        let error = match done {
            Some(None) => return Turn::Working,
            Some(Some(error)) => error,
            None => -libc::EIO,
        };
        self.waiting = None;
        match self.reply(id, error, &scratch.payload) {
            Ok(()) => self.rest(),
            Err(turn) => turn,
        }
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

/// The request without what stands behind its end.
fn request_alone(message: &[u8]) -> &[u8] {
    let size = message.get(8..).and_then(|rest| rest.first_chunk::<4>());
    let size = size.map_or(0, |size| u32::from_le_bytes(*size) as usize);
    // A request that claims to be longer than it is, is refused at once.
    &message[..size.clamp(HEADER.min(message.len()), message.len())]
}

/// One question to the service. A panic there costs this answer.
fn ask(service: &mut dyn Service, client: &Client, last: bool, scratch: &mut Scratch) -> Answer {
    scratch.payload();
    let Scratch { message, payload } = scratch;
    contain("answering a request", || {
        service.handle(client, message, last, payload)
    })
    .unwrap_or(Answer::Reply(-libc::EIO))
}
