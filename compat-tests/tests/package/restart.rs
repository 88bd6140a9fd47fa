//! Clients while the daemon of the package is restarted, upgraded and killed.
use crate::setup::{packages_or_skip, runs_our_daemon, unit};
use compat_tests::{Machine, here, report};
use std::process::Command;
use std::thread;
use std::time::Duration;

const CLIENTS: u32 = 20;
/// Longest wait of a client while the service is restarted.
const LIMIT: Duration = Duration::from_secs(1);

/// Runs `disturb` under 20 clients; nobody may see a failure. The longest wait.
fn under_clients(machine: &Machine, what: &str, seconds: u32, disturb: impl FnOnce()) -> Duration {
    let script = here().join("tests/package/clients.pl");
    std::fs::copy(script, machine.path("/tmp/clients.pl")).unwrap();
    let line = thread::scope(|scope| {
        let clients =
            scope.spawn(|| machine.ok(&format!("perl -T /tmp/clients.pl {CLIENTS} {seconds}")));
        thread::sleep(Duration::from_secs(1));
        disturb();
        assert!(!clients.is_finished(), "{what} took too long to be watched");
        clients.join().unwrap()
    });
    let numbers: Vec<u64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
    report(&format!(
        "package: {what} under {CLIENTS} clients: {} answers, {} failures, longest wait {} ms",
        numbers[0], numbers[1], numbers[2]
    ));
    assert!(numbers[0] > 1000, "{what}: {line}");
    assert_eq!(numbers[1], 0, "{what}: {line}");
    Duration::from_millis(numbers[2])
}

/// The packages once more, as the next version, below `/newer`.
fn newer(machine: &Machine) {
    machine.ok("mkdir /newer");
    let script = "set -e; for deb in \"$1\"/pve-cluster-rs_*.deb \"$1\"/libpmxcfs0_*.deb; do \
                  d=$(mktemp -d); dpkg-deb -R $deb $d; \
                  sed -i 's/^\\(Version: .*\\)/\\1+next/; s/libpmxcfs0 (= \\([^)]*\\))/libpmxcfs0 (= \\1+next)/' $d/DEBIAN/control; \
                  dpkg-deb --root-owner-group -b $d \"$2\" >/dev/null; rm -rf $d; done";
    let done = Command::new("sh")
        .args(["-c", script, "sh"])
        .args([machine.path("/packages"), machine.path("/newer")])
        .status()
        .unwrap();
    assert!(done.success());
}

#[test]
fn no_client_is_failed() {
    let Some(packages) = packages_or_skip("no_client_is_failed") else {
        return;
    };
    let machine = packages.machine("guests2000.db");
    machine.ok("apt-get install -y pve-cluster-rs");
    // The wait is that of the best of three: the machine may be busy with something else.
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let wait = under_clients(&machine, "systemctl restart", 6, || {
            machine.ok("systemctl restart pve-cluster");
        });
        best = best.min(wait);
        if best < LIMIT {
            break;
        }
    }
    assert!(best < LIMIT, "{best:?}");

    newer(&machine);
    let pid = unit(&machine, "MainPID");
    under_clients(&machine, "upgrade", 24, || {
        machine.ok("apt-get install -y /newer/*.deb");
    });
    assert!(runs_our_daemon(&machine));
    assert_ne!(unit(&machine, "MainPID"), pid, "an upgrade restarts");
    assert!(
        machine
            .ok("dpkg-query -W -f '${Version}' pve-cluster-rs")
            .ends_with("+next")
    );
}
