//! What nodes report for their graphs: accepted and refused values, and the dump of the last ones.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::client::ROOT;
use compat_tests::{Checker, Client, Daemon, Lab, Subject, golden, on_both};
use std::fs;

on_both!(values_and_dump);

/// The lines of a dump in an order of their own, and what stands behind the last one.
fn sorted(bytes: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.trim_end_matches('\0');
    let end = format!("{} NUL", text.len() - lines.len());
    let mut lines: Vec<&str> = lines.lines().collect();
    lines.sort_unstable();
    (lines.join("\n"), end)
}

fn compare(checker: &mut Checker, case: &str, want: &[u8], got: &[u8]) {
    let (want, got) = (sorted(want), sorted(got));
    checker.golden(case, &want.0, &got.0);
    checker.golden(&format!("{case}: end"), &want.1, &got.1);
}

fn values_and_dump(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    let client = Client::new(&node, ROOT);
    let mut checker = Checker::new(subject, "rrd-dump");
    let text = fs::read_to_string(golden("status/rrd/requests-all-cases.txt")).unwrap();
    for line in text.lines().filter(|l| l.starts_with("rrd/")) {
        let [key, value, result] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let got = client.set_status(key, format!("{value}\0").as_bytes());
        let want = result.strip_prefix("-> error ").unwrap();
        checker.golden(&format!("set {key}"), want, &got.to_string());
    }
    let long = |n: usize| [vec![b'x'; n - 1], vec![0]].concat();
    for (case, key, value, want) in [
        ("no NUL", "rrd/zz/1", b"1:2".to_vec(), "-12"),
        ("empty", "rrd/zz/1", Vec::new(), "-12"),
        ("4096 bytes", "rrd/zz/1", long(4096), "-12"),
        ("4095 bytes", "rrd/zz/2", long(4095), "0"),
        (
            "NUL and newline inside",
            "rrd/zz/3",
            b"a\nb\0c\0".to_vec(),
            "0",
        ),
    ] {
        checker.golden(case, want, &client.set_status(key, &value).to_string());
    }
    let found = client.get_status("rrd/zz/3", "").error();
    checker.golden(
        "not in the table of values",
        "Some(-2)",
        &format!("{found:?}"),
    );
    for (case, file) in [("fresh", "dump-ipc.bin"), ("again", "dump-ipc-cached.bin")] {
        let want = fs::read(golden(&format!("status/rrd/{file}"))).unwrap();
        let got = client.request(10, b"", None);
        compare(&mut checker, &format!("dump {case}"), &want, got.payload());
    }
    let want = fs::read(golden("status/rrd/dump-fuse.bin")).unwrap();
    let got = node.inside(|| fs::read("/etc/pve/.rrd")).unwrap();
    compare(&mut checker, ".rrd", &want, &got);
    checker.finish();
    drop(daemon);
}
