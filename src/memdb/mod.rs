//! The in-memory tree behind `/etc/pve` and every rule about it (spec: `docs/protocol/database.md`).
//!
//! Pure: no I/O, no clock, no thread. Time, writer and randomness come in as arguments.
#![forbid(unsafe_code)]

mod alias;
mod apply;
pub mod change;
mod digest;
pub mod entry;
pub mod error;
mod guests;
pub mod index;
pub mod load;
mod local;
mod locks;
pub mod note;
pub mod op;
pub mod path;
#[cfg(test)]
pub(crate) mod tests;
pub mod tree;

pub use change::{Change, Effects, GuestEvent, RemovedEntry, RootRow, Row};
pub use digest::Digest;
pub use entry::{Entry, Inode, Kind, ROOT_INODE};
pub use error::Error;
pub use guests::{DuplicateGuest, Guest};
pub use index::{Index, IndexError};
pub use load::{LoadError, LoadRow, Loader};
pub use note::LoadNote;
pub use op::{Op, Stamp};
pub use path::{GuestPath, GuestType, TreePath};
pub use tree::{Moment, Tree};

/// Largest file in bytes (database.md section 8).
pub const MAX_FILE_SIZE: u64 = 1 << 20;
/// Size the filesystem reports by statfs; not enforced (database.md section 8).
pub const MAX_TOTAL_SIZE: u64 = 128 << 20;
/// Entries the filesystem reports by statfs; not enforced (database.md section 8).
pub const MAX_ENTRIES: u64 = 256 << 10;
/// Deepest path a client of this node may make, in components. Directories of other nodes and of the
/// database may be deeper.
pub const MAX_DEPTH: usize = 128;
/// A lock older than this many seconds may be taken away (database.md section 11).
pub const LOCK_TIMEOUT_SECS: u32 = 120;
