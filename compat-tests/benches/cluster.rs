//! Three of our nodes, and three of the reference where `PMXCFS_REFERENCE` names it, in turn: files
//! per second with 16 writers on one node, time for one file, time to bring 20 MB to an empty node.
//! A file is created, gets 1 KiB and is closed. Beside it what corosync alone does between three
//! nodes (`tools/cpgbare.c`): a file is at least two messages, one after the other. And the floor:
//! the same files in a file system that does nothing but send, write and answer
//! (`tools/cpgfuse.c`), without a disk, with an SQLite database on each node, and with answers that
//! wait until something sent later has come back, as ours do.
//! `PMXCFS_BENCH_ROUNDS` (default 3) rounds.
#![allow(clippy::unwrap_used)]
#[path = "../tests/common/cluster.rs"]
mod cluster;
mod common;

use cluster::{Assignment, Cluster, SOON};
use compat_tests::client::compile;
use compat_tests::daemon::wait_for;
use compat_tests::report::median;
use compat_tests::{Node, Subject, dbfile, report};
use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

const WRITERS: usize = 16;
const STORM: Duration = Duration::from_secs(4);
const FILES: usize = 20;
const FILE_BYTES: u64 = 1 << 20;
/// Bytes of a message that brings 1 KiB, and of one with which corosync moves most.
const MESSAGE: usize = 1100;
const LARGE_MESSAGE: usize = 128 << 10;
/// Name of the file system that is only a floor, and where it writes on each node.
const FLOOR: &str = "cpgfuse";
const DATABASE: &str = "/var/lib/pve-cluster/config.db";

/// Results of one kind of daemon, one value per round.
#[derive(Default)]
struct Results {
    files_per_second: Vec<f64>,
    one_file_ms: Vec<f64>,
    sync_s: Vec<f64>,
    start_s: Vec<f64>,
}

/// What corosync alone does, one value per round.
#[derive(Default)]
struct Bare {
    one_message_ms: Vec<f64>,
    messages_per_second: Vec<f64>,
    megabytes_per_second: Vec<f64>,
}

/// What is hard to do better, one value per round.
#[derive(Default)]
struct Floor {
    files_per_second: Vec<f64>,
    one_file_ms: Vec<f64>,
}

/// Messages per second, and milliseconds from sending one to its own delivery.
fn cpgbare(node: &Node, bytes: usize, outstanding: usize) -> (f64, f64) {
    let numbers = ["3", &bytes.to_string(), &outstanding.to_string(), "1500"];
    let mut command = node.command(compile("cpgbare"));
    let out = command.arg("send").args(numbers).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let words: Vec<&str> = text.split_whitespace().collect();
    let number = |at: usize| words.get(at).and_then(|w| w.parse::<f64>().ok());
    match (number(0), number(3)) {
        (Some(rate), Some(us)) => (rate, us / 1e3),
        _ => panic!("cpgbare: {text}{}", String::from_utf8_lossy(&out.stderr)),
    }
}

/// Programs that end with the measurement.
struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Fails if it has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn bare(who: &Assignment, results: &mut Bare) {
    let cluster = Cluster::without_daemons(who);
    let member = |i: usize| {
        let mut command = cluster.node(i).command(compile("cpgbare"));
        command.arg("member").spawn().unwrap()
    };
    let _members = Running(vec![member(2), member(3)]);
    let node = cluster.node(1);
    results.one_message_ms.push(cpgbare(&node, MESSAGE, 1).1);
    results
        .messages_per_second
        .push(cpgbare(&node, MESSAGE, WRITERS).0);
    let (rate, _) = cpgbare(&node, LARGE_MESSAGE, 4);
    results
        .megabytes_per_second
        .push(rate * LARGE_MESSAGE as f64 / 1e6);
}

/// The same writers on [`FLOOR`] instead of a daemon.
fn floor(who: &Assignment, serve: &str, database: Option<&str>, results: &mut Floor) {
    let cluster = Cluster::without_daemons(who);
    let node = cluster.node(1);
    let run = |i: usize, arguments: &[&str]| {
        let mut command = cluster.node(i).command(compile(FLOOR));
        command.args(arguments).args(database).spawn().unwrap()
    };
    let followers = [2, 3].map(|i| run(i, &["follow"]));
    let mut running = Running(followers.into());
    running.0.push(run(1, &[serve, "3", "/etc/pve"]));
    let mounted = || node.mounts().iter().any(|line| line.contains(FLOOR));
    assert!(wait_for(SOON, mounted), "{FLOOR} does not mount");
    results.one_file_ms.push(one_file(&cluster));
    results.files_per_second.push(storm(&cluster));
}

fn write(path: &str) {
    fs::write(path, [b'k'; 1024]).unwrap();
}

