//! What a node changes is on all nodes: files, locks, corosync.conf, and the recorded results of
//! every file operation.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/cluster.rs"]
mod cluster;

use cluster::{Assignment, Cluster, VISIBLE};
use compat_tests::daemon::wait_for;
use compat_tests::{Checker, Node, golden, here, report};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

on_assignments!(
    ours: locks_beside_others;
    mixed: operations, corosync_conf, probe, locks_and_expiry
);

const AT: &str = "/etc/pve";

fn utime(path: &str, seconds: i64) -> Result<(), nix::errno::Errno> {
    let time = TimeSpec::new(seconds, 0);
    utimensat(
        nix::fcntl::AT_FDCWD,
        path,
        &time,
        &time,
        UtimensatFlags::FollowSymlink,
    )
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// One step on a node after the other; after each the three mounts show the same (which fills the
/// caches of the kernels with what the next step changes).
fn operations(who: &Assignment) {
    let cluster = Cluster::new(who);
    type Step = fn(usize);
    let steps: [(&str, Step); 14] = [
        ("mkdir", |i| fs::create_dir(format!("{AT}/d{i}")).unwrap()),
        ("create", |i| {
            fs::write(format!("{AT}/d{i}/a"), b"first\n").unwrap()
        }),
        ("overwrite", |i| {
            fs::write(format!("{AT}/d{i}/a"), b"2nd\n").unwrap()
        }),
        ("append", |i| {
            let mut file = OpenOptions::new()
                .append(true)
                .open(format!("{AT}/d{i}/a"))
                .unwrap();
            file.write_all(b"appended\n").unwrap();
        }),
        ("large", |i| {
            fs::write(format!("{AT}/d{i}/large"), vec![b'x'; 700_000 + i]).unwrap()
        }),
        ("limit", |i| {
            fs::write(format!("{AT}/d{i}/limit"), vec![b'y'; 1 << 20]).unwrap()
        }),
        ("truncate", |i| {
            let file = OpenOptions::new()
                .write(true)
                .open(format!("{AT}/d{i}/large"))
                .unwrap();
            file.set_len(5).unwrap();
        }),
        ("utime", |i| {
            utime(&format!("{AT}/d{i}/a"), 1_000_000 + i as i64).unwrap()
        }),
        ("rename", |i| {
            fs::rename(format!("{AT}/d{i}/a"), format!("{AT}/d{i}/b")).unwrap()
        }),
        ("replace", |i| {
            fs::write(format!("{AT}/d{i}/b.tmp"), b"replaced").unwrap();
            fs::rename(format!("{AT}/d{i}/b.tmp"), format!("{AT}/d{i}/b")).unwrap();
        }),
        ("rename empty directory", |i| {
            fs::create_dir(format!("{AT}/d{i}/e")).unwrap();
            fs::rename(format!("{AT}/d{i}/e"), format!("{AT}/d{i}/f")).unwrap();
        }),
        ("guest", |i| {
            fs::create_dir_all(format!("{AT}/nodes/node{i}/qemu-server")).unwrap();
            fs::write(
                format!("{AT}/nodes/node{i}/qemu-server/{i}00.conf"),
                b"name: g\n",
            )
            .unwrap();
        }),
        ("migrate", |i| {
            let to = i % 3 + 1;
            fs::rename(
                format!("{AT}/nodes/node{i}/qemu-server/{i}00.conf"),
                format!("{AT}/nodes/node{to}/qemu-server/{i}00.conf"),
            )
            .unwrap();
        }),
        ("remove", |i| {
            fs::remove_file(format!("{AT}/d{i}/limit")).unwrap();
            fs::remove_dir(format!("{AT}/d{i}/f")).unwrap();
        }),
    ];
    for (name, step) in steps {
        for i in 1..=3 {
            cluster.on(i, || step(i));
        }
        let started = Instant::now();
        cluster.same_trees(VISIBLE);
        cluster.equal(VISIBLE);
        report(&format!(
            "cluster-op {} {name}: equal after {:?}",
            who.name,
            started.elapsed()
        ));
    }
    for i in 1..=3 {
        // the reference shows for a second what was true when somebody last asked for the size
        let mut vmlist = String::new();
        let complete = wait_for(VISIBLE, || {
            vmlist = cluster.on(i, || fs::read_to_string(format!("{AT}/.vmlist")).unwrap());
            (1..=3).all(|guest| {
                let to = guest % 3 + 1;
                let line = format!("\"{guest}00\": {{ \"node\": \"node{to}\", \"type\": \"qemu\"");
                vmlist.contains(&line)
            })
        });
        assert!(complete, "{}: node {i}: {vmlist}", who.name);
    }
    let tree = cluster.same_trees(VISIBLE);
    assert_eq!(tree["d2/b"].3, b"replaced");
    assert_eq!(tree["d2/large"].3, b"xxxxx");
    cluster.finish();
}

/// The others in clusters of their own meanwhile: most of the first is waiting for an expiry.
fn locks_beside_others(who: &Assignment) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            probe(who);
            operations(who);
            corosync_conf(who);
        });
        locks_and_expiry(who);
    });
}

