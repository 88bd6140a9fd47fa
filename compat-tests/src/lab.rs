//! Nodes: namespaces made by `tools/lab.sh`, one lab number per test.
use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Several nodes with a network of their own. Everything that runs in them ends with the value.
#[derive(Debug)]
pub struct Lab {
    id: u32,
    dir: PathBuf,
    nodes: Vec<Node>,
    _lock: Flock<File>,
}

/// One node: host name `node<i>`, own `/etc`, `/run`, `/dev/shm`, `/var/lib/pve-cluster`.
#[derive(Clone, Debug)]
pub struct Node {
    pub index: usize,
    /// What lab.sh keeps of this node on the real file system.
    pub dir: PathBuf,
    holder: i32,
}

impl Lab {
    /// Takes a free lab number (30 from `PMXCFS_LABID_BASE`, default 70) and sets up `nodes`
    /// nodes.
    pub fn new(nodes: usize) -> Self {
        crate::require_tools();
        let base: u32 = std::env::var("PMXCFS_LABID_BASE")
            .map_or(70, |v| v.parse().expect("PMXCFS_LABID_BASE is a number"));
        let started = Instant::now();
        let (id, lock) = loop {
            if let Some(found) = (base..base + 30).find_map(|id| try_lock(id).map(|l| (id, l))) {
                break found;
            }
            assert!(
                started.elapsed() < Duration::from_secs(300),
                "no free lab number"
            );
            std::thread::sleep(Duration::from_millis(200));
        };
        let dir = PathBuf::from(format!("/var/tmp/pmxcfs-compat-{id}"));
        let mut lab = Self {
            id,
            dir,
            nodes: Vec::new(),
            _lock: lock,
        };
        lab.script(&["up", &nodes.to_string()]);
        for index in 1..=nodes {
            let dir = lab.dir.join(format!("node{index}"));
            let pid = std::fs::read_to_string(dir.join("holder.pid"))
                .unwrap_or_else(|e| panic!("lab {id}: node{index} did not come up: {e}"));
            let holder = pid.trim().parse().expect("holder.pid is a number");
            lab.nodes.push(Node { index, dir, holder });
        }
        lab
    }

    /// A lab of one node and that node.
    pub fn single() -> (Self, Node) {
        let lab = Self::new(1);
        let node = lab.node(1);
        (lab, node)
    }

    /// Node `i`, counted from 1.
    pub fn node(&self, i: usize) -> Node {
        self.nodes[i - 1].clone()
    }

    /// Takes node `i` off the network, or puts it back.
    pub fn connect(&self, i: usize, on: bool) {
        let link = format!("l{}v{i}", self.id);
        let state = if on { "up" } else { "down" };
        let done = Command::new("ip")
            .args(["link", "set", &link, state])
            .status();
        assert!(
            done.is_ok_and(|s| s.success()),
            "ip link set {link} {state}"
        );
    }

