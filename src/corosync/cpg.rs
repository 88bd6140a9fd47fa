//! Closed process groups: totally ordered messages and membership changes
//! (cluster-protocol.md section 4).

use std::ffi::c_void;
use std::os::fd::{BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use corosync_sys as sys;

use super::Error;

/// Largest message in bytes that goes out in one request. The library splits longer ones.
pub const MAX_REQUEST: usize = (1 << 20) - 1024;

/// Most events one [`Cpg::dispatch`] returns: the caller has other handles to look after.
const MAX_EVENTS: usize = 256;
/// Bytes of messages after which [`Cpg::dispatch`] returns.
const MAX_BYTES: usize = 8 << 20;

/// Name of a group. Its length is part of it: groups of old and new nodes are the same only if the
/// terminating NUL is counted by all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupName {
    length: u32,
    value: [u8; sys::CPG_MAX_NAME_LENGTH as usize],
}

impl GroupName {
    /// The database: 12 bytes, NUL included.
    pub const DCDB: GroupName = GroupName::new(b"pve_dcdb_v1\0");
    /// The node status: 15 bytes, NUL included.
    pub const KVSTORE: GroupName = GroupName::new(b"pve_kvstore_v1\0");

    /// All bytes of `name` count, also a NUL at the end.
    ///
    /// # Panics
    /// If there are more than 128 bytes.
    pub const fn new(name: &[u8]) -> GroupName {
        assert!(
            name.len() <= sys::CPG_MAX_NAME_LENGTH as usize,
            "group name too long"
        );
        let mut value = [0; sys::CPG_MAX_NAME_LENGTH as usize];
        let mut i = 0;
        while i < name.len() {
            value[i] = name[i];
            i += 1;
        }
        GroupName {
            length: name.len() as u32,
            value,
        }
    }

    fn raw(&self) -> sys::cpg_name {
        sys::cpg_name {
            length: self.length,
            value: self.value.map(|b| b as core::ffi::c_char),
        }
    }
}

/// A process in a group. The order (node, then process) is the one the protocol sorts by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    pub nodeid: u32,
    pub pid: u32,
}

/// What happened in the group, in the order in which every member sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A message, the own ones included.
    Deliver { sender: Member, message: Vec<u8> },
    /// The membership changed. `members` is the new one; the own process is missing in it after
    /// its leave.
    Confchg {
        members: Vec<Member>,
        left: Vec<Member>,
        joined: Vec<Member>,
    },
}

/// What the callbacks leave behind.
#[derive(Default)]
struct Queue {
    events: Vec<Event>,
    bytes: usize,
    panicked: bool,
}

/// A connection to corosync that can be in one group.
pub struct Cpg {
    handle: sys::cpg_handle_t,
    fd: RawFd,
    nodeid: u32,
    group: Option<GroupName>,
    /// Owned; the library knows it as the context of the handle.
    queue: NonNull<Queue>,
}

// SAFETY: neither the library's handles nor the queue are bound to a thread; without Sync and with
// `&mut self` in every call that runs callbacks only one thread uses them at a time.
unsafe impl Send for Cpg {}

impl Cpg {
    /// Connects to corosync and asks for the own node id.
    pub fn connect() -> Result<Cpg, Error> {
        let queue = NonNull::from(Box::leak(Box::<Queue>::default()));
        match open(queue) {
            Ok((handle, fd, nodeid)) => Ok(Cpg {
                handle,
                fd,
                nodeid,
                group: None,
                queue,
            }),
            Err(err) => {
                // SAFETY: made by Box::leak above; `open` closed the handle that knew it.
                drop(unsafe { Box::from_raw(queue.as_ptr()) });
                Err(err)
            }
        }
    }

    /// Own node id.
    pub fn nodeid(&self) -> u32 {
        self.nodeid
    }

    /// Becomes readable when there is something to dispatch, also when the connection breaks.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the library keeps it open until cpg_finalize, which runs when self is dropped.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    /// Asks to become a member. The membership itself arrives as an event.
    ///
    /// [`Error::TryAgain`]: an earlier membership of this process is not ended yet, or corosync is
    /// busy. [`Error::Exist`]: another handle of this process is a member, or this one was before:
    /// a handle can join once.
    pub fn join(&mut self, group: &GroupName) -> Result<(), Error> {
        let name = group.raw();
        // SAFETY: open handle; `name` lives longer than the call.
        Error::check(unsafe { sys::cpg_join(self.handle, &name) })?;
        self.group = Some(*group);
        Ok(())
    }

