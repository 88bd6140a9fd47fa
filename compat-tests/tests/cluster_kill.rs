//! What is left of a daemon that is killed, aborted or stopped while its callers, its disk and the
//! kernel's caches wait for something: nothing. The process is gone, its callers get an errno, and
//! the next daemon serves `/etc/pve`.
//!
//! What provokes the hang on purpose is in `tests/fs_mount/killed.rs` of the daemon's crate.
//!
//! The limits here are those of a process that hangs (20 s); what it took is reported. By hand:
//! `PMXCFS_KILLS=200`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/cluster.rs"]
mod cluster;

use cluster::{Assignment, Cluster, SOON, VISIBLE};
use compat_tests::daemon::{PATIENCE, wait_for};
use compat_tests::report::median;
use compat_tests::{Node, report};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const DIR: &str = "/etc/pve/load";
const WRITERS: usize = 4;
/// Kills of one run; half a second of load before each.
const KILLS: u64 = 6;

/// A cluster of ours in which names follow other nodes in the way that `--name-cache` names.
fn cluster(name_cache: &str, slow_disk: Option<usize>) -> Cluster {
    let mut cluster = Cluster::without_daemons(&Assignment::ours());
    cluster.options = vec!["--name-cache".into(), name_cache.into()];
    cluster.slow_disk = slow_disk;
    cluster.start_all();
    cluster.wait_online();
    cluster.on(1, || fs::create_dir(DIR)).unwrap();
    for i in 1..=3 {
        let there = || cluster.on(i, || fs::exists(DIR).unwrap());
        assert!(wait_for(VISIBLE, there), "node {i}");
    }
    cluster
}

/// Sends `signal` to the daemon of node `i` and waits for its end. If it does not end, its
/// connection is aborted, so that the test does not hang with it.
fn end(cluster: &mut Cluster, i: usize, signal: Signal, connection: u64) -> Duration {
    cluster.signal(i, signal);
    let sent = Instant::now();
    let daemon = cluster.daemon(i);
    let ended = wait_for(PATIENCE, || !daemon.is_running());
    let took = sent.elapsed();
    if !ended {
        let stuck = threads(daemon.pid());
        let abort = format!(
            "mount -t fusectl none /sys/fs/fuse/connections 2>/dev/null; \
             echo 1 > /sys/fs/fuse/connections/{connection}/abort"
        );
        let aborted = cluster.node(i).sh(&abort);
        panic!("node {i} is still there {took:?} after {signal}: {stuck:#?} ({aborted:?})");
    }
    took
}

/// What the threads of a process wait for.
fn threads(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let text = |task: &fs::DirEntry, file: &str| {
        fs::read_to_string(task.path().join(file)).unwrap_or_default()
    };
    let line = |task: fs::DirEntry| {
        let (comm, stack) = (text(&task, "comm"), text(&task, "stack"));
        format!("{}: {}", comm.trim(), stack.replace('\n', " "))
    };
    tasks.map_or(Vec::new(), |tasks| tasks.flatten().map(line).collect())
}

/// The number of the FUSE connection of a node's mount.
fn connection(cluster: &Cluster, i: usize) -> u64 {
    let device = cluster.on(i, || fs::metadata("/etc/pve").unwrap().dev());
    // the minor number
    (device & 0xff) | ((device >> 12) & 0xf_ff00)
}

/// Writes files beside their place and renames them, all in one directory, and keeps for each name
/// the number of the last change that was acknowledged, and of the one that may have been made.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<BTreeMap<String, (u64, u64)>>>,
}

impl Load {
    fn start(nodes: &[Node], round: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let pairs = nodes
            .iter()
            .flat_map(|node| (0..WRITERS).map(move |w| (node, w)));
        let threads = pairs
            .map(|(node, w)| {
                let (node, stop) = (node.clone(), stop.clone());
                std::thread::spawn(move || Load::write(&node, w, round, &stop))
            })
            .collect();
        Self { stop, threads }
    }

