//! The IPC service of a running daemon against clients of group www-data that mean harm
//! (ipc-transport.md 10), and against very many clients that come and go.
//!
//! The cases themselves are in `compat_tests::shm::hostile`. Each one is run inside the node (its
//! `/dev/shm` is the daemon's) while two well-behaved clients are served without a pause, and
//! after each one the daemon, its mount, its open files and `/dev/shm` are what they were.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::shm::{ROOT, Secret, Target, cycles, hostile, www_data};
use compat_tests::{Client, Daemon, Lab, Node, Subject, daemon, lab, report};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const GET_CONFIG: i32 = 6;
const PUBLIC: &[u8] = b"publ/key.cfg\0";
const PRIVATE: &[u8] = b"priv/key.cfg\0";
const LEAK: &[u8] = b"the private key of this test";

/// A daemon in a node, with one public and one private file.
struct Victim {
    daemon: Daemon,
    target: Target,
    node: Node,
    _lab: Lab,
}

impl Victim {
    fn start() -> Self {
        let (lab, node) = Lab::single();
        let daemon = Daemon::local(&node, &Subject::ours());
        node.inside(|| {
            std::fs::create_dir("/etc/pve/publ").unwrap();
            std::fs::create_dir_all("/etc/pve/priv").unwrap();
            std::fs::write("/etc/pve/publ/key.cfg", [b'p'; 1024]).unwrap();
            std::fs::write("/etc/pve/priv/key.cfg", LEAK).unwrap();
        });
        let target = Target {
            service: "pve2".to_string(),
            pid: u32::try_from(daemon.pid()).unwrap(),
            probe: (GET_CONFIG, PUBLIC.to_vec()),
            secret: Some(Secret {
                id: GET_CONFIG,
                public: PUBLIC.to_vec(),
                private: PRIVATE.to_vec(),
                leak: LEAK.to_vec(),
            }),
        };
        Self {
            daemon,
            target,
            node,
            _lab: lab,
        }
    }

    /// Runs `work` inside the node; its panic becomes a text.
    fn attempt(&self, work: impl FnOnce(&Target) + Send) -> Result<(), String> {
        let target = &self.target;
        catch_unwind(AssertUnwindSafe(|| self.node.inside(|| work(target)))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                .unwrap_or_else(|| "panic".to_string())
        })
    }

    /// Everything anybody left in the node's `/dev/shm`.
    fn shared_memory(&self) -> Vec<String> {
        self.node.inside(|| {
            let names = std::fs::read_dir("/dev/shm").unwrap();
            names
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect()
        })
    }

    /// What has to hold whatever was tried: running, mounted, nothing left behind.
    fn check(&mut self) -> Result<(), String> {
        if !self.daemon.is_running() {
            return Err("the daemon has ended".to_string());
        }
        if !self.node.inside(daemon::mount_answers) {
            return Err("the mount does not answer".to_string());
        }
        let left = self.shared_memory();
        if !left.is_empty() {
            return Err(format!("left in /dev/shm: {left:?}"));
        }
        Ok(())
    }

    fn stop(mut self) {
        self.check().unwrap();
        let node = self.node.clone();
        let exit = self.daemon.signal(Signal::SIGTERM);
        assert_eq!(exit.code, 0, "{exit:?}");
        let left = node.inside(|| std::fs::read_dir("/dev/shm").unwrap().count());
        assert_eq!(left, 0, "entries of /dev/shm after the end");
    }
}

mod ours {
    use super::*;

    #[test]
    fn hostile_clients() {
        let mut victim = Victim::start();
        secret_is_one(&victim);
        let mut failed = Vec::new();
        for (name, case) in hostile::ALL {
            let start = Instant::now();
            let result = victim.attempt(case).and_then(|()| victim.check());
            let took = start.elapsed().as_secs_f64();
            match &result {
                Ok(()) => report(&format!("hostile client [ours] {name}: ok ({took:.1} s)")),
                Err(why) => {
                    report(&format!("hostile client [ours] {name}: FAILED: {why}"));
                    failed.push(name);
                    // what one attack broke is not the fault of the next one
                    drop(std::mem::replace(&mut victim, Victim::start()));
                }
            }
        }
        assert!(failed.is_empty(), "not withstood: {failed:?}");
        victim
            .attempt(hostile::ownership)
            .expect("owners, modes and sizes of the ring files");
        victim.stop();
    }

