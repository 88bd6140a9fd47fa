//! The view beside a tree that is replaced.
#![forbid(unsafe_code)]

use parking_lot::RwLock;

use super::*;
use crate::fs::DotReady;
use crate::memdb::{Op, RemovedEntry, Stamp};
use crate::replica::{Done, Observer};

struct Nobody;

impl Replica for Nobody {
    fn submit(&self, _: Op, _: Done) {}
    fn quorate(&self) -> bool {
        true
    }
}

impl DotFiles for Nobody {
    fn content(&self, _: DotFile, _: DotReady) {}
    fn set_debug(&self, _: bool) {}
}

fn path(path: &str) -> TreePath {
    TreePath::new(path.as_bytes())
}

fn apply(tree: &mut Tree, op: &Op) -> crate::memdb::Change {
    let stamp = Stamp {
        writer: 1,
        mtime: 5,
    };
    tree.apply(op, stamp, 5).unwrap()
}

fn put(tree: &mut Tree, name: &str, data: &[u8]) -> Inode {
    apply(tree, &Op::Create { path: path(name) });
    let write = Op::Write {
        path: path(name),
        offset: 0,
        data: data.to_vec(),
        truncate: true,
    };
    apply(tree, &write).inode
}

struct Bench {
    tree: SharedTree,
    inodes: Arc<Inodes>,
    view: View,
}

impl Bench {
    fn new(tree: Tree) -> Self {
        let (tree, inodes) = (Arc::new(RwLock::new(tree)), Inodes::new());
        let config = ViewConfig {
            node: "n".into(),
            gid: 33,
        };
        let nobody = Arc::new(Nobody);
        let view = View::new(config, tree.clone(), nobody.clone(), nobody, inodes.clone());
        Bench { tree, inodes, view }
    }

    fn names(&self, dir: Ino) -> Vec<String> {
        let mut names = Vec::new();
        let mut add = |entry: DirEntry<'_>| {
            names.push(String::from_utf8_lossy(entry.name).into_owned());
            false
        };
        self.view.readdir(dir, 0, &mut add).unwrap();
        names
    }

    /// As a process looks a name of the root up.
    fn find(&self, name: &str) -> Ino {
        let found = Arc::new(Mutex::new(0));
        let into = found.clone();
        let reply: Reply<Entry> = Box::new(move |entry| match entry {
            Ok(Entry::Found { attr, .. }) => *into.lock() = attr.ino,
            other => panic!("{other:?}"),
        });
        self.view.lookup(ROOT_INO, name.as_bytes(), reply);
        *found.lock()
    }

    fn read(&self, ino: Ino) -> String {
        let got = Arc::new(Mutex::new(Vec::new()));
        let into = got.clone();
        let reply: Reply<Slice> =
            Box::new(move |slice| into.lock().extend_from_slice(slice.unwrap().bytes()));
        self.view.read(ino, 0, 100, reply);
        String::from_utf8_lossy(&got.lock()).into_owned()
    }

    /// The result of a write, or that it went on to the replica (which never answers here).
    fn write(&self, ino: Ino, data: &[u8]) -> Option<Result<u32, Errno>> {
        let result = Arc::new(Mutex::new(None));
        let into = result.clone();
        let reply: Reply<u32> = Box::new(move |written| *into.lock() = Some(written));
        self.view.write(ino, 0, data, reply);
        *result.lock()
    }
}

/// A directory that is large enough for its listing to be kept.
fn large(prefix: &str) -> Tree {
    let mut tree = Tree::new();
    tree.set_version_for_test(1);
    apply(&mut tree, &Op::Mkdir { path: path("d") });
    for number in 0..70 {
        let path = path(&format!("d/{prefix}{number}"));
        apply(&mut tree, &Op::Create { path });
    }
    tree
}

