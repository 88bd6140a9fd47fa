//! How a client becomes a connection of the [`Reactor`]: accept, handshake, limits, rings
//! (ipc-transport.md 4, 5, 10).
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{SendFlags, SocketFlags, accept_with, send};
use rustix::process::{Resource, getrlimit};

use super::{LISTENER, Reactor};
use crate::ipc::Client;
use crate::ipc::connection::{Connection, TURN};
use crate::ipc::greeting::{Greeting, Progress};
use crate::ipc::handshake::{self, Access, ConnectRequest, Credentials};
use crate::ipc::peers::{Peer, Token};
use crate::ipc::ring::files::{ConnectionDir, RINGS};

/// Connections of group www-data; root's are counted apart, so that it is never locked out.
pub const MAX_READ_ONLY: usize = 512;
/// Connections of root.
pub const MAX_FULL: usize = 2048;
/// Clients that have not sent their 24 bytes yet; the oldest goes when there is one more.
pub const MAX_HANDSHAKES: usize = 64;
/// How long a client may take to send them.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// New connections accepted before others get their turn.
const ACCEPTS_PER_TURN: usize = 8;
/// Pause of accepting when descriptors or memory are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Reactor {
    /// Somebody wants to connect.
    pub(super) fn accept(&mut self) {
        let start = Instant::now();
        for _ in 0..ACCEPTS_PER_TURN {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let Some(listener) = &self.listener else {
                return;
            };
            match accept_with(&listener.socket, flags) {
                Ok(socket) => self.admit(socket),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => return self.pause(error),
            }
            // Making the rings is most of it.
            if start.elapsed() >= TURN {
                return;
            }
        }
    }

    /// Without this the waiting client would make every epoll_wait return at once.
    fn pause(&mut self, error: Errno) {
        self.paused = Some(Instant::now() + ACCEPT_PAUSE);
        self.listen_for(EventFlags::empty());
        self.complain(|| {
            let hint = if error == Errno::MFILE {
                let limit = getrlimit(Resource::Nofile).current.unwrap_or_default();
                format!(
                    " - the {limit} files this process may open are in use: raise LimitNOFILE= in the unit"
                )
            } else {
                String::new()
            };
            tracing::error!(target: "ipcs", "cannot accept connections: {error}{hint}");
        });
    }

    /// What to be told about the listening socket.
    pub(super) fn listen_for(&self, flags: EventFlags) {
        let Some(listener) = &self.listener else {
            return;
        };
        let data = EventData::new_u64(LISTENER);
        if let Err(error) = epoll::modify(&self.epoll, &listener.socket, data, flags) {
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
    pub(super) fn greet(&mut self, token: Token) {
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
        sender: Credentials,
    ) -> Option<Connection> {
        if request.id != handshake::AUTHENTICATE {
            return None;
        }
        // Credentials with every byte are of no more use.
        let _ = set_socket_passcred(&socket, false);
        let Credentials { pid, uid, gid } = sender;
        let read_only = match handshake::access(uid, gid, self.www_gid) {
            Access::ReadWrite => false,
            Access::ReadOnly => true,
            Access::Refused => {
                let text = handshake::bad_user(sender, self.www_gid);
                self.complain(|| {
                    tracing::error!(target: "ipcs", "{text}");
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
                let why = self.shm.hint(&error);
                self.complain(|| {
                    tracing::error!(
                        target: "ipcs",
                        "cannot make the rings of pid {pid}, uid {uid}: {error}{why}"
                    );
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
}

fn send_once(socket: impl AsFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}

/// Best effort: the socket is closed behind it in any case.
fn refuse(socket: &OwnedFd, errno: i32) {
    let _ = send_once(socket, &handshake::encode_refusal(-errno));
}
