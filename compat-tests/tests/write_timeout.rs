//! `--write-timeout` bounds the wait for this node's own disk, too.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/cluster.rs"]
mod cluster;

use cluster::{Assignment, Cluster, VISIBLE};
use compat_tests::daemon::wait_for;
use compat_tests::{Daemon, Lab, Node, Subject, report};
use nix::errno::Errno;
use rusqlite::Connection;
use std::fs;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(5);
/// What a loaded machine may add. (A lock that lasts 10 s is an error of its own, EIO.)
const SLACK: Duration = Duration::from_secs(4);

/// Another process has the database for itself; a file is made meanwhile.
fn create_while_locked(node: &Node) {
    let other = Connection::open(node.database()).unwrap();
    other.busy_timeout(SLACK).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let started = Instant::now();
    let result = node.inside(|| fs::File::create("/etc/pve/slow"));
    let took = started.elapsed();
    report(&format!("write-timeout: {result:?} after {took:?}"));
    other.execute_batch("ROLLBACK").unwrap();
    let errno = result.unwrap_err().raw_os_error();
    assert_eq!(errno, Some(Errno::EBUSY as i32), "after {took:?}");
    assert!(took >= LIMIT && took < LIMIT + SLACK, "{took:?}");
    // It was not known whether it would work; it did.
    let there = || node.inside(|| fs::exists("/etc/pve/slow").unwrap());
    assert!(wait_for(VISIBLE, there));
    let other = || node.inside(|| fs::write("/etc/pve/other", b"x"));
    let mut last = other();
    assert!(
        wait_for(VISIBLE, || {
            last = other();
            last.is_ok()
        }),
        "{last:?}"
    );
}

#[test]
fn a_locked_database_ends_the_wait_in_local_mode() {
    let (_lab, node) = Lab::single();
    let limit = LIMIT.as_secs().to_string();
    let args = ["-f", "-l", "--write-timeout", &limit];
    let mut daemon = Daemon::spawn(&node, &Subject::ours(), &args);
    daemon.wait_usable();
    create_while_locked(&node);
    assert_eq!(daemon.stop().code, 0);
}

#[test]
fn a_locked_database_ends_the_wait_in_a_cluster() {
    let mut cluster = Cluster::without_daemons(&Assignment::ours());
    cluster.write_timeout = LIMIT;
    cluster.start_all();
    cluster.wait_online();
    create_while_locked(&cluster.node(3));
    cluster.equal(VISIBLE);
    cluster.finish();
}
