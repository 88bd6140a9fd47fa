//! The transport as the daemon sees it: take the name, start the thread, wake it, stop it
//! (ipc-transport.md 2, 9).
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::address::{Address, Listener};
use super::reactor::{MAX_FULL, MAX_HANDSHAKES, MAX_READ_ONLY, Reactor};
use super::ring::files::Shm;
use super::{Service, cleanup};

/// How long an answer may be put off with [`super::Answer::Later`].
pub const DEFER_LIMIT: Duration = Duration::from_millis(100);
/// How long [`ServerHandle::stop`] waits for the thread, which may have the files of thousands of
/// clients to remove.
const STOP_LIMIT: Duration = Duration::from_secs(1);
/// When this exists, libqb uses sockets with a place in the file system.
const FORCE_FILE: &str = "/etc/libqb/force-filesystem-sockets";
/// Where libqb has them then.
const SOCKET_DIR: &str = "/var/run";
/// Longest service name; keeps every path far below the 4096 bytes of its field.
const MAX_NAME: usize = 64;

/// A service that is not yet served, with clients queueing if the name was free.
#[derive(Debug)]
pub struct Server {
    address: Address,
    /// None while another process has the name.
    listener: Option<Listener>,
    shm: Arc<Shm>,
    shared: Arc<Shared>,
    www_gid: u32,
}

/// What other threads share with the server's.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) event: OwnedFd,
    /// A wake-up is on its way.
    pub(super) signalled: AtomicBool,
    pub(super) stop: AtomicBool,
    /// Number of deferred requests.
    pub(super) deferred: AtomicUsize,
}

impl Shared {
    fn signal(&self) {
        // The counter cannot overflow: it is cleared by each wake-up.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

/// Makes the server ask again for the requests that were answered with [`super::Answer::Later`].
#[derive(Debug, Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    /// Never blocks; without deferred requests it costs no system call. Call it after the change
    /// the deferred answers wait for.
    pub fn wake(&self) {
        // With the fence in Reactor::deferred: either the server sees the change when it asks
        // once more, or this thread sees that a request is deferred.
        fence(Ordering::SeqCst);
        let waiting = self.0.deferred.load(Ordering::Relaxed) > 0;
        if waiting && !self.0.signalled.swap(true, Ordering::SeqCst) {
            self.0.signal();
        }
    }
}

impl Server {
    /// Takes the service name and removes from `/dev/shm` what dead servers of that name left.
    /// Members of group `www_gid` get read-only connections. Another process that has the name is
    /// named in the log; the service begins when it gives it back.
    ///
    /// # Errors
    /// `EINVAL` for a name that is empty, longer than 64 bytes or not made of letters, digits, `_`,
    /// `-` and `.`; what the system says.
    pub fn bind(name: &str, www_gid: u32) -> io::Result<Self> {
        let place = Path::new(FORCE_FILE)
            .exists()
            .then(|| Path::new(SOCKET_DIR));
        Self::bind_in(place, name, www_gid)
    }

    /// [`Server::bind`] with the directory for the socket's file, or none for an abstract socket.
    fn bind_in(place: Option<&Path>, name: &str, www_gid: u32) -> io::Result<Self> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(good) {
            return Err(Errno::INVAL.into());
        }
        let address = Address::new(place, name);
        let listener = address.listen()?;
        let shm = Shm::open(name)?;
        match cleanup::remove_stale(shm.dir(), name, std::process::id()) {
            Ok(0) => {}
            Ok(n) => tracing::info!(target: "ipcs", "removed {n} directories of dead servers"),
            Err(error) => tracing::warn!(target: "ipcs", "cannot clean /dev/shm: {error}"),
        }
        if listener.is_none() {
            address.complain();
        }
        raise_file_limit();
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            event,
            signalled: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            deferred: AtomicUsize::new(0),
        });
        Ok(Self {
            address,
            listener,
            shm: Arc::new(shm),
            shared,
            www_gid,
        })
    }

    /// For the service, which may need it before it is complete.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.shared))
    }

    /// Serves in a thread named `ipc`. To be called after the last fork.
    ///
    /// # Errors
    /// When the thread or its epoll descriptor cannot be made.
    pub fn spawn(self, service: Box<dyn Service>) -> io::Result<ServerHandle> {
        let Self {
            address,
            listener,
            shm,
            shared,
            www_gid,
        } = self;
        let reactor = Reactor::new(shm, Arc::clone(&shared), www_gid, service)?;
        let (ended, end) = channel::<()>();
        let waiting = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("ipc".into())
            .spawn(move || {
                let _ended = ended;
                if let Some(listener) = listener.or_else(|| address.wait(&waiting)) {
                    reactor.run(listener);
                }
            })?;
        Ok(ServerHandle {
            shared,
            thread: Some(thread),
            end,
        })
    }
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct ServerHandle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Never carries anything; closed when the thread ends.
    end: Receiver<()>,
}

impl ServerHandle {
    /// Object that wakes deferred requests.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.shared))
    }

    /// Gives the name back, disconnects all clients and removes their files. Waits at most 1 s
    /// (only a service that blocks can make it longer; the thread is then left to itself).
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.signal();
        if self.end.recv_timeout(STOP_LIMIT) == Err(RecvTimeoutError::Timeout) {
            tracing::error!(target: "ipcs", "the ipc thread does not end; not waiting for it");
            return;
        }
        if thread.join().is_err() {
            tracing::error!(target: "ipcs", "the ipc thread panicked");
        }
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.end();
    }
}

/// Two descriptors per connection: with the usual soft limit of 1024 the connections www-data may
/// have would lock root out.
fn raise_file_limit() {
    const OTHERS: u64 = 512;
    let wanted = 2 * (MAX_READ_ONLY + MAX_FULL + MAX_HANDSHAKES) as u64 + OTHERS;
    let limit = getrlimit(Resource::Nofile);
    let reachable = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    if limit.current.is_some_and(|current| current < reachable) {
        let raised = Rlimit {
            current: Some(reachable),
            maximum: limit.maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(target: "ipcs", "cannot raise the limit of open files: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
