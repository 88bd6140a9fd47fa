//! Does this node belong to a majority? (cluster-protocol.md section 2)

use std::os::fd::{BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use corosync_sys as sys;

use super::Error;

/// What corosync said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The partition of this node has the majority.
    pub quorate: bool,
}

#[derive(Default)]
struct Queue {
    events: Vec<Event>,
    panicked: bool,
}

/// A connection that is told of every change of the quorum.
pub struct Quorum {
    handle: sys::quorum_handle_t,
    fd: RawFd,
    /// Owned; the library knows it as the context of the handle.
    queue: NonNull<Queue>,
}

// SAFETY: neither the library's handles nor the queue are bound to a thread; without Sync and with
// `&mut self` in every call that runs callbacks only one thread uses them at a time.
unsafe impl Send for Quorum {}

impl Quorum {
    /// Connects and asks for events; the first one tells the present state.
    ///
    /// [`Error::NoQuorumProvider`]: corosync is configured without one.
    pub fn connect() -> Result<Quorum, Error> {
        let mut callbacks = sys::quorum_callbacks_t {
            quorum_notify_fn: Some(on_change),
        };
        let (mut handle, mut kind) = (0, sys::QUORUM_FREE);
        // SAFETY: all pointers live longer than the call; the library copies the callbacks.
        Error::check(unsafe { sys::quorum_initialize(&mut handle, &mut callbacks, &mut kind) })?;
        let queue = NonNull::from(Box::leak(Box::<Queue>::default()));
        // From here on dropping `quorum` closes the handle.
        let mut quorum = Quorum {
            handle,
            fd: -1,
            queue,
        };
        if kind != sys::QUORUM_SET {
            return Err(Error::NoQuorumProvider);
        }
        // SAFETY: open handle; the context is only handed back to us.
        Error::check(unsafe { sys::quorum_context_set(handle, queue.as_ptr().cast()) })?;
        // SAFETY: open handle; the library writes one value.
        Error::check(unsafe { sys::quorum_fd_get(handle, &mut quorum.fd) })?;
        Ok(quorum)
    }

    /// Asks for an event now and at every change.
    pub fn track(&mut self) -> Result<(), Error> {
        // SAFETY: open handle.
        Error::check(unsafe { sys::quorum_trackstart(self.handle, sys::CS_TRACK_CHANGES) })
    }

    /// Becomes readable when there is something to dispatch, also when the connection breaks.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the library keeps it open until quorum_finalize, which runs when self is dropped.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    /// Returns what has happened since the last call, without waiting.
    ///
    /// An error that follows events is reported by the next call.
    pub fn dispatch(&mut self) -> Result<Vec<Event>, Error> {
        // SAFETY: open handle; the callback touches nothing but the queue, to which no reference
        // exists during the call.
        let code = unsafe { sys::quorum_dispatch(self.handle, sys::CS_DISPATCH_ALL) };
        // SAFETY: owned by self; callbacks run only inside the call above.
        let queue = unsafe { self.queue.as_mut() };
        if queue.panicked {
            return Err(Error::Panicked);
        }
        let events = std::mem::take(&mut queue.events);
        match Error::check(code) {
            Err(err) if err != Error::TryAgain && events.is_empty() => Err(err),
            _ => Ok(events),
        }
    }
}

impl Drop for Quorum {
    fn drop(&mut self) {
        // SAFETY: open handle, never used again. Fails if corosync is gone; there is nothing to do
        // about that.
        let _ = unsafe { sys::quorum_finalize(self.handle) };
        // SAFETY: made by Box::leak in `connect`; no callback runs after the finalize.
        drop(unsafe { Box::from_raw(self.queue.as_ptr()) });
    }
}

unsafe extern "C" fn on_change(
    handle: sys::quorum_handle_t,
    quorate: u32,
    _ring_seq: u64,
    _view_len: u32,
    _view: *mut u32,
) {
    let mut context: *const core::ffi::c_void = std::ptr::null();
    // SAFETY: called by quorum_dispatch: the handle is open; the library writes one pointer.
    let code = unsafe { sys::quorum_context_get(handle, &mut context) };
    let Some(mut queue) = NonNull::new(context.cast_mut().cast::<Queue>()) else {
        return;
    };
    if code != sys::CS_OK {
        return;
    }
    // SAFETY: the context was set to the queue of the Quorum, which lives as long as the handle and
    // was made from a mutable pointer; `dispatch` holds no reference while callbacks run.
    let queue = unsafe { queue.as_mut() };
    let event = Event {
        quorate: quorate != 0,
    };
    if catch_unwind(AssertUnwindSafe(|| queue.events.push(event))).is_err() {
        queue.panicked = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_corosync_there_is_no_handle() {
        // Whoever runs a corosync beside the tests gets a handle; both must end without a leak.
        if let Err(err) = Quorum::connect() {
            assert!(err.is_lost(), "{err}");
        }
    }
}
