//! The one thread of the transport: an epoll loop that owns all connections
//! (docs/adr/002-ipc-epoll.md). Nothing here waits for a client.
#![forbid(unsafe_code)]

mod admission;

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

pub use admission::{MAX_FULL, MAX_HANDSHAKES, MAX_READ_ONLY};

use super::Service;
use super::address::Listener;
use super::connection::{Connection, Scratch, TURN, Turn};
use super::peers::{Peer, Peers, Token};
use super::ring::files::Shm;
use super::server::Shared;
use crate::failure;
use crate::log_limit::LogLimit;

/// All clients of www-data and as many others: those of root are seen whoever else is ready.
const EVENTS: usize = 1024;
/// Places in [`Reactor::pending`] and [`Reactor::work`]: root's, who comes first, and the others'.
const ROOT: usize = 0;
const OTHERS: usize = 1;
/// Lines a client can cause, in so much time.
const LOG_LINES: u32 = 20;
const LOG_WINDOW: Duration = Duration::from_secs(10);

const LISTENER: u64 = u64::MAX;
const WAKER: u64 = u64::MAX - 1;

/// Whose requests come first.
fn class(connection: &Connection) -> usize {
    if connection.client().read_only {
        OTHERS
    } else {
        ROOT
    }
}

pub(super) struct Reactor {
    epoll: OwnedFd,
    /// None before [`Reactor::run`].
    listener: Option<Listener>,
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
    /// Connections that have, or may have, requests.
    pending: [VecDeque<Token>; 2],
    /// Connections whose request is worked off in pieces, one after the other: those that wait take
    /// little memory.
    work: [VecDeque<Token>; 2],
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
        shm: Arc<Shm>,
        shared: Arc<Shared>,
        www_gid: u32,
        service: Box<dyn Service>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &shared.event,
            EventData::new_u64(WAKER),
            EventFlags::IN,
        )?;
        Ok(Self {
            epoll,
            listener: None,
            paused: None,
            shm,
            shared,
            www_gid,
            service,
            scratch: Scratch::default(),
            peers: Peers::default(),
            greetings: VecDeque::new(),
            pending: Default::default(),
            work: Default::default(),
            deferred: Vec::new(),
            counter: 0,
            read_only: 0,
            full: 0,
            log: LogLimit::new(LOG_LINES, LOG_WINDOW),
            pid: std::process::id(),
        })
    }

    /// Serves until told to stop.
    pub(super) fn run(mut self, listener: Listener) {
        let data = EventData::new_u64(LISTENER);
        if let Err(error) = epoll::add(&self.epoll, &listener.socket, data, EventFlags::IN) {
            failure::end(format_args!("epoll of the IPC service failed: {error}"));
        }
        self.listener = Some(listener);
        let mut space = [MaybeUninit::<Event>::uninit(); EVENTS];
        while !self.shared.stop.load(Ordering::Relaxed) {
            let timeout = self.timeout();
            let events = match epoll::wait(&self.epoll, &mut space, timeout.as_ref()) {
                Ok((events, _)) => events,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    failure::end(format_args!("epoll of the IPC service failed: {error}"))
                }
            };
            let (mut woken, mut knocked) = (false, false);
            for event in events {
                match event.data.u64() {
                    LISTENER => knocked = true,
                    WAKER => {
                        let _ = rustix::io::read(&self.shared.event, &mut [0u8; 8]);
                        self.shared.signalled.store(false, Ordering::SeqCst);
                        woken = true;
                    }
                    token => self.ready(Token::from_u64(token), event.flags),
                }
            }
            self.serve_root();
            if !self.deferred.is_empty() {
                self.ask_deferred(woken);
            }
            if knocked {
                self.accept();
            }
            self.serve_others();
            self.work();
            if !self.greetings.is_empty() || self.paused.is_some() {
                self.expire(Instant::now());
            }
        }
        self.shut_down();
    }

    /// A turn for each connection of root that has requests.
    fn serve_root(&mut self) {
        for _ in 0..self.pending[ROOT].len() {
            if let Some(token) = self.pending[ROOT].pop_front() {
                self.turn(token);
            }
        }
    }

    /// The same for the others, at least one of them, as long as root does not wait too long.
    fn serve_others(&mut self) {
        let mut since = None;
        for _ in 0..self.pending[OTHERS].len() {
            let Some(token) = self.pending[OTHERS].pop_front() else {
                return;
            };
            // A turn alone needs no clock.
            if since.is_none() && !self.pending[OTHERS].is_empty() {
                since = Some(Instant::now());
            }
            self.turn(token);
            if since.is_some_and(|since| since.elapsed() >= TURN) {
                return;
            }
        }
    }

    /// A piece of the first work, root's before the others'.
    fn work(&mut self) {
        for class in [ROOT, OTHERS] {
            while let Some(token) = self.work[class].front().copied() {
                if let Some(Peer::Connected(connection)) = self.peers.get_mut(token) {
                    if connection.is_working() {
                        let result = connection.go_on(&mut self.scratch);
                        if result != Turn::Working {
                            self.work[class].pop_front();
                            self.after(token, result, true);
                        }
                        return;
                    }
                }
                // The client has gone.
                self.work[class].pop_front();
            }
        }
    }

    /// How long there is nothing to do without an event.
    fn timeout(&self) -> Option<Timespec> {
        let busy = self.pending.iter().chain(&self.work);
        if busy.into_iter().any(|queue| !queue.is_empty()) {
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
            Some(Peer::Connected(_)) => self.enqueue(token),
        }
    }

    /// Has the connection get its turn.
    fn enqueue(&mut self, token: Token) {
        if let Some(Peer::Connected(connection)) = self.peers.get_mut(token) {
            if !std::mem::replace(&mut connection.queued, true) {
                let class = class(connection);
                self.pending[class].push_back(token);
            }
        }
    }

    /// Lets a connection do something and sees to what follows from it.
    fn turn(&mut self, token: Token) {
        let Some(Peer::Connected(connection)) = self.peers.get_mut(token) else {
            return;
        };
        connection.queued = false;
        let waited = connection.deadline().is_some() || connection.is_working();
        let result = connection.readable(&mut *self.service, &mut self.scratch);
        self.after(token, result, waited);
    }

    /// `waited`: the connection stands in the list of those that wait.
    fn after(&mut self, token: Token, result: Turn, waited: bool) {
        match result {
            Turn::Idle => {}
            Turn::More => self.enqueue(token),
            Turn::Deferred | Turn::Working if waited => {}
            Turn::Deferred => self.defer(token),
            Turn::Working => self.enter_work(token),
            Turn::Close(reason) => self.disconnect(token, reason),
        }
    }

    fn enter_work(&mut self, token: Token) {
        if let Some(Peer::Connected(connection)) = self.peers.get(token) {
            self.work[class(connection)].push_back(token);
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
        match connection.ask_again(&mut *self.service, &mut self.scratch, last) {
            Turn::Working => self.enter_work(token),
            // A request behind the answered one may be deferred in turn: the token stands in the list.
            result => self.after(token, result, true),
        }
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
