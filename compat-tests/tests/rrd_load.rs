//! What round-robin data of a large cluster, or an rrdcached that hangs, costs the others.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
#[path = "common/rrd.rs"]
mod rrd;

use compat_tests::daemon::{proc_value, wait_for};
use compat_tests::report::median;
use compat_tests::{Daemon, Lab, Node, Subject, lab, on_both, report};
use nix::sys::signal::Signal;
use rrd::{BASE, Cached, Feed, MAX_ROUNDS, P99, ROUNDS};
use rrd::{cpu, feed, guests, last, least, now, others, unnoticed};
use std::fs;
use std::time::{Duration, Instant};

on_both!(guests_10000);

const GUESTS: u32 = 10_000;
/// Longest time a value may take to be accepted, in microseconds.
const DELAY: u64 = 50_000;

/// 10,000 guests, each with one value every 10 s, for a minute. Their files are one file with many
/// names: rrdcached keeps the values, the disk has no 13 GB to write.
fn guests_10000(subject: &Subject) {
    let _quiet = lab::quiet();
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, subject);
    let start = now();
    feed(&node, 0, &guests(1, start));
    let dir = node.path(BASE).join("pve-vm-9.0");
    let template = dir.join("100");
    let made = || template.exists() && last(&node, "pve-vm-9.0/100") == start;
    assert!(wait_for(Duration::from_secs(10), made));
    for i in 101..100 + GUESTS {
        fs::hard_link(&template, dir.join(i.to_string())).unwrap();
    }
    let cached = Cached::start(&node);
    let (before, began) = (cpu(daemon.pid()), Instant::now());
    let mut rounds: Vec<Feed> = Vec::new();
    for round in 1..=18 {
        // Other programs of the machine only ever add to it: one round without them tells.
        let calm = !subject.is_ours() || rounds.iter().any(|round| round.max <= DELAY);
        if round > 6 && calm {
            break;
        }
        rounds.push(feed(
            &node,
            GUESTS / 10,
            &guests(GUESTS, start + round * 10),
        ));
    }
    let used = cpu(daemon.pid()) - before;
    let share = used / began.elapsed().as_secs_f64();
    // Nothing of it shall reach the one file.
    cached.end(Signal::SIGKILL);
    let max: Vec<u64> = rounds.iter().map(|round| round.max).collect();
    let p99: Vec<f64> = rounds.iter().map(|round| round.p99 as f64).collect();
    let mean: Vec<f64> = rounds.iter().map(|round| round.mean as f64).collect();
    report(&format!(
        "rrd [{}] {GUESTS} guests, a value each 10 s: {:.1} % of a core ({:.0} us a value); a value \
         is accepted in {:.0} us (median of means), p99 {:.0} us, most in each round {max:?} us",
        subject.name(),
        share * 100.0,
        used * 1e6 / (rounds.len() as f64 * f64::from(GUESTS)),
        median(&mean),
        median(&p99),
    ));
    assert!(
        rounds
            .iter()
            .all(|r| r.sent == u64::from(GUESTS) && r.errors == 0)
    );
    if subject.is_ours() {
        assert!(max.iter().min() <= Some(&DELAY), "{max:?}");
        assert!(median(&p99) <= DELAY as f64, "{p99:?}");
    }
    daemon.stop();
}

const STORAGES: u32 = 300;

/// Values of storages once a round, twenty rounds, 5 s in all, while `work` is done.
fn with_traffic<T: Send>(node: &Node, time: &mut u32, work: impl FnOnce() -> T + Send) -> T {
    let mut values = Vec::new();
    for _ in 0..20 {
        *time += 1;
        let value = |i| {
            (
                format!("pve-storage-9.0/node1/s{i}"),
                format!("{time}:1000:{i}"),
            )
        };
        values.extend((0..STORAGES).map(value));
    }
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| feed(node, 20 * STORAGES / 5, &values));
        std::thread::sleep(Duration::from_millis(200));
        let result = work();
        let feed = traffic.join().unwrap();
        assert_eq!(feed.errors, 0);
        result
    })
}

#[test]
fn nobody_notices_a_stopped_rrdcached() {
    let _quiet = lab::quiet();
    let (_lab, node) = Lab::single();
    let daemon = Daemon::local(&node, &Subject::ours());
    let cached = Cached::start(&node);
    let mut time = now();
    with_traffic(&node, &mut time, || ());
    let memory = || proc_value(daemon.pid(), "status", "VmRSS").unwrap();
    let before = memory();
    let mut p99 = P99::default();
    // In turn, so that what else the machine does is the same for both.
    for round in 0..MAX_ROUNDS {
        if round >= ROUNDS && round % 2 == 0 && unnoticed(&p99, 300.0) {
            break;
        }
        let stopped = round % 2;
        cached.signal([Signal::SIGCONT, Signal::SIGSTOP][stopped]);
        let times = with_traffic(&node, &mut time, || others(&node, round));
        for (all, time) in p99[stopped].iter_mut().zip(times) {
            all.push(time);
        }
    }
    let grown = memory().saturating_sub(before);
    for (i, name) in ["reading .version", "creating a file"].iter().enumerate() {
        let [running, stopped] = [0, 1].map(|state: usize| &p99[state][i]);
        report(&format!(
            "rrd [ours] p99 of {name}: {:.0} us (least of {}) while rrdcached runs, {:.0} us while \
             it is stopped; all {running:.0?} {stopped:.0?}",
            least(running),
            running.len(),
            least(stopped)
        ));
    }
    assert!(unnoticed(&p99, 300.0), "{p99:?}");
    report(&format!("rrd [ours] memory grew by {grown} KiB meanwhile"));
    assert!(grown < 16 * 1024, "{grown} KiB");
    cached.signal(Signal::SIGCONT);
    daemon.stop();
}
