//! Rows that were found, made into a tree that every daemon loads without a warning.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::gather::Found;
use crate::memdb::load::VERSION_ROW_NAME;
use crate::memdb::{Inode, LoadError, LoadNote, LoadRow, ROOT_INODE, Tree};

/// The rules, as they are printed before anything is done.
pub(super) const RULES: &str = "\
rules:
  - a row that can be read is taken as it is, from the database with its log, if that belongs to it
  - where pages are damaged, rows are also taken from pages that nothing leads to any more
  - of two rows with one inode number the one in its place, or else the newer one is taken
  - a row without a usable name is named salvaged-INODE
  - content that ends too early is kept in NAME.incomplete-INODE
  - a directory that rows lie in, but that is missing, is made again as lost+found-INODE
  - a row that lies in a file or in itself is moved to the top directory as NAME.salvaged-INODE
  - a directory with content becomes a file; if rows lie in it, its content goes to content-INODE in it
  - of two rows with one name in one directory, or two configs of one VMID, the newer one keeps its
    name; the other one is named NAME.duplicate-INODE
  - a file where the directory of guest configs belongs is named NAME.file-INODE
  - a version row that is missing, or older than the rows, gets the version of the newest row
  - if anything was not taken as it is, the time of the version row is set to 0, so that in a
    cluster a node with the same version and all of its rows is followed, not this one
";

/// Types of rows.
const DIR: i64 = 4;
const FILE: i64 = 8;

/// A tree as rows, and what had to be done to them.
#[derive(Debug, Default)]
pub(super) struct Mended {
    /// By inode. The version row is among them.
    pub rows: BTreeMap<Inode, LoadRow>,
    /// What was changed about a row, in the order in which it was.
    pub changes: BTreeMap<Inode, Vec<String>>,
    pub left_out: Vec<String>,
}

/// Applies [`RULES`]. `damaged`: not all that there was can have been found.
///
/// # Errors
/// The tree cannot be loaded all the same: a fault of this function.
pub(super) fn mend(found: Vec<Found>, damaged: bool) -> Result<(Mended, Tree), LoadError> {
    let mut mended = Mended::default();
    mended.take(found);
    mended.mend_names();
    mended.mend_kinds();
    mended.mend_parents();
    let mut tree = mended.mend_tree()?;
    if damaged || !mended.changes.is_empty() || !mended.left_out.is_empty() {
        if let Some(root) = mended.rows.get_mut(&ROOT_INODE) {
            root.mtime = 0;
        }
        mended.changed(ROOT_INODE, "time set to 0".to_owned());
        tree = mended.load()?.0;
    }
    Ok((mended, tree))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).escape_debug().to_string()
}

fn name_of(row: &LoadRow) -> &[u8] {
    row.name.as_deref().unwrap_or_default()
}

impl Mended {
    fn changed(&mut self, inode: Inode, what: String) {
        self.changes.entry(inode).or_default().push(what);
    }

    /// One row of each inode.
    fn take(&mut self, mut found: Vec<Found>) {
        // The best of each inode first.
        found.sort_by_key(|f| {
            (
                f.row.inode as u64,
                f.stray,
                !f.complete,
                u64::MAX - f.row.version as u64,
            )
        });
        for Found { row, complete, .. } in found {
            let inode = row.inode as u64;
            if let Some(kept) = self.rows.get(&inode) {
                if *kept != row {
                    let name = text(name_of(&row));
                    let version = row.version;
                    self.left_out.push(format!(
                        "{inode:016X} '{name}': another state of this entry, version {version}"
                    ));
                }
                continue;
            }
            self.rows.insert(inode, row);
            if !complete {
                self.rename(inode, "incomplete", "its content ends too early");
            }
        }
        let root = self.rows.entry(ROOT_INODE).or_insert_with(|| LoadRow {
            type_code: FILE,
            name: Some(Arc::from(VERSION_ROW_NAME)),
            ..LoadRow::default()
        });
        if name_of(root) != VERSION_ROW_NAME {
            let old = text(name_of(root));
            root.name = Some(Arc::from(VERSION_ROW_NAME));
            self.changed(ROOT_INODE, format!("was named '{old}'"));
        }
        // Whatever it has besides its numbers, no daemon reads.
        if let Some(root) = self.rows.get_mut(&ROOT_INODE) {
            (root.parent, root.data) = (0, None);
            root.type_code = if root.type_code as u8 == 4 { DIR } else { FILE };
        }
    }

    /// Adds a word and the inode to a name.
    fn rename(&mut self, inode: Inode, word: &str, why: &str) {
        /// The kernel refuses names of more than 1,024 bytes.
        const MOST: usize = 900;
        let Some(row) = self.rows.get_mut(&inode) else {
            return;
        };
        let old = name_of(row).to_vec();
        let mut name = old[..old.len().min(MOST)].to_vec();
        name.extend_from_slice(format!(".{word}-{inode:X}").as_bytes());
        row.name = Some(Arc::from(name));
        self.changed(inode, format!("was named '{}': {why}", text(&old)));
    }

    fn mend_names(&mut self) {
        let mut changes = Vec::new();
        for (&inode, row) in &mut self.rows {
            let old = name_of(row);
            let end = old.iter().position(|b| *b == 0).unwrap_or(old.len());
            let name = &old[..end];
            if Tree::servable_name(name) {
                if end < old.len() {
                    row.name = Some(Arc::from(name));
                }
                continue;
            }
            let why = format!("was named '{}'", text(old));
            row.name = Some(Arc::from(format!("salvaged-{inode:X}").as_bytes()));
            changes.push((inode, why));
        }
        for (inode, why) in changes {
            self.changed(inode, why);
        }
    }

