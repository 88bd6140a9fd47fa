//! `PVE::IPCC` on libpmxcfs, in taint mode, against the running daemon. `tools/ipcc.pl` does the
//! calls.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::capi::{Pollers, nobody_waits_long, perl, perl_command};
use compat_tests::lab::quiet;
use compat_tests::{Daemon, Lab, Node, Subject, on_both, report};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

on_both!(
    rules_of_return_and_errno,
    restart_under_polling_perl_clients
);

const SCRIPT: &str = "ipcc.pl";

/// A node with a daemon and the files `ipcc.pl` expects.
fn prepared(subject: &Subject) -> (Lab, Node, Daemon) {
    let (lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    let (code, text) = node.sh(
        "cd /etc/pve && echo hello abi >abi.cfg && : >empty.cfg && \
         head -c 1048552 /dev/zero | tr '\\0' x >large.cfg && \
         mkdir -p nodes/node1/qemu-server priv && echo 'name: abi' >nodes/node1/qemu-server/100.conf && \
         echo 'root@pam!abi 0123-4567' >priv/token.cfg",
    );
    assert_eq!(code, 0, "{text}");
    (lab, node, daemon)
}

/// Runs a command that has to end with 0; what it printed.
fn succeeds(command: &mut Command) -> String {
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success(),
        "{command:?}: {}\n{text}{errors}",
        out.status
    );
    text
}

fn rules_of_return_and_errno(subject: &Subject) {
    let (_lab, node, daemon) = prepared(subject);
    succeeds(perl_command(&node, SCRIPT).arg("rules"));
    daemon.stop();
}

#[test]
fn a_hundred_children_use_the_module_of_their_parent() {
    let (_lab, node, daemon) = prepared(&Subject::ours());
    succeeds(perl_command(&node, SCRIPT).args(["fork", "100"]));
    daemon.stop();
}

#[test]
fn without_a_daemon() {
    let (_lab, node, daemon) = prepared(&Subject::ours());
    daemon.kill9();
    let (_, text) = node.sh(&format!(
        "perl -T -I {} -MPVE::IPCC -e 'my $r = PVE::IPCC::ipcc_send_rec(1); \
         print defined($r) ? \"answer\" : $!'",
        perl().display()
    ));
    assert_eq!(text, "Connection refused");
}

/// The script says when the daemon has to be stopped and when to go on.
#[test]
fn signal_handlers_run_while_a_daemon_does_not_answer() {
    let _quiet = quiet();
    let (_lab, node, daemon) = prepared(&Subject::ours());
    let mut command = perl_command(&node, SCRIPT);
    command.arg("signals");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut said = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        match line.as_str() {
            "stop" => daemon.freeze(),
            "go" => daemon.thaw(),
            _ => {}
        }
        said.push(line);
        stdin.write_all(b"done\n").unwrap();
    }
    daemon.thaw();
    assert!(child.wait().unwrap().success(), "{said:?}");
    assert_eq!(said, ["stop", "go", "stop", "go"]);
    daemon.stop();
}

/// 20 clients call on while the daemon is restarted.
fn restart_under_polling_perl_clients(subject: &Subject) {
    let _quiet = quiet();
    nobody_waits_long(subject, || restarts(subject));
}

/// The longest wait of a call, in milliseconds; none fails.
fn restarts(subject: &Subject) -> f64 {
    let (_lab, node, mut daemon) = prepared(subject);
    let time = if subject.is_ours() { "4000" } else { "12000" };
    let clients = Pollers::start(20, || {
        let mut command = perl_command(&node, SCRIPT);
        command.args(["poll", time]);
        command
    });
    std::thread::sleep(Duration::from_millis(1000));
    for _ in 0..if subject.is_ours() { 3 } else { 1 } {
        daemon.stop();
        daemon = Daemon::local(&node, subject);
        std::thread::sleep(Duration::from_millis(300));
    }
    let seen = clients.finish();
    report(&format!(
        "restart under 20 polling Perl clients, {}: {seen:?}",
        subject.name()
    ));
    assert_eq!(seen.failed, 0);
    daemon.stop();
    seen.longest
}

/// Round trips by turns with a module that uses libqb; all processes share one CPU. The best of
/// several attempts counts: other work of the machine hits one side or the other.
#[test]
fn at_least_as_fast_as_libqb() {
    let _quiet = quiet();
    let (_lab, node) = Lab::single();
    let daemon = Daemon::on_cpu(&node, &Subject::ours(), 0);
    let (code, text) = node.sh("head -c 1048552 /dev/zero | tr '\\0' x >/etc/pve/large.cfg");
    assert_eq!(code, 0, "{text}");
    for (what, arguments) in [
        ("GET_GUEST_LIST (18 bytes)", ["21", "1000", "3", ""]),
        ("GET_FS_VERSION (1 KiB)", ["21", "1000", "1", ""]),
        ("GET_CONFIG (1 MiB)", ["11", "100", "6", "large.cfg"]),
    ] {
        let mut best = f64::INFINITY;
        for _ in 0..8 {
            let perl = perl_command(&node, SCRIPT);
            let words: Vec<_> = perl.get_args().map(ToOwned::to_owned).collect();
            let split = words.iter().position(|word| word == "--").unwrap() + 1;
            let mut command = Command::new("nsenter");
            command.args(&words[..split]).args(["taskset", "-c", "0"]);
            command.args(&words[split..]).arg("bench").args(arguments);
            let text = succeeds(&mut command);
            let (ours, theirs) = text.trim().split_once(' ').unwrap();
            let [ours, theirs]: [f64; 2] = [ours, theirs].map(|n| n.parse().unwrap());
            report(&format!(
                "Perl {what}: PVE::IPCC {ours:.2} us, libqb {theirs:.2} us, ratio {:.3}",
                ours / theirs
            ));
            best = best.min(ours / theirs);
            if best <= 1.0 {
                break;
            }
        }
        // What is left depends on the processor.
        assert!(best <= 1.15, "{what}: {best:.3} times the time of libqb");
    }
    daemon.stop();
}
