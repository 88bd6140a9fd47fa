//! Three of our nodes, and three of the reference where `PMXCFS_REFERENCE` names it, in turn: files
//! per second with 16 writers on one node, time for one file, time to bring 20 MB to an empty node.
//! A file is created, gets 1 KiB and is closed. `PMXCFS_BENCH_ROUNDS` (default 3) rounds.
#![allow(clippy::unwrap_used)]
#[path = "../tests/common/cluster.rs"]
mod cluster;

use cluster::{Assignment, Cluster, SOON};
use compat_tests::daemon::wait_for;
use compat_tests::report::median;
use compat_tests::{Subject, dbfile, report};
use std::fs;
use std::time::{Duration, Instant};

const WRITERS: usize = 16;
const STORM: Duration = Duration::from_secs(4);
const FILES: usize = 20;

/// Results of one kind of daemon, one value per round.
#[derive(Default)]
struct Results {
    files_per_second: Vec<f64>,
    one_file_ms: Vec<f64>,
    sync_s: Vec<f64>,
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

/// Nodes 1 and 2 have 20 files of 1 MiB; from the usable mount of node 3 until it shows all.
fn sync(who: &Assignment) -> f64 {
    let mut cluster = Cluster::without_daemons(who);
    let mut database = dbfile::Builder::default();
    let conf = fs::read(cluster.node(1).path("/etc/corosync/corosync.conf")).unwrap();
    database.file("corosync.conf", &conf);
    for n in 0..FILES {
        database.file(&format!("large{n}"), &vec![b'a'; 1 << 20]);
    }
    for i in [1, 2] {
        database.write(&cluster.node(i).database()).unwrap();
        cluster.start(i);
    }
    cluster.wait_online();
    let node = cluster.node(3);
    cluster.start(3);
    let started = Instant::now();
    let complete = node.inside(|| {
        wait_for(SOON, || {
            (0..FILES).all(|n| fs::exists(format!("/etc/pve/large{n}")).unwrap_or(false))
        })
    });
    assert!(complete, "{}: the files do not arrive", who.name);
    started.elapsed().as_secs_f64()
}

fn round(who: &Assignment, results: &mut Results) {
    let cluster = Cluster::new(who);
    results.one_file_ms.push(one_file(&cluster));
    results.files_per_second.push(storm(&cluster));
    cluster.equal(SOON);
    drop(cluster);
    results.sync_s.push(sync(who));
}

fn main() {
    let rounds = std::env::var("PMXCFS_BENCH_ROUNDS").map_or(3, |r| r.parse().unwrap());
    let mut kinds = vec![(Assignment::ours(), Results::default())];
    if let Some(reference) = Subject::reference_or_skip("bench cluster") {
        let who = Assignment {
            name: "RRR".into(),
            subjects: vec![reference; 3],
            thorough: true,
        };
        kinds.push((who, Results::default()));
    }
    for _ in 0..rounds {
        kinds.iter_mut().for_each(|(who, r)| round(who, r));
    }
    for (who, r) in &kinds {
        report(&format!(
            "bench cluster {}: {:.0} files/s with {WRITERS} writers, one file {:.2} ms, 20 MB to an empty node {:.2} s",
            who.name,
            median(&r.files_per_second),
            median(&r.one_file_ms),
            median(&r.sync_s)
        ));
    }
    if let [(_, ours), (_, reference)] = &kinds[..] {
        report(&format!(
            "bench cluster ours/reference: files/s {:.2} (goal 4), one file {:.2} (goal 0.7), sync {:.2} (goal 0.5)",
            median(&ours.files_per_second) / median(&reference.files_per_second),
            median(&ours.one_file_ms) / median(&reference.one_file_ms),
            median(&ours.sync_s) / median(&reference.sync_s)
        ));
    }
}
