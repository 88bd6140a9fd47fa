//! The simulated cluster: who does what next, what breaks, and what must hold all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pmxcfs::dcdb::is_local_since;
use pmxcfs::dfsm::Now;

use super::cmodel::CModel;
use super::cpg::Cpg;
use super::disk::{Disk, first_disk};
use super::ours::{Ours, Out};
use super::process::{Effect, Process};
use super::rng::Rng;
use super::text::describe;

/// What a run is made of; shrunk when it fails.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    pub faults: usize,
    pub requests: usize,
}

/// What may break. Acknowledged changes can be demanded back only if not everything may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Processes die, stores fail; a majority always lives.
    Crashes,
    /// The network splits and heals; processes die only when all they did is on disk.
    Partitions,
}

/// Which nodes run the C daemon, and how its clients behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mix {
    Ours,
    /// Clients of old nodes are quiet while a synchronisation runs.
    Tame,
    /// They are not: old nodes may come to differ (a known defect) until a checksum round.
    Wild,
}

pub(super) struct Slot {
    pub(super) c: bool,
    pub(super) process: Option<Process>,
    pub(super) disk: Disk,
    pub(super) pid: u32,
    pub(super) next_tick: Duration,
    pub(super) stalled_until: Duration,
    pub(super) restart_at: Option<Duration>,
    pub(super) corosync_at: Option<Duration>,
    /// Restarted (or thrown back) and not synchronised with a majority since.
    pub(super) fresh: bool,
    pub(super) print: (u64, u64),
    /// Version seen last.
    pub(super) version: u64,
}

/// What follows a cut.
#[derive(Debug, Clone, Copy)]
pub(super) enum Later {
    /// This component misses the others.
    Notice(usize),
    /// A client of this node makes a file.
    Create(usize),
    /// Everybody reaches everybody.
    Heal,
}

pub(super) struct Request {
    pub(super) node: usize,
    /// Unique file it is about, and whether it creates it.
    pub(super) unique: Option<(usize, bool)>,
    pub(super) since: Duration,
    pub(super) era: usize,
}

pub struct World {
    pub(super) plan: Plan,
    pub(super) rng: Rng,
    pub(super) class: Class,
    pub(super) mix: Mix,
    pub(super) slow_store: bool,
    pub(super) failing_store: bool,
    spiteful: bool,
    /// `--write-timeout` of our nodes.
    pub(super) write_timeout: Duration,
    /// What becomes of a cut that nobody has noticed yet.
    pub(super) later: Vec<(Duration, Later)>,
    /// Clients are quiet until then.
    pub(super) quiet_until: Duration,
    /// A node stands still for so long.
    pub(super) ghost_until: Duration,
    pub(super) cpg: Cpg,
    pub(super) slots: Vec<Slot>,
    pub(super) time: Duration,
    pub(super) split: bool,
    pub(super) faults: usize,
    pub(super) requests: BTreeMap<u64, Request>,
    pub(super) tickets: u64,
    pub(super) uniques: usize,
    /// Acknowledged: creation, content.
    pub(super) created: BTreeSet<usize>,
    pub(super) written: BTreeSet<usize>,
    pub(super) refused: BTreeSet<usize>,
    /// Ended without a known result, so nothing is promised.
    pub(super) at_risk: BTreeSet<Vec<u8>>,
    pub(super) acknowledged: usize,
    /// All nodes were synchronised with each other since their histories could part.
    pub(super) formed: bool,
    /// Grows whenever they may part.
    pub(super) era: usize,
    /// Nodes that have changes which the others lack, and are to take them back.
    pub(super) owing: BTreeSet<usize>,
    pub(super) effects: Vec<(usize, Effect)>,
    pub trace: Option<Vec<String>>,
}

pub(super) type Outcome = Result<(), String>;

