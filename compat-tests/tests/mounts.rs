//! Dead mounts, held mounts, mount points that are not empty (`golden/status/daemon/session2.txt`).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/session.rs"]
mod session;

use compat_tests::daemon::{Background, wait_for};
use compat_tests::{Checker, Daemon, Lab, Node, Subject, on_both};
use nix::sys::signal::Signal;
use session::{RESOLVED, ls, run, shown};
use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

on_both!(stale_mounts, mount_point);

/// A process in the node whose working directory is the mount.
struct Holder(Child);

impl Holder {
    fn new(node: &Node) -> Self {
        let child = node
            .command("bash")
            .args(["-c", "cd /etc/pve && echo in && exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut holder = Self(child);
        let mut line = String::new();
        let out = holder.0.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        assert_eq!(line, "in\n");
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts and says how that went; what it left of the daemon ends.
fn start_and_kill(node: &Node, subject: &Subject) -> String {
    let mut daemon = Daemon::spawn(node, subject, &["-f", "-l"]);
    let result = match daemon.try_wait_usable() {
        Ok(_) => format!("ok, {} mounts", node.mounts().len()),
        Err(exit) => format!("exit {}", exit.code),
    };
    daemon.kill9();
    result
}

fn stale_mounts(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "daemon-stale-mounts");
    let background = Background::start(&node, subject, &["-l"]);
    background.signal(Signal::SIGKILL);
    // the last thread to go closes the connection; until then requests are merely cut off
    let dead = node.inside(|| {
        let not_connected = || match fs::metadata("/etc/pve") {
            Err(e) => e.raw_os_error() == Some(107),
            Ok(_) => false,
        };
        wait_for(Duration::from_secs(20), not_connected)
    });
    checker.golden(
        "SIGKILL: mount",
        "ENOTCONN",
        if dead { "ENOTCONN" } else { "other" },
    );
    let pid_file = fs::read_to_string(node.dir.join("run/pve-cluster.pid")).unwrap_or_default();
    checker.golden(
        "SIGKILL: pid file",
        &format!("{}\n", background.pid),
        &pid_file,
    );
    checker.golden(
        "SIGKILL: restart flag",
        "missing",
        &ls(&node.dir.join("run/pve-cluster/cfs-restart-flag")),
    );
    checker.golden(
        "start over the dead mount",
        "ok, 1 mounts",
        &start_and_kill(&node, subject),
    );

    let daemon = Daemon::local(&node, subject);
    let holder = Holder::new(&node);
    checker.golden(
        "SIGTERM with a cwd inside: exit",
        "0",
        &daemon.stop().code.to_string(),
    );
    checker.golden(
        "SIGTERM with a cwd inside: mounts",
        "",
        &node.mounts().join("\n"),
    );
    let daemon = Daemon::local(&node, subject);
    checker.golden(
        "start while that cwd is held",
        "1",
        &node.mounts().len().to_string(),
    );
    drop(holder);

    let holder = Holder::new(&node);
    daemon.kill9();
    checker.golden(
        "start over a dead mount with a cwd inside",
        "exit 255",
        &start_and_kill(&node, subject),
    );
    drop(holder);
    checker.golden(
        "start after that process has ended",
        "ok, 1 mounts",
        &start_and_kill(&node, subject),
    );
    checker.finish();
}

fn mount_point(subject: &Subject) {
    let (lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "daemon-mount-point");
    node.inside(|| fs::write("/etc/pve/precious.cfg", "x").unwrap());
    let exit = run(&node, subject, &["-l"]);
    checker.golden("not empty: exit", "255", &exit.code.to_string());
    let want = format!(
        "{RESOLVED}\nfuse: mountpoint is not empty\nfuse: if you are sure this is safe, use the 'nonempty' mount option\n\
         [main] crit: fuse_mount error: File exists\n[main] notice: exit proxmox configuration filesystem (-1)"
    );
    checker.golden("not empty: output", &want, &shown(&lab, &exit.stderr));
    let kept = node.inside(|| fs::read_to_string("/etc/pve/precious.cfg").unwrap());
    checker.golden("not empty: content", "x", &kept);
    checker.golden("not empty: mounts", "", &node.mounts().join("\n"));
    node.inside(|| fs::remove_file("/etc/pve/precious.cfg").unwrap());
    node.inside(|| fs::remove_dir("/etc/pve").unwrap());
    checker.golden(
        "missing: start",
        "ok, 1 mounts",
        &start_and_kill(&node, subject),
    );
    checker.finish();
}
