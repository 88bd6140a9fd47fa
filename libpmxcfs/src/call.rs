//! Functions of the library: clients, calls, answers.
//!
//! Functions return 0 (or a size) or a negative errno. No panic leaves them: it becomes -EIO.
#![allow(non_camel_case_types)] // names of C

use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

use rustix::io::Errno;

use crate::answer::{Foreign, Unwanted};
pub use crate::answer::{pmxcfs_answer, pmxcfs_place};
use crate::client::{Mode, Request};
use crate::handle::{Handle, milliseconds};
use crate::link::Place;
use crate::messages::PMXCFS_SERVICE;

/// A client of the daemon. It connects when it is first used, and again after the daemon was
/// restarted: while the restart flag is there, calls wait up to 10 seconds for it.
///
/// All functions may be called by several threads at a time with the same client, except
/// pmxcfs_client_free; calls wait for each other, also those with a time-out. After a fork the
/// child makes a connection of its own.
pub struct pmxcfs_client(Handle);

/// Longest name of a service.
const MAX_NAME: usize = 64;

/// `work` with the client, its result as C knows it.
///
/// # Safety
/// `client` is NULL or from `pmxcfs_client_new` and not freed.
pub(crate) unsafe fn with(
    client: *const pmxcfs_client,
    work: impl FnOnce(&Handle) -> Result<usize, Errno>,
) -> i64 {
    // SAFETY: as the caller says.
    let Some(client) = (unsafe { client.as_ref() }) else {
        return code(Err(Errno::INVAL));
    };
    code(catch_unwind(AssertUnwindSafe(|| work(&client.0))).unwrap_or(Err(Errno::IO)))
}

fn code(result: Result<usize, Errno>) -> i64 {
    match result {
        Ok(size) => i64::try_from(size).unwrap_or(i64::MAX),
        Err(error) => -i64::from(error.raw_os_error()),
    }
}

/// 0 or the error.
pub(crate) fn status(code: i64) -> c_int {
    c_int::try_from(code.min(0)).unwrap_or(-libc::EIO)
}

/// Bytes the caller has; none for NULL.
///
/// # Safety
/// `data` is NULL or there are `size` bytes, which nobody changes while they are used.
pub(crate) unsafe fn bytes<'a>(data: *const c_void, size: usize) -> Result<&'a [u8], Errno> {
    if size == 0 {
        return Ok(&[]);
    }
    if data.is_null() || size > isize::MAX as usize {
        return Err(Errno::INVAL);
    }
    // SAFETY: as the caller says.
    Ok(unsafe { std::slice::from_raw_parts(data.cast(), size) })
}

/// A call whose payload goes to `answer`, which may be NULL.
///
/// # Safety
/// `answer` is NULL or points to an answer that nobody else uses meanwhile.
pub(crate) unsafe fn ask(
    handle: &Handle,
    op: i32,
    payload: &[u8],
    answer: *mut pmxcfs_answer,
) -> Result<usize, Errno> {
    let mode = Mode {
        timeout: handle.timeout(),
        interruptible: false,
        resume: false,
    };
    let request = Request { op, payload };
    // SAFETY: as the caller says.
    match unsafe { answer.as_mut() } {
        None => handle.lock().call(mode, request, &mut Unwanted::default()),
        Some(answer) => {
            answer.clear();
            let result = handle.lock().call(mode, request, answer);
            answer.finish();
            result
        }
    }
}

/// Makes a client; does not connect yet. `service` NULL means PMXCFS_SERVICE. NULL for a name that
/// is empty, longer than 64 bytes or not made of letters, digits, `_`, `-` and `.`.
///
/// # Safety
/// `service` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_client_new(service: *const c_char) -> *mut pmxcfs_client {
    let name = if service.is_null() {
        PMXCFS_SERVICE
    } else {
        // SAFETY: a string, as the caller says.
        unsafe { CStr::from_ptr(service) }
    };
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    match name.to_str() {
        Ok(name) if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(good) => {
            Box::into_raw(Box::new(pmxcfs_client(Handle::new(name))))
        }
        _ => null_mut(),
    }
}

/// Ends the connection and frees the client; NULL is ignored. No other thread may use it.
///
/// # Safety
/// `client` is NULL or from `pmxcfs_client_new`, and not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_client_free(client: *mut pmxcfs_client) {
    if !client.is_null() {
        // SAFETY: made by Box::into_raw in `pmxcfs_client_new`, as the caller says.
        let client = unsafe { Box::from_raw(client) };
        let _ = catch_unwind(AssertUnwindSafe(|| drop(client)));
    }
}

/// Sets the longest time of every later call in milliseconds, connecting included; negative, which
/// is the default: none. When it is over the call returns -ETIMEDOUT and the connection is closed.
///
/// # Safety
/// `client` is NULL or from `pmxcfs_client_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_client_set_timeout(
    client: *mut pmxcfs_client,
    timeout_ms: c_int,
) -> c_int {
    // SAFETY: as the caller says.
    status(unsafe {
        with(client, |handle| {
            handle.set_timeout(timeout_ms);
            Ok(0)
        })
    })
}

