//! What happens to a cluster: partitions, corosync that dies, peers that stand still.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/cluster.rs"]
mod cluster;

use cluster::writer::{Reader, Writer, Written, check, check_reads, readers, writers};
use cluster::{Assignment, Cluster, SOON, VISIBLE, WRITE_TIMEOUT};
use compat_tests::client::{ROOT, compile};
use compat_tests::daemon::{proc_value, wait_for};
use compat_tests::{Client, dbfile, report};
use nix::sys::signal::Signal;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

on_assignments!(
    ours: partition_and_heal, corosync_restarts, stopped_peer, silent_member;
    mixed: partition_and_heal, corosync_restarts, stopped_peer, writing_while_rejoining
);

/// From the end of a partition to equal nodes, in addition to what corosync takes to see it.
const HEALED: Duration = Duration::from_secs(5);

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

fn quorate(cluster: &Cluster, i: usize, yes: bool) -> bool {
    cluster
        .members(i)
        .contains(&format!("\"quorate\": {}", u8::from(yes)))
}

/// A number from the environment.
fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect(variable))
}

/// Does the mount of a node show its files as writable?
fn writable(cluster: &Cluster, i: usize) -> bool {
    let mode = || fs::metadata("/etc/pve/corosync.conf").map(|m| m.permissions().mode());
    cluster.on(i, mode).is_ok_and(|mode| mode & 0o200 != 0)
}

