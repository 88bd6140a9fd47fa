//! What must hold after every step, and in the end.

use std::time::Duration;

use pmxcfs::memdb::{Tree, TreePath};

use super::ours::WAIT_SLACK;
use super::process::{Process, fingerprint};
use super::text::unique;
use super::world::{Mix, Outcome, World};

impl World {
    /// Synchronised members of one epoch at one version have one database.
    pub(super) fn check_equal(&mut self) -> Outcome {
        let majority = self.slots.len() / 2;
        let all = self.slots.len();
        let whole = |p: &Process| p.all_synced() && p.members() == all;
        let quiet = (0..all).all(|node| self.cpg.up_to_date(node));
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
            let solid = self.cpg.up_to_date(node) && process.members() > majority;
            if slot.fresh && solid && process.all_synced() {
                slot.fresh = false;
            }
            if matches!(process, Process::Ours(ours) if ours.disk_is_broken()) {
                return Err(format!("node {node} is synced with a broken disk"));
            }
            let version = process.tree().root_row().version;
            if slot.print.0 != version {
                // (A lower one: it took back what nobody was told of.)
                let lonely = slot.version < version && process.members() <= majority;
                slot.print = (version, fingerprint(process.tree()));
                slot.version = version;
                if lonely {
                    // Quorum counts nodes: a node whose peers are up but do not run the service
                    // may write, and its history is as long as any. A limit of the protocol.
                    self.part();
                    self.created.clear();
                    self.written.clear();
                }
            }
            if self.mix == Mix::Wild && self.slots[node].c {
                continue;
            }
            let print = self.slots[node].print.1;
            for (other, v, p) in &seen {
                let epoch = self.slots[*other].process.as_ref().map(Process::epoch);
                // Cut off from each other they may have got different last messages.
                let same = epoch == self.slots[node].process.as_ref().map(Process::epoch)
                    && self.cpg.next_views(*other) == self.cpg.next_views(node);
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

    /// A node that has lost the majority never told a client of a file that the majority does not get.
    /// (Each is made by one request, but may be written by several with the same content.)
    pub(super) fn check_dropped(&self, path: &TreePath) -> Outcome {
        match self.created.iter().find(|number| unique(**number) == *path) {
            Some(number) => Err(format!(
                "u{number} was acknowledged, but never reached the others"
            )),
            None => Ok(()),
        }
    }

    /// A node that took back what the others lack is as good as any, once its disk knows, too. If it
    /// dies before, it has them still.
    pub(super) fn check_owing(&mut self) {
        for node in std::mem::take(&mut self.owing) {
            match &self.slots[node].process {
                Some(Process::Ours(ours)) => {
                    if self.cpg.waiting(node) > 0 || self.cpg.blind(node) || ours.storing() {
                        self.owing.insert(node);
                    }
                }
                _ => self.part(),
            }
        }
    }

    /// No client of ours waits longer than the bound.
    pub(super) fn check_waits(&mut self) -> Outcome {
        for (ticket, request) in &self.requests {
            let slot = &self.slots[request.node];
            // Old nodes have no bound; a slow store is bounded by itself.
            let storing = matches!(&slot.process, Some(Process::Ours(ours)) if ours.answering());
            if !slot.c && !storing && self.time > request.since + self.write_timeout + WAIT_SLACK {
                return Err(format!(
                    "request {ticket} still waits on node {}",
                    request.node
                ));
            }
        }
        Ok(())
    }

    /// Faults stop: everybody has to be synchronised again soon, and nothing may be lost.
    pub(super) fn finish(&mut self) -> Outcome {
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

    pub(super) fn converge(&mut self) -> Outcome {
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
