//! What a filesystem is asked and what it answers, in plain values: the border between the view
//! and whatever speaks the kernel's protocol (today `fuser`, in `adapter.rs` only).
#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Inode number as the kernel knows it. 1 is the root of the mount, 0 is never an inode.
pub type Ino = u64;

/// The root directory of the mount.
pub const ROOT_INO: Ino = 1;

/// A positive error number of the system.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", nix::errno::Errno::from_raw(self.0))
    }
}

impl From<crate::memdb::Error> for Errno {
    fn from(err: crate::memdb::Error) -> Self {
        Errno(err.errno())
    }
}

/// Takes the answer of one request: called exactly once, from any thread.
pub type Reply<T> = Box<dyn FnOnce(Result<T, Errno>) + Send>;

/// Type of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    Directory,
    Regular,
    Symlink,
}

/// Attributes of an inode (filesystem.md 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    pub ino: Ino,
    pub kind: FileKind,
    /// Permission bits.
    pub perm: u16,
    pub nlink: u32,
    /// Bytes.
    pub size: u64,
    /// As shown by stat; counted in 4096 byte units like the C daemon does.
    pub blocks: u64,
    /// Seconds since the epoch; all three times are the same.
    pub mtime: u32,
    /// Nanoseconds of the modification time: another number makes the kernel drop the content, or
    /// the listing, that it has cached.
    pub edition: u32,
    pub gid: u32,
}

/// Attributes and how long the kernel may keep them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttrReply {
    pub attr: Attr,
    pub ttl: Duration,
}

/// Answer of a look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// The name exists; the kernel now holds one more reference to the inode.
    Found {
        attr: Attr,
        attr_ttl: Duration,
        entry_ttl: Duration,
    },
    /// The name does not exist and the kernel may remember that.
    Missing { ttl: Duration },
}

/// A part of a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    data: Arc<[u8]>,
    range: Range<usize>,
}

impl Slice {
    /// At most `size` bytes from `offset`; empty behind the end.
    pub fn new(data: Arc<[u8]>, offset: u64, size: u32) -> Self {
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(data.len());
        let end = start.saturating_add(size as usize).min(data.len());
        Slice {
            data,
            range: start..end,
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.data[self.range.clone()]
    }
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// Now.
    Now,
    /// Whole seconds since the epoch; may be negative.
    Seconds(i64),
}

/// What to change; `None` leaves it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits, without the type.
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

/// One entry of a listing.
#[derive(Debug, Clone, Copy)]
pub struct DirEntry<'a> {
    pub ino: Ino,
    /// Position behind this entry.
    pub next: u64,
    pub kind: FileKind,
    pub name: &'a [u8],
}

/// Numbers for statfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    pub block_size: u32,
    pub blocks: u64,
    pub blocks_free: u64,
    pub files: u64,
    pub files_free: u64,
    pub name_max: u32,
}

/// The filesystem. No method waits: an answer that takes time is given later through its `reply`.
pub trait Operations: Send + Sync + 'static {
    /// Finds `name` in directory `dir`.
    fn lookup(&self, dir: Ino, name: &[u8], reply: Reply<Entry>);
    /// The kernel dropped `count` references to an inode.
    fn forget(&self, ino: Ino, count: u64);
    /// Attributes.
    fn getattr(&self, ino: Ino, reply: Reply<AttrReply>);
    /// Changes attributes; answers with the new ones.
    fn setattr(&self, ino: Ino, set: SetAttr, reply: Reply<AttrReply>);
    /// Target of a symbolic link.
    fn readlink(&self, ino: Ino) -> Result<Slice, Errno>;
    /// Creates a regular file.
    fn create(&self, dir: Ino, name: &[u8], reply: Reply<Entry>);
    /// Creates a directory.
    fn mkdir(&self, dir: Ino, name: &[u8], reply: Reply<Entry>);
    /// Removes a file.
    fn unlink(&self, dir: Ino, name: &[u8], reply: Reply<()>);
    /// Removes an empty directory.
    fn rmdir(&self, dir: Ino, name: &[u8], reply: Reply<()>);
    /// Renames; replaces what has the new name.
    fn rename(&self, dir: Ino, name: &[u8], to_dir: Ino, to_name: &[u8], reply: Reply<()>);
    /// At most `size` bytes of content.
    fn read(&self, ino: Ino, offset: u64, size: u32, reply: Reply<Slice>);
    /// Writes all of `data` (or refuses); answers with the number of bytes written.
    fn write(&self, ino: Ino, offset: u64, data: &[u8], reply: Reply<u32>);
    /// Hands the entries behind position `offset` to `add` until it says that it is full.
    fn readdir(
        &self,
        ino: Ino,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno>;
    /// Sizes of the filesystem.
    fn statfs(&self) -> StatFs;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slice_is_clamped() {
        let data: Arc<[u8]> = Arc::from(&b"0123456789"[..]);
        assert_eq!(Slice::new(data.clone(), 0, 4).bytes(), b"0123");
        assert_eq!(Slice::new(data.clone(), 8, 4).bytes(), b"89");
        assert_eq!(Slice::new(data.clone(), 10, 4).bytes(), b"");
        assert_eq!(Slice::new(data.clone(), u64::MAX, u32::MAX).bytes(), b"");
        assert_eq!(Slice::new(data, 0, u32::MAX).bytes(), b"0123456789");
    }
}
