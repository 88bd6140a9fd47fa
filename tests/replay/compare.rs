//! Comparing messages, modulo what the protocol leaves free.

use pmxcfs::dfsm::wire::{Body, Message, Type};
use pmxcfs::status::clusterlog;

use super::transcript::Group;

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Meaning {
    /// Every byte counts.
    Bytes(Vec<u8>),
    /// An UPDATE of the database: its place among the others is free.
    Update(Vec<u8>),
    /// A status value: key, value. Place and count are free.
    Value(Vec<u8>, Vec<u8>),
    /// A cluster log: its entries.
    Log(Vec<u8>, Vec<Vec<u8>>),
}

/// What `bytes` say; the time in the base header is compared apart.
pub fn meaning(group: Group, bytes: &[u8]) -> Meaning {
    let mut untimed = bytes.to_vec();
    untimed[8..12].fill(0);
    let message = Message::parse(bytes).unwrap();
    match (group, message.base.kind, message.body) {
        (Group::Dcdb, Type::Update, _) => Meaning::Update(untimed),
        (Group::Kv, Type::Normal, Body::Normal { payload, .. }) if message.base.subtype == 1 => {
            let (key, value) = pmxcfs::kvstore::wire::parse_update(payload).unwrap();
            Meaning::Value(key.to_vec(), value.to_vec())
        }
        (Group::Kv, Type::State, Body::State { payload, .. }) => {
            let entries = clusterlog::parse(payload).unwrap();
            let entries = entries.iter().map(|entry| entry.to_bytes(0, 0)).collect();
            Meaning::Log(untimed[..32].to_vec(), entries)
        }
        _ => Meaning::Bytes(untimed),
    }
}

/// Puts runs of messages whose order is free into a fixed order.
pub fn sort_free(meanings: &mut [Meaning]) {
    let same = |a: &Meaning, b: &Meaning| {
        matches!(
            (a, b),
            (Meaning::Update(_), Meaning::Update(_)) | (Meaning::Value(..), Meaning::Value(..))
        )
    };
    for run in meanings.chunk_by_mut(same) {
        if run.len() > 1 {
            run.sort();
        }
    }
}

/// Type and epoch or subtype and count of a message, for a readable failure.
pub fn describe(bytes: &[u8]) -> String {
    match Message::parse(bytes) {
        Ok(Message {
            base,
            body: Body::Normal { count, payload },
        }) => {
            format!("NORMAL {} #{count} {} bytes", base.subtype, payload.len())
        }
        Ok(Message {
            base,
            body: Body::State { epoch, payload },
        }) => {
            format!("{:?} {epoch} {} bytes", base.kind, payload.len())
        }
        Err(error) => format!("{error}"),
    }
}
