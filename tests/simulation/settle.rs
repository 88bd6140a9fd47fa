//! What processes ask for and answer, after every step.

use pmxcfs::dfsm::MemberId;
use pmxcfs::memdb::Error;

use super::process::{Effect, Wish};
use super::text::file_of;
use super::world::{Mix, Outcome, World};

impl World {
    pub(super) fn settle(&mut self) -> Outcome {
        while !self.effects.is_empty() {
            for (node, effect) in std::mem::take(&mut self.effects) {
                match effect {
                    Effect::Reply(ticket, result) => self.reply(ticket, result)?,
                    Effect::Wish(wish) => self.wish(node, wish),
                    Effect::Broken(text) => return Err(format!("node {node}: {text}")),
                }
            }
        }
        for dropped in std::mem::take(&mut self.cpg.dropped) {
            if let Some((path, creates)) = file_of(&dropped.bytes) {
                if creates && dropped.quorate {
                    self.check_dropped(&path)?;
                }
                self.at_risk.insert(path.as_bytes().to_vec());
            }
            if dropped.alone && self.mix == Mix::Ours {
                self.owing.insert(dropped.sender);
            } else {
                self.part();
            }
        }
        self.check_owing();
        self.check_equal()?;
        self.check_waits()
    }

    /// Two histories with equal versions may meet from now on: a limit of the protocol.
    pub(super) fn part(&mut self) {
        self.formed = false;
        self.era += 1;
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
}
