//! The simulated cluster: who does what next, what breaks, and what must hold all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pmxcfs::dcdb::wire::Message as Payload;
use pmxcfs::dfsm::wire::{Body, Message};
use pmxcfs::dfsm::{MemberId, Now};
use pmxcfs::memdb::{Error, Op, Tree};

use super::cmodel::CModel;
use super::cpg::{Cpg, Input};
use super::disk::Disk;
use super::ours::{LONGEST_WAIT, Ours};
use super::process::{Effect, Process, Wish, fingerprint};
use super::rng::Rng;

/// What a run is made of; shrunk when it fails.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    pub faults: usize,
    pub requests: usize,
}

/// What may break. Acknowledged changes can be demanded back only if not everything may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Processes die, stores fail; a majority always lives.
    Crashes,
    /// The network splits and heals; processes die only when all they did is on disk.
    Partitions,
}

/// Which nodes run the C daemon, and how its clients behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mix {
    Ours,
    /// Clients of old nodes are quiet while a synchronisation runs.
    Tame,
    /// They are not: old nodes may come to differ (a known defect) until a checksum round.
    Wild,
}

struct Slot {
    c: bool,
    process: Option<Process>,
    disk: Disk,
    pid: u32,
    next_tick: Duration,
    stalled_until: Duration,
    restart_at: Option<Duration>,
    corosync_at: Option<Duration>,
    /// Restarted (or thrown back) and not synchronised with a majority since.
    fresh: bool,
    print: (u64, u64),
    /// Version seen last.
    version: u64,
}

struct Request {
    node: usize,
    /// Unique file it is about, and whether it creates it.
    unique: Option<(usize, bool)>,
    since: Duration,
    stalled: bool,
    era: usize,
}

pub struct World {
    plan: Plan,
    rng: Rng,
    class: Class,
    mix: Mix,
    slow_store: bool,
    failing_store: bool,
    cpg: Cpg,
    slots: Vec<Slot>,
    time: Duration,
    split: bool,
    faults: usize,
    requests: BTreeMap<u64, Request>,
    tickets: u64,
    uniques: usize,
    /// Acknowledged: creation, content.
    created: BTreeSet<usize>,
    written: BTreeSet<usize>,
    refused: BTreeSet<usize>,
    /// Ended without a known result, so nothing is promised.
    at_risk: BTreeSet<Vec<u8>>,
    /// Sent by a node when its part of the network had no quorum.
    without_quorum: BTreeSet<(usize, Vec<u8>)>,
    acknowledged: usize,
    /// All nodes were synchronised with each other since their histories could part.
    formed: bool,
    /// Grows whenever they may part.
    era: usize,
    effects: Vec<(usize, Effect)>,
    pub trace: Option<Vec<String>>,
}

