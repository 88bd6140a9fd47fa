//! libpmxcfs: the C interface to the cluster filesystem daemon pmxcfs.
//!
//! * [`messages`], [`cpg`] – messages, numbers and limits as C sees them.
//! * [`call`], [`operations`] – the functions of the library.
//! * `handle` – what several threads share and a fork leaves behind.
//! * `client` – calls on a connection that is made anew when the daemon was restarted.
//! * `connector` – connecting, with the restart flag.
//! * `link`, `ring` – one connection: handshake and the two rings in shared memory.
//! * `request` – payloads.
//!
//! `include/pmxcfs.h` is made of this crate (see `tests/generated.rs`).
#![deny(unsafe_op_in_unsafe_fn)]

mod answer;
pub mod call;
mod client;
mod connector;
pub mod cpg;
mod handle;
mod link;
pub mod messages;
pub mod operations;
mod request;
mod ring;
mod sys;