    /// Asks to leave the group. The end of the membership arrives as an event.
    ///
    /// Without a group there is nothing to do.
    pub fn leave(&mut self) -> Result<(), Error> {
        let Some(group) = &self.group else {
            return Ok(());
        };
        let name = group.raw();
        // SAFETY: open handle; `name` lives longer than the call.
        Error::check(unsafe { sys::cpg_leave(self.handle, &name) })?;
        self.group = None;
        Ok(())
    }

    /// Sends one message to all members, the own process included.
    ///
    /// `Ok` promises nothing before the message comes back: corosync drops what arrives outside a
    /// membership. [`Error::TryAgain`]: corosync has no room now; nothing was sent, except for
    /// messages longer than [`MAX_REQUEST`], where the library itself tries each part for a second:
    /// those parts that went out are lost. [`Error::Interrupt`] only for those: the membership
    /// changed in between. Such a message is sent again as a whole or not at all.
    ///
    /// Does not wait, with one exception: some 280 messages that a *stopped* corosync has not taken
    /// yet fill a buffer of the library, and the next call then spins until corosync goes on. Whoever
    /// must not wait keeps fewer own messages under way.
    pub fn send(&mut self, message: &[u8]) -> Result<(), Error> {
        if message.len() > MAX_REQUEST && self.flow_controlled()? {
            return Err(Error::TryAgain);
        }
        let part = libc::iovec {
            // The library only reads; iovec has no constant form.
            iov_base: message.as_ptr().cast_mut().cast(),
            iov_len: message.len(),
        };
        // SAFETY: open handle; one element, which describes bytes that live longer than the call.
        Error::check(unsafe { sys::cpg_mcast_joined(self.handle, sys::CPG_TYPE_AGREED, &part, 1) })
    }

    /// Has corosync asked this connection to stop sending?
    pub fn flow_controlled(&self) -> Result<bool, Error> {
        let mut state = sys::CPG_FLOW_CONTROL_DISABLED;
        // SAFETY: open handle; the library writes one value to `state`.
        Error::check(unsafe { sys::cpg_flow_control_state_get(self.handle, &mut state) })?;
        Ok(state == sys::CPG_FLOW_CONTROL_ENABLED)
    }

    /// Returns what has happened since the last call, without waiting; nothing happened: an empty
    /// list. Returns early, with more to come, after some hundred events or some MiB.
    ///
    /// An error that follows events is reported by the next call.
    pub fn dispatch(&mut self) -> Result<Vec<Event>, Error> {
        let result = loop {
            // SAFETY: open handle; the callbacks touch nothing but the queue, to which no
            // reference exists during the call.
            let code = unsafe { sys::cpg_dispatch(self.handle, sys::CS_DISPATCH_ONE_NONBLOCKING) };
            if let Err(err) = Error::check(code) {
                break if err == Error::TryAgain {
                    Ok(())
                } else {
                    Err(err)
                };
            }
            // SAFETY: owned by self; callbacks run only inside cpg_dispatch.
            let queue = unsafe { self.queue.as_ref() };
            if queue.panicked || queue.events.len() >= MAX_EVENTS || queue.bytes >= MAX_BYTES {
                break Ok(());
            }
        };
        // SAFETY: as above, and `&mut self` makes it the only reference.
        let queue = unsafe { self.queue.as_mut() };
        if queue.panicked {
            return Err(Error::Panicked);
        }
        queue.bytes = 0;
        let events = std::mem::take(&mut queue.events);
        if events.is_empty() {
            result.map(|()| events)
        } else {
            Ok(events)
        }
    }
}

impl Drop for Cpg {
    fn drop(&mut self) {
        // SAFETY: open handle, never used again. Fails if corosync is gone; there is nothing to do
        // about that.
        let _ = unsafe { sys::cpg_finalize(self.handle) };
        // SAFETY: made by Box::leak in `connect`; no callback runs after the finalize.
        drop(unsafe { Box::from_raw(self.queue.as_ptr()) });
    }
}

