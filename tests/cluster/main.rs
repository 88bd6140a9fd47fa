//! `pmxcfs::cluster` on three real corosyncs, each in namespaces of its own, without a mount.
//!
//! Needs root, corosync and iproute2; see `tests/corosync_support` for the lab number.
#![allow(clippy::unwrap_used)] // a test ends at the first surprise

#[path = "../corosync_support/mod.rs"]
mod lab;
mod probe;

use std::time::{Duration, Instant};

use lab::{Lab, Probe};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);
/// What a loaded machine may add to something that takes no time.
const SLACK: Duration = Duration::from_secs(3);
/// What a slow disk may add, with a checkpoint or the end of a database on the way.
const DISK: Duration = Duration::from_secs(10);

/// Not a test of its own: what the other tests run inside the nodes.
#[test]
fn probe() {
    if lab::is_probe() {
        probe::run();
    }
}

struct Cluster {
    lab: Lab,
    probes: Vec<Probe>,
    commands: u32,
}

impl Cluster {
    fn start(offset: u32) -> Cluster {
        Cluster::start_in(Lab::up(offset, 3, "lab"))
    }

    fn start_in(lab: Lab) -> Cluster {
        for node in 1..=3 {
            lab.start_corosync(node);
        }
        let probes = (1..=3).map(|node| lab.probe(node)).collect();
        Cluster {
            lab,
            probes,
            commands: 0,
        }
    }

    /// Sends a command; returns its number.
    fn tell(&mut self, node: usize, command: &str) -> u32 {
        self.commands += 1;
        let number = self.commands;
        self.probes[node - 1].tell(&format!("{number} {command}"));
        number
    }

    fn result(&mut self, node: usize, number: u32) -> String {
        let start = format!("{number} ");
        let line = self.probes[node - 1].take(SOON, |line| line.starts_with(&start));
        line[start.len()..].to_owned()
    }

    fn ask(&mut self, node: usize, command: &str) -> String {
        let number = self.tell(node, command);
        self.result(node, number)
    }

