//! What is odd about a database that could be loaded all the same.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use super::entry::Inode;
use super::guests::DuplicateGuest;
use super::path::TreePath;

/// One of two entries with the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rival {
    pub inode: Inode,
    pub version: u64,
    pub mtime: u32,
}

/// To be logged when the database is opened: names the row and, where there is one, the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadNote {
    /// There is no version yet: the version row has to be written.
    NoVersion,
    /// The version row is missing or lower than the entries are.
    VersionBehind { stored: Option<u64>, highest: u64 },
    /// Two rows of one directory have the same name.
    DuplicateName {
        name: Arc<[u8]>,
        parent: Inode,
        /// Has the name.
        named: Rival,
        other: Rival,
        /// Where the other one is served.
        path: Option<TreePath>,
    },
    /// Two configs of one VMID.
    DuplicateGuest(DuplicateGuest),
    /// A regular file called `qemu-server`, `lxc` or `openvz` in a node's directory.
    GuestDirIsFile { inode: Inode, path: TreePath },
    /// Stays in the database and the digests, but no path leads to it.
    Unreachable {
        inode: Inode,
        parent: Inode,
        name: Arc<[u8]>,
    },
}

impl LoadNote {
    /// True if something is wrong that an operator should look at.
    pub fn is_warning(&self) -> bool {
        *self != LoadNote::NoVersion
    }

    /// Log domain: that of the C daemon's message, where it has one.
    pub fn domain(&self) -> &'static str {
        match self {
            LoadNote::DuplicateGuest(_) => "status",
            _ => "database",
        }
    }
}

impl fmt::Display for LoadNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadNote::NoVersion => f.write_str("new database"),
            LoadNote::VersionBehind {
                stored: None,
                highest,
            } => write!(
                f,
                "version row (inode 0) is missing, but entries up to {highest} exist - numbers in \
                 use are left out"
            ),
            LoadNote::VersionBehind {
                stored: Some(stored),
                highest,
            } => write!(
                f,
                "version row (inode 0) has version {stored}, but entries up to {highest} exist - \
                 numbers in use are left out"
            ),
            LoadNote::DuplicateName {
                name,
                parent,
                named,
                other,
                path,
            } => {
                write!(
                    f,
                    "found entry with duplicate name '{}' - A:{} vs. B:{}",
                    String::from_utf8_lossy(name),
                    Shown(*named, *parent),
                    Shown(*other, *parent),
                )?;
                match path {
                    Some(path) => {
                        write!(
                            f,
                            " - A keeps the name, B is '{path}': compare, then remove that"
                        )
                    }
                    None => write!(f, " - A keeps the name"),
                }
            }
            LoadNote::DuplicateGuest(DuplicateGuest { vmid, kept, other }) => write!(
                f,
                "detected duplicate VMID {vmid} - '{kept}' is newer and counts, '{other}' is \
                 served as a file only: compare, then remove one of them"
            ),
            LoadNote::GuestDirIsFile { inode, path } => write!(
                f,
                "'{path}' (inode = {inode:016X}) is a regular file where a directory of guest \
                 configs belongs - ignored: remove it"
            ),
            LoadNote::Unreachable {
                inode,
                parent,
                name,
            } => write!(
                f,
                "no path leads to entry '{}' (inode = {inode:016X}, parent = {parent:016X}) - \
                 kept, but not served",
                String::from_utf8_lossy(name)
            ),
        }
    }
}

/// A rival as the C daemon prints it: mtime in decimal, after `0x`.
struct Shown(Rival, Inode);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shown(
            Rival {
                inode,
                version,
                mtime,
            },
            parent,
        ) = self;
        write!(
            f,
            "(inode = 0x{inode:016X}, parent = 0x{parent:016X}, v./mtime = 0x{version:X}/0x{mtime})"
        )
    }
}
