//! Digests over entries (database.md 7): what peers compare to find out what differs.
#![forbid(unsafe_code)]

use sha2::{Digest as _, Sha256};

use super::change::RootRow;
use super::entry::{Entry, Inode, ROOT_INODE};
use super::index::{HEADER_LEN, Index, IndexEntry, entry_len};
use super::tree::Tree;

/// A SHA-256 value.
pub type Digest = [u8; 32];

/// Feeds the fields of an entry in the order of database.md 7, without its inode.
///
/// All integers little endian: the reference hashes its memory, on machines of that byte order.
fn hash_entry(hash: &mut Sha256, entry: &Entry) {
    let mut fixed = [0u8; 29];
    fixed[..8].copy_from_slice(&entry.version.to_le_bytes());
    fixed[8..12].copy_from_slice(&entry.writer.to_le_bytes());
    fixed[12..16].copy_from_slice(&entry.mtime.to_le_bytes());
    fixed[16..20].copy_from_slice(&entry.size().to_le_bytes());
    fixed[20] = entry.type_code();
    fixed[21..].copy_from_slice(&entry.parent.to_le_bytes());
    hash.update(fixed);
    hash.update(&entry.name);
    if let Some(data) = entry.data() {
        hash.update(data);
    }
}

impl Tree {
    /// The root as an entry: it has the version row's values, whatever the row's type was.
    fn hash_root(&self, hash: &mut Sha256) {
        let RootRow {
            version,
            writer,
            mtime,
        } = self.root;
        let mut fixed = [0u8; 29];
        fixed[..8].copy_from_slice(&version.to_le_bytes());
        fixed[8..12].copy_from_slice(&writer.to_le_bytes());
        fixed[12..16].copy_from_slice(&mtime.to_le_bytes());
        fixed[20] = self.top.type_code();
        hash.update(fixed);
    }

    fn hash_inode(&self, hash: &mut Sha256, inode: Inode) -> Option<()> {
        if inode == ROOT_INODE {
            self.hash_root(hash);
        } else {
            hash_entry(hash, self.entries.get(&inode)?);
        }
        Some(())
    }

    /// Digest of one entry as the index holds it; [`ROOT_INODE`] for the version row.
    pub fn entry_digest(&self, inode: Inode) -> Option<Digest> {
        let mut hash = Sha256::new();
        self.hash_inode(&mut hash, inode)?;
        Some(hash.finalize().into())
    }

    /// Checksum of one entry as lock messages carry it.
    pub fn lock_checksum(&self, inode: Inode) -> Option<Digest> {
        let mut hash = Sha256::new();
        hash.update(inode.to_le_bytes());
        self.hash_inode(&mut hash, inode)?;
        Some(hash.finalize().into())
    }

    /// Overall checksum of the verify protocol: all entries, ascending by inode, in one hash.
    pub fn checksum(&self) -> Digest {
        let mut hash = Sha256::new();
        hash.update(ROOT_INODE.to_le_bytes());
        self.hash_root(&mut hash);
        for (inode, entry) in &self.entries {
            hash.update(inode.to_le_bytes());
            hash_entry(&mut hash, entry);
        }
        hash.finalize().into()
    }

    /// The index: what a sync compares.
    pub fn index(&self) -> Index {
        let mut entries = Vec::with_capacity(self.len());
        for inode in std::iter::once(ROOT_INODE).chain(self.entries.keys().copied()) {
            if let Some(digest) = self.entry_digest(inode) {
                entries.push(IndexEntry { inode, digest });
            }
        }
        let last_inode = entries.last().map_or(ROOT_INODE, |entry| entry.inode);
        Index {
            root: self.root,
            last_inode,
            entries,
        }
    }

    /// [`Tree::index`] in the encoding of the state message.
    pub fn encode_index(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + entry_len(self.len()));
        self.index().encode_into(&mut out);
        out
    }
}
