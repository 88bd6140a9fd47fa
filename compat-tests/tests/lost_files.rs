//! The files of the database are removed, replaced, truncated or kept long under the running
//! daemon: it says so, goes on, and nothing is lost.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::daemon::wait_for;
use compat_tests::dbfile::{self, Builder};
use compat_tests::{Daemon, Lab, Node, Subject, index, report};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const DB: &str = "/var/lib/pve-cluster/config.db";

/// It has to be noticed within ten seconds; a busy machine gets more.
const NOTICED: Duration = Duration::from_secs(30);

fn write(node: &Node, prefix: &str) {
    node.inside(|| {
        for i in 0..20 {
            fs::write(format!("/etc/pve/{prefix}{i}"), format!("{prefix} {i}")).unwrap();
        }
    });
}

fn must_have(node: &Node, prefixes: &[&str]) {
    node.inside(|| {
        for prefix in prefixes {
            for i in 0..20 {
                let text = fs::read_to_string(format!("/etc/pve/{prefix}{i}"));
                assert_eq!(text.ok(), Some(format!("{prefix} {i}")));
            }
        }
    });
}

/// Waits for the one line that says what happened; the line.
fn noticed(daemon: &Daemon, what: &str) -> String {
    let start = Instant::now();
    let line = |log: String| {
        log.lines()
            .find(|line| line.contains(what))
            .map(String::from)
    };
    assert!(
        wait_for(NOTICED, || line(daemon.stderr()).is_some()),
        "not noticed: {what}"
    );
    report(&format!(
        "lost-files: '{what}' after {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    line(daemon.stderr()).unwrap()
}

/// The first command of this program that a log names, up to the end of its quotes.
fn command(log: &str, program: &str) -> String {
    let start = log
        .find(&format!("'{program} "))
        .unwrap_or_else(|| panic!("{log}"))
        + 1;
    let end = log[start..].find('\'').unwrap();
    log[start..start + end].to_string()
}

fn folder(node: &Node) -> PathBuf {
    node.database().parent().unwrap().to_owned()
}

fn names(node: &Node) -> Vec<String> {
    let entries = fs::read_dir(folder(node)).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What an accident does to the files, and what the log says then.
const ACCIDENTS: [(&str, &str); 8] = [
    ("rm -rf *", "config.db' was removed while"),
    ("rm config.db", "config.db' was removed while"),
    ("rm config.db-wal", "config.db-wal' was removed while"),
    ("rm config.db-shm", "config.db-shm' was removed while"),
    ("truncate -s 0 config.db", "config.db' was truncated while"),
    (
        "truncate -s 0 config.db-wal",
        "config.db-wal' was truncated while",
    ),
    (
        "truncate -s 0 config.db-shm",
        "config.db-shm' was truncated while",
    ),
    ("mv config.db elsewhere", "config.db' was removed while"),
];

/// After each accident everything is in a database of the old name, with what is written later,
/// also after SIGKILL; and the C daemon takes it.
#[test]
fn after_an_accident_everything_is_there_under_the_old_name() {
    let ours = Subject::ours();
    for (accident, says) in ACCIDENTS {
        let (_lab, node) = Lab::single();
        let daemon = Daemon::local(&node, &ours);
        write(&node, "before");
        let (code, out) = node.sh(&format!("cd /var/lib/pve-cluster; {accident}"));
        assert_eq!(code, 0, "{accident}: {out}");
        noticed(&daemon, says);
        write(&node, "after");
        must_have(&node, &["before", "after"]);
        daemon.kill9();
        let state = dbfile::integrity(&node.database(), &node.dir.join("scratch.db"));
        assert_eq!(state, "ok", "{accident}");
        let daemon = Daemon::local(&node, &ours);
        assert!(
            !daemon.stderr().contains("crit"),
            "{accident}: {}",
            daemon.stderr()
        );
        must_have(&node, &["before", "after"]);
        assert_eq!(daemon.stop().code, 0);
        let rows = dbfile::rows(&node.database()).unwrap();
        if let Some(reference) = Subject::reference_or_skip("lost files") {
            let daemon = Daemon::local(&node, &reference);
            must_have(&node, &["before", "after"]);
            assert_eq!(daemon.stop().code, 0);
            let after = index::digests(&dbfile::rows(&node.database()).unwrap());
            let before = index::digests(&rows);
            assert_eq!(
                (after.index, after.checksum),
                (before.index, before.checksum)
            );
        }
    }
}

/// What was acknowledged between the accident and the look at the files is there, too.
#[test]
fn writes_before_it_is_noticed_are_kept() {
    let ours = Subject::ours();
    for accident in [
        "rm /var/lib/pve-cluster/config.db*",
        "truncate -s 0 /var/lib/pve-cluster/config.db-wal",
    ] {
        let (_lab, node) = Lab::single();
        let daemon = Daemon::local(&node, &ours);
        write(&node, "before");
        let (code, out) = node.sh(accident);
        assert_eq!(code, 0, "{accident}: {out}");
        write(&node, "meanwhile");
        noticed(&daemon, "while pmxcfs runs");
        daemon.kill9();
        let daemon = Daemon::local(&node, &ours);
        must_have(&node, &["before", "meanwhile"]);
        assert_eq!(daemon.stop().code, 0);
    }
}

/// A backup put over the database of the running daemon: it stays as it is, and the state of the
/// daemon is beside it. Both ways that the log names are tried.
#[test]
fn a_file_that_somebody_put_there_is_left_alone() {
    let ours = Subject::ours();
    for (take_theirs, killed) in [(true, false), (false, false), (false, true)] {
        let (_lab, node) = Lab::single();
        let daemon = Daemon::local(&node, &ours);
        write(&node, "before");
        let backup = folder(&node).join("backup.db");
        Builder::guests(3).write(&backup).unwrap();
        let theirs = fs::read(&backup).unwrap();
        let other = if killed { ".other-2" } else { ".other" };
        if killed {
            fs::write(node.path(&format!("{DB}.other")), "in the way").unwrap();
        }
        fs::rename(&backup, node.database()).unwrap();
        write(&node, "meanwhile");
        let line = noticed(&daemon, "was replaced by another file");
        write(&node, "after");
        assert_eq!(fs::read(node.database()).unwrap(), theirs);
        if killed {
            daemon.kill9();
            // As of somebody who has had a look.
            let theirs = dbfile::with_suffix(&node.database(), "-wal");
            fs::write(theirs, "their log").unwrap();
        } else {
            let exit = daemon.stop();
            assert!(exit.stderr.contains("the next start uses"), "{exit:?}");
        }
        assert_eq!(fs::read(node.database()).unwrap(), theirs);
        let rescued = line
            .split('\'')
            .find(|part| part.contains(".rescued-"))
            .unwrap();
        assert!(node.path(rescued).exists());
        if take_theirs {
            let daemon = Daemon::local(&node, &ours);
            let configs = node.inside(|| fs::read_dir("/etc/pve/nodes").unwrap().count());
            assert!(configs > 0);
            assert_eq!(daemon.stop().code, 0);
            continue;
        }
        let start = line.find("mv -n").unwrap();
        let commands = &line[start..line.find("; systemctl start").unwrap()];
        let (code, out) = node.sh(&format!("set -e; {commands}"));
        assert_eq!(code, 0, "{commands}: {out}");
        let daemon = Daemon::local(&node, &ours);
        must_have(&node, &["before", "meanwhile", "after"]);
        assert_eq!(daemon.stop().code, 0);
        assert_eq!(
            fs::read(node.path(&format!("{DB}{other}"))).unwrap(),
            theirs
        );
        let log = node.path(&format!("{DB}{other}-wal"));
        assert_eq!(fs::read(log).is_ok_and(|log| log == b"their log"), killed);
    }
}

/// Replaced and stopped before it was noticed: the look comes before the end.
#[test]
fn a_stop_looks_at_the_files_first() {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, &ours);
    write(&node, "before");
    fs::remove_file(node.database()).unwrap();
    assert_eq!(daemon.stop().code, 0);
    let daemon = Daemon::local(&node, &ours);
    must_have(&node, &["before"]);
    assert_eq!(daemon.stop().code, 0);
}

/// The files are gone and there is no room for new ones: no change is accepted until there is.
#[test]
fn without_room_for_a_new_database_changes_are_refused() {
    without_room(0, "a new database cannot be made");
}

/// The same with room for a new database, but not for its index: it is made once.
#[test]
fn without_room_for_the_index_one_new_database_is_made() {
    without_room(28, "config.db' cannot be opened");
}

fn without_room(kib_free: u32, says: &str) {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    let folder = "/var/lib/pve-cluster";
    let sh = |line: &str| {
        let (code, out) = node.sh(line);
        assert_eq!(code, 0, "{line}: {out}");
    };
    sh(&format!(
        "mount -t tmpfs -o size=1m,mode=750 tmpfs {folder}"
    ));
    let daemon = Daemon::local(&node, &ours);
    write(&node, "before");
    sh(&format!(
        "mkdir {folder}/x; dd if=/dev/zero of={folder}/filler bs=4k || true; \
         truncate -s -{kib_free}K {folder}/filler; mv {folder}/config.db* {folder}/x"
    ));
    noticed(&daemon, says);
    let again = || daemon.stderr().matches(says).count() > 2;
    assert!(wait_for(NOTICED, again), "{}", daemon.stderr());
    let copies = node.sh(&format!(
        "ls {folder} | grep config.db | grep -v -e -shm -e -wal | wc -l"
    ));
    assert_eq!(copies.1.trim() == "1", kib_free > 0, "{copies:?}");
    let refused = node.inside(|| fs::write("/etc/pve/refused", "x"));
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(5));
    must_have(&node, &["before"]);
    sh(&format!("rm {folder}/filler"));
    noticed(&daemon, "were written to the new database");
    write(&node, "after");
    daemon.kill9();
    let daemon = Daemon::local(&node, &ours);
    must_have(&node, &["before", "after"]);
    let refused = node.inside(|| fs::metadata("/etc/pve/refused"));
    assert!(refused.is_err());
    assert_eq!(daemon.stop().code, 0);
}

/// The index of the log is truncated and used before that is noticed: the kernel ends the process,
/// as it would any that uses SQLite. The log has everything.
#[test]
fn a_truncated_index_costs_a_restart_at_most() {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    let mut daemon = Daemon::local(&node, &ours);
    write(&node, "before");
    fs::File::create(dbfile::with_suffix(&node.database(), "-shm")).unwrap();
    let written = node.inside(|| fs::write("/etc/pve/during", "x"));
    if written.is_err() {
        assert!(wait_for(NOTICED, || !daemon.is_running()));
        daemon = Daemon::local(&node, &ours);
    }
    must_have(&node, &["before"]);
    assert_eq!(daemon.stop().code, 0);
}

/// The content of the database is overwritten under the daemon, in place.
#[test]
fn a_database_that_is_damaged_meanwhile_is_written_anew() {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    Builder::guests(3000).write(&node.database()).unwrap();
    let daemon = Daemon::local(&node, &ours);
    let length = fs::metadata(node.database()).unwrap().len();
    let (code, out) = node.sh(&format!(
        "dd if=/dev/zero of={DB} bs=4096 seek=1 count={} conv=notrunc",
        length / 4096 - 1
    ));
    assert_eq!(code, 0, "{out}");
    node.inside(|| {
        for id in (100..3000).step_by(50).filter(|id| (id - 100) % 5 != 0) {
            let path = format!("/etc/pve/nodes/node{}/qemu-server/{id}.conf", id % 4 + 1);
            fs::write(path, format!("name: new{id}\n")).unwrap();
        }
        fs::write("/etc/pve/file", "x").unwrap();
    });
    noticed(&daemon, "config.db' was damaged while");
    daemon.kill9();
    let state = dbfile::integrity(&node.database(), &node.dir.join("scratch.db"));
    assert_eq!(state, "ok");
    let rows = dbfile::rows(&node.database()).unwrap().len();
    assert!(rows > 3000, "{rows}");
    let daemon = Daemon::local(&node, &ours);
    assert!(!daemon.stderr().contains("crit"), "{}", daemon.stderr());
    assert_eq!(daemon.stop().code, 0);
}

/// A lock of another process: the advice finds it.
#[test]
fn whoever_holds_a_lock_is_found_as_the_log_says() {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, &ours);
    write(&node, "before");
    let conn = rusqlite::Connection::open(node.database()).unwrap();
    conn.busy_timeout(Duration::from_secs(5)).unwrap();
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| node.inside(|| fs::write("/etc/pve/waits", "x")));
        let line = noticed(&daemon, "another process holds a lock on it");
        let command = command(&line, "fuser");
        let (code, out) = node.sh(&command);
        assert_eq!(code, 0, "{command}: {out}");
        assert!(
            out.contains(&std::process::id().to_string()),
            "{command}: {out}"
        );
        conn.execute_batch("ROLLBACK").unwrap();
        writer.join().unwrap().unwrap();
    });
    assert_eq!(daemon.stop().code, 0);
}

