//! The status services of a node of a cluster, as a client sees them.
#![allow(dead_code)] // not every test uses everything
use crate::cluster::{Assignment, Cluster};
use compat_tests::Client;
use compat_tests::client::ROOT;
use compat_tests::daemon::wait_for;
use serde_json::Value;
use std::fs;
use std::time::Duration;

/// Times in the cluster log are in seconds, and so is the age of a database.
pub const NEXT_SECOND: Duration = Duration::from_millis(1100);

pub fn client(cluster: &Cluster, i: usize) -> Client {
    Client::new(&cluster.node(i), ROOT)
}

pub fn dot_file(cluster: &Cluster, i: usize, kind: &str) -> String {
    let path = format!("/etc/pve/.{kind}");
    cluster
        .on(i, || fs::read(path))
        .map_or_else(|e| e.to_string(), |b| String::from_utf8(b).unwrap())
}

/// The same by IPC: the reference shows in the file what was true at the last stat, for a second.
pub fn dot_json(cluster: &Cluster, i: usize, kind: &str) -> Value {
    let op = match kind {
        "version" => 1,
        "members" => 2,
        "vmlist" => 3,
        other => panic!("no operation for {other}"),
    };
    let text = client(cluster, i).text(op, b"");
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("node {i} .{kind}: {e}: {text}"))
}

/// Polls until every node shows what is expected of it; then what they show is told.
pub fn until(
    who: &Assignment,
    what: &str,
    limit: Duration,
    mut wrong: impl FnMut() -> Vec<String>,
) {
    let mut last = Vec::new();
    let done = wait_for(limit, || {
        last = wrong();
        last.is_empty()
    });
    assert!(done, "{} {what}: {}", who.name, last.join("\n"));
}

pub fn log_payload(message: &str) -> Vec<u8> {
    let tag = "pvedaemon\0";
    let mut out = vec![6, 9, u8::try_from(tag.len()).unwrap()];
    out.extend(b"root@pam\0");
    out.extend(tag.as_bytes());
    out.extend(message.as_bytes());
    out.push(0);
    out
}

pub fn log(cluster: &Cluster, i: usize, message: &str) {
    let reply = client(cluster, i).request(7, &log_payload(message), None);
    assert_eq!(reply.error(), Some(0), "{reply:?}");
}

pub fn set(cluster: &Cluster, i: usize, key: &str, value: &[u8]) {
    assert_eq!(client(cluster, i).set_status(key, value), 0, "{key}");
}