    /// Asks again and again until the answer is the wanted one.
    fn until(&mut self, node: usize, command: &str, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + SOON;
        loop {
            let answer = self.ask(node, command);
            if wanted(&answer) {
                return answer;
            }
            if Instant::now() > end {
                let log = self.lab.log_of(node);
                panic!("node {node}, {command}: {answer}\n{log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// All three are members of both groups and have the same database.
    fn synced(&mut self) -> String {
        for node in 1..=3 {
            for group in ["dcdb", "status"] {
                let all = |answer: &str| answer == "1 2 3";
                self.until(node, &format!("members {group}"), all);
            }
        }
        let end = Instant::now() + SOON;
        loop {
            let digests: Vec<String> = (1..=3).map(|node| self.ask(node, "digest")).collect();
            if digests.iter().all(|digest| *digest == digests[0]) {
                return digests[0].clone();
            }
            assert!(Instant::now() < end, "{digests:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The disk has what the memory has; changes of the others get there some milliseconds later.
    fn stored(&mut self, node: usize) {
        let digest = self.ask(node, "digest");
        let start = Instant::now();
        self.until(node, "disk", |disk| disk == digest);
        assert!(start.elapsed() < DISK, "{:?}", start.elapsed());
    }

    fn writable(&mut self, node: usize) {
        self.until(node, "write writable x", |answer| answer == "ok");
    }

    fn logged(&self, node: usize, text: &str) -> usize {
        self.lab.log_of(node).matches(text).count()
    }
}

#[test]
fn changes_values_and_logs_reach_everybody() {
    let mut cluster = Cluster::start(1);
    for node in 1..=3 {
        cluster.writable(node);
    }
    cluster.synced();
    let pending: Vec<(usize, u32)> = (0..300)
        .map(|i| {
            let node = i % 3 + 1;
            (
                node,
                cluster.tell(node, &format!("write file{i} content{i}")),
            )
        })
        .collect();
    for (node, number) in pending {
        assert_eq!(cluster.result(node, number), "ok");
    }
    cluster.synced();
    for node in 1..=3 {
        assert_eq!(cluster.ask(node, "read file299"), "content299");
        cluster.stored(node);
    }
    // Errors of the tree come back as they are.
    assert_eq!(cluster.ask(2, "mkdir file7"), "EEXIST");
    assert_eq!(cluster.ask(2, "rm no-such-file"), "ENOENT");
    assert_eq!(cluster.ask(3, "rm file7"), "ok");
    assert_eq!(
        cluster.until(1, "read file7", |answer| answer == "none"),
        "none"
    );
    // Node status.
    assert_eq!(cluster.ask(1, "set some-key some-value"), "ok");
    for node in 2..=3 {
        cluster.until(node, "get node1 some-key", |answer| answer == "some-value");
    }
    for node in 1..=3 {
        let all_there = |text: &str| {
            text.matches("\"online\": 1").count() == 3 && text.matches("\"ip\": ").count() == 3
        };
        cluster.until(node, "members-text", all_there);
    }
    // A checksum round by the lowest node, which may have to be asked again.
    let end = Instant::now() + SOON;
    let mut asked: Option<Instant> = None;
    while (1..=3).any(|node| cluster.logged(node, "data verification successful") == 0) {
        assert!(
            Instant::now() < end,
            "no verification: {}",
            cluster.lab.log_of(1)
        );
        if asked.is_none_or(|asked| asked.elapsed() > SLACK) {
            cluster.ask(1, "verify");
            asked = Some(Instant::now());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn corosync_may_die_on_any_number_of_nodes() {
    let mut cluster = Cluster::start(2);
    (1..=3).for_each(|node| cluster.writable(node));
    cluster.synced();
    // One node: the others go on, it refuses.
    cluster.lab.kill_corosync(3);
    cluster.until(3, "write lonely x", |answer| answer == "EACCES");
    cluster.until(1, "write together x", |answer| answer == "ok");
    assert_eq!(cluster.ask(3, "read together"), "none");
    let start = Instant::now();
    cluster.lab.start_corosync(3);
    cluster.until(3, "read together", |answer| answer == "x");
    cluster.writable(3);
    println!("node 3 is back after {:?}", start.elapsed());
    cluster.synced();
    // Two nodes: no quorum anywhere, then all of it comes back.
    cluster.lab.kill_corosync(2);
    cluster.lab.kill_corosync(3);
    cluster.until(1, "write alone x", |answer| answer == "EACCES");
    assert_eq!(cluster.ask(1, "read together"), "x");
    cluster.lab.start_corosync(2);
    cluster.writable(1);
    cluster.writable(2);
    cluster.lab.start_corosync(3);
    cluster.writable(3);
    cluster.synced();
    // All three.
    (1..=3).for_each(|node| cluster.lab.kill_corosync(node));
    (1..=3).for_each(|node| drop(cluster.until(node, "write x x", |answer| answer == "EACCES")));
    (1..=3).for_each(|node| cluster.lab.start_corosync(node));
    (1..=3).for_each(|node| cluster.writable(node));
    cluster.synced();
    for node in 1..=3 {
        // Of each series the first failure only; corosync may have been late at the beginning.
        let said = cluster.logged(node, "[dcdb] crit: can't initialize service");
        assert!(said <= 4, "{said}: {}", cluster.lab.log_of(node));
    }
}

#[test]
fn a_node_that_crashed_catches_up_and_one_that_stops_leaves() {
    let mut cluster = Cluster::start(3);
    (1..=3).for_each(|node| cluster.writable(node));
    assert_eq!(cluster.ask(1, "write gone x"), "ok");
    cluster.synced();
    cluster.probes[1].signal(Signal::SIGKILL);
    cluster.probes[1].end();
    cluster.until(1, "members dcdb", |answer| answer == "1 3");
    assert_eq!(
        cluster.until(1, "rm gone", |answer| answer != "EBUSY"),
        "ok"
    );
    for i in 0..50 {
        assert_eq!(cluster.ask(3, &format!("write late{i} {i}")), "ok");
    }
    cluster.probes[1] = cluster.lab.probe(2);
    cluster.until(2, "read late49", |answer| answer == "49");
    assert_eq!(cluster.ask(2, "read gone"), "none");
    cluster.writable(2);
    cluster.synced();
    cluster.stored(2);
    // An orderly stop is quick and clean.
    let start = Instant::now();
    cluster.probes[0].end();
    assert!(start.elapsed() < DISK, "{:?}", start.elapsed());
    cluster.until(2, "members dcdb", |answer| answer == "2 3");
    cluster.until(2, "members status", |answer| answer == "2 3");
    cluster.writable(3);
}

#[test]
fn no_wait_is_longer_than_the_bound() {
    let mut cluster = Cluster::start(4);
    (1..=3).for_each(|node| cluster.writable(node));
    cluster.synced();
    // Node 3 does not answer any more, but is a member still: the next membership change begins a
    // synchronisation that cannot end.
    cluster.probes[2].signal(Signal::SIGSTOP);
    assert_eq!(cluster.ask(1, "write fine x"), "ok");
    cluster.probes[1].signal(Signal::SIGKILL);
    cluster.probes[1].end();
    cluster.until(1, "members dcdb", |answer| answer == "1 3");
    let start = Instant::now();
    assert_eq!(cluster.ask(1, "write blocked x"), "EBUSY");
    let took = start.elapsed();
    let bound = probe::WRITE_TIMEOUT;
    assert!(took >= bound && took < bound + SLACK, "{took:?}");
    // Reads go on.
    assert_eq!(cluster.ask(1, "read fine"), "x");
    let end = Instant::now() + SOON;
    while cluster.logged(1, "waiting for state of members node3 since") == 0 {
        assert!(Instant::now() < end, "{}", cluster.lab.log_of(1));
        std::thread::sleep(Duration::from_millis(100));
    }
    cluster.probes[2].signal(Signal::SIGCONT);
    cluster.writable(1);
    cluster.probes[1] = cluster.lab.probe(2);
    (1..=3).for_each(|node| cluster.writable(node));
    cluster.synced();
}

/// A node whose database is on a disk of its own, a full one at times.
#[test]
fn a_node_whose_disk_is_full_leaves_and_comes_back() {
    const DISK: &str = "/var/lib/pve-cluster";
    let lab = Lab::up(9, 3, "lab");
    assert!(lab.exec(3, &["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", DISK]));
    let fill = format!("cat /dev/zero > {DISK}/filler");
    let empty = format!("{DISK}/filler");
    let mut cluster = Cluster::start_in(lab);
    (1..=3).for_each(|node| cluster.writable(node));
    cluster.synced();

    assert!(
        !cluster.lab.exec(3, &["sh", "-c", &fill]),
        "there is no end"
    );
    let result = cluster.ask(1, "storm a 4 25");
    assert!(result.starts_with("refused 0 "), "{result}");
    cluster.until(1, "members dcdb", |answer| answer == "1 2");
    assert_eq!(cluster.ask(1, "members status"), "1 2 3");
    let start = Instant::now();
    assert_eq!(cluster.ask(3, "write refused x"), "EIO");
    assert!(start.elapsed() < SLACK, "{:?}", start.elapsed());
    // It reads what it has; the others go on without it, and not silently.
    assert_eq!(cluster.ask(3, "read writable"), "x");
    assert_eq!(cluster.ask(1, "write without-it x"), "ok");
    assert_eq!(cluster.ask(3, "read without-it"), "none");
    assert_eq!(cluster.ask(1, "read refused"), "none");
    assert_eq!(cluster.logged(3, "the database cannot be written"), 1);
    assert!(cluster.lab.exec(3, &["rm", &empty]));
    cluster.writable(3);
    cluster.synced();
    assert_eq!(cluster.ask(3, "read without-it"), "x");
    cluster.stored(3);

    // The result of a synchronisation that cannot be stored: the same.
    cluster.lab.kill_corosync(3);
    cluster.until(3, "write lonely x", |answer| answer == "EACCES");
    cluster.until(1, "members dcdb", |answer| answer == "1 2");
    cluster.writable(1);
    let result = cluster.ask(1, "storm b 4 25");
    assert!(result.starts_with("refused 0 "), "{result}");
    assert!(
        !cluster.lab.exec(3, &["sh", "-c", &fill]),
        "there is no end"
    );
    cluster.lab.start_corosync(3);
    cluster.until(3, "write refused x", |answer| answer == "EIO");
    cluster.until(1, "members dcdb", |answer| answer == "1 2");
    assert!(cluster.lab.exec(3, &["rm", &empty]));
    cluster.writable(3);
    cluster.synced();
    cluster.stored(3);
}

#[test]
fn a_new_corosync_conf_reaches_all_hosts_and_corosync() {
    let mut cluster = Cluster::start(5);
    (1..=3).for_each(|node| cluster.writable(node));
    cluster.synced();
    let text = std::fs::read_to_string(cluster.lab.host_file(1)).unwrap();
    let text = text.replace("config_version: 1", "config_version: 5");
    let hex: String = text.bytes().map(|b| format!("{b:02x}")).collect();
    let start = Instant::now();
    assert_eq!(
        cluster.ask(2, &format!("write-hex corosync.conf {hex}")),
        "ok"
    );
    // Not held up by the reload.
    assert!(start.elapsed() < SLACK, "{:?}", start.elapsed());
    for node in 1..=3 {
        let version_5 = |text: &str| text.contains("\"version\": 5, \"nodes\": 3");
        cluster.until(node, "members-text", version_5);
        assert_eq!(
            std::fs::read_to_string(cluster.lab.host_file(node)).unwrap(),
            text
        );
    }
    cluster.synced();
}

#[test]
fn many_writers_on_all_nodes_agree() {
    let mut cluster = Cluster::start(6);
    (1..=3).for_each(|node| cluster.writable(node));
    cluster.synced();
    let result = cluster.ask(1, "storm a 16 50");
    println!("one node, 16 writers: {result}");
    assert!(result.starts_with("refused 0 "), "{result}");
    let storms: Vec<u32> = (1..=3)
        .map(|node| cluster.tell(node, &format!("storm b{node} 4 25")))
        .collect();
    for (node, number) in (1..=3).zip(storms) {
        let result = cluster.result(node, number);
        println!("node {node} of three, 4 writers: {result}");
        assert!(result.starts_with("refused 0 "), "{result}");
    }
    println!("one writer: {}", cluster.ask(2, "storm c 1 100"));
    cluster.synced();
    for node in 1..=3 {
        cluster.stored(node);
    }
}

#[test]
fn a_corosync_that_hangs_holds_up_nobody() {
    let mut cluster = Cluster::start(7);
    (1..=3).for_each(|node| cluster.writable(node));
    cluster.synced();
    cluster.lab.signal_corosync(3, Signal::SIGSTOP);
    // More than any buffer on the way to corosync takes.
    let pending: Vec<u32> = (0..1000)
        .map(|i| cluster.tell(3, &format!("write hung{i} x")))
        .collect();
    let start = Instant::now();
    assert_eq!(cluster.ask(3, "read writable"), "x");
    assert!(start.elapsed() < SLACK, "{:?}", start.elapsed());
    for number in pending {
        assert_eq!(cluster.result(3, number), "EBUSY");
    }
    let took = start.elapsed();
    assert!(took < probe::WRITE_TIMEOUT + SLACK, "{took:?}");
    cluster.writable(1);
    // It ends although nobody answers.
    let start = Instant::now();
    cluster.probes[2].end();
    assert!(
        start.elapsed() < Duration::from_secs(2) + DISK,
        "{:?}",
        start.elapsed()
    );
    cluster.lab.signal_corosync(3, Signal::SIGCONT);
}

#[test]
fn a_partition_loses_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::start(8);
    (1..=3).for_each(|node| cluster.writable(node));
    cluster.synced();
    let hammers: Vec<u32> = (1..=3)
        .map(|node| cluster.tell(node, &format!("hammer h{node}-")))
        .collect();
    for cut in [3, 1] {
        std::thread::sleep(Duration::from_secs(1));
        cluster.lab.connect(cut, false);
        cluster.until(cut, "write lonely x", |answer| answer == "EACCES");
        let rest: Vec<usize> = (1..=3).filter(|node| *node != cut).collect();
        rest.iter().for_each(|node| cluster.writable(*node));
        std::thread::sleep(Duration::from_secs(1));
        cluster.lab.connect(cut, true);
        (1..=3).for_each(|node| cluster.writable(node));
    }
    // Not by `tell`: the answer is that of the hammer.
    for node in 1..=3 {
        cluster.tell(node, "rest");
    }
    for (node, number) in (1..=3).zip(hammers) {
        let result = cluster.result(node, number);
        let (pause, acknowledged) = result.split_once(' ').unwrap();
        let count = acknowledged.split(',').count();
        println!("node {node}: {count} acknowledged, longest pause {pause} ms");
        assert!(count > 50, "{count}");
        cluster.synced();
        for other in 1..=3 {
            let missing = cluster.ask(other, &format!("missing h{node}- {acknowledged}"));
            assert_eq!(missing, "0", "of node {node} on node {other}");
        }
    }
    for node in 1..=3 {
        assert_eq!(cluster.logged(node, "wrong checksum"), 0);
        cluster.stored(node);
    }
}

/// Corosync gives a node its own messages back at once: what it sends at the very moment it loses
/// the others, they never get. `CUTS` tries more than a few such moments.
#[test]
fn a_cut_at_any_moment_loses_nothing_that_was_acknowledged() {
    let lab = Lab::up(10, 3, "lab");
    lab.edit_configuration(
        "  version: 2",
        "  version: 2\n  token: 400\n  token_coefficient: 0",
    );
    let mut cluster = Cluster::start_in(lab);
    (1..=3).for_each(|node| cluster.writable(node));
    cluster.synced();
    let cuts: usize = std::env::var("CUTS").map_or(6, |n| n.parse().unwrap());
    for cut in 0..cuts {
        let node = cut % 3 + 1;
        let hammers: Vec<(String, u32)> = (0..8)
            .map(|i| format!("h{cut}-{i}-"))
            .map(|name| (name.clone(), cluster.tell(node, &format!("hammer {name}"))))
            .collect();
        for (name, _) in &hammers {
            cluster.until(node, &format!("read {name}5"), |there| there != "none");
        }
        std::thread::sleep(Duration::from_millis(50 + 7 * cut as u64));
        cluster.lab.connect(node, false);
        cluster.until(node, "write lonely x", |answer| answer == "EACCES");
        cluster.tell(node, "rest");
        let others: Vec<usize> = (1..=3).filter(|other| *other != node).collect();
        // Fewer changes than the lonely one may have made last: those of the majority count.
        let kept = format!("write o{cut} kept");
        cluster.until(others[0], &kept, |answer| answer == "ok");
        let mut count = 0;
        for (name, number) in hammers {
            let result = cluster.result(node, number);
            let (_, acknowledged) = result.split_once(' ').unwrap();
            count += acknowledged.matches(',').count();
            // What is missing stays missing; the answers of others[1] may be a moment behind.
            let question = format!("missing {name} {acknowledged}");
            cluster.until(others[1], &question, |missing| missing == "0");
        }
        assert!(count > 20, "only {count} files before cut {cut}");
        cluster.lab.connect(node, true);
        (1..=3).for_each(|node| cluster.writable(node));
        cluster.synced();
        for node in 1..=3 {
            assert_eq!(cluster.ask(node, &format!("read o{cut}")), "kept");
        }
    }
    let logged = |node| cluster.logged(node, "changes back that the other nodes may not have");
    let taken_back = (1..=3).map(logged).sum::<usize>();
    println!("{cuts} cuts, changes taken back after {taken_back} of them");
}
