//! Changes to golden databases: no row is lost to a new one, and databases go back and forth between
//! the two implementations.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/golden_db.rs"]
mod golden_db;

use compat_tests::dbfile::{self, Row};
use compat_tests::{Checker, Daemon, Lab, Node, Subject, index, on_both, report};
use golden_db::{install, listing};
use std::path::Path;

on_both!(writing_after_load, round_trip);

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
