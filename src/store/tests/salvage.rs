//! New databases of damaged ones.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::golden::copy;
use super::*;

/// Salvages `db`; the new file and what was printed.
fn run(db: &Path) -> Result<(PathBuf, String), SalvageError> {
    let new = db.with_extension("new");
    let mut out = Vec::new();
    salvage(db, &new, &mut out)?;
    Ok((new, String::from_utf8(out).unwrap()))
}

/// Loads without a word, and is in every respect what the daemons make.
fn is_good(new: &Path, told: &str) -> Tree {
    let mode = fs::metadata(new).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let (store, loaded) = Store::open(new, 1).unwrap_or_else(|e| panic!("{e}\n{told}"));
    assert!(loaded.notes.is_empty(), "{:?}\n{told}", loaded.notes);
    store.close().unwrap();
    let check = Command::new("sqlite3")
        .arg(new)
        .arg("PRAGMA integrity_check; SELECT sql FROM sqlite_master")
        .output()
        .unwrap();
    let schema = CREATE_TABLE.replace("TABLE IF NOT EXISTS", "TABLE");
    let want = format!("ok\n{}\n", schema.trim_end_matches(';'));
    assert_eq!(String::from_utf8(check.stdout).unwrap(), want);
    loaded.tree
}

#[test]
fn a_good_database_is_taken_as_it_is() {
    for name in [
        "small.db",
        "locks.db",
        "synced-from-leader.db",
        "guests2000.db",
    ] {
        let (_dir, db) = copy(name);
        let before = fs::read(&db).unwrap();
        let (new, told) = run(&db).unwrap();
        assert_eq!(
            fs::read(&db).unwrap(),
            before,
            "{name}: the old file is only read"
        );
        is_good(&new, &told);
        assert_eq!(raw_rows(&new), raw_rows(&db), "{name}");
        let rows = raw_rows(&new).len();
        assert_eq!(told.matches("\ntaken ").count(), rows, "{name}: {told}");
    }
}

/// Every database of the collection of damages, but those that are no databases at all.
#[test]
fn every_damage_leads_to_a_good_database() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("compat-tests/golden/db");
    let mut names: Vec<String> = fs::read_dir(golden)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("dmg-") && !name.ends_with("-wal"))
        .collect();
    names.sort();
    assert!(names.len() > 25);
    for name in names {
        let name = name.trim_end_matches(".gz");
        let (_dir, db) = copy(name);
        let result = run(&db);
        let hopeless = [
            "dmg-empty-file.db",
            "dmg-not-a-database.db",
            "dmg-truncated-one-page.db",
            "dmg-truncated.db",
        ];
        if hopeless.contains(&name) {
            assert!(matches!(result, Err(SalvageError::Nothing(_))), "{name}");
            assert!(!db.with_extension("new").exists());
            continue;
        }
        let (new, told) = result.unwrap_or_else(|e| panic!("{name}: {e}"));
        let tree = is_good(&new, &format!("{name}: {told}"));
        // Rows are left out only where two have one number, and every other one has its line.
        let lines = told.matches("\ntaken ").count() + told.matches("\nchanged ").count();
        assert_eq!(lines, tree.len(), "{name}: {told}");
        let good = new.with_file_name("good.db");
        fs::rename(&new, &good).unwrap();
        let (again, _) = run(&good).unwrap();
        assert_eq!(raw_rows(&again), raw_rows(&good), "{name}: it is good now");
    }
}

/// What is on a destroyed page is lost, all else is there, whatever page it is.
#[test]
fn a_destroyed_page_costs_its_own_rows_only() {
    let (_dir, good) = copy("guests2000.db");
    let rows: BTreeMap<i64, RawRow> = raw_rows(&good).into_iter().map(by_inode).collect();
    let bytes = fs::read(&good).unwrap();
    let pages = bytes.len() / 4096;
    let mut complete = 0;
    for page in (0..pages).step_by(7).chain([1, 2, 3]) {
        let (_dir, db) = copy("guests2000.db");
        let mut bad = bytes.clone();
        bad[page * 4096..(page + 1) * 4096].fill(0x5a);
        fs::write(&db, bad).unwrap();
        let (new, told) = run(&db).unwrap();
        is_good(&new, &told);
        let found = raw_rows(&new).into_iter().map(by_inode);
        let same = found
            .filter(|(inode, row)| *inode != 0 && rows.get(inode) == Some(row))
            .count();
        assert!(
            rows.len() - 1 - same <= 60,
            "page {page}: {same} of {} rows",
            rows.len()
        );
        complete += usize::from(same == rows.len() - 1);
    }
    assert!(
        complete > 0,
        "pages without rows of their own: the first, and those above leaves"
    );
}

