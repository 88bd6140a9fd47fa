//! The store thread.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::commit;
use super::*;
use crate::memdb::tests::model::{DIRS, any_op};

#[test]
fn acknowledged_changes_are_there_after_a_crash() {
    let mut lab = Lab::new();
    for i in 0..50 {
        lab.put(&format!("file{}", i % 7), format!("content {i}").as_bytes());
        if i % 10 == 0 {
            let (_dir, loaded) = lab.after_crash();
            assert_eq!(loaded.tree.index(), lab.tree.index());
        }
    }
}

#[test]
fn changes_that_wait_together_are_one_transaction() {
    let mut lab = Lab::new();
    // Keeps the thread waiting until all of the next changes are queued.
    let foreign = rusqlite::Connection::open(lab.path()).unwrap();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    let first = lab.start(Op::Mkdir { path: p("first") });
    std::thread::sleep(Duration::from_millis(50));
    let mut results = vec![first];
    for op in [
        Op::Create { path: p("a") },
        Op::Write {
            path: p("a"),
            offset: 0,
            data: b"one".to_vec(),
            truncate: false,
        },
        Op::Write {
            path: p("a"),
            offset: 3,
            data: b"two".to_vec(),
            truncate: false,
        },
        Op::Create { path: p("b") },
        Op::Rename {
            from: p("a"),
            to: p("b"),
        },
        Op::Create { path: p("gone") },
        Op::Delete { path: p("gone") },
        Op::SetMtime {
            path: p("first"),
            mtime: 7,
        },
        Op::Mkdir { path: p("dir") },
        Op::Delete { path: p("dir") },
        Op::Mkdir { path: p("dir") },
    ] {
        results.push(lab.start(op));
    }
    foreign.execute_batch("COMMIT").unwrap();
    for result in results {
        result
            .recv_timeout(Duration::from_secs(5))
            .unwrap()
            .unwrap();
    }
    lab.store.flush();
    let (_dir, loaded) = lab.after_crash();
    assert_eq!(loaded.tree.index(), lab.tree.index());
    assert_eq!(loaded.tree.read(&p("b")).unwrap()[..], *b"onetwo");
    assert_eq!(loaded.tree.len(), 4);
}

#[test]
fn tickets_come_in_order() {
    let mut lab = Lab::new();
    let (tx, rx) = mpsc::channel();
    for i in 0..200 {
        let change = lab
            .tree
            .apply_local(
                &Op::Create {
                    path: p(&format!("f{i}")),
                },
                1,
                1,
            )
            .unwrap();
        let tx = tx.clone();
        lab.store.enqueue(
            change,
            Box::new(move |result| tx.send((i, result)).unwrap()),
        );
    }
    lab.store.flush();
    let got: Vec<_> = rx.try_iter().collect();
    assert_eq!(got, (0..200).map(|i| (i, Ok(()))).collect::<Vec<_>>());
}

#[test]
fn a_failed_write_refuses_all_that_follow() {
    let mut lab = Lab::new();
    lab.put("before", b"x");
    rusqlite::Connection::open(lab.path())
        .unwrap()
        .execute_batch(
            "CREATE TRIGGER full BEFORE INSERT ON tree WHEN NEW.name = 'bad' \
             BEGIN SELECT RAISE(ABORT, 'disk full'); END",
        )
        .unwrap();
    assert!(!lab.store.errors().load(Ordering::Acquire));
    let bad = lab.start(Op::Create { path: p("bad") });
    assert_eq!(bad.recv().unwrap(), Err(Error::Io));
    assert!(lab.store.errors().load(Ordering::Acquire));
    let after = lab.start(Op::Create { path: p("after") });
    assert_eq!(after.recv().unwrap(), Err(Error::Io));
    assert!(lab.store.shutdown(Duration::from_secs(5)));
    let refused = lab.start(Op::Create { path: p("late") });
    assert_eq!(refused.recv().unwrap(), Err(Error::Io));
    let names: Vec<Value> = raw_rows(&lab.path())
        .into_iter()
        .map(|mut row| row.remove(6))
        .collect();
    assert_eq!(
        names,
        [
            Value::Blob(b"__version__".to_vec()),
            Value::Blob(b"before".to_vec())
        ]
    );
}

#[test]
fn shutdown_writes_all_and_leaves_only_the_database() {
    let mut lab = Lab::new();
    let mut last = None;
    for i in 0..100 {
        last = Some(lab.start(Op::Create {
            path: p(&format!("f{i}")),
        }));
    }
    assert!(lab.store.shutdown(Duration::from_secs(5)));
    assert_eq!(last.unwrap().try_recv(), Ok(Ok(())));
    assert!(!lab.dir.path().join("config.db-wal").exists());
    assert!(!lab.dir.path().join("config.db-shm").exists());
    let (_, loaded) = Store::open(&lab.path(), 1).unwrap();
    assert_eq!(loaded.tree.index(), lab.tree.index());
}

