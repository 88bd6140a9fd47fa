//! CPU time of the server per request with four connections, relative to the bare libqb echo
//! server (`qbclient serve`), which answers as many bytes and does nothing else.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::client::ROOT;
use compat_tests::daemon::{cpu_seconds, wait_for};
use compat_tests::report::median;
use compat_tests::{Client, Daemon, Lab, Node, Subject, lab, on_both, report};
use std::process::Child;
use std::time::Duration;

on_both!(server_time_per_request);

const REQUESTS: usize = 10_000;
const CONNECTIONS: usize = 4;
const LIMIT: f64 = 1.1;

/// The bare server; ends with the value.
struct Echo(Child);

impl Echo {
    fn new(node: &Node, name: &str, bytes: usize) -> Self {
        let mut command = node.command(Client::program());
        let child = command
            .args(["-s", name, "serve", &bytes.to_string()])
            .spawn()
            .unwrap();
        assert!(
            wait_for(Duration::from_secs(5), || node.ipc_listens(name)),
            "the echo server"
        );
        Self(child)
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Microseconds of CPU of process `pid` per request.
fn per_request(client: &Client, pid: i32, service: &str, op: &str, payload: &str) -> f64 {
    let before = cpu_seconds(pid);
    let out = client
        .command()
        .args(["-s", service, "-j", &CONNECTIONS.to_string(), "--", "bench"])
        .args([&REQUESTS.to_string(), op, payload])
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "bench: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    (cpu_seconds(pid) - before) * 1e6 / (REQUESTS * CONNECTIONS) as f64
}

fn server_time_per_request(subject: &Subject) {
    let _quiet = lab::quiet();
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    node.inside(|| std::fs::write("/etc/pve/k1", [b'x'; 1024]))
        .unwrap();
    let client = Client::new(&node, ROOT);
    let version = client.text(1, b"").len();
    let (small, large) = (
        Echo::new(&node, "echo1", 1024),
        Echo::new(&node, "echo2", version),
    );
    let cases = [
        ("GET_CONFIG 1 KiB", "6", "6b3100", "echo1", small.pid()),
        ("GET_FS_VERSION", "1", "", "echo2", large.pid()),
    ];
    let (attempts, rounds) = if subject.is_ours() { (4, 5) } else { (1, 3) };
    let mut failures = Vec::new();
    for (name, op, payload, echo, echo_pid) in cases {
        let mut best = [f64::INFINITY, 1.0];
        for _ in 0..attempts {
            let (mut server, mut bare) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                server.push(per_request(&client, daemon.pid(), "pve2", op, payload));
                bare.push(per_request(&client, echo_pid, echo, op, payload));
            }
            let found = [median(&server), median(&bare)];
            if found[0] / found[1] < best[0] / best[1] {
                best = found;
            }
            if best[0] / best[1] <= LIMIT {
                break;
            }
        }
        let line = format!(
            "ipc cpu [{}] {name}: {:.2} us, bare echo server {:.2} us, ratio {:.2} (at most {LIMIT})",
            subject.name(),
            best[0],
            best[1],
            best[0] / best[1]
        );
        report(&line);
        if best[0] / best[1] > LIMIT {
            failures.push(line);
        }
    }
    if subject.is_ours() {
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}