fn by_inode(row: RawRow) -> (i64, RawRow) {
    match row[0] {
        Value::Integer(inode) => (inode, row),
        _ => unreachable!("the column is an integer"),
    }
}

/// Whatever the bytes are: no panic, and a good database or none.
#[test]
fn random_bytes_do_no_harm() {
    let (_dir, good) = copy("small.db");
    let bytes = fs::read(&good).unwrap();
    let mut random = 7u64;
    let mut next = |limit: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (random >> 33) as usize % limit
    };
    let mut made = 0;
    for _ in 0..300 {
        let (_dir, db) = copy("small.db");
        let mut bad = bytes.clone();
        for _ in 0..1 + next(30) {
            let at = next(bad.len());
            bad[at] = next(256) as u8;
        }
        if next(10) == 0 {
            bad.truncate(next(bad.len()));
        }
        fs::write(&db, bad).unwrap();
        if let Ok((new, told)) = run(&db) {
            is_good(&new, &told);
            made += 1;
        }
    }
    assert!(made > 200, "{made} new databases");
}

#[test]
fn the_log_counts_if_it_belongs_to_the_database() {
    let mut lab = Lab::new();
    lab.put("file", b"only in the log");
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.db", "config.db-wal"] {
        let cp = Command::new("cp")
            .arg(lab.dir.path().join(file))
            .arg(dir.path())
            .status();
        assert!(cp.unwrap().success());
    }
    let db = dir.path().join("config.db");
    let (new, told) = run(&db).unwrap();
    assert_eq!(is_good(&new, &told).index(), lab.tree.index());
    assert!(dir.path().join("config.db-wal").exists(), "it is only read");

    fs::remove_file(&new).unwrap();
    let mut other = Lab::new();
    for i in 0..6 {
        other.put("large", &vec![i; 1 << 20]);
    }
    assert!(other.store.shutdown(Duration::from_secs(10)));
    fs::copy(other.path(), &db).unwrap();
    let (new, told) = run(&db).unwrap();
    assert!(told.contains("is not the log of this database"), "{told}");
    assert_eq!(is_good(&new, &told).index(), other.tree.index());
}

#[test]
fn it_touches_nothing_that_is_there_and_no_database_in_use() {
    let (dir, db) = copy("small.db");
    for suffix in ["", "-wal", "-journal"] {
        let there = dir.path().join(format!("config.new{suffix}"));
        fs::write(&there, "somebody's").unwrap();
        assert!(matches!(run(&db), Err(SalvageError::Exists(file)) if file == there));
        assert_eq!(fs::read(&there).unwrap(), b"somebody's");
        fs::remove_file(&there).unwrap();
    }
    let lock = fs::File::create(dir.path().join(".pmxcfs.lockfile")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(matches!(run(&db), Err(SalvageError::Running(_))));
    drop(lock);
    run(&db).unwrap();
}

/// The commands that are printed, carried out twice: the second time no name is taken.
#[test]
fn the_new_file_can_be_put_in_place_again_and_again() {
    let (dir, db) = copy("small.db");
    let golden = fs::read(&db).unwrap();
    for damaged in ["config.db.damaged", "config.db.damaged-2"] {
        fs::write(&db, &golden).unwrap();
        let (new, told) = run(&db).unwrap();
        let content = fs::read(&new).unwrap();
        let commands = told.lines().filter(|line| line.starts_with("  mv -n "));
        let commands: Vec<_> = commands.collect();
        let sh = Command::new("sh")
            .args(["-ec", &commands.join("\n")])
            .status();
        assert!(sh.unwrap().success());
        assert!(fs::read(&db).unwrap() == content && !new.exists(), "{told}");
        let name = db.file_name().unwrap().to_str().unwrap();
        let aside = dir.path().join(damaged.replace("config.db", name));
        assert!(fs::read(aside).unwrap() == golden, "{told}");
    }
}
