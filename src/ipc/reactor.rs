//! The one thread of the transport: an epoll loop that owns all connections
//! (docs/adr/002-ipc-epoll.md). Nothing here waits for a client.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{SendFlags, SocketFlags, accept_with, send};

use super::connection::{Connection, Scratch, Turn};
use super::greeting::{Greeting, Progress};
use super::handshake::{self, Access, ConnectRequest};
use super::log_limit::LogLimit;
use super::peers::{Peer, Peers, Token};
use super::ring::files::{ConnectionDir, RINGS, Shm};
use super::server::{Listener, Shared};
use super::{Client, Service};

/// Connections of group www-data; root's are counted apart, so that it is never locked out.
pub const MAX_READ_ONLY: usize = 512;
/// Connections of root.
pub const MAX_FULL: usize = 2048;
/// Clients that have not sent their 24 bytes yet; the oldest goes when there is one more.
pub const MAX_HANDSHAKES: usize = 64;
/// How long a client may take to send them.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// New connections accepted before others get their turn.
const ACCEPTS_PER_TURN: usize = 16;
/// Pause of accepting when descriptors or memory are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const EVENTS: usize = 64;

const LISTENER: u64 = u64::MAX;
const WAKER: u64 = u64::MAX - 1;

pub(super) struct Reactor {
    epoll: OwnedFd,
    listener: Listener,
    /// Accepting goes on at this time.
    paused: Option<Instant>,
    shm: Arc<Shm>,
    shared: Arc<Shared>,
    www_gid: u32,
    service: Box<dyn Service>,
    scratch: Scratch,
    peers: Peers,
    /// Unfinished handshakes, oldest first; tokens of finished ones are stale and skipped.
    greetings: VecDeque<(Token, Instant)>,
    /// Connections with requests left over from their last turn.
    pending: Vec<Token>,
    deferred: Vec<Token>,
    /// Number of the last connection.
    counter: u64,
    read_only: usize,
    full: usize,
    log: LogLimit,
    pid: u32,
}

