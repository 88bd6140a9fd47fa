//! Payloads of the database group (cluster-sync.md 1).
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::dfsm::Outgoing;
use crate::le::{u32_at, u64_at};
use crate::memdb::{Digest, Inode, Op, ROOT_INODE, RootRow, Row, TreePath};

const WRITE: u16 = 1;
const MKDIR: u16 = 2;
const DELETE: u16 = 3;
const RENAME: u16 = 4;
const CREATE: u16 = 5;
const MTIME: u16 = 6;
const UNLOCK_REQUEST: u16 = 7;
const UNLOCK: u16 = 8;

/// Bytes before the strings of a file operation.
const OP_LEN: usize = 20;
/// Bytes of a lock checksum.
const SUM_LEN: usize = 32;
/// Bytes before the name of an update.
const UPDATE_LEN: usize = 41;

/// Why a payload is none. Every such message makes the receiver leave the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPayload {
    /// No such message.
    #[error("unknown message type {0}")]
    Subtype(u16),
    /// The lengths inside do not add up to the length of the message.
    #[error("bad message size")]
    Size,
    /// A string without NUL at its end.
    #[error("unterminated string")]
    Unterminated,
    /// A path that this message needs is absent.
    #[error("missing path")]
    MissingPath,
    /// An entry that is neither directory nor file.
    #[error("unknown inode type {0}")]
    Type(u8),
}

/// An application message of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A change of the tree.
    Op(Op),
    /// Somebody wants a lock that may have expired.
    UnlockRequest { checksum: Digest, path: TreePath },
    /// The node with the lowest id found it expired.
    Unlock { checksum: Digest, path: TreePath },
}

impl Message {
    /// Reads the payload of a NORMAL message.
    pub fn parse(subtype: u16, payload: &[u8]) -> Result<Self, BadPayload> {
        match subtype {
            WRITE..=MTIME => parse_op(subtype, payload).map(Message::Op),
            UNLOCK_REQUEST => {
                let (checksum, path) = parse_lock(payload)?;
                Ok(Message::UnlockRequest { checksum, path })
            }
            UNLOCK => {
                let (checksum, path) = parse_lock(payload)?;
                Ok(Message::Unlock { checksum, path })
            }
            other => Err(BadPayload::Subtype(other)),
        }
    }

    /// Bytes to send. Offsets are cut to 32 bits: the caller has refused greater ones.
    pub fn encode(&self) -> Outgoing {
        match self {
            Message::Op(op) => encode_op(op),
            Message::UnlockRequest { checksum, path } => {
                encode_lock(UNLOCK_REQUEST, checksum, path)
            }
            Message::Unlock { checksum, path } => encode_lock(UNLOCK, checksum, path),
        }
    }
}

fn parse_op(subtype: u16, payload: &[u8]) -> Result<Op, BadPayload> {
    if payload.len() < OP_LEN {
        return Err(BadPayload::Size);
    }
    let [size, offset, path_len, to_len, flags] = [0, 4, 8, 12, 16].map(|at| u32_at(payload, at));
    let total = OP_LEN as u64 + u64::from(path_len) + u64::from(to_len) + u64::from(size);
    if payload.len() as u64 != total {
        return Err(BadPayload::Size);
    }
    let (path, rest) = payload[OP_LEN..].split_at(path_len as usize);
    let (to, data) = rest.split_at(to_len as usize);
    let path = c_path(path)?.ok_or(BadPayload::MissingPath)?;
    let to = c_path(to)?;
    Ok(match subtype {
        WRITE => Op::Write {
            path,
            offset: u64::from(offset),
            data: data.to_vec(),
            truncate: flags != 0,
        },
        MKDIR => Op::Mkdir { path },
        DELETE => Op::Delete { path },
        RENAME => Op::Rename {
            from: path,
            to: to.ok_or(BadPayload::MissingPath)?,
        },
        CREATE => Op::Create { path },
        // The modification time travels in the offset field.
        _ => Op::SetMtime {
            path,
            mtime: offset,
        },
    })
}

/// A string with its NUL; absent if there is not a byte of it.
fn c_path(bytes: &[u8]) -> Result<Option<TreePath>, BadPayload> {
    match bytes {
        [] => Ok(None),
        // Whoever reads it as a C string stops at the first NUL.
        [.., 0] => Ok(bytes.split(|&b| b == 0).next().map(TreePath::new)),
        _ => Err(BadPayload::Unterminated),
    }
}

