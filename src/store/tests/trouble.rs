//! A database that cannot be written for a while.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::trouble::Patience;
use super::*;

const LONG: Duration = Duration::from_secs(10);

fn impatient() -> Patience {
    Patience {
        lock: Duration::from_millis(150),
        caller: Duration::from_millis(450),
        log: Duration::from_millis(50),
        pause: Duration::from_millis(10),
    }
}

impl Lab {
    fn failed(&self) -> bool {
        self.store.errors().load(Ordering::Acquire)
    }

    /// Waits until the errors flag is `value`.
    fn await_flag(&self, value: bool) {
        let start = Instant::now();
        while self.failed() != value {
            assert!(start.elapsed() < LONG, "errors flag is not {value}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn lock(lab: &Lab) -> rusqlite::Connection {
    let foreign = rusqlite::Connection::open(lab.path()).unwrap();
    foreign.busy_timeout(LONG).unwrap();
    foreign.execute_batch("BEGIN EXCLUSIVE").unwrap();
    foreign
}

#[test]
fn a_short_lock_is_waited_for_elsewhere() {
    let mut lab = Lab::new();
    lab.put("file", b"x");
    lab.store.flush();
    let foreign = lock(&lab);
    let start = Instant::now();
    let results: Vec<_> = (0..20)
        .map(|i| {
            lab.start_here(Op::Create {
                path: p(&format!("f{i}")),
            })
        })
        .collect();
    assert!(start.elapsed() < Duration::from_secs(5), "nobody waits");
    std::thread::sleep(Duration::from_millis(100));
    assert!(results.iter().all(|result| result.try_recv().is_err()));
    assert!(!lab.failed());
    foreign.execute_batch("COMMIT").unwrap();
    for result in results {
        assert_eq!(result.recv_timeout(LONG), Ok(Ok(())));
    }
    let (_dir, loaded) = lab.after_crash();
    assert_eq!(loaded.tree.index(), lab.tree.index());
}

#[test]
fn a_long_lock_refuses_new_changes_and_loses_none() {
    let mut lab = Lab::with(impatient());
    lab.put("file", b"x");
    let foreign = lock(&lab);
    let start = Instant::now();
    let (tx, refused) = mpsc::channel();
    lab.store
        .on_refusal(move |change| tx.send(change.inode).unwrap());
    let first = lab.start_here(Op::Create { path: p("first") });
    let second = lab.start_here(Op::Mkdir { path: p("second") });
    lab.await_flag(true);
    assert!(start.elapsed() >= Duration::from_millis(150));
    lab.store.flush();
    assert_eq!(first.recv_timeout(LONG), Ok(Err(Error::Busy)));
    assert!(start.elapsed() >= Duration::from_millis(450));
    assert_eq!(second.recv_timeout(LONG), Ok(Err(Error::Busy)));
    // One that was under way when the flag rose.
    let late = lab.start(Op::Create { path: p("late") });
    assert_eq!(late.recv_timeout(LONG), Ok(Err(Error::Busy)));
    assert!(lab.failed());
    let inodes = ["first", "second", "late"].map(|path| lab.tree.lookup(&p(path)).unwrap());
    assert_eq!(refused.try_iter().collect::<Vec<_>>(), inodes);

    foreign.execute_batch("COMMIT").unwrap();
    lab.await_flag(false);
    lab.store.flush();
    let (_dir, loaded) = lab.after_crash();
    assert_eq!(loaded.tree.index(), lab.tree.index());
    lab.put("file", b"works again");
    lab.overwrite("file", b"and again");
    let (_dir, loaded) = lab.after_crash();
    assert_eq!(loaded.tree.index(), lab.tree.index());
}

#[test]
fn the_end_does_not_wait_for_ever() {
    let mut lab = Lab::with(impatient());
    lab.put("file", b"x");
    let version = lab.tree.root_row().version;
    let foreign = lock(&lab);
    let result = lab.start_here(Op::Create { path: p("lost") });
    assert!(lab.store.shutdown(LONG));
    assert_eq!(result.try_recv(), Ok(Err(Error::Busy)));
    assert!(lab.failed());
    drop(foreign);
    let (_, loaded) = Store::open(&lab.path(), 1).unwrap();
    assert_eq!(loaded.tree.root_row().version, version);
}

/// Fills the disk, makes room again. `room` is called when the database has failed.
fn fill(dir: &Path, room: impl FnOnce()) {
    let (store, loaded) = Store::open(&dir.join("config.db"), 1000).unwrap();
    let mut lab = Lab {
        dir: tempfile::tempdir().unwrap(),
        tree: loaded.tree,
        store: store.spawn_with(impatient()).unwrap(),
    };
    let mut acknowledged = 0;
    let mut result = Ok(());
    for i in 0..200u32 {
        let path = p(&format!("f{i}"));
        let first = lab.start_here(Op::Create { path: path.clone() });
        let data = vec![i as u8; 20_000];
        let second = lab.start_here(Op::Write {
            path,
            offset: 0,
            data,
            truncate: false,
        });
        result = first
            .recv_timeout(LONG)
            .unwrap()
            .and(second.recv_timeout(LONG).unwrap());
        if result.is_err() {
            break;
        }
        acknowledged += 1;
    }
    assert_eq!(
        result,
        Err(Error::Busy),
        "{acknowledged} files were written"
    );
    assert!(acknowledged > 3 && lab.failed());
    // Reads are as good as ever.
    let rows = raw_rows(&dir.join("config.db"));
    assert!(
        rows.iter()
            .any(|row| row[7] == Value::Blob(vec![3; 20_000]))
    );
    room();
    lab.await_flag(false);
    lab.store.flush();
    lab.put("after", b"works again");
    let (_copy, copied) = crash_copy(dir);
    assert_eq!(copied.tree.index(), lab.tree.index());
    assert!(lab.store.shutdown(LONG));
}

fn run(test: &str, wrap: &str) {
    let dir = tempfile::tempdir().unwrap();
    let status = child(test, dir.path(), wrap).status().unwrap();
    assert!(status.success(), "{status}");
}

/// A full file system: SQLITE_FULL.
#[test]
fn a_full_disk_is_waited_for() {
    if let Some(dir) = child_dir() {
        return fill(&dir, || {
            let more = Command::new("mount")
                .args(["-o", "remount,size=16m"])
                .arg(&dir)
                .status();
            assert!(more.unwrap().success());
        });
    }
    run(
        "trouble::a_full_disk_is_waited_for",
        "exec unshare --map-root-user --mount sh -c \
         'mount -t tmpfs -o size=400k tmpfs \"$PMXCFS_STORE_TEST_CHILD\" && exec \"$@\"' sh \"$@\"",
    );
}

/// Writes that fail: SQLITE_IOERR.
#[test]
fn failing_writes_are_waited_for() {
    if let Some(dir) = child_dir() {
        return fill(&dir, || {
            let unlimited = rustix::process::Rlimit {
                current: None,
                maximum: None,
            };
            rustix::process::setrlimit(rustix::process::Resource::Fsize, unlimited).unwrap();
        });
    }
    // 400 KiB; whatever the limit counts in (512 or 1024 bytes), it fails before the 200th file.
    run(
        "trouble::failing_writes_are_waited_for",
        "trap '' XFSZ; ulimit -S -f 400; exec \"$@\"",
    );
}
