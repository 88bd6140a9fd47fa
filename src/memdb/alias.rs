//! Entries whose name a newer row of the same directory has.
//!
//! The C daemon can leave two rows of one name in a database (filesystem.md 7) and then refuses to
//! start. Here both stay in the database, the index and the digests. The newest (by version, then
//! mtime, then inode) has the name; the others are served as `<name>.duplicate-<inode>` in the same
//! directory, where they can be read, removed and renamed. Which entry has the name depends on the
//! rows alone, so that all nodes agree on it at any time.
#![forbid(unsafe_code)]

use std::ops::Bound;
use std::sync::Arc;

use super::entry::{Entry, Inode};
use super::tree::Tree;

/// Bytes of the true name an alias may hold: the kernel refuses names beyond 1,024 bytes.
const ALIAS_NAME_MAX: usize = 900;

/// Stands between the true name and the inode in hexadecimal digits.
const MARK: &[u8] = b".duplicate-";

/// The name an alias stands for; any other name as it is. Only what decides about access asks so: a
/// directory keeps its secrets when it loses its name.
pub(super) fn true_name(name: &[u8]) -> &[u8] {
    match name.windows(MARK.len()).rposition(|part| part == MARK) {
        Some(at) => &name[..at],
        None => name,
    }
}

/// How every alias of `name` begins.
fn alias_start(name: &[u8]) -> Vec<u8> {
    let mut start = name[..name.len().min(ALIAS_NAME_MAX)].to_vec();
    start.extend_from_slice(MARK);
    start
}

/// What decides between two entries of one name: the greater one has it.
pub(super) fn rank(inode: Inode, entry: &Entry) -> (u64, u32, Inode) {
    (entry.version, entry.mtime, inode)
}

impl Tree {
    /// Serves `inode`, whose name is taken, under a free name; returns that.
    pub(super) fn give_alias(&mut self, inode: Inode) -> Option<Arc<[u8]>> {
        let entry = self.entries.get(&inode)?;
        let dir = entry.parent;
        let mut alias = alias_start(&entry.name);
        alias.extend_from_slice(format!("{inode:X}").as_bytes());
        while self.child(dir, &alias).is_some() {
            alias.push(b'~');
        }
        let alias: Arc<[u8]> = Arc::from(alias);
        self.children_mut(dir)?.insert(Arc::clone(&alias), inode);
        self.aliases.insert(inode, Arc::clone(&alias));
        Some(alias)
    }

    /// `name` in `dir` has become free: gives it to the newest entry that is waiting for it.
    pub(super) fn restore_name(&mut self, dir: Inode, name: &Arc<[u8]>) -> Option<Inode> {
        if self.child(dir, name).is_some() {
            return None;
        }
        if self.aliases.is_empty() {
            return None;
        }
        let start = alias_start(name);
        let from = (Bound::Included(&start[..]), Bound::Unbounded);
        let children = self.get(dir)?.children()?;
        let waiting = children
            .range::<[u8], _>(from)
            .take_while(|(alias, _)| alias.starts_with(&start))
            .filter(|(_, inode)| self.aliases.contains_key(inode))
            .filter_map(|(_, inode)| {
                let entry = self.entries.get(inode)?;
                (entry.name == *name).then(|| rank(*inode, entry))
            });
        let (_, _, inode) = waiting.max()?;
        let alias = self.aliases.remove(&inode)?;
        let children = self.children_mut(dir)?;
        children.remove(&alias);
        children.insert(Arc::clone(name), inode);
        Some(inode)
    }
}