impl World {
    pub fn new(plan: Plan, tracing: bool) -> Self {
        let mut rng = Rng::new(plan.seed);
        let nodes = 2 + rng.below(6);
        let class = if rng.chance(50) {
            Class::Crashes
        } else {
            Class::Partitions
        };
        let mix = match rng.below(10) {
            0..5 => Mix::Ours,
            5..8 => Mix::Tame,
            _ => Mix::Wild,
        };
        let mut slots = Vec::new();
        let first = first_disk(&mut rng);
        for _ in 0..nodes {
            let mut disk = first.clone();
            // Some start behind.
            if rng.chance(20) {
                disk = Disk::new();
            }
            slots.push(Slot {
                c: mix != Mix::Ours && rng.chance(50),
                process: None,
                disk,
                pid: 100,
                next_tick: Duration::ZERO,
                stalled_until: Duration::ZERO,
                restart_at: Some(Duration::from_millis(rng.below(3000) as u64)),
                corosync_at: None,
                fresh: true,
                print: (0, 0),
                version: 0,
            });
        }
        let (slow_store, failing_store) = (rng.chance(50), rng.chance(30));
        let spiteful = rng.chance(50);
        let write_timeout = Duration::from_secs(rng.pick(&[2, 5, 30, 30]).unwrap_or(30));
        World {
            plan,
            rng,
            class,
            mix,
            slow_store,
            failing_store,
            spiteful,
            write_timeout,
            later: Vec::new(),
            quiet_until: Duration::ZERO,
            ghost_until: Duration::ZERO,
            cpg: Cpg::new(nodes),
            slots,
            time: Duration::ZERO,
            split: false,
            faults: 0,
            requests: BTreeMap::new(),
            tickets: 0,
            uniques: 0,
            created: BTreeSet::new(),
            written: BTreeSet::new(),
            refused: BTreeSet::new(),
            at_risk: BTreeSet::new(),
            acknowledged: 0,
            formed: false,
            era: 0,
            owing: BTreeSet::new(),
            effects: Vec::new(),
            trace: tracing.then(Vec::new),
        }
    }

    /// Runs everything; the number of acknowledged requests, or what went wrong.
    pub fn run(&mut self) -> Result<usize, String> {
        let text = format!(
            "{} nodes, {:?}, {:?}",
            self.slots.len(),
            self.class,
            self.mix
        );
        self.note(|| text);
        if self.rng.chance(60) {
            // Start without disturbance; else requests and faults meet the start.
            self.start_calmly()?;
        }
        let mut submitted = 0;
        while submitted < self.plan.requests || self.faults < self.plan.faults {
            let quiet = self.time < self.quiet_until;
            if submitted < self.plan.requests && !quiet && self.rng.chance(3) {
                submitted += 1;
                self.request();
            } else if self.faults < self.plan.faults && self.rng.below(1000) < self.spite() {
                self.faults += 1;
                self.fault();
            } else {
                self.step();
            }
            self.settle()?;
        }
        // Whoever holds the others up does so to the end: longer than their clients wait.
        while self.time < self.ghost_until {
            self.step();
            self.settle()?;
        }
        self.finish()?;
        Ok(self.acknowledged)
    }

    /// Faults in 1000 steps. Some runs have most of theirs while a synchronisation goes on.
    fn spite(&self) -> usize {
        let behind = |slot: &Slot| slot.process.as_ref().is_some_and(|p| !p.all_synced());
        if self.spiteful && self.slots.iter().any(behind) {
            40
        } else {
            4
        }
    }

    fn start_calmly(&mut self) -> Outcome {
        let faults = std::mem::take(&mut self.plan.faults);
        let done = self.converge();
        self.plan.faults = faults;
        done
    }

    pub(super) fn now(&self) -> Now {
        Now {
            wall: 1_000_000 + self.time.as_secs() as u32,
            mono: self.time,
        }
    }

