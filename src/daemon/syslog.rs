//! Lines on their way to syslog. Whoever logs never waits: what the socket does not take at once
//! stands in a short queue, which a thread of its own empties. What does not fit there is lost,
//! counted, and told of as soon as there is room again.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What may wait: some thousand lines. A `/dev/log` holds 10 by default
/// (`net.unix.max_dgram_qlen`), which is less than one synchronisation writes.
const MAX_BYTES: usize = 256 << 10;
/// Lines sent before others get the lock.
const SLICE: usize = 16;
/// Longest time for which another thread has the queue, unless it is stuck.
const BUSY: Duration = Duration::from_secs(1);
/// Pause before a syslog that is gone is looked for again.
const PAUSE: Duration = Duration::from_secs(1);

/// The way to one syslog.
pub struct Syslog {
    path: PathBuf,
    state: Mutex<State>,
    filled: Condvar,
    /// What `lost` lines are reported as.
    notice: fn(u64) -> String,
}

#[derive(Default)]
struct State {
    socket: Option<Arc<UnixDatagram>>,
    /// There was a syslog at some time.
    known: bool,
    waiting: VecDeque<String>,
    bytes: usize,
    lost: u64,
    /// The queue has a thread.
    threaded: bool,
}

impl Syslog {
    /// Nothing is opened before the first line.
    pub fn new(path: &Path, notice: fn(u64) -> String) -> Self {
        Syslog {
            path: path.into(),
            state: Mutex::default(),
            filled: Condvar::new(),
            notice,
        }
    }

    /// Sends a line, behind those that wait. Never waits for syslog.
    pub fn send(&self, packet: String) {
        // A line about a failure in here must not wait for it.
        let Some(mut state) = self.state.try_lock_for(BUSY) else {
            return;
        };
        if !state.threaded {
            while self.forward(&mut state) {}
        }
        if !state.waiting.is_empty() || !self.deliver(&mut state, &packet) {
            self.enqueue(&mut state, packet);
            self.filled.notify_one();
        }
    }

    fn enqueue(&self, state: &mut State, packet: String) {
        let notice = (state.lost > 0).then(|| (self.notice)(state.lost));
        let more = packet.len() + notice.as_ref().map_or(0, String::len);
        if state.bytes + more > MAX_BYTES {
            state.lost += 1;
            return;
        }
        state.bytes += more;
        state.lost = 0;
        state.waiting.extend(notice);
        state.waiting.push_back(packet);
    }

    /// Sends what waits, some lines of it. True if that may go on at once.
    fn forward(&self, state: &mut State) -> bool {
        for _ in 0..SLICE {
            if state.waiting.is_empty() && state.lost > 0 {
                let notice = (self.notice)(std::mem::take(&mut state.lost));
                state.bytes += notice.len();
                state.waiting.push_back(notice);
            }
            let Some(packet) = state.waiting.pop_front() else {
                return false;
            };
            if !self.deliver(state, &packet) {
                state.waiting.push_front(packet);
                return false;
            }
            state.bytes -= packet.len();
        }
        true
    }

    /// False if the line has to wait. A line that can never be sent counts as lost, one that
    /// nobody was ever there for as delivered.
    fn deliver(&self, state: &mut State, packet: &str) -> bool {
        // One more try with a new socket: syslog may have been restarted.
        for _ in 0..2 {
            if state.socket.is_none() {
                state.socket = connect(&self.path).ok().map(Arc::new);
            }
            let Some(socket) = &state.socket else {
                return !state.known;
            };
            state.known = true;
            match socket.send(packet.as_bytes()) {
                Ok(_) => return true,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return false,
                Err(err) if err.raw_os_error() == Some(libc::EMSGSIZE) => break,
                Err(_) => state.socket = None,
            }
        }
        if state.socket.is_none() {
            return false;
        }
        state.lost += 1;
        true
    }

    /// Empties the queue whenever something is in it; for a thread, which ends with the process.
    pub fn run(&self) {
        let mut state = self.state.lock();
        state.threaded = true;
        loop {
            while state.waiting.is_empty() && state.lost == 0 {
                self.filled.wait(&mut state);
            }
            let socket = state.socket.clone();
            parking_lot::MutexGuard::unlocked(&mut state, || wait_for_room(socket, PAUSE));
            while self.forward(&mut state) {
                parking_lot::MutexGuard::bump(&mut state);
            }
        }
    }

