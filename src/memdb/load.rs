//! Building the tree from the rows of `config.db`, with every check of database.md 6.
#![forbid(unsafe_code)]

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;

use super::MAX_DEPTH;
use super::alias::rank;
use super::change::{RootRow, Row};
use super::entry::{Entry, Inode, Kind, ROOT_INODE};
use super::note::{LoadNote, Rival};
use super::path::TreePath;
use super::tree::Tree;

/// Name of the row that holds the version of the whole database.
pub const VERSION_ROW_NAME: &[u8] = b"__version__";

/// Inodes and versions from here on are negative on disk: read as unsigned, but nothing a version
/// counter can have reached.
const NEGATIVE: u64 = 1 << 63;

/// A row as SQLite gives it, not yet checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadRow {
    pub inode: i64,
    pub parent: i64,
    pub version: i64,
    pub writer: i64,
    pub mtime: i64,
    pub type_code: i64,
    /// `None`: NULL.
    pub name: Option<Arc<[u8]>>,
    /// `None`: NULL.
    pub data: Option<Arc<[u8]>>,
}

impl From<&Row> for LoadRow {
    /// The row as SQLite would give it.
    fn from(row: &Row) -> LoadRow {
        LoadRow {
            inode: row.inode as i64,
            parent: row.parent as i64,
            version: row.version as i64,
            writer: i64::from(row.writer),
            mtime: i64::from(row.mtime),
            type_code: i64::from(row.type_code),
            name: Some(row.name.clone()),
            data: row.data.clone(),
        }
    }
}

/// Why a database cannot be loaded. The text is the C daemon's; [`LoadError::way_out`] says more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    NoName {
        inode: Inode,
    },
    DirectoryWithData {
        inode: Inode,
    },
    UnknownType {
        inode: Inode,
        type_code: u8,
    },
    RootName {
        name: Arc<[u8]>,
    },
    ParentIsFile {
        inode: Inode,
        parent: Inode,
        name: Arc<[u8]>,
    },
    SameInode {
        inode: Inode,
        type_code: u8,
    },
    MissingDirectory {
        inode: Inode,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy;
        match self {
            LoadError::NoName { inode } => write!(f, "inode has no name (inode = {inode:016X})"),
            LoadError::DirectoryWithData { inode } => {
                write!(f, "directory inode contains data (inode = {inode:016X})")
            }
            LoadError::UnknownType { inode, type_code } => {
                write!(
                    f,
                    "inode has unknown type (inode = {inode:016X}, type = {type_code})"
                )
            }
            LoadError::RootName { name } => {
                write!(f, "root inode has unexpected name '{}'", text(name))
            }
            LoadError::ParentIsFile {
                inode,
                parent,
                name,
            } => write!(
                f,
                "parent is not a directory (inode = {inode:016X}, parent = {parent:016X}, \
                 name = '{}')",
                text(name)
            ),
            LoadError::SameInode { inode, type_code } => write!(
                f,
                "found strange placeholder for (inode = {inode:016X}, type = '{type_code}')"
            ),
            LoadError::MissingDirectory { inode } => {
                write!(f, "missing directory inode (inode = {inode:016X})")
            }
        }
    }
}

impl std::error::Error for LoadError {}

impl LoadError {
    /// What an operator can do about it, as one line; `db` is the file's path.
    pub fn way_out(&self, db: &str) -> String {
        let salvage = format!("pmxcfs --salvage '{db}' '{db}.salvaged'");
        let (why, sql) = match self {
            LoadError::SameInode { .. } | LoadError::RootName { .. } => {
                let why = match self {
                    LoadError::RootName { .. } => "row 0 has to be the version row",
                    _ => "two rows have one inode number",
                };
                return format!(
                    "{why}. With pmxcfs stopped, save all rows, mended, into a new file: {salvage}"
                );
            }
            LoadError::NoName { inode } => (
                "the row has lost its name (the file may be truncated: try a backup first)",
                format!("DELETE FROM tree WHERE inode = {}", *inode as i64),
            ),
            LoadError::DirectoryWithData { inode } => (
                "a directory cannot have content",
                format!(
                    "UPDATE tree SET data = NULL WHERE inode = {}",
                    *inode as i64
                ),
            ),
            LoadError::UnknownType { inode, .. } => (
                "only 4 (directory) and 8 (file) are known",
                format!("UPDATE tree SET type = 8 WHERE inode = {}", *inode as i64),
            ),
            LoadError::ParentIsFile { inode, .. } => (
                "move the row to the top level, then look at both",
                format!("UPDATE tree SET parent = 0 WHERE inode = {}", *inode as i64),
            ),
            LoadError::MissingDirectory { inode } => (
                "rows name it as their directory; make it again as lost+found",
                format!(
                    "INSERT INTO tree SELECT {0}, 0, version, 0, mtime, 4, 'lost+found-{1:X}', \
                     NULL FROM tree WHERE inode = 0",
                    *inode as i64, inode
                ),
            ),
        };
        format!(
            "{why}. With pmxcfs stopped and a copy of '{db}' made, run: sqlite3 '{db}' \"{sql}\"; \
             or save all rows, mended, into a new file: {salvage}"
        )
    }
}

