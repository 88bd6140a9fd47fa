//! How many requests the kernel sends to the daemon for an operation, counted by the kernel's own
//! trace points (`fuse_request_send`, Linux 6.11 and later).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::{Daemon, Lab, Node, Subject, on_both, report};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

on_both!(requests_per_operation);

const COUNT: usize = 100;

/// A trace buffer of our own that records the requests of one mount.
struct Trace {
    node: Node,
    dir: PathBuf,
}

impl Trace {
    /// `None` when this kernel has no such trace point.
    fn new(node: &Node) -> Option<Self> {
        let (code, _) = node.sh(
            "[ -d /sys/kernel/tracing/events ] || mount -t tracefs nodev /sys/kernel/tracing; \
             [ -d /sys/kernel/tracing/events/fuse/fuse_request_send ]",
        );
        if code != 0 {
            return None;
        }
        // the lab's number makes the name unique on this machine
        let name = node.dir.parent().unwrap().file_name().unwrap();
        let dir = PathBuf::from("/sys/kernel/tracing/instances").join(name);
        let trace = Self {
            node: node.clone(),
            dir,
        };
        let device = node.inside(|| fs::metadata("/etc/pve").unwrap().dev());
        node.inside(|| {
            fs::create_dir(&trace.dir).unwrap();
            let event = trace.dir.join("events/fuse/fuse_request_send");
            fs::write(event.join("filter"), format!("connection == {device}")).unwrap();
            fs::write(event.join("enable"), "1").unwrap();
        });
        Some(trace)
    }

    /// Requests by name, made by `work`, which runs inside the node.
    fn requests(&self, work: impl FnOnce() + Send) -> BTreeMap<String, usize> {
        let text = self.node.inside(|| {
            // what the preparation still had under way (RELEASE) must not be counted
            std::thread::sleep(std::time::Duration::from_millis(50));
            fs::write(self.dir.join("trace"), "").unwrap();
            work();
            fs::read_to_string(self.dir.join("trace")).unwrap()
        });
        let mut counts = BTreeMap::new();
        for line in text.lines().filter(|l| l.contains("fuse_request_send:")) {
            let name = line
                .split("(FUSE_")
                .nth(1)
                .and_then(|r| r.split(')').next());
            *counts
                .entry(name.unwrap_or("unknown").to_string())
                .or_insert(0) += 1;
        }
        counts
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.node.inside(|| {
            let _ = fs::write(self.dir.join("events/fuse/fuse_request_send/enable"), "0");
            let _ = fs::remove_dir(&self.dir);
        });
    }
}

/// Each repetition has a directory of its own: after a change the kernel asks for the attributes of
/// the directory again, and that request is none of the next change's.
fn path(name: &str, i: usize) -> String {
    format!("/etc/pve/requests/{name}{i}/{name}")
}

fn prepare() {
    for i in 0..COUNT {
        for name in ["read", "over", "trunc", "target", "missing", "new"] {
            fs::create_dir_all(Path::new(&path(name, i)).parent().unwrap()).unwrap();
        }
        for name in ["read", "over", "trunc", "target"] {
            fs::write(path(name, i), [b'x'; 1024]).unwrap();
        }
        fs::write(path("target", i) + ".tmp", [b'y'; 1024]).unwrap();
        assert_eq!(fs::read(path("read", i)).unwrap().len(), 1024);
        assert!(fs::metadata(path("missing", i)).is_err());
    }
    // the kernel knows every directory and file now, and after this their attributes, too
    for i in 0..COUNT {
        for name in ["read", "over", "trunc", "target", "missing", "new"] {
            fs::metadata(Path::new(&path(name, i)).parent().unwrap()).unwrap();
            let _ = fs::metadata(path(name, i));
        }
    }
}

fn open(path: &str) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

/// One operation, `COUNT` times: its name, the most requests it may take, and what it does.
type Operation = (&'static str, usize, fn(usize));

const OPERATIONS: [Operation; 8] = [
    ("open+read+close, cached", 0, |i| {
        let mut buffer = [0; 2048];
        let mut file = File::open(path("read", i)).unwrap();
        assert_eq!(file.read(&mut buffer).unwrap(), 1024);
    }),
    ("stat, cached", 0, |i| {
        assert_eq!(fs::metadata(path("read", i)).unwrap().len(), 1024)
    }),
    ("stat of a name known to be missing", 0, |i| {
        assert!(fs::metadata(path("missing", i)).is_err());
    }),
    ("create", 2, |i| {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path("new", i))
            .unwrap();
    }),
    ("overwrite of 1 KiB", 1, |i| {
        assert_eq!(
            open(&path("over", i)).write_at(&[b'y'; 1024], 0).unwrap(),
            1024
        );
    }),
    ("truncating overwrite", 2, |i| {
        let file = File::create(path("trunc", i)).unwrap();
        assert_eq!(file.write_at(&[b'z'; 1024], 0).unwrap(), 1024);
    }),
    ("rename onto a name", 2, |i| {
        fs::rename(path("target", i) + ".tmp", path("target", i)).unwrap()
    }),
    // attributes of the directory and of the file, and the page that was only partly written
    ("read after the rename", 3, |i| {
        assert_eq!(fs::read(path("target", i)).unwrap().len(), 1024);
    }),
];

fn requests_per_operation(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    let Some(trace) = Trace::new(&node) else {
        report(&format!(
            "SKIPPED fuse_requests [{}]: this kernel has no trace point fuse_request_send",
            subject.name()
        ));
        return;
    };
    node.inside(prepare);
    let mut failures = Vec::new();
    for (name, limit, operation) in OPERATIONS {
        let counts = trace.requests(|| (0..COUNT).for_each(operation));
        let each = |n: &usize| *n as f64 / COUNT as f64;
        let total: usize = counts.values().sum();
        let list: Vec<String> = counts
            .iter()
            .map(|(name, n)| format!("{name} {:.2}", each(n)))
            .collect();
        let line = format!(
            "{name}: {:.2} requests, at most {limit} ({})",
            each(&total),
            list.join(", ")
        );
        report(&format!("fuse requests [{}] {line}", subject.name()));
        // a request or two of somebody else (a shell's look at its directory) is no defect
        if total > limit * COUNT + 2 || counts.contains_key("FLUSH") {
            failures.push(line);
        }
    }
    if subject.is_ours() {
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
    drop(trace);
    drop(daemon);
}
