//! A node comes back from local mode: what it changed counts if nobody else has changed anything since, and
//! is kept aside otherwise.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/cluster.rs"]
mod cluster;

use cluster::{Assignment, Cluster, SOON, Tree, VISIBLE};
use compat_tests::daemon::wait_for;
use compat_tests::{Checker, Daemon, dbfile, report};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

on_assignments!(a_node_comes_back_from_local_mode);

/// Guests of each node.
const GUESTS: usize = 5;
/// Files that are written in local mode: more changes than the others make.
const FILES: usize = 40;

fn a_node_comes_back_from_local_mode(who: &Assignment) {
    let mut cluster = Cluster::new(who);
    guests(&cluster);
    cluster.equal(VISIBLE);
    let before = cluster.same_trees(VISIBLE);

    // The others have an acknowledged change meanwhile: the cluster's state wins.
    in_local_mode(&mut cluster, |cluster| {
        cluster.on(1, || fs::write("/etc/pve/acknowledged", b"yes").unwrap());
    });
    cluster.wait_online();
    cluster.equal(SOON);
    let tree = cluster.same_trees(VISIBLE);
    let there = |path: &str| {
        if tree.contains_key(path) {
            "there"
        } else {
            "gone"
        }
    };
    let mut checker = Checker::new(&who.subjects[2], "cluster-local");
    checker.must("acknowledged by the others", "there", there("acknowledged"));
    checker.must(
        "removed alone",
        "there",
        there("nodes/node1/qemu-server/100.conf"),
    );
    checker.finish();
    if !who.is_ours(3) {
        // Nodes of ours cannot keep the C daemon from leading, but keep what it takes.
        for i in who.our_nodes() {
            assert_eq!(asides(&cluster, i).len(), 1, "{}: node {i}", who.name);
        }
        return cluster.finish();
    }
    assert_eq!(tree["acknowledged"].3, b"yes", "{}", who.name);
    assert_guests(&tree, &before, &who.name);
    assert!(!tree.contains_key("local1"), "{}", who.name);
    assert!(!shared(&cluster).exists(), "{}", who.name);
    kept_aside(&cluster);

    // It was away, and is merely behind: nothing is kept.
    cluster.stop_well(3);
    cluster.on(1, || {
        fs::remove_file("/etc/pve/acknowledged").unwrap();
        fs::write("/etc/pve/more", b"more").unwrap();
    });
    cluster.start(3);
    cluster.wait_online();
    cluster.equal(SOON);
    assert_eq!(asides(&cluster, 3).len(), 1, "{}", who.name);
    said(&cluster, "this node had version");

    // It has lost its database, or has that of another cluster: the log says so, and what was lost.
    cluster.stop_well(3);
    dbfile::remove_with_log(&cluster.node(3).database());
    cluster.start(3);
    cluster.wait_online();
    cluster.equal(SOON);
    said(&cluster, "this node had a new database");
    assert_eq!(asides(&cluster, 3).len(), 1, "{}", who.name);
    cluster.stop_well(3);
    foreign(&cluster);
    cluster.start(3);
    cluster.wait_online();
    cluster.equal(SOON);
    said(&cluster, "1 entries of this node are gone");
    assert_eq!(asides(&cluster, 3).len(), 2, "{}", who.name);

    // Nobody moves: the local changes win, also over C nodes.
    in_local_mode(&mut cluster, |_| {});
    // In this order: the other would make a change.
    cluster.equal(SOON);
    cluster.wait_online();
    let tree = cluster.same_trees(VISIBLE);
    assert_eq!(tree["local1"].3, b"local 1", "{}", who.name);
    assert_eq!(tree["more"].3, b"more", "{}", who.name);
    let left = tree.keys().filter(|path| path.ends_with(".conf"));
    assert_eq!(left.count(), 1, "{}: corosync.conf", who.name);
    assert_eq!(asides(&cluster, 3).len(), 2, "{}", who.name);
    let gone = || !shared(&cluster).exists();
    assert!(wait_for(VISIBLE, gone), "{}", who.name);
    // Everything the others lost here they were told of by nobody: nothing of it is kept either.
    for i in who.our_nodes().into_iter().filter(|i| *i != 3) {
        assert!(asides(&cluster, i).is_empty(), "{}: node {i}", who.name);
    }
    cluster.finish();
}

