//! The Perl modules against the daemon: runs `prove` on `perl/t` inside nodes, plainly and in taint
//! mode, and polls with Perl clients while the daemon is restarted.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/cluster.rs"]
mod cluster;

use cluster::{Assignment, Cluster};
use compat_tests::capi::nobody_waits_long;
use compat_tests::{Daemon, Lab, Node, Subject, lab, on_both, report, target_dir};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

on_both!(restart_under_pollers);

/// Perl clients in [`restarts`], and how often the daemon is restarted under them.
const POLLERS: usize = 20;
const RESTARTS: usize = 5;

/// Where `make perl` puts the modules; another place may be named in `PMXCFS_PERL`.
fn modules() -> PathBuf {
    let dir =
        std::env::var_os("PMXCFS_PERL").map_or_else(|| target_dir().join("perl"), PathBuf::from);
    for part in ["PVE/Cluster.pm", "PVE/IPCC.pm", "auto/PVE/IPCC/IPCC.so"] {
        assert!(
            dir.join(part).is_file(),
            "no {part} in {}: run `make perl`, or name a place in PMXCFS_PERL",
            dir.display()
        );
    }
    dir
}

/// The folder of the tests.
fn tests() -> PathBuf {
    compat_tests::here()
        .join("../perl/t")
        .canonicalize()
        .unwrap()
}

/// `-I` options: the modules under test, then the stand-ins for what is not in Debian.
fn include() -> Vec<String> {
    [modules(), tests().join("lib")]
        .iter()
        .map(|dir| format!("-I{}", dir.display()))
        .collect()
}

/// Marks the command as one that may change /etc/pve.
fn in_lab(mut command: Command, node: usize) -> Command {
    command.env("PVE_CLUSTER_LAB_NODE", format!("node{node}"));
    command.env_remove("PERL5LIB").env_remove("PERL5OPT");
    command
}

/// `prove` on parts of `perl/t`.
fn prove(mut command: Command, options: &[&str], parts: &[&str]) -> Command {
    command.args(options).args(include());
    command.args(parts.iter().map(|part| tests().join(part)));
    command
}

/// Fails with everything the tests printed unless all of them passed.
fn passed(what: &str, output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "prove {what}:\n{text}");
    let summary = text
        .lines()
        .find(|line| line.starts_with("Files="))
        .unwrap();
    report(&format!("perl {what}: {summary}"));
}

/// Runs parts of `perl/t` in a node.
fn prove_in(node: &Node, options: &[&str], parts: &[&str]) {
    let command = in_lab(node.command("prove"), node.index);
    let output = prove(command, options, parts).output().unwrap();
    passed(&format!("{options:?} {parts:?}"), &output);
}

const MODES: [&[&str]; 2] = [&[], &["-T"]];

/// What needs no daemon: requests byte by byte, caches, documentation, `perl -T -wc`.
#[test]
fn unit() {
    for mode in MODES {
        let command = in_lab(Command::new("prove"), 0);
        let output = prove(command, mode, &["unit"]).output().unwrap();
        passed(&format!("{mode:?} unit"), &output);
    }
}

/// Every function against a daemon in local mode.
#[test]
fn local() {
    for mode in MODES {
        let (_lab, node) = Lab::single();
        let daemon = Daemon::local(&node, &Subject::ours());
        prove_in(&node, mode, &["local"]);
        assert_eq!(daemon.stop().code, 0);
    }
}

/// What is said without a daemon, and the helpers that save and put away its database.
#[test]
fn stopped() {
    for mode in MODES {
        let (_lab, node) = Lab::single();
        let daemon = Daemon::local(&node, &Subject::ours());
        node.inside(|| {
            fs::write("/etc/pve/user.cfg", "user:root@pam:1:\n").unwrap();
            // large enough that a page in the middle can be damaged
            fs::write("/etc/pve/large", "0123456789abcdef".repeat(4096)).unwrap();
        });
        assert_eq!(daemon.stop().code, 0);
        prove_in(&node, mode, &["stopped"]);
    }
}

/// A node of a cluster whose corosync does not run.
#[test]
fn no_quorum() {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, &Subject::ours());
    node.inside(|| {
        let conf = fs::read("/etc/corosync/corosync.conf").unwrap();
        fs::write("/etc/pve/corosync.conf", conf).unwrap();
        fs::write("/etc/pve/user.cfg", "old\n").unwrap();
        fs::create_dir_all("/etc/pve/priv/lock").unwrap();
    });
    assert_eq!(daemon.stop().code, 0);
    let mut daemon = Daemon::spawn(&node, &Subject::ours(), &["-f"]);
    daemon.wait_usable();
    for mode in MODES {
        prove_in(&node, mode, &["noquorum"]);
    }
    assert_eq!(daemon.stop().code, 0);
}

