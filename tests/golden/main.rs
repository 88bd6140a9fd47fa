//! The recorded answers of the C daemon (`compat-tests/golden/{status,ipc}`) against the status
//! services and the IPC operations, without any transport.

#![allow(
    clippy::unwrap_used,
    reason = "tests, although clippy sees only those in #[test] functions"
)]

mod cluster;
mod clusterlog;
mod harness;
mod ipc;
mod local;
mod properties;