    /// Process ids of what runs under this name in node `i`.
    pub fn pids(&self, i: usize, name: &str) -> Vec<i32> {
        let out = Command::new("ip")
            .args(["netns", "pids", &format!("l{}n{i}", self.id)])
            .output()
            .expect("ip runs");
        let named = |pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == name)
        };
        String::from_utf8_lossy(&out.stdout)
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .filter(named)
            .collect()
    }

    /// The address of node `i`.
    pub fn address(&self, i: usize) -> String {
        format!("10.99.{}.{i}", self.id)
    }

    fn script(&self, args: &[&str]) {
        let out = Command::new("bash")
            .arg(crate::here().join("tools/lab.sh"))
            .args(args)
            .env("LABID", self.id.to_string())
            .env("LAB", &self.dir)
            .stdin(Stdio::null())
            .output()
            .expect("bash runs");
        assert!(
            out.status.success(),
            "lab.sh {args:?} of lab {}: {}",
            self.id,
            String::from_utf8_lossy(&out.stderr)
        );
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = Command::new("bash")
            .arg(crate::here().join("tools/lab.sh"))
            .arg("down")
            .env("LABID", self.id.to_string())
            .env("LAB", &self.dir)
            .stdin(Stdio::null())
            .output();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn try_lock(id: u32) -> Option<Flock<File>> {
    let path = format!("/var/tmp/pmxcfs-compat-{id}.lock");
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .ok()?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
}

impl Node {
    /// The node's path `inside` as seen from the test process, for example
    /// `/var/lib/pve-cluster/config.db`. Paths below a mount that comes and goes inside the node
    /// are better used within [`Node::inside`].
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.holder))
    }

    /// The database file of this node.
    pub fn database(&self) -> PathBuf {
        self.dir.join("varlib/config.db")
    }

    /// Runs `work` in a thread of its own that has entered the node's namespaces, so plain
    /// `std::fs` calls see the node's `/etc/pve`.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter();
                work()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves the calling thread into the node for the rest of its life.
    pub fn enter(&self) {
        // a thread that shares its working directory with others may not change mount namespaces
        unshare(CloneFlags::CLONE_FS).expect("unshare(CLONE_FS)");
        let open = |ns: &str| {
            File::open(format!("/proc/{}/ns/{ns}", self.holder)).expect("the node's holder lives")
        };
        let (net, uts, mnt) = (open("net"), open("uts"), open("mnt"));
        setns(net, CloneFlags::CLONE_NEWNET).expect("enter the network");
        setns(uts, CloneFlags::CLONE_NEWUTS).expect("enter the host name");
        setns(mnt, CloneFlags::CLONE_NEWNS).expect("enter the mounts");
        std::env::set_current_dir("/").expect("the node has a root");
    }

    /// A command that runs `program` in the node, as root.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.holder.to_string(), "-m", "-u", "-n", "--"]);
        command.arg(program.as_ref());
        command.stdin(Stdio::null());
        command
    }

    /// A command that runs `program` in the node under another identity.
    pub fn command_as(&self, uid: u32, gid: u32, program: impl AsRef<Path>) -> Command {
        let mut command = self.command("setpriv");
        command.args([
            &format!("--reuid={uid}"),
            &format!("--regid={gid}"),
            "--clear-groups",
            "--",
        ]);
        command.arg(program.as_ref());
        command
    }

    /// Runs a shell line in the node and returns its exit code and everything it printed.
    pub fn sh(&self, line: &str) -> (i32, String) {
        let out = self
            .command("bash")
            .args(["-c", line])
            .output()
            .expect("bash runs");
        let text = String::from_utf8_lossy(&out.stdout).into_owned()
            + &String::from_utf8_lossy(&out.stderr);
        (out.status.code().unwrap_or(-1), text)
    }

    /// Lines of `/proc/mounts` of the node that concern `/etc/pve`.
    pub fn mounts(&self) -> Vec<String> {
        std::fs::read_to_string(format!("/proc/{}/mounts", self.holder))
            .expect("the node's holder lives")
            .lines()
            .filter(|l| l.split(' ').nth(1) == Some("/etc/pve"))
            .map(String::from)
            .collect()
    }

    /// Is a libqb service of this name listening in the node's network?
    pub fn ipc_listens(&self, service: &str) -> bool {
        std::fs::read_to_string(format!("/proc/{}/net/unix", self.holder))
            .unwrap_or_default()
            .lines()
            .filter_map(|l| l.split_whitespace().last()?.strip_prefix('@'))
            // libqb binds the whole sun_path, NULs included, which the kernel shows as @
            .any(|name| name.trim_end_matches('@') == service)
    }
}

static QUIET: Mutex<()> = Mutex::new(());

/// Held by a test that measures time, so that no other such test of this process runs meanwhile.
pub fn quiet() -> std::sync::MutexGuard<'static, ()> {
    QUIET
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
