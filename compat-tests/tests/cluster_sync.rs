//! A node joins what others have: many files, large files, checksum rounds; and the status, which
//! every node has of every other.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/cluster.rs"]
mod cluster;

use cluster::{Assignment, Cluster, SOON, VERIFY_EVERY, VISIBLE};
use compat_tests::client::ROOT;
use compat_tests::daemon::wait_for;
use compat_tests::{Client, dbfile, report};
use rusqlite::Connection;
use std::fs;
use std::time::{Duration, Instant};

on_assignments!(joiner_gets_2000_files, verify_rounds, status);

/// One node has 2,000 guests and a large file before the others, which are empty, start; every node
/// is the first once.
fn joiner_gets_2000_files(who: &Assignment) {
    let mut cluster = Cluster::without_daemons(who);
    for first in 1..=3 {
        let mut database = dbfile::Builder::guests(2000);
        let conf = fs::read(cluster.node(first).path("/etc/corosync/corosync.conf")).unwrap();
        database.file("corosync.conf", &conf);
        database.file("large", &vec![b'l'; 1 << 20]);
        database.write(&cluster.node(first).database()).unwrap();
        cluster.start(first);
        let joined = Instant::now();
        (1..=3)
            .filter(|i| *i != first)
            .for_each(|i| cluster.spawn(i));
        for i in (1..=3).filter(|i| *i != first) {
            cluster.daemon(i).wait_usable();
        }
        cluster.wait_online();
        cluster.equal(SOON);
        let took = joined.elapsed();
        report(&format!(
            "cluster-sync {}: 2,000 files from node {first} to two: {took:?} with their start",
            who.name
        ));
        let tree = cluster.same_trees(VISIBLE);
        assert_eq!(tree["large"].1, 1 << 20, "{}", who.name);
        assert!(tree.len() > 2000);
        for i in 1..=3 {
            cluster.stop_well(i);
            dbfile::remove_with_log(&cluster.node(i).database());
        }
    }
}

/// Rounds by node 1 when it is ours (the reference has a fixed hour); the others agree. Then a
/// database that was damaged on disk is found and repaired.
fn verify_rounds(who: &Assignment) {
    if !who.is_ours(1) {
        report(&format!(
            "cluster-verify {}: node 1 is the reference, which asks once an hour",
            who.name
        ));
        return;
    }
    let mut cluster = Cluster::new(who);
    cluster.on(2, || {
        fs::write("/etc/pve/storage.cfg", b"dir: local\n\tpath /x\n").unwrap()
    });
    cluster.same_trees(VISIBLE);
    let verified = |cluster: &mut Cluster, i| {
        cluster
            .log(i)
            .matches("data verification successful")
            .count()
    };
    let limit = 6 * VERIFY_EVERY;
    for i in 1..=3 {
        assert!(
            wait_for(limit, || verified(&mut cluster, i) >= 2),
            "{}: node {i}: {}",
            who.name,
            cluster.log(i)
        );
    }
    // node 3 starts with one changed byte at the same version: the index exchange repairs it
    cluster.stop_well(3);
    let db = Connection::open(cluster.node(3).database()).unwrap();
    let changed = db
        .execute(
            "UPDATE tree SET data = X'646972' WHERE name = 'storage.cfg'",
            (),
        )
        .unwrap();
    assert_eq!(changed, 1);
    drop(db);
    cluster.start(3);
    cluster.wait_online();
    cluster.equal(VISIBLE);
    let tree = cluster.same_trees(VISIBLE);
    assert_eq!(tree["storage.cfg"].3, b"dir: local\n\tpath /x\n");
    cluster.finish();
}

fn log_payload(message: &str) -> Vec<u8> {
    let mut out = vec![6, 9, 4];
    out.extend(b"root@pam\0abc\0");
    out.extend(message.as_bytes());
    out.push(0);
    out
}

/// Node values, addresses and the cluster log of every node are on every node; also on one that
/// comes back.
fn status(who: &Assignment) {
    let mut cluster = Cluster::new(who);
    let client = |cluster: &Cluster, i| Client::new(&cluster.node(i), ROOT);
    for i in 1..=3 {
        let own = client(&cluster, i);
        assert_eq!(
            own.set_status("compat", format!("value of {i}").as_bytes()),
            0
        );
        assert_eq!(
            own.request(7, &log_payload(&format!("message of {i}")), None)
                .error(),
            Some(0)
        );
        assert_eq!(
            own.set_status("nodeip", format!("192.0.2.{i}\0").as_bytes()),
            0
        );
    }
    let complete = |cluster: &Cluster, i: usize| {
        let here = client(cluster, i);
        (1..=3).all(|j| {
            let value = here.get_status("compat", &format!("node{j}"));
            value.error() == Some(0)
                && value
                    .payload()
                    .starts_with(format!("value of {j}").as_bytes())
                && cluster.members(i).contains(&format!("\"192.0.2.{j}\""))
                && cluster
                    .on(i, || {
                        fs::read_to_string("/etc/pve/.clusterlog").unwrap_or_default()
                    })
                    .contains(&format!("message of {j}"))
        })
    };
    let all = |cluster: &Cluster| (1..=3).all(|i| complete(cluster, i));
    assert!(wait_for(VISIBLE, || all(&cluster)), "{}", who.name);
    // the log is merged and the values are sent again when a node comes back
    for i in 1..=3 {
        cluster.stop_well(i);
        std::thread::sleep(Duration::from_millis(200));
        cluster.start(i);
        cluster.wait_online();
        let own = client(&cluster, i);
        assert_eq!(
            own.set_status("compat", format!("value of {i}").as_bytes()),
            0
        );
        assert_eq!(
            own.set_status("nodeip", format!("192.0.2.{i}\0").as_bytes()),
            0
        );
        assert!(
            wait_for(SOON, || all(&cluster)),
            "{}: after {i} came back",
            who.name
        );
    }
    // a node that goes is offline for the others
    cluster.kill9(3);
    let offline = |i| {
        cluster
            .members(i)
            .contains("\"node3\": { \"id\": 3, \"online\": 0")
    };
    assert!(wait_for(SOON, || offline(1) && offline(2)), "{}", who.name);
    cluster.finish();
}