/// Shutdown is bounded although a foreign process holds a lock.
#[test]
fn shutdown_is_bounded() {
    let mut lab = Lab::new();
    let foreign = rusqlite::Connection::open(lab.path()).unwrap();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    let result = lab.start(Op::Create { path: p("f") });
    let start = Instant::now();
    assert!(!lab.store.shutdown(Duration::from_millis(100)));
    assert!(start.elapsed() < Duration::from_secs(2));
    foreign.execute_batch("ROLLBACK").unwrap();
    assert!(lab.store.shutdown(Duration::from_secs(10)));
    assert_eq!(result.recv().unwrap(), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]

    /// However the changes are grouped, the database is the tree.
    #[test]
    fn any_grouping_stores_the_tree(batches in vec(vec(any_op(), 1..40), 1..6)) {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("config.db");
        let (store, Loaded { mut tree, .. }) = Store::open(&db, 1).unwrap();
        let setup = DIRS.iter().map(|path| Op::Mkdir { path: p(path) }).collect();
        for batch in std::iter::once(setup).chain(batches) {
            let changes: Vec<Change> =
                batch.iter().filter_map(|op| tree.apply_local(op, 7, 7).ok()).collect();
            store.commit(&changes).unwrap();
        }
        store.close().unwrap();
        let rows: Vec<_> = raw_rows(&db).iter().map(|row| row[0].clone()).collect();
        prop_assert_eq!(rows.len(), tree.len());
        let (_store, again) = Store::open(&db, 2).unwrap();
        prop_assert_eq!(again.tree.index(), tree.index());
        prop_assert!(again.tree.guests().eq(tree.guests()));
    }
}

/// The C daemon loses everything after this (database.md 2): a foreign process that reads the
/// database beside it takes itself for the last user and removes the log.
#[test]
fn a_foreign_reader_takes_nothing_away() {
    let mut lab = Lab::new();
    for round in 0..3 {
        lab.put("before", format!("round {round}").as_bytes());
        for sql in ["SELECT count(*) FROM tree", ".dump"] {
            let out = Command::new("sqlite3")
                .arg(lab.path())
                .arg(sql)
                .output()
                .unwrap();
            assert!(
                out.status.success(),
                "{}",
                String::from_utf8_lossy(&out.stderr)
            );
            assert!(!out.stdout.is_empty());
        }
        assert!(lab.dir.path().join("config.db-wal").exists());
        lab.put("after", format!("round {round}").as_bytes());
        let (_dir, loaded) = lab.after_crash();
        assert_eq!(loaded.tree.index(), lab.tree.index(), "round {round}");
    }
}

/// The log does not grow without bound, although SQLite's own checkpoints are off.
#[test]
fn the_log_is_moved_into_the_database() {
    let mut lab = Lab::new();
    for i in 0..40 {
        lab.put("big", &vec![i as u8; 1 << 20]);
    }
    lab.store.flush();
    let wal = std::fs::metadata(lab.dir.path().join("config.db-wal"))
        .unwrap()
        .len();
    assert!(wal < 8 << 20, "log has {wal} bytes");
    let (_dir, loaded) = lab.after_crash();
    assert_eq!(loaded.tree.index(), lab.tree.index());
}

/// What is written again does not go into the log twice (the C daemon's does), and of what stays
/// the same next to nothing goes.
#[test]
fn an_overwrite_logs_only_what_changes() {
    let mut lab = Lab::new();
    lab.put("big", &vec![1; 512 << 10]);
    let wal = lab.dir.path().join("config.db-wal");
    let length = || std::fs::metadata(&wal).unwrap().len();
    let mut logged = |offset: usize, data: Vec<u8>, truncate| {
        lab.store.flush();
        let before = length();
        lab.run(Op::Write {
            path: p("big"),
            offset: offset as u64,
            data,
            truncate,
        });
        let (_dir, loaded) = lab.after_crash();
        assert_eq!(loaded.tree.index(), lab.tree.index());
        (length() - before) / 4096
    };
    let pages = 128;
    assert!(
        logged(0, vec![2; 512 << 10], false) <= pages + 4,
        "same length"
    );
    assert!(logged(8192, vec![3; 4096], false) <= 6, "a part of it");
    assert!(logged(0, vec![4; 500_000], true) <= pages + 4, "shorter");
    assert!(
        logged(500_000, vec![5; 100], false) <= pages + 4,
        "a little longer"
    );
    assert!(logged(0, vec![6; 100], true) <= pages + 4, "much shorter");
}

/// Not a limit, a number to look at: one committed change of two rows, with and without the thread.
#[test]
fn prints_the_time_of_a_change() {
    let rounds = 2000;
    let op = |i: usize| {
        let data = vec![i as u8; 1024];
        Op::Write {
            path: p("file"),
            offset: 0,
            data,
            truncate: false,
        }
    };
    let mut lab = Lab::new();
    lab.put("file", &[7; 1024]);
    let mut times = Vec::new();
    for i in 0..rounds {
        let start = Instant::now();
        lab.run(op(i));
        times.push(start.elapsed());
    }
    print_times("overwrite of 1 KiB, thread", times);

    assert!(lab.store.shutdown(Duration::from_secs(5)));
    let (store, mut loaded) = Store::open(&lab.path(), 1).unwrap();
    let mut writer = commit::Writer::new(&store.conn).unwrap();
    let mut times = Vec::new();
    for i in 0..rounds {
        let change = loaded.tree.apply_local(&op(i), 1, 1).unwrap();
        let start = Instant::now();
        writer
            .commit([commit::Write::Change(&change)].into_iter())
            .unwrap();
        times.push(start.elapsed());
    }
    print_times("overwrite of 1 KiB, transaction only", times);
}

fn print_times(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let (median, high) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("store: {what}: median {median:?}, 99 % {high:?}");
}
