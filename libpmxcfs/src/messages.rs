//! Requests and responses of every operation as they stand in memory (ipc-messages.md,
//! ipc-transport.md 3 and 4), operation numbers and limits.
//!
//! A message of variable length ends with an array of one byte: the beginning of what is as long
//! as it is. The length of such a message is the offset of that member plus the bytes from there
//! on. Padding is zero.
#![forbid(unsafe_code)]
// They are names of C.
#![allow(non_camel_case_types)]

use std::ffi::CStr;

/// Name of the service: an abstract socket of this name, filled up with NUL to 107 bytes.
pub const PMXCFS_SERVICE: &CStr = c"pve2";
/// Its existence tells clients to wait for a daemon that is about to come back.
pub const PMXCFS_RESTART_FLAG: &CStr = c"/run/pve-cluster/cfs-restart-flag";
/// How long clients wait for a daemon that left the flag, in milliseconds.
pub const PMXCFS_RESTART_LIMIT_MS: i32 = 10_000;

/// Get the versions of everything: JSON.
pub const PMXCFS_IPC_GET_FS_VERSION: i32 = 1;
/// Get cluster name and members: JSON.
pub const PMXCFS_IPC_GET_CLUSTER_INFO: i32 = 2;
/// Get the guests of all nodes: JSON.
pub const PMXCFS_IPC_GET_GUEST_LIST: i32 = 3;
/// Set or remove a status value of this node.
pub const PMXCFS_IPC_SET_STATUS: i32 = 4;
/// Get a status value of a node.
pub const PMXCFS_IPC_GET_STATUS: i32 = 5;
/// Get the content of a file.
pub const PMXCFS_IPC_GET_CONFIG: i32 = 6;
/// Write an entry to the cluster log.
pub const PMXCFS_IPC_LOG_CLUSTER_MSG: i32 = 7;
/// Get entries of the cluster log: JSON.
pub const PMXCFS_IPC_GET_CLUSTER_LOG: i32 = 8;
/// Get the newest round-robin data: lines `key:data`.
pub const PMXCFS_IPC_GET_RRD_DUMP: i32 = 10;
/// Get one property of one or all guests: JSON.
pub const PMXCFS_IPC_GET_GUEST_CONFIG_PROPERTY: i32 = 11;
/// Ask whether a line stands in the token file.
pub const PMXCFS_IPC_VERIFY_TOKEN: i32 = 12;
/// Get several properties of one or all guests: JSON.
pub const PMXCFS_IPC_GET_GUEST_CONFIG_PROPERTIES: i32 = 13;

/// Every operation: its name behind `PMXCFS_IPC_` (in C) and `CFS_IPC_` (in Perl), its number.
pub const OPERATIONS: [(&str, i32); 12] = [
    ("GET_FS_VERSION", PMXCFS_IPC_GET_FS_VERSION),
    ("GET_CLUSTER_INFO", PMXCFS_IPC_GET_CLUSTER_INFO),
    ("GET_GUEST_LIST", PMXCFS_IPC_GET_GUEST_LIST),
    ("SET_STATUS", PMXCFS_IPC_SET_STATUS),
    ("GET_STATUS", PMXCFS_IPC_GET_STATUS),
    ("GET_CONFIG", PMXCFS_IPC_GET_CONFIG),
    ("LOG_CLUSTER_MSG", PMXCFS_IPC_LOG_CLUSTER_MSG),
    ("GET_CLUSTER_LOG", PMXCFS_IPC_GET_CLUSTER_LOG),
    ("GET_RRD_DUMP", PMXCFS_IPC_GET_RRD_DUMP),
    (
        "GET_GUEST_CONFIG_PROPERTY",
        PMXCFS_IPC_GET_GUEST_CONFIG_PROPERTY,
    ),
    ("VERIFY_TOKEN", PMXCFS_IPC_VERIFY_TOKEN),
    (
        "GET_GUEST_CONFIG_PROPERTIES",
        PMXCFS_IPC_GET_GUEST_CONFIG_PROPERTIES,
    ),
];

/// Id of both messages of the handshake.
pub const PMXCFS_IPC_AUTHENTICATE: i32 = -1;
/// Id of a request that ends the connection without an answer.
pub const PMXCFS_IPC_DISCONNECT: i32 = -3;
/// Connection type of shared memory, the only one.
pub const PMXCFS_IPC_SHARED_MEMORY: i32 = 1;

