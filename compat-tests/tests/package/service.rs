//! The unit under a real systemd.
use crate::setup::{packages_or_skip, runs_our_daemon, unit};
use compat_tests::Machine;
use compat_tests::daemon::wait_for;
use std::time::Duration;

const FLAG: &str = "/run/pve-cluster/cfs-restart-flag";

fn flag_exists(machine: &Machine) -> bool {
    machine.sh(&format!("test -e {FLAG}")).0 == 0
}

/// A drop-in that keeps the unit from being restarted before the test has looked.
fn slow_restart(machine: &Machine, more: &str) {
    let text = format!("[Service]\\nRestartSec=8\\n{more}");
    machine.ok("mkdir -p /run/systemd/system/pve-cluster.service.d");
    machine.ok(&format!(
        "printf '{text}' >/run/systemd/system/pve-cluster.service.d/test.conf; systemctl daemon-reload"
    ));
}

#[test]
fn ready_ordered_and_not_hidden() {
    let Some(packages) = packages_or_skip("ready_ordered_and_not_hidden") else {
        return;
    };
    let machine = packages.machine("small.db");
    machine.ok("apt-get install -y pve-cluster-rs");
    assert!(runs_our_daemon(&machine));
    // start returns when /etc/pve and the clients' service are there
    machine.ok("systemctl stop pve-cluster");
    assert!(flag_exists(&machine), "clients wait for the next start");
    machine
        .ok("systemctl start pve-cluster && cat /etc/pve/.version && grep -q @pve2 /proc/net/unix");
    assert!(!flag_exists(&machine));
    let before = unit(&machine, "Before");
    for name in ["corosync.service", "cron.service", "shutdown.target"] {
        assert!(before.split(' ').any(|b| b == name), "{name}: {before}");
    }
    let after = unit(&machine, "After");
    for name in [
        "network.target",
        "sys-fs-fuse-connections.mount",
        "time-sync.target",
        "rrdcached.service",
    ] {
        assert!(after.split(' ').any(|a| a == name), "{name}: {after}");
    }
    let pid = unit(&machine, "MainPID");
    assert_eq!(machine.ok("cat /run/pve-cluster.pid"), pid);
    assert_eq!(
        machine.ok(&format!("readlink /proc/{pid}/ns/mnt")),
        machine.ok("readlink /proc/1/ns/mnt"),
        "the mount must be the host's"
    );
    machine.ok("systemd-analyze verify --man=no pve-cluster.service");
    // every line once: what syslog has, stderr need not bring again
    machine.ok("systemctl restart pve-cluster");
    machine.ok("journalctl --sync");
    for (text, times) in [("teardown filesystem", "2"), ("resolved node name", "3")] {
        let seen = machine.ok(&format!(
            "journalctl --no-pager -u pve-cluster | grep -c '{text}'"
        ));
        assert_eq!(seen, times, "{text}");
    }
}

#[test]
fn a_crash_leaves_the_flag_and_is_mended() {
    let Some(packages) = packages_or_skip("a_crash_leaves_the_flag_and_is_mended") else {
        return;
    };
    let machine = packages.machine("small.db");
    machine.ok("apt-get install -y pve-cluster-rs");
    slow_restart(&machine, "");
    let pid = unit(&machine, "MainPID");
    machine.ok(&format!("kill -ABRT {pid}"));
    // Made first and given to the group then.
    let stat = || machine.sh(&format!("stat -c '%a %U %G %s' {FLAG}")).1;
    let right = || stat() == "440 root www-data 0";
    assert!(wait_for(Duration::from_secs(7), right), "{}", stat());
    assert!(wait_for(Duration::from_secs(30), || runs_our_daemon(
        &machine
    )));
    assert!(!flag_exists(&machine));
    assert_ne!(unit(&machine, "MainPID"), pid);

    // A start that is refused leaves none: nobody would come.
    machine.ok("systemctl stop pve-cluster; rm -f /run/pve-cluster/cfs-restart-flag");
    machine.ok("mv /var/lib/pve-cluster/config.db /var/lib/pve-cluster/kept; echo not a database at all >/var/lib/pve-cluster/config.db");
    assert_ne!(machine.sh("systemctl start pve-cluster").0, 0);
    assert!(!flag_exists(&machine));
    machine.ok(
        "systemctl stop pve-cluster; mv /var/lib/pve-cluster/kept /var/lib/pve-cluster/config.db",
    );
    machine.ok("systemctl reset-failed pve-cluster; systemctl start pve-cluster");
    assert!(runs_our_daemon(&machine));
}

#[test]
fn watchdog_restarts_a_daemon_that_hangs() {
    let Some(packages) = packages_or_skip("watchdog_restarts_a_daemon_that_hangs") else {
        return;
    };
    let machine = packages.machine("small.db");
    machine.ok("apt-get install -y pve-cluster-rs");
    assert_eq!(unit(&machine, "WatchdogUSec"), "1min");
    slow_restart(&machine, "WatchdogSec=6\\n");
    machine.ok("systemctl restart pve-cluster");
    let pid = unit(&machine, "MainPID");
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(
        unit(&machine, "MainPID"),
        pid,
        "it lives, so it must be left alone"
    );
    machine.ok(&format!("kill -STOP {pid}"));
    assert!(wait_for(Duration::from_secs(60), || unit(
        &machine,
        "NRestarts"
    ) == "1"));
    assert!(wait_for(Duration::from_secs(20), || runs_our_daemon(
        &machine
    )));
    machine.ok("journalctl --sync");
    machine.ok("journalctl --no-pager -u pve-cluster | grep -q 'Watchdog timeout'");
}

/// An admin's drop-in for the C daemon's unit starts the daemon without `-f`.
#[test]
fn daemonising_works_too() {
    let Some(packages) = packages_or_skip("daemonising_works_too") else {
        return;
    };
    let machine = packages.machine("small.db");
    machine.ok("apt-get install -y pve-cluster-rs");
    slow_restart(
        &machine,
        "WatchdogSec=6\\nExecStart=\\nExecStart=/usr/bin/pmxcfs -l\\n",
    );
    machine.ok("systemctl restart pve-cluster");
    assert!(runs_our_daemon(&machine));
    let pid = unit(&machine, "MainPID");
    assert_eq!(machine.ok("cat /run/pve-cluster.pid"), pid);
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(unit(&machine, "MainPID"), pid, "the watchdog is served");
    machine.ok("systemctl stop pve-cluster");
    assert!(flag_exists(&machine));
}
