//! Nodes in namespaces, and the probes that run in them.
#![allow(dead_code)] // not every test uses everything

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Set in the environment of a probe.
pub const SWITCH: &str = "PMXCFS_COROSYNC_PROBE";
/// Starts each line of output of a probe.
pub const MARK: &str = "> ";

/// Output of a probe.
pub fn say(text: &str) {
    println!("{MARK}{text}");
}

/// Runs in a probe, not in the test.
pub fn is_probe() -> bool {
    std::env::var_os(SWITCH).is_some()
}

pub struct Lab {
    id: String,
    dir: PathBuf,
    nodes: usize,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("compat-tests/tools/lab.sh")
}

impl Lab {
    /// Sets up nodes that know each other as the cluster `name`; nothing runs in them yet. Tests
    /// that run at the same time have different offsets.
    pub fn up(offset: u32, nodes: usize, name: &str) -> Lab {
        let base = std::env::var("PMXCFS_COROSYNC_LABID").map_or(100, |id| id.parse().unwrap());
        let id = (base + offset).to_string();
        let dir = PathBuf::from(format!("/var/tmp/pmxcfs-corosync-{id}"));
        let lab = Lab { id, dir, nodes };
        lab.run(&["up", &nodes.to_string()]);
        lab.edit_configuration("cluster_name: lab", &format!("cluster_name: {name}"));
        lab
    }

    pub fn edit_configuration(&self, from: &str, to: &str) {
        for node in 1..=self.nodes {
            let path = self.dir.join(format!("node{node}/etccoro/corosync.conf"));
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, text.replace(from, to)).unwrap();
        }
    }

    /// Changes the configuration on all nodes and has it read again.
    pub fn reload_corosync(&self, from: &str, to: &str) {
        self.edit_configuration(from, to);
        self.run(&["exec", "1", "corosync-cfgtool", "-R"]);
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("bash");
        command
            .arg(script())
            .args(args)
            .env("LABID", &self.id)
            .env("LAB", &self.dir);
        command
    }

    fn run(&self, args: &[&str]) {
        let output = self.command(args).stdin(Stdio::null()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "lab.sh {args:?}: {errors}");
    }

    /// Runs a command inside the node; true if it succeeds.
    pub fn exec(&self, node: usize, command: &[&str]) -> bool {
        let node = node.to_string();
        let args: Vec<&str> = ["exec", &node].iter().chain(command).copied().collect();
        let output = self.command(&args).stdin(Stdio::null()).output().unwrap();
        output.status.success()
    }

    pub fn start_corosync(&self, node: usize) {
        self.run(&["exec", &node.to_string(), "corosync"]);
    }

    /// Sends a signal to the node's corosync; returns its process id.
    pub fn signal_corosync(&self, node: usize, signal: Signal) -> Pid {
        let namespace = format!("l{}n{node}", self.id);
        let output = Command::new("ip")
            .args(["netns", "pids", &namespace])
            .output()
            .unwrap();
        let pids = String::from_utf8(output.stdout).unwrap();
        let is_corosync = |pid: &&str| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.trim() == "corosync")
        };
        let pid = pids
            .split_whitespace()
            .find(is_corosync)
            .expect("corosync runs");
        let pid = Pid::from_raw(pid.parse().unwrap());
        kill(pid, signal).unwrap();
        pid
    }

    /// SIGKILL, and waits for the end.
    pub fn kill_corosync(&self, node: usize) {
        let pid = self.signal_corosync(node, Signal::SIGKILL);
        let end = Instant::now() + Duration::from_secs(30);
        // What remains until somebody waits for it has no memory any more.
        while std::fs::read(format!("/proc/{pid}/maps")).is_ok_and(|maps| !maps.is_empty()) {
            assert!(Instant::now() < end, "corosync {pid} does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Takes the node off the network, or puts it back.
    pub fn connect(&self, node: usize, on: bool) {
        let link = format!("l{}v{node}", self.id);
        let state = if on { "up" } else { "down" };
        let status = Command::new("ip")
            .args(["link", "set", &link, state])
            .status()
            .unwrap();
        assert!(status.success());
    }

    fn log(&self, node: usize) -> PathBuf {
        self.dir.join(format!("node{node}/probe.log"))
    }

    /// Everything the probes of this node wrote to stderr.
    pub fn log_of(&self, node: usize) -> String {
        std::fs::read_to_string(self.log(node)).unwrap_or_default()
    }

    /// The node's /etc/corosync/corosync.conf.
    pub fn host_file(&self, node: usize) -> PathBuf {
        self.dir.join(format!("node{node}/etccoro/corosync.conf"))
    }

    /// Starts this test binary as a probe inside the node.
    pub fn probe(&self, node: usize) -> Probe {
        let exe = std::env::current_exe().unwrap();
        let node_text = node.to_string();
        let mut child = self
            .command(&[
                "exec",
                &node_text,
                exe.to_str().unwrap(),
                "--exact",
                "probe",
                "--nocapture",
            ])
            .env(SWITCH, "1")
            .stderr(
                std::fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(self.log(node))
                    .unwrap(),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(event) = line.strip_prefix(MARK) {
                    let _ = send.send(event.to_owned());
                }
            }
        });
        let input = child.stdin.take();
        Probe {
            node,
            child,
            input,
            lines,
            log: Vec::new(),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.command(&["down"]).stdin(Stdio::null()).output();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A probe and what it has said.
pub struct Probe {
    node: usize,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    /// Lines nobody has waited for.
    log: Vec<String>,
}

impl Probe {
    pub fn tell(&mut self, command: &str) {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
    }

    pub fn wait(&mut self, line: &str, limit: Duration) {
        self.take(limit, |l| l == line);
    }

    /// Takes the first line that fits out of those that came, or waits for it.
    pub fn take(&mut self, limit: Duration, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + limit;
        let mut at = 0;
        loop {
            if let Some(found) = self.log[at..].iter().position(|l| wanted(l)) {
                return self.log.remove(at + found);
            }
            at = self.log.len();
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(line) => self.log.push(line),
                Err(err) => panic!(
                    "node {}: {err} ({limit:?}), log: {:#?}",
                    self.node, self.log
                ),
            }
        }
    }

    /// Is such a line among those nobody has waited for?
    pub fn said(&mut self, line: &str) -> bool {
        self.log.extend(self.lines.try_iter());
        self.log.iter().any(|l| l == line)
    }

    /// Forgets what was said until now.
    pub fn forget(&mut self) {
        self.lines.try_iter().for_each(drop);
        self.log.clear();
    }

    pub fn signal(&self, signal: Signal) {
        kill(
            Pid::from_raw(i32::try_from(self.child.id()).unwrap()),
            signal,
        )
        .unwrap();
    }

    pub fn end(&mut self) {
        self.input = None;
        self.child.wait().unwrap();
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
