//! Raw bindings of corosync's client libraries (cpg, cmap, quorum), made with bindgen from the
//! headers of corosync 3.1.7 (Debian 12) and checked in, so that building needs no libclang.
//! `tests/current.rs` proves that they are what the installed headers say, and rewrites them with
//! `UPDATE_BINDINGS=1 cargo test -p corosync-sys`.
//!
//! Nothing here is safe to call without the rules of the manual pages; the safe side is
//! `pmxcfs::corosync`.
#![no_std]

#[rustfmt::skip]
#[allow(missing_docs, non_camel_case_types, non_upper_case_globals)]
mod bindings;

pub use bindings::*;
