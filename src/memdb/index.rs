//! The index of a tree: root version and one digest per entry (database.md 7, cluster-sync.md 1.5).
#![forbid(unsafe_code)]

use super::change::RootRow;
use super::digest::Digest;
use super::entry::{Inode, ROOT_INODE};
use crate::le::{u32_at, u64_at};

/// Bytes before the first entry.
pub(super) const HEADER_LEN: usize = 32;
/// Bytes of one entry.
const ENTRY_LEN: usize = 40;

/// Bytes of `count` entries.
pub(super) fn entry_len(count: usize) -> usize {
    ENTRY_LEN * count
}

/// One entry of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    pub inode: Inode,
    pub digest: Digest,
}

/// An index, decoded. Two trees with equal indexes are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Version, writer and mtime of the database.
    pub root: RootRow,
    /// Largest inode.
    pub last_inode: Inode,
    /// All entries, strictly ascending by inode; the first is the root.
    pub entries: Vec<IndexEntry>,
}

/// Why bytes are no index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    #[error("index is shorter than its header ({0} bytes)")]
    Short(usize),
    #[error("index says it has {said} bytes but has {found}")]
    Length { said: u32, found: usize },
    #[error("index of {bytes} bytes says it has {entries} entries")]
    Count { bytes: usize, entries: u32 },
    #[error("index does not start with the root")]
    NoRoot,
    #[error("index entries are not in order (inode {0:016X})")]
    Order(Inode),
    #[error("index names a wrong last inode ({0:016X})")]
    LastInode(Inode),
}

impl Index {
    /// Appends the encoding: a header of 32 bytes, 40 bytes per entry, little endian.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        let bytes = HEADER_LEN + entry_len(self.entries.len());
        out.extend_from_slice(&self.root.version.to_le_bytes());
        out.extend_from_slice(&self.last_inode.to_le_bytes());
        out.extend_from_slice(&self.root.writer.to_le_bytes());
        out.extend_from_slice(&self.root.mtime.to_le_bytes());
        // The fields have 32 bits; memory ends before 2^32 bytes of index do.
        out.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        out.extend_from_slice(&(bytes as u32).to_le_bytes());
        for entry in &self.entries {
            out.extend_from_slice(&entry.inode.to_le_bytes());
            out.extend_from_slice(&entry.digest);
        }
    }

    /// Is there an entry of this inode?
    pub fn has(&self, inode: Inode) -> bool {
        self.entries
            .binary_search_by_key(&inode, |entry| entry.inode)
            .is_ok()
    }

    /// Decodes what a peer sent.
    ///
    /// # Errors
    /// Whatever is not exactly the encoding of an index is refused.
    pub fn decode(bytes: &[u8]) -> Result<Index, IndexError> {
        let (header, body) = bytes
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(IndexError::Short(bytes.len()))?;
        let (count, said) = (u32_at(header, 24), u32_at(header, 28));
        if said as usize != bytes.len() {
            return Err(IndexError::Length {
                said,
                found: bytes.len(),
            });
        }
        if body.len() % ENTRY_LEN != 0 || body.len() / ENTRY_LEN != count as usize {
            return Err(IndexError::Count {
                bytes: bytes.len(),
                entries: count,
            });
        }
        let mut entries: Vec<IndexEntry> = Vec::with_capacity(body.len() / ENTRY_LEN);
        for raw in body.chunks_exact(ENTRY_LEN) {
            let inode = u64_at(raw, 0);
            if entries.last().is_some_and(|last| last.inode >= inode) {
                return Err(IndexError::Order(inode));
            }
            let mut digest = Digest::default();
            digest.copy_from_slice(&raw[8..]);
            entries.push(IndexEntry { inode, digest });
        }
        if entries
            .first()
            .is_none_or(|first| first.inode != ROOT_INODE)
        {
            return Err(IndexError::NoRoot);
        }
        let last_inode = u64_at(header, 8);
        if entries.last().is_none_or(|last| last.inode != last_inode) {
            return Err(IndexError::LastInode(last_inode));
        }
        let root = RootRow {
            version: u64_at(header, 0),
            writer: u32_at(header, 16),
            mtime: u32_at(header, 20),
        };
        Ok(Index {
            root,
            last_inode,
            entries,
        })
    }
}