impl Reactor {
    pub(super) fn new(
        listener: Listener,
        shm: Arc<Shm>,
        shared: Arc<Shared>,
        www_gid: u32,
        service: Box<dyn Service>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &listener.socket,
            EventData::new_u64(LISTENER),
            EventFlags::IN,
        )?;
        epoll::add(
            &epoll,
            &shared.event,
            EventData::new_u64(WAKER),
            EventFlags::IN,
        )?;
        Ok(Self {
            epoll,
            listener,
            paused: None,
            shm,
            shared,
            www_gid,
            service,
            scratch: Scratch::default(),
            peers: Peers::default(),
            greetings: VecDeque::new(),
            pending: Vec::new(),
            deferred: Vec::new(),
            counter: 0,
            read_only: 0,
            full: 0,
            log: LogLimit::default(),
            pid: std::process::id(),
        })
    }

    /// Serves until told to stop.
    pub(super) fn run(mut self) {
        let mut space = [MaybeUninit::<Event>::uninit(); EVENTS];
        while !self.shared.stop.load(Ordering::Relaxed) {
            let timeout = self.timeout();
            let events = match epoll::wait(&self.epoll, &mut space, timeout.as_ref()) {
                Ok((events, _)) => events,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!(target: "ipcs", "epoll failed, no service any more: {error}");
                    break;
                }
            };
            let mut woken = false;
            for event in events {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    WAKER => {
                        let _ = rustix::io::read(&self.shared.event, &mut [0u8; 8]);
                        self.shared.signalled.store(false, Ordering::SeqCst);
                        woken = true;
                    }
                    token => self.ready(Token::from_u64(token), event.flags),
                }
            }
            for token in std::mem::take(&mut self.pending) {
                self.turn(token, Connection::requests);
            }
            if !self.deferred.is_empty() {
                self.ask_deferred(woken);
            }
            if !self.greetings.is_empty() || self.paused.is_some() {
                self.expire(Instant::now());
            }
        }
        self.shut_down();
    }

    /// How long there is nothing to do without an event.
    fn timeout(&self) -> Option<Timespec> {
        if !self.pending.is_empty() {
            return Some(Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            });
        }
        let deferred = self
            .deferred
            .iter()
            .filter_map(|token| self.peers.get(*token)?.deadline());
        let greeting = self.greetings.front().map(|(_, deadline)| *deadline);
        let next = deferred.chain(greeting).chain(self.paused).min()?;
        // Rounded up to milliseconds, since older kernels round a shorter time down to 0.
        let left = next.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        let left = Duration::from_millis(left.as_millis() as u64);
        Some(Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        })
    }

    /// Something happened on a client's socket.
    fn ready(&mut self, token: Token, flags: EventFlags) {
        match self.peers.get(token) {
            None => {}
            Some(Peer::Greeting(_)) => self.greet(token),
            Some(Peer::Connected(_)) if flags.intersects(EventFlags::HUP | EventFlags::ERR) => {
                self.disconnect(token, None);
            }
            Some(Peer::Connected(_)) => self.turn(token, Connection::readable),
        }
    }

    /// Lets a connection do something and sees to what follows from it.
    fn turn(
        &mut self,
        token: Token,
        step: fn(&mut Connection, &mut dyn Service, &mut Scratch) -> Turn,
    ) {
        let Some(Peer::Connected(connection)) = self.peers.get_mut(token) else {
            return;
        };
        let was_deferred = connection.deadline().is_some();
        let result = step(connection, &mut *self.service, &mut self.scratch);
        self.after(token, result, was_deferred);
    }

    fn after(&mut self, token: Token, result: Turn, was_deferred: bool) {
        match result {
            Turn::Idle => {}
            Turn::More if self.pending.contains(&token) => {}
            Turn::More => self.pending.push(token),
            Turn::Deferred if was_deferred => {}
            Turn::Deferred => self.defer(token),
            Turn::Close(reason) => self.disconnect(token, reason),
        }
    }

    /// Notes a deferred request and asks once more: what it waits for may have come between the
    /// service's look and the moment from which wakers see the request.
    fn defer(&mut self, token: Token) {
        self.deferred.push(token);
        self.shared
            .deferred
            .store(self.deferred.len(), Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.ask_again(token, false);
    }

    fn ask_deferred(&mut self, woken: bool) {
        let now = Instant::now();
        for token in self.deferred.clone() {
            let Some(deadline) = self.peers.get(token).and_then(Peer::deadline) else {
                continue;
            };
            let last = deadline <= now;
            if woken || last {
                self.ask_again(token, last);
            }
        }
        self.forget_answered();
    }

    fn ask_again(&mut self, token: Token, last: bool) {
        let Some(Peer::Connected(connection)) = self.peers.get_mut(token) else {
            return;
        };
        let result = connection.ask_again(&mut *self.service, &mut self.scratch, last);
        // A request behind the answered one may be deferred in turn: the token stands in the list.
        self.after(token, result, true);
        self.forget_answered();
    }

    fn forget_answered(&mut self) {
        let peers = &self.peers;
        self.deferred
            .retain(|token| peers.get(*token).is_some_and(|p| p.deadline().is_some()));
        self.shared
            .deferred
            .store(self.deferred.len(), Ordering::Relaxed);
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match accept_with(&self.listener.socket, flags) {
                Ok(socket) => self.admit(socket),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => return self.pause(error),
            }
        }
    }

    /// Without this the waiting client would make every epoll_wait return at once.
    fn pause(&mut self, error: Errno) {
        let now = Instant::now();
        self.paused = Some(now + ACCEPT_PAUSE);
        self.listen_for(EventFlags::empty());
        if self.log.allow(now).is_some() {
            tracing::error!(target: "ipcs", "cannot accept connections: {error}");
        }
    }

    fn listen_for(&self, flags: EventFlags) {
        let data = EventData::new_u64(LISTENER);
        if let Err(error) = epoll::modify(&self.epoll, &self.listener.socket, data, flags) {
            tracing::error!(target: "ipcs", "cannot change the listening socket: {error}");
        }
    }

    /// A new client; most have sent their request already.
    fn admit(&mut self, socket: OwnedFd) {
        let mut greeting = Greeting::new(socket);
        match greeting.read() {
            Progress::Complete(request, client) => {
                let socket = greeting.into_socket();
                if let Some(peer) = self.connect(socket, request, client) {
                    self.enter(peer);
                }
            }
            Progress::Failed => {}
            Progress::Partial => self.await_greeting(greeting),
        }
    }

    fn await_greeting(&mut self, greeting: Greeting) {
        let peers = &self.peers;
        self.greetings
            .retain(|(token, _)| matches!(peers.get(*token), Some(Peer::Greeting(_))));
        while self.greetings.len() >= MAX_HANDSHAKES {
            if let Some((oldest, _)) = self.greetings.pop_front() {
                self.peers.remove(oldest);
            }
        }
        let token = self.peers.insert(Peer::Greeting(greeting));
        let Some(Peer::Greeting(greeting)) = self.peers.get(token) else {
            return;
        };
        let data = EventData::new_u64(token.to_u64());
        if epoll::add(&self.epoll, greeting.socket(), data, EventFlags::IN).is_err() {
            self.peers.remove(token);
            return;
        }
        self.greetings
            .push_back((token, Instant::now() + HANDSHAKE_LIMIT));
    }

    /// More bytes of an unfinished handshake.
    fn greet(&mut self, token: Token) {
        let Some(Peer::Greeting(greeting)) = self.peers.get_mut(token) else {
            return;
        };
        match greeting.read() {
            Progress::Partial => {}
            Progress::Failed => {
                self.peers.remove(token);
            }
            Progress::Complete(request, client) => {
                let Some(Peer::Greeting(greeting)) = self.peers.remove(token) else {
                    return;
                };
                let socket = greeting.into_socket();
                // Comes back with the token of the connection.
                let _ = epoll::delete(&self.epoll, &socket);
                if let Some(peer) = self.connect(socket, request, client) {
                    self.enter(peer);
                }
            }
        }
    }

    /// Decides about a complete request; makes the rings. Answers a refusal itself.
    fn connect(
        &mut self,
        socket: OwnedFd,
        request: ConnectRequest,
        client: handshake::Credentials,
    ) -> Option<Connection> {
        if request.id != handshake::AUTHENTICATE {
            return None;
        }
        // Credentials with every byte are of no more use.
        let _ = set_socket_passcred(&socket, false);
        let handshake::Credentials { pid, uid, gid } = client;
        let read_only = match handshake::access(uid, gid, self.www_gid) {
            Access::ReadWrite => false,
            Access::ReadOnly => true,
            Access::Refused => {
                self.complain(|| {
                    tracing::error!(target: "ipcs", "connection from bad user {uid}! - rejected");
                });
                refuse(&socket, libc::EACCES);
                return None;
            }
        };
        let (count, limit) = if read_only {
            (self.read_only, MAX_READ_ONLY)
        } else {
            (self.full, MAX_FULL)
        };
        if count >= limit {
            self.complain(|| {
                tracing::error!(target: "ipcs",
                    "connection of pid {pid}, uid {uid} rejected: {limit} connections");
            });
            refuse(&socket, libc::EAGAIN);
            return None;
        }
        let dir = ConnectionDir::create(Arc::clone(&self.shm), self.pid, pid, socket.as_raw_fd());
        let made = dir.and_then(|dir| {
            let rings = dir.create_rings(request.message_size(), uid, gid)?;
            Ok((dir, rings))
        });
        match made {
            Ok((dir, rings)) => {
                let client = Client {
                    pid,
                    uid,
                    gid,
                    read_only,
                };
                Some(Connection::new(
                    socket,
                    client,
                    rings,
                    dir,
                    request.message_size(),
                ))
            }
            Err(error) => {
                self.complain(|| {
                    tracing::error!(target: "ipcs", "cannot make the rings of pid {pid}: {error}");
                });
                refuse(&socket, error.raw_os_error().unwrap_or(libc::EIO));
                None
            }
        }
    }

    /// Registers a new connection for requests, then tells the client.
    fn enter(&mut self, connection: Connection) {
        self.counter += 1;
        let prefixes = RINGS.map(|ring| connection.dir().prefix(ring));
        let [request, response, event] = &prefixes;
        let size = connection.message_size();
        let answer = handshake::encode_accept(size, self.counter, [request, response, event]);
        *self.count(connection.client().read_only) += 1;
        let token = self.peers.insert(Peer::Connected(Box::new(connection)));
        let Some(Peer::Connected(connection)) = self.peers.get(token) else {
            return;
        };
        let data = EventData::new_u64(token.to_u64());
        // One send: older clients give up when they find only a part.
        let sent = epoll::add(&self.epoll, connection.socket(), data, EventFlags::IN)
            .and_then(|()| send_once(connection.socket(), &answer));
        if sent != Ok(answer.len()) {
            self.disconnect(token, None);
        }
    }

    fn count(&mut self, read_only: bool) -> &mut usize {
        if read_only {
            &mut self.read_only
        } else {
            &mut self.full
        }
    }

    fn disconnect(&mut self, token: Token, reason: Option<&'static str>) {
        let Some(Peer::Connected(connection)) = self.peers.remove(token) else {
            return;
        };
        let client = *connection.client();
        *self.count(client.read_only) -= 1;
        if let Some(reason) = reason {
            self.complain(|| {
                tracing::warn!(target: "ipcs", "request returned error ({}/qb): {reason}, pid {}, uid {}",
                    connection.dir().name(), client.pid, client.uid);
            });
        }
        connection.close();
    }

    /// Writes a log line that a client caused, if there were not too many of them.
    fn complain(&mut self, write: impl FnOnce()) {
        if let Some(left_out) = self.log.allow(Instant::now()) {
            if left_out > 0 {
                tracing::warn!(target: "ipcs", "{left_out} messages about clients left out");
            }
            write();
        }
    }

    /// Ends what has lasted too long.
    fn expire(&mut self, now: Instant) {
        if self.paused.is_some_and(|until| until <= now) {
            self.paused = None;
            self.listen_for(EventFlags::IN);
        }
        while let Some((token, deadline)) = self.greetings.front().copied() {
            let open = matches!(self.peers.get(token), Some(Peer::Greeting(_)));
            if open && deadline > now {
                break;
            }
            self.greetings.pop_front();
            if open {
                self.peers.remove(token);
            }
        }
    }

    /// Name first, so that nobody comes in; then all clients learn it, then the files go.
    fn shut_down(self) {
        let Self {
            listener, peers, ..
        } = self;
        drop(listener);
        let connections = peers.into_connections();
        for connection in &connections {
            connection.close();
        }
        drop(connections);
    }
}

fn send_once(socket: impl std::os::fd::AsFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}

/// Best effort: the socket is closed behind it in any case.
fn refuse(socket: &OwnedFd, errno: i32) {
    let _ = send_once(socket, &handshake::encode_refusal(-errno));
}
