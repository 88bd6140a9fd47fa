//! A store that goes on with another file, killed on the way; and what is found at the next start.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use super::super::rescue::{Reason, put_in_place, write_beside};
use super::super::watch::{Loss, Watch};
use super::*;

const LONG: Duration = Duration::from_secs(10);

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A database with one file in its log, its tree being the source.
fn lab_with_source() -> Lab {
    let mut lab = Lab::new();
    lab.put("file", b"precious");
    let rows = rows_of(&lab.tree);
    lab.store.set_source(move || rows.clone());
    lab
}

/// The commands of a way out, as printed.
fn carry_out(error: &OpenError, db: &Path) {
    let way_out = error.way_out(db);
    let start = way_out
        .find("mv -n '")
        .unwrap_or_else(|| panic!("{way_out}"));
    let commands = &way_out[start..way_out.find("; or").unwrap()];
    let sh = Command::new("sh").args(["-ec", commands]).status();
    assert!(sh.unwrap().success(), "{commands}");
}

/// Killed at each rename and unlink in turn: the next start has all, or says what to do for it.
#[test]
fn no_kill_within_a_rescue_makes_an_old_or_empty_database() {
    const ACCIDENT: &str = "PMXCFS_STORE_TEST_ACCIDENT";
    const TEST: &str = "rescue::no_kill_within_a_rescue_makes_an_old_or_empty_database";
    if let Some(dir) = child_dir() {
        let (store, loaded) = Store::open(&dir.join("config.db"), 1000).unwrap();
        let mut lab = Lab {
            dir: tempfile::tempdir().unwrap(),
            tree: loaded.tree,
            store: store.spawn().unwrap(),
        };
        lab.put("file", b"precious");
        let rows = rows_of(&lab.tree);
        lab.store.set_source(move || rows.clone());
        lab.store.flush();
        fs::write(dir.join("ready"), "").unwrap();
        let accident = std::env::var(ACCIDENT).unwrap();
        // By a call that is not counted.
        Command::new("rm").arg(dir.join(accident)).status().unwrap();
        assert!(lab.store.shutdown(LONG));
        return;
    }
    let mut seen = [0; 3];
    for accident in ["config.db", "config.db-shm"] {
        for kill in 1.. {
            assert!(kill < 40, "{accident}: the child never ends");
            let dir = tempfile::tempdir().unwrap();
            let db = dir.path().join("config.db");
            let (store, _) = Store::open(&db, 1000).unwrap();
            store.close().unwrap();
            // Counted for each thread: those of the rescue are all that its thread makes.
            let calls = "renameat2,unlink";
            let wrap = format!(
                "exec strace -f -qq -o /dev/null -e trace={calls} \
                 -e inject={calls}:signal=SIGKILL:when={kill} \"$@\""
            );
            let status = child(TEST, dir.path(), &wrap)
                .env(ACCIDENT, accident)
                .stdout(std::process::Stdio::null())
                .status()
                .unwrap();
            let before = names(dir.path());
            assert!(dir.path().join("ready").exists(), "{before:?}");
            let is_new = |name: &String| name.contains("rescued-") && !name.ends_with(".tmp");
            // Until there is a new file, only the old ones can be there.
            let has_all = accident != "config.db" || before.iter().any(is_new) || db.exists();
            if has_all {
                let opened = Store::open(&db, 1);
                if let Err(error) = &opened {
                    let kind = match error {
                        OpenError::ForeignLog { .. } => 0,
                        OpenError::Unnamed { .. } => 1,
                        _ => panic!("{error}"),
                    };
                    seen[kind] += 1;
                    carry_out(error, &db);
                }
                let (_, loaded) = opened.or_else(|_| Store::open(&db, 1)).unwrap();
                let file = loaded.tree.read(&p("file"));
                let file = file.map(|data| data.to_vec());
                assert_eq!(file.as_deref(), Some(&b"precious"[..]), "{before:?}");
                seen[2] += 1;
            }
            if status.success() {
                break;
            }
        }
    }
    println!("refused for the log, for the name; found in the end: {seen:?}");
    assert!(seen[0] > 0 && seen[1] > 0 && seen[2] > 6, "{seen:?}");
}