#[test]
fn a_listing_does_not_outlive_its_tree() {
    let bench = Bench::new(large("old"));
    assert!(bench.names(2).contains(&"old3".into()));
    // Another tree of the same version, and a copy that went its own way.
    *bench.tree.write() = large("new");
    assert!(bench.names(2).contains(&"new3".into()));
    let mut copy = bench.tree.read().clone();
    apply(
        &mut copy,
        &Op::Delete {
            path: path("d/new3"),
        },
    );
    let mut here = bench.tree.write();
    apply(
        &mut here,
        &Op::Delete {
            path: path("d/new4"),
        },
    );
    drop(here);
    assert!(bench.names(2).contains(&"new3".into()));
    *bench.tree.write() = copy;
    let names = bench.names(2);
    assert!(names.contains(&"new4".into()) && !names.contains(&"new3".into()));
}

#[test]
fn a_listing_is_kept_while_nothing_changes() {
    let bench = Bench::new(large("f"));
    let kept = || bench.view.0.listings.lock().address();
    bench.names(2);
    let first = kept();
    assert!(first.is_some());
    bench.names(2);
    assert_eq!(kept(), first);
}

/// An open file of a history that was undone, and a file that got its number in the one that counts.
#[test]
fn an_open_file_does_not_become_another_one() {
    let mut tree = Tree::new();
    tree.set_version_for_test(10);
    let before = tree.clone();
    let inode = put(&mut tree, "mine", b"mine");
    let bench = Bench::new(tree);
    let mine = bench.find("mine");
    // What a replacement does: the other tree, and the observers are told what is gone.
    let gone = apply(&mut bench.tree.write(), &Op::Delete { path: path("mine") });
    *bench.tree.write() = before;
    bench.inodes.applied(&gone);
    assert_eq!(bench.read(mine), "mine");
    // Nobody has asked for the other file yet.
    let their_inode = put(&mut bench.tree.write(), "theirs", b"theirs");
    assert_eq!(their_inode, inode, "the number is used again");
    assert_eq!(bench.read(mine), "mine");
    let theirs = bench.find("theirs");
    assert_ne!(theirs, mine);
    assert_eq!(bench.read(theirs), "theirs");
    assert_eq!(bench.read(mine), "mine");
    // Each is written as what it is: one in memory only, the other one by the replica.
    assert_eq!(bench.write(mine, b"MI"), Some(Ok(2)));
    assert_eq!(bench.write(theirs, b"TH"), None);
    assert_eq!(bench.read(mine), "MIne");
    assert_eq!(bench.read(theirs), "theirs");
    // The second one is removed while it is open, too.
    let gone = apply(
        &mut bench.tree.write(),
        &Op::Delete {
            path: path("theirs"),
        },
    );
    bench.inodes.applied(&gone);
    assert_eq!(bench.read(theirs), "theirs");
    assert_eq!(bench.read(mine), "MIne");
    // The kernel forgets the first: nothing of the second changes.
    bench.view.forget(mine, 1);
    assert_eq!(bench.read(theirs), "theirs");
}

/// A working directory of an undone history: nothing is made in the directory with its number.
#[test]
fn an_undone_directory_does_not_become_another_one() {
    let mut tree = Tree::new();
    let inode = apply(&mut tree, &Op::Mkdir { path: path("mine") }).inode;
    tree.set_version_for_test(20);
    let bench = Bench::new(tree);
    let mine = bench.find("mine");
    let mut other = Tree::new();
    let same = apply(
        &mut other,
        &Op::Mkdir {
            path: path("theirs"),
        },
    );
    assert_eq!(same.inode, inode);
    other.set_version_for_test(20);
    put(&mut other, "theirs/f", b"x");
    *bench.tree.write() = other;
    let gone = crate::memdb::Change {
        delete: Some(inode),
        put: None,
        removed: Some(RemovedEntry {
            inode,
            mtime: 5,
            kind: crate::memdb::Kind::Dir(Default::default()),
            path: path("mine"),
        }),
        ..same
    };
    bench.inodes.applied(&gone);
    let theirs = bench.find("theirs");
    assert_ne!(theirs, mine);
    assert_eq!(bench.names(theirs), [".", "..", "f"]);
    assert!(bench.view.readdir(mine, 0, &mut |_| false).is_err());
    let made = Arc::new(Mutex::new(None));
    let into = made.clone();
    let reply: Reply<Entry> = Box::new(move |entry| *into.lock() = Some(entry.map(|_| ())));
    bench.view.create(mine, b"x", reply);
    assert_eq!(*made.lock(), Some(Err(ENOENT)));
}
