//! How many requests of each kind the kernel sent.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Kinds of requests, named as in the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Request {
    Lookup,
    Forget,
    Getattr,
    Setattr,
    Readlink,
    Mknod,
    Mkdir,
    Unlink,
    Rmdir,
    Symlink,
    Rename,
    Link,
    Open,
    Read,
    Write,
    Flush,
    Release,
    Fsync,
    Opendir,
    Readdir,
    Releasedir,
    Statfs,
    Xattr,
    Access,
    Create,
    Other,
}

const NAMES: [&str; Request::Other as usize + 1] = [
    "LOOKUP",
    "FORGET",
    "GETATTR",
    "SETATTR",
    "READLINK",
    "MKNOD",
    "MKDIR",
    "UNLINK",
    "RMDIR",
    "SYMLINK",
    "RENAME",
    "LINK",
    "OPEN",
    "READ",
    "WRITE",
    "FLUSH",
    "RELEASE",
    "FSYNC",
    "OPENDIR",
    "READDIR",
    "RELEASEDIR",
    "STATFS",
    "XATTR",
    "ACCESS",
    "CREATE",
    "OTHER",
];

/// Requests since the start. Displayed as `LOOKUP=3 WRITE=1`, kinds that never came left out.
#[derive(Debug, Default)]
pub struct RequestCounts([AtomicU64; NAMES.len()]);

impl RequestCounts {
    pub(super) fn count(&self, request: Request) {
        self.0[request as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Kind and number, in the order of the protocol.
    pub fn snapshot(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        NAMES
            .iter()
            .zip(&self.0)
            .map(|(name, n)| (*name, n.load(Ordering::Relaxed)))
    }

    /// Requests of one kind (`"LOOKUP"`); 0 for an unknown name.
    pub fn get(&self, name: &str) -> u64 {
        self.snapshot()
            .find(|(kind, _)| *kind == name)
            .map_or(0, |(_, n)| n)
    }

    /// All requests that the kernel waits for: FORGET has no answer and is left out.
    pub fn total(&self) -> u64 {
        self.snapshot()
            .filter(|(kind, _)| *kind != "FORGET")
            .map(|(_, n)| n)
            .sum()
    }
}

impl fmt::Display for RequestCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sep = "";
        for (name, n) in self.snapshot().filter(|(_, n)| *n > 0) {
            write!(f, "{sep}{name}={n}")?;
            sep = " ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_kinds() {
        let counts = RequestCounts::default();
        counts.count(Request::Lookup);
        counts.count(Request::Create);
        counts.count(Request::Create);
        counts.count(Request::Forget);
        counts.count(Request::Other);
        assert_eq!(counts.to_string(), "LOOKUP=1 FORGET=1 CREATE=2 OTHER=1");
        assert_eq!(
            (counts.get("CREATE"), counts.get("NOPE"), counts.total()),
            (2, 0, 4)
        );
    }
}
