//! What the kernel has to forget when the tree is replaced by another one.
//!
//! The work is linear in the number of entries: how deep they lie does not count, as an index that
//! is an ordinary message can bring a chain of 16,000 directories. So paths are made of removed
//! entries only, and cut.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use crate::memdb::{Change, Effects, Entry, Inode, ROOT_INODE, RemovedEntry, Row, Tree, TreePath};

/// Of the directories of a removed entry so many are in its path: who may read an open file depends
/// on these and on the last component.
const HEAD: usize = 3;
/// A longer name cannot be looked up: nobody knows what is below it.
const NAME_MAX: usize = 1024;

/// Changes that say what is different between both trees, not how it came about. Their effects are
/// not to be announced, and a row is there for its directory and its name: an entry that moved has
/// one change for the old place and one for the new place.
pub(super) fn differences(old: &Tree, new: &Tree) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut heads = Heads::new(old);
    let shared = shared_version(old, new);
    for (inode, before) in old.iter() {
        match new.get(inode) {
            Some(after) if before.is_dir() == after.is_dir() => {
                if has_name_of(old, new, inode, before, after) {
                    if is_other(before, after) {
                        changes.push(change(new, inode, new.row(inode), false));
                    }
                } else if inode <= shared {
                    changes.push(change(new, inode, place(old, inode), true));
                    changes.push(change(new, inode, place(new, inode), true));
                } else {
                    // Made in both histories after they parted: another entry, with the same number.
                    changes.push(heads.removed(new, inode, before));
                    changes.push(change(new, inode, place(new, inode), true));
                }
            }
            Some(_) => {
                changes.push(heads.removed(new, inode, before));
                changes.push(change(new, inode, place(new, inode), true));
            }
            None => changes.push(heads.removed(new, inode, before)),
        }
    }
    for (inode, _) in new.iter().filter(|(inode, _)| old.get(*inode).is_none()) {
        changes.push(change(new, inode, place(new, inode), true));
    }
    changes
}

/// Both trees come from one at this version or a later one: they have an entry in common that was
/// changed at this version.
fn shared_version(old: &Tree, new: &Tree) -> u64 {
    let in_common = old.iter().filter(|(inode, before)| {
        new.get(*inode).is_some_and(|after| {
            !is_other(before, after) && (&before.name, before.parent) == (&after.name, after.parent)
        })
    });
    in_common.map(|(_, entry)| entry.version).max().unwrap_or(0)
}

fn has_name_of(old: &Tree, new: &Tree, inode: Inode, before: &Entry, after: &Entry) -> bool {
    before.parent == after.parent && old.served_name(inode) == new.served_name(inode)
}

/// Names of children are the children's difference.
fn is_other(before: &Entry, after: &Entry) -> bool {
    (before.version, before.writer, before.mtime) != (after.version, after.writer, after.mtime)
        || before.data() != after.data()
}

/// Where an entry is served: its row, with that name.
fn place(tree: &Tree, inode: Inode) -> Option<Row> {
    let name = tree.served_name(inode)?.clone();
    tree.row(inode).map(|row| Row { name, ..row })
}

fn change(new: &Tree, inode: Inode, put: Option<Row>, names: bool) -> Change {
    // Two paths are what tells a change of names from one of content; the root's names nothing.
    let touched = vec![TreePath::root(); if names { 2 } else { 0 }];
    Change {
        delete: None,
        put,
        root: new.root_row(),
        removed: None,
        inode,
        effects: Effects {
            touched,
            guests: Vec::new(),
        },
    }
}

/// The first components of the paths of directories, as far as they were asked for. `None`: no path
/// leads there.
struct Heads<'t> {
    tree: &'t Tree,
    known: HashMap<Inode, Option<(usize, TreePath)>>,
}

impl<'t> Heads<'t> {
    fn new(tree: &'t Tree) -> Self {
        let known = HashMap::from([(ROOT_INODE, Some((0, TreePath::root())))]);
        Heads { tree, known }
    }

