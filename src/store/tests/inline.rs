//! Changes written by the thread that brings them.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::*;
use crate::store::queue::LAZY;

fn write_op(path: &str, data: &[u8]) -> Op {
    Op::Write {
        path: p(path),
        offset: 0,
        data: data.to_vec(),
        truncate: true,
    }
}

/// Name of the thread that called the ticket.
fn thread_of(lab: &mut Lab, op: Op) -> Option<String> {
    let change = lab.tree.apply_local(&op, 1, 1).unwrap();
    let (tx, rx) = mpsc::channel();
    let ticket = move |result: Result<(), Error>| {
        result.unwrap();
        let name = thread::current().name().map(str::to_owned);
        tx.send(name).unwrap();
    };
    lab.store.queue(change, Box::new(ticket)).write();
    rx.recv().unwrap()
}

#[test]
fn small_changes_are_written_here_and_the_rest_by_the_store_thread() {
    let mut lab = Lab::new();
    let here = thread::current().name().map(str::to_owned);
    let store = Some("store".to_owned());
    let create = Op::Create { path: p("file") };
    assert_eq!(thread_of(&mut lab, create), store, "may start a new log");
    lab.store.flush();
    let small = (0..20u8).map(|i| thread_of(&mut lab, write_op("file", &[i; 1024])));
    // All but those for which the store thread was just at something.
    assert!(small.filter(|name| *name == here).count() > 15);
    assert_eq!(thread_of(&mut lab, write_op("file", &[0; 300_000])), store);
    let (_dir, loaded) = lab.after_crash();
    assert_eq!(loaded.tree.index(), lab.tree.index());
}

#[test]
fn a_change_that_nobody_takes_care_of_is_written_all_the_same() {
    let mut lab = Lab::new();
    lab.put("file", b"x");
    for _ in 0..100 {
        let change = lab.tree.apply_local(&write_op("file", b"y"), 1, 1).unwrap();
        let (tx, rx) = mpsc::channel();
        drop(
            lab.store
                .queue(change, Box::new(move |r| tx.send(r).unwrap())),
        );
        assert_eq!(rx.recv_timeout(Duration::from_secs(5)), Ok(Ok(())));
    }
}

#[test]
fn after_the_end_changes_are_refused() {
    let mut lab = Lab::new();
    assert!(lab.store.shutdown(Duration::from_secs(5)));
    let refused = lab.start_here(Op::Create { path: p("late") });
    assert_eq!(refused.try_recv(), Ok(Err(Error::Io)));
}

/// A ticket may bring the next change, and a bug in one ticket costs nobody else anything.
#[test]
fn tickets_may_queue_and_may_panic() {
    let mut lab = Lab::new();
    lab.put("file", b"x");
    let first = lab.tree.apply_local(&write_op("file", b"1"), 1, 1).unwrap();
    let second = lab.tree.apply_local(&write_op("file", b"2"), 1, 1).unwrap();
    let (tx, rx) = mpsc::channel();
    let store = lab.store.clone();
    let ticket = move |_: Result<(), Error>| {
        store
            .queue(second, Box::new(move |r| tx.send(r).unwrap()))
            .write();
        panic!("this one is on purpose");
    };
    lab.store.queue(first, Box::new(ticket)).write();
    assert_eq!(rx.recv_timeout(Duration::from_secs(5)), Ok(Ok(())));
    let (_dir, loaded) = lab.after_crash();
    assert_eq!(loaded.tree.index(), lab.tree.index());
}

const THREADS: usize = 8;
const CHANGES: usize = 300;

/// One of many threads: changes under the lock of the tree, as a replica does.
fn work(number: usize, tree: &RwLock<Tree>, store: &StoreHandle, called: &Arc<Mutex<Vec<u64>>>) {
    for i in 0..CHANGES {
        let size = if i % 97 == 96 { 70_000 } else { i * 7 % 3000 };
        let op = match i % 50 {
            0 => Op::Create {
                path: p(&format!("f{number}-{i}")),
            },
            _ => write_op(&format!("f{number}-{}", i / 50 * 50), &vec![i as u8; size]),
        };
        let (tx, rx) = mpsc::channel();
        let mut guard = tree.write();
        let change = guard.apply_local(&op, 7, 7).unwrap();
        let version = change.root.version;
        let called = Arc::clone(called);
        let ticket = move |result: Result<(), Error>| {
            result.unwrap();
            called.lock().push(version);
            tx.send(()).unwrap_or(());
        };
        if (i + number) % 5 == 0 {
            store.enqueue(change, Box::new(ticket));
            drop(guard);
        } else {
            let queued = store.queue(change, Box::new(ticket));
            drop(guard);
            queued.write();
        }
        // Most wait for the answer as a client does; some have several changes under way.
        if i % 3 != 0 {
            rx.recv_timeout(Duration::from_secs(20))
                .expect("lost ticket");
        }
    }
}