/// Takes the rows of a database one after the other, in the order of their signed inodes.
#[derive(Debug, Default)]
pub struct Loader {
    entries: BTreeMap<Inode, Entry>,
    /// Directories that rows name but that have not come yet.
    placeholders: BTreeSet<Inode>,
    root: Option<RootRow>,
}

impl Loader {
    /// A loader without rows.
    pub fn new() -> Self {
        Loader::default()
    }

    /// Checks one row and takes it in.
    ///
    /// # Errors
    /// Any check of database.md 6 that one row can fail.
    pub fn push(&mut self, row: LoadRow) -> Result<(), LoadError> {
        let inode = row.inode as u64;
        // The C daemon reads names as C strings.
        let name = row
            .name
            .map(|name| match name.iter().position(|&b| b == 0) {
                Some(end) => Arc::from(&name[..end]),
                None => name,
            });
        let name = name
            .filter(|name| !name.is_empty())
            .ok_or(LoadError::NoName { inode })?;
        let kind = match row.type_code as u8 {
            8 => Kind::File(row.data.unwrap_or_else(|| Arc::from(&b""[..]))),
            4 if row.data.is_none_or(|data| data.is_empty()) => Kind::Dir(BTreeMap::new()),
            4 => return Err(LoadError::DirectoryWithData { inode }),
            type_code => return Err(LoadError::UnknownType { inode, type_code }),
        };
        let (version, writer, mtime) = (row.version as u64, row.writer as u32, row.mtime as u32);
        if inode == ROOT_INODE {
            if *name != *VERSION_ROW_NAME {
                return Err(LoadError::RootName { name });
            }
            self.root = Some(RootRow {
                version,
                writer,
                mtime,
            });
            return Ok(());
        }
        let parent = row.parent as u64;
        if parent != ROOT_INODE {
            match self.entries.get(&parent) {
                None => {
                    self.placeholders.insert(parent);
                }
                Some(dir) if dir.is_dir() => {}
                Some(_) => {
                    return Err(LoadError::ParentIsFile {
                        inode,
                        parent,
                        name,
                    });
                }
            }
        }
        let entry = Entry {
            parent,
            version,
            writer,
            mtime,
            name,
            kind,
        };
        self.placeholders.remove(&inode);
        match self.entries.entry(inode) {
            Slot::Vacant(slot) => slot.insert(entry),
            Slot::Occupied(_) => {
                return Err(LoadError::SameInode {
                    inode,
                    type_code: entry.type_code(),
                });
            }
        };
        Ok(())
    }

    /// All rows have come: builds the tree. `uptime` is a monotonic time, for the locks.
    ///
    /// # Errors
    /// [`LoadError::MissingDirectory`].
    pub fn finish(self, uptime: u32) -> Result<(Tree, Vec<LoadNote>), LoadError> {
        if let Some(&inode) = self.placeholders.first() {
            return Err(LoadError::MissingDirectory { inode });
        }
        let mut notes = Vec::new();
        let mut tree = Tree::new();
        // Collected anew the nodes of the map are full, not half full as after inserting in order.
        tree.entries = self.entries.into_iter().collect();
        tree.root = root_row(self.root, &tree, &mut notes);
        let losers = tree.link_all();
        for (inode, winner) in losers {
            tree.give_alias(inode);
            notes.push(tree.duplicate_note(winner, inode));
        }
        tree.note_unreachable(&mut notes);
        tree.note_guest_dirs(&mut notes);
        notes.extend(
            tree.rebuild_guests()
                .into_iter()
                .map(LoadNote::DuplicateGuest),
        );
        tree.rebuild_locks(uptime);
        Ok((tree, notes))
    }
}

