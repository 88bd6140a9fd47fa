//! Every golden database: accepted or refused as recorded, the same tree, the same digests, no row
//! changed; states that clients can bring about are served and can be cleaned up.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/golden_db.rs"]
mod golden_db;

use compat_tests::daemon::Exit;
use compat_tests::dbfile::{self, Row};
use compat_tests::{Checker, Daemon, Lab, Node, Subject, index, on_both};
use golden_db::{Expected, WAY_OUT, install, listing, middle_of_log, parse_index, path_of};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

on_both!(golden_databases, repairable_states);

/// What one start on one database showed.
struct Seen {
    exit: Exit,
    tree: Vec<(String, Vec<u8>)>,
    errors: Vec<String>,
    before: Option<Vec<Row>>,
    after: Option<Vec<Row>>,
}

fn run_one(node: &Node, subject: &Subject, name: &str) -> Seen {
    install(node, name);
    let scratch: PathBuf = node.dir.join("scratch.db");
    let before = dbfile::rows_of_copy(&node.database(), &scratch).ok();
    let mut daemon = Daemon::spawn(node, subject, &["-l", "-f"]);
    let (exit, (tree, errors)) = match daemon.try_wait_usable() {
        Ok(_) => {
            let seen = listing(node);
            (daemon.stop(), seen)
        }
        Err(exit) => (exit, (Vec::new(), Vec::new())),
    };
    let after = dbfile::rows_of_copy(&node.database(), &scratch).ok();
    Seen {
        exit,
        tree,
        errors,
        before,
        after,
    }
}

/// Content of the visible files must be that of the rows with the same name and size.
fn contents_are_stored(seen: &Seen) -> Result<(), String> {
    let rows = seen.before.as_deref().unwrap_or_default();
    for (line, data) in seen.tree.iter().filter(|(l, _)| l.starts_with("f ")) {
        let name = Path::new(path_of(line)).file_name().unwrap();
        let known = rows.iter().any(|r| {
            r.name.split(|b| *b == 0).next() == Some(name.as_bytes())
                && r.data.as_deref().unwrap_or_default() == data.as_slice()
        });
        if !known
            && !rows
                .iter()
                .any(|r| r.data.as_deref() == Some(data.as_slice()))
        {
            return Err(format!("{line}: content is in no row"));
        }
    }
    Ok(())
}

fn compare_one(checker: &mut Checker, name: &str, expected: &Expected, seen: &Seen) {
    let case = |what: &str| format!("{name}: {what}");
    checker.golden(
        &case("exit"),
        &expected.exit.to_string(),
        &seen.exit.code.to_string(),
    );
    checker.golden(
        &case("log"),
        &expected.log.join("\n"),
        &middle_of_log(&seen.exit).join("\n"),
    );
    if checker.is_ours() && seen.exit.code != 0 {
        let told = seen.exit.stderr.contains(WAY_OUT);
        checker.check(&case("way out"), told, || {
            "the refusal names no way out".to_string()
        });
    }
    if let (Some(rows), false) = (&seen.before, expected.index.is_empty()) {
        let mut found = index::digests(rows);
        if rows.is_empty() || name == "dmg-empty-file.db" {
            found.mtime = 0;
        }
        let what = (
            found.index.as_str(),
            found.checksum.as_str(),
            found.entries.to_string(),
        );
        let want = (
            expected.index.as_str(),
            expected.checksum.as_str(),
            expected.entries.clone(),
        );
        checker.check(&case("digests"), what == want, || {
            format!("{what:?}, golden {want:?}")
        });
        checker.check(
            &case("version"),
            found.version.to_string() == expected.version,
            || format!("version {}, golden {}", found.version, expected.version),
        );
        checker.check(
            &case("mtime"),
            found.mtime.to_string() == expected.mtime,
            || format!("mtime {}, golden {}", found.mtime, expected.mtime),
        );
    }
    if seen.exit.code == 0 {
        let tree: Vec<&str> = seen.tree.iter().map(|(l, _)| l.as_str()).collect();
        if let Some(want) = &expected.tree {
            checker.golden(&case("tree"), &want.join("\n"), &tree.join("\n"));
        }
        checker.golden(
            &case("listing errors"),
            if name == "dmg-odd-names.db" {
                "/etc/pve: errno 5"
            } else {
                ""
            },
            &seen.errors.join("\n"),
        );
        let stored = contents_are_stored(seen);
        checker.check(&case("contents"), stored.is_ok(), || stored.unwrap_err());
    }
    // whatever happened, no row but the version row may have changed
    let entries = |rows: &Option<Vec<Row>>| -> Option<Vec<Row>> {
        rows.as_ref()
            .map(|rows| rows.iter().filter(|r| r.inode != 0).cloned().collect())
    };
    if seen.before.is_some() {
        let same = entries(&seen.before) == entries(&seen.after);
        checker.check(&case("rows"), same, || {
            "rows changed by starting and stopping".to_string()
        });
    }
}

