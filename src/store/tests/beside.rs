//! Other processes that use the database beside the daemon, while it is busy.

use std::time::Duration;

use super::*;

/// Runs the `sqlite3` tool on the database.
fn sqlite3(lab: &Lab, sql: &str) -> String {
    let out = Command::new("sqlite3")
        .arg("-cmd")
        .arg(".timeout 5000")
        .arg(lab.path())
        .arg(sql)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{sql}: {error}");
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// A burst of transactions, so that the store keeps its read lock.
fn burst(lab: &mut Lab, text: &str) {
    for i in 0..20 {
        lab.overwrite("file", format!("{text} {i}").as_bytes());
    }
}

#[test]
fn readers_see_the_newest_state_within_a_burst() {
    let mut lab = Lab::new();
    lab.put("file", b"x");
    for round in 0..10 {
        burst(&mut lab, &format!("round {round}"));
        let text = sqlite3(&lab, "SELECT data FROM tree WHERE name = 'file'");
        assert_eq!(text, format!("round {round} 19"));
    }
}

#[test]
fn a_writer_within_a_burst_loses_nothing_and_stops_nothing() {
    let mut lab = Lab::new();
    lab.put("file", b"x");
    for round in 0..10 {
        burst(&mut lab, "before");
        sqlite3(
            &lab,
            &format!("CREATE TABLE IF NOT EXISTS t (x); INSERT INTO t VALUES ({round})"),
        );
        burst(&mut lab, "after");
    }
    assert_eq!(sqlite3(&lab, "SELECT count(*), sum(x) FROM t"), "10|45");
    assert_eq!(sqlite3(&lab, "PRAGMA integrity_check"), "ok");
    let (_dir, loaded) = lab.after_crash();
    assert_eq!(loaded.tree.index(), lab.tree.index());
}

#[test]
fn the_schema_may_change_within_a_burst() {
    let mut lab = Lab::new();
    lab.put("file", b"x");
    for sql in [
        "VACUUM",
        "CREATE INDEX i ON tree(name)",
        "DROP INDEX i",
        "REINDEX",
        "ANALYZE",
    ] {
        burst(&mut lab, sql);
        sqlite3(&lab, sql);
        burst(&mut lab, "after");
        let (_dir, loaded) = lab.after_crash();
        assert_eq!(loaded.tree.index(), lab.tree.index(), "{sql}");
    }
}

#[test]
fn checkpoints_of_others_do_no_harm_and_succeed_when_the_burst_is_over() {
    let mut lab = Lab::new();
    lab.put("file", b"x");
    for round in 0..10 {
        burst(&mut lab, "a");
        for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
            // At once: it may find us busy.
            let sql = format!("PRAGMA wal_checkpoint({mode})");
            let out = Command::new("sqlite3")
                .arg(lab.path())
                .arg(sql)
                .output()
                .unwrap();
            assert!(out.status.success());
            burst(&mut lab, mode);
        }
        let (_dir, loaded) = lab.after_crash();
        assert_eq!(loaded.tree.index(), lab.tree.index(), "round {round}");
    }
    // The read lock is given back by itself.
    let wal = lab.dir.path().join("config.db-wal");
    let answer = sqlite3(&lab, "PRAGMA wal_checkpoint(TRUNCATE)");
    assert!(answer.ends_with("0|0|0"), "{answer}");
    assert_eq!(std::fs::metadata(&wal).unwrap().len(), 0);
    burst(&mut lab, "end");
    assert!(lab.store.shutdown(Duration::from_secs(5)));
    assert!(!wal.exists());
    let (_, loaded) = Store::open(&lab.path(), 1).unwrap();
    assert_eq!(loaded.tree.index(), lab.tree.index());
}
