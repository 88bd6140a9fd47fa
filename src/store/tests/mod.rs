//! Tests of the store.

mod aside;
mod beside;
mod commit;
mod files;
mod golden;
mod import;
mod inline;
mod open;
mod rescue;
mod salvage;
mod sync;
mod trouble;

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
        Lab::with(super::trouble::Patience::default())
    }

    fn with(patience: super::trouble::Patience) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, loaded) = Store::open(&dir.path().join("config.db"), 1000).unwrap();
        Lab {
            dir,
            tree: loaded.tree,
            store: store.spawn_with(patience).unwrap(),
        }
    }

    /// As [`Lab::start`], but written by this thread if the store lets it.
    fn start_here(&mut self, op: Op) -> mpsc::Receiver<Result<(), Error>> {
        let change = self.tree.apply_local(&op, 2000, 2000).unwrap();
        let (tx, rx) = mpsc::channel();
        let ticket = move |result| tx.send(result).unwrap_or(());
        self.store.queue(change, Box::new(ticket)).write();
        rx
    }

    fn overwrite(&mut self, path: &str, data: &[u8]) {
        let op = Op::Write {
            path: p(path),
            offset: 0,
            data: data.to_vec(),
            truncate: true,
        };
        self.start_here(op).recv().unwrap().unwrap();
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("config.db")
    }

    /// Applies and queues; the result comes later.
    fn start(&mut self, op: Op) -> mpsc::Receiver<Result<(), Error>> {
        let change = self.tree.apply_local(&op, 2000, 2000).unwrap();
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
        crash_copy(self.dir.path())
    }
}

/// Copies the database in `dir` as a power failure would leave it, and opens the copy.
fn crash_copy(dir: &Path) -> (TempDir, Loaded) {
    let copy = tempfile::tempdir().unwrap();
    for file in ["config.db", "config.db-wal"] {
        let from = dir.join(file);
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

/// Runs a test of this binary in a process of its own, in which [`child_dir`] is `dir`; `wrap` is a
/// command line that ends with `exec "$@"`.
fn child(test: &str, dir: &Path, wrap: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", wrap, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads=1"])
        .arg(format!("store::tests::{test}"))
        .env(CHILD, dir);
    command
}

const CHILD: &str = "PMXCFS_STORE_TEST_CHILD";

/// Where the child that a test started is to work; `None` in the test itself.
fn child_dir() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}
