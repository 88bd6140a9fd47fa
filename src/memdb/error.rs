//! Why an operation was refused.
#![forbid(unsafe_code)]

/// Refusals of [`super::Tree`] operations. Turned into errno in one place per interface ([`Error::errno`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Error {
    /// No such entry, or its directory is missing.
    #[error("no such file or directory")]
    NotFound,
    /// A component that has to be a directory is a file (or a file operation met a directory).
    #[error("not a directory")]
    NotADirectory,
    /// The name exists, or the VMID belongs to another node or guest type.
    #[error("already exists")]
    Exists,
    /// Not allowed: lock held, protected name, not quorate.
    #[error("permission denied")]
    Access,
    /// Directory is not empty.
    #[error("directory not empty")]
    NotEmpty,
    /// The path would be deeper than [`super::MAX_DEPTH`].
    #[error("file name too long")]
    TooDeep,
    /// The file would grow beyond [`super::MAX_FILE_SIZE`].
    #[error("file too large")]
    TooBig,
    /// The database cannot be written; no change is accepted until it can.
    #[error("input/output error")]
    Io,
    /// The change could not be replicated now, or is not in the database yet: it may still happen.
    #[error("resource busy")]
    Busy,
}

impl Error {
    /// The (positive) errno a client sees.
    pub fn errno(self) -> i32 {
        match self {
            Error::NotFound => libc::ENOENT,
            Error::NotADirectory => libc::ENOTDIR,
            Error::Exists => libc::EEXIST,
            Error::Access => libc::EACCES,
            Error::NotEmpty => libc::ENOTEMPTY,
            Error::TooDeep => libc::ENAMETOOLONG,
            Error::TooBig => libc::EFBIG,
            Error::Io => libc::EIO,
            Error::Busy => libc::EBUSY,
        }
    }
}