fn guests(cluster: &Cluster) {
    cluster.on(1, || {
        for node in 1..=3 {
            let dir = format!("/etc/pve/nodes/node{node}/qemu-server");
            fs::create_dir_all(&dir).unwrap();
            for n in 0..GUESTS {
                let id = 100 * node + n;
                fs::write(format!("{dir}/{id}.conf"), format!("name: vm{id}\n")).unwrap();
            }
        }
    });
}

fn assert_guests(tree: &Tree, before: &Tree, name: &str) {
    let guests = |path: &&String| path.starts_with("nodes/");
    let wanted: Vec<_> = before.keys().filter(guests).collect();
    assert!(wanted.len() > 3 * GUESTS, "{name}");
    for path in wanted {
        assert_eq!(tree.get(path), before.get(path), "{name}: {path}");
    }
}

fn said(cluster: &Cluster, words: &str) {
    let log = cluster.log(3);
    assert!(log.contains(words), "{}: {words}: {log}", cluster.who.name);
}

/// A database of other origin, with fewer changes than the cluster's.
fn foreign(cluster: &Cluster) {
    let node = cluster.node(3);
    dbfile::remove_with_log(&node.database());
    let conf = fs::read(node.path("/etc/corosync/corosync.conf")).unwrap();
    let mut database = dbfile::Builder::default();
    database.file("corosync.conf", &conf);
    database.file("elsewhere", b"another cluster");
    database.write(&node.database()).unwrap();
}

/// Node 3 ends, and runs alone: its directories of guests go, files come. Meanwhile `work`. Then it
/// starts as a node of the cluster.
fn in_local_mode(cluster: &mut Cluster, work: impl FnOnce(&Cluster)) {
    cluster.stop_well(3);
    let node = cluster.node(3);
    let subject = cluster.who.subjects[2].clone();
    let daemon = Daemon::local(&node, &subject);
    node.inside(|| -> io::Result<()> {
        for entry in fs::read_dir("/etc/pve/nodes")? {
            fs::remove_dir_all(entry?.path())?;
        }
        for n in 0..FILES {
            fs::write(format!("/etc/pve/local{n}"), format!("local {n}"))?;
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(daemon.stop().code, 0);
    assert_eq!(shared(cluster).exists(), subject.is_ours());
    work(cluster);
    cluster.start(3);
}

/// What remembers the last version that node 3 shared with the others.
fn shared(cluster: &Cluster) -> PathBuf {
    cluster
        .node(3)
        .path("/var/lib/pve-cluster/config.db.shared")
}

fn asides(cluster: &Cluster, i: usize) -> Vec<PathBuf> {
    let backup = cluster.node(i).path("/var/lib/pve-cluster/backup");
    let files = fs::read_dir(backup).into_iter().flatten();
    files.map(|file| file.unwrap().path()).collect()
}

/// The log of node 3 names the file, and what it advises works.
fn kept_aside(cluster: &Cluster) {
    let name = &cluster.who.name;
    let kept = asides(cluster, 3);
    assert_eq!(kept.len(), 1, "{name}: {kept:?}");
    let mode = fs::metadata(&kept[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{name}");
    let log = cluster.log(3);
    let line = log
        .lines()
        .find(|line| line.contains("takes the place of this node's"));
    let line = line.unwrap_or_else(|| panic!("{name}: {log}"));
    report(&format!("cluster-local {name}: {line}"));
    assert!(
        line.contains(&format!("{FILES} entries of this node are gone")),
        "{line}"
    );
    let file = kept[0].file_name().unwrap().to_str().unwrap();
    assert!(line.contains(file), "{line}");
    // To the letter.
    let advice = line.rsplit_once("as a file: ").expect(line).1;
    let node = cluster.node(3);
    let (code, text) = node.sh(advice);
    assert_eq!((code, text.trim()), (0, "7"), "{advice}");
    let path = advice.split('\'').nth(3).expect(advice);
    let content = node.inside(|| fs::read_to_string(path).unwrap());
    node.inside(|| fs::remove_file(path).unwrap());
    assert_eq!(content, "local 0", "{advice}");
}
