//! A client of the transport written from the specification (ipc-transport.md 3, 4, 6, 7).
//!
//! It maps nothing: ring files are read and written with `pread` and `pwrite`, which the kernel
//! keeps coherent with the server's mappings. The semaphore is then not changed atomically; that
//! is safe while the server is not changing it, i.e. with one request at a time or with all
//! requests written before the first notification byte.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};

/// What PVE's clients ask for.
pub const MAX_MESSAGE: u32 = 1_048_576;
/// Bytes of the connection response.
pub const RESPONSE_LEN: usize = 12328;
/// Offsets in a header file.
pub const WRITE_PT: u64 = 0;
pub const READ_PT: u64 = 4;
pub const WORD_SIZE: u64 = 8;
pub const HEADER_PATH: u64 = 12;
pub const DATA_PATH: u64 = 4108;
pub const REF_COUNT: u64 = 8204;
pub const SEMAPHORE: u64 = 8208;
/// Magic of a committed chunk.
pub const MAGIC_VALID: u32 = 0xA1A1_A1A1;

/// One ring, as its files.
#[derive(Debug)]
pub struct Ring {
    pub header: File,
    pub data: File,
    pub prefix: String,
    /// As the size of the data file says.
    pub words: u32,
    /// The position this side owns.
    pub at: u32,
}

impl Ring {
    fn open(prefix: &str) -> io::Result<Self> {
        let open = |part: &str| {
            let path = format!("{prefix}-{part}");
            OpenOptions::new().read(true).write(true).open(path)
        };
        let (header, data) = (open("header")?, open("data")?);
        let words = (data.metadata()?.len() / 4) as u32;
        Ok(Self {
            header,
            data,
            prefix: prefix.to_owned(),
            words,
            at: 0,
        })
    }

    pub fn get(&self, offset: u64) -> io::Result<u32> {
        let mut word = [0u8; 4];
        self.header.read_exact_at(&mut word, offset)?;
        Ok(u32::from_le_bytes(word))
    }

    pub fn set(&self, offset: u64, value: u32) -> io::Result<()> {
        self.header.write_all_at(&value.to_le_bytes(), offset)
    }

    /// Writes a message as a chunk, without the semaphore; returns its word index.
    pub fn write_chunk(&mut self, message: &[u8]) -> io::Result<u32> {
        let at = self.at;
        self.write_words(at, &(message.len() as u32).to_le_bytes())?;
        self.write_words((at + 2) % self.words, message)?;
        self.at = (at + 2 + (message.len() as u32).div_ceil(4)) % self.words;
        self.set(WRITE_PT, self.at)?;
        self.write_words((at + 1) % self.words, &MAGIC_VALID.to_le_bytes())?;
        Ok(at)
    }

    /// Writes bytes from word `at` on, wrapped.
    pub fn write_words(&self, at: u32, bytes: &[u8]) -> io::Result<()> {
        let until_end = bytes.len().min(4 * (self.words - at) as usize);
        self.data
            .write_all_at(&bytes[..until_end], 4 * u64::from(at))?;
        self.data.write_all_at(&bytes[until_end..], 0)
    }

    fn read_words(&self, at: u32, bytes: &mut [u8]) -> io::Result<()> {
        let until_end = bytes.len().min(4 * (self.words - at) as usize);
        self.data
            .read_exact_at(&mut bytes[..until_end], 4 * u64::from(at))?;
        self.data.read_exact_at(&mut bytes[until_end..], 0)
    }

    /// Takes the chunk at the read position and gives its place back.
    fn take_chunk(&mut self) -> io::Result<Vec<u8>> {
        let mut word = [0u8; 4];
        self.read_words((self.at + 1) % self.words, &mut word)?;
        if u32::from_le_bytes(word) != MAGIC_VALID {
            return Err(io::Error::other("response without magic"));
        }
        self.read_words(self.at, &mut word)?;
        let len = u32::from_le_bytes(word);
        let mut message = vec![0u8; len as usize];
        self.read_words((self.at + 2) % self.words, &mut message)?;
        self.at = (self.at + 2 + len.div_ceil(4)) % self.words;
        self.set(READ_PT, self.at)?;
        Ok(message)
    }
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub id: i32,
    pub error: i32,
    pub payload: Vec<u8>,
    /// Header bytes as they came.
    pub header: [u8; 24],
}

/// A connected client.
#[derive(Debug)]
pub struct Peer {
    pub socket: OwnedFd,
    /// The connection response.
    pub handshake: Vec<u8>,
    pub request: Ring,
    pub response: Ring,
    pub event: Ring,
}

/// A message: request header and payload.
pub fn message(id: i32, payload: &[u8]) -> Vec<u8> {
    message_with_size(id, (16 + payload.len()) as i32, payload)
}

/// A message whose size field says `size`.
pub fn message_with_size(id: i32, size: i32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0u8; 16];
    bytes[0..4].copy_from_slice(&id.to_le_bytes());
    bytes[8..12].copy_from_slice(&size.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The 24 bytes that open a connection.
pub fn connect_request(id: i32, max_message: u32) -> [u8; 24] {
    let mut bytes = [0u8; 24];
    bytes[0..4].copy_from_slice(&id.to_le_bytes());
    bytes[8..12].copy_from_slice(&24i32.to_le_bytes());
    bytes[16..20].copy_from_slice(&max_message.to_le_bytes());
    bytes
}

/// A socket connected to an abstract service name, nothing sent yet.
pub fn open_socket(service: &str) -> io::Result<OwnedFd> {
    let mut name = [0u8; 107];
    name[..service.len()].copy_from_slice(service.as_bytes());
    let address = SocketAddrUnix::new_abstract_name(&name)?;
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &address)?;
    Ok(socket)
}