#[test]
fn many_threads_no_ticket_is_lost_and_all_come_in_order() {
    let Lab { dir, tree, store } = Lab::new();
    let start = tree.root_row().version;
    let tree = Arc::new(RwLock::new(tree));
    let called: Arc<Mutex<Vec<u64>>> = Arc::default();
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (tree, store, called) = (&tree, &store, &called);
            scope.spawn(move || work(number, tree, store, called));
        }
        // Now and then the world stops, and the files are copied as a power failure leaves them.
        for _ in 0..10 {
            thread::sleep(Duration::from_millis(20));
            let guard = tree.write();
            store.flush();
            let (_copy, loaded) = crash_copy(dir.path());
            assert_eq!(loaded.tree.index(), guard.index());
        }
    });
    store.flush();
    let all: Vec<u64> = (0..(THREADS * CHANGES) as u64)
        .map(|i| start + 1 + i)
        .collect();
    assert_eq!(*called.lock(), all);
    let (_copy, loaded) = crash_copy(dir.path());
    assert_eq!(loaded.tree.index(), tree.read().index());
}

/// What was acknowledged survives a kill at any moment.
#[test]
fn acknowledged_changes_survive_a_kill() {
    if let Some(dir) = child_dir() {
        return write_until_killed(&dir);
    }
    for round in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let mut child = child(
            "inline::acknowledged_changes_survive_a_kill",
            dir.path(),
            "exec \"$@\"",
        )
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
        let versions = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .filter_map(|line| {
                line.unwrap()
                    .strip_prefix("v")
                    .and_then(|v| v.parse::<u64>().ok())
            });
        let mut last = 0;
        for (count, version) in versions.enumerate() {
            last = last.max(version);
            if count == 300 + round * 777 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(last > 100);
        let (_store, loaded) = Store::open(&dir.path().join("config.db"), 1).unwrap();
        let found = loaded.tree.root_row().version;
        assert!(
            found >= last,
            "{found} in the database, {last} acknowledged"
        );
        assert!(
            found <= last + THREADS as u64 + 1,
            "never ahead of what was asked for"
        );
    }
}

fn write_until_killed(dir: &Path) {
    let (store, Loaded { tree, .. }) = Store::open(&dir.join("config.db"), 1).unwrap();
    let store = store.spawn().unwrap();
    let tree = RwLock::new(tree);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (tree, store) = (&tree, &store);
            scope.spawn(move || {
                let path = format!("f{number}");
                for i in 0u64.. {
                    let op = match i {
                        0 => Op::Create { path: p(&path) },
                        _ => write_op(&path, &vec![i as u8; (i * 11 % 2000) as usize]),
                    };
                    let (tx, rx) = mpsc::channel();
                    let mut guard = tree.write();
                    let change = guard.apply_local(&op, 7, 7).unwrap();
                    let version = change.root.version;
                    let ticket = move |result: Result<(), Error>| {
                        result.unwrap();
                        let line = format!("v{version}\n");
                        std::io::stdout().write_all(line.as_bytes()).unwrap();
                        tx.send(()).unwrap();
                    };
                    let queued = store.queue(change, Box::new(ticket));
                    drop(guard);
                    queued.write();
                    rx.recv().unwrap();
                }
            });
        }
    });
}

/// A change that nobody waits for, and how it went.
fn lazily(lab: &mut Lab, op: Op) -> mpsc::Receiver<Result<(), Error>> {
    let change = lab.tree.apply_local(&op, 1, 1).unwrap();
    let (tx, rx) = mpsc::channel();
    lab.store
        .enqueue_lazily(change, Box::new(move |r| tx.send(r).unwrap()));
    rx
}

#[test]
fn what_nobody_waits_for_is_written_soon_and_in_order() {
    let mut lab = Lab::new();
    lab.put("file", b"x");
    lab.store.flush();
    // By itself.
    let begin = Instant::now();
    let alone = lazily(&mut lab, write_op("file", b"y"));
    let result = alone.try_recv();
    if begin.elapsed() < LAZY {
        assert_eq!(result, Err(mpsc::TryRecvError::Empty));
        assert_eq!(alone.recv_timeout(Duration::from_secs(5)), Ok(Ok(())));
    }
    // By a flush.
    let flushed = lazily(&mut lab, write_op("file", b"yy"));
    lab.store.flush();
    assert_eq!(flushed.try_recv(), Ok(Ok(())));
    // With what is waited for, whoever writes that.
    for i in 0..200u8 {
        let before = lazily(&mut lab, write_op("file", &[i; 100]));
        let change = lab.tree.apply_local(&write_op("file", b"z"), 1, 1).unwrap();
        let (tx, rx) = mpsc::channel();
        lab.store
            .put(change, Box::new(move |r| tx.send(r).unwrap()));
        lab.store.write();
        assert_eq!(rx.recv_timeout(Duration::from_secs(5)), Ok(Ok(())));
        assert_eq!(before.try_recv(), Ok(Ok(())));
    }
    // In large numbers, without a pause of 10 ms after each 256.
    let all: Vec<_> = (0..5000u32)
        .map(|i| lazily(&mut lab, write_op("file", &i.to_le_bytes())))
        .collect();
    for one in all {
        assert_eq!(one.recv_timeout(Duration::from_secs(5)), Ok(Ok(())));
    }
    let (_dir, loaded) = lab.after_crash();
    assert_eq!(loaded.tree.index(), lab.tree.index());
}

#[test]
fn what_nobody_waits_for_is_written_by_the_end() {
    let mut lab = Lab::new();
    lab.put("file", b"x");
    let last = lazily(&mut lab, write_op("file", b"last"));
    assert!(lab.store.shutdown(Duration::from_secs(5)));
    assert_eq!(last.try_recv(), Ok(Ok(())));
    let refused = lazily(&mut lab, write_op("file", b"late"));
    assert_eq!(refused.try_recv(), Ok(Err(Error::Io)));
}
