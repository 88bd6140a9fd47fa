//! Functions of the library: one for each operation.
//!
//! What they say of `client` and `answer` is said in `call`. Strings end with NUL; answers may
//! hold any bytes.
#![allow(non_camel_case_types)] // names of C

use std::ffi::{CStr, c_char, c_int, c_void};

use rustix::io::Errno;

use crate::call::{ask, bytes, pmxcfs_answer, pmxcfs_client, status, with};
use crate::messages::*;
use crate::request;

/// A string of the caller.
///
/// # Safety
/// `text` is NULL or a string that nobody changes while it is used.
unsafe fn string<'a>(text: *const c_char) -> Result<&'a [u8], Errno> {
    if text.is_null() {
        return Err(Errno::INVAL);
    }
    // SAFETY: a string, as the caller says.
    Ok(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// As `string`; NULL is the empty string.
///
/// # Safety
/// As `string`.
unsafe fn optional<'a>(text: *const c_char) -> Result<&'a [u8], Errno> {
    if text.is_null() {
        return Ok(&[]);
    }
    // SAFETY: as the caller says.
    unsafe { string(text) }
}

/// GET_FS_VERSION: versions of files, guest list, cluster and status values, JSON.
///
/// # Safety
/// As `pmxcfs_call`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_get_fs_version(
    client: *mut pmxcfs_client,
    answer: *mut pmxcfs_answer,
) -> c_int {
    // SAFETY: as the caller says.
    status(unsafe { with(client, |c| ask(c, PMXCFS_IPC_GET_FS_VERSION, &[], answer)) })
}

/// GET_CLUSTER_INFO: name and members of the cluster, JSON.
///
/// # Safety
/// As `pmxcfs_call`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_get_cluster_info(
    client: *mut pmxcfs_client,
    answer: *mut pmxcfs_answer,
) -> c_int {
    // SAFETY: as the caller says.
    status(unsafe { with(client, |c| ask(c, PMXCFS_IPC_GET_CLUSTER_INFO, &[], answer)) })
}

/// GET_GUEST_LIST: guests of all nodes, JSON.
///
/// # Safety
/// As `pmxcfs_call`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_get_guest_list(
    client: *mut pmxcfs_client,
    answer: *mut pmxcfs_answer,
) -> c_int {
    // SAFETY: as the caller says.
    status(unsafe { with(client, |c| ask(c, PMXCFS_IPC_GET_GUEST_LIST, &[], answer)) })
}

/// SET_STATUS: sets a status value of this node, or removes it if `size` is 0. Root only (-EPERM).
/// Keys have at most 255 bytes (-ENAMETOOLONG), values 32768 (-EFBIG).
///
/// # Safety
/// As `pmxcfs_call`; `key` is a string and there are `size` bytes at `value`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_set_status(
    client: *mut pmxcfs_client,
    key: *const c_char,
    value: *const c_void,
    size: usize,
) -> c_int {
    // SAFETY: as the caller says.
    status(unsafe {
        with(client, |c| {
            let payload = request::set_status(string(key)?, bytes(value, size)?)?;
            ask(c, PMXCFS_IPC_SET_STATUS, &payload, std::ptr::null_mut())
        })
    })
}

/// GET_STATUS: a status value of a node; `nodename` NULL or empty means this one. -ENOENT if there
/// is no such node or value.
///
/// # Safety
/// As `pmxcfs_call`; `key` is a string, `nodename` NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_get_status(
    client: *mut pmxcfs_client,
    key: *const c_char,
    nodename: *const c_char,
    answer: *mut pmxcfs_answer,
) -> c_int {
    // SAFETY: as the caller says.
    status(unsafe {
        with(client, |c| {
            let payload = request::get_status(string(key)?, optional(nodename)?)?;
            ask(c, PMXCFS_IPC_GET_STATUS, &payload, answer)
        })
    })
}

/// GET_CONFIG: content of a file, `path` is below /etc/pve. -ENOENT if it is no file of the
/// database, -EPERM if it is private and the caller not root, -ENOBUFS if it is larger than
/// PMXCFS_MAX_RESPONSE_PAYLOAD.
///
/// # Safety
/// As `pmxcfs_call`; `path` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_get_config(
    client: *mut pmxcfs_client,
    path: *const c_char,
    answer: *mut pmxcfs_answer,
) -> c_int {
    // SAFETY: as the caller says.
    status(unsafe {
        with(client, |c| {
            let payload = request::string(string(path)?);
            ask(c, PMXCFS_IPC_GET_CONFIG, &payload, answer)
        })
    })
}