    fn write(node: &Node, w: usize, round: u64, stop: &AtomicBool) -> BTreeMap<String, (u64, u64)> {
        node.enter();
        let mut files = BTreeMap::new();
        let prefix = format!("r{round}n{}w{w}", node.index);
        let temp = format!("{DIR}/{prefix}.tmp");
        for n in 1.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let name = format!("{DIR}/{prefix}f{}", n % 5);
            let (last, open) = files.entry(name.clone()).or_insert((0, 0));
            *open = n;
            let written = fs::write(&temp, n.to_string()).and_then(|()| fs::rename(&temp, &name));
            match written {
                Ok(()) => *last = n,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        files
    }

    fn end(self) -> BTreeMap<String, (u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        let files = self.threads.into_iter().map(|t| t.join().unwrap());
        files.flatten().collect()
    }
}

/// Every file has its last acknowledged content, or that of a later change without an answer.
fn check_files(cluster: &Cluster, files: &BTreeMap<String, (u64, u64)>) {
    for i in 1..=3 {
        let wrong = || {
            let read = |name: &String| fs::read_to_string(name).ok()?.parse::<u64>().ok();
            let wrong = |(name, (last, open)): (&String, &(u64, u64))| {
                let found = cluster.on(i, || read(name)).unwrap_or(0);
                let fits = found >= *last && found <= *open;
                (!fits).then(|| format!("{name}: {found}, acknowledged {last}"))
            };
            files.iter().filter_map(wrong).collect::<Vec<_>>()
        };
        let right = wait_for(VISIBLE, || wrong().is_empty());
        assert!(right, "node {i}: {:#?}", wrong());
    }
}

fn kills() -> u64 {
    std::env::var("PMXCFS_KILLS").map_or(KILLS, |n| n.parse().expect("PMXCFS_KILLS is a number"))
}

/// Writers on all nodes in one directory, and a node is killed; every third time its link was cut a
/// moment before.
fn killed_under_load(name_cache: &str) {
    let mut cluster = cluster(name_cache, None);
    let (mut ends, mut starts) = (Vec::new(), Vec::new());
    for n in 0..kills() {
        let i = usize::try_from(n % 3).unwrap() + 1;
        let is_cut = n % 3 == 2;
        let signal = if n % 4 == 3 {
            Signal::SIGABRT
        } else {
            Signal::SIGKILL
        };
        let connection = connection(&cluster, i);
        let nodes: Vec<Node> = (1..=3).map(|i| cluster.node(i)).collect();
        let load = Load::start(&nodes, n);
        // Pauses that do not repeat.
        std::thread::sleep(Duration::from_millis(500 + (n * 211) % 500));
        if is_cut {
            cluster.lab.connect(i, false);
            std::thread::sleep(Duration::from_millis((n * 67) % 1500));
        }
        ends.push(end(&mut cluster, i, signal, connection));
        let started = Instant::now();
        cluster.start(i);
        starts.push(started.elapsed());
        cluster.lab.connect(i, true);
        // The callers of the dead daemon have got their errno.
        let files = load.end();
        cluster.wait_online();
        check_files(&cluster, &files);
        cluster.equal(SOON);
        for (name, _) in files {
            let _ = cluster.on(1, || fs::remove_file(name));
        }
    }
    let seconds = |times: &[Duration]| {
        let times: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        let longest = times.iter().copied().fold(0.0, f64::max);
        format!("{:.3} s, longest {longest:.3} s", median(&times))
    };
    report(&format!(
        "cluster-kill {name_cache} {} kills: gone after {}; served again after {}",
        ends.len(),
        seconds(&ends),
        seconds(&starts)
    ));
    cluster.finish();
}

/// An orderly stop beside a slow disk: some hundred files wait for it, and a create in the directory
/// in which another node writes.
fn stopped_beside_a_slow_disk(name_cache: &str) {
    let mut cluster = cluster(name_cache, Some(3));
    cluster.slow_down_disk(3, 200);
    let connection = connection(&cluster, 3);
    let load = Load::start(&[cluster.node(1), cluster.node(3)], 0);
    std::thread::sleep(Duration::from_secs(2));
    let took = end(&mut cluster, 3, Signal::SIGTERM, connection);
    let files = load.end();
    report(&format!(
        "cluster-kill {name_cache} slow disk, SIGTERM: gone after {took:?}"
    ));
    cluster.slow_disk = None;
    cluster.start(3);
    cluster.wait_online();
    check_files(&cluster, &files);
    cluster.finish();
}

macro_rules! for_each_name_cache {
    ($($name:ident),*) => {
        mod epoch {
            $(#[test]
            fn $name() {
                super::$name("epoch");
            })*
        }
        mod lifetime {
            $(#[test]
            fn $name() {
                super::$name("lifetime");
            })*
        }
    };
}

for_each_name_cache!(killed_under_load, stopped_beside_a_slow_disk);
