//! Very many clients, one after another: nothing may be left of them.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::peer::{Peer, closed_within, connect_request, open_socket, read_handshake, send_all};
use super::target::{ROOT, Target};
use std::os::fd::AsFd;

/// `count` times connect and disconnect: mostly without opening the rings, every tenth client with
/// a request. Open files and directories of the server are then what they were.
pub fn connect_and_disconnect(target: &Target, count: usize) {
    let inner = target.clone();
    target.undisturbed(|| {
        target.run_as(ROOT, move || {
            for turn in 0..count {
                if turn % 10 == 0 {
                    let mut peer = Peer::connect(&inner.service).expect("connect");
                    inner.probe(&mut peer);
                    continue;
                }
                let socket = open_socket(&inner.service).expect("connect");
                send_all(&socket, &connect_request(-1, 1 << 20)).expect("send");
                if turn % 10 == 1 {
                    continue;
                }
                let answer = read_handshake(socket.as_fd(), Duration::from_secs(10));
                assert_eq!(answer.expect("answer").len(), 12328);
            }
        });
    });
}

/// `count` clients of the real library (`qbclient`, built from `tools/qbclient.c`) that are killed
/// with SIGKILL while they connect, ask or disconnect.
pub fn killed_clients(target: &Target, qbclient: &Path, count: usize) {
    let (id, payload) = target.probe.clone();
    let payload: String = payload.iter().map(|b| format!("{b:02x}")).collect();
    let (inner, program) = (target.clone(), qbclient.to_owned());
    target.undisturbed(|| {
        target.run_as(ROOT, move || {
            for turn in 0..count {
                // Half of them ask on one connection, half connect again and again. The load
                // generator works in a child of its own, so each gets a process group.
                let bench = if turn % 2 == 0 { "bench" } else { "cbench" };
                let mut child = Command::new(&program)
                    .args([
                        "-s",
                        &inner.service,
                        bench,
                        "1000000",
                        &id.to_string(),
                        &payload,
                    ])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .process_group(0)
                    .spawn()
                    .expect("qbclient starts");
                std::thread::sleep(Duration::from_micros(500 + (turn as u64 * 617) % 9000));
                kill_group(&mut child);
            }
        });
    });
}

fn kill_group(child: &mut Child) {
    let pid = rustix::process::Pid::from_child(child);
    let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    let _ = child.wait();
}

/// Clients that hang up right after connecting, without a byte.
pub fn connect_and_close(target: &Target, count: usize) {
    let inner = target.clone();
    target.undisturbed(|| {
        target.run_as(ROOT, move || {
            for _ in 0..count {
                let socket = open_socket(&inner.service).expect("connect");
                assert!(!closed_within(socket.as_fd(), Duration::ZERO).expect("poll"));
            }
        });
    });
}