    pub(super) fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:9.3} {}", self.time.as_secs_f64(), text()));
        }
    }

    // --- one step -----------------------------------------------------------------------------

    pub(super) fn step(&mut self) {
        self.time += Duration::from_millis(self.rng.below(6) as u64);
        self.clocks();
        let ready: Vec<usize> = (0..self.slots.len())
            .filter(|n| self.time >= self.slots[*n].stalled_until)
            .collect();
        if !ready.iter().any(|node| self.has_work(*node)) {
            self.time += Duration::from_millis(50);
        }
        let Some(node) = self.rng.pick(&ready) else {
            return;
        };
        let busy = self.cpg.waiting(node) > 0;
        let slot = &self.slots[node];
        let sending = slot.process.as_ref().is_some_and(Process::sending);
        let storing = matches!(&slot.process, Some(Process::Ours(ours)) if ours.storing());
        match self.rng.below(8) {
            0..4 if busy => self.input(node),
            4..6 if sending => self.send(node),
            6 if storing => self.store(node),
            7 if storing && !self.slow_store => self.store(node),
            7 => self.time += Duration::from_millis(self.rng.below(20) as u64),
            _ => {}
        }
    }

    fn has_work(&self, node: usize) -> bool {
        let sending = self.slots[node]
            .process
            .as_ref()
            .is_some_and(Process::sending);
        let storing = matches!(&self.slots[node].process, Some(Process::Ours(p)) if p.storing());
        self.cpg.waiting(node) > 0 || (sending && !self.cpg.blind(node)) || storing
    }

    /// Everything that comes with time.
    pub(super) fn clocks(&mut self) {
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.later)
            .into_iter()
            .partition(|(at, _)| self.time >= *at);
        self.later = later;
        for (_, what) in due {
            self.note(|| format!("{what:?}"));
            self.happen(what);
        }
        for node in 0..self.slots.len() {
            if self.slots[node]
                .corosync_at
                .is_some_and(|at| self.time >= at)
            {
                self.slots[node].corosync_at = None;
                self.note(|| format!("{node}: corosync starts"));
                self.cpg.start(node, 0, &mut self.rng);
            }
            if self.slots[node]
                .restart_at
                .is_some_and(|at| self.time >= at)
            {
                self.slots[node].restart_at = None;
                self.start_process(node);
            }
            let slot = &mut self.slots[node];
            if self.time >= slot.next_tick && self.time >= slot.stalled_until {
                slot.next_tick = self.time + Duration::from_millis(500);
                self.with(node, |process, _, now, out| process.tick(now, out));
            }
            // An operator restarts what is broken for good.
            let broken = self.slots[node]
                .process
                .as_ref()
                .is_some_and(Process::broken);
            if broken && self.slots[node].restart_at.is_none() {
                self.kill(node);
            }
        }
    }

    fn start_process(&mut self, node: usize) {
        let now = self.now();
        let quorate = self.cpg.quorate(node);
        while let Some(input) = self.cpg.next(node) {
            // Of a process that is gone; the state of the quorum is asked for at start.
            drop(input);
        }
        let slot = &mut self.slots[node];
        slot.pid += 1;
        slot.fresh = true;
        let tree = slot.disk.load(now.wall);
        slot.print = (0, 0);
        slot.version = tree.root_row().version;
        slot.process = Some(if slot.c {
            Process::C(CModel::new(tree, quorate))
        } else {
            let base = slot.disk.base.filter(|base| is_local_since(&tree, *base));
            Process::Ours(Ours::new(tree, quorate, self.write_timeout, base))
        });
        self.note(|| format!("{node}: process starts"));
    }

    pub(super) fn kill(&mut self, node: usize) {
        self.note(|| format!("{node}: process dies"));
        let slot = &mut self.slots[node];
        slot.process = None;
        slot.fresh = true;
        slot.restart_at = Some(self.time + Duration::from_millis(self.rng.below(5000) as u64));
        self.cpg.leave(node, false, &mut self.rng);
        self.requests.retain(|_, request| request.node != node);
    }

    pub(super) fn with(
        &mut self,
        node: usize,
        call: impl FnOnce(&mut Process, &mut Disk, Now, &mut Vec<Effect>),
    ) {
        let now = self.now();
        let slot = &mut self.slots[node];
        let mut out = Vec::new();
        if let Some(process) = &mut slot.process {
            call(process, &mut slot.disk, now, &mut out);
        }
        self.effects
            .extend(out.into_iter().map(|effect| (node, effect)));
        self.take_log(node);
    }

    fn take_log(&mut self, node: usize) {
        if let Some(Process::Ours(ours)) = &mut self.slots[node].process {
            let lines = std::mem::take(&mut ours.log);
            for line in lines {
                self.note(|| format!("{node}:     {line}"));
            }
        }
    }

    pub(super) fn input(&mut self, node: usize) {
        let Some(input) = self.cpg.next(node) else {
            return;
        };
        if self.trace.is_some() {
            let text = describe(&input);
            let mode = self.slots[node]
                .process
                .as_ref()
                .map(Process::mode)
                .unwrap_or_default();
            self.note(|| format!("{node}: {mode} {text}"));
        }
        self.with(node, |process, disk, now, out| {
            process.input(now, &input, disk, out)
        });
        if self.cpg.waiting(node) == 0 || self.rng.chance(50) {
            self.with(node, |process, _, now, out| process.idle(now, out));
        }
    }

    pub(super) fn send(&mut self, node: usize) {
        if self.cpg.blind(node) {
            return;
        }
        let mut what = None;
        self.with(node, |process, _, now, out| what = process.send(now, out));
        match what {
            Some(Out::Message(bytes)) => self.cpg.order(node, &bytes),
            Some(Out::Round(number)) => self.cpg.round(node, number),
            None => {}
        }
    }

    fn store(&mut self, node: usize) {
        let limit = 1 + self.rng.below(6);
        let may_fail = self.failing_store && self.faults < self.plan.faults;
        let fails = may_fail && self.rng.chance(1);
        let lasts = Duration::from_millis(self.rng.below(60_000) as u64);
        if fails {
            self.note(|| format!("{node}: disk fails for {lasts:?}"));
        }
        self.with(node, |process, disk, now, out| {
            if let Process::Ours(ours) = process {
                if fails && !ours.disk_is_broken() {
                    ours.break_disk(now, now.mono + lasts, out);
                }
                ours.store(now, disk, limit, out);
            }
        });
    }
}
