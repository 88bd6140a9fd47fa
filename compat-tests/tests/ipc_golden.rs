//! Every recorded request, sent by the real libqb client, against the recorded answer.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use compat_tests::client::identity;
use compat_tests::vectors::{expected, request, shown, text, vectors};
use compat_tests::{Checker, Client, Daemon, Lab, Node, Reply, Subject, on_both};
use serde_json::Value;
use std::path::Path;

on_both!(one_life_time, unassigned_and_malformed);

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
