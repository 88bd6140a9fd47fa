//! What the node knows beside the files: change counters, guest list, members, key/value store,
//! round-robin data, cluster log (spec: `docs/protocol/status.md`).
//!
//! [`Status`] holds all of it behind short locks. The texts of the dot files and IPC answers are
//! built once per change, not per request.
#![forbid(unsafe_code)]

pub mod clusterlog;
pub mod guest_props;
pub mod guests;
mod json;
pub mod kvstore;
pub mod members;
pub mod rrd_data;
mod state;
pub mod token;
pub mod versions;

pub use rrd_data::RrdSink;
pub use state::{KvPair, SetError, Status};
