//! Latency of changes relative to the reference: both daemons and the client bound to one CPU,
//! rounds interleaved, medians.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use compat_tests::report::median;
use compat_tests::{Daemon, Lab, Node, Subject, lab, report};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Instant;

const CPU: usize = 0;
/// The goals are printed; what fails is being slower than the reference by more than noise.
const SLOWEST: f64 = 1.2;
/// Operation and goal.
const OPERATIONS: [(&str, f64); 3] = [
    ("create", 0.5),
    ("temporary file + rename", 0.5),
    ("overwrite of 1 KiB", 0.7),
];
const COUNT: usize = 150;

fn timed(out: &mut Vec<f64>, work: impl FnOnce()) {
    let start = Instant::now();
    work();
    out.push(start.elapsed().as_secs_f64() * 1e6);
}

/// One round on one mount: microseconds of each operation.
fn round(node: &Node, number: usize) -> [Vec<f64>; 3] {
    node.inside(|| {
        let mut cpus = CpuSet::new();
        cpus.set(CPU).unwrap();
        sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
        let mut times: [Vec<f64>; 3] = Default::default();
        // a directory for each: a change makes the kernel forget the attributes of its directory
        let dir = format!("/etc/pve/round{number}");
        for sub in ["", "/create", "/rename", "/over"] {
            fs::create_dir(format!("{dir}{sub}")).unwrap();
        }
        fs::write(format!("{dir}/over/file"), [b'x'; 1024]).unwrap();
        fs::write(format!("{dir}/rename/file"), [b'x'; 1024]).unwrap();
        let over = format!("{dir}/over/file");
        for i in 0..COUNT {
            let name = format!("{dir}/create/new{i}");
            timed(&mut times[0], || drop(File::create_new(&name).unwrap()));
            let (temporary, name) = (
                format!("{dir}/rename/file.tmp"),
                format!("{dir}/rename/file"),
            );
            timed(&mut times[1], || {
                let file = File::create_new(&temporary).unwrap();
                assert_eq!(file.write_at(&[b'y'; 1024], 0).unwrap(), 1024);
                drop(file);
                fs::rename(&temporary, &name).unwrap();
            });
            timed(&mut times[2], || {
                let over = OpenOptions::new().write(true).open(&over).unwrap();
                assert_eq!(over.write_at(&[b'z'; 1024], 0).unwrap(), 1024);
            });
        }
        times
    })
}

fn measure(nodes: [&Node; 2], first: usize) -> [[f64; 2]; 3] {
    let mut all: [[Vec<f64>; 3]; 2] = Default::default();
    for number in first..first + 8 {
        for (node, all) in nodes.iter().zip(&mut all) {
            for (all, times) in all.iter_mut().zip(round(node, number)) {
                all.extend(times);
            }
        }
    }
    [0, 1, 2].map(|i| [median(&all[0][i]), median(&all[1][i])])
}

#[test]
fn changes_relative_to_the_reference() {
    let ours = Subject::ours();
    let Some(reference) = Subject::reference_or_skip("latency::changes_relative_to_the_reference")
    else {
        return;
    };
    let _quiet = lab::quiet();
    let (lab_ours, lab_reference) = (Lab::new(1), Lab::new(1));
    let (node_ours, node_reference) = (lab_ours.node(1), lab_reference.node(1));
    let _daemons = [
        Daemon::on_cpu(&node_ours, &ours, CPU),
        Daemon::on_cpu(&node_reference, &reference, CPU),
    ];
    let mut best = [[f64::INFINITY, 1.0]; 3];
    for attempt in 0..4 {
        let found = measure([&node_ours, &node_reference], attempt * 8);
        for (best, found) in best.iter_mut().zip(found) {
            if found[0] / found[1] < best[0] / best[1] {
                *best = found;
            }
        }
        if best
            .iter()
            .zip(OPERATIONS)
            .all(|(b, (_, limit))| b[0] / b[1] <= limit)
        {
            break;
        }
    }
    let mut failures = Vec::new();
    for ([ours, reference], (name, limit)) in best.into_iter().zip(OPERATIONS) {
        let line = format!(
            "latency {name}: {ours:.1} us, reference {reference:.1} us, ratio {:.2} (goal {limit})",
            ours / reference
        );
        report(&line);
        if ours / reference > SLOWEST {
            failures.push(line);
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
