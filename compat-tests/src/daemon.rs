//! Starting and stopping the binary in a node.
use crate::{Node, Subject};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Longest time any start or stop may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon in the foreground (`-f`), a child of the test.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    stderr: PathBuf,
    node: Node,
    started: Instant,
    ended: Option<Exit>,
    ours: bool,
}

/// How a process ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// Exit code; `-<signal>` when a signal ended it.
    pub code: i32,
    /// From the signal (or the start, when it ended by itself) to the end.
    pub took: Duration,
    /// Everything it wrote to stderr and stdout.
    pub stderr: String,
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| -status.signal().unwrap_or(0))
}

/// A fresh file name for output, in the node's own folder.
fn output_file(node: &Node) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    node.dir
        .join(format!("out-{}", COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// Polls `done` every millisecond; false when `limit` has passed.
pub fn wait_for(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if done() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Nanoseconds of CPU of all threads of a process so far.
pub fn cpu_ns(pid: i32) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    let time = |thread: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<u64>().ok()
    };
    // A thread that ends meanwhile counts no more.
    threads.filter_map(time).sum()
}

fn to_file(command: &mut Command, file: &PathBuf) {
    let out = File::create(file).expect("the lab folder is writable");
    command.stdout(out.try_clone().expect("dup"));
    command.stderr(out);
}

/// Runs a program in the node to its end, whatever it leaves in the background.
pub fn run_to_end(node: &Node, mut command: Command) -> Exit {
    let file = output_file(node);
    to_file(&mut command, &file);
    let started = Instant::now();
    let mut child = command.spawn().expect("nsenter runs");
    let mut status = None;
    if !wait_for(PATIENCE, || {
        status = child.try_wait().expect("wait");
        status.is_some()
    }) {
        let _ = child.kill();
        status = child.wait().ok();
    }
    let took = started.elapsed();
    let stderr = read_lossy(&file);
    Exit {
        code: status.map_or(-1, code),
        took,
        stderr,
    }
}

fn read_lossy(file: &PathBuf) -> String {
    String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned()
}

impl Daemon {
    /// Starts `subject args…` in the node and returns at once. The arguments must contain `-f`.
    pub fn spawn(node: &Node, subject: &Subject, args: &[&str]) -> Self {
        let mut command = node.command(&subject.binary);
        command.args(args);
        Self::spawn_command(node, subject, command)
    }

    /// As [`Daemon::spawn`] with `-f -l`, bound to one CPU; waits until it is usable.
    pub fn on_cpu(node: &Node, subject: &Subject, cpu: usize) -> Self {
        Self::wrapped(node, subject, &["taskset", "-c", &cpu.to_string()])
    }

    /// As [`Daemon::local`], started by another program: `wrapper… subject -f -l`.
    pub fn wrapped(node: &Node, subject: &Subject, wrapper: &[&str]) -> Self {
        let mut command = node.command(wrapper[0]);
        command.args(&wrapper[1..]);
        command.arg(&subject.binary).args(["-f", "-l"]);
        let mut daemon = Self::spawn_command(node, subject, command);
        daemon.wait_usable();
        daemon
    }

    /// Starts `command`, which is or becomes the daemon, and returns at once.
    pub fn spawn_command(node: &Node, subject: &Subject, mut command: Command) -> Self {
        let stderr = output_file(node);
        to_file(&mut command, &stderr);
        let started = Instant::now();
        let child = command.spawn().expect("nsenter runs");
        Self {
            child,
            stderr,
            node: node.clone(),
            started,
            ended: None,
            ours: subject.is_ours(),
        }
    }

    /// Starts `subject -f -l` and waits until it is usable; panics with its output if it is not.
    pub fn local(node: &Node, subject: &Subject) -> Self {
        let mut daemon = Self::spawn(node, subject, &["-f", "-l"]);
        daemon.wait_usable();
        daemon
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid fits")
    }

    /// What it printed so far.
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// Waits until the mount answers and the IPC service listens. The time since the start.
    pub fn wait_usable(&mut self) -> Duration {
        match self.try_wait_usable() {
            Ok(time) => time,
            Err(exit) => panic!("the daemon is not usable: {exit:?}"),
        }
    }

    /// As [`Daemon::wait_usable`], but gives back the end of a daemon that refused to start.
    pub fn try_wait_usable(&mut self) -> Result<Duration, Exit> {
        let node = self.node.clone();
        let start = self.started;
        node.inside(|| {
            loop {
                if mount_answers() && self.node.ipc_listens("pve2") {
                    let time = start.elapsed();
                    if !self.ours {
                        // a SIGTERM within milliseconds of its readiness can hang the reference
                        std::thread::sleep(Duration::from_millis(300));
                    }
                    return Ok(time);
                }
                if let Some(status) = self.child.try_wait().expect("wait") {
                    let exit = Exit {
                        code: code(status),
                        took: start.elapsed(),
                        stderr: self.stderr(),
                    };
                    self.ended = Some(exit.clone());
                    return Err(exit);
                }
                if start.elapsed() > PATIENCE {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    let exit = Exit {
                        code: -9,
                        took: start.elapsed(),
                        stderr: self.stderr(),
                    };
                    self.ended = Some(exit.clone());
                    return Err(exit);
                }
                std::thread::sleep(Duration::from_micros(500));
            }
        })
    }

    /// Has it ended by itself?
    pub fn is_running(&mut self) -> bool {
        self.ended.is_none() && matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal and waits for the end.
    pub fn signal(&mut self, signal: Signal) -> Exit {
        if let Some(exit) = &self.ended {
            return exit.clone();
        }
        let sent = Instant::now();
        let _ = kill(Pid::from_raw(self.pid()), signal);
        let mut status = None;
        let ended = wait_for(PATIENCE, || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        let took = sent.elapsed();
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let exit = Exit {
            code: status.map_or(-9, code),
            took,
            stderr: self.stderr(),
        };
        self.ended = Some(exit.clone());
        exit
    }

    /// Stops all its threads (SIGSTOP) and waits until they stand; [`Daemon::thaw`] lets them go on.
    pub fn freeze(&self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGSTOP).expect("the daemon lives");
        let stands = |thread: std::fs::DirEntry| {
            std::fs::read_to_string(thread.path().join("stat"))
                .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T')))
        };
        let tasks = format!("/proc/{}/task", self.pid());
        let frozen = || {
            let threads = std::fs::read_dir(&tasks).expect("the daemon lives");
            threads.flatten().all(stands)
        };
        assert!(wait_for(PATIENCE, frozen), "the daemon does not stop");
    }

    /// Ends [`Daemon::freeze`].
    pub fn thaw(&self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGCONT).expect("the daemon lives");
    }

    /// Orderly stop (SIGTERM).
    pub fn stop(mut self) -> Exit {
        self.signal(Signal::SIGTERM)
    }

    /// SIGKILL.
    pub fn kill9(mut self) -> Exit {
        self.signal(Signal::SIGKILL)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- output of the daemon:\n{}---", self.stderr());
        }
    }
}

