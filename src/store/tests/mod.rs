//! Tests of the store.

mod commit;
mod golden;
mod import;
mod open;
mod sync;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;

use rusqlite::types::Value;
use tempfile::TempDir;

use super::*;
use crate::memdb::*;

/// One row, as SQLite has it.
type RawRow = Vec<Value>;

/// All rows of a database file, by a second connection.
fn raw_rows(path: &Path) -> Vec<RawRow> {
    let conn = rusqlite::Connection::open(path).unwrap();
    let mut select = conn
        .prepare(
            "SELECT inode, parent, version, writer, mtime, type, CAST(name AS BLOB), data \
             FROM tree ORDER BY inode",
        )
        .unwrap();
    let rows = select
        .query_map([], |row| (0..8).map(|i| row.get(i)).collect())
        .unwrap();
    rows.map(Result::unwrap).collect()
}

fn p(path: &str) -> TreePath {
    TreePath::new(path.as_bytes())
}

/// A new database in a folder of its own.
struct Lab {
    dir: TempDir,
    tree: Tree,
    store: StoreHandle,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, loaded) = Store::open(&dir.path().join("config.db"), 1000).unwrap();
        Lab {
            dir,
            tree: loaded.tree,
            store: store.spawn().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("config.db")
    }

    /// Applies and queues; the result comes later.
    fn start(&mut self, op: Op) -> mpsc::Receiver<Result<(), Error>> {
        let change = self.tree.apply_local(&op, 2000).unwrap();
        let (tx, rx) = mpsc::channel();
        self.store.enqueue(
            change,
            Box::new(move |result| tx.send(result).unwrap_or(())),
        );
        rx
    }

    fn run(&mut self, op: Op) {
        self.start(op).recv().unwrap().unwrap();
    }

    fn put(&mut self, path: &str, data: &[u8]) {
        if self.tree.lookup(&p(path)).is_none() {
            self.run(Op::Create { path: p(path) });
        }
        self.run(Op::Write {
            path: p(path),
            offset: 0,
            data: data.to_vec(),
            truncate: true,
        });
    }

    /// Copies the files as a power failure would leave them, and opens the copy.
    fn after_crash(&self) -> (TempDir, Loaded) {
        let copy = tempfile::tempdir().unwrap();
        for file in ["config.db", "config.db-wal"] {
            let from = self.dir.path().join(file);
            if from.exists() {
                // Not by this process: closing the copied file would drop SQLite's locks on it.
                let cp = Command::new("cp")
                    .arg(from)
                    .arg(copy.path())
                    .status()
                    .unwrap();
                assert!(cp.success());
            }
        }
        let (_, loaded) = Store::open(&copy.path().join("config.db"), 3000).unwrap();
        (copy, loaded)
    }
}