type Outcome = Result<(), String>;

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
        let (slow_store, failing_store) =
            (rng.chance(50), class == Class::Crashes && rng.chance(30));
        World {
            plan,
            rng,
            class,
            mix,
            slow_store,
            failing_store,
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
            without_quorum: BTreeSet::new(),
            acknowledged: 0,
            formed: false,
            era: 0,
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
            if submitted < self.plan.requests && self.rng.chance(3) {
                submitted += 1;
                self.request();
            } else if self.faults < self.plan.faults && self.rng.below(1000) < 4 {
                self.faults += 1;
                self.fault();
            } else {
                self.step();
            }
            self.settle()?;
        }
        self.finish()?;
        Ok(self.acknowledged)
    }

    fn start_calmly(&mut self) -> Outcome {
        let faults = std::mem::take(&mut self.plan.faults);
        let done = self.converge();
        self.plan.faults = faults;
        done
    }

    fn now(&self) -> Now {
        Now {
            wall: 1_000_000 + self.time.as_secs() as u32,
            mono: self.time,
        }
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:9.3} {}", self.time.as_secs_f64(), text()));
        }
    }

    // --- one step -----------------------------------------------------------------------------

    fn step(&mut self) {
        self.time += Duration::from_millis(self.rng.below(6) as u64);
        self.clocks();
        let ready: Vec<usize> = (0..self.slots.len())
            .filter(|n| self.time >= self.slots[*n].stalled_until)
            .collect();
        let Some(node) = self.rng.pick(&ready) else {
            self.time += Duration::from_millis(100);
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

    /// Everything that comes with time.
    fn clocks(&mut self) {
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
            Process::Ours(Ours::new(tree, quorate))
        });
        self.note(|| format!("{node}: process starts"));
    }

    fn kill(&mut self, node: usize) {
        self.note(|| format!("{node}: process dies"));
        let slot = &mut self.slots[node];
        slot.process = None;
        slot.fresh = true;
        slot.restart_at = Some(self.time + Duration::from_millis(self.rng.below(5000) as u64));
        self.cpg.leave(node, false, &mut self.rng);
        self.requests.retain(|_, request| request.node != node);
    }

    fn with(
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

    fn input(&mut self, node: usize) {
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
    }

    fn send(&mut self, node: usize) {
        let mut bytes = None;
        self.with(node, |process, _, now, out| bytes = process.send(now, out));
        if let Some(bytes) = bytes {
            let quorate = self.cpg.order(node, &bytes);
            if let Some(path) = path_of(&bytes) {
                // It may be sent again, with quorum.
                self.without_quorum.remove(&(node, path.clone()));
                if !quorate {
                    self.without_quorum.insert((node, path));
                }
            }
        }
    }

    fn store(&mut self, node: usize) {
        let limit = 1 + self.rng.below(6);
        let may_fail = self.failing_store && self.faults < self.plan.faults;
        let fails = may_fail && self.rng.chance(1) && self.may_lose(node);
        if fails {
            self.note(|| format!("{node}: store fails"));
            self.slots[node].fresh = true;
        }
        self.with(node, |process, disk, now, out| {
            if let Process::Ours(ours) = process {
                ours.store(now, disk, limit, fails, out);
            }
        });
    }

    // --- clients ------------------------------------------------------------------------------

    fn request(&mut self) {
        let node = self.rng.below(self.slots.len());
        let Some(process) = &self.slots[node].process else {
            return;
        };
        let ours = process.is_ours();
        if !ours && self.mix == Mix::Tame && !process.all_synced() {
            return;
        }
        let (op, unique) = self.operation(ours);
        self.tickets += 1;
        let ticket = self.tickets;
        let stalled = self.time < self.slots[node].stalled_until;
        self.requests.insert(
            ticket,
            Request {
                node,
                unique,
                since: self.time,
                stalled,
                era: self.era,
            },
        );
        self.note(|| format!("{node}: request {ticket} {op:?}"));
        self.with(node, |process, _, now, out| {
            process.submit(now, ticket, op, out)
        });
    }

    fn operation(&mut self, ours: bool) -> (Op, Option<(usize, bool)>) {
        let shared = |rng: &mut Rng| {
            let text = match rng.below(3) {
                0 => format!("d{}", rng.below(3)),
                _ => format!("d{}/f{}", rng.below(3), rng.below(3)),
            };
            pmxcfs::memdb::TreePath::new(text.as_bytes())
        };
        let rng = &mut self.rng;
        let op = match rng.below(12) {
            0..4 => {
                self.uniques += 1;
                return (
                    Op::Create {
                        path: unique(self.uniques),
                    },
                    Some((self.uniques, true)),
                );
            }
            4..6 => {
                let number = 1 + rng.below(self.uniques.max(1));
                let data = number.to_string().into_bytes();
                let op = Op::Write {
                    path: unique(number),
                    offset: 0,
                    data,
                    truncate: false,
                };
                return (op, Some((number, false)));
            }
            6 => Op::Mkdir { path: shared(rng) },
            7 => Op::Create { path: shared(rng) },
            8 => {
                let data = vec![b'x'; rng.below(20)];
                // An old node would be damaged by growing an empty file.
                let offset = if ours || !data.is_empty() {
                    rng.below(30) as u64
                } else {
                    0
                };
                Op::Write {
                    path: shared(rng),
                    offset,
                    data,
                    truncate: rng.chance(50),
                }
            }
            9 => Op::Delete { path: shared(rng) },
            10 => Op::Rename {
                from: shared(rng),
                to: shared(rng),
            },
            _ => Op::SetMtime {
                path: shared(rng),
                mtime: rng.below(2_000_000) as u32,
            },
        };
        (op, None)
    }

    // --- faults -------------------------------------------------------------------------------

    /// May this node lose what is in its memory now? A majority has to keep it.
    fn may_lose(&self, node: usize) -> bool {
        let slot = &self.slots[node];
        if self.class == Class::Partitions {
            let stored = match &slot.process {
                Some(Process::Ours(ours)) => !ours.storing(),
                _ => true,
            };
            return stored && self.cpg.waiting(node) == 0;
        }
        let solid = |n: &usize| *n != node && !self.slots[*n].fresh;
        (0..self.slots.len()).filter(solid).count() * 2 > self.slots.len()
    }

    fn fault(&mut self) {
        let node = self.rng.below(self.slots.len());
        let some_time = Duration::from_millis(self.rng.below(8000) as u64);
        match self.rng.below(10) {
            0..3 if self.class == Class::Partitions => self.split_or_heal(),
            0..5 => {
                if self.slots[node].process.is_some() && self.may_lose(node) {
                    self.kill(node);
                }
            }
            5..7 => {
                if self.cpg.running(node) && self.slots[node].corosync_at.is_none() {
                    self.note(|| format!("{node}: corosync dies"));
                    self.slots[node].corosync_at = Some(self.time + some_time);
                    self.cpg.stop(node, &mut self.rng);
                }
            }
            7..9 => {
                self.note(|| format!("{node}: stalls for {some_time:?}"));
                self.slots[node].stalled_until = self.time + some_time;
            }
            _ => {
                let long = Duration::from_secs(40);
                self.note(|| format!("{node}: stalls for {long:?}"));
                self.slots[node].stalled_until = self.time + long;
            }
        }
    }

    fn split_or_heal(&mut self) {
        let parts = if self.split && self.rng.chance(50) {
            1
        } else {
            2 + self.rng.below(2)
        };
        self.split = parts > 1;
        let components: Vec<usize> = self.slots.iter().map(|_| self.rng.below(parts)).collect();
        self.note(|| format!("network: {components:?}"));
        self.cpg.split(&components, &mut self.rng);
    }

    // --- after every step ---------------------------------------------------------------------

    fn settle(&mut self) -> Outcome {
        while !self.effects.is_empty() {
            for (node, effect) in std::mem::take(&mut self.effects) {
                match effect {
                    Effect::Reply(ticket, result) => self.reply(ticket, result)?,
                    Effect::Wish(wish) => self.wish(node, wish),
                }
            }
        }
        for bytes in std::mem::take(&mut self.cpg.dropped) {
            if let Some(path) = path_of(&bytes) {
                self.at_risk.insert(path);
            }
            // Two histories with equal versions may meet now: a limit of the protocol.
            self.formed = false;
            self.era += 1;
        }
        self.check_equal()?;
        self.check_waits()
    }

    fn wish(&mut self, node: usize, wish: Wish) {
        let id = MemberId {
            nodeid: node as u32 + 1,
            pid: self.slots[node].pid,
        };
        self.note(|| format!("{node}: {wish:?}"));
        match wish {
            Wish::Leave => self.cpg.leave(node, true, &mut self.rng),
            Wish::Close => self.cpg.leave(node, false, &mut self.rng),
            Wish::Join if self.cpg.running(node) => {
                self.cpg.leave(node, false, &mut self.rng);
                self.with(node, |process, _, now, out| process.connected(now, id, out));
                self.cpg.join(node, id, &mut self.rng);
            }
            Wish::Join => self.with(node, |process, _, now, out| {
                process.connect_failed(now, out)
            }),
        }
    }

    fn reply(&mut self, ticket: u64, result: Result<(), Option<Error>>) -> Outcome {
        let Some(request) = self.requests.remove(&ticket) else {
            return Err(format!(
                "request {ticket} was answered twice, or after its process died"
            ));
        };
        self.note(|| format!("{}: reply {ticket} {result:?}", request.node));
        // Quorum counts nodes, not processes: what a few of them do before the others are there
        // may meet a newer database later.
        let total = self.slots.len();
        let process = self.slots[request.node].process.as_ref();
        let safe = self.formed && request.era == self.era;
        let counts = safe && process.is_some_and(|p| p.is_ours() && p.members() * 2 > total);
        match (result, request.unique) {
            (Ok(()), Some((number, true)))
                if self
                    .without_quorum
                    .contains(&(request.node, unique(number).as_bytes().to_vec())) =>
            {
                return Err(format!("u{number} was acknowledged without quorum"));
            }
            (Ok(()), unique) => {
                self.acknowledged += 1;
                match unique {
                    Some((number, true)) if counts => drop(self.created.insert(number)),
                    Some((number, false)) if counts => drop(self.written.insert(number)),
                    _ => {}
                }
            }
            (Err(Some(Error::Access)), Some((number, true))) => {
                self.refused.insert(number);
            }
            _ => {}
        }
        Ok(())
    }

    /// Synchronised members of one epoch at one version have one database.
    fn check_equal(&mut self) -> Outcome {
        let majority = self.slots.len() / 2;
        let all = self.slots.len();
        let whole = |p: &Process| p.all_synced() && p.members() == all;
        let quiet = (0..all).all(|node| self.cpg.waiting(node) == 0);
        self.formed |= quiet
            && self
                .slots
                .iter()
                .all(|s| s.process.as_ref().is_some_and(whole));
        let mut seen: Vec<(usize, u64, u64)> = Vec::new();
        for node in 0..self.slots.len() {
            let slot = &mut self.slots[node];
            let Some(process) = slot.process.as_ref().filter(|p| p.synced()) else {
                slot.print = (0, 0);
                continue;
            };
            if slot.fresh && process.members() > majority && process.all_synced() {
                slot.fresh = false;
            }
            if self.mix == Mix::Wild && slot.c {
                continue;
            }
            let version = process.tree().root_row().version;
            if slot.print.0 != version {
                if slot.version != version && process.members() <= majority {
                    // Quorum counts nodes: a node whose peers are up but do not run the service
                    // may write, and its history is as long as any. A limit of the protocol.
                    self.formed = false;
                    self.era += 1;
                    self.created.clear();
                    self.written.clear();
                }
                slot.print = (version, fingerprint(process.tree()));
                slot.version = version;
            }
            let print = slot.print.1;
            for (other, v, p) in &seen {
                let epoch = self.slots[*other].process.as_ref().map(Process::epoch);
                // Cut off from each other they may have got different last messages.
                let same = epoch == self.slots[node].process.as_ref().map(Process::epoch)
                    && self.cpg.next_view(*other) == self.cpg.next_view(node);
                if same && *v == version && *p != print {
                    return Err(format!(
                        "nodes {other} and {node} differ at version {version}"
                    ));
                }
            }
            seen.push((node, version, print));
        }
        Ok(())
    }

    /// No client of ours waits longer than the bound.
    fn check_waits(&mut self) -> Outcome {
        for (ticket, request) in &self.requests {
            let slot = &self.slots[request.node];
            // A stopped process answers nobody; a slow store is bounded by itself.
            let excused = slot.c || request.stalled || self.time < slot.stalled_until;
            let storing = matches!(&slot.process, Some(Process::Ours(ours)) if ours.storing());
            let limit = LONGEST_WAIT + Duration::from_secs(if self.faults > 0 { 40 } else { 0 });
            if !excused && !storing && self.time > request.since + limit {
                return Err(format!(
                    "request {ticket} still waits on node {}",
                    request.node
                ));
            }
        }
        Ok(())
    }

    // --- the end ------------------------------------------------------------------------------

    /// Faults stop: everybody has to be synchronised again soon, and nothing may be lost.
    fn finish(&mut self) -> Outcome {
        self.note(|| "no more faults".to_owned());
        self.plan.faults = self.faults;
        self.failing_store = false;
        for slot in &mut self.slots {
            slot.stalled_until = Duration::ZERO;
            let soon = |at: Option<Duration>| at.map(|_| Duration::ZERO);
            (slot.restart_at, slot.corosync_at) = (soon(slot.restart_at), soon(slot.corosync_at));
        }
        self.split = false;
        self.clocks();
        let healed = vec![0; self.slots.len()];
        self.cpg.split(&healed, &mut self.rng);
        self.settle()?;
        self.converge()?;
        if self.mix == Mix::Wild {
            // Old nodes may differ from each other: the next checksum rounds repair that.
            for _ in 0..2 {
                for node in 0..self.slots.len() {
                    self.with(node, |process, _, now, out| process.verify(now, out));
                }
                self.converge()?;
            }
        }
        self.check_final()
    }

    fn converge(&mut self) -> Outcome {
        let end = self.time + Duration::from_secs(90);
        let mut quiet = 0;
        while quiet < 30 {
            self.step();
            self.settle()?;
            quiet = if self.busy() { 0 } else { quiet + 1 };
            if self.time > end {
                let modes: Vec<String> = self
                    .slots
                    .iter()
                    .map(|s| {
                        s.process
                            .as_ref()
                            .map_or_else(|| "down".to_owned(), Process::mode)
                    })
                    .collect();
                return Err(format!(
                    "not synchronised 90 s after the last fault: {modes:?}"
                ));
            }
        }
        Ok(())
    }

    fn busy(&self) -> bool {
        let members = self.slots.len();
        (0..self.slots.len()).any(|node| {
            let process = self.slots[node].process.as_ref();
            self.cpg.waiting(node) > 0
                || process.is_none_or(|p| !p.all_synced() || p.sending() || p.members() != members)
                || matches!(process, Some(Process::Ours(ours)) if ours.storing())
        })
    }

    fn check_final(&self) -> Outcome {
        let trees: Vec<&Tree> = self
            .slots
            .iter()
            .filter_map(|s| s.process.as_ref())
            .map(Process::tree)
            .collect();
        let index = trees[0].encode_index();
        if let Some(node) = trees.iter().position(|tree| tree.encode_index() != index) {
            return Err(format!("nodes 0 and {node} differ in the end"));
        }
        for slot in &self.slots {
            if slot.disk.load(0).encode_index() != index {
                return Err("a disk differs from memory in the end".to_owned());
            }
        }
        let waiting = self.requests.values().find(|r| !self.slots[r.node].c);
        if let Some(request) = waiting {
            return Err(format!(
                "a request on node {} was never answered",
                request.node
            ));
        }
        for number in &self.created {
            let path = unique(*number);
            let Some(content) = trees[0].read(&path) else {
                if self.at_risk.contains(path.as_bytes()) {
                    continue;
                }
                return Err(format!("acknowledged file {path} is lost"));
            };
            let written = self.written.contains(number) && !self.at_risk.contains(path.as_bytes());
            if written && **content != *number.to_string().as_bytes() {
                return Err(format!("acknowledged content of {path} is lost"));
            }
        }
        match self
            .refused
            .iter()
            .find(|number| trees[0].lookup(&unique(**number)).is_some())
        {
            Some(number) => Err(format!("refused file u{number} exists")),
            None => Ok(()),
        }
    }
}

