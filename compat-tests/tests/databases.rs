//! Databases that are damaged, missing, or not what they seem: what the daemon says, and that what
//! it advises works as it is printed, with the distribution's tools.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::daemon::{run_to_end, wait_for};
use compat_tests::dbfile::{self, Builder};
use compat_tests::{Checker, Daemon, Lab, Node, Subject, golden, index, on_both};
use std::fs;
use std::path::Path;
use std::time::Duration;

on_both!(what_the_other_daemon_does);

const DB: &str = "/var/lib/pve-cluster/config.db";

/// Starts the daemon, which has to refuse; what it printed.
fn refused(node: &Node, subject: &Subject) -> String {
    let mut daemon = Daemon::spawn(node, subject, &["-f", "-l"]);
    let exit = daemon.try_wait_usable().expect_err("it has to refuse");
    assert_eq!(exit.code, 255, "{exit:?}");
    exit.stderr
}

/// The text between two others on the line with the way out.
fn advice<'a>(log: &'a str, from: &str, to: &str) -> &'a str {
    let line = log
        .lines()
        .find(|line| line.contains("way out: "))
        .unwrap_or_else(|| panic!("no way out: {log}"));
    let start = line
        .find(from)
        .unwrap_or_else(|| panic!("no '{from}': {line}"));
    let end = line[start..].find(to).map_or(line.len(), |end| start + end);
    &line[start..end]
}

/// Runs a printed command; `pmxcfs` in it is the binary under test.
fn carry_out(node: &Node, subject: &Subject, command: &str) -> String {
    let folder = subject.binary.parent().unwrap().display().to_string();
    let (code, out) = node.sh(&format!("set -e; PATH={folder}:$PATH; {command}"));
    assert_eq!(code, 0, "{command}: {out}");
    out
}

/// The commands that a salvage prints at its end.
fn printed_commands(out: &str) -> String {
    let lines: Vec<&str> = out
        .lines()
        .skip_while(|line| !line.contains("run:"))
        .skip(1)
        .collect();
    assert!(lines.len() >= 2, "{out}");
    lines.join("\n")
}

/// The files below `/etc/pve`, as the daemon serves them.
fn files(node: &Node) -> Vec<(String, Vec<u8>)> {
    fn list(dir: &Path, all: &mut Vec<(String, Vec<u8>)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.symlink_metadata().unwrap().file_type();
            if kind.is_dir() {
                list(&path, all);
            } else if kind.is_file()
                && !path.file_name().unwrap().to_str().unwrap().starts_with('.')
            {
                all.push((path.display().to_string(), fs::read(&path).unwrap()));
            }
        }
    }
    node.inside(|| {
        let mut all = Vec::new();
        list(Path::new("/etc/pve"), &mut all);
        all.sort();
        all
    })
}

/// The database loads without a warning, on both daemons, and none of them changes it.
fn both_daemons_take(node: &Node, ours: &Subject, what: &str) {
    let before = dbfile::rows_of_copy(&node.database(), &node.dir.join("scratch")).unwrap();
    let digests = index::digests(&before);
    let mut served = Vec::new();
    let reference = Subject::reference_or_skip(what);
    for subject in [Some(ours.clone()), reference].into_iter().flatten() {
        let daemon = Daemon::local(node, &subject);
        served.push(files(node));
        let exit = daemon.stop();
        assert_eq!(exit.code, 0, "{what}: {exit:?}");
        let odd = exit
            .stderr
            .lines()
            .find(|line| line.contains("crit") || line.contains("warn"));
        assert_eq!(odd, None, "{what} [{}]", subject.name());
        let after = dbfile::rows_of_copy(&node.database(), &node.dir.join("scratch")).unwrap();
        let now = index::digests(&after);
        assert_eq!(
            (now.index, now.checksum),
            (digests.index.clone(), digests.checksum.clone()),
            "{what} [{}]",
            subject.name()
        );
    }
    assert!(
        served.windows(2).all(|pair| pair[0] == pair[1]),
        "{what}: both serve the same"
    );
}

