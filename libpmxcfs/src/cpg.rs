//! Headers of the messages the nodes of a cluster exchange through corosync's CPG
//! (cluster-protocol.md 5, cluster-sync.md 1 and 3). For programs that read a recording; the
//! library itself takes no part in a cluster. Integers are little-endian.
#![forbid(unsafe_code)]
#![allow(non_camel_case_types)]

use std::ffi::CStr;

/// Group of the database. Its name includes the NUL.
pub const PMXCFS_CPG_DCDB_GROUP: &CStr = c"pve_dcdb_v1";
/// Bytes of that name, NUL included.
pub const PMXCFS_CPG_DCDB_GROUP_LENGTH: u32 = 12;
/// Protocol version of that group.
pub const PMXCFS_CPG_DCDB_PROTOCOL: u32 = 1;
/// Group of node status and cluster log. Its name includes the NUL.
pub const PMXCFS_CPG_KVSTORE_GROUP: &CStr = c"pve_kvstore_v1";
/// Bytes of that name, NUL included.
pub const PMXCFS_CPG_KVSTORE_GROUP_LENGTH: u32 = 15;
/// Protocol version of that group.
pub const PMXCFS_CPG_KVSTORE_PROTOCOL: u32 = 0;

/// An application message; its number is the subtype.
pub const PMXCFS_CPG_NORMAL: u16 = 0;
/// Start of a synchronisation.
pub const PMXCFS_CPG_SYNC_START: u16 = 1;
/// State of one member.
pub const PMXCFS_CPG_STATE: u16 = 2;
/// One inode, from the leader.
pub const PMXCFS_CPG_UPDATE: u16 = 3;
/// No more of them.
pub const PMXCFS_CPG_UPDATE_COMPLETE: u16 = 4;
/// Ask for a checksum.
pub const PMXCFS_CPG_VERIFY_REQUEST: u16 = 5;
/// A checksum.
pub const PMXCFS_CPG_VERIFY: u16 = 6;

/// Subtype: write, truncate.
pub const PMXCFS_DCDB_WRITE: u16 = 1;
/// Subtype: make a directory.
pub const PMXCFS_DCDB_MKDIR: u16 = 2;
/// Subtype: remove a file or directory.
pub const PMXCFS_DCDB_DELETE: u16 = 3;
/// Subtype: rename.
pub const PMXCFS_DCDB_RENAME: u16 = 4;
/// Subtype: make a file.
pub const PMXCFS_DCDB_CREATE: u16 = 5;
/// Subtype: set the modification time.
pub const PMXCFS_DCDB_MTIME: u16 = 6;
/// Subtype: ask whether a lock has expired.
pub const PMXCFS_DCDB_UNLOCK_REQUEST: u16 = 7;
/// Subtype: remove an expired lock.
pub const PMXCFS_DCDB_UNLOCK: u16 = 8;

/// Subtype: set or remove a status value.
pub const PMXCFS_KVSTORE_UPDATE: u16 = 1;
/// Subtype: never sent.
pub const PMXCFS_KVSTORE_UPDATE_COMPLETE: u16 = 2;
/// Subtype: an entry of the cluster log.
pub const PMXCFS_KVSTORE_LOG: u16 = 3;

/// Every message begins with it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_cpg_header {
    /// PMXCFS_CPG_NORMAL to PMXCFS_CPG_VERIFY.
    pub message_type: u16,
    /// Number of an application message; 0 otherwise.
    pub subtype: u16,
    pub protocol_version: u32,
    /// Clock of the sender in seconds; what every node applies for a normal message.
    pub time: u32,
    /// 0.
    pub reserved: u32,
}

/// A normal message; its payload follows.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_cpg_normal_header {
    pub base: pmxcfs_cpg_header,
    /// Number of this normal message of its sender, from 1.
    pub count: u64,
}

/// Names one synchronisation.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_cpg_epoch {
    pub counter: u32,
    pub time: u32,
    pub nodeid: u32,
    pub pid: u32,
}

/// Any other message; its payload follows.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_cpg_state_header {
    pub base: pmxcfs_cpg_header,
    pub epoch: pmxcfs_cpg_epoch,
}

/// PMXCFS_CPG_VERIFY_REQUEST.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_cpg_verify_request {
    pub header: pmxcfs_cpg_state_header,
    pub checksum_id: u64,
}

/// PMXCFS_CPG_VERIFY.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_cpg_verify {
    pub header: pmxcfs_cpg_state_header,
    pub checksum_id: u64,
    /// SHA-256.
    pub checksum: [u8; 32],
}

/// Payload of the messages PMXCFS_DCDB_WRITE to PMXCFS_DCDB_MTIME.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_dcdb_operation {
    /// Bytes of data behind the paths.
    pub size: u32,
    /// Offset in the file; the time of PMXCFS_DCDB_MTIME.
    pub offset: u32,
    /// Bytes of the path, NUL included.
    pub path_len: u32,
    /// Bytes of the new path, NUL included, or 0.
    pub to_len: u32,
    /// Not 0: truncate.
    pub flags: u32,
}

/// Payload of PMXCFS_DCDB_UNLOCK_REQUEST and PMXCFS_DCDB_UNLOCK.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_dcdb_unlock {
    /// SHA-256 of the directory's entry.
    pub checksum: [u8; 32],
    /// Path with its NUL.
    pub path: [u8; 1],
}

/// Payload of PMXCFS_KVSTORE_UPDATE.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct pmxcfs_kvstore_update {
    /// Key; what follows its NUL means nothing.
    pub key: [u8; 256],
    /// 0 or more bytes.
    pub value: [u8; 1],
}
