//! The handles of `pmxcfs::corosync` on three real corosyncs, each in namespaces of its own.
//!
//! Needs root, corosync and iproute2. The lab number (1..200, default 100; decides the names of
//! the namespaces) is taken from `PMXCFS_COROSYNC_LABID`.
#![allow(clippy::unwrap_used)] // a test ends at the first surprise

#[path = "../corosync_support/mod.rs"]
mod lab;
mod probe;

use std::time::{Duration, Instant};

use lab::{Lab, Probe};

const SOON: Duration = Duration::from_secs(30);

/// Not a test of its own: what the other test runs inside the nodes.
#[test]
fn probe() {
    if lab::is_probe() {
        probe::run();
    }
}

fn all_joined(probes: &mut [Probe]) {
    for probe in probes.iter_mut() {
        probe.wait("quorum 1", SOON);
        for group in ["dcdb", "kv"] {
            probe.take(SOON, |line| {
                line.starts_with(&format!("{group} members 1 2 3"))
            });
        }
    }
}

fn next(probe: &mut Probe, start: &str) -> String {
    probe.take(SOON, |line| line.starts_with(start))
}

fn messages_reach_everybody_in_one_order(probes: &mut [Probe]) {
    for round in 0..20 {
        for (i, probe) in probes.iter_mut().enumerate() {
            probe.tell(&format!("send dcdb m{i}.{round}"));
        }
    }
    let orders: Vec<Vec<String>> = probes
        .iter_mut()
        .map(|probe| (0..60).map(|_| next(probe, "dcdb deliver ")).collect())
        .collect();
    assert_eq!(orders[0], orders[1]);
    assert_eq!(orders[0], orders[2]);
    for sender in 0..3 {
        let text_of = |line: &String| line.rsplit(' ').next().unwrap().to_owned();
        let start = format!("dcdb deliver {} ", sender + 1);
        let own: Vec<String> = orders[0]
            .iter()
            .filter(|line| line.starts_with(&start))
            .map(text_of)
            .collect();
        let sent: Vec<String> = (0..20).map(|round| format!("m{sender}.{round}")).collect();
        assert_eq!(own, sent);
    }
}

fn groups_are_apart(probes: &mut [Probe]) {
    probes[0].tell("send kv only");
    for probe in probes.iter_mut() {
        assert_eq!(next(probe, "kv deliver "), "kv deliver 1 4 only");
        assert!(!probe.said("dcdb deliver 1 4 only"));
    }
}

fn sizes_around_one_request_arrive_whole(probes: &mut [Probe]) {
    for size in [0, 1, (1 << 20) - 1024, (1 << 20) - 1023, 2 << 20] {
        probes[1].tell(&format!("big dcdb {size}"));
        for probe in probes.iter_mut() {
            assert_eq!(
                next(probe, "dcdb deliver "),
                format!("dcdb deliver 2 {size} pattern")
            );
        }
    }
}

fn cmap_knows_the_nodes(probes: &mut [Probe], name: &str) {
    for probe in probes.iter_mut() {
        probe.wait(&format!("cmap {name} 1 1=node1 2=node2 3=node3"), SOON);
    }
}

/// A configuration that corosync reads again.
fn cmap_follows_a_reload(lab: &Lab, probes: &mut [Probe], name: &str) {
    lab.reload_corosync("config_version: 1", "config_version: 2");
    for probe in probes.iter_mut() {
        probe.take(SOON, |line| line.starts_with(&format!("cmap {name} 2 ")));
    }
}

fn leave_and_rejoin(probes: &mut [Probe]) {
    probes.iter_mut().for_each(Probe::forget);
    probes[2].tell("leave kv");
    probes[0].wait("kv members 1 2 left 3", SOON);
    probes[2].wait("kv members 1 2 left 3", SOON);
    // "At once" is what the probe does with a new handle: well below the 6 s of the C daemon.
    probes[2].tell("join kv");
    let start = Instant::now();
    probes[2].wait("kv members 1 2 3 joined 3", SOON);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    probes[0].wait("kv members 1 2 3 joined 3", SOON);
    // The other group did not notice.
    assert!(!probes[0].said("dcdb members 1 2 left 3"));
}

fn corosync_dies_and_returns(lab: &Lab, probes: &mut [Probe]) {
    probes.iter_mut().for_each(Probe::forget);
    lab.kill_corosync(3);
    for what in ["dcdb", "kv", "quorum", "cmap"] {
        probes[2].wait(&format!("{what} lost CS_ERR_LIBRARY"), SOON);
    }
    probes[0].wait("dcdb members 1 2 left 3", SOON);
    lab.start_corosync(3);
    probes[2].wait("quorum 1", SOON);
    for group in ["dcdb", "kv"] {
        next(&mut probes[2], &format!("{group} members 1 2 3"));
    }
    probes[0].wait("dcdb members 1 2 3 joined 3", SOON);
    probes[2].tell("send dcdb back");
    assert_eq!(
        next(&mut probes[0], "dcdb deliver "),
        "dcdb deliver 3 4 back"
    );
}

fn quorum_is_lost_and_returns(lab: &Lab, probes: &mut [Probe]) {
    probes.iter_mut().for_each(Probe::forget);
    lab.kill_corosync(2);
    lab.kill_corosync(3);
    probes[0].wait("quorum 0", SOON);
    lab.start_corosync(2);
    probes[0].wait("quorum 1", SOON);
    lab.start_corosync(3);
    for probe in &mut probes[1..] {
        probe.wait("quorum 1", SOON);
    }
    for probe in probes.iter_mut() {
        next(probe, "dcdb members 1 2 3");
    }
}

fn a_process_that_ends_leaves(probes: &mut [Probe]) {
    probes[1].end();
    probes[0].wait("dcdb members 1 3 left 2", SOON);
}

#[test]
fn three_nodes() {
    let name = "a cluster with quite a long name, longer than sixteen bytes";
    let lab = Lab::up(0, 3, name);
    for node in 1..=3 {
        lab.start_corosync(node);
    }
    let mut probes: Vec<Probe> = (1..=3).map(|node| lab.probe(node)).collect();
    all_joined(&mut probes);
    messages_reach_everybody_in_one_order(&mut probes);
    groups_are_apart(&mut probes);
    sizes_around_one_request_arrive_whole(&mut probes);
    cmap_knows_the_nodes(&mut probes, name);
    cmap_follows_a_reload(&lab, &mut probes, name);
    leave_and_rejoin(&mut probes);
    corosync_dies_and_returns(&lab, &mut probes);
    quorum_is_lost_and_returns(&lab, &mut probes);
    a_process_that_ends_leaves(&mut probes);
}
