//! What clients ask for, and what breaks.

use std::time::Duration;

use pmxcfs::dcdb::is_local_since;
use pmxcfs::memdb::{Op, TreePath};

use super::disk::Disk;
use super::ours::Out;
use super::process::Process;
use super::rng::Rng;
use super::text::unique;
use super::world::{Class, Later, Mix, Request, World};

impl World {
    pub(super) fn request(&mut self) {
        let node = self.rng.below(self.slots.len());
        self.request_on(node);
    }

    /// There is somebody to ask, and clients of old nodes are quiet when they should be.
    fn may_ask(&self, node: usize) -> bool {
        let process = self.slots[node].process.as_ref();
        process.is_some_and(|p| p.is_ours() || self.mix != Mix::Tame || p.all_synced())
    }

    fn request_on(&mut self, node: usize) {
        if !self.may_ask(node) {
            return;
        }
        let ours = !self.slots[node].c;
        let (op, unique) = self.operation(ours);
        self.ask(node, op, unique);
    }

    fn ask(&mut self, node: usize, op: Op, unique: Option<(usize, bool)>) {
        self.tickets += 1;
        let ticket = self.tickets;
        // A stopped process answers nobody.
        let since = self.time.max(self.slots[node].stalled_until);
        self.requests.insert(
            ticket,
            Request {
                node,
                unique,
                since,
                era: self.era,
            },
        );
        self.note(|| format!("{node}: request {ticket} {op:?}"));
        self.with(node, |process, _, now, out| {
            process.submit(now, ticket, op, out)
        });
    }

    fn unique_file(&mut self) -> (Op, Option<(usize, bool)>) {
        self.uniques += 1;
        let path = unique(self.uniques);
        (Op::Create { path }, Some((self.uniques, true)))
    }

