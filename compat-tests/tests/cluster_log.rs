//! The cluster log: the recorded requests and queries (`golden/status/clusterlog`).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use compat_tests::client::ROOT;
use compat_tests::python;
use compat_tests::text::canonical;
use compat_tests::{Checker, Client, Daemon, Lab, Subject, golden, on_both};
use std::fs;

on_both!(cluster_log);

fn log_payload(priority: u8, ident: &[u8], tag: &[u8], message: &[u8]) -> Vec<u8> {
    let length = |s: &[u8]| u8::try_from(s.len() + 1).unwrap();
    let mut out = vec![priority, length(ident), length(tag)];
    for (part, end) in [(ident, true), (tag, true), (message, false)] {
        out.extend(part);
        if end {
            out.push(0);
        }
    }
    out
}

/// Sends the recorded requests; `pri=… ident='…' tag='…' msg='…' -> error N`.
fn log_requests(client: &Client, checker: &mut Checker, lines: &[(usize, &str)]) {
    for (number, line) in lines {
        let rest = line.strip_prefix("pri=").unwrap();
        let (priority, rest) = rest.split_once(" ident=").unwrap();
        let (ident, rest) = python::literal(rest);
        let (tag, rest) = python::literal(rest.strip_prefix(" tag=").unwrap());
        let rest = rest.strip_prefix(" msg=").unwrap();
        let (mut message, rest) = python::literal(rest);
        if let Some(count) = message
            .strip_prefix(b"<")
            .and_then(|m| m.strip_suffix(b">"))
        {
            let text = String::from_utf8_lossy(count).into_owned();
            let (count, what) = text.split_once(" times ").unwrap();
            message = what.repeat(count.parse().unwrap()).into_bytes();
        }
        message.push(0);
        let payload = log_payload(priority.parse().unwrap(), &ident, &tag, &message);
        let got = client.request(7, &payload, None).error().unwrap_or(99);
        let want = rest
            .strip_prefix(" -> error ")
            .unwrap()
            .split(' ')
            .next()
            .unwrap();
        checker.golden(&format!("request {number}"), want, &got.to_string());
    }
}

fn log_query(client: &Client, max: u32, user: &str) -> String {
    let mut payload = max.to_le_bytes().to_vec();
    payload.extend([0; 12]);
    payload.extend(user.bytes());
    payload.push(0);
    canonical("clusterlog", client.request(8, &payload, None).payload())
}

fn ids(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|l| l.split(',').next()?.strip_prefix("{\"uid\": "))
        .collect()
}

fn compare_log(checker: &mut Checker, file: &str, got: &str, lines: bool) {
    let want = fs::read(golden(&format!("status/clusterlog/{file}"))).unwrap();
    let want = canonical("clusterlog", &want);
    checker.golden(
        &format!("{file} order"),
        &ids(&want).join(" "),
        &ids(got).join(" "),
    );
    if !lines {
        return;
    }
    for (want, got) in want
        .lines()
        .zip(got.lines())
        .filter(|(w, _)| w.starts_with("{\"uid\""))
    {
        checker.golden(&format!("{file} uid {}", ids(want)[0]), want, got);
    }
}

fn cluster_log(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    let client = Client::new(&node, ROOT);
    let mut checker = Checker::new(subject, "clusterlog");
    let text = fs::read_to_string(golden("status/clusterlog/requests.txt")).unwrap();
    let all: Vec<(usize, &str)> = text
        .lines()
        .enumerate()
        .filter(|(_, l)| l.starts_with("pri="))
        .map(|(n, l)| (n + 1, l))
        .collect();
    let (first, fill): (Vec<_>, Vec<_>) = all.iter().partition(|(_, l)| !l.contains("tag='fill'"));
    log_requests(&client, &mut checker, &first);
    let malformed: [(&str, Vec<u8>, &str); 6] = [
        ("no msg bytes", log_payload(6, b"abcd", b"t", b""), "-22"),
        (
            "ident not terminated",
            [&[6, 4, 2][..], b"abcdt\0m\0"].concat(),
            "-22",
        ),
        (
            "tag not terminated",
            [&[6, 5, 1][..], b"abcd\0tm\0"].concat(),
            "-22",
        ),
        (
            "msg not terminated",
            log_payload(6, b"abcd", b"t", b"m"),
            "0",
        ),
        (
            "msg not terminated 10",
            log_payload(6, b"abcd", b"t", b"msgnotterm"),
            "0",
        ),
        ("short", vec![6, 1], "-22"),
    ];
    for (what, payload, want) in malformed {
        let got = client.request(7, &payload, None).error().unwrap_or(99);
        checker.golden(what, want, &got.to_string());
    }
    compare_log(
        &mut checker,
        "all-default.json",
        &log_query(&client, 0, ""),
        true,
    );
    compare_log(&mut checker, "max3.json", &log_query(&client, 3, ""), false);
    compare_log(
        &mut checker,
        "user-root.json",
        &log_query(&client, 0, "root@pam"),
        false,
    );
    compare_log(
        &mut checker,
        "user-alice-max2.json",
        &log_query(&client, 2, "alice@pve"),
        false,
    );
    compare_log(
        &mut checker,
        "user-unknown.json",
        &log_query(&client, 0, "nobody"),
        false,
    );
    compare_log(
        &mut checker,
        "max1000.json",
        &log_query(&client, 1000, ""),
        false,
    );
    log_requests(&client, &mut checker, &fill);
    compare_log(
        &mut checker,
        "after70-default.json",
        &log_query(&client, 0, ""),
        false,
    );
    compare_log(
        &mut checker,
        "after70-max100.json",
        &log_query(&client, 100, ""),
        false,
    );
    let file = node.inside(|| fs::read("/etc/pve/.clusterlog")).unwrap();
    compare_log(
        &mut checker,
        "dot-clusterlog.json",
        &canonical("clusterlog", &file),
        false,
    );
    let strict = serde_json::from_str::<serde_json::Value>(
        &log_query(&client, 1000, "").replace(": N", ": 0"),
    );
    checker.must(
        "strict JSON",
        "ok",
        if strict.is_ok() { "ok" } else { "invalid" },
    );
    checker.finish();
    drop(daemon);
}
