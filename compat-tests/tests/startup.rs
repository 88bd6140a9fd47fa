//! Time to a usable mount, time to stop, memory.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::daemon::{Background, proc_value};
use compat_tests::dbfile::Builder;
use compat_tests::report::{median, ms};
use compat_tests::{Daemon, Lab, Subject, lab, on_both, report};
use nix::sys::signal::Signal;
use std::time::Duration;

on_both!(guests_2000, guests_10000);

/// Starts in the foreground and as a daemon several times; noise of the machine only ever adds, so
/// the limits apply to the best of the attempts, and the medians are printed beside them.
fn measure(subject: &Subject, guests: usize, limit: Duration, memory: Option<u64>) {
    let _quiet = lab::quiet();
    let (_lab, node) = Lab::single();
    Builder::guests(guests).write(&node.database()).unwrap();
    let attempts = if subject.is_ours() { 7 } else { 2 };
    let (mut ready, mut parent, mut stop, mut resident) = (vec![], vec![], vec![], vec![]);
    for _ in 0..attempts {
        let mut daemon = Daemon::spawn(&node, subject, &["-f", "-l"]);
        ready.push(daemon.wait_usable().as_secs_f64());
        let listed = node.inside(|| {
            (1..=4)
                .flat_map(|n| [format!("node{n}/lxc"), format!("node{n}/qemu-server")])
                .map(|d| {
                    std::fs::read_dir(format!("/etc/pve/nodes/{d}"))
                        .unwrap()
                        .count()
                })
                .sum::<usize>()
        });
        assert_eq!(
            listed, guests,
            "every guest is there when the mount is usable"
        );
        let vmlist = node.inside(|| std::fs::read("/etc/pve/.vmlist")).unwrap();
        assert!(vmlist.len() > guests * 30);
        resident.push(proc_value(daemon.pid(), "status", "VmRSS").unwrap() as f64);
        let exit = daemon.stop();
        assert_eq!(exit.code, 0, "{exit:?}");
        stop.push(exit.took.as_secs_f64());
        let background = Background::start(&node, subject, &["-l"]);
        parent.push(background.parent.took.as_secs_f64());
        resident.push(proc_value(background.pid, "status", "VmRSS").unwrap() as f64);
        stop.push(background.signal(Signal::SIGTERM).as_secs_f64());
    }
    let best = |v: &[f64]| v.iter().copied().fold(f64::INFINITY, f64::min);
    let most = |v: &[f64]| v.iter().copied().fold(0.0, f64::max);
    let shown = |v: &[f64]| {
        let time = |t: f64| ms(Duration::from_secs_f64(t));
        format!("{} (median {})", time(best(v)), time(median(v)))
    };
    report(&format!(
        "startup [{}] {guests} guests: usable after {}, parent returns after {}, SIGTERM to exit {}, most {:.0} ms, \
         RSS {:.1} MB",
        subject.name(),
        shown(&ready),
        shown(&parent),
        shown(&stop),
        most(&stop) * 1e3,
        most(&resident) / 1024.0
    ));
    if !subject.is_ours() {
        return;
    }
    assert!(
        best(&ready) <= limit.as_secs_f64(),
        "usable after {}",
        shown(&ready)
    );
    assert!(
        best(&parent) <= limit.as_secs_f64(),
        "the parent returns after {}",
        shown(&parent)
    );
    assert!(median(&stop) <= 0.5, "SIGTERM to exit: {}", shown(&stop));
    if let Some(memory) = memory {
        let most = most(&resident);
        assert!(most <= memory as f64, "resident memory: {most} kB");
    }
}

fn guests_2000(subject: &Subject) {
    measure(subject, 2000, Duration::from_millis(100), None);
}

fn guests_10000(subject: &Subject) {
    measure(subject, 10_000, Duration::from_millis(250), Some(16 * 1024));
}