fn storm(cluster: &Cluster) -> f64 {
    let node = cluster.node(1);
    let end = Instant::now() + STORM;
    let counts: Vec<usize> = std::thread::scope(|scope| {
        let writer = |w: usize| {
            let node = &node;
            scope.spawn(move || {
                node.enter();
                fs::create_dir(format!("/etc/pve/w{w}")).unwrap();
                (0..)
                    .take_while(|n| {
                        write(&format!("/etc/pve/w{w}/f{n}"));
                        Instant::now() < end
                    })
                    .count()
            })
        };
        let threads: Vec<_> = (0..WRITERS).map(writer).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    counts.iter().sum::<usize>() as f64 / STORM.as_secs_f64()
}

fn one_file(cluster: &Cluster) -> f64 {
    cluster.on(1, || {
        fs::create_dir("/etc/pve/one").unwrap();
        let times: Vec<f64> = (0..300)
            .map(|n| {
                let started = Instant::now();
                write(&format!("/etc/pve/one/f{n}"));
                started.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        median(&times)
    })
}

/// The node's database and its log, in bytes.
fn on_disk(node: &Node) -> u64 {
    let log = node.database().with_extension("db-wal");
    let size = |path| fs::metadata(path).map_or(0, |m| m.len());
    size(node.database()) + size(log)
}

/// Nodes 1 and 2 have 20 files of 1 MiB, node 3 has nothing and is started. Seconds from the
/// beginning of the synchronisation, and from the start of the process, until its mount shows all
/// of them in full length and they are on its disk.
fn sync(who: &Assignment) -> (f64, f64) {
    let mut cluster = Cluster::without_daemons(who);
    let mut database = dbfile::Builder::default();
    let conf = fs::read(cluster.node(1).path("/etc/corosync/corosync.conf")).unwrap();
    database.file("corosync.conf", &conf);
    for n in 0..FILES {
        database.file(&format!("large{n}"), &vec![b'a'; FILE_BYTES as usize]);
    }
    for i in [1, 2] {
        database.write(&cluster.node(i).database()).unwrap();
        cluster.start(i);
    }
    cluster.wait_online();
    let node = cluster.node(3);
    let started = Instant::now();
    cluster.spawn(3);
    let begins =
        |line: &str| line.contains("dcdb") && line.contains("starting data syncronisation");
    let begun = wait_for(SOON, || cluster.log(3).lines().any(begins));
    let syncing = Instant::now();
    let complete = node.inside(|| {
        let large = |n: usize| fs::metadata(format!("/etc/pve/large{n}"));
        let shown = |n: usize| large(n).is_ok_and(|m| m.len() == FILE_BYTES);
        wait_for(SOON, || {
            on_disk(&node) > FILES as u64 * FILE_BYTES && (0..FILES).all(shown)
        })
    });
    assert!(begun && complete, "{}: the files do not arrive", who.name);
    (
        syncing.elapsed().as_secs_f64(),
        started.elapsed().as_secs_f64(),
    )
}

fn round(who: &Assignment, results: &mut Results) {
    let cluster = Cluster::new(who);
    results.one_file_ms.push(one_file(&cluster));
    results.files_per_second.push(storm(&cluster));
    cluster.equal(SOON);
    drop(cluster);
    let (sync_s, start_s) = sync(who);
    results.sync_s.push(sync_s);
    results.start_s.push(start_s);
}

/// Median of the ratios of the single rounds.
fn ratio(of: &[f64], to: &[f64]) -> f64 {
    let rounds = of.iter().zip(to);
    median(&rounds.map(|(of, to)| of / to).collect::<Vec<_>>())
}

fn print(kinds: &[(Assignment, Results)], bare: &Bare, floors: &[(&str, Floor)]) {
    report(&format!(
        "bench cluster bare CPG: one message of {MESSAGE} bytes {:.2} ms, {:.0} messages/s with {WRITERS} under way, {:.0} MB/s in {LARGE_MESSAGE} bytes",
        median(&bare.one_message_ms),
        median(&bare.messages_per_second),
        median(&bare.megabytes_per_second)
    ));
    for (what, floor) in floors {
        report(&format!(
            "bench cluster floor {what}: {:.0} files/s with {WRITERS} writers, one file {:.2} ms",
            median(&floor.files_per_second),
            median(&floor.one_file_ms)
        ));
    }
    for (who, r) in kinds {
        report(&format!(
            "bench cluster {}: {:.0} files/s with {WRITERS} writers, one file {:.2} ms, 20 MB to an empty node {:.2} s, with its start {:.2} s",
            who.name,
            median(&r.files_per_second),
            median(&r.one_file_ms),
            median(&r.sync_s),
            median(&r.start_s)
        ));
    }
    if let [(_, ours), (_, reference)] = kinds {
        report(&format!(
            "bench cluster ours/reference: files/s {:.2} (goal 4), one file {:.2} (goal 0.7), sync {:.2} (goal 0.5), with start {:.2}",
            ratio(&ours.files_per_second, &reference.files_per_second),
            ratio(&ours.one_file_ms, &reference.one_file_ms),
            ratio(&ours.sync_s, &reference.sync_s),
            ratio(&ours.start_s, &reference.start_s)
        ));
        for (what, floor) in floors {
            report(&format!(
                "bench cluster floor {what}/reference: files/s {:.2}, one file {:.2}",
                ratio(&floor.files_per_second, &reference.files_per_second),
                ratio(&floor.one_file_ms, &reference.one_file_ms)
            ));
        }
    }
}

fn main() {
    let rounds = std::env::var("PMXCFS_BENCH_ROUNDS").map_or(3, |r| r.parse().unwrap());
    common::before_others();
    common::headline("cluster");
    let mut kinds = vec![(Assignment::ours(), Results::default())];
    if let Some(reference) = Subject::reference_or_skip("bench cluster") {
        let who = Assignment {
            name: "RRR".into(),
            subjects: vec![reference; 3],
            thorough: true,
        };
        kinds.push((who, Results::default()));
    }
    let mut alone = Bare::default();
    let mut floors = ["without a disk", "with SQLite", "with SQLite, confirmed"]
        .map(|what| (what, Floor::default()));
    for _ in 0..rounds {
        bare(&kinds[0].0, &mut alone);
        let [without, with, confirmed] = &mut floors;
        floor(&kinds[0].0, "serve", None, &mut without.1);
        floor(&kinds[0].0, "serve", Some(DATABASE), &mut with.1);
        floor(&kinds[0].0, "careful", Some(DATABASE), &mut confirmed.1);
        kinds.iter_mut().for_each(|(who, r)| round(who, r));
    }
    print(&kinds, &alone, &floors);
}
