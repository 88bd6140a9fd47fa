//! `config.db` as rows, and the file beside it.

use std::collections::BTreeMap;

use pmxcfs::dcdb::Write;
use pmxcfs::memdb::{LoadRow, Op, RootRow, Stamp, Tree, TreePath};

use super::rng::Rng;

#[derive(Debug, Clone)]
pub struct Disk {
    rows: BTreeMap<i64, LoadRow>,
    /// Version row when the first local mode since the node was with the others began.
    pub base: Option<RootRow>,
}

impl Disk {
    pub fn new() -> Self {
        let mut disk = Disk {
            rows: BTreeMap::new(),
            base: None,
        };
        disk.root(
            RootRow {
                version: 1,
                writer: 0,
                mtime: 1000,
            },
            8,
        );
        disk
    }

    pub fn load(&self, now: u32) -> Tree {
        Tree::load(self.rows.values().cloned(), now)
            .expect("own rows")
            .0
    }

    pub fn write(&mut self, write: &Write) {
        match write {
            Write::Change(change) => {
                if let Some(inode) = change.delete {
                    self.rows.remove(&(inode as i64));
                }
                if let Some(row) = &change.put {
                    self.rows.insert(row.inode as i64, LoadRow::from(row));
                }
                self.root(change.root, 8);
            }
            Write::Sync(sync) => {
                for inode in &sync.delete {
                    self.rows.remove(&(*inode as i64));
                }
                for row in &sync.put {
                    self.rows.insert(row.inode as i64, LoadRow::from(row));
                }
                if let Some(root) = sync.root {
                    self.root(root, 4);
                }
            }
        }
    }

    fn root(&mut self, root: RootRow, type_code: i64) {
        let row = LoadRow {
            inode: 0,
            parent: 0,
            version: root.version as i64,
            writer: i64::from(root.writer),
            mtime: i64::from(root.mtime),
            type_code,
            name: Some(b"__version__"[..].into()),
            data: None,
        };
        self.rows.insert(0, row);
    }

    /// The rows of a tree.
    pub fn of(tree: &Tree) -> Self {
        let mut disk = Disk {
            rows: BTreeMap::new(),
            base: None,
        };
        disk.root(tree.root_row(), 8);
        let rows = tree.iter().filter_map(|(inode, _)| tree.row(inode));
        disk.rows
            .extend(rows.map(|row| (row.inode as i64, LoadRow::from(&row))));
        disk
    }
}

/// A database with some content.
pub fn first_disk(rng: &mut Rng) -> Disk {
    let mut tree = Disk::new().load(0);
    for number in 0..rng.below(12) {
        let path = TreePath::new(format!("old{number}").as_bytes());
        let stamp = Stamp {
            writer: 1,
            mtime: 1000 + number as u32,
        };
        let data = vec![b'o'; rng.below(60)];
        let made = tree.apply(&Op::Create { path: path.clone() }, stamp, 0);
        let written = tree.apply(
            &Op::Write {
                path,
                offset: 0,
                data,
                truncate: false,
            },
            stamp,
            0,
        );
        assert!(made.is_ok() && written.is_ok());
    }
    let mut disk = Disk::of(&tree);
    if rng.chance(10) {
        // As a mishap with SQL leaves it: entries have higher numbers than the version row.
        let root = tree.root_row();
        let version = root.version.div_ceil(2);
        disk.root(RootRow { version, ..root }, 8);
    }
    disk
}
