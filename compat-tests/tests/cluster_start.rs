//! Three nodes start in every order, end under load, and come back.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/cluster.rs"]
mod cluster;

use cluster::writer::{Writer, check, check_reads, readers, writers};
use cluster::{Assignment, Cluster, VISIBLE};
use compat_tests::dbfile;
use std::fs;
use std::time::Duration;

on_assignments!(
    orders,
    simultaneous_starts,
    stop_under_load,
    crash_and_rejoin
);

/// Starts the daemons in this order, each when the mount of the one before is there, and changes
/// something on every node.
fn start_in_order(cluster: &mut Cluster, order: &[usize]) {
    for i in order {
        cluster.start(*i);
    }
    cluster.wait_online();
    for i in order {
        cluster.on(*i, || {
            fs::create_dir_all(format!("/etc/pve/nodes/node{i}/qemu-server")).unwrap();
            fs::write(
                format!("/etc/pve/nodes/node{i}/qemu-server/10{i}.conf"),
                format!("name: vm{i}\n"),
            )
            .unwrap();
            fs::write(format!("/etc/pve/from{i}"), vec![b'a'; 1000 * i]).unwrap();
        });
    }
    let tree = cluster.same_trees(VISIBLE);
    for i in 1..=3 {
        assert_eq!(tree[&format!("from{i}")].1, 1000 * i as u64);
        assert_eq!(
            tree[&format!("nodes/node{i}/qemu-server/10{i}.conf")].3,
            format!("name: vm{i}\n").as_bytes()
        );
    }
    cluster.equal(VISIBLE);
}

fn end_and_forget(cluster: &mut Cluster) {
    for i in 1..=3 {
        cluster.stop_well(i);
        dbfile::remove_with_log(&cluster.node(i).database());
    }
}

/// All six orders in the matrix, two in every check.
fn orders(who: &Assignment) {
    let mut orders = vec![[1, 2, 3], [3, 2, 1]];
    if who.thorough {
        orders.extend([[1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2]]);
    }
    let mut cluster = Cluster::without_daemons(who);
    for order in orders {
        start_in_order(&mut cluster, &order);
        compat_tests::report(&format!("cluster-order {} {order:?} ok", who.name));
        end_and_forget(&mut cluster);
    }
}

/// Empty nodes, then nodes with a database, then nodes of which one knows more.
fn simultaneous_starts(who: &Assignment) {
    let mut cluster = Cluster::new(who);
    cluster.on(2, || {
        fs::write("/etc/pve/user.cfg", "user:root@pam:1:0::::::\n").unwrap()
    });
    cluster.same_trees(VISIBLE);
    (1..=3).for_each(|i| cluster.stop_well(i));
    cluster.start_all();
    cluster.wait_online();
    cluster.equal(VISIBLE);
    cluster.stop_well(1);
    cluster.wait_online();
    cluster.on(3, || {
        fs::write("/etc/pve/later", b"made without node 1").unwrap();
        fs::remove_file("/etc/pve/user.cfg").unwrap();
    });
    cluster.stop_well(2);
    cluster.stop_well(3);
    cluster.start_all();
    cluster.wait_online();
    let tree = cluster.same_trees(VISIBLE);
    assert_eq!(tree["later"].3, b"made without node 1");
    assert!(!tree.contains_key("user.cfg"));
    cluster.finish();
}

/// SIGTERM to one node after the other while all write; a new start each time.
fn stop_under_load(who: &Assignment) {
    let mut cluster = Cluster::new(who);
    let readers = readers(&cluster);
    let writers = writers(&cluster);
    for i in 1..=3 {
        std::thread::sleep(Duration::from_millis(300));
        cluster.stop_well(i);
        cluster.start(i);
        cluster.wait_online();
    }
    let written: Vec<_> = writers.into_iter().map(Writer::stop).collect();
    cluster.equal(VISIBLE);
    check(&cluster, "stop under load", &written);
    check_reads(&cluster, "stop under load", readers);
    for (i, w) in (1..).zip(&written) {
        assert!(w.acknowledged.len() > 20, "node {i}: {:?}", w.refused);
    }
    cluster.finish();
}

/// SIGKILL of each node in turn while the others go on writing; it comes back and has everything.
fn crash_and_rejoin(who: &Assignment) {
    let mut cluster = Cluster::new(who);
    for i in 1..=3 {
        let round = format!("crash-{i}");
        let (readers, writers) = (readers(&cluster), writers(&cluster));
        std::thread::sleep(Duration::from_millis(300));
        cluster.kill9(i);
        std::thread::sleep(Duration::from_millis(500));
        cluster.start(i);
        cluster.wait_online();
        let written: Vec<_> = writers.into_iter().map(Writer::stop).collect();
        cluster.equal(VISIBLE);
        check(&cluster, &round, &written);
        check_reads(&cluster, &round, readers);
    }
    cluster.finish();
}