fn golden_databases(subject: &Subject) {
    let expected = parse_index();
    assert_eq!(expected.len(), 42, "golden/db/index.md");
    let names: Mutex<Vec<&String>> = Mutex::new(expected.keys().collect());
    let results: Mutex<BTreeMap<&String, Seen>> = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (_lab, node) = Lab::single();
                loop {
                    let Some(name) = names.lock().unwrap().pop() else {
                        break;
                    };
                    let seen = run_one(&node, subject, name);
                    results.lock().unwrap().insert(name, seen);
                }
            });
        }
    });
    let results = results.into_inner().unwrap();
    let mut checker = Checker::new(subject, "db");
    for (name, expected) in &expected {
        compare_one(&mut checker, name, expected, &results[name]);
    }
    checker.finish();
}

/// States that ordinary clients can bring about: everything is served, the newest entry has the
/// name, and after the clean-up the log asks for, the next start is silent.
fn repairable_states(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "db-repair");
    let read = |path: &str| {
        node.inside(|| match std::fs::read(format!("/etc/pve/{path}")) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) => e.kind().to_string(),
        })
    };
    for (name, paths, remove) in [
        (
            "dmg-duplicate-name.db",
            &["user.cfg", "user.cfg.duplicate-64"][..],
            "user.cfg.duplicate-64",
        ),
        (
            "dmg-duplicate-vmid.db",
            &[
                "nodes/node1/qemu-server/100.conf",
                "nodes/node1/lxc/100.conf",
            ][..],
            "nodes/node1/lxc/100.conf",
        ),
        (
            "dmg-lxc-is-a-file.db",
            &["nodes/node9/lxc"][..],
            "nodes/node9/lxc",
        ),
    ] {
        install(&node, name);
        let mut daemon = Daemon::spawn(&node, subject, &["-f", "-l"]);
        if daemon.try_wait_usable().is_err() {
            checker.must(&format!("{name}: clean-up"), "possible", "refused");
            continue;
        }
        let rows = dbfile::rows_of_copy(&node.database(), &node.dir.join("scratch.db")).unwrap();
        for path in paths {
            let content = read(path).into_bytes();
            let stored = rows
                .iter()
                .any(|r| r.data.as_deref().unwrap_or_default() == content);
            checker.check(path, stored, || format!("content {content:?} is in no row"));
        }
        if name == "dmg-duplicate-vmid.db" {
            let list = read(".vmlist");
            let once = list.matches("\"100\"").count() == 1 && list.contains("\"lxc\"");
            checker.check(".vmlist", once, || list.clone());
        }
        node.inside(|| std::fs::remove_file(format!("/etc/pve/{remove}")))
            .unwrap();
        assert_eq!(daemon.stop().code, 0);
        let after = dbfile::rows_of_copy(&node.database(), &node.dir.join("scratch.db")).unwrap();
        assert_eq!(after.len(), rows.len() - 1, "{name}: one row less");
        let daemon = Daemon::local(&node, subject);
        let mut log = middle_of_log(&daemon.stop());
        // Told of until the numbers have caught up; no clean-up was asked for.
        log.retain(|line| !line.contains("version row (inode 0) has version"));
        let clean = if log.is_empty() {
            "possible".to_string()
        } else {
            log.join("\n")
        };
        checker.must(&format!("{name}: clean-up"), "possible", &clean);
    }
    checker.finish();
}
