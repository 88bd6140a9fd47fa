//! Stale locks of a cluster: what HA does to take one over, on all nodes at once.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/cluster.rs"]
mod cluster;

use cluster::{Assignment, Cluster, VISIBLE};
use compat_tests::report;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use std::fs;
use std::ops::Range;
use std::sync::Barrier;
use std::time::{Duration, Instant};

mod ours {
    #[test]
    fn stale_locks() {
        super::stale_locks(&super::Assignment::ours());
    }
}

mod mixed {
    /// Each takes the two minutes that a lock lives: one with the lowest node ours, one with it not.
    #[test]
    fn stale_locks() {
        let name = concat!(module_path!(), "::stale_locks");
        super::cluster::matrix_of(name, "ORO ROR RRR", super::stale_locks);
    }
}

const LOCKS: usize = 50;
/// A lock may be taken away when it is older than 120 s; ages are counted in whole seconds.
const STALE: Duration = Duration::from_secs(123);

fn path(lock: usize) -> String {
    format!("/etc/pve/priv/lock/l{lock}")
}

/// As HA does: mkdir, if that fails utime(0, 0), and mkdir again at once. Got it?
fn take_over(lock: usize) -> bool {
    let path = path(lock);
    if fs::create_dir(&path).is_ok() {
        return true;
    }
    let zero = TimeSpec::new(0, 0);
    // Whoever asks does not look at the result.
    let _ = utimensat(
        AT_FDCWD,
        path.as_str(),
        &zero,
        &zero,
        UtimensatFlags::FollowSymlink,
    );
    fs::create_dir(&path).is_ok()
}

/// Stale locks are taken over at the first attempt: those that all nodes want at the same moment by
/// one of them, and those that only one node wants, while the others are at work on theirs. With
/// the reference many are taken by nobody, as it answers utime before the lock is gone.
fn stale_locks(who: &Assignment) {
    let cluster = Cluster::new(who);
    // Of 2 * LOCKS the second half is wanted by one node each.
    let wanted = |i: usize, lock: usize| lock < LOCKS || lock % 3 + 1 == i;
    for i in 1..=3 {
        cluster.on(i, || {
            fs::create_dir_all("/etc/pve/priv/lock").unwrap();
            (0..2 * LOCKS)
                .filter(|lock| (lock + 1) % 3 + 1 == i)
                .for_each(|lock| fs::create_dir(path(lock)).unwrap());
        });
    }
    let made = Instant::now();
    cluster.same_trees(VISIBLE);
    std::thread::sleep(STALE.saturating_sub(made.elapsed()));
    let barrier = Barrier::new(3);
    let taken: Vec<Vec<bool>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=3)
            .map(|i| {
                let (node, barrier) = (cluster.node(i), &barrier);
                scope.spawn(move || {
                    node.enter();
                    (0..2 * LOCKS)
                        .map(|lock| {
                            if lock < LOCKS {
                                barrier.wait();
                            }
                            wanted(i, lock) && take_over(lock)
                        })
                        .collect()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let takers = |lock: usize| taken.iter().filter(|node| node[lock]).count();
    let taken_once = |locks: Range<usize>| locks.filter(|lock| takers(*lock) == 1).count();
    let (by_all, by_one) = (taken_once(0..LOCKS), taken_once(LOCKS..2 * LOCKS));
    let got = |i: usize, locks: Range<usize>| locks.filter(|lock| taken[i - 1][*lock]).count();
    let of = |i: usize| (LOCKS..2 * LOCKS).filter(|lock| wanted(i, *lock)).count();
    let nodes: Vec<String> = (1..=3)
        .map(|i| format!("{} of {}", got(i, LOCKS..2 * LOCKS), of(i)))
        .collect();
    report(&format!(
        "stale locks {}: wanted by all nodes: {by_all} of {LOCKS} taken, by one: {by_one} ({})",
        who.name,
        nodes.join(", ")
    ));
    let twice = (0..2 * LOCKS).find(|lock| takers(*lock) > 1);
    assert_eq!(twice, None, "{}: taken twice", who.name);
    // A node of the reference may go away empty-handed; of what ours want nothing stays.
    let ours = |lock: usize| (1..=3).any(|i| who.is_ours(i) && wanted(i, lock));
    let left: Vec<usize> = (0..2 * LOCKS)
        .filter(|lock| ours(*lock) && takers(*lock) == 0)
        .collect();
    let of = (0..2 * LOCKS).filter(|lock| ours(*lock)).count();
    assert!(
        left.len() * 20 <= of,
        "{}: {} of {of} stale locks went to nobody: {left:?}",
        who.name,
        left.len()
    );
    cluster.finish();
}
