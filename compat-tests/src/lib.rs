//! Harness of the black-box tests: a real binary in network, mount and host-name namespaces of its
//! own, driven through `/etc/pve` and through a real libqb client, compared with golden data and,
//! where one is named, with a reference binary.
//!
//! * [`subject`] – which binary is tested, and what that binary is expected to do.
//! * [`lab`] – nodes (namespaces), numbered so that tests run side by side.
//! * [`daemon`] – start, wait until usable, stop, kill, measure.
//! * [`client`] – the libqb client.
//! * [`capi`] – libpmxcfs and the Perl modules, and programs that use them.
//! * [`differences`] – the table of intended differences and the comparison against it.
//! * [`dbfile`] – reading and making config.db without any code of the daemon.
//! * [`index`] – the memdb index and overall checksum, written a second time from the specification.
//! * [`machine`] – a fresh Debian with systemd to install packages in.
//! * [`model`] – the changes of the crash test.
//! * [`python`], [`text`], [`vectors`] – reading and comparing golden data.
//! * [`report`] – the numbers measured.
//! * [`rrdtool`] – the program.
//! * [`shm`] – the shared-memory transport spoken by hand, by clients that mean harm.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

pub mod capi;
pub mod client;
pub mod daemon;
pub mod dbfile;
pub mod differences;
pub mod index;
pub mod lab;
pub mod machine;
pub mod model;
pub mod python;
pub mod report;
pub mod rrdtool;
pub mod shm;
pub mod subject;
pub mod text;
pub mod vectors;

pub use client::{Client, Reply};
pub use daemon::Daemon;
pub use differences::Checker;
pub use lab::{Lab, Node};
pub use machine::Machine;
pub use report::report;
pub use subject::Subject;

use std::path::PathBuf;
use std::sync::OnceLock;

/// Runs every named function on the binary under test (`ours::name`) and on the reference
/// (`reference::name`, skipped by name when `PMXCFS_REFERENCE` is not set).
#[macro_export]
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod ours {
            $(#[test]
            fn $name() {
                super::$name(&$crate::Subject::ours());
            })*
        }
        mod reference {
            $(#[test]
            fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                if let Some(subject) = $crate::Subject::reference_or_skip(name) {
                    $crate::subject::twice(name, || super::$name(&subject));
                }
            })*
        }
    };
}

/// The folder of this crate.
pub fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A golden file, named below `compat-tests/golden`.
pub fn golden(name: &str) -> PathBuf {
    here().join("golden").join(name)
}

/// Cargo's target directory of this run (wherever `CARGO_TARGET_DIR` puts it).
pub fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a running test has an executable");
    exe.ancestors()
        .find(|p| p.join("CACHEDIR.TAG").exists())
        .map_or_else(|| here().join("../target"), PathBuf::from)
}

/// Checks once that everything the tests need is on this machine; panics with the name of the
/// package that is missing.
pub fn require_tools() {
    static CHECK: OnceLock<Vec<String>> = OnceLock::new();
    let missing = CHECK.get_or_init(missing_tools);
    assert!(
        missing.is_empty(),
        "the black-box tests cannot run here:\n  {}",
        missing.join("\n  ")
    );
}

fn missing_tools() -> Vec<String> {
    let mut missing = Vec::new();
    if !nix::unistd::Uid::effective().is_root() {
        missing.push("they need root (namespaces, mounts, several identities)".to_string());
    }
    if !std::path::Path::new("/dev/fuse").exists() {
        missing.push("/dev/fuse is missing: modprobe fuse".to_string());
    }
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let found = |tool: &str| {
        path.split(':')
            .any(|d| std::path::Path::new(d).join(tool).exists())
    };
    for (tool, package) in [
        ("ip", "iproute2"),
        ("unshare", "util-linux"),
        ("nsenter", "util-linux"),
        ("setpriv", "util-linux"),
        ("taskset", "util-linux"),
        ("mount", "mount"),
        ("hostname", "hostname"),
        ("bash", "bash"),
        ("awk", "mawk"),
        ("gzip", "gzip"),
        ("cc", "gcc libc6-dev"),
        ("g++", "g++"),
        ("make", "make"),
        ("perl", "perl"),
        ("xsubpp", "perl"),
        ("pkg-config", "pkg-config"),
        ("valgrind", "valgrind"),
        ("python3", "python3"),
        ("sqlite3", "sqlite3"),
        ("fuser", "psmisc"),
        ("prove", "perl"),
    ] {
        if !found(tool) {
            missing.push(format!("{tool} is missing: apt install {package}"));
        }
    }
    if !std::path::Path::new("/usr/include/qb/qbipcc.h").exists() {
        missing.push("qb/qbipcc.h is missing: apt install libqb-dev".to_string());
    }
    for (name, found) in [
        (
            "user",
            matches!(nix::unistd::User::from_name("www-data"), Ok(Some(_))),
        ),
        (
            "group",
            matches!(nix::unistd::Group::from_name("www-data"), Ok(Some(_))),
        ),
    ] {
        if !found {
            missing.push(format!(
                "{name} www-data is missing: apt install base-passwd"
            ));
        }
    }
    missing
}
