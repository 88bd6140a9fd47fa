//! Latency of changes: medians of single operations. All processes share one CPU, so a number
//! holds the work of the caller, of the kernel and of the daemon; rounds of the daemons alternate.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use common::{before_others, headline, line, one_cpu, stop, subjects};
use compat_tests::report::median;
use compat_tests::{Daemon, Lab, report};
use rusqlite::{Connection, params};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

mod common;

const ROUNDS: usize = 30;
const TIMES: usize = 100;
const DIR: &str = "/etc/pve/latency";
const DATA: [u8; 1024] = [b'l'; 1024];

/// The operations, in the order of [`operations`]: name, requests and transactions that one of them
/// needs in a stream of its like (`tests/fuse_requests.rs`). The last one is only a round trip.
const OPERATIONS: [(&str, u32, u32); 8] = [
    ("create", 3, 1),
    ("overwrite of 1 KiB (pwrite)", 1, 1),
    ("open+write+close of 1 KiB", 1, 1),
    ("truncating open+write+close of 1 KiB", 2, 2),
    ("temp file of 1 KiB plus rename", 7, 3),
    ("mkdir", 3, 1),
    ("unlink", 2, 1),
    ("look-up of an unknown name", 1, 0),
];

fn timed(times: &mut Vec<f64>, mut work: impl FnMut(usize)) {
    for i in 0..TIMES {
        let start = Instant::now();
        work(i);
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
}

fn new_file(path: &str) -> File {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).open(path).unwrap()
}

/// One round on the daemon of this node; microseconds are appended to `times`.
fn operations(round: usize, times: &mut [Vec<f64>]) {
    let path = |i: usize| format!("{DIR}/f{i}");
    timed(&mut times[0], |i| drop(new_file(&path(i))));
    let file = OpenOptions::new().write(true).open(path(0)).unwrap();
    timed(&mut times[1], |_| {
        assert_eq!(file.write_at(&DATA, 0).unwrap(), DATA.len());
    });
    drop(file);
    timed(&mut times[2], |_| {
        let mut file = OpenOptions::new().write(true).open(path(0)).unwrap();
        assert_eq!(file.write(&DATA).unwrap(), DATA.len());
    });
    timed(&mut times[3], |_| {
        let mut file = File::create(path(0)).unwrap();
        assert_eq!(file.write(&DATA).unwrap(), DATA.len());
    });
    let temp = format!("{DIR}/f1.tmp.4711");
    timed(&mut times[4], |_| {
        assert_eq!(new_file(&temp).write(&DATA).unwrap(), DATA.len());
        fs::rename(&temp, path(1)).unwrap();
    });
    timed(&mut times[5], |i| {
        fs::create_dir(format!("{DIR}/d{i}")).unwrap()
    });
    timed(&mut times[6], |i| fs::remove_file(path(i)).unwrap());
    for i in 0..TIMES {
        fs::remove_dir(format!("{DIR}/d{i}")).unwrap();
    }
    timed(&mut times[7], |i| {
        assert!(fs::metadata(format!("{DIR}/unknown-{round}-{i}")).is_err());
    });
}

/// A database like the daemon's, on the same file system, for transactions without a daemon.
struct Bare(Connection);

impl Bare {
    fn open(path: &Path) -> Self {
        let db = Connection::open(path).unwrap();
        db.pragma_update(None, "journal_mode", "WAL").unwrap();
        db.pragma_update(None, "synchronous", "NORMAL").unwrap();
        db.execute_batch(
            "CREATE TABLE tree (inode INTEGER PRIMARY KEY NOT NULL, parent INTEGER NOT NULL \
             CHECK(typeof(parent)=='integer'), version INTEGER NOT NULL, writer INTEGER NOT NULL, \
             mtime INTEGER NOT NULL, type INTEGER NOT NULL, name TEXT NOT NULL, data BLOB);",
        )
        .unwrap();
        Self(db)
    }

    /// Transactions of two rows: the version row and a file of 1 KiB.
    fn round(&self, times: &mut Vec<f64>) {
        let row = "INSERT OR REPLACE INTO tree VALUES (?1, 0, ?2, 1, 1700000000, ?3, ?4, ?5)";
        let prepare = |sql| self.0.prepare(sql).unwrap();
        let (mut begin, mut row, mut commit) = (prepare("BEGIN"), prepare(row), prepare("COMMIT"));
        timed(times, |i| {
            begin.execute([]).unwrap();
            row.execute(params![0, i as i64, 8, "__version__", None::<&[u8]>])
                .unwrap();
            row.execute(params![7, i as i64, 8, "file.cfg", &DATA[..]])
                .unwrap();
            commit.execute([]).unwrap();
        });
    }
}

fn main() {
    one_cpu();
    before_others();
    let subjects = subjects();
    headline(&format!(
        "latency of changes, one CPU, medians of {} each",
        ROUNDS * TIMES
    ));
    let lab = Lab::new(subjects.len());
    let start = |(i, subject)| (lab.node(i + 1), Daemon::local(&lab.node(i + 1), subject));
    let daemons: Vec<_> = subjects.iter().enumerate().map(start).collect();
    for (node, _) in &daemons {
        node.inside(|| fs::create_dir(DIR)).unwrap();
    }
    let bare = Bare::open(&daemons[0].0.dir.join("bare.db"));
    let mut transactions = Vec::new();
    let mut times = vec![vec![Vec::new(); OPERATIONS.len()]; daemons.len()];
    for round in 0..ROUNDS {
        for ((node, _), times) in daemons.iter().zip(&mut times) {
            node.inside(|| operations(round, times));
        }
        bare.round(&mut transactions);
    }
    let round_trip = median(&times[0][OPERATIONS.len() - 1]);
    let transaction = median(&transactions);
    report(&format!(
        "floor: a round trip of FUSE (a look-up) {round_trip:.2} us, a bare SQLite transaction of two rows \
         {transaction:.2} us"
    ));
    for (index, (name, requests, commits)) in OPERATIONS.iter().enumerate() {
        let reference = times.get(1).map(|t| median(&t[index]));
        let floor = f64::from(*requests) * round_trip + f64::from(*commits) * transaction;
        let what =
            format!("{name} (floor {floor:.2} us: requests {requests}, transactions {commits})");
        line(&what, "us", median(&times[0][index]), reference);
    }
    for ((_, daemon), subject) in daemons.into_iter().zip(&subjects) {
        stop(daemon, subject);
    }
}
