//! Random operations, compared with a model that is too simple to be wrong: a map of whole paths.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, PartialEq)]
struct Node {
    inode: u64,
    version: u64,
    writer: u32,
    mtime: u32,
    /// `None`: directory.
    data: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Model {
    version: u64,
    nodes: BTreeMap<String, Node>,
    guests: BTreeMap<u32, (String, GuestType)>,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl Model {
    fn is_dir(&self, path: &str) -> bool {
        path.is_empty() || self.nodes.get(path).is_some_and(|node| node.data.is_none())
    }

    fn exists(&self, path: &str) -> bool {
        path.is_empty() || self.nodes.contains_key(path)
    }

    fn is_full(&self, path: &str) -> bool {
        self.nodes
            .keys()
            .any(|other| other.starts_with(&format!("{path}/")))
    }

    fn check_place(&self, path: &str) -> Result<(), Error> {
        if !self.exists(parent(path)) {
            return Err(Error::NotFound);
        }
        if !self.is_dir(parent(path)) {
            return Err(Error::NotADirectory);
        }
        if path.ends_with("/.") || path.ends_with("/..") {
            return Err(Error::Access);
        }
        Ok(())
    }

    fn check_guest(&self, path: &str) -> Result<(), Error> {
        let path = p(path);
        let Some(guest) = path.guest() else {
            return Ok(());
        };
        match self.guests.get(&guest.vmid) {
            Some((node, kind)) if (node.as_str(), *kind) != (guest.node, guest.kind) => {
                Err(Error::Exists)
            }
            _ => Ok(()),
        }
    }

    fn register(&mut self, path: &str) {
        if let Some(guest) = p(path).guest() {
            self.guests
                .insert(guest.vmid, (guest.node.to_owned(), guest.kind));
        }
    }

    fn unregister(&mut self, path: &str) {
        if let Some(guest) = p(path).guest() {
            if self.guests.get(&guest.vmid) == Some(&(guest.node.to_owned(), guest.kind)) {
                self.guests.remove(&guest.vmid);
            }
        }
    }

    fn put(&mut self, path: &str, inode: Option<u64>, data: Option<Vec<u8>>, stamp: Stamp) {
        self.version += 1;
        let version = self.version;
        let Stamp { writer, mtime } = stamp;
        let inode = inode.unwrap_or(version);
        self.nodes.insert(
            path.to_owned(),
            Node {
                inode,
                version,
                writer,
                mtime,
                data,
            },
        );
    }

    fn apply(&mut self, op: &Op, stamp: Stamp) -> Result<(), Error> {
        match op {
            Op::Create { path } => {
                let path = path.to_string();
                self.check_place(&path)?;
                self.check_guest(&path)?;
                if self.exists(&path) {
                    return Err(if self.is_dir(&path) {
                        Error::NotADirectory
                    } else {
                        Error::Exists
                    });
                }
                self.put(&path, None, Some(Vec::new()), stamp);
                self.register(&path);
            }
            Op::Mkdir { path } => {
                let path = path.to_string();
                self.check_place(&path)?;
                if self.exists(&path) {
                    return Err(Error::Exists);
                }
                self.put(&path, None, None, stamp);
            }
            Op::Write {
                path,
                offset,
                data,
                truncate,
            } => {
                let path = path.to_string();
                let end = u128::from(*offset) + data.len() as u128;
                if end > 1 << 20 {
                    return Err(Error::TooBig);
                }
                self.check_place(&path)?;
                self.check_guest(&path)?;
                let old = self.nodes.get(&path).ok_or(Error::NotFound)?;
                let mut new = old.data.clone().ok_or(Error::NotADirectory)?;
                let (inode, end, offset) = (old.inode, end as usize, *offset as usize);
                if *truncate || new.len() < end {
                    new.resize(end, 0);
                }
                new[offset..end].copy_from_slice(data);
                self.put(&path, Some(inode), Some(new), stamp);
                self.register(&path);
            }
            Op::SetMtime { path, mtime } => {
                let path = path.to_string();
                self.check_place(&path)?;
                let node = self.nodes.get(&path).ok_or(Error::NotFound)?.clone();
                let lock = parent(&path) == "priv/lock" && node.data.is_none();
                if lock && (*mtime < node.mtime || stamp.writer != node.writer) {
                    return Err(Error::Access);
                }
                self.put(
                    &path,
                    Some(node.inode),
                    node.data,
                    Stamp {
                        mtime: *mtime,
                        ..stamp
                    },
                );
            }
            Op::Delete { path } => {
                let path = path.to_string();
                let node = self.nodes.get(&path).ok_or(Error::NotFound)?;
                if self.is_full(&path) {
                    return Err(Error::NotEmpty);
                }
                if node.data.is_some() {
                    self.unregister(&path);
                }
                self.nodes.remove(&path);
                self.version += 1;
            }
            Op::Rename { from, to } => self.rename(&from.to_string(), &to.to_string(), stamp)?,
        }
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str, stamp: Stamp) -> Result<(), Error> {
        let node = self.nodes.get(from).ok_or(Error::NotFound)?.clone();
        let vmid = |path: &str| p(path).guest().map(|guest| guest.vmid);
        if node.data.is_some() && (vmid(from).is_none() || vmid(from) != vmid(to)) {
            self.check_guest(to)?;
        }
        if node.data.is_none() && from.starts_with("priv/lock/") {
            return Err(Error::Access);
        }
        if self.is_full(to) {
            return Err(Error::NotEmpty);
        }
        if !self.exists(parent(to)) {
            return Err(Error::NotFound);
        }
        if !self.is_dir(parent(to)) {
            return Err(Error::NotADirectory);
        }
        if self.is_full(from) {
            return Err(Error::NotEmpty);
        }
        if node.data.is_some() {
            self.unregister(from);
        } else if self.exists(to) && !self.is_dir(to) {
            self.unregister(to);
        }
        self.nodes.remove(from);
        self.nodes.remove(to);
        let file = node.data.is_some();
        self.put(to, Some(node.inode), node.data, stamp);
        if file {
            self.register(to);
        }
        Ok(())
    }
}

/// Directories that make more of the operations succeed.
pub(crate) const DIRS: [&str; 10] = [
    "d",
    "nodes",
    "nodes/n1",
    "nodes/n1/qemu-server",
    "nodes/n1/lxc",
    "nodes/n2",
    "nodes/n2/qemu-server",
    "priv",
    "priv/lock",
    "priv/lock/l1",
];

const OTHERS: [&str; 16] = [
    "a",
    "b",
    "d/x",
    "d/.",
    "d/..",
    "d/sub",
    "d/sub/deep",
    "nodes/n1/qemu-server/100.conf",
    "nodes/n1/qemu-server/100.conf.tmp",
    "nodes/n1/qemu-server/101.conf",
    "nodes/n1/lxc/100.conf",
    "nodes/n2/qemu-server/100.conf",
    "nodes/n2/qemu-server/x.conf",
    "nodes/-n/qemu-server/100.conf",
    "priv/lock/l1/deep",
    "priv/lock/l2",
];

fn any_path() -> impl Strategy<Value = TreePath> {
    prop_oneof![
        1 => prop::sample::select(DIRS.to_vec()),
        3 => prop::sample::select(OTHERS.to_vec()),
    ]
    .prop_map(p)
}

/// Any operation on a few paths, most of them to no avail.
pub(crate) fn any_op() -> impl Strategy<Value = Op> {
    let offset = prop_oneof![8 => 0u64..40, 1 => Just(1 << 20), 1 => any::<u64>()];
    prop_oneof![
        4 => any_path().prop_map(|path| Op::Create { path }),
        2 => any_path().prop_map(|path| Op::Mkdir { path }),
        4 => (any_path(), offset, vec(any::<u8>(), 0..30), any::<bool>()).prop_map(
            |(path, offset, data, truncate)| Op::Write { path, offset, data, truncate }
        ),
        3 => any_path().prop_map(|path| Op::Delete { path }),
        // Into itself, or to `.`, is another matter: such an entry is not reachable any more.
        4 => (any_path(), any_path())
            .prop_filter("reachable", |(from, to)| {
                !to.to_string().starts_with(&from.to_string()) && !to.as_bytes().ends_with(b".")
            })
            .prop_map(|(from, to)| Op::Rename { from, to }),
        2 => (any_path(), 0u32..200).prop_map(|(path, mtime)| Op::SetMtime { path, mtime }),
    ]
}

/// Everything reachable, as the model has it.
fn nodes(tree: &Tree) -> BTreeMap<String, Node> {
    tree.iter()
        .map(|(inode, entry)| {
            let path = tree.path_of(inode).unwrap();
            assert_eq!(tree.lookup(&path), Some(inode));
            let Entry {
                version,
                writer,
                mtime,
                ..
            } = *entry;
            let data = entry.data().map(|data| data.to_vec());
            (
                path.to_string(),
                Node {
                    inode,
                    version,
                    writer,
                    mtime,
                    data,
                },
            )
        })
        .collect()
}

/// The database: what the changes leave behind.
fn store(rows: &mut BTreeMap<Inode, Row>, change: &Change) {
    if let Some(inode) = change.delete {
        assert!(rows.remove(&inode).is_some());
    }
    if let Some(row) = &change.put {
        rows.insert(row.inode, row.clone());
    }
}

pub(super) fn load_row(row: &Row) -> LoadRow {
    LoadRow {
        inode: row.inode as i64,
        parent: row.parent as i64,
        version: row.version as i64,
        writer: row.writer.into(),
        mtime: row.mtime.into(),
        type_code: row.type_code.into(),
        name: Some(row.name.clone()),
        data: row.data.clone().filter(|data| !data.is_empty()),
    }
}

pub(super) fn version_row(root: RootRow) -> LoadRow {
    LoadRow {
        version: root.version as i64,
        writer: root.writer.into(),
        mtime: root.mtime.into(),
        type_code: 8,
        name: Some(Arc::from(load::VERSION_ROW_NAME)),
        ..LoadRow::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_tree_does_what_the_model_does(
        with_dirs in any::<bool>(),
        ops in vec((any_op(), 0u32..3, 0u32..300), 1..60),
    ) {
        let mut tree = Tree::load(std::iter::empty(), 0).unwrap().0;
        let mut model = Model { version: 1, ..Model::default() };
        let mut rows = BTreeMap::new();
        let setup = DIRS.iter().filter(|_| with_dirs).map(|path| (mkdir(path), 1, 50));
        for (op, writer, mtime) in setup.chain(ops) {
            let stamp = Stamp { writer, mtime };
            let (before, checked) = (tree.index(), tree.check_local(&op));
            let got = tree.apply(&op, stamp, mtime);
            let want = model.apply(&op, stamp);
            prop_assert_eq!(got.as_ref().map(drop), want.as_ref().map(drop), "{:?}", op);
            match got {
                Ok(change) => {
                    store(&mut rows, &change);
                    prop_assert_eq!(change.root, tree.root_row());
                }
                Err(error) => {
                    prop_assert_eq!(tree.index(), before);
                    // What a client is told must not depend on who refuses.
                    prop_assert!(checked.is_ok() || checked == Err(error), "{:?}", op);
                }
            }
            prop_assert_eq!(nodes(&tree), model.nodes.clone());
            prop_assert_eq!(tree.root_row().version, model.version);
            let guests: BTreeMap<_, _> =
                tree.guests().map(|(id, g)| (id, (g.node.to_string(), g.kind))).collect();
            prop_assert_eq!(&guests, &model.guests);
        }
        let all = rows.values().map(load_row).chain([version_row(tree.root_row())]);
        let (again, notes) = Tree::load(all, 0).unwrap();
        prop_assert!(notes.iter().all(|note| matches!(note, LoadNote::GuestDirIsFile { .. })), "{:?}", notes);
        prop_assert_eq!(again.index(), tree.index());
        prop_assert_eq!(again.checksum(), tree.checksum());
        prop_assert!(again.guests().eq(tree.guests()));
    }

    #[test]
    fn loading_anything_never_panics(
        rows in vec((-3i64..9, -3i64..9, any::<i64>(), prop::sample::select(vec![4i64, 8, 4, 8, 260, 1]), prop::sample::select(vec!["a", "b", "__version__", "x/y", "..", "nodes", "lxc", "100.conf"])), 0..12),
    ) {
        let rows = rows.into_iter().map(|(inode, parent, version, type_code, name)| LoadRow {
            inode,
            parent,
            version,
            type_code,
            name: Some(Arc::from(name.as_bytes())),
            ..LoadRow::default()
        });
        if let Ok((mut tree, notes)) = Tree::load(rows, 0) {
            for note in notes {
                let _ = note.to_string();
            }
            let _ = (tree.encode_index(), tree.checksum());
            let mut lost: Vec<Inode> = Vec::new();
            for (inode, _) in tree.iter() {
                match tree.path_of(inode) {
                    Some(path) => prop_assert_eq!(tree.lookup(&path), Some(inode)),
                    None => lost.push(inode),
                }
            }
            // Whatever is reachable can be removed, deepest first.
            let mut paths: Vec<TreePath> = tree.iter().filter_map(|(i, _)| tree.path_of(i)).collect();
            paths.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
            for path in paths {
                if tree.lookup(&path).is_some() {
                    let result = tree.apply_local(&Op::Delete { path: path.clone() }, 1, 1);
                    prop_assert!(matches!(result, Ok(_) | Err(Error::NotEmpty | Error::Io)), "{:?} {:?}", path, result);
                }
            }
        }
    }
}
