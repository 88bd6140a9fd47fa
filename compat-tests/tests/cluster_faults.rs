//! What happens to a cluster: partitions, corosync that dies, peers that stand still.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/cluster.rs"]
mod cluster;

use cluster::{Assignment, Cluster, SOON, VISIBLE, WRITE_TIMEOUT, Writer, Written, lost};
use compat_tests::daemon::wait_for;
use compat_tests::report;
use nix::sys::signal::Signal;
use std::fs;
use std::time::{Duration, Instant};

on_assignments!(partition_and_heal, corosync_restarts, stopped_peer);

/// From the end of a partition to equal nodes, in addition to what corosync takes to see it.
const HEALED: Duration = Duration::from_secs(5);

fn writers(cluster: &Cluster, name: &str) -> Vec<Writer> {
    (1..=3)
        .map(|i| Writer::start(&cluster.node(i), &format!("{name}-{i}")))
        .collect()
}

/// A writer that goes on, or what one did that had to stop.
enum Rejoined {
    Writes(Writer),
    Ended(Written),
}

impl Rejoined {
    fn end(self) -> Written {
        match self {
            Self::Writes(writer) => writer.stop(),
            Self::Ended(written) => written,
        }
    }
}

/// Writers on nodes of the reference end before their node comes back: what it sends between all
/// states and the end of the updates it applies in another order than everybody else
/// (cluster-protocol.md 7.3), which no peer can prevent. `PMXCFS_REJOIN_WRITING` lets them write.
fn rejoining(who: &Assignment, writers: Vec<Writer>, back: &[usize]) -> Vec<Rejoined> {
    let all = std::env::var_os("PMXCFS_REJOIN_WRITING").is_some();
    (1..)
        .zip(writers)
        .map(|(i, writer)| {
            if all || who.is_ours(i) || !back.contains(&i) {
                Rejoined::Writes(writer)
            } else {
                Rejoined::Ended(writer.stop())
            }
        })
        .collect()
}

/// Nothing acknowledged is lost, on any node; no operation of ours took longer than its bound.
fn check(cluster: &Cluster, round: &str, written: &[Written]) {
    let name = &cluster.who.name;
    let tree = cluster.same_trees(VISIBLE);
    for (i, w) in (1..).zip(written) {
        report(&format!(
            "cluster-fault {name} {round} node {i}: {} acknowledged, refused {:?}, longest {:?}",
            w.acknowledged.len(),
            w.refused,
            w.longest
        ));
        assert_eq!(
            lost(&tree, w),
            [""; 0],
            "{name}: {round}: written on node {i}"
        );
        if cluster.who.is_ours(i) {
            // one file is three changes (directory, create, write)
            let bound = 3 * WRITE_TIMEOUT + Duration::from_secs(2);
            assert!(
                w.longest < bound,
                "{name}: {round}: node {i} {:?}",
                w.longest
            );
        }
    }
}

fn quorate(cluster: &Cluster, i: usize, yes: bool) -> bool {
    cluster
        .members(i)
        .contains(&format!("\"quorate\": {}", u8::from(yes)))
}

/// Each node in turn is cut off for some seconds while all three write.
fn partition_and_heal(who: &Assignment) {
    let cluster = Cluster::new(who);
    for i in 1..=3 {
        let round = format!("partition-{i}");
        let writers = writers(&cluster, &round);
        std::thread::sleep(Duration::from_millis(500));
        cluster.lab.connect(i, false);
        let cut = wait_for(SOON, || quorate(&cluster, i, false));
        assert!(cut, "{}: node {i} keeps its quorum", who.name);
        std::thread::sleep(Duration::from_secs(2));
        let writers = rejoining(who, writers, &[i]);
        cluster.lab.connect(i, true);
        let healed = wait_for(SOON, || quorate(&cluster, i, true));
        assert!(healed, "{}: node {i} gets no quorum", who.name);
        let since = Instant::now();
        std::thread::sleep(Duration::from_millis(500));
        let written: Vec<_> = writers.into_iter().map(Rejoined::end).collect();
        cluster.equal(HEALED);
        report(&format!(
            "cluster-fault {} {round}: equal {:?} after quorum",
            who.name,
            since.elapsed()
        ));
        cluster.wait_online();
        check(&cluster, &round, &written);
        let others: Vec<usize> = (1..=3).filter(|j| *j != i).collect();
        for j in others {
            assert!(
                written[j - 1].acknowledged.len() > 10,
                "{}: {round}: the majority wrote",
                who.name
            );
        }
    }
    cluster.finish();
}