fn encode_op(op: &Op) -> Outgoing {
    let (subtype, path, to, offset, data, flags): (u16, _, _, u32, &[u8], u32) = match op {
        Op::Create { path } => (CREATE, path, None, 0, &[], 0),
        Op::Mkdir { path } => (MKDIR, path, None, 0, &[], 0),
        Op::Write {
            path,
            offset,
            data,
            truncate,
        } => (
            WRITE,
            path,
            None,
            *offset as u32,
            data,
            u32::from(*truncate),
        ),
        Op::Delete { path } => (DELETE, path, None, 0, &[], 0),
        Op::Rename { from, to } => (RENAME, from, Some(to), 0, &[], 0),
        Op::SetMtime { path, mtime } => (MTIME, path, None, *mtime, &[], 0),
    };
    let path = path.as_bytes();
    let to = to.map(TreePath::as_bytes);
    let to_len = to.map_or(0, |to| to.len() + 1);
    let mut out = Vec::with_capacity(OP_LEN + path.len() + 1 + to_len + data.len());
    for field in [
        data.len() as u32,
        offset,
        path.len() as u32 + 1,
        to_len as u32,
        flags,
    ] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(path);
    out.push(0);
    if let Some(to) = to {
        out.extend_from_slice(to);
        out.push(0);
    }
    out.extend_from_slice(data);
    Outgoing {
        subtype,
        payload: out,
    }
}

fn parse_lock(payload: &[u8]) -> Result<(Digest, TreePath), BadPayload> {
    if payload.len() <= SUM_LEN {
        return Err(BadPayload::Size);
    }
    let (sum, path) = payload.split_at(SUM_LEN);
    let mut checksum = Digest::default();
    checksum.copy_from_slice(sum);
    Ok((checksum, c_path(path)?.ok_or(BadPayload::MissingPath)?))
}

fn encode_lock(subtype: u16, checksum: &Digest, path: &TreePath) -> Outgoing {
    let mut payload = Vec::with_capacity(SUM_LEN + path.as_bytes().len() + 1);
    payload.extend_from_slice(checksum);
    payload.extend_from_slice(path.as_bytes());
    payload.push(0);
    Outgoing { subtype, payload }
}

/// One entry as the leader of a synchronisation sends it. Inode 0 is the version row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update(pub Row);

impl Update {
    /// The version row as an update: the root directory, without a name.
    pub fn root(root: RootRow) -> Self {
        Update(Row {
            inode: ROOT_INODE,
            parent: ROOT_INODE,
            version: root.version,
            writer: root.writer,
            mtime: root.mtime,
            type_code: 4,
            name: Arc::from(&b""[..]),
            data: None,
        })
    }

    /// Reads the payload of an UPDATE message.
    pub fn parse(payload: &[u8]) -> Result<Self, BadPayload> {
        if payload.len() < UPDATE_LEN {
            return Err(BadPayload::Size);
        }
        let (size, name_len) = (u32_at(payload, 32), u32_at(payload, 36));
        if payload.len() as u64 != UPDATE_LEN as u64 + u64::from(size) + u64::from(name_len) {
            return Err(BadPayload::Size);
        }
        let type_code = payload[40];
        if !matches!(type_code, 4 | 8) {
            return Err(BadPayload::Type(type_code));
        }
        let (name, data) = payload[UPDATE_LEN..].split_at(name_len as usize);
        if name.last() != Some(&0) {
            return Err(BadPayload::Unterminated);
        }
        let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
        let data = (type_code == 8 || !data.is_empty()).then(|| Arc::from(data));
        Ok(Update(Row {
            parent: u64_at(payload, 0),
            inode: u64_at(payload, 8),
            version: u64_at(payload, 16),
            writer: u32_at(payload, 24),
            mtime: u32_at(payload, 28),
            type_code,
            name: Arc::from(&name[..end]),
            data,
        }))
    }

    /// The inode it is about.
    pub fn inode(&self) -> Inode {
        self.0.inode
    }

