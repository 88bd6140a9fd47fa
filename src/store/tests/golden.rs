//! Every golden database: tree, digests, refusals as `index.md` has them.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use sha2::{Digest as _, Sha256};

use super::*;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("compat-tests/golden/db")
}

/// What `index.md` says about one database.
#[derive(Debug, Default)]
struct Expected {
    name: String,
    entries: usize,
    version: u64,
    idx: String,
    csum: String,
    refused: bool,
    log: Vec<String>,
    /// Lines of the tree listing; `None`: not given.
    tree: Option<BTreeSet<String>>,
}

/// The text between two backquotes.
fn quoted(line: &str) -> &str {
    line.split('`').nth(1).unwrap()
}

fn expectations() -> Vec<Expected> {
    let text = fs::read_to_string(golden().join("index.md")).unwrap();
    let (table, details) = text.split_once("## Details").unwrap();
    let mut all: Vec<Expected> = details.split("\n### ").skip(1).map(section).collect();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let expected = all.iter_mut().find(|e| e.name == quoted(cells[1])).unwrap();
        assert_eq!(expected.refused, cells[3] == "255");
        expected.entries = cells[4].parse().unwrap_or(0);
        expected.version = cells[5].parse().unwrap_or(0);
    }
    let small = all
        .iter()
        .find(|e| e.name == "small.db")
        .unwrap()
        .tree
        .clone()
        .unwrap();
    for expected in &mut all {
        let Some(tree) = &mut expected.tree else {
            continue;
        };
        if tree.remove("as small.db") {
            let (plus, minus): (Vec<_>, Vec<_>) = std::mem::take(tree)
                .into_iter()
                .partition(|line| line.starts_with('+'));
            *tree = small.clone();
            for line in minus {
                assert!(tree.remove(&line[1..]), "{line}");
            }
            tree.extend(plus.iter().map(|line| line[1..].to_owned()));
        }
    }
    all
}

fn section(text: &str) -> Expected {
    let mut expected = Expected {
        name: quoted(text).to_owned(),
        ..Default::default()
    };
    let mut in_log = false;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("      ") {
            if in_log {
                expected.log.push(rest.trim().to_owned());
            } else if let Some(tree) = &mut expected.tree {
                tree.insert(rest.trim().to_owned());
            }
        } else if line.starts_with("- ") {
            in_log = line.starts_with("- log");
            expected.refused |= line.starts_with("- refused");
            if line.starts_with("- idx") {
                expected.idx = quoted(line).to_owned();
            } else if line.starts_with("- csum") {
                expected.csum = quoted(line).to_owned();
            } else if line.starts_with("- tree: empty") {
                expected.tree = Some(BTreeSet::new());
            } else if line.starts_with("- tree: as") {
                expected.tree = Some(relative(line));
            } else if line.starts_with("- tree (") {
                expected.tree = Some(BTreeSet::new());
            }
        }
    }
    expected
}

/// ``- tree: as `small.db`, plus `x`, without `y` `` as `as small.db`, `+x`, `-y`.
fn relative(line: &str) -> BTreeSet<String> {
    let mut out = BTreeSet::from(["as small.db".to_owned()]);
    let parts: Vec<&str> = line.split('`').collect();
    for pair in parts[2..].chunks_exact(2) {
        let sign = if pair[0].contains("plus") { '+' } else { '-' };
        out.insert(format!("{sign}{}", pair[1]));
    }
    out
}

/// A copy of a golden database to work on.
pub(super) fn copy(name: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("config.db");
    let packed = golden().join(format!("{name}.gz"));
    if packed.exists() {
        let unpacked = Command::new("gzip")
            .arg("-dc")
            .arg(packed)
            .output()
            .unwrap();
        fs::write(&db, unpacked.stdout).unwrap();
    } else {
        fs::copy(golden().join(name), &db).unwrap();
    }
    let wal = golden().join(format!("{name}-wal"));
    if wal.exists() {
        fs::copy(wal, dir.path().join("config.db-wal")).unwrap();
    }
    (dir, db)
}

/// Every servable path as `index.md` lists it.
fn listing(tree: &Tree) -> BTreeSet<String> {
    let hidden = ["local", ".version"];
    tree.iter()
        .filter_map(|(inode, entry)| {
            let path = tree.path_of(inode).filter(|path| {
                assert_eq!(tree.lookup(path), Some(inode));
                !hidden.contains(&path.to_string().as_str())
            })?;
            let kind = if entry.is_dir() { 'd' } else { 'f' };
            Some(format!("{kind} {} {path}", entry.size()))
        })
        .collect()
}