/// Three nodes: what the others tell is heard, and a lock holds on all of them.
#[test]
fn in_a_cluster() {
    let mut cluster = Cluster::new(&Assignment::ours());
    cluster.wait_online();
    for i in [2, 3] {
        let mut command = in_lab(cluster.node(i).command("perl"), i);
        command.args(include()).arg(tests().join("cluster/tell.pl"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "tell.pl: {output:?}");
    }
    prove_in(&cluster.node(1), &["-T"], &["cluster/hear.t"]);
    let contend = |i: usize| {
        let command = in_lab(cluster.node(i).command("prove"), i);
        prove(command, &[], &["cluster/contend.t"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let running: Vec<Child> = (1..=3).map(contend).collect();
    for (index, child) in running.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        passed(&format!("cluster/contend.t on node{}", index + 1), &output);
    }
    for i in 1..=3 {
        cluster.stop_well(i);
    }
    cluster.finish();
}

/// The limits of locks in time, side by side: 60 s for the holder, 120 s after its death.
#[test]
fn lock_limits() {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, &Subject::ours());
    prove_in(&node, &["-j", "2"], &["slow"]);
    assert_eq!(daemon.stop().code, 0);
}

/// A daemon that is stopped (SIGSTOP) under a client that gives up waiting.
#[test]
fn hung_daemon() {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, &Subject::ours());
    for mode in MODES {
        let mut command = in_lab(node.command("prove"), node.index);
        command.env("PVE_CLUSTER_DAEMON_PID", daemon.pid().to_string());
        let output = prove(command, mode, &["hung"]).output().unwrap();
        passed(&format!("{mode:?} hung"), &output);
    }
    assert_eq!(daemon.stop().code, 0);
}

/// What a polling client saw.
#[derive(Debug)]
struct Polled {
    calls: u64,
    failed: u64,
    longest: f64,
    error: String,
}

fn poller(node: &Node, script: &Path) -> Child {
    let mut command = in_lab(node.command("perl"), node.index);
    command
        .arg("-T")
        .args(include())
        .arg(script)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn end_poller(child: Child) -> Polled {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let (numbers, error) = text
        .split_once('\n')
        .unwrap_or_else(|| panic!("the client: {output:?}"));
    let field = |name: &str| {
        let value = numbers.split(' ').find_map(|f| f.strip_prefix(name));
        value.unwrap_or_else(|| panic!("{name} in '{numbers}'"))
    };
    Polled {
        calls: field("calls=").parse().unwrap(),
        failed: field("failed=").parse().unwrap(),
        longest: field("longest=").parse().unwrap(),
        error: error.to_string(),
    }
}

/// The daemon is restarted while clients ask it: not one call fails, none waits long (the best of
/// several attempts: the machine may be busy with something else).
fn restart_under_pollers(subject: &Subject) {
    let _quiet = lab::quiet();
    nobody_waits_long(subject, || restarts(subject) * 1e3);
}

/// The longest time that a call took, in seconds.
fn restarts(subject: &Subject) -> f64 {
    let (_lab, node) = Lab::single();
    let script = tests().join("restart/poll.pl");
    let mut daemon = Daemon::local(&node, subject);
    node.inside(|| {
        fs::write("/etc/pve/user.cfg", "polled\n").unwrap();
        fs::create_dir_all("/etc/pve/nodes/node1/qemu-server").unwrap();
        fs::write(
            "/etc/pve/nodes/node1/qemu-server/100.conf",
            "name: polled\n",
        )
        .unwrap();
    });
    let clients: Vec<Child> = (0..POLLERS).map(|_| poller(&node, &script)).collect();
    std::thread::sleep(Duration::from_secs(2));
    for _ in 0..RESTARTS {
        assert_eq!(daemon.stop().code, 0);
        daemon = Daemon::local(&node, subject);
        std::thread::sleep(Duration::from_secs(1));
    }
    let seen: Vec<Polled> = clients.into_iter().map(end_poller).collect();
    assert_eq!(daemon.stop().code, 0);

    let calls: u64 = seen.iter().map(|p| p.calls).sum();
    let failed: u64 = seen.iter().map(|p| p.failed).sum();
    let longest = seen.iter().map(|p| p.longest).fold(0.0, f64::max);
    report(&format!(
        "restarts [{}]: {RESTARTS} under {POLLERS} Perl clients, {calls} calls, {failed} failed, longest wait {longest:.3} s",
        subject.name()
    ));
    let errors: Vec<&str> = seen.iter().map(|p| p.error.as_str()).collect();
    assert_eq!(failed, 0, "failed calls: {errors:?}");
    assert!(
        seen.iter().all(|p| p.calls > 100),
        "every client was at work: {seen:?}"
    );
    longest
}
