//! The server under attack, identities, and the check that nobody else noticed.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Gid, Uid};
use rustix::thread::{
    LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::peer::Peer;

/// (uid, gid) of a client.
pub type Identity = (u32, u32);
pub const ROOT: Identity = (0, 0);
pub const NOBODY: Identity = (65534, 65534);

/// Longest time any well-behaved client may have to wait while another one is hostile.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// uid and gid of www-data on this machine.
pub fn www_data() -> Identity {
    let id = |file: &str| {
        let text = fs::read_to_string(file).expect("account database");
        let line = text.lines().find(|l| l.starts_with("www-data:"));
        let line = line.unwrap_or_else(|| panic!("no www-data in {file}: apt install base-passwd"));
        line.split(':')
            .nth(2)
            .and_then(|n| n.parse().ok())
            .expect("a number")
    };
    (id("/etc/passwd"), id("/etc/group"))
}

/// A pair of requests of equal length: one is answered, the other must never be.
#[derive(Debug, Clone)]
pub struct Secret {
    pub id: i32,
    pub public: Vec<u8>,
    pub private: Vec<u8>,
    /// Bytes that an answer contains only if the private request was served.
    pub leak: Vec<u8>,
}

/// A running server.
#[derive(Debug, Clone)]
pub struct Target {
    /// Name of the service. The network namespace is that of `pid`.
    pub service: String,
    pub pid: u32,
    /// A request that every accepted client may make; answered with error 0.
    pub probe: (i32, Vec<u8>),
    /// For the case of messages that change while they are processed.
    pub secret: Option<Secret>,
}

impl Target {
    /// Runs `work` in a thread with this identity, in the server's network namespace. The process
    /// keeps its own. Needs root.
    pub fn thread<T: Send + 'static>(
        &self,
        (uid, gid): Identity,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let pid = self.pid;
        std::thread::spawn(move || {
            let (own, server) = ("/proc/self/ns/net".into(), format!("/proc/{pid}/ns/net"));
            let link = |path: &String| fs::read_link(path).expect("network namespace");
            if link(&own) != link(&server) {
                let file = File::open(&server).expect("network namespace of the server");
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("entering the network namespace needs root");
            }
            if (uid, gid) != ROOT {
                let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                set_thread_groups(&[]).expect("changing identity needs root");
                set_thread_res_gid(gid, gid, gid).expect("setresgid");
                set_thread_res_uid(uid, uid, uid).expect("setresuid");
            }
            work()
        })
    }

    /// [`Target::thread`], waited for; a panic goes on in the caller.
    pub fn run_as<T: Send + 'static>(
        &self,
        identity: Identity,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        match self.thread(identity, work).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A well-behaved connection gets its answer.
    pub fn probe(&self, peer: &mut Peer) {
        let answer = peer
            .ask(self.probe.0, &self.probe.1, PATIENCE)
            .expect("answer to a probe");
        assert_eq!(
            (answer.id, answer.error),
            (self.probe.0, 0),
            "answer to a probe"
        );
    }

    /// A new well-behaved connection is accepted and gets its answer.
    pub fn probe_new(&self, identity: Identity) {
        let target = self.clone();
        self.run_as(identity, move || {
            let mut peer = Peer::connect(&target.service).expect("a new client is accepted");
            target.probe(&mut peer);
        });
    }

    /// Number of open files of the server.
    pub fn open_files(&self) -> usize {
        let path = format!("/proc/{}/fd", self.pid);
        fs::read_dir(path).expect("the server runs").count()
    }

    /// Connection directories of the server.
    pub fn directories(&self) -> Vec<String> {
        let prefix = format!("qb-{}-", self.pid);
        let entries = fs::read_dir("/dev/shm").expect("/dev/shm");
        let mut names: Vec<String> = entries
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(&prefix))
            .collect();
        names.sort();
        names
    }

    /// Runs `work` while a well-behaved root client and a www-data one are served without a
    /// noticeable pause, and checks that afterwards the server runs and holds no more files and
    /// directories than before.
    pub fn undisturbed(&self, work: impl FnOnce()) {
        let (files, directories) = (self.open_files(), self.directories());
        let witnesses = [ROOT, www_data()].map(|identity| Witness::start(self, identity));
        work();
        for witness in witnesses {
            witness.stop();
        }
        self.probe_new(ROOT);
        let end = Instant::now() + Duration::from_secs(5);
        // A client from before may be gone only now: less than before is fine.
        let more = || {
            let new = |name: &String| !directories.contains(name);
            self.open_files() > files || self.directories().iter().any(new)
        };
        while more() {
            assert!(
                Instant::now() < end,
                "left behind: {} files instead of {files}, {:?} instead of {directories:?}",
                self.open_files(),
                self.directories(),
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A well-behaved client that asks all the time.
struct Witness {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Witness {
    fn start(target: &Target, identity: Identity) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, target) = (Arc::clone(&stop), target.clone());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = target.clone().thread(identity, move || {
            let mut peer = Peer::connect(&target.service).expect("a witness is accepted");
            let mut count = 0;
            while !flag.load(Ordering::Relaxed) {
                target.probe(&mut peer);
                count += 1;
                if count == 1 {
                    let _ = ready.send(());
                }
                std::thread::sleep(Duration::from_micros(500));
            }
            count
        });
        let _ = is_ready.recv();
        Self { stop, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(count) => assert!(count > 0),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