    fn operation(&mut self, ours: bool) -> (Op, Option<(usize, bool)>) {
        let shared = |rng: &mut Rng| {
            let text = match rng.below(3) {
                0 => format!("d{}", rng.below(3)),
                _ => format!("d{}/f{}", rng.below(3), rng.below(3)),
            };
            TreePath::new(text.as_bytes())
        };
        let rng = &mut self.rng;
        let op = match rng.below(12) {
            0..4 => return self.unique_file(),
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

    /// May this node lose what is in its memory now? A majority has to keep it.
    pub(super) fn may_lose(&self, node: usize) -> bool {
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

    pub(super) fn fault(&mut self) {
        let node = self.rng.below(self.slots.len());
        let some_time = Duration::from_millis(self.rng.below(8000) as u64);
        match self.rng.below(10) {
            0..2 if self.class == Class::Partitions => self.cut_while_sending(node),
            2..4 if self.class == Class::Partitions => self.split_or_heal(),
            4 if self.rng.chance(50) => self.local_mode(node),
            0..5 => {
                if self.slots[node].process.is_some() && self.may_lose(node) {
                    self.kill(node);
                }
            }
            5..7 => {
                // What it had not handed on is lost, too.
                let up = self.cpg.running(node) && self.slots[node].corosync_at.is_none();
                if up && self.may_lose(node) {
                    self.slots[node].fresh = true;
                    self.note(|| format!("{node}: corosync dies"));
                    self.slots[node].corosync_at = Some(self.time + some_time);
                    self.cpg.stop(node, &mut self.rng);
                }
            }
            7..9 => {
                self.stall(node, some_time);
            }
            _ => {
                let ghost = Duration::from_secs(40);
                self.ghost_until = self.time + ghost;
                self.stall(node, ghost);
            }
        }
    }

    /// A process of ours ends, and somebody changes its database in local mode: more than the others may
    /// change until it is back.
    fn local_mode(&mut self, node: usize) {
        let slot = &self.slots[node];
        if slot.c || slot.process.is_none() || !self.may_lose(node) {
            return;
        }
        let mut tree = slot.disk.load(0);
        let root = tree.root_row();
        // (Numbers as a mishap with SQL leaves them say nothing about who made what.)
        if tree.iter().any(|(_, entry)| entry.version > root.version) {
            return;
        }
        self.kill(node);
        let base = self.slots[node].disk.base;
        let base = base.filter(|base| is_local_since(&tree, *base));
        let now = 1_000_000 + self.time.as_secs() as u32;
        let changes = 1 + self.rng.below(20);
        for change in 0..changes {
            let file = 1 + self.rng.below(self.uniques.max(1));
            let op = if self.rng.chance(30) {
                // If nobody changes anything meanwhile, that counts.
                self.at_risk.insert(unique(file).as_bytes().to_vec());
                Op::Delete { path: unique(file) }
            } else {
                let name = format!("local{}-{change}", self.time.as_millis());
                let path = TreePath::new(name.as_bytes());
                Op::Create { path }
            };
            // A file that is not there is not there afterwards either.
            drop(tree.apply_local(&op, now, now));
        }
        let mut disk = Disk::of(&tree);
        disk.base = Some(base.unwrap_or(root));
        self.note(|| {
            format!(
                "{node}: {changes} changes in local mode, since {:?}",
                disk.base
            )
        });
        self.slots[node].disk = disk;
    }

    fn stall(&mut self, node: usize, length: Duration) {
        self.note(|| format!("{node}: stalls for {length:?}"));
        let until = self.time + length;
        self.slots[node].stalled_until = until;
        for request in self.requests.values_mut().filter(|r| r.node == node) {
            request.since = request.since.max(until);
        }
    }

    /// A node loses the others while they have not seen yet what it sends: more changes than they may
    /// make until it is back. Corosync notices at once, or so late that callers are refused before;
    /// and what the node sends may be lost some time before that.
    fn cut_while_sending(&mut self, node: usize) {
        for _ in 0..8 {
            self.request_on(node);
        }
        // One after the other.
        if (0..self.slots.len()).any(|n| self.cpg.blind(n)) {
            return;
        }
        let (late, mute) = (self.rng.chance(60), self.rng.chance(50));
        if late && mute {
            // As much as one visit of the token takes.
            for _ in 0..self.rng.below(9) {
                self.send_alone(node);
            }
        } else {
            for _ in 0..16 {
                self.send(node);
                self.input(node);
            }
        }
        self.split = true;
        if !late {
            return self.network((0..self.slots.len()).map(|n| (n == node).into()).collect());
        }
        self.note(|| format!("cut off, unnoticed: {node}"));
        let longest = self.write_timeout.as_millis() as usize * 2;
        let mut last = self.time;
        for component in self.cpg.cut(node, &mut self.rng).into_iter().flatten() {
            let at = self.time + Duration::from_millis(self.rng.below(longest) as u64);
            self.later.push((at, Later::Notice(component)));
            last = last.max(at);
        }
        if self.rng.chance(70) {
            // The others make one change until it is back.
            let other = (node + 1) % self.slots.len();
            let second = Duration::from_secs(1);
            self.later.push((last + second, Later::Create(other)));
            self.later.push((last + 3 * second, Later::Heal));
            self.quiet_until = last + 5 * second;
        }
    }

    pub(super) fn happen(&mut self, what: Later) {
        match what {
            Later::Notice(component) => self.cpg.notice(component, &mut self.rng),
            Later::Create(node) if self.may_ask(node) => {
                let (op, unique) = self.unique_file();
                self.ask(node, op, unique);
            }
            Later::Create(_) => {}
            Later::Heal => {
                self.split = false;
                self.network(vec![0; self.slots.len()]);
            }
        }
    }

    /// What it sends reaches nobody else any more.
    fn send_alone(&mut self, node: usize) {
        let mut what = None;
        self.with(node, |process, _, now, out| what = process.send(now, out));
        if let Some(Out::Message(bytes)) = what {
            self.cpg.order_alone(node, &bytes);
        }
    }

    fn split_or_heal(&mut self) {
        let parts = if self.split && self.rng.chance(50) {
            1
        } else {
            2 + self.rng.below(2)
        };
        self.split = parts > 1;
        let components = self.slots.iter().map(|_| self.rng.below(parts)).collect();
        self.network(components);
    }

    /// Component of each node.
    fn network(&mut self, components: Vec<usize>) {
        self.note(|| format!("network: {components:?}"));
        self.later.clear();
        self.cpg.split(&components, &mut self.rng);
    }
}
