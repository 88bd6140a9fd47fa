//! Whole clusters in one thread, from a seed: a virtual corosync, our state machine and a model of
//! the C daemon, crashes, partitions, slow and failing stores, and invariants after every step.
//!
//! `make sim` runs more of them. `SEEDS=n` runs the seeds 0 to n - 1 (default 2000), `FIRST=k` starts at
//! k, `SEED=k` replays one and prints its history (with `FAULTS` and `REQUESTS` as a failure
//! printed them). A failing seed is shrunk and its history printed.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod checks;
mod clients;
mod cmodel;
mod cpg;
mod disk;
mod ours;
mod process;
mod rng;
mod settle;
mod text;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use world::{Plan, World};

/// Lines of history that are printed.
const HISTORY: usize = 150;

fn plan(seed: u64) -> Plan {
    let faults = number("FAULTS").unwrap_or(seed % 17) as usize;
    let requests = number("REQUESTS").unwrap_or(50 + seed % 151) as usize;
    Plan {
        seed,
        faults,
        requests,
    }
}

/// Result and, if asked for, history.
fn run(plan: Plan, tracing: bool) -> (Result<usize, String>, Vec<String>) {
    let mut world = World::new(plan, tracing);
    let result =
        catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|_| Err("panic".to_owned()));
    (result, world.trace.take().unwrap_or_default())
}

/// The smallest plan near `plan` that still fails.
fn shrink(mut plan: Plan) -> Plan {
    let fails = |plan: Plan| run(plan, false).0.is_err();
    if let Some(faults) = (0..plan.faults).find(|faults| {
        fails(Plan {
            faults: *faults,
            ..plan
        })
    }) {
        plan.faults = faults;
    }
    if let Some(requests) = (0..plan.requests).find(|requests| {
        fails(Plan {
            requests: *requests,
            ..plan
        })
    }) {
        plan.requests = requests;
    }
    plan
}

fn report(plan: Plan, error: &str) -> String {
    let small = shrink(plan);
    let (result, history) = run(small, true);
    let error = result.err().unwrap_or_else(|| error.to_owned());
    let from = history.len().saturating_sub(HISTORY);
    format!(
        "seed {}: {error}\n\
         replay: SEED={} FAULTS={} REQUESTS={} cargo test --test simulation -- --nocapture\n{}",
        plan.seed,
        plan.seed,
        small.faults,
        small.requests,
        history[from..].join("\n")
    )
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn clusters() {
    if let Some(seed) = number("SEED") {
        let (result, history) = run(plan(seed), true);
        println!("{}\nseed {seed}: {result:?}", history.join("\n"));
        assert!(result.is_ok());
        return;
    }
    let seeds = number("SEEDS").unwrap_or(2000);
    let first = number("FIRST").unwrap_or(0);
    let next = AtomicU64::new(first);
    let acknowledged = AtomicUsize::new(0);
    let failed = AtomicU64::new(u64::MAX);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds || failed.load(Ordering::Relaxed) != u64::MAX {
                        return;
                    }
                    match run(plan(seed), false).0 {
                        Ok(count) => drop(acknowledged.fetch_add(count, Ordering::Relaxed)),
                        Err(_) => drop(failed.fetch_min(seed, Ordering::Relaxed)),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    if failed != u64::MAX {
        let error = run(plan(failed), false).0.err().unwrap_or_default();
        panic!("{}", report(plan(failed), &error));
    }
    let acknowledged = acknowledged.into_inner();
    println!("{seeds} clusters, {acknowledged} changes acknowledged");
    assert!(
        acknowledged as u64 >= seeds * 5,
        "the simulated clients got hardly anything done"
    );
}