fn unique(number: usize) -> pmxcfs::memdb::TreePath {
    pmxcfs::memdb::TreePath::new(format!("u{number}").as_bytes())
}

/// A database with some content.
fn first_disk(rng: &mut Rng) -> Disk {
    let mut tree = Disk::new().load(0);
    for number in 0..rng.below(12) {
        let path = pmxcfs::memdb::TreePath::new(format!("old{number}").as_bytes());
        let stamp = pmxcfs::memdb::Stamp {
            writer: 1,
            mtime: 1000 + number as u32,
        };
        let data = vec![b'o'; rng.below(60)];
        let made = tree.apply(&Op::Create { path: path.clone() }, stamp, 0);
        let written = tree.apply(
            &Op::Write {
                path,
                offset: 0,
                data,
                truncate: false,
            },
            stamp,
            0,
        );
        assert!(made.is_ok() && written.is_ok());
    }
    Disk::of(&tree)
}

/// Path of the file a message is about.
fn path_of(bytes: &[u8]) -> Option<Vec<u8>> {
    let message = Message::parse(bytes).ok()?;
    let Body::Normal { payload, .. } = message.body else {
        return None;
    };
    match Payload::parse(message.base.subtype, payload).ok()? {
        Payload::Op(Op::Create { path } | Op::Write { path, .. }) => Some(path.as_bytes().to_vec()),
        _ => None,
    }
}

fn describe(input: &Input) -> String {
    match input {
        Input::Quorum(quorate) => format!("quorum {quorate}"),
        Input::Lost => "corosync lost".to_owned(),
        Input::Confchg {
            members, joined, ..
        } => {
            let list = |ids: &[MemberId]| ids.iter().map(|m| m.to_string()).collect::<Vec<_>>();
            format!("members {:?} joined {:?}", list(members), list(joined))
        }
        Input::Deliver { from, bytes, seq } => match Message::parse(bytes) {
            Ok(Message {
                base,
                body: Body::Normal { count, payload },
            }) => {
                let what = Payload::parse(base.subtype, payload);
                format!("[{seq}] {from} #{count} {what:?}")
            }
            Ok(Message {
                base,
                body: Body::State { epoch, .. },
            }) => {
                format!("[{seq}] {from} {:?} of {epoch}", base.kind)
            }
            Err(error) => format!("[{seq}] {from} {error}"),
        },
    }
}
