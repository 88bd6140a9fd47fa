//! A node is cut off while it writes, and corosync needs longer to notice than its callers wait: what the
//! others acknowledge meanwhile is there afterwards, and so is what the node itself acknowledged.
//!
//! By hand: `CUTS` (of each kind), `CUT_WRITE_TIMEOUT` and `CUT_TOTEM` (lines of corosync.conf; with
//! `token: 14500` and `consensus: 17500` corosync takes 32 s, as it does with the defaults in a cluster
//! of 19 nodes).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/cluster.rs"]
mod cluster;

use cluster::{Assignment, Cluster, SOON, VISIBLE};
use compat_tests::daemon::wait_for;
use compat_tests::{Node, report};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Callers of the node that is cut off.
const WRITERS: usize = 48;
/// With corosync's defaults three nodes miss one after some 8 s.
const CUT_WRITE_TIMEOUT: u64 = 2;
/// What corosync may take to notice, at most.
const NOTICED: Duration = Duration::from_secs(90);

/// How the node loses the others.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// The link goes down.
    Link,
    /// What it sends is lost for a moment before that.
    SendsFirst,
}

#[test]
fn what_was_acknowledged_outlives_a_cut_that_is_noticed_late() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|n| n.parse().expect("a number"))
    };
    let totem = std::env::var("CUT_TOTEM").unwrap_or_default();
    let mut cluster = Cluster::with_totem(&Assignment::ours(), &totem.replace(';', "\n"));
    let timeout = number("CUT_WRITE_TIMEOUT").unwrap_or(CUT_WRITE_TIMEOUT);
    cluster.write_timeout = Duration::from_secs(timeout);
    cluster.start_all();
    cluster.wait_online();
    let mut lost = Vec::new();
    let kinds = [Cut::Link, Cut::SendsFirst];
    for n in 0..number("CUTS").unwrap_or(2) * 2 {
        let n = usize::try_from(n).unwrap();
        let kind = kinds[n % 2];
        let missing = cut(&cluster, n, kind);
        report(&format!("cluster-cut {n} {kind:?}: lost {missing:?}"));
        lost.extend(missing);
    }
    let back = "changes back that the other nodes may not have";
    let taken: usize = (1..=3).map(|i| cluster.log(i).matches(back).count()).sum();
    report(&format!("cluster-cut: changes taken back {taken} times"));
    assert_eq!(lost, [""; 0]);
    cluster.finish();
}

fn quorate(cluster: &Cluster, i: usize, yes: bool) -> bool {
    let wanted = format!("\"quorate\": {}", u8::from(yes));
    cluster.members(i).contains(&wanted)
}

/// Node `n` modulo 3 loses the others and comes back. What was acknowledged and is not there then.
fn cut(cluster: &Cluster, n: usize, kind: Cut) -> Vec<String> {
    let (i, other) = (n % 3 + 1, (n + 1) % 3 + 1);
    let (node, address) = (cluster.node(i), |j| cluster.lab.address(j));
    let others: Vec<usize> = (1..=3).filter(|j| *j != i).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|w| writer(&node, format!("/etc/pve/cut{n}-{w}"), stop.clone()))
        .collect();
    // Any moment of their work.
    std::thread::sleep(Duration::from_millis(700 + 7 * (n as u64 % 20)));
    if matches!(kind, Cut::SendsFirst) {
        // To an address of the network card that nobody has, for both at the same moment.
        let to = |j: &usize| {
            let to = address(*j);
            format!("neigh replace {to} lladdr 02:00:00:00:00:01 nud permanent dev eth0\n")
        };
        let batch: String = others.iter().map(to).collect();
        assert_eq!(node.sh(&format!("ip -batch - <<< '{batch}'")).0, 0);
        std::thread::sleep(Duration::from_millis(150));
    }
    cluster.lab.connect(i, false);
    let started = Instant::now();
    // One change, when they can: fewer than the node may have made last.
    let missed = || cluster.members(other).matches("\"online\": 1").count() == 2;
    assert!(wait_for(NOTICED, missed), "node {i} is not missed");
    let took = started.elapsed();
    let mut made = String::new();
    let acknowledged = (0..20).any(|attempt| {
        // What was refused may be there all the same.
        made = format!("/etc/pve/majority{n}-{attempt}");
        cluster.on(other, || fs::create_dir(&made)).is_ok()
    });
    assert!(acknowledged, "the majority takes no change");
    assert!(wait_for(NOTICED, || quorate(cluster, i, false)), "{i}");
    stop.store(true, Ordering::Relaxed);
    let mut written: Vec<String> = writers
        .into_iter()
        .flat_map(|w| w.join().unwrap())
        .collect();
    let version = |j: usize| {
        let digests = cluster.digests(&[j]).remove(0);
        digests.map(|digests| digests.version).unwrap_or_default()
    };
    report(&format!(
        "cluster-cut {n}: {} files acknowledged, the majority goes on after {took:?} as {made}; versions {} \
         and {}",
        written.len(),
        version(i),
        version(other)
    ));
    assert!(took > cluster.write_timeout, "noticed in time: {took:?}");
    assert!(
        !written.is_empty(),
        "nothing was acknowledged before the cut"
    );
    written.push(made);
    for j in others {
        node.sh(&format!("ip neigh del {} dev eth0", address(j)));
    }
    cluster.lab.connect(i, true);
    let whole = || (1..=3).all(|j| quorate(cluster, j, true));
    assert!(wait_for(NOTICED, whole), "no quorum");
    let synced = || {
        let digests = cluster.digests(&[1, 2, 3]);
        digests.iter().all(|d| d.is_ok() && *d == digests[0])
    };
    assert!(wait_for(SOON, synced), "the nodes differ");
    cluster.same_trees(VISIBLE);
    let is_missing = |path: &String| !cluster.on(i, || fs::exists(path).unwrap());
    written.into_iter().filter(is_missing).collect()
}

/// Makes files until it is told to stop; those that were acknowledged.
fn writer(node: &Node, dir: String, stop: Arc<AtomicBool>) -> JoinHandle<Vec<String>> {
    let node = node.clone();
    std::thread::spawn(move || {
        node.enter();
        let mut written = Vec::new();
        if fs::create_dir(&dir).is_err() {
            return written;
        }
        for n in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let path = format!("{dir}/f{n}");
            match fs::write(&path, b"content") {
                Ok(()) => written.push(path),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        written
    })
}