/// Waits until `socket` is readable (or hung up).
pub fn readable_within(socket: BorrowedFd<'_>, limit: Duration) -> io::Result<PollFlags> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) => return Ok(fds[0].revents()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the server closes the connection in time.
pub fn closed_within(socket: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let flags = readable_within(socket, left)?;
        if flags.intersects(PollFlags::HUP | PollFlags::ERR) {
            return Ok(true);
        }
        if flags.is_empty() {
            return Ok(false);
        }
        match recv(socket, &mut [0u8; 4096], RecvFlags::DONTWAIT) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => return Ok(true),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads the connection response; fewer bytes when the server closes before.
pub fn read_handshake(socket: BorrowedFd<'_>, limit: Duration) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut part = [0u8; RESPONSE_LEN];
    while bytes.len() < RESPONSE_LEN {
        if readable_within(socket, limit)?.is_empty() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match recv(socket, &mut part, RecvFlags::DONTWAIT) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => break,
            Ok((_, count)) => bytes.extend_from_slice(&part[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

/// The i32 at `at`.
pub fn int(bytes: &[u8], at: usize) -> i32 {
    let mut word = [0u8; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    i32::from_le_bytes(word)
}

/// The NUL terminated text at `at`.
fn text(bytes: &[u8], at: usize) -> String {
    let field = &bytes[at..at + 4096];
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

impl Peer {
    /// Connects like a PVE client.
    pub fn connect(service: &str) -> io::Result<Self> {
        Self::connect_with(service, MAX_MESSAGE)
    }

    /// Connects, asking for messages of `max_message` bytes. A refusal is an error with the errno
    /// of the response.
    pub fn connect_with(service: &str, max_message: u32) -> io::Result<Self> {
        let socket = open_socket(service)?;
        send_all(&socket, &connect_request(-1, max_message))?;
        let handshake = read_handshake(socket.as_fd(), Duration::from_secs(10))?;
        if handshake.len() < RESPONSE_LEN {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        match int(&handshake, 16) {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(-error)),
        }
        let open = |at| {
            let ring = Ring::open(&text(&handshake, at))?;
            ring.set(REF_COUNT, ring.get(REF_COUNT)? + 1)?;
            io::Result::Ok(ring)
        };
        let (request, response, event) = (open(40)?, open(4136)?, open(8232)?);
        Ok(Self {
            socket,
            handshake,
            request,
            response,
            event,
        })
    }

    /// The message size the server agreed to.
    pub fn message_size(&self) -> u32 {
        int(&self.handshake, 28) as u32
    }

    /// Directory of the ring files.
    pub fn directory(&self) -> PathBuf {
        let mut path = PathBuf::from(&self.request.prefix);
        path.pop();
        path
    }

    /// Commits a chunk: semaphore and `bytes` notification bytes.
    pub fn post(&self, chunks: u32, bytes: usize) -> io::Result<()> {
        let value = self.request.get(SEMAPHORE)?;
        self.request.set(SEMAPHORE, value + chunks)?;
        self.notify(bytes)
    }

    /// Sends notification bytes only.
    pub fn notify(&self, bytes: usize) -> io::Result<()> {
        send_all(&self.socket, &vec![0x10; bytes])
    }

    /// Sends a message as libqb does.
    pub fn send(&mut self, message: &[u8]) -> io::Result<()> {
        if self.request.get(REF_COUNT)? != 2 {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.request.write_chunk(message)?;
        self.post(1, 1)
    }

    /// Waits until at least `count` responses stand in the ring.
    pub fn await_responses(&self, count: u32, limit: Duration) -> io::Result<()> {
        let end = Instant::now() + limit;
        while self.response.get(SEMAPHORE)? < count {
            if Instant::now() >= end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let flags = readable_within(self.socket.as_fd(), Duration::from_micros(50))?;
            if flags.intersects(PollFlags::HUP | PollFlags::ERR) {
                return Err(io::ErrorKind::NotConnected.into());
            }
        }
        Ok(())
    }

    /// Takes one response that stands in the ring.
    pub fn take(&mut self) -> io::Result<Answer> {
        let value = self.response.get(SEMAPHORE)?;
        self.response.set(SEMAPHORE, value.saturating_sub(1))?;
        let chunk = self.response.take_chunk()?;
        let Some(header) = chunk.first_chunk::<24>().copied() else {
            return Err(io::Error::other("response shorter than its header"));
        };
        if int(&header, 8) as usize != chunk.len() {
            return Err(io::Error::other("size field of the response is wrong"));
        }
        let (id, error) = (int(&header, 0), int(&header, 16));
        Ok(Answer {
            id,
            error,
            payload: chunk[24..].to_vec(),
            header,
        })
    }

    /// One request and its answer.
    pub fn ask(&mut self, id: i32, payload: &[u8], limit: Duration) -> io::Result<Answer> {
        self.send(&message(id, payload))?;
        self.await_responses(1, limit)?;
        self.take()
    }

    /// Whether the server ends the connection in time.
    pub fn is_closed_within(&self, limit: Duration) -> bool {
        closed_within(self.socket.as_fd(), limit).unwrap_or(true)
    }
}

/// Sends everything, waiting for space in the socket.
pub fn send_all(socket: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
