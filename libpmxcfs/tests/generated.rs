//! What is made of this crate and checked in is current: `include/pmxcfs.h` for C and
//! `PVE::Cluster::IPCConst` for Perl. `UPDATE_GENERATED=1` writes them anew.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a test ends at the first surprise

use std::fmt::Write;
use std::path::{Path, PathBuf};

use pmxcfs_client::cpg::{PMXCFS_CPG_DCDB_GROUP, PMXCFS_CPG_KVSTORE_GROUP};
use pmxcfs_client::messages::{OPERATIONS, PMXCFS_RESTART_FLAG, PMXCFS_SERVICE};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

const HEAD: &str = "\
/*
 * pmxcfs.h - messages of the cluster filesystem daemon pmxcfs and a client for it.
 *
 * Made by cbindgen from the crate libpmxcfs: do not edit.
 *
 * Link with `pkg-config --libs pmxcfs`. Functions return 0 (or a size) or a negative errno.
 */";

fn header() -> String {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = cbindgen::Config {
        language: cbindgen::Language::C,
        header: Some(HEAD.to_string()),
        include_guard: Some("PMXCFS_H".to_string()),
        no_includes: true,
        sys_includes: vec!["stddef.h".to_string(), "stdint.h".to_string()],
        after_includes: Some(strings()),
        cpp_compat: true,
        style: cbindgen::Style::Both,
        usize_is_size_t: true,
        documentation_style: cbindgen::DocumentationStyle::Doxy,
        documentation_length: cbindgen::DocumentationLength::Full,
        line_length: 100,
        tab_width: 4,
        ..cbindgen::Config::default()
    };
    // What nothing refers to is wanted all the same.
    config.parse.parse_deps = false;
    config.export.include = messages(crate_dir);
    // For Rust only.
    config.export.exclude = vec!["OPERATIONS".to_string()];
    let mut out = Vec::new();
    cbindgen::Builder::new()
        .with_config(config)
        .with_crate(crate_dir)
        .generate()
        .unwrap()
        .write(&mut out);
    without_rust(&String::from_utf8(out).unwrap())
}

/// The strings among the constants, which cbindgen leaves out.
fn strings() -> String {
    let mut out = String::new();
    for (name, value, what) in [
        (
            "PMXCFS_SERVICE",
            PMXCFS_SERVICE,
            "Name of the service: an abstract socket of this name, filled up with NUL to 107 bytes.",
        ),
        (
            "PMXCFS_RESTART_FLAG",
            PMXCFS_RESTART_FLAG,
            "Its existence tells clients to wait for a daemon that is about to come back.",
        ),
        (
            "PMXCFS_CPG_DCDB_GROUP",
            PMXCFS_CPG_DCDB_GROUP,
            "CPG group of the database. Its name includes the NUL.",
        ),
        (
            "PMXCFS_CPG_KVSTORE_GROUP",
            PMXCFS_CPG_KVSTORE_GROUP,
            "CPG group of node status and cluster log. Its name includes the NUL.",
        ),
    ] {
        let value = value.to_str().unwrap();
        write!(out, "\n/**\n * {what}\n */\n#define {name} \"{value}\"\n").unwrap();
    }
    out
}

/// Names of all messages, which no function takes.
fn messages(crate_dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for file in ["src/messages.rs", "src/cpg.rs"] {
        let text = std::fs::read_to_string(crate_dir.join(file)).unwrap();
        for start in ["pub struct ", "pub type "] {
            let of = |line: &str| Some(line.strip_prefix(start)?.split(' ').next()?.to_string());
            names.extend(text.lines().filter_map(of));
        }
    }
    names
}

/// What the documentation says to Rust only: the sections on safety.
fn without_rust(text: &str) -> String {
    let mut out = String::new();
    let mut in_safety = false;
    for line in text.lines() {
        if line.trim() == "* # Safety" {
            in_safety = true;
            // and the empty line before it
            if out.ends_with(" *\n") {
                out.truncate(out.len() - 3);
            }
        } else if line.trim() == "*/" {
            in_safety = false;
        }
        if !in_safety {
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
    out
}

fn constants() -> String {
    let mut out = String::from(
        "package PVE::Cluster::IPCConst;\n\n\
         # Numbers of the operations of pmxcfs. Made from the crate libpmxcfs: do not edit.\n\n\
         use strict;\nuse warnings;\n\nuse base 'Exporter';\n\nour @EXPORT = qw(\n",
    );
    for (name, _) in OPERATIONS {
        writeln!(out, "    CFS_IPC_{name}").unwrap();
    }
    out.push_str(");\n\nuse constant {\n");
    for (name, number) in OPERATIONS {
        writeln!(out, "    CFS_IPC_{name} => {number},").unwrap();
    }
    out.push_str("};\n\n1;\n");
    out
}

fn is_current(path: &str, new: &str) {
    let path = root().join(path);
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        std::fs::write(&path, new).unwrap();
    }
    let old = std::fs::read_to_string(&path).unwrap();
    let difference = old.lines().zip(new.lines()).find(|(old, new)| old != new);
    assert!(
        old == new,
        "{} is not current: {difference:#?}; UPDATE_GENERATED=1 cargo test -p libpmxcfs --test \
         generated writes it anew",
        path.display()
    );
}

#[test]
fn header_is_current() {
    is_current("include/pmxcfs.h", &header());
}

#[test]
fn perl_constants_are_current() {
    is_current("perl/PVE/Cluster/IPCConst.pm", &constants());
}
