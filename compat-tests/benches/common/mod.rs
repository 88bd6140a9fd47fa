//! What the benches share: subjects, one CPU for everything, lines of the report.
// each bench uses a part of it
#![allow(dead_code)]
use compat_tests::daemon::PATIENCE;
use compat_tests::report::median;
use compat_tests::{Daemon, Subject, report};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::time::Duration;

/// Our binary, and the reference where `PMXCFS_REFERENCE` names one.
pub fn subjects() -> Vec<Subject> {
    let reference = Subject::reference_or_skip("column of the reference");
    [Some(Subject::ours()), reference]
        .into_iter()
        .flatten()
        .collect()
}

/// Says what is measured and how busy the machine is.
pub fn headline(what: &str) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_string();
    let mode = if cfg!(debug_assertions) {
        " (debug build!)"
    } else {
        ""
    };
    report(&format!("== {what}{mode}; load average {load}"));
}

/// Binds this process, and with it every process it starts, to the last CPU it may use.
pub fn one_cpu() {
    let all = sched_getaffinity(Pid::from_raw(0)).expect("sched_getaffinity");
    let last = (0..CpuSet::count()).rfind(|i| all.is_set(*i).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.expect("some CPU")).expect("a CPU number");
    sched_setaffinity(Pid::from_raw(0), &one).expect("sched_setaffinity");
}

/// Puts this process, and every process it starts, before other work of the machine. All columns
/// of a bench gain alike; without the right to do so it is measured as it is.
pub fn before_others() {
    let _ = rustix::process::setpriority_process(None, -15);
}

/// One line: ours, the reference, their ratio.
pub fn line(what: &str, unit: &str, ours: f64, reference: Option<f64>) {
    let other = reference.map_or("no reference".to_string(), |r| {
        format!("reference {r:.2} {unit}, ours/reference {:.2}", ours / r)
    });
    report(&format!("{what}: ours {ours:.2} {unit}; {other}"));
}

/// Seconds as milliseconds.
pub fn milliseconds(times: &[Duration]) -> f64 {
    let times: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e3).collect();
    median(&times)
}

/// Ends a daemon. Ours has to end well; that the reference sometimes does not is no reason to throw
/// the figures away.
pub fn stop(daemon: Daemon, subject: &Subject) {
    let exit = daemon.stop();
    if subject.is_ours() {
        assert_eq!(exit.code, 0, "{exit:?}");
    } else if exit.code != 0 {
        report(&format!(
            "the reference did not end by itself within {PATIENCE:?} after SIGTERM"
        ));
    }
}