/// Bytes of the largest message, header included, both ways.
pub const PMXCFS_MAX_MESSAGE: u32 = 1_048_576;
/// Bytes of the largest payload of a request.
pub const PMXCFS_MAX_REQUEST_PAYLOAD: u32 = PMXCFS_MAX_MESSAGE - 16;
/// Bytes of the largest payload of a response.
pub const PMXCFS_MAX_RESPONSE_PAYLOAD: u32 = PMXCFS_MAX_MESSAGE - 24;
/// Bytes of a key or node name field; the last one counts as NUL.
pub const PMXCFS_NAME_SIZE: u32 = 256;
/// Bytes of the largest status value.
pub const PMXCFS_MAX_STATUS_VALUE: u32 = 32_768;
/// Largest number of properties in one request.
pub const PMXCFS_MAX_PROPERTIES: u32 = 255;
/// Bytes of ident and tag of a log entry, NUL included.
pub const PMXCFS_MAX_LOG_NAME: u32 = 255;
/// Entries of the cluster log if none are asked for.
pub const PMXCFS_DEFAULT_LOG_ENTRIES: u32 = 50;
/// Bytes of the largest file.
pub const PMXCFS_MAX_FILE_SIZE: u32 = 1_048_576;
/// Smallest id of a guest.
pub const PMXCFS_MIN_VMID: u32 = 100;
/// Bytes of a path prefix in the connection response, NUL included.
pub const PMXCFS_PATH_SIZE: u32 = 4096;

/// Every request begins with it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_request_header {
    /// Operation.
    pub id: i32,
    pub pad0: u32,
    /// Bytes of the whole request.
    pub size: i32,
    pub pad1: u32,
}

/// Every response begins with it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_response_header {
    /// Operation of the request.
    pub id: i32,
    pub pad0: u32,
    /// Bytes of the whole response.
    pub size: i32,
    pub pad1: u32,
    /// 0 or a negative errno; an error has no payload.
    pub error: i32,
    pub pad2: u32,
}

/// First message of a client, sent on the socket.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_connect_request {
    /// Id -1, size 24.
    pub header: pmxcfs_request_header,
    /// Bytes of the largest message wanted.
    pub max_msg_size: u32,
    pub pad: u32,
}

/// Answer to it. Each prefix, with `-header` and `-data` appended, names the two files of a ring.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_connect_response {
    /// Id -1, size 12328; with an error the rest means nothing.
    pub header: pmxcfs_response_header,
    /// 1: shared memory.
    pub connection_type: i32,
    /// Bytes of the largest message of this connection.
    pub max_msg_size: u32,
    /// Without meaning for clients.
    pub connection: u64,
    pub request: [u8; 4096],
    pub response: [u8; 4096],
    pub event: [u8; 4096],
}

/// GET_FS_VERSION, GET_CLUSTER_INFO, GET_GUEST_LIST and GET_RRD_DUMP: no payload.
pub type pmxcfs_get_fs_version_request = pmxcfs_request_header;
/// See there.
pub type pmxcfs_get_cluster_info_request = pmxcfs_request_header;
/// See there.
pub type pmxcfs_get_guest_list_request = pmxcfs_request_header;
/// See there.
pub type pmxcfs_get_rrd_dump_request = pmxcfs_request_header;

/// SET_STATUS. Without a value the key is removed.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_set_status_request {
    pub header: pmxcfs_request_header,
    /// Key, filled up with NUL.
    pub name: [u8; 256],
    /// 0 to 32768 bytes.
    pub value: [u8; 1],
}

/// GET_STATUS.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_get_status_request {
    pub header: pmxcfs_request_header,
    /// Key, filled up with NUL.
    pub name: [u8; 256],
    /// Node, filled up with NUL; empty: the own one.
    pub nodename: [u8; 256],
}

/// GET_CONFIG.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_get_config_request {
    pub header: pmxcfs_request_header,
    /// Path below /etc/pve, with its NUL.
    pub path: [u8; 1],
}

/// LOG_CLUSTER_MSG.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_log_cluster_msg_request {
    pub header: pmxcfs_request_header,
    /// As of syslog, 0 to 7.
    pub priority: u8,
    /// Bytes of the ident, NUL included.
    pub ident_len: u8,
    /// Bytes of the tag, NUL included.
    pub tag_len: u8,
    /// Ident, tag and message, each with its NUL.
    pub strings: [u8; 1],
}

/// GET_CLUSTER_LOG.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_get_cluster_log_request {
    pub header: pmxcfs_request_header,
    /// 0 means 50.
    pub max_entries: u32,
    pub reserved: [u32; 3],
    /// Ident of the entries wanted, with its NUL; empty: all.
    pub user: [u8; 1],
}

/// GET_GUEST_CONFIG_PROPERTY.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_get_guest_config_property_request {
    pub header: pmxcfs_request_header,
    /// 0: all guests.
    pub vmid: u32,
    /// Name of the property, with its NUL.
    pub property: [u8; 1],
}

/// VERIFY_TOKEN.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_verify_token_request {
    pub header: pmxcfs_request_header,
    /// `<userid>!<token id> <secret>`, with its NUL.
    pub token: [u8; 1],
}

/// GET_GUEST_CONFIG_PROPERTIES.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_get_guest_config_properties_request {
    pub header: pmxcfs_request_header,
    /// 0: all guests.
    pub vmid: u32,
    /// Number of names, at least 1.
    pub count: u8,
    /// Names of properties, each with its NUL.
    pub names: [u8; 1],
}

/// Response of every operation; without data for SET_STATUS, LOG_CLUSTER_MSG and VERIFY_TOKEN.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_response {
    pub header: pmxcfs_response_header,
    /// 0 to 1048552 bytes.
    pub data: [u8; 1],
}
