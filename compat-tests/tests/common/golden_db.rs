//! Golden databases: what `golden/db/index.md` says, putting one into a node, listing the mount.
// each test file uses a part of it
#![allow(dead_code)]
use compat_tests::daemon::Exit;
use compat_tests::{Node, dbfile, golden};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// What `golden/db/index.md` says of one file.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    pub exit: i32,
    pub entries: String,
    pub version: String,
    pub mtime: String,
    pub index: String,
    pub checksum: String,
    pub log: Vec<String>,
    pub tree: Option<Vec<String>>,
}

pub fn parse_index() -> BTreeMap<String, Expected> {
    let text = std::fs::read_to_string(golden("db/index.md")).unwrap();
    let mut all: BTreeMap<String, Expected> = BTreeMap::new();
    for line in text.lines().filter(|l| l.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let name = cells[1].trim_matches('`').to_string();
        all.insert(
            name,
            Expected {
                exit: cells[3].parse().unwrap(),
                entries: cells[4].to_string(),
                version: cells[5].to_string(),
                mtime: cells[6].to_string(),
                ..Expected::default()
            },
        );
    }
    for section in text.split("\n### `").skip(1) {
        let (name, body) = section.split_once('`').unwrap();
        details(
            all.get_mut(name)
                .unwrap_or_else(|| panic!("no row for {name}")),
            body,
        );
    }
    let small = all["small.db"].tree.clone().unwrap();
    for expected in all.values_mut() {
        let Some(tree) = &expected.tree else { continue };
        let Some(change) = tree.first().and_then(|l| l.strip_prefix("as small")) else {
            continue;
        };
        let mut lines = small.clone();
        for part in change.split(", ").map(str::trim) {
            if let Some(plus) = part.strip_prefix("plus ") {
                lines.push(plus.to_string());
            } else if let Some(without) = part.strip_prefix("without ") {
                lines.retain(|l| l != without);
            }
        }
        lines.sort_by(|a, b| path_of(a).cmp(path_of(b)));
        expected.tree = Some(lines);
    }
    all
}

pub fn path_of(line: &str) -> &str {
    line.splitn(3, ' ').nth(2).unwrap_or_default()
}

pub fn details(expected: &mut Expected, body: &str) {
    let mut in_log = false;
    let mut in_tree = false;
    for line in body.lines() {
        let quoted = |l: &str| l.split('`').nth(1).unwrap_or_default().to_string();
        if let Some(code) = line.strip_prefix("      ") {
            if in_log {
                expected.log.push(code.to_string());
            } else if in_tree {
                expected.tree.get_or_insert_default().push(code.to_string());
            }
        } else if line.starts_with("- idx") {
            expected.index = quoted(line);
        } else if line.starts_with("- csum") {
            expected.checksum = quoted(line);
        } else if line.starts_with("- log") {
            (in_log, in_tree) = (true, false);
        } else if let Some(tree) = line.strip_prefix("- tree") {
            (in_log, in_tree) = (false, true);
            let tree = tree.trim_start_matches(':').trim();
            if tree == "empty" {
                expected.tree = Some(Vec::new());
            } else if tree.starts_with("as `small.db`") {
                expected.tree = Some(vec![tree.replace('`', "").replace("small.db", "small")]);
            }
        }
    }
}

/// Puts a golden file (unpacked, with its log) into the node's database directory.
pub fn install(node: &Node, name: &str) {
    let target = node.database();
    dbfile::remove_with_log(&target);
    let source = golden(&format!("db/{name}"));
    if source.exists() {
        dbfile::copy_with_log(&source, &target);
    } else {
        let packed = golden(&format!("db/{name}.gz"));
        let out = Command::new("gzip")
            .arg("-dc")
            .arg(packed)
            .output()
            .unwrap();
        assert!(out.status.success(), "gzip -dc {name}.gz");
        std::fs::write(&target, out.stdout).unwrap();
    }
}

pub const PLUGINS: [&str; 10] = [
    "local",
    "qemu-server",
    "lxc",
    "openvz",
    ".version",
    ".members",
    ".vmlist",
    ".rrd",
    ".clusterlog",
    ".debug",
];

/// Lists the mount as the golden index does, and reads every file. Runs inside the node.
pub fn list(dir: &Path, top: bool, out: &mut Vec<(String, Vec<u8>)>, errors: &mut Vec<String>) {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => return errors.push(format!("{}: {:?}", dir.display(), e.raw_os_error())),
    };
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                errors.push(format!(
                    "{}: errno {}",
                    dir.display(),
                    e.raw_os_error().unwrap_or(0)
                ));
                break;
            }
        };
        let path = entry.path();
        if top && PLUGINS.iter().any(|p| entry.file_name() == *p) {
            continue;
        }
        let name = path.strip_prefix("/etc/pve").unwrap().display().to_string();
        match std::fs::symlink_metadata(&path) {
            Err(e) => errors.push(format!("{name}: {e}")),
            Ok(meta) if meta.is_dir() => {
                out.push((format!("d 0 {name}"), Vec::new()));
                list(&path, false, out, errors);
            }
            Ok(meta) => {
                let data = std::fs::read(&path).unwrap_or_else(|e| e.to_string().into_bytes());
                out.push((format!("f {} {name}", meta.len()), data));
            }
        }
    }
}

pub fn listing(node: &Node) -> (Vec<(String, Vec<u8>)>, Vec<String>) {
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    node.inside(|| list(Path::new("/etc/pve"), true, &mut out, &mut errors));
    out.sort_by(|a, b| path_of(&a.0).as_bytes().cmp(path_of(&b.0).as_bytes()));
    (out, errors)
}

/// The lines between the node-name line and the shutdown lines. How exactly a way out is worded is
/// no contract: it must be there (see [`compare_one`]).
pub fn middle_of_log(exit: &Exit) -> Vec<String> {
    let outer = [
        "[main] notice: resolved node name",
        "[main] notice: teardown filesystem",
        "[main] notice: exit proxmox configuration filesystem",
        "[libqb]",
        WAY_OUT,
    ];
    exit.stderr
        .lines()
        .filter(|l| !l.is_empty() && !outer.iter().any(|o| l.starts_with(o)))
        .map(String::from)
        .collect()
}

pub const WAY_OUT: &str = "[database] crit: way out: ";
