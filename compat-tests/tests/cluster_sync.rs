//! A node joins what others have: many files, large files, checksum rounds; and the status, which
//! every node has of every other.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/cluster.rs"]
mod cluster;

use cluster::{Assignment, Cluster, SOON, VISIBLE};
use compat_tests::client::ROOT;
use compat_tests::daemon::wait_for;
use compat_tests::{Client, dbfile, report};
use rusqlite::Connection;
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

on_assignments!(ours: joiner_gets_2000_files, verify_rounds, status, deep_chain;
    mixed: joiner_gets_2000_files, verify_rounds, status);

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

/// A chain of 16,000 directories, which an index of 640 KB brings: two nodes get it, and lose it again
/// with their other entries. The limits are those of any other synchronisation. What is deeper than
/// clients may make is served, and can be removed.
fn deep_chain(who: &Assignment) {
    const DEPTH: usize = 16_000;
    const ALLOWED: usize = 128;
    let mut cluster = Cluster::without_daemons(who);
    let conf = fs::read(cluster.node(1).path("/etc/corosync/corosync.conf")).unwrap();
    let mut database = dbfile::Builder::default();
    database.chain(DEPTH);
    database.file("corosync.conf", &conf);
    database.write(&cluster.node(1).database()).unwrap();
    cluster.start(1);
    let joined = Instant::now();
    (2..=3).for_each(|i| cluster.spawn(i));
    (2..=3).for_each(|i| {
        cluster.daemon(i).wait_usable();
    });
    cluster.wait_online();
    cluster.equal(SOON);
    let took = joined.elapsed();
    report(&format!(
        "cluster-sync {}: a chain of {DEPTH} directories to two nodes: {took:?} with their start",
        who.name
    ));
    cluster.on(2, || {
        std::env::set_current_dir("/etc/pve").unwrap();
        let down = |levels| (0..levels).for_each(|_| std::env::set_current_dir("d").unwrap());
        down(ALLOWED - 1);
        fs::create_dir("made").unwrap();
        fs::remove_dir("made").unwrap();
        down(1);
        let refused = fs::create_dir("made").unwrap_err();
        assert_eq!(
            refused.raw_os_error(),
            Some(nix::errno::Errno::ENAMETOOLONG as i32)
        );
        down(ALLOWED);
        assert_eq!(fs::read_dir(".").unwrap().count(), 1);
        std::env::set_current_dir("/").unwrap();
    });
    // Two nodes have a newer database without it when the third comes back.
    cluster.stop_well(3);
    for i in 1..=2 {
        cluster.stop_well(i);
        let mut database = dbfile::Builder::guests(DEPTH);
        database.file("corosync.conf", &conf);
        database.write(&cluster.node(i).database()).unwrap();
    }
    cluster.start(1);
    cluster.start(2);
    cluster.wait_online();
    cluster.start(3);
    cluster.wait_online();
    cluster.equal(SOON);
    cluster.finish();
}

/// How often these words are in the log of a node.
fn said(cluster: &Cluster, i: usize, words: &str) -> usize {
    cluster.log(i).matches(words).count()
}

/// The hours that have passed on node 1, if that is a reference node.
struct Hours(u64);

impl Hours {
    /// Lets node 1 start a checksum round: the reference does so once an hour of its clock, ours
    /// every few seconds in these tests.
    fn round(&mut self, cluster: &Cluster) {
        if !cluster.who.is_ours(1) {
            self.0 += 1;
            cluster.shift_clock(1, self.0 * 3601);
        }
    }
}

/// Waits for a further successful round on every node.
fn verified(cluster: &Cluster, hours: &mut Hours) {
    const SUCCESS: &str = "data verification successful";
    let before: Vec<usize> = (1..=3).map(|i| said(cluster, i, SUCCESS)).collect();
    hours.round(cluster);
    for i in 1..=3 {
        assert!(
            wait_for(SOON, || said(cluster, i, SUCCESS) > before[i - 1]),
            "{}: node {i}: {}",
            cluster.who.name,
            cluster.log(i)
        );
    }
}

/// Changes a byte of what a process has in its memory, wherever these bytes are. How often.
fn damage(pid: i32, bytes: &[u8]) -> usize {
    let memory = fs::File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/mem"))
        .unwrap();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|l| l.contains(" rw-p ")) {
        let range = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let number = |hex| u64::from_str_radix(hex, 16).unwrap();
        let (start, end) = (number(range.0), number(range.1));
        let mut content = vec![0; usize::try_from(end - start).unwrap()];
        // guard pages and the like cannot be read
        if memory.read_exact_at(&mut content, start).is_err() {
            continue;
        }
        for at in 0..content.len().saturating_sub(bytes.len()) {
            if content[at..].starts_with(bytes) {
                memory.write_all_at(b"#", start + at as u64).unwrap();
                found += 1;
            }
        }
    }
    found
}

/// Rounds started by node 1, of either kind, are passed by the others, of either kind. Then a byte
/// changes in the memory of one node: the round finds it, and that node leaves, comes back and gets
/// the right content from the others. Last, a database damaged on disk is repaired at the start.
fn verify_rounds(who: &Assignment) {
    const CONTENT: &[u8] = b"dir: local\n\tpath /a/path/that/nothing/else/has\n";
    let mut cluster = Cluster::without_daemons(who);
    cluster.shifted_clocks = true;
    cluster.start_all();
    cluster.wait_online();
    let mut hours = Hours(0);
    cluster.on(2, || fs::write("/etc/pve/storage.cfg", CONTENT).unwrap());
    cluster.same_trees(VISIBLE);
    verified(&cluster, &mut hours);
    verified(&cluster, &mut hours);
    for i in [3, 2] {
        let pid = cluster.daemon(i).pid();
        assert!(damage(pid, CONTENT) > 0, "{}: node {i}", who.name);
        hours.round(&cluster);
        let limit = Instant::now() + SOON;
        while said(&cluster, i, "wrong checksum") == 0 {
            let log = cluster.log(i);
            assert!(Instant::now() < limit, "{}: node {i}: {log}", who.name);
            std::thread::sleep(Duration::from_millis(50));
        }
        let found = Instant::now();
        // the members do not change when it comes back at once: the log says that it did
        let back = || {
            let log = cluster.log(i);
            log.rsplit_once("wrong checksum")
                .is_some_and(|(_, later)| later.contains("[dcdb] notice: all data is up to date"))
        };
        assert!(
            wait_for(SOON, back),
            "{}: node {i} comes back: {}",
            who.name,
            cluster.log(i)
        );
        report(&format!(
            "cluster-verify {} mismatch on node {i}: synced again after {:?}",
            who.name,
            found.elapsed()
        ));
        verified(&cluster, &mut hours);
        cluster.equal(VISIBLE);
        let tree = cluster.same_trees(VISIBLE);
        assert_eq!(tree["storage.cfg"].3, CONTENT, "{}: node {i}", who.name);
    }
    for i in [1, 2, 3] {
        let unexpected = if i == 1 { 0 } else { 1 };
        let wrong = said(&cluster, i, "wrong checksum");
        assert_eq!(wrong, unexpected, "{}: node {i}", who.name);
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
    assert_eq!(tree["storage.cfg"].3, CONTENT);
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
