//! Round-robin data: every value that is sent in the cluster goes to a file of RRDtool on every
//! node (spec: `docs/protocol/status.md`, 9).
//!
//! Whoever has a value gives it to [`RrdHandle::submit`], which never waits. Everything that can
//! take time (rrdcached, librrd, the disk) happens in one thread behind a bounded queue.
//!
//! * [`key`] – key types, files, translation of columns. Pure.
//! * [`schema`] – data sources, archives, start of a file. Pure.
//! * [`queue`] – values on their way. Pure.
//! * [`rrdcached`] – client of rrdcached.
//! * [`librrd`] – makes files, and writes them when rrdcached does not.
//! * [`writer`] – the thread.

mod handle;
pub mod key;
pub mod librrd;
pub mod queue;
pub mod rrdcached;
pub mod schema;
mod writer;

#[cfg(test)]
mod tests;

pub use handle::{Rrd, RrdHandle};

use std::time::Duration;

use crate::log_limit::LogLimit;

/// Where the files are.
pub const BASE_DIR: &str = "/var/lib/rrdcached/db";
/// Where rrdcached listens.
pub const RRDCACHED_SOCKET: &str = "/var/run/rrdcached.sock";
/// Log domain (daemon.md 7).
const DOMAIN: &str = "status";

/// How much each part of this module may write to the log.
const LOG_LIMIT: LogLimit = LogLimit::new(100, Duration::from_secs(60));

/// May a line be written?
fn may_log(limit: &mut LogLimit) -> bool {
    limit.allows(|count| tracing::info!(target: DOMAIN, "{count} RRD messages suppressed"))
}
