//! Time from the start to a usable mount, time to stop, memory.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use common::{before_others, headline, line, milliseconds, subjects};
use compat_tests::daemon::{Background, proc_value};
use compat_tests::dbfile::Builder;
use compat_tests::report::median;
use compat_tests::{Daemon, Lab, Node, Subject};
use nix::sys::signal::Signal;
use std::time::Duration;

mod common;

const ROUNDS: usize = 5;

#[derive(Default)]
struct Times {
    usable: Vec<Duration>,
    parent: Vec<Duration>,
    stop: Vec<Duration>,
    resident: Vec<f64>,
}

/// Looks at every guest directory and at the list of guests, as PVE's services do after a start.
fn look_around(node: &Node) {
    node.inside(|| {
        for index in 1..=4 {
            for kind in ["lxc", "qemu-server"] {
                let dir = format!("/etc/pve/nodes/node{index}/{kind}");
                assert!(std::fs::read_dir(dir).unwrap().count() > 0);
            }
        }
        assert!(!std::fs::read("/etc/pve/.vmlist").unwrap().is_empty());
    });
}

/// Once in the foreground, until it is usable; once as a daemon, until the parent returns.
fn round(node: &Node, subject: &Subject, times: &mut Times) {
    let mut daemon = Daemon::spawn(node, subject, &["-f", "-l"]);
    times.usable.push(daemon.wait_usable());
    look_around(node);
    let resident = proc_value(daemon.pid(), "status", "VmRSS").unwrap();
    times.resident.push(resident as f64 / 1024.0);
    let exit = daemon.stop();
    assert!(exit.code == 0 || !subject.is_ours(), "{exit:?}");
    times.stop.push(exit.took);

    let background = Background::start(node, subject, &["-l"]);
    times.parent.push(background.parent.took);
    if !subject.is_ours() {
        // a SIGTERM within milliseconds of its readiness can hang the reference
        std::thread::sleep(Duration::from_millis(300));
    }
    times.stop.push(background.signal(Signal::SIGTERM));
}

fn main() {
    before_others();
    let subjects = subjects();
    headline(&format!("start and stop, medians of {ROUNDS} rounds"));
    for guests in [2000, 10_000] {
        let lab = Lab::new(subjects.len());
        let mut times: Vec<Times> = subjects.iter().map(|_| Times::default()).collect();
        for i in 1..=subjects.len() {
            Builder::guests(guests)
                .write(&lab.node(i).database())
                .unwrap();
        }
        for _ in 0..ROUNDS {
            for (i, subject) in subjects.iter().enumerate() {
                round(&lab.node(i + 1), subject, &mut times[i]);
            }
        }
        let row = |what: &str, unit: &str, value: &dyn Fn(&Times) -> f64| {
            let what = format!("{guests} guests, {what}");
            line(&what, unit, value(&times[0]), times.get(1).map(value));
        };
        row("start to usable mount", "ms", &|t| milliseconds(&t.usable));
        row("start until the parent returns", "ms", &|t| {
            milliseconds(&t.parent)
        });
        row("SIGTERM to exit", "ms", &|t| milliseconds(&t.stop));
        row("resident memory after listing everything", "MiB", &|t| {
            median(&t.resident)
        });
    }
}