/// A lock belongs to the node that made it, is refreshed by it only, and ends for everybody when
/// nobody refreshed it for 120 s.
fn locks_and_expiry(who: &Assignment) {
    let cluster = Cluster::new(who);
    cluster.on(1, || fs::create_dir_all(format!("{AT}/priv/lock")).unwrap());
    let path = |i: usize| format!("{AT}/priv/lock/held{i}");
    for i in 1..=3 {
        cluster.on(i, || fs::create_dir(path(i)).unwrap());
    }
    cluster.same_trees(VISIBLE);
    let denied = Err(nix::errno::Errno::EACCES);
    for owner in 1..=3 {
        let other = owner % 3 + 1;
        cluster.on(other, || {
            let taken = fs::create_dir(path(owner)).map_err(|e| e.kind());
            assert_eq!(taken, Err(std::io::ErrorKind::AlreadyExists));
            assert_eq!(utime(&path(owner), now()), denied, "{}", who.name);
            assert_eq!(utime(&path(owner), 0), denied, "{}", who.name);
            let moved = fs::rename(path(owner), format!("{AT}/priv/lock/mine"));
            assert_eq!(moved.unwrap_err().raw_os_error(), Some(libc_eacces()));
        });
        cluster.on(owner, || {
            assert_eq!(utime(&path(owner), now() + 1), Ok(()), "{}", who.name);
            assert_eq!(utime(&path(owner), 5), denied, "{}", who.name);
        });
    }
    cluster.equal(VISIBLE);
    let refreshed = Instant::now();
    // a refresh of the third lock keeps it
    std::thread::sleep(Duration::from_secs(60));
    cluster.on(3, || assert_eq!(utime(&path(3), now() + 1), Ok(())));
    let rest = Duration::from_secs(123).saturating_sub(refreshed.elapsed());
    std::thread::sleep(rest);
    for i in [2, 3, 1] {
        // the request is sent from node 3 for lock 2, from node 1 for lock 3, from node 2 for lock 1
        // the lock may be gone before the request itself is answered
        let answer = cluster.on(i % 3 + 1, || utime(&path(i), 0));
        let gone = Err(nix::errno::Errno::ENOENT);
        assert!(
            answer == denied || answer == gone,
            "{}: {answer:?}",
            who.name
        );
    }
    for i in 1..=3 {
        let gone = |n: usize| cluster.on(i, || !fs::exists(path(n)).unwrap());
        assert!(
            wait_for(VISIBLE, || gone(1) && gone(2)),
            "{}: expired locks on node {i}",
            who.name
        );
        assert!(!gone(3), "{}: the refreshed lock on node {i}", who.name);
    }
    cluster.finish();
}