    fn mend_kinds(&mut self) {
        let parents: BTreeSet<Inode> = self.rows.values().map(|row| row.parent as u64).collect();
        let mut free = self.highest() + 1;
        let mut contents = Vec::new();
        let mut changes = Vec::new();
        for (&inode, row) in self
            .rows
            .iter_mut()
            .filter(|(inode, _)| **inode != ROOT_INODE)
        {
            // The daemons look at eight bits only.
            let kind = i64::from(row.type_code as u8);
            let has_data = row.data.as_ref().is_some_and(|data| !data.is_empty());
            row.type_code = match (kind, has_data, parents.contains(&inode)) {
                (FILE, ..) => FILE,
                (DIR, false, _) => DIR,
                (_, false, true) => DIR,
                (_, false, false) => FILE,
                (_, true, false) => FILE,
                (_, true, true) => {
                    contents.push(LoadRow {
                        inode: free as i64,
                        parent: inode as i64,
                        version: free as i64,
                        type_code: FILE,
                        name: Some(Arc::from(format!("content-{inode:X}").as_bytes())),
                        data: row.data.take(),
                        ..row.clone()
                    });
                    free += 1;
                    DIR
                }
            };
            if row.type_code == DIR && has_data {
                row.data = None;
            }
            if row.type_code != kind || has_data && row.type_code == DIR {
                let with = if has_data { " with content" } else { "" };
                let now = if row.type_code == DIR {
                    "a directory"
                } else {
                    "a file"
                };
                changes.push((inode, format!("had type {kind}{with}, is {now} now")));
            }
        }
        for row in contents {
            changes.push((
                row.inode as u64,
                "made for the content of its directory".to_owned(),
            ));
            self.rows.insert(row.inode as u64, row);
        }
        for (inode, what) in changes {
            self.changed(inode, what);
        }
    }

    fn mend_parents(&mut self) {
        let root = self.rows.get(&ROOT_INODE).cloned().unwrap_or_default();
        let parents: Vec<(Inode, Inode)> = self
            .rows
            .iter()
            .map(|(&inode, row)| (inode, row.parent as u64))
            .filter(|(_, parent)| *parent != ROOT_INODE)
            .collect();
        for (inode, parent) in parents {
            match self.rows.get(&parent) {
                Some(row) if row.type_code == DIR => {}
                Some(_) => self.move_to_top(inode, "the row it lay in is a file"),
                None => {
                    let name = format!("lost+found-{parent:X}");
                    let row = LoadRow {
                        inode: parent as i64,
                        parent: 0,
                        version: parent as i64,
                        mtime: root.mtime,
                        type_code: DIR,
                        name: Some(Arc::from(name.as_bytes())),
                        ..LoadRow::default()
                    };
                    self.rows.insert(parent, row);
                    self.changed(
                        parent,
                        "made again: rows lie in it, its own is lost".to_owned(),
                    );
                }
            }
        }
    }

    fn move_to_top(&mut self, inode: Inode, why: &str) {
        self.rename(inode, "salvaged", why);
        if let Some(row) = self.rows.get_mut(&inode) {
            row.parent = 0;
        }
    }

    /// Lets the daemon's own loading say what is left to do, until it says nothing.
    fn mend_tree(&mut self) -> Result<Tree, LoadError> {
        loop {
            let (tree, notes) = self.load()?;
            let mut lost = Vec::new();
            let before = self.changes.values().map(Vec::len).sum::<usize>();
            for note in notes {
                match note {
                    LoadNote::NoVersion | LoadNote::VersionBehind { .. } => self.mend_version(),
                    LoadNote::DuplicateName { other, .. } => {
                        self.rename(other.inode, "duplicate", "a newer row has that name");
                    }
                    LoadNote::DuplicateGuest(guest) => {
                        if let Some(inode) = tree.lookup(&guest.other) {
                            self.rename(inode, "duplicate", "a newer config has that VMID");
                        }
                    }
                    LoadNote::GuestDirIsFile { inode, .. } => {
                        self.rename(inode, "file", "guest configs have their directory there");
                    }
                    LoadNote::Unreachable { inode, .. } => lost.push(inode),
                }
            }
            // One of them: the others may lie in it.
            if let Some(inode) = lost.first() {
                let inode = self.in_circle(*inode);
                self.move_to_top(inode, "it lay in itself");
            }
            if before == self.changes.values().map(Vec::len).sum::<usize>() {
                return Ok(tree);
            }
        }
    }

    /// A row that lies in itself, above `inode`.
    fn in_circle(&self, mut inode: Inode) -> Inode {
        let mut seen = BTreeSet::new();
        while seen.insert(inode) {
            inode = self.rows.get(&inode).map_or(inode, |row| row.parent as u64);
        }
        inode
    }

    fn load(&self) -> Result<(Tree, Vec<LoadNote>), LoadError> {
        Tree::load(self.rows.values().cloned(), 0)
    }

    /// The greatest number in use; not those that are negative in the file.
    fn highest(&self) -> u64 {
        let numbers = self.rows.values().flat_map(|row| [row.inode, row.version]);
        numbers.max().unwrap_or(0).max(1) as u64
    }

    fn mend_version(&mut self) {
        let highest = self.highest();
        if let Some(root) = self.rows.get_mut(&ROOT_INODE) {
            let old = std::mem::replace(&mut root.version, highest as i64);
            self.changed(ROOT_INODE, format!("had version {old}, has {highest} now"));
        }
    }
}
