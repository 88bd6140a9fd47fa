//! `config.db`: the tree on disk (spec: `docs/protocol/database.md`).
//!
//! [`Store::open`] checks and loads the file; [`Store::spawn`] makes it a [`StoreHandle`], which
//! writes all changes waiting as one transaction: in the thread that brings them, or in its own.
//! Open it in the process that uses it: POSIX locks do not survive a fork, and without them any
//! `sqlite3 config.db` beside the daemon removes the log that the daemon goes on writing to. For
//! the same reason nothing else in this process may open and close that file.
#![deny(unsafe_code)] // db.rs has some; forbidden in every other file

mod aside;
mod base;
mod check;
mod commit;
mod copy;
mod db;
mod format;
mod import;
mod keeper;
mod names;
mod open;
mod queue;
mod rescue;
mod rows;
mod salvage;
#[cfg(test)]
mod tests;
mod thread;
mod trouble;
mod watch;

pub use base::{read_base, remove_base, write_base};
pub use import::{ImportError, import_dir};
pub use open::{Loaded, OpenError, Store};
pub use queue::{Queued, StoreHandle, Ticket};
pub use rescue::rows_of;
pub use salvage::{SalvageError, salvage};

/// Statement that makes the table. SQLite keeps the text, so it stays byte-equal to the C daemon's.
const CREATE_TABLE: &str = "CREATE TABLE IF NOT EXISTS tree (  \
    inode INTEGER PRIMARY KEY NOT NULL,  \
    parent INTEGER NOT NULL CHECK(typeof(parent)=='integer'),  \
    version INTEGER NOT NULL CHECK(typeof(version)=='integer'),  \
    writer INTEGER NOT NULL CHECK(typeof(writer)=='integer'),  \
    mtime INTEGER NOT NULL CHECK(typeof(mtime)=='integer'),  \
    type INTEGER NOT NULL CHECK(typeof(type)=='integer'),  \
    name TEXT NOT NULL,  data BLOB);";

/// Log domain of everything in here.
const DOMAIN: &str = "database";