/// Refused, mended as the log says, served by both daemons: by SQL where that is advised, and by a
/// salvage, put in place as that says.
#[test]
fn refused_databases_are_mended_as_the_log_says() {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    for name in [
        "dmg-corrupt-btree-page.db",
        "dmg-inode-text-table.db",
        "dmg-missing-column.db",
        "dmg-dir-with-data.db",
        "dmg-empty-name.db",
        "dmg-orphan-inode.db",
        "dmg-parent-is-file.db",
        "dmg-unknown-type.db",
        "dmg-version-row-wrong-name.db",
    ] {
        let golden = fs::read(golden(&format!("db/{name}"))).unwrap();
        let install = || {
            dbfile::remove_with_log(&node.database());
            fs::write(node.database(), &golden).unwrap();
        };
        install();
        let log = refused(&node, &ours);
        let out = carry_out(&node, &ours, advice(&log, "pmxcfs --salvage", "; or"));
        assert!(out.starts_with("rules:"), "{out}");
        carry_out(&node, &ours, &printed_commands(&out));
        let aside = node.path(&format!("{DB}.damaged"));
        assert_eq!(fs::read(&aside).unwrap(), golden, "{name}");
        fs::remove_file(aside).unwrap();
        both_daemons_take(&node, &ours, name);
        if log.contains("run: sqlite3") {
            install();
            carry_out(&node, &ours, advice(&log, "sqlite3 ", "; or"));
            let daemon = Daemon::local(&node, &ours);
            assert_eq!(daemon.stop().code, 0, "{name}");
        }
    }
}

/// Every database of the collection of damages that has a row makes one that both daemons take.
#[test]
fn every_salvaged_database_is_one_for_both_daemons() {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    let mut done = 0;
    for entry in fs::read_dir(golden("db")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        let hopeless = [
            "dmg-empty-file.db",
            "dmg-not-a-database.db",
            "dmg-truncated-one-page.db",
            "dmg-truncated.db",
        ];
        if !name.starts_with("dmg-") || !name.ends_with(".db") || hopeless.contains(&&*name) {
            continue;
        }
        let old = node.dir.join("old.db");
        dbfile::copy_with_log(&path, &old);
        dbfile::remove_with_log(&node.database());
        let mut command = node.command(&ours.binary);
        command.arg("--salvage").arg(&old).arg(node.database());
        fs::create_dir_all(node.database().parent().unwrap()).unwrap();
        let exit = run_to_end(&node, command);
        assert_eq!(exit.code, 0, "{name}: {}", exit.stderr);
        both_daemons_take(&node, &ours, &name);
        done += 1;
    }
    assert!(done > 20, "{done} databases");
}

/// A page in the middle, a large database: what is on other pages is all there.
#[test]
fn a_damaged_page_costs_what_is_on_it() {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    Builder::guests(3000).write(&node.database()).unwrap();
    let mut bytes = fs::read(node.database()).unwrap();
    let count = dbfile::rows(&node.database()).unwrap().len();
    let page = bytes.len() / 4096 / 2;
    bytes[page * 4096..(page + 1) * 4096].fill(0);
    fs::write(node.database(), bytes).unwrap();
    let log = refused(&node, &ours);
    let out = carry_out(&node, &ours, advice(&log, "pmxcfs --salvage", "; or"));
    carry_out(&node, &ours, &printed_commands(&out));
    let left = dbfile::rows(&node.database()).unwrap().len();
    assert!(left < count && left + 60 > count, "{left} of {count} rows");
    both_daemons_take(&node, &ours, "a page of zeros");
}

/// The other way out: a backup as the Perl modules make it, with the tools of Debian.
#[test]
fn a_backup_is_restored_as_the_log_says() {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    Builder::guests(20).write(&node.database()).unwrap();
    let rows = dbfile::rows(&node.database()).unwrap();
    carry_out(
        &node,
        &ours,
        &format!(
            "cd /var/lib/pve-cluster; mkdir backup; sqlite3 {DB} .dump | gzip > backup/config-1700000000.sql.gz"
        ),
    );
    fs::write(node.database(), vec![7; 20_000]).unwrap();
    let log = refused(&node, &ours);
    let command = advice(&log, "zcat", ", move").replace("<epoch>", "1700000000");
    carry_out(&node, &ours, &command);
    carry_out(
        &node,
        &ours,
        &format!("mkdir {DB}.away; mv {DB} {DB}.away; mv {DB}.new {DB}"),
    );
    assert_eq!(dbfile::rows(&node.database()).unwrap(), rows);
    both_daemons_take(&node, &ours, "a restored backup");
}

