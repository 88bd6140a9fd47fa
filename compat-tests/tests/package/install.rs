//! Installing, going back, removing, purging.
use crate::setup::{
    DATABASE, digests, golden, mounted, packages_or_skip, runs_our_daemon, state, unit,
};
use compat_tests::{Machine, report};

const ALL: &str = "pve-manager libpve-access-control qemu-server";

/// What small.db shows.
fn serves_small_db(machine: &Machine) {
    let listing = machine.ok("cd /etc/pve && find . -type f ! -name '.*' | sort | head -n 100");
    assert!(listing.contains("./user.cfg"), "{listing}");
}

fn c_daemon_is_real() -> bool {
    std::env::var_os("PMXCFS_REFERENCE").is_some()
}

#[test]
fn takes_the_place_and_gives_it_back() {
    let Some(packages) = packages_or_skip("takes_the_place_and_gives_it_back") else {
        return;
    };
    let before = golden("small.db");
    let machine = packages.machine("small.db");
    machine.ok(&format!("apt-get install -y {ALL} pve-cluster"));
    assert_eq!(state(&machine, "pve-cluster"), "ii");
    assert_eq!(unit(&machine, "ActiveState"), "active");
    if c_daemon_is_real() {
        assert!(mounted(&machine));
    }

    let log =
        machine.ok("apt-get install -y /packages/pve-cluster-rs_*.deb /packages/libpmxcfs0_*.deb");
    assert!(runs_our_daemon(&machine), "{log}");
    serves_small_db(&machine);
    for package in ALL.split(' ').chain(["pve-cluster-rs"]) {
        assert_eq!(state(&machine, package), "ii", "{package}: {log}");
    }
    assert_ne!(state(&machine, "pve-cluster"), "ii", "{log}");
    assert_eq!(machine.ok("systemctl is-enabled pve-cluster"), "enabled");
    assert_eq!(
        machine.ok("cat /var/log/pve-manager-triggered"),
        "pve-api-updates"
    );
    assert_eq!(machine.ok("dpkg --audit; apt-get check -qq"), "");
    // what it does not provide it does not satisfy
    assert_ne!(machine.sh("apt-get install -y needs-newer").0, 0);

    // What is left of the original goes: the unit is ours now and stays enabled.
    machine.ok("dpkg --purge pve-cluster");
    assert_eq!(machine.ok("systemctl is-enabled pve-cluster"), "enabled");
    assert!(runs_our_daemon(&machine));

    let log = machine.ok("apt-get install -y pve-cluster");
    assert_eq!(state(&machine, "pve-cluster"), "ii", "{log}");
    assert_ne!(state(&machine, "pve-cluster-rs"), "ii", "{log}");
    for package in ALL.split(' ') {
        assert_eq!(state(&machine, package), "ii", "{package}: {log}");
    }
    assert_eq!(unit(&machine, "ActiveState"), "active");
    assert_eq!(unit(&machine, "Type"), "forking");
    if c_daemon_is_real() {
        assert!(mounted(&machine), "{log}");
        serves_small_db(&machine);
        report("package: rollback to the real C daemon, it serves the same database");
    }
    machine.ok("dpkg --purge pve-cluster-rs");
    assert_eq!(machine.ok("systemctl is-enabled pve-cluster"), "enabled");
    machine.ok("systemctl stop pve-cluster");
    assert_eq!(digests(&machine), before);
}

#[test]
fn data_outlives_remove_and_purge() {
    let Some(packages) = packages_or_skip("data_outlives_remove_and_purge") else {
        return;
    };
    let before = golden("guests2000.db");
    let machine = packages.machine("guests2000.db");
    machine
        .ok("mkdir -m 755 /var/lib/pve-cluster/backup && echo x > /var/lib/pve-cluster/backup/b");
    machine.ok(&format!("apt-get install -y {ALL} pve-cluster-rs"));
    assert!(runs_our_daemon(&machine));
    assert_ne!(
        state(&machine, "pve-cluster"),
        "ii",
        "the original was not needed"
    );
    assert_eq!(machine.ok("stat -c %a /var/lib/pve-cluster/backup"), "700");
    let guests: usize = machine
        .ok("ls /etc/pve/nodes/*/qemu-server/ /etc/pve/nodes/*/lxc/ | grep -c 'conf$'")
        .parse()
        .unwrap();
    assert!(guests >= 2000, "{guests}");

    machine.ok("apt-get remove -y pve-cluster-rs");
    assert!(!mounted(&machine));
    assert_eq!(machine.sh("systemctl is-active pve-cluster").1, "inactive");
    assert_eq!(
        machine.ok(&format!("ls {DATABASE}*")),
        DATABASE,
        "no log is left"
    );
    assert_eq!(digests(&machine), before);

    machine.ok(&format!("apt-get install -y {ALL} pve-cluster-rs"));
    assert!(runs_our_daemon(&machine));
    assert_eq!(machine.ok("systemctl is-enabled pve-cluster"), "enabled");
    machine.ok("apt-get install -y --reinstall pve-cluster-rs");
    assert!(runs_our_daemon(&machine));

    machine.ok("apt-get purge -y pve-cluster-rs");
    let left = state(&machine, "pve-cluster-rs");
    assert!(["", "un"].contains(&left.as_str()), "{left}");
    assert_eq!(digests(&machine), before);
    assert_eq!(machine.ok("cat /var/lib/pve-cluster/backup/b"), "x");
    assert_ne!(machine.sh("systemctl is-enabled pve-cluster").0, 0);
    let left = machine.ok("find / -xdev -name '*pve-cluster*' ! -path '/proc/*' ! -path '/packages/*' ! -path '/var/lib/pve-cluster*' ! -path '/var/log/*' ! -path '/run/*' ! -path '/var/lib/apt/*'");
    assert_eq!(left, "");
}

/// An admin who disabled or masked the unit finds it so after an upgrade.
#[test]
fn the_admins_choice_stays() {
    let Some(packages) = packages_or_skip("the_admins_choice_stays") else {
        return;
    };
    let machine = packages.machine("small.db");
    machine.ok("apt-get install -y pve-cluster-rs");
    machine.ok("systemctl disable pve-cluster");
    machine.ok("apt-get install -y --reinstall pve-cluster-rs");
    assert_eq!(machine.sh("systemctl is-enabled pve-cluster").1, "disabled");
    machine.ok("systemctl mask pve-cluster");
    machine.ok("apt-get install -y --reinstall pve-cluster-rs");
    assert_eq!(machine.sh("systemctl is-enabled pve-cluster").1, "masked");
}