fn libc_eacces() -> i32 {
    nix::errno::Errno::EACCES as i32
}

/// corosync.conf with a higher config_version, put in place by a rename, is on every host.
fn corosync_conf(who: &Assignment) {
    let cluster = Cluster::new(who);
    let host =
        |i: usize| fs::read_to_string(cluster.node(i).path("/etc/corosync/corosync.conf")).unwrap();
    let old = host(1);
    for i in 1..=3 {
        let text = old.replace("config_version: 1", &format!("config_version: {}", i + 1));
        assert_ne!(text, old);
        cluster.on(i, || {
            fs::write(format!("{AT}/corosync.conf.new"), &text).unwrap();
            fs::rename(
                format!("{AT}/corosync.conf.new"),
                format!("{AT}/corosync.conf"),
            )
            .unwrap();
        });
        for j in 1..=3 {
            assert!(
                wait_for(VISIBLE, || host(j) == text),
                "{}: by {i}, host {j}: {}",
                who.name,
                host(j)
            );
        }
        let seen = |j: usize| {
            cluster
                .members(j)
                .contains(&format!("\"version\": {}, \"nodes\": 3", i + 1))
        };
        assert!(
            wait_for(cluster::SOON, || (1..=3).all(seen)),
            "{}: corosync read it again: {}",
            who.name,
            cluster.members(1)
        );
    }
    // an older one is in the file system, but not on the hosts
    cluster.on(2, || {
        fs::write(format!("{AT}/corosync.conf"), &old).unwrap()
    });
    cluster.same_trees(VISIBLE);
    cluster.equal(VISIBLE);
    std::thread::sleep(Duration::from_secs(2));
    for i in 1..=3 {
        assert!(
            host(i).contains("config_version: 4"),
            "{}: host {i}",
            who.name
        );
    }
    cluster.finish();
}

fn fsprobe(node: &Node, command: &str) -> String {
    let mut program = node.command("python3");
    program.arg(here().join("tools/fsprobe.py")).arg(command);
    let out = program.output().unwrap();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command}: {errors}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn cases(text: &str) -> Vec<(&str, &str)> {
    text.lines()
        .map(|l| l.split_once(" -> ").unwrap_or((l, "")))
        .collect()
}

fn compare(who: &Assignment, area: &str, file: &str, got: &str) {
    let want = fs::read_to_string(golden(file)).unwrap();
    let (want, got) = (cases(&want), cases(got));
    assert_eq!(want.len(), got.len(), "number of operations");
    let mut checker = Checker::new(&who.subjects[0], area);
    for ((case, want), (other, got)) in want.iter().zip(&got) {
        assert_eq!(case, other, "order of operations");
        checker.golden(case, want, got);
    }
    checker.finish();
}

/// The recorded operations on node 1: in the cluster, and when the others are gone.
fn probe(who: &Assignment) {
    let mut cluster = Cluster::new(who);
    let node = cluster.node(1);
    fsprobe(&node, "prepare");
    std::thread::sleep(Duration::from_secs(2));
    let got = fsprobe(&node, "probe");
    cluster.equal(VISIBLE);
    cluster.same_trees(VISIBLE);
    compare(who, "fs-cluster", "fs/cluster.txt", &got);
    fsprobe(&node, "clean");
    fsprobe(&node, "prepare");
    cluster.equal(VISIBLE);
    for i in [2, 3] {
        cluster.kill_corosync(i);
        cluster.kill9(i);
    }
    let alone = || cluster.members(1).contains("\"quorate\": 0");
    assert!(
        wait_for(cluster::SOON, alone),
        "{}: quorum is lost",
        who.name
    );
    std::thread::sleep(Duration::from_secs(2));
    let got = fsprobe(&node, "probe");
    compare(who, "fs-noquorum", "fs/noquorum.txt", &got);
    cluster.finish();
}
