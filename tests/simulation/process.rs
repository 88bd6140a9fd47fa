//! One process of the simulated cluster: ours, or a model of the C daemon.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use pmxcfs::dcdb;
use pmxcfs::dfsm::{Epoch, Event, MemberId, Now};
use pmxcfs::memdb::{Error, Op, Tree};

use super::cmodel::CModel;
use super::cpg::Input;
use super::disk::Disk;
use super::ours::{Ours, Out};

/// What a process wants from corosync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Join,
    Leave,
    Close,
}

#[derive(Debug)]
pub enum Effect {
    Wish(Wish),
    /// A rule was broken.
    Broken(&'static str),
    /// Result for a client; `None`: not known, or not done.
    Reply(u64, Result<(), Option<Error>>),
}

#[allow(clippy::large_enum_variant)]
pub enum Process {
    Ours(Ours),
    C(CModel),
}

impl Process {
    pub fn is_ours(&self) -> bool {
        matches!(self, Process::Ours(_))
    }

    pub fn connected(&mut self, now: Now, own: MemberId, out: &mut Vec<Effect>) {
        match self {
            Process::Ours(ours) => ours.connected(now, own, out),
            Process::C(c) => c.connected(own),
        }
    }

    pub fn connect_failed(&mut self, now: Now, out: &mut Vec<Effect>) {
        match self {
            Process::Ours(ours) => ours.handle(now, Event::Disconnected, out),
            Process::C(c) => c.lost(now, out),
        }
    }

    pub fn input(&mut self, now: Now, input: &Input, disk: &mut Disk, out: &mut Vec<Effect>) {
        match self {
            Process::Ours(ours) => {
                let event = match input {
                    Input::Quorum(quorate) => Event::App(dcdb::Event::Quorate(*quorate)),
                    Input::Confchg {
                        members, joined, ..
                    } => Event::Confchg { members, joined },
                    Input::Deliver { from, bytes, .. } => Event::Deliver { from: *from, bytes },
                    Input::Round(number) => Event::Round(*number),
                    Input::Lost => Event::Disconnected,
                };
                ours.handle(now, event, out);
            }
            Process::C(c) => {
                match input {
                    Input::Quorum(quorate) => c.quorate = *quorate,
                    Input::Confchg {
                        members, joined, ..
                    } => c.confchg(now, members, joined, disk, out),
                    Input::Deliver { from, bytes, .. } => c.deliver(now, *from, bytes, disk, out),
                    Input::Round(_) => {}
                    Input::Lost => c.lost(now, out),
                }
                c.after_dispatch(now, out);
            }
        }
    }

    pub fn submit(&mut self, now: Now, ticket: u64, op: Op, out: &mut Vec<Effect>) {
        match self {
            Process::Ours(ours) => {
                ours.handle(
                    now,
                    Event::Submit {
                        ticket: Some(ticket),
                        request: op,
                    },
                    out,
                );
            }
            Process::C(c) => c.submit(now, ticket, &op, out),
        }
    }

    pub fn tick(&mut self, now: Now, out: &mut Vec<Effect>) {
        match self {
            Process::Ours(ours) => ours.handle(now, Event::Tick, out),
            Process::C(c) => c.tick(now, out),
        }
    }

    pub fn verify(&mut self, now: Now, out: &mut Vec<Effect>) {
        match self {
            Process::Ours(ours) => ours.handle(now, Event::Verify, out),
            Process::C(c) => c.verify_timer(now),
        }
    }

    pub fn sending(&self) -> bool {
        match self {
            Process::Ours(ours) => ours.sending(),
            Process::C(c) => !c.outbox.is_empty(),
        }
    }

    /// All that has come was given to it.
    pub fn idle(&mut self, now: Now, out: &mut Vec<Effect>) {
        match self {
            Process::Ours(ours) => ours.handle(now, Event::Idle, out),
            Process::C(_) => {}
        }
    }

    pub fn send(&mut self, now: Now, out: &mut Vec<Effect>) -> Option<Out> {
        match self {
            Process::Ours(ours) => ours.send(now, out),
            Process::C(c) => c.outbox.pop_front().map(Out::Message),
        }
    }

    pub fn tree(&self) -> &Tree {
        match self {
            Process::Ours(ours) => ours.tree(),
            Process::C(c) => &c.tree,
        }
    }

    pub fn synced(&self) -> bool {
        match self {
            Process::Ours(ours) => ours.synced(),
            Process::C(c) => c.synced(),
        }
    }

    /// In mode SYNCED, and every member is.
    pub fn all_synced(&self) -> bool {
        match self {
            Process::Ours(ours) => {
                ours.synced() && ours.machine.members().all(|(_, synced)| synced)
            }
            Process::C(c) => c.synced() && c.members.iter().all(|m| m.synced),
        }
    }

    pub fn members(&self) -> usize {
        match self {
            Process::Ours(ours) => ours.machine.members().count(),
            Process::C(c) => c.members.len(),
        }
    }

    pub fn epoch(&self) -> Epoch {
        match self {
            Process::Ours(ours) => ours.machine.epoch(),
            Process::C(c) => c.epoch,
        }
    }

    /// Only a restart helps.
    pub fn broken(&self) -> bool {
        match self {
            Process::Ours(ours) => ours.broken(),
            Process::C(c) => c.broken(),
        }
    }

    pub fn mode(&self) -> String {
        match self {
            Process::Ours(ours) => format!("{:?}", ours.machine.mode()),
            Process::C(c) => format!("c{:?}", c.mode()),
        }
    }
}

/// A quick hash of everything the index covers, mtime of the root included.
pub fn fingerprint(tree: &Tree) -> u64 {
    let mut hash = DefaultHasher::new();
    let root = tree.root_row();
    (root.version, root.writer, root.mtime).hash(&mut hash);
    for (inode, entry) in tree.iter() {
        (
            inode,
            entry.parent,
            entry.version,
            entry.writer,
            entry.mtime,
        )
            .hash(&mut hash);
        entry.name.hash(&mut hash);
        entry.data().hash(&mut hash);
    }
    hash.finish()
}
