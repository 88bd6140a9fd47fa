//! What takes long, side by side: the lock test sleeps while the crash test works.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
mod crash;
mod lock_expiry;