/// SIGKILL to the corosync of 1, 2 and 3 nodes while all write; the daemons go on.
fn corosync_restarts(who: &Assignment) {
    let mut cluster = Cluster::new(who);
    for killed in [vec![2], vec![1, 3], vec![1, 2, 3]] {
        let round = format!("corosync-{}", killed.len());
        let writers = writers(&cluster, &round);
        std::thread::sleep(Duration::from_millis(500));
        killed.iter().for_each(|i| cluster.kill_corosync(*i));
        let gone = wait_for(SOON, || killed.iter().all(|i| quorate(&cluster, *i, false)));
        assert!(gone, "{}: {round}: quorum without corosync", who.name);
        for i in 1..=3 {
            // reads never wait for the cluster
            let started = Instant::now();
            cluster.on(i, || fs::read("/etc/pve/corosync.conf").unwrap());
            assert!(
                started.elapsed() < Duration::from_secs(1),
                "{}: {round}: read on {i}",
                who.name
            );
        }
        let writers = rejoining(who, writers, &killed);
        killed.iter().for_each(|i| cluster.start_corosync(*i));
        let since = Instant::now();
        cluster.wait_corosync();
        cluster.wait_online();
        report(&format!(
            "cluster-fault {} {round}: online {:?} after the start",
            who.name,
            since.elapsed()
        ));
        let written: Vec<_> = writers.into_iter().map(Rejoined::end).collect();
        cluster.equal(HEALED);
        check(&cluster, &round, &written);
        (1..=3).for_each(|i| assert!(cluster.daemon(i).is_running()));
    }
    cluster.finish();
}

/// A daemon that stands still (SIGSTOP) delays nobody's reads and no writes of the others; when the
/// membership changes meanwhile, writers of ours end within their bound.
fn stopped_peer(who: &Assignment) {
    let mut cluster = Cluster::new(who);
    cluster.signal(3, Signal::SIGSTOP);
    for i in [1, 2] {
        let started = Instant::now();
        cluster.on(i, || {
            fs::write(format!("/etc/pve/beside{i}"), b"x").unwrap()
        });
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "{}: write on {i}",
            who.name
        );
    }
    cluster.on(1, || fs::create_dir("/etc/pve/blocked").unwrap());
    // node 2 goes and comes back: a synchronisation that lacks node 3's state
    cluster.kill9(2);
    std::thread::sleep(Duration::from_millis(300));
    cluster.start(2);
    assert!(
        wait_for(SOON, || quorate(&cluster, 2, true)),
        "{}",
        who.name
    );
    // the kernel lets nobody into a directory in which it waits for a new file, so the reads are of
    // another one
    for i in [1, 2].into_iter().filter(|i| who.is_ours(*i)) {
        let node = cluster.node(i);
        let blocked = std::thread::spawn(move || {
            node.enter();
            let started = Instant::now();
            (fs::write("/etc/pve/blocked/file", b"x"), started.elapsed())
        });
        let (mut reads, mut slowest) = (0, Duration::ZERO);
        while !blocked.is_finished() {
            let started = Instant::now();
            cluster.on(i, || {
                fs::read("/etc/pve/corosync.conf").unwrap();
                fs::read_dir("/etc/pve").unwrap().for_each(drop);
                fs::read("/etc/pve/.version").unwrap();
            });
            slowest = slowest.max(started.elapsed());
            reads += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        let (result, took) = blocked.join().unwrap();
        report(&format!(
            "cluster-fault {} stopped-peer: write on {i}: {result:?} after {took:?}; {reads} reads, slowest {slowest:?}",
            who.name
        ));
        let errno = result.unwrap_err().raw_os_error();
        assert_eq!(
            errno,
            Some(nix::errno::Errno::EBUSY as i32),
            "{}: node {i}",
            who.name
        );
        assert!(
            took < WRITE_TIMEOUT + Duration::from_secs(2),
            "{}: node {i}: {took:?}",
            who.name
        );
        assert!(
            slowest < Duration::from_secs(1),
            "{}: node {i}: {slowest:?}",
            who.name
        );
        let log = cluster.log(i);
        let pid = cluster.daemon(3).pid();
        assert!(
            log.contains(&format!("3/{pid}")),
            "{}: node {i} names who is missing: {log}",
            who.name
        );
    }
    cluster.signal(3, Signal::SIGCONT);
    cluster.wait_online();
    cluster.equal(VISIBLE);
    cluster.same_trees(VISIBLE);
    cluster.finish();
}