/// LOG_CLUSTER_MSG: writes an entry to the cluster log. `priority` is that of syslog, 0 to 7;
/// `ident` (a user) and `tag` (a program) have at most 254 bytes. Root only (-EPERM).
///
/// # Safety
/// As `pmxcfs_call`; `ident`, `tag` and `message` are strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_log_cluster_msg(
    client: *mut pmxcfs_client,
    priority: u8,
    ident: *const c_char,
    tag: *const c_char,
    message: *const c_char,
) -> c_int {
    // SAFETY: as the caller says.
    status(unsafe {
        with(client, |c| {
            let (ident, tag, message) = (string(ident)?, string(tag)?, string(message)?);
            let payload = request::log(priority, ident, tag, message)?;
            ask(
                c,
                PMXCFS_IPC_LOG_CLUSTER_MSG,
                &payload,
                std::ptr::null_mut(),
            )
        })
    })
}

/// GET_CLUSTER_LOG: the newest `max_entries` (0 means 50) entries of the cluster log, JSON; `user`
/// NULL or empty means those of all users.
///
/// # Safety
/// As `pmxcfs_call`; `user` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_get_cluster_log(
    client: *mut pmxcfs_client,
    max_entries: u32,
    user: *const c_char,
    answer: *mut pmxcfs_answer,
) -> c_int {
    // SAFETY: as the caller says.
    status(unsafe {
        with(client, |c| {
            let payload = request::cluster_log(max_entries, optional(user)?);
            ask(c, PMXCFS_IPC_GET_CLUSTER_LOG, &payload, answer)
        })
    })
}

/// GET_RRD_DUMP: the newest round-robin data, a line `key:data` for each key.
///
/// # Safety
/// As `pmxcfs_call`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_get_rrd_dump(
    client: *mut pmxcfs_client,
    answer: *mut pmxcfs_answer,
) -> c_int {
    // SAFETY: as the caller says.
    status(unsafe { with(client, |c| ask(c, PMXCFS_IPC_GET_RRD_DUMP, &[], answer)) })
}

/// GET_GUEST_CONFIG_PROPERTY: a property of one guest, or of all with `vmid` 0, JSON.
///
/// # Safety
/// As `pmxcfs_call`; `property` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_get_guest_config_property(
    client: *mut pmxcfs_client,
    vmid: u32,
    property: *const c_char,
    answer: *mut pmxcfs_answer,
) -> c_int {
    // SAFETY: as the caller says.
    status(unsafe {
        with(client, |c| {
            let payload = request::property(vmid, string(property)?);
            ask(c, PMXCFS_IPC_GET_GUEST_CONFIG_PROPERTY, &payload, answer)
        })
    })
}

/// VERIFY_TOKEN: 0 if the token `userid` (`user@realm!name`) has this `secret`, -ENOENT if not.
///
/// # Safety
/// As `pmxcfs_call`; `userid` and `secret` are strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_verify_token(
    client: *mut pmxcfs_client,
    userid: *const c_char,
    secret: *const c_char,
) -> c_int {
    // SAFETY: as the caller says.
    status(unsafe {
        with(client, |c| {
            let payload = request::token(string(userid)?, string(secret)?)?;
            ask(c, PMXCFS_IPC_VERIFY_TOKEN, &payload, std::ptr::null_mut())
        })
    })
}

/// GET_GUEST_CONFIG_PROPERTIES: `count` properties (1 to 255) of one guest, or of all with `vmid`
/// 0, JSON.
///
/// # Safety
/// As `pmxcfs_call`; there are `count` strings at `properties`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmxcfs_get_guest_config_properties(
    client: *mut pmxcfs_client,
    vmid: u32,
    properties: *const *const c_char,
    count: usize,
    answer: *mut pmxcfs_answer,
) -> c_int {
    // SAFETY: as the caller says.
    status(unsafe {
        with(client, |c| {
            if properties.is_null() || count > PMXCFS_MAX_PROPERTIES as usize {
                return Err(Errno::INVAL);
            }
            let names: Result<Vec<&[u8]>, Errno> = std::slice::from_raw_parts(properties, count)
                .iter()
                .map(|name| string(*name))
                .collect();
            let payload = request::properties(vmid, &names?)?;
            ask(c, PMXCFS_IPC_GET_GUEST_CONFIG_PROPERTIES, &payload, answer)
        })
    })
}