/// The same at the start, where it is waited for, too.
#[test]
fn whoever_keeps_the_daemon_from_starting_is_found_as_the_log_says() {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    Builder::guests(3).write(&node.database()).unwrap();
    let conn = rusqlite::Connection::open(node.database()).unwrap();
    conn.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let mut daemon = Daemon::spawn(&node, &ours, &["-f", "-l"]);
    let exit = daemon.try_wait_usable().unwrap_err();
    let command = command(&exit.stderr, "fuser");
    let (code, out) = node.sh(&command);
    assert_eq!(code, 0, "{command}: {out}");
    assert!(out.contains(&std::process::id().to_string()), "{out}");
    conn.execute_batch("ROLLBACK").unwrap();
    assert_eq!(Daemon::local(&node, &ours).stop().code, 0);
}

/// Something was made in the database that refuses every change: the advice shows it.
#[test]
fn what_refuses_changes_is_found_as_the_log_says() {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, &ours);
    write(&node, "before");
    let trigger = "CREATE TRIGGER stop BEFORE INSERT ON tree BEGIN SELECT RAISE(ABORT, 'no'); END";
    let (code, out) = node.sh(&format!("sqlite3 {DB} \"{trigger}\""));
    assert_eq!(code, 0, "{out}");
    assert!(node.inside(|| fs::write("/etc/pve/refused", "x")).is_err());
    let log = daemon.stderr();
    let (code, out) = node.sh(&command(&log, "sqlite3"));
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("CREATE TRIGGER stop"), "{out}");
    let check = command(&log[log.find(" and 'sqlite3").unwrap()..], "sqlite3");
    assert_eq!(node.sh(&check), (0, "ok\n".to_string()), "{check}");
    let (code, out) = node.sh(&format!("sqlite3 {DB} 'DROP TRIGGER stop'"));
    assert_eq!(code, 0, "{out}");
    noticed(&daemon, "can be written again");
    write(&node, "after");
    assert_eq!(daemon.stop().code, 0);
}