/// Refused by the C daemon, served here (the "bad input").
const SERVED_HERE: [&str; 3] = [
    "dmg-duplicate-name.db",
    "dmg-duplicate-vmid.db",
    "dmg-lxc-is-a-file.db",
];

#[test]
fn served_as_the_reference_serves_them() {
    let mut digests = 0;
    for expected in expectations().iter().filter(|e| !e.refused) {
        let name = expected.name.as_str();
        let (_dir, db) = copy(name);
        let (_, loaded) = Store::open(&db, 1_800_000_000).unwrap_or_else(|e| panic!("{name}: {e}"));
        let tree = loaded.tree;
        assert_eq!(tree.len(), expected.entries, "{name}");
        if let Some(want) = &expected.tree {
            assert_eq!(&listing(&tree), want, "{name}");
        }
        assert_eq!(tree.root_row().version, expected.version, "{name}");
        assert_eq!(
            hex(&Sha256::digest(tree.encode_index())),
            expected.idx,
            "{name}"
        );
        assert_eq!(hex(&tree.checksum()), expected.csum, "{name}");
        digests += 1;
    }
    assert_eq!(digests, 26);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn refused_with_the_message_of_the_reference() {
    let mut refusals = 0;
    for expected in expectations().iter().filter(|e| e.refused) {
        let name = expected.name.as_str();
        if SERVED_HERE.contains(&name) {
            continue;
        }
        let (_dir, db) = copy(name);
        let error = Store::open(&db, 1_800_000_000).expect_err(name);
        let want = expected.log[0].strip_prefix("[database] crit: ").unwrap();
        assert_eq!(error.to_string(), want.trim_end_matches("#010"), "{name}");
        let way_out = error.way_out(&db);
        assert!(
            way_out.contains(&db.display().to_string()),
            "{name}: {way_out}"
        );
        refusals += 1;
    }
    assert_eq!(refusals, 13);
}

/// The way out that a refusal names works, where it is one statement.
#[test]
fn ways_out_lead_out() {
    for name in [
        "dmg-dir-with-data.db",
        "dmg-empty-name.db",
        "dmg-orphan-dir-chain.db",
        "dmg-orphan-inode.db",
        "dmg-parent-is-file.db",
        "dmg-unknown-type.db",
    ] {
        let (_dir, db) = copy(name);
        let way_out = Store::open(&db, 1).unwrap_err().way_out(&db);
        let sql = way_out.split('"').nth(1).unwrap();
        rusqlite::Connection::open(&db)
            .unwrap()
            .execute_batch(sql)
            .unwrap();
        let opened = Store::open(&db, 1);
        assert!(opened.is_ok(), "{name}: {sql}: {opened:?}");
    }
}

#[test]
fn duplicate_name_is_served_under_another() {
    let (_dir, db) = copy("dmg-duplicate-name.db");
    let (
        store,
        Loaded {
            mut tree, notes, ..
        },
    ) = Store::open(&db, 5000).unwrap();
    let text: Vec<String> = notes.iter().map(ToString::to_string).collect();
    let reference = "found entry with duplicate name 'user.cfg' - A:(inode = 0x000000000000000D, \
                     parent = 0x0000000000000000, v./mtime = 0x24/0x1234567890) vs. \
                     B:(inode = 0x0000000000000064, parent = 0x0000000000000000, \
                     v./mtime = 0x24/0x1000)";
    assert!(
        text.iter().any(|line| line.starts_with(reference)),
        "{text:#?}"
    );

    let alias = p("user.cfg.duplicate-64");
    assert_eq!(tree.lookup(&p("user.cfg")), Some(0xD));
    assert_eq!(tree.lookup(&alias), Some(0x64));
    let before = raw_rows(&db);
    assert!(before.iter().any(|r| r[0] == Value::Integer(0x64)));

    // Cleaned up as a client would, it is a database like any other.
    let change = tree
        .apply_local(
            &Op::Delete {
                path: alias.clone(),
            },
            5001,
            5001,
        )
        .unwrap();
    store.commit(&[change]).unwrap();
    store.close().unwrap();
    let (_, again) = Store::open(&db, 5002).unwrap();
    assert_eq!(again.notes, []);
    assert_eq!(again.tree.index(), tree.index());
    assert_eq!(again.tree.lookup(&alias), None);
}

#[test]
fn duplicate_guest_and_files_for_directories_are_served() {
    let (_dir, db) = copy("dmg-duplicate-vmid.db");
    let (_, loaded) = Store::open(&db, 5000).unwrap();
    let text = loaded
        .notes
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n");
    assert!(text.contains("detected duplicate VMID 100"), "{text}");
    assert!(
        loaded
            .tree
            .lookup(&p("nodes/node1/qemu-server/100.conf"))
            .is_some()
    );
    assert!(loaded.tree.lookup(&p("nodes/node1/lxc/100.conf")).is_some());
    assert_eq!(loaded.tree.guests().count(), 2);

    let (_dir, db) = copy("dmg-lxc-is-a-file.db");
    let (_, loaded) = Store::open(&db, 5000).unwrap();
    let text = loaded
        .notes
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        text.contains("'nodes/node9/lxc' (inode = 0000000000000065)"),
        "{text}"
    );
    assert!(loaded.tree.read(&p("nodes/node9/lxc")).is_some());
}

