//! The node status as an application of [`dfsm`](crate::dfsm), group `pve_kvstore_v1` (spec:
//! `docs/protocol/cluster-sync.md` 3 and 4).
//!
//! A local change is made in [`Status`] first and then submitted here, without a ticket: nobody
//! waits for it. What cannot be sent is dropped after a while; the next synchronisation brings all
//! values and the whole log again.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::dfsm::{
    Application, Consequence, Ctx, Delivery, Level, MemberId, Outgoing, Plan, Verdict,
};
use crate::status::{SetError, Status};

#[cfg(test)]
mod tests;
pub mod wire;

/// Key of a node's address.
const NODE_IP: &[u8] = b"nodeip";

/// A change of this node that the others have to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A value was set; empty: removed.
    Update { key: Vec<u8>, value: Vec<u8> },
    /// An entry was added to the cluster log: the bytes [`Status::log`] gave.
    Log(Vec<u8>),
}

impl Request {
    /// Round-robin data: the next value is here in ten seconds anyway.
    pub fn is_fleeting(&self) -> bool {
        matches!(self, Request::Update { key, .. } if key.starts_with(b"rrd/"))
    }
}

/// Nothing: round-robin data are handed on by [`Status`], to a thread of their own.
pub type Action = std::convert::Infallible;

/// The node status, replicated.
#[derive(Debug)]
pub struct Kvstore {
    status: Arc<Status>,
    /// Address the node's name resolved to at start, with its NUL.
    address: Vec<u8>,
}

impl Kvstore {
    /// Replicates `status`. `address` is announced as `nodeip` unless a client sets another one; it
    /// is text without NUL, and nothing is announced if it is empty.
    pub fn new(status: Arc<Status>, address: &str) -> Self {
        let mut address = address.as_bytes().to_vec();
        if !address.is_empty() {
            address.push(0);
        }
        Kvstore { status, address }
    }

    /// Nothing of what another node sends is believed, and nothing of it fills the log.
    fn update(&mut self, from: MemberId, payload: &[u8], ctx: &mut Ctx<Action>) {
        let complain = |text| self.status.complain(text);
        let Some((key, value)) = wire::parse_update(payload) else {
            return complain(format_args!("cant parse update message from {from}"));
        };
        match self.status.remote_update(from.nodeid, key, value, ctx.now) {
            Ok(()) => {}
            Err(SetError::UnknownNode) => {
                ctx.log(
                    Level::Debug,
                    format!("ignore update of unknown node {from}"),
                );
            }
            Err(error) => {
                let key = key.escape_ascii();
                complain(format_args!("update of '{key}' from {from}: {error}"));
            }
        }
    }
}

impl Application for Kvstore {
    const NAME: &'static str = "status";
    const PROTOCOL: u32 = 0;

    type Request = Request;
    type Reply = ();
    type Action = Action;
    type Event = ();

    fn admit(&self, _request: &Request) -> Result<(), ()> {
        Ok(())
    }

    fn node_name(&self, nodeid: u32) -> Option<String> {
        self.status.node_name(nodeid)
    }

    fn may_acknowledge(&self) -> bool {
        true
    }
    fn has_changed(_: &()) -> bool {
        true
    }

    fn prepare(&mut self, request: Request, _ctx: &mut Ctx<Action>) -> Result<Vec<Outgoing>, ()> {
        Ok(vec![match request {
            Request::Update { key, value } => wire::encode_update(&key, &value),
            Request::Log(entry) => Outgoing {
                subtype: wire::LOG,
                payload: entry,
            },
        }])
    }

    fn deliver(&mut self, delivery: Delivery<'_>, ctx: &mut Ctx<Action>) -> Verdict<()> {
        let Delivery {
            from,
            subtype,
            payload,
            ..
        } = delivery;
        // Own changes were made before they were sent.
        if from != ctx.own {
            match subtype {
                wire::UPDATE => self.update(from, payload, ctx),
                wire::LOG => {
                    if let Err(error) = self.status.log_receive(payload) {
                        let status = &self.status;
                        status.complain(format_args!("cluster log entry from {from}: {error}"));
                    }
                }
                other => {
                    let status = &self.status;
                    status.complain(format_args!("unknown message type {other} from {from}"));
                }
            }
        }
        Verdict::Applied(())
    }

    fn confchg(&mut self, members: &[MemberId], _ctx: &mut Ctx<Action>) {
        let nodes: Vec<u32> = members.iter().map(|m| m.nodeid).collect();
        self.status.set_online(&nodes);
    }

    fn state(&mut self, _ctx: &mut Ctx<Action>) -> Option<Vec<u8>> {
        Some(self.status.log_state())
    }

    fn process_states(
        &mut self,
        states: &[(MemberId, Box<[u8]>)],
        ctx: &mut Ctx<Action>,
    ) -> Option<Plan> {
        // The own log is taken as it is now: it may have grown since.
        let others: Vec<&(MemberId, Box<[u8]>)> = states
            .iter()
            .filter(|(member, _)| *member != ctx.own)
            .collect();
        let rings: Vec<&[u8]> = others.iter().map(|(_, state)| &**state).collect();
        for (i, error) in self.status.log_merge(&rings) {
            let text = format!("received bad cluster log from {}: {error}", others[i].0);
            ctx.log(Level::Critical, text);
        }
        for (key, value) in self.status.own_kv() {
            let Outgoing { subtype, payload } = wire::encode_update(&key, &value);
            ctx.send(subtype, payload);
        }
        Some(Plan {
            leader: None,
            synced: vec![true; states.len()],
        })
    }

    fn next_update(&mut self) -> Option<Vec<u8>> {
        None
    }

    fn process_update(&mut self, _payload: &[u8], ctx: &mut Ctx<Action>) -> bool {
        ctx.log(Level::Critical, "received unexpected update");
        false
    }

    fn commit(&mut self, _ctx: &mut Ctx<Action>) -> bool {
        true
    }

    fn forget_sync(&mut self) {}

    fn synced(&mut self, ctx: &mut Ctx<Action>) {
        let set = self.status.node_ip(self.status.node()).map(|ip| {
            let mut ip = ip.into_vec();
            if ip.last() != Some(&0) {
                ip.push(0);
            }
            ip
        });
        let value = set.unwrap_or_else(|| self.address.clone());
        if value.is_empty() {
            return;
        }
        // An address that is none is told about there.
        let _ = self.status.set_kv(NODE_IP, &value, ctx.now);
        let Outgoing { subtype, payload } = wire::encode_update(NODE_IP, &value);
        ctx.send(subtype, payload);
    }

    fn checksum(&mut self) -> Option<[u8; 32]> {
        None
    }

    fn event(&mut self, _event: (), _ctx: &mut Ctx<Action>) -> Consequence {
        Consequence::None
    }
}
