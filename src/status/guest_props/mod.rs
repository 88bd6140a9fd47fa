//! Properties of guests, read from their config files (status.md 7).
//!
//! A query is worked off in pieces, so that whoever asks for much holds up nobody, and it ends as
//! soon as its answer is longer than its client can take.
#![forbid(unsafe_code)]

mod all;
mod cache;
mod names;

use std::sync::Arc;

pub use all::AllGuests;
pub use cache::PropertyCache;
pub use names::PropertyNames;

use crate::memdb::{self, TreePath};
use names::{PIECE, Scan};

// The frame of an answer, and what stands between guests.
const HEAD: &[u8] = b"{\n";
const COMMA: &[u8] = b",\n";
const TAIL: &[u8] = b"\n}\n";

/// The answer is longer than its client can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer is longer than a message")]
pub struct TooLong;

/// Appends `bytes` unless that makes `out` longer than `limit`.
fn put(out: &mut Vec<u8>, bytes: &[u8], limit: usize) -> Result<(), TooLong> {
    if out.len() + bytes.len() > limit {
        return Err(TooLong);
    }
    out.extend_from_slice(bytes);
    Ok(())
}

/// Path of a guest's config.
pub fn config_path(vmid: u32, guest: &memdb::Guest) -> TreePath {
    TreePath::new(format!("nodes/{}/{}/{vmid}.conf", guest.node, guest.kind.dir()).as_bytes())
}

/// A query for one guest.
#[derive(Debug)]
pub struct OneGuest {
    names: PropertyNames,
    vmid: u32,
    scan: Scan,
    limit: usize,
}

impl OneGuest {
    /// A query for the guest with this config, whose answer may have `limit` bytes.
    pub fn new(names: PropertyNames, vmid: u32, config: Arc<[u8]>, limit: usize) -> Self {
        let scan = Scan::new(&names, config);
        OneGuest {
            names,
            vmid,
            scan,
            limit,
        }
    }

    /// Does a piece. `Some`: done, the answer stands in `out`, which was empty.
    pub fn go_on(&mut self, out: &mut Vec<u8>) -> Option<Result<(), TooLong>> {
        if !self.scan.go_on(&self.names, &mut { PIECE }) {
            return None;
        }
        out.extend_from_slice(HEAD);
        let guest = self
            .names
            .push_guest(self.vmid, &self.scan, true, self.limit, out);
        Some(guest.and_then(|()| put(out, TAIL, self.limit)))
    }
}

#[cfg(test)]
mod tests;
