//! What the daemon logs arrives at syslog, although `/dev/log` holds ten lines only and nobody reads
//! them for a while.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::daemon::wait_for;
use compat_tests::{Daemon, Lab, Node, Subject, report};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// Only a daemon that hangs takes longer.
const SOON: Duration = Duration::from_secs(60);

/// A `/dev` of the node's own, with a syslog of ten lines that nobody reads yet.
fn syslog(node: &Node) -> UnixDatagram {
    let (code, text) = node.sh(
        "mkdir -p /run/dev/up /run/dev/work && \
         mount -t overlay overlay -o lowerdir=/dev,upperdir=/run/dev/up,workdir=/run/dev/work /dev && \
         mount -t tmpfs tmpfs /dev/shm && rm -f /dev/log",
    );
    assert_eq!(code, 0, "{text}");
    let socket = node.inside(|| {
        fs::write("/proc/sys/net/unix/max_dgram_qlen", "10\n").unwrap();
        UnixDatagram::bind("/dev/log").unwrap()
    });
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

/// The texts of the lines up to the one that ends with `last`.
fn read_to(socket: &UnixDatagram, last: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut bytes = vec![0; 10_000];
    loop {
        let len = socket
            .recv(&mut bytes)
            .unwrap_or_else(|err| panic!("{err} before '{last}', after {lines:#?}"));
        let line = String::from_utf8_lossy(&bytes[..len]).into_owned();
        let (head, text) = line.split_once(": ").unwrap();
        assert!(head.starts_with('<') && head.contains(">pmxcfs["), "{line}");
        lines.push(text.to_string());
        if line.ends_with(last) {
            return lines;
        }
    }
}

fn lines(daemon: &Daemon) -> Vec<String> {
    daemon.stderr().lines().map(String::from).collect()
}

#[test]
fn a_synchronisation_is_logged_to_its_end() {
    let subject = Subject::ours();
    let (_lab, node) = Lab::single();
    let socket = syslog(&node);
    let (code, text) = node.sh("corosync");
    assert_eq!(code, 0, "{text}");
    let daemon = Daemon::spawn(&node, &subject, &["-f"]);
    let last = "all data is up to date";
    let both = || daemon.stderr().matches(last).count() == 2;
    assert!(wait_for(SOON, both), "{}", daemon.stderr());
    let expected = lines(&daemon);
    assert!(expected.len() > 12, "{expected:#?}");
    let mut got = read_to(&socket, last);
    got.extend(read_to(&socket, last));
    assert_eq!(got, expected);

    // more than may wait: what is missing is counted in its place, and nobody waits for syslog
    let pid = Pid::from_raw(daemon.pid());
    let mut written = 0;
    while written < 300 << 10 {
        let before = daemon.stderr().len();
        kill(pid, Signal::SIGUSR1).unwrap();
        assert!(wait_for(SOON, || daemon.stderr().len() > before));
        written += daemon.stderr().len() - before;
    }
    let sent = lines(&daemon).len() - expected.len();
    let line = "log lines lost here: syslog took none, and no more could wait";
    let got = read_to(&socket, line);
    let lost = got
        .last()
        .unwrap()
        .strip_prefix("[main] warning: ")
        .unwrap();
    let lost: usize = lost.split_once(' ').unwrap().0.parse().unwrap();
    assert!(lost > 0);
    assert_eq!(got.len() - 1 + lost, sent);

    let exit = daemon.stop();
    assert_eq!(exit.code, 0);
    let got = read_to(&socket, "exit proxmox configuration filesystem (0)");
    let all: Vec<&str> = exit.stderr.lines().collect();
    assert_eq!(got, all[all.len() - got.len()..]);
    report(&format!(
        "log lines: {} of a start in a cluster arrived, {lost} of {sent} more were lost and counted",
        expected.len()
    ));
}
