//! What the kernel has to forget when the tree is replaced by another one.
#![forbid(unsafe_code)]

use crate::memdb::{Change, Effects, Entry, Inode, RemovedEntry, Tree, TreePath};

/// One change for each entry that is not the same in both trees. They say what is different, not
/// how it came about: their effects only name the paths concerned and are not to be announced.
pub(super) fn differences(old: &Tree, new: &Tree) -> Vec<Change> {
    let mut changes = Vec::new();
    for (inode, before) in old.iter() {
        match new.get(inode) {
            None => changes.push(removed(old, new, inode, before)),
            Some(after) if after.is_dir() != before.is_dir() => {
                changes.push(removed(old, new, inode, before));
                changes.push(present(new, inode, paths(new, new, inode)));
            }
            Some(after) if (after.parent, &after.name) != (before.parent, &before.name) => {
                changes.push(present(new, inode, paths(old, new, inode)));
            }
            Some(after) if is_other(before, after) => {
                changes.push(present(new, inode, Vec::new()));
            }
            Some(_) => {}
        }
    }
    for (inode, _) in new.iter().filter(|(inode, _)| old.get(*inode).is_none()) {
        changes.push(present(new, inode, paths(new, new, inode)));
    }
    changes
}

/// Names of children are the children's difference.
fn is_other(before: &Entry, after: &Entry) -> bool {
    (before.version, before.writer, before.mtime) != (after.version, after.writer, after.mtime)
        || before.data() != after.data()
}

fn paths(old: &Tree, new: &Tree, inode: Inode) -> Vec<TreePath> {
    // Two paths are what tells a change of names from one of content.
    old.path_of(inode)
        .into_iter()
        .chain(new.path_of(inode))
        .collect()
}

fn present(new: &Tree, inode: Inode, touched: Vec<TreePath>) -> Change {
    Change {
        delete: None,
        put: new.row(inode),
        root: new.root_row(),
        removed: None,
        inode,
        effects: Effects {
            touched,
            guests: Vec::new(),
        },
    }
}

fn removed(old: &Tree, new: &Tree, inode: Inode, before: &Entry) -> Change {
    let removed = old.path_of(inode).map(|path| RemovedEntry {
        inode,
        mtime: before.mtime,
        kind: before.kind.clone(),
        path,
    });
    Change {
        delete: Some(inode),
        put: None,
        root: new.root_row(),
        removed,
        inode,
        effects: Effects::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memdb::{Op, Stamp};

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
            [(gone, true), (moved, true), (written, false), (made, true)]
        );
        assert_eq!(found[0].removed.as_ref().unwrap().path, path("d/gone"));
        assert_eq!(
            found[1].effects.touched,
            [path("d/moved"), path("elsewhere")]
        );
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
}