/// Each node in turn is cut off for some seconds while all three write and read. The long form:
/// `PMXCFS_PARTITIONS=10 PMXCFS_PARTITION_SECONDS=30`.
fn partition_and_heal(who: &Assignment) {
    let partitions = number("PMXCFS_PARTITIONS", 3);
    let seconds = number("PMXCFS_PARTITION_SECONDS", 2);
    let cluster = Cluster::new(who);
    for n in 0..partitions {
        let i = usize::try_from(n % 3).unwrap() + 1;
        let round = format!("partition-{n}");
        let readers = readers(&cluster);
        let writers = writers(&cluster);
        std::thread::sleep(Duration::from_millis(500));
        cluster.lab.connect(i, false);
        let cut = wait_for(SOON, || quorate(&cluster, i, false));
        assert!(cut, "{}: node {i} keeps its quorum", who.name);
        assert!(
            wait_for(VISIBLE, || !writable(&cluster, i)),
            "{}: files of node {i} look writable without quorum",
            who.name
        );
        std::thread::sleep(Duration::from_secs(seconds));
        let writers = rejoining(who, writers, &[i]);
        cluster.lab.connect(i, true);
        let connected = Instant::now();
        let healed = wait_for(SOON, || quorate(&cluster, i, true));
        assert!(healed, "{}: node {i} gets no quorum", who.name);
        let since = Instant::now();
        std::thread::sleep(Duration::from_millis(500));
        let written: Vec<_> = writers.into_iter().map(Rejoined::end).collect();
        cluster.equal(HEALED);
        let took = since.elapsed();
        report(&format!(
            "cluster-fault {} {round} of node {i}: equal {took:?} after quorum, {:?} after the link",
            who.name,
            connected.elapsed()
        ));
        assert!(
            took < HEALED || !who.all_ours(),
            "{}: {round}: {took:?}",
            who.name
        );
        assert!(
            wait_for(VISIBLE, || writable(&cluster, i)),
            "{}: files of node {i} stay read-only",
            who.name
        );
        cluster.wait_online();
        check(&cluster, &round, &written);
        check_reads(&cluster, &round, readers);
        for (j, w) in (1..).zip(&written).filter(|(j, _)| *j != i) {
            assert!(
                w.acknowledged.len() > 10,
                "{}: {round}: node {j} of the majority wrote",
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
        let (readers, writers) = (readers(&cluster), writers(&cluster));
        std::thread::sleep(Duration::from_millis(500));
        killed.iter().for_each(|i| cluster.kill_corosync(*i));
        let gone = wait_for(SOON, || killed.iter().all(|i| quorate(&cluster, *i, false)));
        assert!(gone, "{}: {round}: quorum without corosync", who.name);
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
        check_reads(&cluster, &round, readers);
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
            started.elapsed() < Duration::from_secs(4),
            "{}: write on {i}",
            who.name
        );
    }
    cluster.on(1, || {
        fs::create_dir("/etc/pve/blocked").unwrap();
        fs::create_dir("/etc/pve/nodes").unwrap();
    });
    // What was acknowledged on node 1 may still be on its way to node 2, which comes back with what
    // it had: nobody can bring it up to date.
    let database = cluster.node(2).database();
    let arrived = || {
        let rows = dbfile::rows_of_copy(&database, &database.with_extension("copy"));
        rows.is_ok_and(|rows| rows.iter().any(|row| row.name == b"nodes"))
    };
    assert!(wait_for(VISIBLE, arrived), "{}", who.name);
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
        let reader = Reader::start(&cluster.node(i));
        let (mut requests, mut slowest) = (0, Duration::ZERO);
        while !blocked.is_finished() {
            let started = Instant::now();
            let reply = Client::new(&cluster.node(i), ROOT).config("corosync.conf");
            assert_eq!(reply.error(), Some(0), "{}: IPC on node {i}", who.name);
            slowest = slowest.max(started.elapsed());
            requests += 1;
        }
        check_reads(&cluster, "stopped peer", vec![(i, reader)]);
        let (result, took) = blocked.join().unwrap();
        report(&format!(
            "cluster-fault {} stopped-peer: write on {i}: {result:?} after {took:?}; {requests} IPC requests, slowest {slowest:?}",
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
            slowest < Duration::from_secs(4),
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

/// Corosync of nodes 1 and 3 is killed and comes back while all three write all the time. Reference
/// nodes may end with another content at the same version (cluster-protocol.md 7.3); ours may not:
/// all of ours are equal, and what is not is found and repaired by a checksum round. Rounds:
/// `PMXCFS_REJOINS`.
fn writing_while_rejoining(who: &Assignment) {
    let rounds = number("PMXCFS_REJOINS", 3);
    let mut cluster = Cluster::without_daemons(who);
    cluster.shifted_clocks = true;
    cluster.start_all();
    cluster.wait_online();
    let mut hours = 0;
    for n in 0..rounds {
        let round = format!("rejoin-{n}");
        let writers = writers(&cluster);
        std::thread::sleep(Duration::from_millis(500));
        [1, 3].iter().for_each(|i| cluster.kill_corosync(*i));
        let gone = wait_for(SOON, || [1, 3].iter().all(|i| quorate(&cluster, *i, false)));
        assert!(gone, "{}: {round}: quorum without corosync", who.name);
        [1, 3].iter().for_each(|i| cluster.start_corosync(*i));
        cluster.wait_corosync();
        cluster.wait_online();
        std::thread::sleep(Duration::from_secs(1));
        let written: Vec<_> = writers.into_iter().map(Writer::stop).collect();
        let ours = who.our_nodes();
        let all = |nodes: &[usize]| {
            let digests = cluster.digests(nodes);
            digests.iter().all(|d| d.is_ok() && *d == digests[0])
        };
        assert!(
            wait_for(HEALED, || all(&ours)),
            "{}: {round}: ours",
            who.name
        );
        if !wait_for(HEALED, || all(&[1, 2, 3])) {
            let kept = cluster.keep_databases();
            report(&format!(
                "cluster-hazard {} {round}: a reference node differs ({kept})",
                who.name
            ));
            hours += 1;
            cluster.shift_clock(1, hours * 3601);
            cluster.equal(SOON);
        }
        check(&cluster, &round, &written);
    }
    cluster.finish();
}

/// A member joins, never says what it has, and sends changes without end: 400 MiB, that all others
/// keep until the synchronisation is over. They leave before that takes too much memory, say whom
/// they waited for, serve reads, and are back when that member is gone.
fn silent_member(who: &Assignment) {
    const MIB: u64 = 400;
    let mut cluster = Cluster::new(who);
    cluster.on(1, || fs::write("/etc/pve/file", "content").unwrap());
    cluster.same_trees(VISIBLE);
    let mut command = cluster.node(2).command(compile("cpgsilent"));
    command.arg(MIB.to_string()).stdout(Stdio::piped());
    let mut silent = command.spawn().unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(silent.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "sent\n", "{}", who.name);
    let mut peaks = Vec::new();
    for i in 1..=3 {
        let pid = cluster.daemon(i).pid();
        let said = "MiB of messages wait for state of members node2 - leaving the group";
        // What came back to the sender may still be on its way to the others.
        let left = wait_for(SOON, || cluster.log(i).contains(said));
        assert!(left, "{}: node {i}: {}", who.name, cluster.log(i));
        let peak = proc_value(pid, "status", "VmHWM").unwrap() / 1024;
        assert!(peak < 256, "{}: node {i} took {peak} MiB", who.name);
        let content = cluster.on(i, || fs::read_to_string("/etc/pve/file").unwrap());
        assert_eq!(content, "content");
        peaks.push(peak);
    }
    report(&format!(
        "silent member {}: {MIB} MiB sent, peaks {peaks:?} MiB",
        who.name
    ));
    silent.kill().unwrap();
    silent.wait().unwrap();
    cluster.wait_online();
    cluster.finish();
}