const FUSE_SUPER_MAGIC: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0x6573_5546);

/// Is this file or directory on a FUSE file system that answers?
pub fn is_fuse(file: &File) -> bool {
    nix::sys::statfs::fstatfs(file).is_ok_and(|s| s.filesystem_type() == FUSE_SUPER_MAGIC)
}

/// Is a FUSE file system at `/etc/pve` that answers? To be called inside a node.
pub fn mount_answers() -> bool {
    nix::sys::statfs::statfs("/etc/pve").is_ok_and(|s| s.filesystem_type() == FUSE_SUPER_MAGIC)
        && std::fs::metadata("/etc/pve/.version").is_ok()
}

/// A daemon that went to the background: known by its pid only.
#[derive(Clone, Debug)]
pub struct Background {
    pub pid: i32,
    /// The parent's end: exit code, time, output.
    pub parent: Exit,
}

impl Background {
    /// Runs `subject args…` without `-f` and reads the pid file it leaves. Panics when it fails.
    pub fn start(node: &Node, subject: &Subject, args: &[&str]) -> Self {
        let mut command = node.command(&subject.binary);
        command.args(args);
        let parent = run_to_end(node, command);
        assert_eq!(
            parent.code, 0,
            "the daemon did not start: {}",
            parent.stderr
        );
        let text = std::fs::read_to_string(node.dir.join("run/pve-cluster.pid"))
            .expect("a pid file after the parent has ended");
        let pid = text.trim().parse().expect("a number in the pid file");
        Self { pid, parent }
    }

    /// Sends a signal and waits until the process is gone (or only its entry is left). The time.
    pub fn signal(&self, signal: Signal) -> Duration {
        let sent = Instant::now();
        let _ = kill(Pid::from_raw(self.pid), signal);
        assert!(
            wait_for(PATIENCE, || !self.is_running()),
            "pid {} does not end",
            self.pid
        );
        sent.elapsed()
    }

    /// Is the process there and not a zombie?
    pub fn is_running(&self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/status", self.pid)).is_ok_and(|s| {
            !s.lines()
                .any(|l| l.starts_with("State:\tZ") || l.starts_with("State:\tX"))
        })
    }
}

/// CPU time of all threads of a process, in seconds.
pub fn cpu_seconds(pid: i32) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    let nanoseconds: u64 = threads
        .filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
        .sum();
    nanoseconds as f64 / 1e9
}

/// A field of `/proc/<pid>/<file>`, for example `VmRSS` of `status`; `None` when it is not there.
pub fn proc_value(pid: i32, file: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let line = text.lines().find(|l| l.split(':').next() == Some(field))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
