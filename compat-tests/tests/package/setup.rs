//! The packages under test, and machines that have them.
use compat_tests::index::{self, Digests};
use compat_tests::{Machine, dbfile, here, report};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub const DATABASE: &str = "/var/lib/pve-cluster/config.db";

/// The packages and what is made of them once.
pub struct Packages {
    dir: PathBuf,
    stand_ins: PathBuf,
}

/// `None`, with a line that says so, when there are no packages to test.
pub fn packages_or_skip(test: &str) -> Option<&'static Packages> {
    static MADE: OnceLock<Option<Packages>> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let dir = PathBuf::from(std::env::var_os("PACKAGES_UNDER_TEST")?);
        let stand_ins = dir.join("for-tests");
        let mut script = Command::new(here().join("tools/stand-ins.sh"));
        script.arg(&stand_ins);
        if let Some(reference) = std::env::var_os("PMXCFS_REFERENCE") {
            script.arg(reference);
        }
        let _ = std::fs::remove_dir_all(&stand_ins);
        assert!(script.status().expect("bash runs").success(), "stand-ins");
        Some(Packages { dir, stand_ins })
    });
    if made.is_none() {
        report(&format!(
            "SKIPPED package::{test}: PACKAGES_UNDER_TEST is not set (make check-package)"
        ));
    }
    made.as_ref()
}

fn debs(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap_or_else(|err| panic!("{}: {err}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "deb"))
        .filter(|path| !path.to_string_lossy().contains("-dbgsym_"))
        .collect();
    found.sort();
    found
}

impl Packages {
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of a package, ours or a stand-in.
    pub fn file(&self, name: &str) -> PathBuf {
        let prefix = format!("{name}_");
        let all = [debs(&self.dir), debs(&self.stand_ins)].concat();
        all.into_iter()
            .find(|path| {
                path.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with(&prefix))
            })
            .unwrap_or_else(|| panic!("no package {name} in {}", self.dir.display()))
    }

    /// A field of a package.
    pub fn field(&self, name: &str, field: &str) -> String {
        let out = Command::new("dpkg-deb")
            .arg("-f")
            .arg(self.file(name))
            .arg(field)
            .output()
            .expect("dpkg-deb runs");
        String::from_utf8(out.stdout).unwrap().trim().to_string()
    }

    /// Paths of the files in a package, without folders.
    pub fn files(&self, name: &str) -> Vec<String> {
        let out = Command::new("dpkg-deb")
            .arg("-c")
            .arg(self.file(name))
            .output()
            .expect("dpkg-deb runs");
        String::from_utf8(out.stdout)
            .unwrap()
            .lines()
            .map(|line| line.split_whitespace().nth(5).unwrap())
            .filter(|path| !path.ends_with('/'))
            .map(|path| path.trim_start_matches('.').to_string())
            .collect()
    }

    /// A machine that could install all of them, and has `node1`'s database `golden` already.
    pub fn machine(&self, golden: &str) -> Machine {
        let all = [debs(&self.dir), debs(&self.stand_ins)].concat();
        let machine = Machine::boot(&self.dir.join("base"), &all);
        machine.ok("mkdir -p /var/lib/pve-cluster");
        std::fs::copy(
            here().join("golden/db").join(golden),
            machine.path(DATABASE),
        )
        .unwrap();
        machine.ok(&format!("chmod 600 {DATABASE}"));
        machine
    }
}

/// Digests of a golden database.
pub fn golden(name: &str) -> Digests {
    let scratch = scratch();
    let rows = dbfile::rows_of_copy(&here().join("golden/db").join(name), &scratch).unwrap();
    index::digests(&rows)
}

/// Digests of the machine's database as it lies on disk.
pub fn digests(machine: &Machine) -> Digests {
    let rows = dbfile::rows_of_copy(&machine.path(DATABASE), &scratch()).unwrap();
    index::digests(&rows)
}

fn scratch() -> PathBuf {
    std::env::temp_dir().join(format!("pmxcfs-package-{}.db", std::process::id()))
}

/// `dpkg -l` status letters of a package, for example `ii`.
pub fn state(machine: &Machine, package: &str) -> String {
    let (_, text) = machine.sh(&format!(
        "dpkg-query -W -f '${{db:Status-Abbrev}}' {package} 2>/dev/null"
    ));
    text.trim().to_string()
}

/// A property of the unit.
pub fn unit(machine: &Machine, property: &str) -> String {
    machine.ok(&format!(
        "systemctl show --value -p {property} pve-cluster.service"
    ))
}

/// Is `/etc/pve` a mount of a running daemon, in the namespace that process 1 sees?
pub fn mounted(machine: &Machine) -> bool {
    let mounts = machine.ok("cat /proc/1/mounts");
    mounts
        .lines()
        .any(|l| l.split(' ').nth(1) == Some("/etc/pve") && l.contains("fuse"))
        && machine.sh("test -L /etc/pve/local").0 == 0
}

/// The program behind the unit's main process.
pub fn runs_our_daemon(machine: &Machine) -> bool {
    // Both at once: it may become active in between.
    let state = machine.ok("systemctl show -p MainPID -p ActiveState pve-cluster.service");
    let pid = state.lines().find_map(|line| line.strip_prefix("MainPID="));
    state.lines().any(|line| line == "ActiveState=active")
        && pid.is_some_and(|pid| {
            machine.sh(&format!("readlink /proc/{pid}/exe")).1 == "/usr/bin/pmxcfs"
        })
        && machine.sh("dpkg -S /usr/bin/pmxcfs").1 == "pve-cluster-rs: /usr/bin/pmxcfs"
        && mounted(machine)
}