/// Whatever is not done after the file has its name: that is the name it is opened by.
#[test]
fn what_has_its_name_is_opened_by_that() {
    let lab = lab_with_source();
    let home = lab.path();
    let rows = rows_of(&lab.tree);
    let watch = Watch::new(&home).unwrap();
    let lost = Reason::Lost(Loss::Broken("it".to_owned()));
    let old = lab.store.0.db.lock().take().unwrap();
    old.abandon();
    let rescued = write_beside(&home, &rows).unwrap();
    let mut placed = put_in_place(rescued, &home, &watch, &lost).unwrap();
    assert_eq!(placed.path(), home);
    // The old log cannot be moved: it must not be taken for the new one's.
    let log = lab.dir.path().join("config.db-wal");
    let kept = lab.dir.path().join("kept");
    fs::rename(&log, &kept).unwrap();
    let index = lab.dir.path().join("config.db-shm");
    fs::remove_file(&index).unwrap();
    fs::create_dir(&index).unwrap();
    assert!(placed.open(&lost).is_err());
    fs::remove_dir(&index).unwrap();
    let before = names(lab.dir.path());
    let (db, watch) = placed.open(&lost).unwrap();
    assert_eq!(watch.path(), home);
    db.close().unwrap();
    assert_eq!(names(lab.dir.path()), before, "no second copy");
    let (_, loaded) = Store::open(&home, 1).unwrap();
    assert_eq!(loaded.tree.index(), lab.tree.index());

    fs::remove_file(&home).unwrap();
    assert!(placed.open(&lost).is_err());
    assert!(!home.exists(), "no empty one is made");
    assert!(!placed.is_there());
}

/// A rescued file that was in use when the daemon was killed, the database gone or empty, an old log
/// in the way.
#[test]
fn a_rescued_file_is_not_passed_over() {
    for database in [None, Some(b"".as_slice())] {
        let mut lab = Lab::new();
        lab.put("file", b"precious");
        let dir = tempfile::tempdir().unwrap();
        for (from, to) in [("config.db", ""), ("config.db-wal", "-wal")] {
            let to = dir.path().join(format!("config.db.rescued-20-2{to}"));
            let cp = Command::new("cp")
                .arg(lab.dir.path().join(from))
                .arg(to)
                .status();
            assert!(cp.unwrap().success());
        }
        for older in [
            "config.db.rescued-9",
            "config.db.rescued-20",
            "config.db.rescued-30.1.tmp",
        ] {
            fs::write(dir.path().join(older), "older").unwrap();
        }
        fs::write(dir.path().join("config.db-wal"), "old log").unwrap();
        fs::write(dir.path().join("config.db.other-wal"), "in the way").unwrap();
        let db = dir.path().join("config.db");
        if let Some(content) = database {
            fs::write(&db, content).unwrap();
        }
        let before = names(dir.path());
        let error = Store::open(&db, 1).unwrap_err();
        assert!(
            error.to_string().contains("config.db.rescued-20-2'"),
            "{error}"
        );
        assert_eq!(names(dir.path()), before, "nothing is changed");
        carry_out(&error, &db);
        let (store, loaded) = Store::open(&db, 1).unwrap();
        assert_eq!(loaded.tree.index(), lab.tree.index());
        store.close().unwrap();
        let log = fs::read(dir.path().join("config.db.other-2-wal")).unwrap();
        assert_eq!(log, b"old log");
    }
}

/// SQLite has the other files beside the target of a link.
#[test]
fn a_link_to_a_database_is_followed_once() {
    let lab = lab_with_source();
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("config.db");
    symlink(dir.path().join("target.db"), &db).unwrap();
    assert!(matches!(Store::open(&db, 1), Err(OpenError::Create { .. })));
    let far = tempfile::tempdir().unwrap();
    fs::remove_file(&db).unwrap();
    symlink(far.path().join("real.db"), &db).unwrap();
    for (from, to) in [("config.db", "real.db"), ("config.db-wal", "real.db-wal")] {
        let cp = Command::new("cp")
            .arg(lab.dir.path().join(from))
            .arg(far.path().join(to))
            .status();
        assert!(cp.unwrap().success());
    }
    let mut told = Vec::new();
    salvage(&db, &dir.path().join("salvaged"), &mut told).unwrap();
    let told = String::from_utf8(told).unwrap();
    assert!(told.contains("with its log"), "{told}");

    let (store, loaded) = Store::open(&db, 1).unwrap();
    assert_eq!(loaded.tree.index(), lab.tree.index());
    let rows = rows_of(&loaded.tree);
    let store = store.spawn().unwrap();
    store.set_source(move || rows.clone());
    fs::remove_file(far.path().join("real.db-shm")).unwrap();
    assert!(store.shutdown(LONG));
    let names = names(far.path());
    let aside = |name: &&String| name.starts_with("real.db.damaged-");
    assert_eq!(names.iter().filter(aside).count(), 1, "{names:?}");
    assert!(fs::symlink_metadata(&db).unwrap().is_symlink());
    let (_, loaded) = Store::open(&db, 1).unwrap();
    assert_eq!(loaded.tree.index(), lab.tree.index());
}