/// What others may do with the database while it is in use is no accident.
#[test]
fn ordinary_use_is_no_accident() {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, &ours);
    for round in 0..4 {
        write(&node, &format!("round{round}"));
        for sql in [
            "PRAGMA wal_checkpoint(TRUNCATE)",
            "VACUUM",
            "PRAGMA wal_checkpoint(RESTART)",
        ] {
            let (code, out) = node.sh(&format!("sqlite3 {DB} '.timeout 5000' '{sql}'"));
            assert_eq!(code, 0, "{sql}: {out}");
        }
        // Longer than between two looks at the files.
        std::thread::sleep(Duration::from_millis(2500));
    }
    let exit = daemon.stop();
    assert!(!exit.stderr.contains("while pmxcfs runs"), "{exit:?}");
    let names = names(&node);
    assert!(
        !names.iter().any(|name| name.contains("rescued")),
        "{names:?}"
    );
}

/// A reader that does not end its transaction: the log is bounded, the situation named, and when
/// the reader is gone the log is short.
#[test]
fn a_reader_that_stays_cannot_make_the_log_endless() {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, &ours);
    write(&node, "before");
    let wal = dbfile::with_suffix(&node.database(), "-wal");
    let length = || fs::metadata(&wal).map_or(0, |meta| meta.len());
    let mib = |n: u64| n << 20;
    let reader = |conn: &rusqlite::Connection| {
        conn.execute_batch("BEGIN").unwrap();
        conn.query_row("SELECT count(*) FROM tree", [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    let fill = |from: u64, files: u64| {
        node.inside(|| {
            for i in from..from + files {
                // Not zeros: memory that was never touched is written page by page.
                let data = vec![i as u8 | 1; 1 << 20];
                fs::write(format!("/etc/pve/large{}", i % 3), data).unwrap();
            }
        });
    };
    let conn = rusqlite::Connection::open(node.database()).unwrap();
    let rows = reader(&conn);
    // Some 2 MiB of log each.
    fill(0, 16);
    assert!(length() > mib(16), "{}", length());
    let line = noticed(&daemon, "does not stop: find it");
    // The command finds the reader, which is this process.
    let command = command(&line, "fuser");
    let (code, out) = node.sh(&command);
    assert_eq!(code, 0, "{command}: {out}");
    assert!(
        out.contains(&std::process::id().to_string()),
        "{command}: {out}"
    );

    conn.execute_batch("ROLLBACK").unwrap();
    noticed(&daemon, "is short again");
    assert!(length() <= mib(8), "{}", length());

    // Up to the bound: another file of the same name, and the reader still sees its old one.
    assert_eq!(reader(&conn), rows + 3);
    let mut most = 0;
    for round in 0..36 {
        fill(round * 5, 5);
        most = most.max(length());
    }
    noticed(&daemon, "were written to a new file of this name");
    assert!(most < mib(320), "{most}");
    assert!(length() < mib(128), "{}", length());
    let seen: i64 = conn
        .query_row("SELECT count(*) FROM tree", [], |row| row.get(0))
        .unwrap();
    assert_eq!(seen, rows + 3);
    drop(conn);
    write(&node, "after");
    daemon.kill9();
    let state = dbfile::integrity(&node.database(), &node.dir.join("scratch.db"));
    assert_eq!(state, "ok");
    let daemon = Daemon::local(&node, &ours);
    must_have(&node, &["before", "after"]);
    assert_eq!(daemon.stop().code, 0);
    report(&format!(
        "lost-files: the log beside a reader that stays: {} MiB at most",
        most >> 20
    ));
}