#[test]
fn a_version_that_lags_behind_the_entries_stays_and_is_told_of() {
    for (name, version, highest) in [
        ("dmg-version-row-behind.db", 5, 36),
        ("dmg-version-row-missing.db", 1, 36),
        ("dmg-version-row-zero.db", 1, 36),
        ("dmg-oversize-row.db", 36, 100),
    ] {
        let (_dir, db) = copy(name);
        for _ in 0..2 {
            let (store, loaded) = Store::open(&db, 5000).unwrap();
            assert_eq!(loaded.tree.root_row().version, version, "{name}");
            let behind = |note: &LoadNote| match note {
                LoadNote::VersionBehind { highest, .. } => Some(*highest),
                _ => None,
            };
            let noted: Vec<_> = loaded.notes.iter().filter_map(behind).collect();
            assert_eq!(noted, [highest], "{name}");
            store.close().unwrap();
            let rows = raw_rows(&db);
            assert_eq!(
                (&rows[0][0], &rows[0][2]),
                (&Value::Integer(0), &Value::Integer(version as i64)),
                "{name}"
            );
        }
    }
    // Negative on disk: not what a counter can have reached.
    let (_dir, db) = copy("dmg-negative-inode.db");
    let (_, loaded) = Store::open(&db, 5000).unwrap();
    assert_eq!(loaded.notes, []);
    assert_eq!(loaded.tree.root_row().version, 36);
    assert_eq!(loaded.tree.index().last_inode, (-5i64) as u64);
}

/// Every entry written anew by us gives the very rows the reference wrote.
#[test]
fn rows_round_trip() {
    for expected in expectations().iter().filter(|e| !e.refused) {
        let name = expected.name.as_str();
        let (_dir, db) = copy(name);
        let (_, loaded) = Store::open(&db, 1).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ours = dir.path().join("config.db");
        let (store, _) = Store::open(&ours, 1).unwrap();
        let tree = loaded.tree;
        let root = tree.root_row();
        let changes: Vec<Change> = tree
            .iter()
            .map(|(inode, _)| Change {
                delete: None,
                put: tree.row(inode),
                root,
                removed: None,
                inode,
                effects: Effects::default(),
            })
            .collect();
        store.commit(&changes).unwrap();
        store.close().unwrap();
        assert_rows_equal(name, raw_rows(&db), raw_rows(&ours));
    }
}

fn assert_rows_equal(name: &str, mut theirs: Vec<RawRow>, ours: Vec<RawRow>) {
    // What the C daemon reads as these values without storing them so.
    for row in &mut theirs {
        match name {
            "dmg-type-264.db" if row[5] == Value::Integer(264) => row[5] = Value::Integer(8),
            "dmg-wide-fields.db" if row[0] == Value::Integer(100) => {
                for column in [3, 4] {
                    let Value::Integer(wide) = row[column] else {
                        panic!()
                    };
                    row[column] = Value::Integer(i64::from(wide as u32));
                }
            }
            "dmg-odd-names.db" => {
                let Value::Blob(bytes) = &mut row[6] else {
                    panic!()
                };
                bytes.truncate(bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len()));
            }
            _ => {}
        }
        // Text as content is content; an empty blob is none.
        match &row[7] {
            Value::Text(text) => row[7] = Value::Blob(text.clone().into_bytes()),
            Value::Blob(bytes) if bytes.is_empty() => row[7] = Value::Null,
            _ => {}
        }
    }
    let (our_root, our_rows) = ours.split_first().unwrap();
    let split = theirs.iter().position(|row| row[0] == Value::Integer(0));
    if our_root[0] != Value::Integer(0) {
        // A negative inode comes before the version row.
        assert_eq!(ours, theirs, "{name}");
        return;
    }
    let mut root = theirs.remove(split.unwrap());
    // A sync stores 4 there; opening a new file stores the time.
    root[5] = Value::Integer(8);
    let first = ["dmg-version-row-missing.db", "dmg-version-row-zero.db"].contains(&name);
    if theirs.is_empty() || first {
        root[4] = our_root[4].clone();
    }
    assert_eq!(*our_root, root, "{name}");
    assert_eq!(our_rows, theirs, "{name}");
}
