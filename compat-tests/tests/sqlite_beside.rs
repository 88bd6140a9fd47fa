//! `sqlite3` beside the running daemon, as administrators and backup scripts use it.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::daemon::Background;
use compat_tests::{Checker, Daemon, Lab, Node, Subject, dbfile, on_both};
use nix::sys::signal::Signal;
use std::fs;

on_both!(daemonised, foreground);

fn write_files(node: &Node, prefix: &str) {
    node.inside(|| {
        for i in 0..50 {
            fs::write(
                format!("/etc/pve/{prefix}{i}"),
                format!("{prefix} content {i}"),
            )
            .unwrap();
        }
    });
}

/// How many of the files written under these prefixes are not as they were written.
fn lost(node: &Node, prefixes: &[&str]) -> usize {
    node.inside(|| {
        let mut lost = 0;
        for prefix in prefixes {
            for i in 0..50 {
                let text = fs::read_to_string(format!("/etc/pve/{prefix}{i}"));
                lost += usize::from(text.ok() != Some(format!("{prefix} content {i}")));
            }
        }
        lost
    })
}

fn sqlite(node: &Node, command: &str) -> String {
    let out = node
        .command("sqlite3")
        .args(["/var/lib/pve-cluster/config.db", command])
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "sqlite3: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Queries, then changes, then SIGKILL, then a new start.
fn scenario(node: &Node, subject: &Subject, checker: &mut Checker, kill: impl FnOnce()) {
    write_files(node, "before");
    let count = sqlite(node, "select count(*) from tree where name like 'before%';");
    checker.must("rows sqlite3 sees at once", "50", &count);
    let dump = sqlite(node, ".dump");
    checker.check(".dump", dump.contains("before49"), || {
        "the dump lacks the last file".into()
    });
    write_files(node, "after");
    let count = sqlite(node, "select count(*) from tree where name like 'after%';");
    checker.must("rows sqlite3 sees after more changes", "50", &count);
    kill();
    let state = dbfile::integrity(&node.database(), &node.dir.join("scratch.db"));
    checker.must("integrity_check after SIGKILL", "ok", &state);
    let daemon = Daemon::local(node, subject);
    checker.must(
        "files lost",
        "0",
        &lost(node, &["before", "after"]).to_string(),
    );
    assert_eq!(daemon.stop().code, 0);
}

fn daemonised(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "sqlite-beside");
    let background = Background::start(&node, subject, &["-l"]);
    scenario(&node, subject, &mut checker, || {
        background.signal(Signal::SIGKILL);
    });
    checker.finish();
}

fn foreground(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "sqlite-beside-foreground");
    let daemon = Daemon::local(&node, subject);
    scenario(&node, subject, &mut checker, || {
        daemon.kill9();
    });
    checker.finish();
}