/// An old copy put beside the log of a daemon that crashed; both ways out.
#[test]
fn a_log_of_another_time_is_refused_and_both_ways_out_work() {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, &ours);
    node.inside(|| fs::write("/etc/pve/old", "old").unwrap());
    assert_eq!(daemon.stop().code, 0);
    let copy = node.dir.join("copy.db");
    dbfile::copy_with_log(&node.database(), &copy);
    let daemon = Daemon::local(&node, &ours);
    node.inside(|| fs::write("/etc/pve/between", "between").unwrap());
    assert_eq!(daemon.stop().code, 0);
    let mut daemon = Daemon::local(&node, &ours);
    node.inside(|| fs::write("/etc/pve/last", "last").unwrap());
    daemon.kill9();
    let newest = node.dir.join("newest.db");
    fs::rename(node.database(), &newest).unwrap();
    fs::copy(&copy, node.database()).unwrap();

    let log = refused(&node, &ours);
    assert!(
        log.contains("config.db-wal' is not the log of this database"),
        "{log}"
    );
    // The second way: the database that belongs to the log.
    let old = node.dir.join("old.db");
    fs::rename(node.database(), old).unwrap();
    fs::rename(&newest, node.database()).unwrap();
    daemon = Daemon::local(&node, &ours);
    assert_eq!(node.inside(|| fs::read("/etc/pve/last").unwrap()), b"last");
    daemon.kill9();
    // The first one: the old database without the log.
    fs::copy(&copy, node.database()).unwrap();
    let log = refused(&node, &ours);
    carry_out(&node, &ours, advice(&log, "mv -n '", "; or"));
    both_daemons_take(&node, &ours, "an old copy");
    assert!(node.path(&format!("{DB}-wal.other")).exists());
}

/// Killed in turn under a writer, each daemon takes what the other one left: logs of the C daemon,
/// begun anew any number of times, raise no suspicion either.
#[test]
fn crashes_of_both_daemons_in_turn_raise_no_suspicion() {
    let ours = Subject::ours();
    let Some(reference) = Subject::reference_or_skip("crashes in turn") else {
        return;
    };
    let (_lab, node) = Lab::single();
    for round in 0..12u64 {
        let subject = if round % 3 == 2 { &ours } else { &reference };
        let daemon = Daemon::local(&node, subject);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                node.inside(|| {
                    (0..100_000u32)
                        .take_while(|i| {
                            let data = vec![*i as u8 | 1; 1000 + (*i as usize % 5) * 40_000];
                            fs::write(format!("/etc/pve/file{}", i % 7), data).is_ok()
                        })
                        .count()
                })
            });
            std::thread::sleep(Duration::from_millis(150 + round * 97 % 400));
            daemon.kill9();
            assert!(writer.join().unwrap() > 0, "round {round}");
        });
        let state = dbfile::integrity(&node.database(), &node.dir.join("scratch.db"));
        assert_eq!(state, "ok", "round {round}");
    }
    let daemon = Daemon::local(&node, &ours);
    assert!(!daemon.stderr().contains("crit"), "{}", daemon.stderr());
    assert_eq!(daemon.stop().code, 0);
}

/// One line whenever the node begins with nothing.
#[test]
fn a_new_empty_database_is_named_in_the_log() {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    let warning = |log: &str| {
        let lines: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("empty database"))
            .collect();
        assert_eq!(lines.len(), 1, "{log}");
        assert!(
            lines[0].contains("warning") && lines[0].contains(DB),
            "{log}"
        );
        lines[0].to_string()
    };
    let daemon = Daemon::local(&node, &ours);
    assert!(warning(&daemon.stderr()).contains("there was none"));
    node.inside(|| fs::write("/etc/pve/precious", "only in the log").unwrap());
    daemon.kill9();
    fs::remove_file(node.database()).unwrap();
    let log = fs::read(dbfile::with_suffix(&node.database(), "-wal")).unwrap();
    let daemon = Daemon::local(&node, &ours);
    let line = warning(&daemon.stderr());
    assert_eq!(daemon.stop().code, 0);
    let left = line
        .split('\'')
        .find(|part| part.contains("-wal.left-"))
        .unwrap();
    assert_eq!(fs::read(node.path(left)).unwrap(), log, "{line}");

    fs::write(node.database(), "").unwrap();
    let daemon = Daemon::local(&node, &ours);
    assert!(warning(&daemon.stderr()).contains("0 bytes"));
    assert_eq!(daemon.stop().code, 0);
    let daemon = Daemon::local(&node, &ours);
    assert!(!daemon.stderr().contains("empty database"));
    assert_eq!(daemon.stop().code, 0);
}

/// The structure is checked at the start; what it costs is a number to look at.
#[test]
fn a_damage_that_loading_does_not_see_is_refused() {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    Builder::guests(500).write(&node.database()).unwrap();
    let mut bytes = fs::read(node.database()).unwrap();
    // The list of free pages begins at a page that is in use.
    bytes[32..40].copy_from_slice(&[0, 0, 0, 3, 0, 0, 0, 1]);
    fs::write(node.database(), bytes).unwrap();
    let log = refused(&node, &ours);
    assert!(log.contains("the database is damaged: "), "{log}");
    let out = carry_out(&node, &ours, advice(&log, "pmxcfs --salvage", "; or"));
    assert_eq!(
        out.matches("\ntaken ").count(),
        dbfile::rows(&node.database()).unwrap().len() - 1
    );
    carry_out(&node, &ours, &printed_commands(&out));
    both_daemons_take(&node, &ours, "a damaged list of free pages");
}