/// Connects now, if it is not connected. -ECONNREFUSED: nobody listens and there is no restart
/// flag, or it was waited for long enough; -EACCES or -EPERM: refused, or not root's service.
///
/// # Safety
/// `client` is NULL or from `pmxcfs_client_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_client_connect(client: *mut pmxcfs_client) -> c_int {
    // SAFETY: as the caller says.
    status(unsafe {
        with(client, |handle| {
            handle.lock().connect(handle.timeout()).map(|()| 0)
        })
    })
}

/// Ends the connection; the next call makes another one.
///
/// # Safety
/// `client` is NULL or from `pmxcfs_client_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_client_disconnect(client: *mut pmxcfs_client) {
    // SAFETY: as the caller says.
    let _ = unsafe {
        with(client, |handle| {
            handle.lock().disconnect();
            Ok(0)
        })
    };
}

/// Sends a request of `size` bytes of payload and waits for its answer; `answer` may be NULL.
///
/// A connection that breaks is made anew and the request sent again, once; while the restart flag
/// is there, as often as it takes within 10 seconds. A request may so be carried out twice.
///
/// # Safety
/// `client` is NULL or from `pmxcfs_client_new` and not freed; there are `size` bytes at `data`;
/// `answer` is NULL or points to an answer that nobody else uses meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_call(
    client: *mut pmxcfs_client,
    op: i32,
    data: *const c_void,
    size: usize,
    answer: *mut pmxcfs_answer,
) -> c_int {
    // SAFETY: as the caller says.
    status(unsafe { with(client, |handle| ask(handle, op, bytes(data, size)?, answer)) })
}

/// As pmxcfs_call, for programs that have to look after signals while they wait. The payload goes
/// where `place` says, which is not called for an empty one. Returns the size of the payload.
///
/// -EINTR means: not done, because a signal came or nothing for at most 50 ms. Call it again with
/// the same arguments and `resume` 1 to go on, or with `resume` 0 for another request; the first
/// one is then given up, and the connection closed if it was sent.
///
/// # Safety
/// As `pmxcfs_call`; `place` gives NULL or as many bytes as it is asked for, and returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_call_step(
    client: *mut pmxcfs_client,
    resume: c_int,
    op: i32,
    data: *const c_void,
    size: usize,
    place: pmxcfs_place,
    arg: *mut c_void,
) -> i64 {
    // SAFETY: as the caller says.
    unsafe {
        with(client, |handle| {
            let mode = Mode {
                timeout: handle.timeout(),
                interruptible: true,
                resume: resume != 0,
            };
            let payload = bytes(data, size)?;
            let mut place = Foreign { place, arg };
            let place: &mut dyn Place = &mut place;
            handle.lock().call(mode, Request { op, payload }, place)
        })
    }
}

/// Sends a request without waiting for its answer, which pmxcfs_receive gets; answers come in the
/// order of the requests. Several requests may be on their way, but the answers have to be
/// received before pmxcfs_call or a helper is used (-EBUSY). -EAGAIN: there is no space for more.
/// -ENOTCONN: the connection broke, outstanding answers are lost.
///
/// # Safety
/// As `pmxcfs_call`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_send(
    client: *mut pmxcfs_client,
    op: i32,
    data: *const c_void,
    size: usize,
) -> c_int {
    // SAFETY: as the caller says.
    status(unsafe {
        with(client, |handle| {
            let payload = bytes(data, size)?;
            let request = Request { op, payload };
            handle.lock().send(handle.timeout(), request).map(|()| 0)
        })
    })
}

/// Waits at most `timeout_ms` milliseconds (negative: without limit) for the answer of the oldest
/// request sent by pmxcfs_send. `op`, if not NULL, is set to its operation; with -ETIMEDOUT, after
/// which it can be called again, and other errors of the connection to 0. -EINVAL: there is none.
///
/// # Safety
/// As `pmxcfs_call`; `op` is NULL or a place for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_receive(
    client: *mut pmxcfs_client,
    timeout_ms: c_int,
    op: *mut i32,
    answer: *mut pmxcfs_answer,
) -> c_int {
    // SAFETY: the caller says that `op` is NULL or a place, and so of `answer` below.
    let mut op = unsafe { op.as_mut() };
    if let Some(op) = op.as_deref_mut() {
        *op = 0;
    }
    // SAFETY: as above.
    let answer = unsafe { answer.as_mut() };
    // SAFETY: as the caller says.
    status(unsafe {
        with(client, |handle| {
            let timeout = milliseconds(timeout_ms);
            let (id, result) = match answer {
                None => handle.lock().receive(timeout, &mut Unwanted::default())?,
                Some(answer) => {
                    answer.clear();
                    let received = handle.lock().receive(timeout, answer);
                    answer.finish();
                    received?
                }
            };
            if let Some(op) = op {
                *op = id;
            }
            result
        })
    })
}

/// Frees the memory of an answer and makes it empty; NULL is ignored.
///
/// # Safety
/// `answer` is NULL or points to an answer that nobody else uses meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_answer_free(answer: *mut pmxcfs_answer) {
    // SAFETY: as the caller says.
    if let Some(answer) = unsafe { answer.as_mut() } {
        answer.free();
    }
}