    #[test]
    fn coming_and_going() {
        let _quiet = lab::quiet();
        let victim = Victim::start();
        let before = (victim.target.open_files(), victim.shared_memory());
        let timed = |what: &str, count: usize, work: &(dyn Fn(&Target) + Sync)| {
            let start = Instant::now();
            victim
                .attempt(work)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            let took = start.elapsed().as_secs_f64();
            let after = (victim.target.open_files(), victim.shared_memory());
            report(&format!(
                "ipc [ours] {count} {what} ({took:.1} s): {} open files before, {} after; \
                 {} entries of /dev/shm before, {} after",
                before.0,
                after.0,
                before.1.len(),
                after.1.len()
            ));
            assert_eq!(before, after, "{what}");
        };
        timed("connect/disconnect cycles", 20_000, &|t| {
            cycles::connect_and_disconnect(t, 20_000);
        });
        timed("clients that hang up at once", 2000, &|t| {
            cycles::connect_and_close(t, 2000);
        });
        let qbclient = Client::program();
        timed("killed clients", 1000, &|t| {
            cycles::killed_clients(t, &qbclient, 1000);
        });
        victim.stop();
    }

    /// A client that stands still in the middle of its requests holds up nobody.
    #[test]
    fn stopped_client() {
        let victim = Victim::start();
        // The project may lie where only root can read.
        let program = std::env::temp_dir().join(format!("qbclient-{}", std::process::id()));
        std::fs::copy(Client::program(), &program).unwrap();
        let remove = program.clone();
        let still = |target: &Target| {
            let service = target.service.clone();
            let mut child = target.run_as(www_data(), move || {
                let hex: String = PUBLIC.iter().map(|b| format!("{b:02x}")).collect();
                Command::new(&program)
                    .args(["-s", &service, "bench", "1000000", "6", &hex])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap()
            });
            std::thread::sleep(Duration::from_millis(300));
            signal_family(child.id(), Signal::SIGSTOP);
            std::thread::sleep(Duration::from_secs(1));
            target.probe_new(www_data());
            target.probe_new(ROOT);
            signal_family(child.id(), Signal::SIGKILL);
            child.wait().unwrap();
        };
        let attempt = victim.attempt(|target| target.undisturbed(|| still(target)));
        std::fs::remove_file(remove).unwrap();
        attempt.unwrap();
        victim.stop();
    }
}

/// The private file is one, and can be read by those who may: otherwise case 12 shows nothing.
fn secret_is_one(victim: &Victim) {
    let private = std::str::from_utf8(PRIVATE).unwrap().trim_end_matches('\0');
    let www = Client::new(&victim.node, www_data()).config(private);
    assert_eq!(www.error(), Some(-1), "{www:?}");
    let root = Client::new(&victim.node, ROOT).config(private);
    assert_eq!(
        root.payload().strip_suffix(b"\0").unwrap_or(root.payload()),
        LEAK
    );
}

/// A process and its children.
fn signal_family(pid: u32, signal: Signal) {
    let children = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(children).unwrap_or_default();
    let all = children.split_whitespace().map(|p| p.parse().unwrap());
    for pid in all.chain([i32::try_from(pid).unwrap()]) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

mod reference {
    use super::*;

    /// Each case crashes the reference, makes it hang or makes it remove files as root: these are
    /// the defects the hardening answers, so there is nothing to compare.
    #[test]
    fn hostile_clients() {
        for (name, _) in hostile::ALL {
            report(&format!(
                "SKIPPED hostile client [reference] {name}: it would crash, hang or delete files \
                 (ipc-transport.md 10)"
            ));
        }
    }

    #[test]
    fn coming_and_going() {
        report(
            "SKIPPED ipc [reference] connect/disconnect cycles and killed clients: it keeps what \
             unfinished clients leave behind (ipc-transport.md 10)",
        );
    }
}