/// Opens a handle whose callbacks fill `queue`; on failure none is left open.
fn open(queue: NonNull<Queue>) -> Result<(sys::cpg_handle_t, RawFd, u32), Error> {
    let mut model = sys::cpg_model_v1_data_t {
        model: sys::CPG_MODEL_V1,
        cpg_deliver_fn: Some(on_deliver),
        cpg_confchg_fn: Some(on_confchg),
        cpg_totem_confchg_fn: None,
        flags: 0,
    };
    let mut handle = 0;
    // SAFETY: all pointers live longer than the call; a v1 structure starts with its model and is
    // passed as the general one, as the model says; the context is only handed back to us.
    Error::check(unsafe {
        sys::cpg_model_initialize(
            &mut handle,
            sys::CPG_MODEL_V1,
            (&raw mut model).cast(),
            queue.as_ptr().cast(),
        )
    })?;
    let (mut fd, mut nodeid) = (-1, 0);
    // SAFETY: open handle; the library writes one value each.
    let result = Error::check(unsafe { sys::cpg_fd_get(handle, &mut fd) })
        // SAFETY: as above.
        .and_then(|()| Error::check(unsafe { sys::cpg_local_get(handle, &mut nodeid) }));
    if let Err(err) = result {
        // SAFETY: open handle, never used again.
        let _ = unsafe { sys::cpg_finalize(handle) };
        return Err(err);
    }
    Ok((handle, fd, nodeid))
}

/// Runs `body` with the queue of a handle. Called from callbacks only: a panic ends here.
///
/// # Safety
/// `handle` belongs to a [`Cpg`] that is inside `dispatch`.
unsafe fn with_queue(handle: sys::cpg_handle_t, body: impl FnOnce(&mut Queue)) {
    let mut context: *mut c_void = std::ptr::null_mut();
    // SAFETY: the handle is open; the library writes one pointer.
    let code = unsafe { sys::cpg_context_get(handle, &mut context) };
    let Some(mut queue) = NonNull::new(context.cast::<Queue>()) else {
        return;
    };
    if code != sys::CS_OK {
        return;
    }
    // SAFETY: the context was set to the queue of the Cpg, which lives as long as the handle;
    // `dispatch` holds no reference while callbacks run, and they run one after the other.
    let queue = unsafe { queue.as_mut() };
    if catch_unwind(AssertUnwindSafe(|| body(queue))).is_err() {
        queue.panicked = true;
    }
}

unsafe extern "C" fn on_deliver(
    handle: sys::cpg_handle_t,
    _group: *const sys::cpg_name,
    nodeid: u32,
    pid: u32,
    message: *mut c_void,
    length: usize,
) {
    // SAFETY: called by cpg_dispatch, which only `Cpg::dispatch` calls.
    unsafe {
        with_queue(handle, |queue| {
            let message = bytes(message.cast(), length).to_vec();
            queue.bytes += length;
            queue.events.push(Event::Deliver {
                sender: Member { nodeid, pid },
                message,
            });
        });
    }
}

#[allow(clippy::too_many_arguments)] // the library decides
unsafe extern "C" fn on_confchg(
    handle: sys::cpg_handle_t,
    _group: *const sys::cpg_name,
    members: *const sys::cpg_address,
    members_len: usize,
    left: *const sys::cpg_address,
    left_len: usize,
    joined: *const sys::cpg_address,
    joined_len: usize,
) {
    // SAFETY: called by cpg_dispatch, which only `Cpg::dispatch` calls.
    unsafe {
        with_queue(handle, |queue| {
            queue.events.push(Event::Confchg {
                members: addresses(members, members_len),
                left: addresses(left, left_len),
                joined: addresses(joined, joined_len),
            });
        });
    }
}

/// # Safety
/// `start` points to `length` readable values, or `length` is 0.
unsafe fn bytes<'a, T>(start: *const T, length: usize) -> &'a [T] {
    if length == 0 || start.is_null() {
        return &[];
    }
    // SAFETY: by the contract of this function.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// # Safety
/// As [`bytes`].
unsafe fn addresses(start: *const sys::cpg_address, length: usize) -> Vec<Member> {
    // SAFETY: by the contract of this function.
    let list = unsafe { bytes(start, length) };
    list.iter()
        .map(|a| Member {
            nodeid: a.nodeid,
            pid: a.pid,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nul_belongs_to_the_names() {
        assert_eq!(GroupName::DCDB.raw().length, 12);
        assert_eq!(GroupName::KVSTORE.raw().length, 15);
        assert_eq!(&GroupName::DCDB.value[..13], b"pve_dcdb_v1\0\0");
    }

    #[test]
    fn without_corosync_there_is_no_handle() {
        // Whoever runs a corosync beside the tests gets a handle; both must end without a leak.
        if let Err(err) = Cpg::connect() {
            assert!(err.is_lost(), "{err}");
        }
    }

    #[test]
    fn no_slice_is_made_from_nothing() {
        // SAFETY: length 0, and a null pointer whose length is ignored.
        unsafe {
            assert!(bytes::<u8>(std::ptr::null(), 0).is_empty());
            assert!(bytes::<u8>(std::ptr::null(), 5).is_empty());
        }
    }
}
