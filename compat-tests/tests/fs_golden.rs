//! The file system's behaviour, operation by operation, against `golden/fs/local.txt`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::{Checker, Daemon, Lab, Node, Subject, golden, here, on_both};
use std::process::Output;

on_both!(probe, hazards);

fn fsprobe(node: &Node, command: &str) -> Output {
    node.command("python3")
        .arg(here().join("tools/fsprobe.py"))
        .arg(command)
        .output()
        .unwrap()
}

fn prepare(node: &Node) {
    let out = fsprobe(node, "prepare");
    assert!(
        out.status.success(),
        "prepare: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    // the golden file was recorded when every attribute cached by the preparation had expired
    std::thread::sleep(std::time::Duration::from_secs(2));
}

/// `NNN label -> result` lines; a label is a case together with its number.
fn cases(text: &str) -> Vec<(String, String)> {
    text.lines()
        .map(|l| {
            let (case, result) = l.split_once(" -> ").unwrap_or((l, ""));
            (case.to_string(), result.to_string())
        })
        .collect()
}

fn probe(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut daemon = Daemon::local(&node, subject);
    prepare(&node);
    let out = fsprobe(&node, "probe");
    assert!(
        out.status.success(),
        "probe: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(daemon.is_running(), "the daemon ended during the probe");
    let want = cases(&std::fs::read_to_string(golden("fs/local.txt")).unwrap());
    let got = cases(&String::from_utf8_lossy(&out.stdout));
    assert_eq!(want.len(), got.len(), "number of operations");
    let mut checker = Checker::new(subject, "fs");
    for ((case, want), (other, got)) in want.iter().zip(&got) {
        assert_eq!(case, other, "order of operations");
        checker.golden(case, want, got);
    }
    checker.finish();
    assert_eq!(daemon.stop().code, 0);
}

/// What damages or crashes the reference: on ours every line has to be harmless.
fn hazards(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    prepare(&node);
    let out = fsprobe(&node, "hazards");
    let mut checker = Checker::new(subject, "fs-hazards");
    let want = [
        "ENOTEMPTY",
        "True",
        "b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00'",
        "True",
    ];
    let got = cases(&String::from_utf8_lossy(&out.stdout));
    assert_eq!(got.len(), want.len());
    for ((case, got), want) in got.iter().zip(want) {
        checker.must(case, want, got);
    }
    daemon.kill9();
    // whatever the operations left behind, the next start must accept it
    let mut again = Daemon::spawn(&node, subject, &["-f", "-l"]);
    let started = again.try_wait_usable().is_ok();
    checker.check("start after the hazards", started, || again.stderr());
    checker.finish();
}