/// The version row as it is, also if it lags behind the entries: it decides whose data counts in a
/// cluster, so a damaged database must not outdo the others by starting. New entries get numbers
/// that are free ([`Tree::apply`]). Only 0 means that there is none yet.
fn root_row(stored: Option<RootRow>, tree: &Tree, notes: &mut Vec<LoadNote>) -> RootRow {
    let mut root = stored.unwrap_or(RootRow {
        version: 0,
        writer: 0,
        mtime: 0,
    });
    let highest = tree
        .iter()
        .flat_map(|(inode, entry)| [inode, entry.version])
        .filter(|number| *number < NEGATIVE)
        .max()
        .unwrap_or(0);
    if highest > root.version {
        let stored = stored.map(|root| root.version);
        notes.push(LoadNote::VersionBehind { stored, highest });
    }
    if root.version == 0 {
        notes.push(LoadNote::NoVersion);
        root.version = 1;
    }
    root
}

impl Tree {
    /// Builds the tree from all rows of a database.
    ///
    /// # Errors
    /// [`LoadError`] names the first row that cannot be.
    pub fn load(
        rows: impl Iterator<Item = LoadRow>,
        uptime: u32,
    ) -> Result<(Tree, Vec<LoadNote>), LoadError> {
        let mut loader = Loader::new();
        for row in rows {
            loader.push(row)?;
        }
        loader.finish(uptime)
    }

    /// Enters every entry in its directory. Returns the entries whose name another one has, each
    /// with that one.
    fn link_all(&mut self) -> Vec<(Inode, Inode)> {
        let mut losers = Vec::new();
        let links: Vec<_> = self
            .entries
            .iter()
            .map(|(inode, entry)| (*inode, entry.parent, Arc::clone(&entry.name)))
            .collect();
        for (inode, parent, name) in links {
            // Nobody can reach an entry that is its own directory, or lies in a file.
            if parent == inode {
                continue;
            }
            let rival = self.child(parent, &name);
            let wins = rival.is_none_or(|rival| self.newer(inode, rival));
            if let Some(rival) = rival {
                losers.push((if wins { rival } else { inode }, parent, Arc::clone(&name)));
            }
            if wins {
                if let Some(children) = self.children_mut(parent) {
                    children.insert(name, inode);
                }
            }
        }
        let winner = |(loser, dir, name): (_, _, Arc<[u8]>)| Some((loser, self.child(dir, &name)?));
        losers.into_iter().filter_map(winner).collect()
    }

    fn newer(&self, a: Inode, b: Inode) -> bool {
        match (self.entries.get(&a), self.entries.get(&b)) {
            (Some(x), Some(y)) => rank(a, x) > rank(b, y),
            (x, _) => x.is_some(),
        }
    }

    fn duplicate_note(&self, winner: Inode, loser: Inode) -> LoadNote {
        let rival = |inode| {
            let entry = self.get(inode);
            Rival {
                inode,
                version: entry.map_or(0, |entry| entry.version),
                mtime: entry.map_or(0, |entry| entry.mtime),
            }
        };
        let entry = self.get(loser);
        LoadNote::DuplicateName {
            name: entry.map_or_else(|| Arc::from(&b""[..]), |entry| Arc::clone(&entry.name)),
            parent: entry.map_or(ROOT_INODE, |entry| entry.parent),
            named: rival(winner),
            other: rival(loser),
            // Each costs as much as it is deep, and there may be many.
            path: self.path_within(loser, MAX_DEPTH),
        }
    }

    /// Reports every entry that no path leads to.
    fn note_unreachable(&self, notes: &mut Vec<LoadNote>) {
        let mut reached = HashSet::with_capacity(self.entries.len());
        let mut open = vec![ROOT_INODE];
        while let Some(dir) = open.pop() {
            for (name, &inode) in self
                .get(dir)
                .and_then(Entry::children)
                .into_iter()
                .flatten()
            {
                if Tree::servable_name(name) && reached.insert(inode) && self.is_dir(inode) {
                    open.push(inode);
                }
            }
        }
        for (inode, entry) in self.iter().filter(|(inode, _)| !reached.contains(inode)) {
            notes.push(LoadNote::Unreachable {
                inode,
                parent: entry.parent,
                name: Arc::clone(&entry.name),
            });
        }
    }

    /// Reports regular files that stand where a directory of guest configs belongs.
    fn note_guest_dirs(&self, notes: &mut Vec<LoadNote>) {
        let nodes = self
            .child(ROOT_INODE, b"nodes")
            .and_then(|inode| self.get(inode)?.children());
        for (node, &inode) in nodes.into_iter().flatten() {
            for (name, &child) in self
                .get(inode)
                .and_then(Entry::children)
                .into_iter()
                .flatten()
            {
                let path = TreePath::new(b"nodes").join(node).join(name);
                if path.is_guest_dir() && !self.is_dir(child) {
                    notes.push(LoadNote::GuestDirIsFile { inode: child, path });
                }
            }
        }
    }
}
