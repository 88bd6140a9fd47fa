//! `corosync.conf` in the tree: what corosync would refuse does not reach the host.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::daemon::wait_for;
use compat_tests::{Checker, Daemon, Lab, Node, Subject, on_both};
use std::fs;
use std::time::Duration;

on_both!(last_accepted_file);

/// Only what hangs takes longer.
const SOON: Duration = Duration::from_secs(60);
const HOST: &str = "etccoro/corosync.conf";
/// How a line about the host's file says what became of it.
const ENDS: [&str; 4] = [
    "wrote new corosync config",
    "stays as it is",
    "unable to parse cluster config_version",
    "local corosync.conf is newer",
];

fn host(node: &Node) -> String {
    fs::read_to_string(node.dir.join(HOST)).unwrap()
}

fn told(daemon: &Daemon) -> Vec<String> {
    let log = daemon.stderr();
    let about = |line: &&str| ENDS.iter().any(|text| line.contains(text));
    log.lines().filter(about).map(String::from).collect()
}

/// Puts `text` in place; what became of the host's file, and the line that says so.
fn put(node: &Node, daemon: &Daemon, text: &str) -> (&'static str, String) {
    let before = told(daemon).len();
    node.inside(|| {
        let write = || {
            fs::write("/etc/pve/corosync.conf.new", text)?;
            fs::rename("/etc/pve/corosync.conf.new", "/etc/pve/corosync.conf")
        };
        // the reference refuses while it is not quorate, for a moment after a reload
        let mut written = write();
        wait_for(SOON, || {
            if written.is_err() {
                written = write();
            }
            written.is_ok()
        });
        written.unwrap();
    });
    assert!(
        wait_for(SOON, || told(daemon).len() > before),
        "nothing was said: {}",
        daemon.stderr()
    );
    let line = told(daemon).pop().unwrap();
    let state = if host(node) == text {
        "written"
    } else {
        "kept"
    };
    (state, line)
}

fn last_accepted_file(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut checker = Checker::new(subject, "corosync-conf");
    let good = host(&node);
    let (code, text) = node.sh("corosync");
    assert_eq!(code, 0, "{text}");
    let daemon = Daemon::spawn(&node, subject, &["-f"]);
    let quorate = || daemon.stderr().matches("all data is up to date").count() == 2;
    assert!(wait_for(SOON, quorate), "{}", daemon.stderr());

    let version = |n: u32| good.replace("config_version: 1", &format!("config_version: {n}"));
    let brace = version(3).trim_end().strip_suffix('}').unwrap().to_string();
    for (case, text, says) in [
        (
            "no higher version",
            good.replace("version: 2\n", "version: 2\n  token: 2000\n"),
            "(config_version 1) not accepted: it differs from the host's file without a higher \
             totem.config_version",
        ),
        (
            "no version",
            good.replace("config_version: 1\n", ""),
            "unable to parse cluster config_version - totem.config_version of \
             '/etc/pve/corosync.conf' must be a number above 0",
        ),
        (
            "missing brace",
            brace,
            "corosync would not start with it (line 3",
        ),
        (
            "wrong word",
            version(4).replace("passive", "sideways"),
            "(config_version 4) not accepted: corosync would not start with it (parse error in \
             config: The Knet link mode \"sideways\" specified is invalid",
        ),
        (
            "wrong number",
            version(5).replace("nodeid: 1", "nodeid: one"),
            "Value of key \"nodelist.node.0.nodeid\" is expected to be integer",
        ),
        ("good", version(6), "wrote new corosync config"),
        (
            "address that is not there yet",
            version(7).replace(
                "ring0_addr: ",
                "ring1_addr: nosuchhost.invalid\n    ring0_addr: ",
            ),
            "wrote new corosync config '/etc/corosync/corosync.conf' (version = 7)",
        ),
        ("good again", version(8), "wrote new corosync config"),
        (
            "without this node",
            version(9).replace("name: node1", "name: node9"),
            "not accepted: its nodelist has no node with name: node1",
        ),
    ] {
        let (state, line) = put(&node, &daemon, &text);
        checker.must(
            case,
            if says.starts_with("wrote") {
                "written"
            } else {
                "kept"
            },
            state,
        );
        if subject.is_ours() {
            checker.check(case, line.contains(says), || line.clone());
            checker.check(case, line.contains("'/etc/corosync/corosync.conf'"), || {
                line.clone()
            });
        }
    }
    if subject.is_ours() {
        let log = daemon.stderr();
        let warned = "corosync does not take '/etc/pve/corosync.conf' on this host as it is now: \
                      failed to parse bindnet address 'nosuchhost.invalid'";
        checker.check("warning", log.contains(warned), || log.clone());
        let members = || node.inside(|| fs::read_to_string("/etc/pve/.members").unwrap());
        let seen = wait_for(SOON, || members().contains("\"version\": 8"));
        checker.check("read by corosync", seen, members);
    }
    daemon.stop();
    half_a_file(subject, &node, &mut checker, &good);
    checker.finish();
}

/// The host's file was cut off (a power cut): the tree has the whole one, of the same version.
fn half_a_file(subject: &Subject, node: &Node, checker: &mut Checker, good: &str) {
    let text = good.replace("config_version: 1", "config_version: 10");
    fs::remove_file(node.database()).unwrap();
    fs::write(node.dir.join(HOST), &text).unwrap();
    let start = || {
        let daemon = Daemon::spawn(node, subject, &["-f"]);
        let served = wait_for(SOON, || {
            node.inside(|| fs::read("/etc/pve/corosync.conf").is_ok())
        });
        assert!(served, "{}", daemon.stderr());
        daemon.stop();
    };
    start();
    let cut = text
        .split_inclusive('\n')
        .take(text.lines().count() - 1)
        .collect::<String>();
    assert!(cut.contains("config_version: 10"));
    fs::write(node.dir.join(HOST), cut).unwrap();
    start();
    let mended = host(node) == text;
    checker.must(
        "half a file on the host is replaced",
        "true",
        &mended.to_string(),
    );
}
