//! How many requests the kernel sends for one operation: the daemon logs its totals on SIGUSR1.
//!
//! An operation is measured alone, with the attributes of its directory in the kernel's cache, and
//! in a stream of equal operations. The kernel forgets a directory's attributes whenever a name in
//! it changes (docs/measurements.md), so a stream has one GETATTR more for each such operation.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::daemon::wait_for;
use compat_tests::{Daemon, Lab, Node, Subject, report};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

type Counts = BTreeMap<String, u64>;

const DIR: &str = "/etc/pve/count";
const MARK: &str = "FUSE requests:";

struct Counter {
    daemon: RefCell<Daemon>,
    node: Node,
    _lab: Lab,
}

impl Counter {
    fn start() -> Self {
        let (lab, node) = Lab::single();
        let daemon = RefCell::new(Daemon::local(&node, &Subject::ours()));
        Self {
            daemon,
            node,
            _lab: lab,
        }
    }

    /// Requests of each kind since the start; FORGET, which nobody waits for, is left out.
    fn totals(&self) -> Counts {
        let daemon = self.daemon.borrow();
        let lines = || {
            let text = daemon.stderr();
            let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
            let found = complete.lines().filter_map(|l| l.split_once(MARK));
            found.map(|(_, n)| n.to_string()).collect::<Vec<_>>()
        };
        let before = lines().len();
        kill(Pid::from_raw(daemon.pid()), Signal::SIGUSR1).unwrap();
        assert!(
            wait_for(Duration::from_secs(10), || lines().len() > before),
            "no line of totals after SIGUSR1"
        );
        let last = lines().pop().unwrap();
        let pairs = last.split_whitespace().map(|p| p.split_once('=').unwrap());
        pairs
            .filter(|(kind, _)| *kind != "FORGET")
            .map(|(kind, n)| (kind.to_string(), n.parse().unwrap()))
            .collect()
    }

    fn during(&self, work: &(dyn Fn() + Sync)) -> Counts {
        let before = self.totals();
        self.node.inside(work);
        let mut counts = self.totals();
        for (kind, n) in before {
            *counts.get_mut(&kind).unwrap() -= n;
        }
        counts.retain(|_, n| *n > 0);
        counts
    }

    /// Requests of one operation, whose directory's attributes are cached.
    fn once(&self, what: &str, work: &(dyn Fn() + Sync)) -> Counts {
        self.node.inside(|| fs::metadata(DIR).map(drop)).unwrap();
        let counts = self.during(work);
        report(&format!("requests [ours] {what}: {}", shown(&counts, 1)));
        counts
    }

    /// Requests of each of a hundred operations in a row.
    fn stream(&self, what: &str, work: &(dyn Fn(usize) + Sync)) -> Counts {
        const TIMES: u64 = 100;
        let counts = self.during(&|| (0..TIMES as usize).for_each(work));
        let text = shown(&counts, TIMES);
        report(&format!(
            "requests [ours] {what}, each of {TIMES} in a row: {text}"
        ));
        counts
    }
}

fn shown(counts: &Counts, times: u64) -> String {
    let total: u64 = counts.values().sum();
    let number = |n: u64| match n % times {
        0 => (n / times).to_string(),
        _ => format!("{:.2}", n as f64 / times as f64),
    };
    let kinds: Vec<String> = counts
        .iter()
        .map(|(kind, n)| format!("{kind} {}", number(*n)))
        .collect();
    format!("{} ({})", number(total), kinds.join(", "))
        .trim_end_matches(" ()")
        .to_string()
}

/// At most these requests, once each; `|` separates alternatives.
#[track_caller]
fn at_most(counts: &Counts, allowed: &[&str]) {
    let mut left = counts.clone();
    for kinds in allowed {
        if let Some(kind) = kinds.split('|').find(|kind| left.contains_key(*kind)) {
            let n = left.get_mut(kind).unwrap();
            *n -= 1;
            left.retain(|_, n| *n > 0);
        }
    }
    assert!(left.is_empty(), "{counts:?} is more than {allowed:?}");
}

fn in_dir(name: &str) -> String {
    format!("{DIR}/{name}")
}

fn create(name: &str) -> File {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o640);
    options.open(in_dir(name)).unwrap()
}

fn overwrite(name: &str) {
    let mut file = OpenOptions::new().write(true).open(in_dir(name)).unwrap();
    assert_eq!(file.write(&[b'o'; 1024]).unwrap(), 1024);
}

fn replace(name: &str) {
    let mut file = File::create(in_dir(name)).unwrap();
    assert_eq!(file.write(&[b't'; 1024]).unwrap(), 1024);
}

fn temp_and_rename(temp: &str, name: &str) {
    assert_eq!(create(temp).write(&[b'n'; 1024]).unwrap(), 1024);
    fs::rename(in_dir(temp), in_dir(name)).unwrap();
}

fn read(name: &str) {
    // not fs::read, which asks for the size first
    let mut buffer = [0; 4096];
    let mut file = File::open(in_dir(name)).unwrap();
    assert_eq!(file.read(&mut buffer).unwrap(), 1024);
}

mod ours {
    use super::*;

