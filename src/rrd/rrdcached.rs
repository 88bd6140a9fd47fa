//! A client of rrdcached: the command `UPDATE` of its text protocol, many at a time. No call takes
//! longer than [`Timeouts`] say, whatever the other side does.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};

/// rrdcached takes no longer commands (its buffer is 4,096 bytes).
const MAX_COMMAND: usize = 4000;
/// Longest answer that is taken for one: they are short, or a path and a sentence.
const MAX_REPLY: usize = 16_384;

/// How long rrdcached may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Until the next answer.
    pub reply: Duration,
    /// Until the last answer to a batch.
    pub batch: Duration,
    /// For so long it is not asked again after it did not answer in time.
    pub pause: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            reply: Duration::from_secs(2),
            batch: Duration::from_secs(10),
            pause: Duration::from_secs(10),
        }
    }
}

/// What became of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// rrdcached has it.
    Taken,
    /// rrdcached does not want it: its status (negative) and text.
    Refused { status: i64, text: String },
    /// The connection broke or rrdcached did not answer in time; the error number. It may or may
    /// not have the value.
    Lost(i32),
    /// It was not sent: there is no rrdcached, or it is given a pause, or the command is too long.
    NotSent,
}

/// The client. Connects when there is something to send.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    timeouts: Timeouts,
    connection: Option<OwnedFd>,
    pause_until: Option<Instant>,
}

impl Client {
    pub fn new(socket: PathBuf, timeouts: Timeouts) -> Self {
        Client {
            socket,
            timeouts,
            connection: None,
            pause_until: None,
        }
    }

    /// Sends updates (absolute file name, `<time>:<value>…`) and waits for the answers. Returns an
    /// outcome for each.
    pub fn update<'a>(
        &mut self,
        updates: impl IntoIterator<Item = (&'a Path, &'a [u8])>,
    ) -> Vec<Outcome> {
        let commands: Vec<Option<Vec<u8>>> = updates
            .into_iter()
            .map(|(file, line)| command(file, line))
            .collect();
        let mut answers = self.send_all(commands.iter().flatten()).into_iter();
        commands
            .iter()
            .map(|command| match command {
                Some(_) => answers.next().unwrap_or(Outcome::NotSent),
                None => Outcome::NotSent,
            })
            .collect()
    }

    fn send_all<'a>(&mut self, commands: impl Iterator<Item = &'a Vec<u8>>) -> Vec<Outcome> {
        let commands: Vec<&[u8]> = commands.map(Vec::as_slice).collect();
        let now = Instant::now();
        let mut outcomes = Vec::with_capacity(commands.len());
        if commands.is_empty() || self.pause_until.is_some_and(|until| now < until) {
            return outcomes;
        }
        let patience = self.timeouts.reply;
        let deadline = now + self.timeouts.batch;
        let mut failure = None;
        // A connection kept from the last time may be one to an rrdcached that has ended since.
        let kept = self.connection.is_some();
        for _ in 0..=usize::from(kept) {
            let rest = &commands[outcomes.len()..];
            if rest.is_empty() {
                break;
            }
            let Some(socket) = self.connect() else {
                break;
            };
            match exchange(socket, rest, patience, deadline, &mut outcomes) {
                Ok(()) => return outcomes,
                Err(errno) => {
                    self.connection = None;
                    failure = Some(errno);
                    if errno == Errno::TIMEDOUT {
                        self.pause_until = Some(Instant::now() + self.timeouts.pause);
                        break;
                    }
                }
            }
        }
        if let Some(errno) = failure {
            outcomes.resize(commands.len(), Outcome::Lost(errno.raw_os_error()));
        }
        outcomes
    }

    /// The connection. `None`: nobody listens, or so many wait already that it would take time.
    fn connect(&mut self) -> Option<&OwnedFd> {
        if self.connection.is_none() {
            self.connection = open(&self.socket).ok();
        }
        self.connection.as_ref()
    }
}

fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    // Done at once or an error: Unix sockets have no connection in progress.
    connect(&socket, &address)?;
    Ok(socket)
}

/// The command for one update. `None`: too long for rrdcached.
fn command(file: &Path, line: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(16 + file.as_os_str().len() + line.len());
    out.extend_from_slice(b"UPDATE ");
    push_field(&mut out, file.as_os_str().as_bytes());
    out.push(b' ');
    push_field(&mut out, line);
    out.push(b'\n');
    (out.len() <= MAX_COMMAND).then_some(out)
}

/// Fields end at blanks; a backslash takes the meaning from the next byte.
fn push_field(out: &mut Vec<u8>, field: &[u8]) {
    for byte in field {
        if matches!(byte, b' ' | b'\t' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
}

/// Sends all commands and reads all answers, both at the same time so that neither side waits for
/// the other. Answers that came before an error are in `outcomes`.
fn exchange(
    socket: &OwnedFd,
    commands: &[&[u8]],
    patience: Duration,
    deadline: Instant,
    outcomes: &mut Vec<Outcome>,
) -> Result<(), Errno> {
    let request = commands.concat();
    let mut sent = 0;
    let mut replies = Replies::default();
    let expected = outcomes.len() + commands.len();
    let mut until = deadline.min(Instant::now() + patience);
    let mut buffer = [0; 4096];
    while outcomes.len() < expected {
        let mut events = PollFlags::IN;
        if sent < request.len() {
            events |= PollFlags::OUT;
        }
        let ready = wait(socket, events, until)?;
        if sent < request.len() && ready.contains(PollFlags::OUT) {
            match send(socket, &request[sent..], SendFlags::NOSIGNAL) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            match recv(socket, &mut buffer, RecvFlags::empty()) {
                Ok((_, 0)) => return Err(Errno::CONNRESET),
                Ok((_, count)) => {
                    let before = outcomes.len();
                    replies.push(&buffer[..count], outcomes)?;
                    if outcomes.len() > before {
                        until = deadline.min(Instant::now() + patience);
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    if outcomes.len() == expected && replies.is_done() {
        return Ok(());
    }
    // More answers than questions: whose are the next ones?
    outcomes.truncate(expected);
    Err(Errno::PROTO)
}

fn wait(socket: &OwnedFd, events: PollFlags, until: Instant) -> Result<PollFlags, Errno> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Errno::TIMEDOUT);
    }
    let timeout = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
    let mut fds = [PollFd::new(socket, events)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(0) => Err(Errno::TIMEDOUT),
        Ok(_) => Ok(fds[0].revents()),
        Err(Errno::INTR) => Ok(PollFlags::empty()),
        Err(errno) => Err(errno),
    }
}

/// Splits what rrdcached sends into answers: a line `<status> <text>`; a positive status is the
/// number of lines that follow.
#[derive(Debug, Default)]
struct Replies {
    line: Vec<u8>,
    to_skip: i64,
}

impl Replies {
    fn push(&mut self, data: &[u8], outcomes: &mut Vec<Outcome>) -> Result<(), Errno> {
        for byte in data {
            if *byte != b'\n' {
                if self.line.len() >= MAX_REPLY {
                    return Err(Errno::PROTO);
                }
                self.line.push(*byte);
                continue;
            }
            if self.to_skip > 0 {
                self.to_skip -= 1;
            } else {
                outcomes.push(self.answer()?);
            }
            self.line.clear();
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<Outcome, Errno> {
        let text = String::from_utf8_lossy(&self.line);
        let (status, text) = text.trim_end().split_once(' ').unwrap_or((&text, ""));
        let status: i64 = status.trim_end().parse().map_err(|_| Errno::PROTO)?;
        if status < 0 {
            let text = text.to_owned();
            return Ok(Outcome::Refused { status, text });
        }
        self.to_skip = status;
        Ok(Outcome::Taken)
    }

    fn is_done(&self) -> bool {
        self.line.is_empty() && self.to_skip == 0
    }
}
