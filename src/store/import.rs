//! Making a database from the files of a folder (`create_pmxcfs_db`, database.md 13).
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::open::{OpenError, Store};
use crate::memdb::{Change, MAX_FILE_SIZE, Op, Stamp, TreePath};

/// Why the import stopped. Files before the one named are in the database.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("unable to open dir: {0}")]
    Dir(io::Error),
    #[error("unable to open database '{}': {error} - {}", .path.display(), .error.way_out(.path))]
    Open { path: PathBuf, error: OpenError },
    #[error("memdb_create '{0}' failed")]
    Create(String),
    #[error("memdb_write '{0}' failed")]
    Write(String),
    #[error("unable to write database '{}': {error}", .path.display())]
    Commit {
        path: PathBuf,
        error: rusqlite::Error,
    },
}

/// Adds every regular file directly in `dir` to the database `db`, which is made if it is missing:
/// writer 0, mtime `now`. Folders, links and unreadable files are skipped.
///
/// # Errors
/// [`ImportError`], at the first file that cannot be added.
pub fn import_dir(dir: &Path, db: &Path, now: u32) -> Result<(), ImportError> {
    let files = fs::read_dir(dir).map_err(ImportError::Dir)?;
    let (store, mut loaded) = Store::open(db, now).map_err(|error| ImportError::Open {
        path: db.to_owned(),
        error,
    })?;
    let mut changes: Vec<Change> = Vec::new();
    let mut result = Ok(());
    for file in files.map_while(Result::ok) {
        if !file.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let Some(data) = read(&file.path()) else {
            continue;
        };
        let name = file.file_name();
        let shown = || name.to_string_lossy().into_owned();
        let path = TreePath::new(name.as_bytes());
        let stamp = Stamp {
            writer: 0,
            mtime: now,
        };
        let mut apply = |op| {
            loaded
                .tree
                .apply(&op, stamp, now)
                .map(|change| changes.push(change))
        };
        if apply(Op::Create { path: path.clone() }).is_err() {
            result = Err(ImportError::Create(shown()));
            break;
        }
        if apply(Op::Write {
            path,
            offset: 0,
            data,
            truncate: true,
        })
        .is_err()
        {
            result = Err(ImportError::Write(shown()));
            break;
        }
    }
    let written = if changes.is_empty() {
        Ok(())
    } else {
        store.commit(&changes)
    };
    let closed = written.and_then(|()| store.close());
    result.and(closed.map_err(|error| ImportError::Commit {
        path: db.to_owned(),
        error,
    }))
}

/// Content of a file, one byte more than allowed at most; `None` if it cannot be read.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    File::open(path)
        .ok()?
        .take(MAX_FILE_SIZE + 1)
        .read_to_end(&mut data)
        .ok()?;
    Some(data)
}