    /// Payload of an UPDATE message.
    pub fn encode(&self) -> Vec<u8> {
        let row = &self.0;
        let data: &[u8] = row.data.as_deref().unwrap_or_default();
        let mut out = Vec::with_capacity(UPDATE_LEN + row.name.len() + 1 + data.len());
        out.extend_from_slice(&row.parent.to_le_bytes());
        out.extend_from_slice(&row.inode.to_le_bytes());
        out.extend_from_slice(&row.version.to_le_bytes());
        out.extend_from_slice(&row.writer.to_le_bytes());
        out.extend_from_slice(&row.mtime.to_le_bytes());
        out.extend_from_slice(&(data.len() as u32).to_le_bytes());
        out.extend_from_slice(&(row.name.len() as u32 + 1).to_le_bytes());
        out.push(row.type_code);
        out.extend_from_slice(&row.name);
        out.push(0);
        out.extend_from_slice(data);
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text.as_bytes())
    }

    #[test]
    fn all_operations_come_back() {
        let ops = [
            Op::Create { path: path("a/b") },
            Op::Mkdir { path: path("d") },
            Op::Write {
                path: path("f"),
                offset: 7,
                data: b"xyz".to_vec(),
                truncate: true,
            },
            Op::Write {
                path: path("f"),
                offset: 0,
                data: Vec::new(),
                truncate: false,
            },
            Op::Delete { path: path("d") },
            Op::Rename {
                from: path("a/b"),
                to: path("c"),
            },
            Op::SetMtime {
                path: path("f"),
                mtime: u32::MAX,
            },
        ];
        for op in ops {
            let message = Message::Op(op);
            let Outgoing { subtype, payload } = message.encode();
            assert_eq!(Message::parse(subtype, &payload), Ok(message));
        }
        let lock = Message::Unlock {
            checksum: [3; 32],
            path: path("priv/lock/x"),
        };
        let Outgoing { subtype, payload } = lock.encode();
        assert_eq!(subtype, 8);
        assert_eq!(Message::parse(subtype, &payload), Ok(lock));
    }

    #[test]
    fn malformed_messages() {
        let good = Message::Op(Op::Rename {
            from: path("a"),
            to: path("b"),
        })
        .encode();
        let cut = &good.payload[..good.payload.len() - 1];
        assert_eq!(Message::parse(4, cut), Err(BadPayload::Size));
        let mut open = good.payload.clone();
        *open.last_mut().unwrap() = b'x';
        assert_eq!(Message::parse(4, &open), Err(BadPayload::Unterminated));
        assert_eq!(
            Message::parse(0, &good.payload),
            Err(BadPayload::Subtype(0))
        );
        assert_eq!(
            Message::parse(9, &good.payload),
            Err(BadPayload::Subtype(9))
        );
        assert_eq!(Message::parse(2, &[0; 20]), Err(BadPayload::MissingPath));
        assert_eq!(
            Message::parse(
                4,
                &Message::Op(Op::Mkdir { path: path("a") }).encode().payload
            ),
            Err(BadPayload::MissingPath)
        );
        assert_eq!(Message::parse(8, &[0; 32]), Err(BadPayload::Size));
        let mut huge = good.payload;
        huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        huge[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Message::parse(4, &huge), Err(BadPayload::Size));
    }

    #[test]
    fn root_update_as_recorded_shape() {
        let root = Update::root(RootRow {
            version: 5,
            writer: 1,
            mtime: 9,
        });
        let bytes = root.encode();
        assert_eq!(bytes.len(), 42);
        assert_eq!(bytes[36..], [1, 0, 0, 0, 4, 0]);
        assert_eq!(Update::parse(&bytes), Ok(root));
    }

    proptest! {
        #[test]
        fn any_bytes(subtype in 0u16..10, bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Message::parse(subtype, &bytes);
            let _ = Update::parse(&bytes);
        }

        #[test]
        fn fitting_lengths(path_len in 0u32..12, to_len in 0u32..12, size in 0u32..12,
                           tail in proptest::collection::vec(0u8..3, 36)) {
            let mut bytes = Vec::new();
            for field in [size, 1, path_len, to_len, 0] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
            bytes.extend_from_slice(&tail[..(path_len + to_len + size) as usize]);
            for subtype in 1..=6 {
                if let Ok(message) = Message::parse(subtype, &bytes) {
                    let again = message.encode();
                    prop_assert_eq!(Message::parse(again.subtype, &again.payload), Ok(message));
                }
            }
        }

        #[test]
        fn updates_come_back(inode: u64, parent: u64, version: u64, writer: u32, mtime: u32,
                             name in "[a-z]{0,8}", data in proptest::collection::vec(any::<u8>(), 0..50)) {
            let update = Update(Row {
                inode, parent, version, writer, mtime, type_code: 8,
                name: Arc::from(name.as_bytes()), data: Some(Arc::from(data)),
            });
            prop_assert_eq!(Update::parse(&update.encode()), Ok(update));
        }
    }
}
