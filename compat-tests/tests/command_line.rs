//! Options, their errors, and `create_pmxcfs_db` (`golden/status/daemon/session1.txt`, daemon.md 2).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/session.rs"]
mod session;

use compat_tests::daemon::run_to_end;
use compat_tests::{Checker, Lab, Node, Subject, on_both};
use session::{run, shown};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

on_both!(command_line);

const HELP: &str = "Usage:
  pmxcfs [OPTION…]
Help Options:
  -h, --help           Show help options
Application Options:
  -d, --debug          Turn on debug messages
  -f, --foreground     Do not daemonize server
  -l, --local          Force local mode (ignore corosync.conf, force quorum)";

fn command_line(subject: &Subject) {
    let (lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "daemon-command-line");
    for (args, code, text) in [
        (["--help"], 0, HELP),
        (["-h"], 0, HELP),
        (
            ["-x"],
            1,
            "[main] crit: option parsing failed: Unknown option -x",
        ),
        (
            ["--nonsense"],
            1,
            "[main] crit: option parsing failed: Unknown option --nonsense",
        ),
        (["extra"], 255, "[main] crit: too many arguments"),
    ] {
        let exit = run(&node, subject, &args);
        checker.golden(
            &format!("{}: exit", args[0]),
            &code.to_string(),
            &exit.code.to_string(),
        );
        checker.golden(
            &format!("{}: output", args[0]),
            text,
            &shown(&lab, &exit.stderr),
        );
    }
    create_db(subject, &node, &mut checker);
    checker.finish();
}

/// `create_pmxcfs_db`, which lies beside the daemon.
fn create_db(subject: &Subject, node: &Node, checker: &mut Checker) {
    let program = subject.binary.with_file_name("create_pmxcfs_db");
    let dir = node.dir.join("import");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::create_dir_all(node.dir.join("none")).unwrap();
    fs::write(dir.join("a.cfg"), "a\n").unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    fs::write(dir.join("sub/no"), "x").unwrap();
    let _ = std::os::unix::fs::symlink("a.cfg", dir.join("link"));
    let text = |p: &Path| p.to_str().unwrap().to_string();
    let (dir, db) = (text(&dir), text(&node.dir.join("made.db")));
    let usage = "Usage: create_pmxcfs_db /a/dir /a/filename.db";
    let missing = text(&node.dir.join("missing"));
    let none = text(&node.dir.join("none"));
    for (case, args, code, output) in [
        ("no argument", vec![], 255, usage),
        ("one argument", vec![dir.clone()], 255, usage),
        (
            "no such folder",
            vec![missing.clone(), db.clone()],
            255,
            "unable to open dir: No such file or directory",
        ),
        ("ok", vec![dir.clone(), db.clone()], 0, ""),
        (
            "empty folder, database below nothing",
            vec![none, format!("{missing}/x.db")],
            0,
            "",
        ),
    ] {
        let mut command = node.command(&program);
        command.args(&args);
        let exit = run_to_end(node, command);
        let output = output.to_string();
        checker.golden(
            &format!("create_pmxcfs_db {case}: exit"),
            &code.to_string(),
            &exit.code.to_string(),
        );
        let mine: Vec<&str> = exit
            .stderr
            .lines()
            .filter(|l| !l.starts_with("[database]") && !l.starts_with("**") && !l.is_empty())
            .collect();
        checker.golden(
            &format!("create_pmxcfs_db {case}: output"),
            &output,
            &mine.join("\n").replace(node.dir.to_str().unwrap(), "DIR"),
        );
    }
    let mut command = node.command(&program);
    command.args([&dir, &db]);
    let again = run_to_end(node, command);
    checker.golden(
        "create_pmxcfs_db again: exit",
        "255",
        &again.code.to_string(),
    );
    let first = again.stderr.lines().next().unwrap_or_default();
    let failed = first.starts_with("memdb_create '") && first.ends_with("' failed");
    checker.check("create_pmxcfs_db again", failed, || again.stderr.clone());
    checker.golden(
        "create_pmxcfs_db: mode",
        "0600",
        &format!(
            "{:04o}",
            fs::metadata(&db).unwrap().permissions().mode() & 0o7777
        ),
    );
    let mut rows = compat_tests::dbfile::rows(Path::new(&db)).unwrap();
    rows.sort_by_key(|r| r.name.clone());
    let rows: Vec<String> = rows
        .iter()
        .map(|r| {
            let data = r
                .data
                .as_ref()
                .map_or("NULL".to_string(), |d| format!("{}", d.len()));
            let name = String::from_utf8_lossy(&r.name);
            format!(
                "{name} parent {} type {} writer {} data {data}",
                r.parent, r.kind, r.writer
            )
        })
        .collect();
    let want = "__version__ parent 0 type 8 writer 0 data NULL\na.cfg parent 0 type 8 writer 0 data 2\nempty parent 0 type 8 writer 0 data NULL";
    checker.golden("create_pmxcfs_db: rows", want, &rows.join("\n"));
}
