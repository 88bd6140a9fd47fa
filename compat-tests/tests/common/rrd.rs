//! rrdtool, rrdcached and many values at once.
// Each test uses a part of it.
#![allow(dead_code)]

use compat_tests::Node;
use compat_tests::client::{compile, name256};
use compat_tests::daemon::wait_for;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

pub const BASE: &str = "/var/lib/rrdcached/db";
/// What the recorded values of both generations of keys end in, below [`BASE`].
pub const RECORDED_FILES: [&str; 7] = [
    "pve-node-9.0/node1",
    "pve-node-9.0/node2",
    "pve-node-9.0/future",
    "pve-vm-9.0/100",
    "pve-vm-9.0/101",
    "pve-storage-9.0/node1/local",
    "pve-storage-9.0/node1/old",
];
const SOCKET: &str = "/var/run/rrdcached.sock";

/// Seconds since the epoch.
pub fn now() -> u32 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u32::try_from(now.unwrap().as_secs()).unwrap()
}

/// What `rrdtool` prints about a file of the node (named below the base directory).
pub fn rrdtool(node: &Node, command: &str, file: &str, args: &[&str]) -> String {
    let file = node.path(BASE).join(file);
    compat_tests::rrdtool::rrdtool(Command::new("rrdtool").arg(command).arg(file).args(args))
}

/// Time of the last value in a file, as the disk has it.
pub fn last(node: &Node, file: &str) -> u32 {
    rrdtool(node, "last", file, &[]).trim().parse().unwrap()
}

/// A running rrdcached of the node, as PVE starts it but with nothing written for an hour.
pub struct Cached {
    child: Child,
}

impl Cached {
    pub fn start(node: &Node) -> Self {
        let found = ["/usr/bin", "/usr/sbin", "/usr/local/bin"]
            .iter()
            .any(|dir| std::path::Path::new(dir).join("rrdcached").exists());
        assert!(found, "rrdcached is missing: apt install rrdcached");
        node.inside(|| {
            for name in [SOCKET, "/var/run/rrdcached.pid"] {
                let _ = std::fs::remove_file(name);
            }
        });
        let child = node
            .command("rrdcached")
            .args(["-g", "-w", "3600", "-f", "7200", "-B", "-b", BASE])
            .args(["-l", &format!("unix:{SOCKET}")])
            .args(["-p", "/var/run/rrdcached.pid"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nsenter runs");
        let listens = || node.inside(|| UnixStream::connect(SOCKET).is_ok());
        assert!(wait_for(Duration::from_secs(10), listens));
        Self { child }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id() as i32;
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Until it has the value of that time, and keeps it.
    pub fn wait_for_value(&self, node: &Node, file: &str, time: u32) {
        let start = format!("{time}:");
        let there = || {
            let pending = node.inside(|| pending(file).unwrap_or_default());
            pending.iter().any(|line| line.starts_with(&start))
        };
        assert!(wait_for(Duration::from_secs(10), there), "{file}: {time}");
    }

    /// Ends it and waits.
    pub fn end(mut self, signal: Signal) {
        self.signal(signal);
        self.child.wait().unwrap();
    }
}

/// The values of a file that rrdcached has not written yet: `<n> updates pending` and n lines, or a
/// negative number and an error.
fn pending(file: &str) -> std::io::Result<Vec<String>> {
    let mut stream = UnixStream::connect(SOCKET)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    writeln!(stream, "PENDING {BASE}/{file}")?;
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let count = first.split(' ').next().and_then(|n| n.parse().ok());
    lines.take(count.unwrap_or(0)).collect()
}

impl Drop for Cached {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A value to set: key without `rrd/`, text without its NUL.
pub type Value = (String, String);

/// How requests went: times in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Feed {
    pub sent: u64,
    pub errors: u64,
    pub mean: u64,
    pub p99: u64,
    pub max: u64,
}

/// Sets all values over one connection, `rate` a second (0: as fast as it goes).
pub fn feed(node: &Node, rate: u32, values: &[Value]) -> Feed {
    let mut input = Vec::new();
    for (key, text) in values {
        let mut payload = name256(&format!("rrd/{key}"));
        payload.extend(text.as_bytes());
        payload.push(0);
        input.extend(4_u32.to_ne_bytes());
        input.extend(u32::try_from(payload.len()).unwrap().to_ne_bytes());
        input.extend(payload);
    }
    let mut child = node
        .command(compile("qbfeed"))
        .args(["pve2", &rate.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("nsenter runs");
    let mut stdin = child.stdin.take().unwrap();
    // Fails if it has ended: then its output tells.
    let _ = stdin.write_all(&input);
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "qbfeed: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let field = |name: &str| {
        let value = text.split_whitespace().find_map(|f| f.strip_prefix(name));
        value.unwrap().trim_start_matches('=').parse().unwrap()
    };
    Feed {
        sent: field("sent"),
        errors: field("errors"),
        mean: field("mean"),
        p99: field("p99"),
        max: field("max"),
    }
}

/// Processor time of a process so far, in seconds.
pub fn cpu(pid: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name of the program may contain anything, but not behind its closing parenthesis.
    let fields: Vec<&str> = text
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // Of the kernel's interface, 100 everywhere.
    ticks as f64 / 100.0
}

/// Values of guests 100 and up, with all columns of release 9.
pub fn guests(count: u32, time: u32) -> Vec<Value> {
    let text = |i: u32| {
        format!(
            "5000:guest {i}:running:0:{time}:2:0.25:2147483648:1073741824:34359738368:0:{}:2000:\
             3000:4000:1200000000:0.10:0.20:0.30:0.40:0.50:0.60",
            time % 10_000
        )
    };
    (0..count)
        .map(|i| (format!("pve-vm-9.0/{}", 100 + i), text(i)))
        .collect()
}

const READS: usize = 400;

/// p99 of the rounds while rrdcached runs, and while it is stopped; of each action of [`others`].
pub type P99 = [[Vec<f64>; 2]; 2];
/// Rounds, running and stopped in turn: at least, and as long as it looks as if somebody noticed.
pub const ROUNDS: usize = 8;
pub const MAX_ROUNDS: usize = 24;

/// The smallest of an action: other programs of the machine only ever add to it.
pub fn least(times: &[f64]) -> f64 {
    times.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Is nothing slower while rrdcached is stopped, but for a fifth and `more` microseconds? That is
/// what two such measurements differ by when nothing happens.
pub fn unnoticed(p99: &P99, more: f64) -> bool {
    (0..2).all(|i| least(&p99[1][i]) <= least(&p99[0][i]) * 1.2 + more)
}

/// Times of reading `.version` and of creating a file, in microseconds, p99 of each.
pub fn others(node: &Node, round: usize) -> [f64; 2] {
    node.inside(|| {
        let dir = format!("/etc/pve/round{round}");
        fs::create_dir(&dir).unwrap();
        let mut times: [Vec<f64>; 2] = Default::default();
        for i in 0..READS {
            let start = Instant::now();
            assert!(fs::read("/etc/pve/.version").unwrap().len() > 100);
            times[0].push(start.elapsed().as_secs_f64() * 1e6);
            let start = Instant::now();
            fs::File::create(format!("{dir}/f{i}")).unwrap();
            times[1].push(start.elapsed().as_secs_f64() * 1e6);
        }
        times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() * 99 / 100]
        })
    })
}
