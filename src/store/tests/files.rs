//! Files that are missing, empty, or do not belong together.

use std::fs;
use std::time::Duration;

use super::*;

const LONG: Duration = Duration::from_secs(10);

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Copies files of `from` to `to` by another process: closing them here would drop SQLite's locks.
fn copy(from: &Path, to: &Path, files: &[&str]) {
    for file in files {
        let cp = Command::new("cp")
            .arg(from.join(file))
            .arg(to.join(file))
            .status();
        assert!(cp.unwrap().success(), "{file}");
    }
}

/// Enough for the log to be moved into the database and begun anew.
fn fill_a_log(lab: &mut Lab, text: u8) {
    for i in 0..6 {
        lab.put("large", &vec![text.wrapping_add(i); 1 << 20]);
    }
    lab.store.flush();
    lab.put("small", &[text]);
}

#[test]
fn a_log_without_its_database_is_put_aside() {
    for database in [None, Some(b"".as_slice())] {
        let mut lab = Lab::new();
        lab.put("file", b"precious");
        let dir = tempfile::tempdir().unwrap();
        copy(lab.dir.path(), dir.path(), &["config.db-wal"]);
        let log = fs::read(dir.path().join("config.db-wal")).unwrap();
        if let Some(content) = database {
            fs::write(dir.path().join("config.db"), content).unwrap();
        }
        let (store, loaded) = Store::open(&dir.path().join("config.db"), 77).unwrap();
        assert_eq!(loaded.created, database.is_none());
        assert_eq!(loaded.tree.root_row().version, 1);
        store.close().unwrap();
        assert_eq!(names(dir.path()), ["config.db", "config.db-wal.left-77"]);
        let left = fs::read(dir.path().join("config.db-wal.left-77")).unwrap();
        assert_eq!(left, log);
    }
}

/// An old copy, or that of another node, beside the log of a daemon that crashed.
#[test]
fn the_log_of_another_time_is_refused() {
    let mut lab = Lab::new();
    lab.put("file", b"first");
    lab.store.flush();
    let old = tempfile::tempdir().unwrap();
    copy(lab.dir.path(), old.path(), &["config.db"]);
    for generation in 0..3 {
        fill_a_log(&mut lab, generation * 10);
    }
    let stranger = Lab::new();
    assert!(stranger.store.shutdown(LONG));
    for database in [old.path(), stranger.dir.path()] {
        let dir = tempfile::tempdir().unwrap();
        copy(lab.dir.path(), dir.path(), &["config.db-wal"]);
        copy(database, dir.path(), &["config.db"]);
        let before = ["config.db", "config.db-wal"].map(|f| fs::read(dir.path().join(f)).unwrap());
        let db = dir.path().join("config.db");
        let error = Store::open(&db, 1).unwrap_err();
        assert!(matches!(error, OpenError::ForeignLog { .. }), "{error}");
        let after = ["config.db", "config.db-wal"].map(|f| fs::read(dir.path().join(f)).unwrap());
        assert!(before == after, "nothing is changed");

        // The way out that is printed, as it stands.
        let way_out = error.way_out(&db);
        let command = &way_out[way_out.find("mv -n '").unwrap()..way_out.find("; or").unwrap()];
        let sh = Command::new("sh").args(["-ec", command]).status();
        assert!(sh.unwrap().success(), "{command}");
        assert!(dir.path().join("config.db-wal.other").exists());
        Store::open(&db, 1).unwrap();
    }
    // The right one: it has all.
    let (_dir, loaded) = lab.after_crash();
    assert_eq!(loaded.tree.index(), lab.tree.index());
}

/// A dump that was read back has no log; SQLite would apply the one it finds there all the same.
#[test]
fn a_restored_dump_beside_an_old_log_is_refused() {
    let mut lab = Lab::new();
    lab.put("file", b"first");
    let dir = tempfile::tempdir().unwrap();
    copy(lab.dir.path(), dir.path(), &["config.db-wal"]);
    let sh = Command::new("sh")
        .args([
            "-ec",
            "sqlite3 \"$0\" .dump | sqlite3 \"$1.new\"; mv \"$1.new\" \"$1\"",
        ])
        .args([lab.path(), dir.path().join("config.db")])
        .status();
    assert!(sh.unwrap().success());
    let error = Store::open(&dir.path().join("config.db"), 1).unwrap_err();
    assert!(matches!(error, OpenError::ForeignLog { .. }), "{error}");
}

/// A copy of the time of the log is no other time: the log has all that came since.
#[test]
fn a_copy_of_the_same_log_s_time_is_fine() {
    let mut lab = Lab::new();
    fill_a_log(&mut lab, 1);
    let dir = tempfile::tempdir().unwrap();
    copy(lab.dir.path(), dir.path(), &["config.db"]);
    lab.put("more", b"x");
    copy(lab.dir.path(), dir.path(), &["config.db-wal"]);
    let (_, loaded) = Store::open(&dir.path().join("config.db"), 1).unwrap();
    assert_eq!(loaded.tree.index(), lab.tree.index());
}

/// A tree that was written anew under the name of a database whose log is still there.
#[test]
fn a_new_copy_takes_no_log_that_was_there_before() {
    let mut lab = Lab::new();
    lab.put("file", b"x");
    let dir = tempfile::tempdir().unwrap();
    copy(lab.dir.path(), dir.path(), &["config.db-wal"]);
    let db = dir.path().join("config.db");
    let rows = rows_of(&lab.tree);
    super::super::copy::write_new(&db, rows.iter()).unwrap();
    let error = Store::open(&db, 1).unwrap_err();
    assert!(matches!(error, OpenError::ForeignLog { .. }), "{error}");
    fs::remove_file(dir.path().join("config.db-wal")).unwrap();
    let (store, loaded) = Store::open(&db, 1).unwrap();
    assert_eq!(loaded.tree.index(), lab.tree.index());
    store.close().unwrap();
}

/// However the daemon is killed, its database and log belong together and nothing is damaged.
#[test]
fn no_kill_makes_a_suspicion() {
    if let Some(dir) = child_dir() {
        let (store, loaded) = Store::open(&dir.join("config.db"), 1000).unwrap();
        let mut lab = Lab {
            dir: tempfile::tempdir().unwrap(),
            tree: loaded.tree,
            store: store.spawn().unwrap(),
        };
        println!("ready");
        for i in 0u32.. {
            let size = [100, 70_000, 300_000, 5000][i as usize % 4];
            lab.put(&format!("file{}", i % 7), &vec![i as u8; size]);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mut numbers = std::collections::BTreeSet::new();
    for round in 0..60u64 {
        let mut child = child(
            "files::no_kill_makes_a_suspicion",
            dir.path(),
            "exec \"$@\"",
        )
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            let read = std::io::BufRead::read_line(&mut out, &mut line).unwrap();
            assert!(read > 0, "round {round}: the child did not start");
        }
        std::thread::sleep(Duration::from_micros(round * 7919 % 60_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let db = dir.path().join("config.db");
        let found = super::super::check::examine(&db);
        assert_eq!(found, Default::default(), "round {round}");
        let log = super::super::check::read_log(&db).unwrap();
        numbers.extend(log.into_iter().flat_map(|(_, log)| log.counters));
    }
    assert!(numbers.len() > 20, "logs begun: {}", numbers.len());
}
