//! What a mount shows of changes that another node makes.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/cluster.rs"]
mod cluster;

use cluster::{Assignment, Cluster, VISIBLE};
use compat_tests::daemon::wait_for;
use compat_tests::{Checker, Subject, on_both};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

on_both!(seen_of_other_nodes);

fn seen_of_other_nodes(subject: &Subject) {
    let who = Assignment {
        name: "names".into(),
        subjects: vec![subject.clone(); 3],
        thorough: false,
    };
    let mut checker = Checker::new(subject, "fs-cluster-names");
    let cluster = Cluster::new(&who);
    cluster.on(2, || {
        fs::create_dir("/etc/pve/below").unwrap();
        fs::write("/etc/pve/below/file", "aaa").unwrap();
    });
    let shows = |text: &str| {
        let read = || cluster.on(1, || fs::read_to_string("/etc/pve/below/file").ok());
        assert!(wait_for(VISIBLE, || read().as_deref() == Some(text)));
    };
    shows("aaa");
    // Keeps the inode in the kernel.
    let open = cluster.on(1, || File::open("/etc/pve/below/file").unwrap());
    // Twice within a second, and of the same size: node 1 has both in its page cache.
    cluster.on(2, || {
        let file = OpenOptions::new().write(true).open("/etc/pve/below/file");
        let file = file.unwrap();
        for text in ["bbb", "ccc"] {
            file.write_at(text.as_bytes(), 0).unwrap();
        }
    });
    shows("ccc");
    let nanoseconds = open.metadata().unwrap().mtime_nsec();
    drop(open);
    let counts = if nanoseconds == 0 { "0" } else { "counts" };
    checker.must(
        "nanoseconds of an mtime after a change by another node",
        "0",
        counts,
    );

    // Something mounted on a directory below, while another node changes a name beside it.
    let mount = "mount -t tmpfs none /etc/pve/below && mountpoint -q /etc/pve/below";
    assert_eq!(cluster.node(1).sh(mount).0, 0);
    cluster.on(2, || fs::write("/etc/pve/beside", "x").unwrap());
    let there = || cluster.on(1, || fs::exists("/etc/pve/beside").unwrap());
    assert!(wait_for(VISIBLE, there));
    let (code, _) = cluster.node(1).sh("mountpoint -q /etc/pve/below");
    let state = if code == 0 { "stays" } else { "is unmounted" };
    checker.must("a mount on a directory below /etc/pve", "stays", state);
    let _ = cluster.node(1).sh("umount /etc/pve/below");
    cluster.finish();
    checker.finish();
}