    #[test]
    fn requests_per_operation() {
        let counter = Counter::start();
        let first = counter.during(&|| {
            fs::create_dir(DIR).unwrap();
            for name in ["a", "b", "c"] {
                replace(name);
                read(name);
            }
            assert_eq!(fs::read_dir(DIR).unwrap().count(), 3);
        });
        report(&format!(
            "requests [ours] the first ones after the start: {}",
            shown(&first, 1)
        ));
        let learnt = counter.totals();
        reading(&counter);
        changing(&counter);
        streams(&counter);

        let end = counter.totals();
        for kind in ["OPEN", "OPENDIR", "FLUSH", "RELEASE", "RELEASEDIR"] {
            let of = |counts: &Counts| counts.get(kind).copied().unwrap_or(0);
            let first = u64::from(!kind.starts_with("RELEASE"));
            assert!(of(&end) <= first, "{kind}: {end:?}");
            assert_eq!(of(&end), of(&learnt), "{kind} is answered once for all");
        }
        report(&format!(
            "requests [ours] sum of this test: {}",
            shown(&end, 1)
        ));
        let daemon = counter.daemon.into_inner();
        assert_eq!(daemon.stop().code, 0);
    }

    fn reading(counter: &Counter) {
        let counts = counter.once("open+read+close of a cached file", &|| read("a"));
        at_most(&counts, &[]);
        counter.once("stat of a file after a write to it", &|| {
            assert_eq!(fs::metadata(in_dir("a")).unwrap().len(), 1024);
        });
        let counts = counter.once("stat of a cached file", &|| {
            assert_eq!(fs::metadata(in_dir("a")).unwrap().len(), 1024);
        });
        at_most(&counts, &[]);
        let counts = counter.once("first look at a name that does not exist", &|| {
            assert!(fs::metadata(in_dir("none")).is_err());
        });
        at_most(&counts, &["LOOKUP"]);
        let counts = counter.once("second look at a name that does not exist", &|| {
            assert!(fs::metadata(in_dir("none")).is_err());
            assert!(File::open(in_dir("none")).is_err());
        });
        at_most(&counts, &[]);
        counter.once("listing of a directory", &|| {
            assert_eq!(fs::read_dir(DIR).unwrap().count(), 3);
        });
    }

    fn changing(counter: &Counter) {
        let counts = counter.once("create", &|| drop(create("new")));
        at_most(&counts, &["LOOKUP", "MKNOD|CREATE"]);
        let counts = counter.once("create (O_EXCL) of a name known not to exist", &|| {
            drop(create("none"));
        });
        // the kernel asks again for O_EXCL
        at_most(&counts, &["LOOKUP", "MKNOD|CREATE"]);
        let _ = counter.node.inside(|| fs::metadata(in_dir("none2")));
        let counts = counter.once("create (no O_EXCL) of a name known not to exist", &|| {
            drop(File::create(in_dir("none2")).unwrap());
        });
        at_most(&counts, &["MKNOD|CREATE"]);
        let counts = counter.once("open+write+close of 1 KiB", &|| overwrite("a"));
        at_most(&counts, &["WRITE"]);
        let counts = counter.once("truncating open+write+close of 1 KiB", &|| replace("a"));
        at_most(&counts, &["SETATTR", "WRITE"]);
        let counts = counter.once("one write of 1 MiB", &|| {
            let mut file = OpenOptions::new().write(true).open(in_dir("b")).unwrap();
            assert_eq!(file.write(&vec![b'm'; 1 << 20]).unwrap(), 1 << 20);
        });
        at_most(&counts, &["WRITE"]);
        let counts = counter.once("rename onto a name", &|| {
            fs::rename(in_dir("new"), in_dir("c")).unwrap();
        });
        at_most(&counts, &["LOOKUP", "RENAME"]);
        let counts = counter.once("unlink", &|| fs::remove_file(in_dir("none")).unwrap());
        at_most(&counts, &["LOOKUP", "UNLINK"]);
        let counts = counter.once("mkdir", &|| fs::create_dir(in_dir("dir")).unwrap());
        at_most(&counts, &["LOOKUP", "MKDIR"]);
        let counts = counter.once("rmdir", &|| fs::remove_dir(in_dir("dir")).unwrap());
        at_most(&counts, &["LOOKUP", "RMDIR"]);
    }

    /// Steady streams. The limits allow for the GETATTR that the kernel adds by itself, and for a few
    /// requests at their start.
    fn streams(counter: &Counter) {
        let per = |counts: &Counts, limit: u64| {
            let total: u64 = counts.values().sum();
            assert!(
                total <= limit * 100 + 5,
                "{counts:?} is more than {limit} each"
            );
        };
        let counts = counter.stream("open+read+close of a cached file", &|_| read("a"));
        per(&counts, 0);
        let counts = counter.stream("open+write+close of 1 KiB", &|_| overwrite("a"));
        per(&counts, 1);
        let counts = counter.stream("truncating open+write+close of 1 KiB", &|_| replace("a"));
        per(&counts, 2);
        let counts = counter.stream("create", &|i| drop(create(&format!("s{i}"))));
        per(&counts, 3);
        let counts = counter.stream("rename onto a name", &|i| {
            fs::rename(in_dir(&format!("s{i}")), in_dir("target")).unwrap();
        });
        per(&counts, 3);
        let counts = counter.stream("temp file of 1 KiB plus rename", &|i| {
            temp_and_rename(&format!("target.tmp.{i}"), "target");
        });
        per(&counts, 7);
        let counts = counter.stream("rewrite by rename and read back", &|i| {
            temp_and_rename(&format!("target.tmp.again.{i}"), "target");
            read("target");
        });
        per(&counts, 9);
    }
}

mod reference {
    use super::*;

    #[test]
    fn requests_per_operation() {
        report("SKIPPED requests [reference]: it has no counters of FUSE requests");
    }
}
