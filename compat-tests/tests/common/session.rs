//! What the tests of single starts have in common.
// each test file uses a part of it
#![allow(dead_code)]
use compat_tests::daemon::{Exit, run_to_end};
use compat_tests::{Checker, Lab, Node, Subject, client};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

pub const RESOLVED: &str =
    "[main] notice: resolved node name 'node1' to 'ADDR' for default node IP address";

pub fn run(node: &Node, subject: &Subject, args: &[&str]) -> Exit {
    let mut command = node.command(&subject.binary);
    command.args(args);
    run_to_end(node, command)
}

/// Output with the lab's address replaced, without libqb's own lines.
pub fn shown(lab: &Lab, text: &str) -> String {
    text.replace(&lab.address(1), "ADDR")
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with("[libqb]"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Type, mode, owner and size as `ls -l` would say: `-r--r----- root:www-data 0`, or `missing`.
pub fn ls(path: &Path) -> String {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return "missing".to_string();
    };
    let kind = if meta.is_dir() { 'd' } else { '-' };
    let name = |id: u32| match id {
        0 => "root".to_string(),
        id if id == client::identity("www-data").1 => "www-data".to_string(),
        id => id.to_string(),
    };
    let size = if meta.is_dir() {
        String::new()
    } else {
        format!(" {}", meta.size())
    };
    format!(
        "{kind}{:04o} {}:{}{size}",
        meta.permissions().mode() & 0o7777,
        name(meta.uid()),
        name(meta.gid())
    )
}

/// What an orderly end leaves behind.
pub fn leftovers(checker: &mut Checker, node: &Node, prefix: &str) {
    let case = |what: &str| format!("{prefix}: {what}");
    let run = node.dir.join("run");
    checker.golden(
        &case("restart flag"),
        "-0440 root:www-data 0",
        &ls(&run.join("pve-cluster/cfs-restart-flag")),
    );
    checker.golden(
        &case("pid file"),
        "missing",
        &ls(&run.join("pve-cluster.pid")),
    );
    for (file, want) in [("-wal", "missing"), ("-shm", "missing")] {
        let path = node.dir.join(format!("varlib/config.db{file}"));
        checker.golden(&case(file), want, &ls(&path));
    }
    checker.golden(&case("mounts"), "", &node.mounts().join("\n"));
    let shm = fs::read_dir(node.path("/dev/shm")).unwrap().count();
    checker.golden(&case("files in /dev/shm"), "0", &shm.to_string());
}
