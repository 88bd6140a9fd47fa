//! Reading what the kernel has cached, against tmpfs in the same round, and what it has not.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
use common::{before_others, headline, line, one_cpu, stop, subjects};
use compat_tests::report::median;
use compat_tests::{Daemon, Lab, Node, Subject, report};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::Instant;

mod common;

const FILES: usize = 2000;
/// Files are made anew for each sitting: where they lie in memory matters as much as anything.
const SITTINGS: usize = 5;
const ROUNDS: usize = 11;
const COLD_ROUNDS: usize = 5;
/// File systems of a node.
const PLACES: [&str; 2] = ["/etc/pve/read", "/dev/shm/read"];
const KINDS: [&str; 3] = ["open+read+close", "stat", "listing, per entry"];

/// Microseconds per file of each kind of access, on the daemon and on tmpfs.
type Times = [[Vec<f64>; KINDS.len()]; PLACES.len()];

fn fill(dir: &Path) {
    if dir.exists() {
        fs::read_dir(dir)
            .unwrap()
            .for_each(|e| fs::remove_file(e.unwrap().path()).unwrap());
    }
    fs::create_dir_all(dir).unwrap();
    for i in 0..FILES {
        fs::write(dir.join(name(i)), [b'r'; 1024]).unwrap();
    }
}

fn name(i: usize) -> String {
    format!("f{i:04}")
}

fn read(name: &str) {
    let mut buffer = [0; 4096];
    assert_eq!(File::open(name).unwrap().read(&mut buffer).unwrap(), 1024);
}

fn round(names: &[String], times: &mut Times) {
    for (place, times) in PLACES.iter().zip(times) {
        // short names: the way to the file is not what is measured
        std::env::set_current_dir(place).unwrap();
        let mut timed = |kind: usize, work: &dyn Fn()| {
            let start = Instant::now();
            work();
            times[kind].push(start.elapsed().as_secs_f64() * 1e6 / FILES as f64);
        };
        timed(0, &|| names.iter().for_each(|n| read(n)));
        timed(1, &|| {
            for name in names {
                assert_eq!(fs::metadata(name).unwrap().len(), 1024);
            }
        });
        timed(2, &|| assert_eq!(fs::read_dir(".").unwrap().count(), FILES));
    }
}

/// Microseconds per file on a mount that is new, so that nothing of it is cached; ends the daemon.
fn cold(node: &Node, subject: &Subject, names: &[String]) -> f64 {
    let daemon = Daemon::local(node, subject);
    let micros = node.inside(|| {
        std::env::set_current_dir(PLACES[0]).unwrap();
        let start = Instant::now();
        names.iter().for_each(|n| read(n));
        start.elapsed().as_secs_f64() * 1e6 / FILES as f64
    });
    stop(daemon, subject);
    micros
}

fn main() {
    one_cpu();
    before_others();
    let subjects = subjects();
    headline(&format!(
        "reading {FILES} files of 1 KiB, one CPU, medians of {SITTINGS} times {ROUNDS} rounds"
    ));
    let lab = Lab::new(subjects.len());
    let start = |(i, subject)| (lab.node(i + 1), Daemon::local(&lab.node(i + 1), subject));
    let daemons: Vec<_> = subjects.iter().enumerate().map(start).collect();
    let names: Vec<String> = (0..FILES).map(name).collect();
    let mut times: Vec<Times> = daemons.iter().map(|_| Times::default()).collect();
    for _ in 0..SITTINGS {
        for ((node, _), times) in daemons.iter().zip(&mut times) {
            node.inside(|| {
                PLACES.iter().for_each(|p| fill(Path::new(p)));
                round(&names, &mut Times::default()); // fills the caches
                (0..ROUNDS).for_each(|_| round(&names, times));
            });
        }
    }
    for (kind, what) in KINDS.iter().enumerate() {
        let micros = |i: usize, place: usize| times.get(i).map(|t| median(&t[place][kind]));
        line(what, "us", micros(0, 0).unwrap(), micros(1, 0));
        // the two of one round were measured within milliseconds of each other
        let of_tmpfs = |i: usize| {
            let [daemon, tmpfs] = times.get(i)?.each_ref().map(|t| &t[kind]);
            let ratios: Vec<f64> = daemon.iter().zip(tmpfs).map(|(d, t)| t / d).collect();
            Some(median(&ratios))
        };
        report(&format!(
            "{what}: tmpfs {:.2} us; ours at {:.2} x the speed of tmpfs; {}",
            micros(0, 1).unwrap(),
            of_tmpfs(0).unwrap(),
            of_tmpfs(1).map_or("no reference".to_string(), |r| format!(
                "reference at {r:.2} x"
            ))
        ));
    }
    let nodes: Vec<Node> = daemons.iter().map(|(node, _)| node.clone()).collect();
    for ((_, daemon), subject) in daemons.into_iter().zip(&subjects) {
        stop(daemon, subject);
    }
    let mut times = vec![Vec::new(); nodes.len()];
    for _ in 0..COLD_ROUNDS {
        for ((node, subject), times) in nodes.iter().zip(&subjects).zip(&mut times) {
            times.push(cold(node, subject, &names));
        }
    }
    let medians: Vec<f64> = times.iter().map(|t| median(t)).collect();
    let what = "open+read+close with nothing cached";
    line(what, "us", medians[0], medians.get(1).copied());
}
