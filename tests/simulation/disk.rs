//! `config.db` as rows.

use std::collections::BTreeMap;

use pmxcfs::dcdb::Write;
use pmxcfs::memdb::{LoadRow, RootRow, Row, Tree};

#[derive(Debug, Clone)]
pub struct Disk(BTreeMap<i64, LoadRow>);

impl Disk {
    pub fn new() -> Self {
        let mut disk = Disk(BTreeMap::new());
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
        Tree::load(self.0.values().cloned(), now)
            .expect("own rows")
            .0
    }

    pub fn write(&mut self, write: &Write) {
        match write {
            Write::Change(change) => {
                if let Some(inode) = change.delete {
                    self.0.remove(&(inode as i64));
                }
                if let Some(row) = &change.put {
                    self.0.insert(row.inode as i64, load_row(row));
                }
                self.root(change.root, 8);
            }
            Write::Sync(sync) => {
                for inode in &sync.delete {
                    self.0.remove(&(*inode as i64));
                }
                for row in &sync.put {
                    self.0.insert(row.inode as i64, load_row(row));
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
        self.0.insert(0, row);
    }

    /// The rows of a tree.
    pub fn of(tree: &Tree) -> Self {
        let mut disk = Disk(BTreeMap::new());
        disk.root(tree.root_row(), 8);
        let rows = tree.iter().filter_map(|(inode, _)| tree.row(inode));
        disk.0
            .extend(rows.map(|row| (row.inode as i64, load_row(&row))));
        disk
    }
}

fn load_row(row: &Row) -> LoadRow {
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
