//! Every recorded request, sent by the real libqb client, against the recorded answer.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::client::{identity, unhex};
use compat_tests::{Checker, Client, Daemon, Lab, Node, Reply, Subject, golden, on_both};
use serde_json::Value;
use std::path::Path;

on_both!(one_life_time, unassigned_and_malformed);

fn vectors(file: &str) -> (Value, Vec<Value>) {
    let text = std::fs::read_to_string(golden(&format!("ipc/{file}.json"))).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let vectors = value["vectors"].as_array().unwrap().clone();
    (value, vectors)
}

fn text<'a>(vector: &'a Value, key: &str) -> &'a str {
    vector[key].as_str().unwrap_or_default()
}

/// The request of a vector: id, payload, and the size field where that is a lie. Long requests
/// are recorded without their payload and made here as their description says.
fn request(vector: &Value) -> (i32, Vec<u8>, Option<i32>) {
    let mut bytes = unhex(text(vector, "request_hex"));
    if let Some(length) = vector["request_len"].as_u64() {
        let length = usize::try_from(length).unwrap();
        bytes.extend(compat_tests::client::name256("kv/max"));
        bytes.resize(length, b'm');
    }
    let int = |at: usize| i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (id, size) = (int(0), int(8));
    let lie = (i64::from(size) != i64::try_from(bytes.len()).unwrap()).then_some(size);
    (id, bytes.split_off(16), lie)
}

fn sorted(list: &str, separator: &str) -> String {
    let mut parts: Vec<&str> = list.split(separator).collect();
    parts.sort_unstable();
    parts.join(separator)
}

/// `before` + sorted parts + `after`, when the text has that form.
fn sort_between(text: &str, before: &str, after: &str, separator: &str) -> Option<String> {
    let start = text.find(before)? + before.len();
    let end = start + text[start..].find(after)?;
    Some(format!(
        "{}{}{}",
        &text[..start],
        sorted(&text[start..end], separator),
        &text[end..]
    ))
}

/// Replaces the digits after each `key` by `N`.
fn without_number(text: &str, key: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(key) {
        let end = at + key.len();
        out.push_str(&rest[..end]);
        out.push('N');
        rest = rest[end..].trim_start_matches(|c: char| c.is_ascii_digit());
    }
    out + rest
}

/// Takes out what the vectors call varying: times, process ids and the order of hash tables.
fn canonical(op: i32, payload: &[u8]) -> String {
    let text: String = payload.iter().map(|b| char::from(*b)).collect();
    match op {
        1 => {
            let text = without_number(&text, "\"starttime\": ");
            sort_between(&text, "\"node1\": {\n", "}\n", ",\n").unwrap_or(text)
        }
        3 => sort_between(&text, "\"ids\": {\n", "}\n\n}\n", ",\n").unwrap_or(text),
        8 => without_number(&without_number(&text, "\"time\": "), "\"pid\": "),
        10 => {
            let nul = if text.ends_with('\0') { "\\0" } else { "" };
            sorted(text.trim_end_matches('\0').trim_end_matches('\n'), "\n") + nul
        }
        11 | 13 => sort_between(&text, "{\n", "\n}\n", ",\n").unwrap_or(text),
        _ => text,
    }
}

/// One line for the comparison: error, size field, payload.
fn shown(op: i32, header: &[u8], payload: &[u8]) -> String {
    let int = |at: usize| i32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    let id = if int(0) == op {
        String::new()
    } else {
        format!("id {} ", int(0))
    };
    let size = i64::from(int(8));
    let size = if size == 24 + i64::try_from(payload.len()).unwrap() {
        String::new()
    } else {
        format!(" size {size} for {} bytes", payload.len())
    };
    format!("{id}error {}{size} {}", int(16), canonical(op, payload))
}

fn expected(vector: &Value, op: i32) -> String {
    if let Some(error) = vector["transport_error"].as_str() {
        return format!("broken: {error}");
    }
    let mut bytes = unhex(text(vector, "response_hex"));
    if let Some(length) = vector["response_len"].as_u64() {
        bytes.resize(usize::try_from(length).unwrap(), b'm');
    }
    let payload = bytes.split_off(24);
    shown(op, &bytes, &payload)
}

fn run(checker: &mut Checker, node: &Node, vectors: &[Value], prefix: &str) {
    for vector in vectors {
        if text(vector, "name") == "rrd_fresh" {
            // the dump made for the empty vectors must not be taken for this one
            std::thread::sleep(std::time::Duration::from_millis(2100));
        }
        let (op, payload, lie) = request(vector);
        let client = Client::new(node, identity(text(vector, "client")));
        let actual = match client.request(op, &payload, lie) {
            Reply::Answer { header, payload } => shown(op, &header, &payload),
            Reply::Transport(error) => format!("broken: {error}"),
        };
        let case = format!("{prefix}{}", text(vector, "name"));
        let expected = expected(vector, op);
        let lines = expected.lines().count();
        if op == 8 && lines > 2 && lines == actual.lines().count() {
            // one case for each log entry
            for (number, (want, got)) in expected.lines().zip(actual.lines()).enumerate() {
                checker.golden(&format!("{case} line {}", number + 1), want, got);
            }
        } else {
            checker.golden(&case, &expected, &actual);
        }
    }
}

/// Creates the files the vectors were recorded with, in the recorded order, each by one write.
fn set_up(node: &Node, notes: &Value) {
    let files = notes["notes"]["setup_files"].as_object().unwrap();
    let order = [
        "nodes/node1/qemu-server/100.conf",
        "nodes/node1/qemu-server/101.conf",
        "nodes/node1/lxc/200.conf",
        "nodes/node1/lxc/201.conf",
        "nodes/node2/qemu-server/300.conf",
        "storage.cfg",
        "user.cfg",
        "empty.cfg",
        "priv/token.cfg",
        "priv/secret.txt",
        "nodes/node1/priv/secret.txt",
        "k1",
        "nodes/node1/qemu-server/102.conf",
    ];
    assert_eq!(files.len(), order.len());
    node.inside(|| {
        for path in order {
            let content = match files[path].as_str().unwrap() {
                "1024 bytes of \"x\"" => "x".repeat(1024),
                "(0 bytes)" => String::new(),
                text => text.to_string(),
            };
            let path = Path::new("/etc/pve").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, content).unwrap();
        }
    });
}

/// The vectors of one daemon's life, in the order in which they were recorded.
fn one_life_time(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut daemon = Daemon::local(&node, subject);
    let mut checker = Checker::new(subject, "ipc");
    let (_, empty) = vectors("local-empty");
    run(&mut checker, &node, &empty, "empty/");
    let (notes, config) = vectors("local-config");
    set_up(&node, &notes);
    run(&mut checker, &node, &config, "config/");
    let (_, status) = vectors("local-status");
    run(&mut checker, &node, &status, "status/");
    let (_, log) = vectors("local-log");
    run(&mut checker, &node, &log, "log/");
    checker.check("the daemon", daemon.is_running(), || {
        "ended meanwhile".to_string()
    });
    checker.finish();
}

fn unassigned_and_malformed(subject: &Subject) {
    let (_lab, node) = Lab::single();
    let mut daemon = Daemon::local(&node, subject);
    let mut checker = Checker::new(subject, "ipc-misc");
    let (_, misc) = vectors("misc");
    run(&mut checker, &node, &misc, "");
    checker.check("the daemon", daemon.is_running(), || {
        "ended meanwhile".to_string()
    });
    checker.finish();
}