    /// An entry of the old tree is gone.
    fn removed(&mut self, new: &Tree, inode: Inode, before: &Entry) -> Change {
        let path = self.step(inode).and_then(|name| {
            let (_, head) = self.of(before.parent)?;
            Some(head.join(name))
        });
        Change {
            delete: Some(inode),
            removed: path.map(|path| RemovedEntry {
                inode,
                mtime: before.mtime,
                kind: before.kind.clone(),
                path,
            }),
            ..change(new, inode, place(self.tree, inode), true)
        }
    }

    /// Name of an entry, if its directory leads to it by that.
    fn step(&self, inode: Inode) -> Option<&'t [u8]> {
        let tree = self.tree;
        let name = tree.served_name(inode)?;
        let leads = tree.child(tree.get(inode)?.parent, name) == Some(inode);
        (leads && Tree::servable_name(name) && name.len() <= NAME_MAX).then_some(name)
    }

    /// Depth and first components of directory `dir`. Each directory is climbed once.
    fn of(&mut self, dir: Inode) -> Option<(usize, TreePath)> {
        let mut open = Vec::new();
        let mut at = dir;
        let mut found = loop {
            if let Some(found) = self.known.get(&at) {
                break found.clone();
            }
            // Until it is known better; also ends directories that are below themselves.
            self.known.insert(at, None);
            open.push(at);
            match self.step(at).and(self.tree.get(at)) {
                Some(entry) => at = entry.parent,
                None => break None,
            }
        };
        for dir in open.into_iter().rev() {
            found = found.and_then(|(depth, head)| {
                let name = self.step(dir)?;
                let head = if depth < HEAD { head.join(name) } else { head };
                Some((depth + 1, head))
            });
            self.known.insert(dir, found.clone());
        }
        found
    }
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::memdb::{LoadRow, Op, Stamp};

    fn path(path: &str) -> TreePath {
        TreePath::new(path.as_bytes())
    }

    fn apply(tree: &mut Tree, op: &Op) -> Inode {
        tree.apply(
            op,
            Stamp {
                writer: 1,
                mtime: 100,
            },
            100,
        )
        .unwrap()
        .inode
    }

    fn put(tree: &mut Tree, name: &str, data: &[u8]) -> Inode {
        if tree.lookup(&path(name)).is_none() {
            apply(tree, &Op::Create { path: path(name) });
        }
        let data = data.to_vec();
        apply(
            tree,
            &Op::Write {
                path: path(name),
                offset: 0,
                data,
                truncate: true,
            },
        )
    }

    fn names_of(change: &Change) -> (Inode, &str) {
        let row = change.put.as_ref().unwrap();
        (row.parent, std::str::from_utf8(&row.name).unwrap())
    }

    #[test]
    fn equal_trees_have_none() {
        let mut tree = Tree::new();
        apply(&mut tree, &Op::Mkdir { path: path("d") });
        put(&mut tree, "d/f", b"x");
        assert_eq!(differences(&tree, &tree.clone()), []);
    }

    #[test]
    fn each_kind_of_difference_is_found() {
        let mut old = Tree::new();
        let dir = apply(&mut old, &Op::Mkdir { path: path("d") });
        let gone = put(&mut old, "d/gone", b"x");
        let moved = put(&mut old, "d/moved", b"y");
        let written = put(&mut old, "written", b"z");
        put(&mut old, "same", b"");
        let mut new = old.clone();
        apply(
            &mut new,
            &Op::Delete {
                path: path("d/gone"),
            },
        );
        apply(
            &mut new,
            &Op::Rename {
                from: path("d/moved"),
                to: path("elsewhere"),
            },
        );
        put(&mut new, "written", b"more");
        let made = put(&mut new, "d/made", b"");
        let found = differences(&old, &new);
        let names: Vec<(Inode, bool)> =
            found.iter().map(|c| (c.inode, c.changes_names())).collect();
        assert_eq!(
            names,
            [
                (gone, true),
                (moved, true),
                (moved, true),
                (written, false),
                (made, true)
            ]
        );
        assert_eq!(found[0].removed.as_ref().unwrap().path, path("d/gone"));
        assert_eq!(names_of(&found[0]), (dir, "gone"));
        assert_eq!(names_of(&found[1]), (dir, "moved"));
        assert_eq!(names_of(&found[2]), (ROOT_INODE, "elsewhere"));
        assert_eq!(names_of(&found[4]), (dir, "made"));
        // The directory itself is the same, its children are not.
        assert!(!names.iter().any(|(inode, _)| *inode == dir));
    }

    #[test]
    fn a_file_that_became_a_directory_is_gone_and_made() {
        let (mut old, mut new) = (Tree::new(), Tree::new());
        let file = apply(&mut old, &Op::Create { path: path("x") });
        let dir = apply(&mut new, &Op::Mkdir { path: path("y") });
        assert_eq!(file, dir);
        let found = differences(&old, &new);
        assert_eq!(found.len(), 2);
        assert!(found[0].removed.is_some() && found[1].put.is_some());
    }

    /// Two nodes that parted made an entry each: the numbers are the same, the entries are not.
    #[test]
    fn entries_of_two_histories_are_not_one_that_moved() {
        let mut mine = Tree::new();
        put(&mut mine, "shared", b"x");
        let mut theirs = mine.clone();
        let inode = put(&mut mine, "mine", b"1");
        assert_eq!(put(&mut theirs, "theirs", b"2"), inode);
        let found = differences(&mine, &theirs);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].removed.as_ref().unwrap().path, path("mine"));
        assert_eq!(names_of(&found[0]), (ROOT_INODE, "mine"));
        assert!(found[1].removed.is_none());
        assert_eq!(names_of(&found[1]), (ROOT_INODE, "theirs"));
    }

    /// A chain of directories, each in the one before, and a file in the last.
    fn chain(depth: u64) -> Tree {
        let row = |inode: u64, type_code| LoadRow {
            inode: inode as i64,
            parent: inode as i64 - 1,
            version: inode as i64,
            type_code,
            name: Some(b"d"[..].into()),
            ..LoadRow::default()
        };
        let mut rows: Vec<LoadRow> = (1..=depth).map(|inode| row(inode, 4)).collect();
        rows.push(row(depth + 1, 8));
        Tree::load(rows.into_iter(), 0).unwrap().0
    }

    /// Seconds, where a walk to the root for each entry takes many minutes.
    #[test]
    fn a_chain_of_directories_costs_what_its_entries_cost() {
        let started = std::time::Instant::now();
        let (old, new) = (chain(100_000), Tree::new());
        let gone = differences(&old, &new);
        assert_eq!(gone.len(), 100_001);
        assert_eq!(gone[3].removed.as_ref().unwrap().path, path("d/d/d/d"));
        let file = gone[100_000].removed.as_ref().unwrap();
        assert_eq!((file.inode, &file.path), (100_001, &path("d/d/d/d")));
        assert_eq!(names_of(&gone[100_000]), (100_000, "d"));
        assert_eq!(differences(&new, &old).len(), 100_001);
        assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    }

    /// Directories that lie in each other have no path; they end the climb.
    #[test]
    fn a_circle_has_no_path() {
        let row = |inode: i64, parent, type_code| LoadRow {
            inode,
            parent,
            version: inode,
            type_code,
            name: Some(format!("{inode}").into_bytes().into()),
            ..LoadRow::default()
        };
        let rows = [row(1, 2, 4), row(2, 1, 4), row(3, 1, 8), row(4, 0, 8)];
        let (old, _) = Tree::load(rows.into_iter(), 0).unwrap();
        let found = differences(&old, &Tree::new());
        let reached: Vec<bool> = found.iter().map(|c| c.removed.is_some()).collect();
        assert_eq!(reached, [false, false, false, true]);
    }
}