/// Not beside a daemon, whichever of the two it is.
#[test]
fn a_salvage_refuses_beside_a_daemon() {
    let ours = Subject::ours();
    let (_lab, node) = Lab::single();
    for subject in [Some(ours.clone()), Subject::reference_or_skip("salvage")]
        .into_iter()
        .flatten()
    {
        let daemon = Daemon::local(&node, &subject);
        let mut command = node.command(&ours.binary);
        command.args(["--salvage", DB, &format!("{DB}.new")]);
        let exit = run_to_end(&node, command);
        assert_eq!(exit.code, 255, "{exit:?}");
        assert!(
            exit.stderr.contains("systemctl stop pve-cluster"),
            "{exit:?}"
        );
        assert!(!node.path(&format!("{DB}.new")).exists());
        assert_eq!(daemon.stop().code, 0);
    }
}

/// Starts and stops the daemon; "ok" or "refused".
fn start(node: &Node, subject: &Subject) -> &'static str {
    let mut daemon = Daemon::spawn(node, subject, &["-f", "-l"]);
    match daemon.try_wait_usable() {
        Ok(_) => {
            assert_eq!(daemon.stop().code, 0);
            "ok"
        }
        Err(exit) => {
            assert_eq!(exit.code, 255, "{exit:?}");
            "refused"
        }
    }
}

/// The cases of this file and of `lost_files` on both daemons.
fn what_the_other_daemon_does(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "databases");
    let write = |name: &str| node.inside(|| fs::write(format!("/etc/pve/{name}"), "x").unwrap());
    let daemon = Daemon::local(&node, subject);
    write("first");
    assert_eq!(daemon.stop().code, 0);
    let copy = node.dir.join("copy.db");
    dbfile::copy_with_log(&node.database(), &copy);
    for i in 0..3 {
        let daemon = Daemon::local(&node, subject);
        node.inside(|| fs::write(format!("/etc/pve/large{i}"), vec![1; 100_000]).unwrap());
        assert_eq!(daemon.stop().code, 0);
    }
    let daemon = Daemon::local(&node, subject);
    node.inside(|| fs::write("/etc/pve/last", vec![1; 100_000]).unwrap());
    daemon.kill9();
    fs::copy(&copy, node.database()).unwrap();
    checker.must(
        "an old copy beside the log of a crash",
        "ok",
        start(&node, subject),
    );

    dbfile::remove_with_log(&node.database());
    let daemon = Daemon::local(&node, subject);
    write("only-in-the-log");
    daemon.kill9();
    fs::remove_file(node.database()).unwrap();
    let log = fs::read(dbfile::with_suffix(&node.database(), "-wal")).unwrap();
    start(&node, subject);
    let entries = fs::read_dir(node.database().parent().unwrap()).unwrap();
    let kept = entries
        .filter(|entry| fs::read(entry.as_ref().unwrap().path()).ok().as_ref() == Some(&log));
    let kept = if kept.count() > 0 { "kept" } else { "removed" };
    checker.must("a log without its database", "removed", kept);

    Builder::guests(100).write(&node.database()).unwrap();
    let mut bytes = fs::read(node.database()).unwrap();
    bytes[32..40].copy_from_slice(&[0, 0, 0, 3, 0, 0, 0, 1]);
    fs::write(node.database(), bytes).unwrap();
    checker.must("a free page that is in use", "ok", start(&node, subject));

    dbfile::remove_with_log(&node.database());
    let daemon = Daemon::local(&node, subject);
    write("before");
    dbfile::remove_with_log(&node.database());
    write("acknowledged");
    if subject.is_ours() {
        let noticed = || daemon.stderr().contains("while pmxcfs runs");
        assert!(wait_for(Duration::from_secs(30), noticed), "not noticed");
    }
    daemon.kill9();
    let daemon = Daemon::local(&node, subject);
    let there = node.inside(|| Path::new("/etc/pve/acknowledged").exists());
    assert_eq!(daemon.stop().code, 0);
    let fate = if there { "there" } else { "lost" };
    checker.must(
        "removed under the daemon, then SIGKILL: files",
        "lost",
        fate,
    );
    checker.finish();
}
