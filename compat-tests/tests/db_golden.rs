//! Every golden database: accepted or refused as recorded, the same tree, the same digests before
//! and after, and databases that go back and forth between the two implementations.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::daemon::Exit;
use compat_tests::dbfile::{self, Row};
use compat_tests::{Checker, Daemon, Lab, Node, Subject, golden, index, on_both, report};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

on_both!(golden_databases, writing_after_load, round_trip);

/// What `golden/db/index.md` says of one file.
#[derive(Clone, Debug, Default)]
struct Expected {
    exit: i32,
    entries: String,
    version: String,
    mtime: String,
    index: String,
    checksum: String,
    log: Vec<String>,
    tree: Option<Vec<String>>,
}

fn parse_index() -> BTreeMap<String, Expected> {
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

fn path_of(line: &str) -> &str {
    line.splitn(3, ' ').nth(2).unwrap_or_default()
}

fn details(expected: &mut Expected, body: &str) {
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
fn install(node: &Node, name: &str) {
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

const PLUGINS: [&str; 10] = [
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
fn list(dir: &Path, top: bool, out: &mut Vec<(String, Vec<u8>)>, errors: &mut Vec<String>) {
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

fn listing(node: &Node) -> (Vec<(String, Vec<u8>)>, Vec<String>) {
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    node.inside(|| list(Path::new("/etc/pve"), true, &mut out, &mut errors));
    out.sort_by(|a, b| path_of(&a.0).as_bytes().cmp(path_of(&b.0).as_bytes()));
    (out, errors)
}

/// The lines between the node-name line and the shutdown lines.
fn middle_of_log(exit: &Exit) -> Vec<String> {
    let outer = [
        "[main] notice: resolved node name",
        "[main] notice: teardown filesystem",
        "[main] notice: exit proxmox configuration filesystem",
        "[libqb]",
    ];
    exit.stderr
        .lines()
        .filter(|l| !l.is_empty() && !outer.iter().any(|o| l.starts_with(o)))
        .map(String::from)
        .collect()
}

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

/// New entries must not take the place of old ones when the version row lags behind the inodes.
fn writing_after_load(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "db-write");
    for name in [
        "small.db",
        "dmg-version-row-behind.db",
        "dmg-version-row-missing.db",
        "dmg-version-row-zero.db",
        "dmg-oversize-row.db",
        "dmg-type-264.db",
    ] {
        install(&node, name);
        let scratch = node.dir.join("scratch.db");
        let before = dbfile::rows_of_copy(&node.database(), &scratch).unwrap();
        let daemon = Daemon::local(&node, subject);
        let result = node.inside(|| -> std::io::Result<()> {
            for i in 0..40 {
                std::fs::write(format!("/etc/pve/new{i}"), format!("content {i}"))?;
            }
            std::fs::write("/etc/pve/datacenter.cfg", "keyboard: de\n")?;
            if Path::new("/etc/pve/big").exists() {
                std::fs::write("/etc/pve/big", "smaller")?;
            }
            Ok(())
        });
        checker.must(
            &format!("{name}: new and changed files"),
            "ok",
            &match result {
                Ok(()) => "ok".to_string(),
                Err(e) => format!("errno {}", e.raw_os_error().unwrap_or(0)),
            },
        );
        let exit = daemon.stop();
        assert_eq!(exit.code, 0, "{name}: {exit:?}");
        let after = dbfile::rows_of_copy(&node.database(), &scratch).unwrap();
        let kept = |r: &&Row| after.iter().any(|a| a.inode == r.inode && a.name == r.name);
        let lost = before
            .iter()
            .filter(|r| r.inode != 0)
            .filter(|r| !kept(r))
            .count();
        checker.must(&format!("{name}: rows lost"), "0", &lost.to_string());
        let again = Daemon::spawn(&node, subject, &["-f", "-l"]).try_wait_usable();
        checker.must(
            &format!("{name}: next start"),
            "ok",
            if again.is_ok() { "ok" } else { "refused" },
        );
    }
    checker.finish();
}

/// A sequence of changes of every kind; runs inside the node.
fn change_everything(round: usize) -> std::io::Result<()> {
    use std::fs;
    let dir = format!("/etc/pve/round{round}");
    fs::create_dir(&dir)?;
    fs::write(format!("{dir}/a.cfg"), vec![b'a'; 3000])?;
    fs::write(format!("{dir}/a.cfg"), "shorter")?;
    fs::write(format!("{dir}/empty"), "")?;
    fs::write(format!("{dir}/bytes"), (0..=255).collect::<Vec<u8>>())?;
    fs::write(format!("{dir}/n-ä€"), "name")?;
    fs::write(format!("{dir}/tmp"), "renamed")?;
    fs::rename(format!("{dir}/tmp"), format!("{dir}/a.cfg"))?;
    fs::write(format!("{dir}/gone"), "gone")?;
    fs::remove_file(format!("{dir}/gone"))?;
    fs::create_dir(format!("{dir}/sub"))?;
    fs::create_dir(format!("{dir}/sub/gone"))?;
    fs::remove_dir(format!("{dir}/sub/gone"))?;
    let file = fs::OpenOptions::new()
        .write(true)
        .open(format!("{dir}/bytes"))?;
    file.set_len(500)?;
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(77))?;
    fs::write("/etc/pve/storage.cfg", format!("dir: round{round}\n"))
}

/// One stay of a database with one binary: start, change, stop; rows and tree afterwards.
fn stay(
    node: &Node,
    subject: &Subject,
    round: Option<usize>,
) -> (Vec<Row>, Vec<(String, Vec<u8>)>) {
    let daemon = Daemon::local(node, subject);
    if let Some(round) = round {
        node.inside(|| change_everything(round)).unwrap();
    }
    let (tree, errors) = listing(node);
    assert!(errors.is_empty(), "{errors:?}");
    let exit = daemon.stop();
    assert_eq!(exit.code, 0, "{exit:?}");
    assert!(
        !dbfile::with_suffix(&node.database(), "-wal").exists(),
        "-wal left by a clean stop"
    );
    (
        dbfile::rows_of_copy(&node.database(), &node.dir.join("scratch.db")).unwrap(),
        tree,
    )
}

/// ours → reference → ours (without a reference: the subject with itself): rows byte-equal while
/// only loaded, digests equal, changes of one visible to the other.
fn round_trip(subject: &Subject) {
    let name = "db_golden::round_trip with the reference";
    let other = if subject.is_ours() {
        Subject::reference_or_skip(name).unwrap_or_else(|| subject.clone())
    } else {
        subject.clone()
    };
    std::thread::scope(|scope| {
        for start in [
            "fresh.db",
            "small.db",
            "locks.db",
            "synced-from-leader.db",
            "guests2000.db",
        ] {
            let other = &other;
            scope.spawn(move || go_round(start, subject, other));
        }
    });
}

fn go_round(start: &str, subject: &Subject, other: &Subject) {
    let (_lab, node) = Lab::single();
    install(&node, start);
    let (written, tree) = stay(&node, subject, Some(1));
    for (step, who) in [("other", other), ("back", subject)] {
        let (rows, again) = stay(&node, who, None);
        assert_eq!(written, rows, "{start}: rows after {step} ({})", who.name());
        assert_eq!(tree, again, "{start}: tree in {step} ({})", who.name());
    }
    let (written, tree) = stay(&node, other, Some(2));
    let (rows, again) = stay(&node, subject, None);
    assert_eq!(written, rows, "{start}: rows written by {}", other.name());
    assert_eq!(tree, again, "{start}: tree written by {}", other.name());
    let digests = index::digests(&rows);
    report(&format!(
        "round trip {start} {} -> {} -> {}: {} rows equal, index {}",
        subject.name(),
        other.name(),
        subject.name(),
        rows.len(),
        &digests.index[..16]
    ));
}
