//! What programs hold: a client that several threads may use and that notices a fork.
//!
//! The state belongs to one process. A child finds the state of its parent and puts one of its own
//! in its place; the parent's connection is only forgotten there: its socket and memory are let go
//! without a word to the daemon, for the parent goes on using them.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use crate::client::Client;

/// State of one process.
struct Slot {
    pid: u32,
    client: Mutex<Client>,
    /// State of the process this one was forked from.
    parent: *mut Slot,
}

/// A client.
pub struct Handle {
    service: String,
    /// Milliseconds; negative: none.
    timeout: AtomicI32,
    slot: AtomicPtr<Slot>,
}

// SAFETY: slots are only made and only freed by `drop`, and what can change of them stands behind
// a mutex.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    pub fn new(service: &str) -> Self {
        Self {
            service: service.to_owned(),
            timeout: AtomicI32::new(-1),
            slot: AtomicPtr::new(null_mut()),
        }
    }

    pub fn set_timeout(&self, milliseconds: i32) {
        self.timeout.store(milliseconds, Ordering::Relaxed);
    }

    pub fn timeout(&self) -> Option<Duration> {
        milliseconds(self.timeout.load(Ordering::Relaxed))
    }

    /// The client of this process, for one thread at a time.
    pub fn lock(&self) -> MutexGuard<'_, Client> {
        let mutex = &self.slot().client;
        mutex.lock().unwrap_or_else(|poisoned| {
            // A panic left it: nobody knows in what state.
            mutex.clear_poison();
            let mut client = poisoned.into_inner();
            client.disconnect();
            client
        })
    }

    fn slot(&self) -> &Slot {
        let pid = std::process::id();
        loop {
            let current = self.slot.load(Ordering::Acquire);
            // SAFETY: null or made by Box::into_raw below and not freed before self is dropped.
            if let Some(slot) = unsafe { current.as_ref() } {
                if slot.pid == pid {
                    return slot;
                }
            }
            let new = Box::into_raw(Box::new(Slot {
                pid,
                client: Mutex::new(Client::new(&self.service)),
                parent: current,
            }));
            let won = self
                .slot
                .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire);
            if won.is_err() {
                // SAFETY: made above and seen by nobody else.
                drop(unsafe { Box::from_raw(new) });
                continue;
            }
            // SAFETY: as above.
            if let Some(parents) = unsafe { current.as_ref() } {
                forget(parents);
            }
        }
    }
}

/// Lets the parent's connection go. If another thread of the parent was using it when it forked,
/// that thread does not exist here and its lock is never released: then it stays.
fn forget(slot: &Slot) {
    match slot.client.try_lock() {
        Ok(mut client) => client.disconnect(),
        Err(TryLockError::Poisoned(client)) => PoisonError::into_inner(client).disconnect(),
        Err(TryLockError::WouldBlock) => {}
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut slot = *self.slot.get_mut();
        while !slot.is_null() {
            // SAFETY: made by Box::into_raw, each in the chain once; nobody uses self any more.
            let boxed = unsafe { Box::from_raw(slot) };
            slot = boxed.parent;
            if boxed.pid != std::process::id() && boxed.client.try_lock().is_err() {
                // In the middle of a call of a thread that is not here: not to be touched.
                std::mem::forget(boxed);
            }
        }
    }
}

/// A time-out of the interface: negative means none.
pub fn milliseconds(value: i32) -> Option<Duration> {
    u64::try_from(value).ok().map(Duration::from_millis)
}