    /// The process is about to end: waits at most `limit` for what is in the queue.
    pub fn finish(&self, limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Some(mut state) = self.state.try_lock_for(left) else {
                return;
            };
            while self.forward(&mut state) {}
            let Some(socket) = state.socket.clone().filter(|_| !state.waiting.is_empty()) else {
                return;
            };
            drop(state);
            if left.is_zero() {
                return;
            }
            wait_for_room(Some(socket), left);
        }
    }

    /// After a fork, in the process that does not go on: the other one has the same queue.
    pub fn forget(&self) {
        let mut state = self.state.lock();
        state.waiting.clear();
        (state.bytes, state.lost) = (0, 0);
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Until the socket takes a line or is dead; without one, for the whole time.
fn wait_for_room(socket: Option<Arc<UnixDatagram>>, limit: Duration) {
    let Some(socket) = socket else {
        return std::thread::sleep(limit);
    };
    let limit = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    // An error here shows again when the line is sent.
    let _ = poll(
        &mut [PollFd::new(&socket.as_fd(), PollFlags::OUT)],
        Some(&limit),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(lost: u64) -> String {
        format!("{lost} lost")
    }

    struct Scene {
        _dir: tempfile::TempDir,
        path: PathBuf,
        syslog: Arc<Syslog>,
    }

    fn scene() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let syslog = Arc::new(Syslog::new(&path, notice));
        Scene {
            _dir: dir,
            path,
            syslog,
        }
    }

    fn read(socket: &UnixDatagram) -> Option<String> {
        let mut bytes = [0; 100];
        socket.set_nonblocking(true).unwrap();
        let len = socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..len]).into_owned())
    }

    #[test]
    fn a_burst_waits_in_order() {
        let scene = scene();
        let log = UnixDatagram::bind(&scene.path).unwrap();
        for n in 0..1000 {
            scene.syslog.send(n.to_string());
        }
        let thread = scene.syslog.clone();
        std::thread::spawn(move || thread.run());
        log.set_nonblocking(false).unwrap();
        let mut bytes = [0; 100];
        for n in 0..1000 {
            let len = log.recv(&mut bytes).unwrap();
            assert_eq!(bytes[..len], *n.to_string().as_bytes());
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_in_its_place() {
        let scene = scene();
        let log = UnixDatagram::bind(&scene.path).unwrap();
        let line = "x".repeat(1000);
        let mut sent = 0;
        while scene.syslog.state.lock().lost < 5 {
            scene.syslog.send(line.clone());
            sent += 1;
        }
        let mut got = 0;
        while read(&log).is_some() {
            got += 1;
        }
        scene.syslog.send("after".into());
        let mut rest = Vec::new();
        loop {
            while let Some(text) = read(&log) {
                rest.push(text);
            }
            if scene.syslog.state.lock().waiting.is_empty() {
                break;
            }
            scene.syslog.finish(Duration::ZERO);
        }
        assert_eq!(rest.pop().unwrap(), "after");
        assert_eq!(rest.pop().unwrap(), "5 lost");
        assert_eq!(got + rest.len() + 5, sent);
    }

    #[test]
    fn a_syslog_that_is_restarted_loses_nothing() {
        let scene = scene();
        // nobody was ever there: nothing is kept
        scene.syslog.send("lonely".into());
        assert!(scene.syslog.state.lock().waiting.is_empty());
        let log = UnixDatagram::bind(&scene.path).unwrap();
        scene.syslog.send("one".into());
        assert_eq!(read(&log).as_deref(), Some("one"));
        drop(log);
        std::fs::remove_file(&scene.path).unwrap();
        scene.syslog.send("two".into());
        let log = UnixDatagram::bind(&scene.path).unwrap();
        scene.syslog.send("three".into());
        assert_eq!(read(&log).as_deref(), Some("two"));
        assert_eq!(read(&log).as_deref(), Some("three"));
        assert_eq!(read(&log), None);
    }

    #[test]
    fn the_end_does_not_wait_for_ever() {
        let scene = scene();
        let log = UnixDatagram::bind(&scene.path).unwrap();
        while scene.syslog.state.lock().waiting.is_empty() {
            scene.syslog.send("line".into());
        }
        scene.syslog.finish(Duration::from_millis(5));
        assert_eq!(scene.syslog.state.lock().waiting.len(), 1);
        while read(&log).is_some() {}
        scene.syslog.finish(Duration::from_secs(60));
        assert_eq!(read(&log).as_deref(), Some("line"));
        scene.syslog.forget();
    }
}
