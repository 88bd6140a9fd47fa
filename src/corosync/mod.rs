//! Safe handles of corosync's client libraries: [`cpg`], [`quorum`], [`cmap`]
//! (spec: `docs/protocol/cluster-protocol.md` sections 2 to 4).
//!
//! All three work alike. A handle is used by one thread at a time (`Send`, not `Sync`) and closed
//! when it is dropped. The library's callbacks only append to a queue that belongs to the handle;
//! `dispatch` lets them run and returns what they queued, so no code of ours is entered from C but
//! that copying, nothing can call back into the library from inside a callback, and a panic in one
//! is caught and becomes [`Error::Panicked`].
//!
//! Which calls can wait: `dispatch` and [`cpg::Cpg::send`] never do, except for the pauses the
//! library itself makes inside a message of more than one request (see there). All others
//! (connecting, joining, leaving, reading cmap, dropping a handle) are a question and an answer,
//! and wait without limit for a corosync that is stopped but not dead.
//!
//! The libraries copy each message to a buffer of 1 MiB on the stack: a thread that dispatches needs
//! [`STACK_SIZE`].
#![allow(unsafe_code)]

pub mod cmap;
pub mod cpg;
pub mod error;
pub mod quorum;

pub use error::Error;

/// Stack in bytes of a thread that calls `dispatch`.
pub const STACK_SIZE: usize = 4 << 20;

#[cfg(test)]
mod tests {
    trait NotSync<Marker> {
        fn check() {}
    }
    impl<T: ?Sized> NotSync<()> for T {}
    struct IsSync;
    impl<T: ?Sized + Sync> NotSync<IsSync> for T {}

    fn send<T: Send>() {}

    /// Does not compile (ambiguous trait) if a handle becomes `Sync`.
    #[test]
    fn handles_move_between_threads_but_are_not_shared() {
        send::<super::cpg::Cpg>();
        send::<super::quorum::Quorum>();
        send::<super::cmap::Cmap>();
        <super::cpg::Cpg as NotSync<_>>::check();
        <super::quorum::Quorum as NotSync<_>>::check();
        <super::cmap::Cmap as NotSync<_>>::check();
    }
}
