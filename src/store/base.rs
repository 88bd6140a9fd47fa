//! The version row that this node last shared with its cluster, in a file beside the database: written
//! when the first local mode after that starts, removed when the cluster has one database again
//! (`docs/adr/008`). The C daemon does not look at it.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::format::beside;
use super::names::{rescued, resolved};
use crate::durable;
use crate::memdb::RootRow;

fn file(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".shared");
    name.into()
}

/// What is written there, if that is a version row.
#[must_use]
pub fn read_base(database: &Path) -> Option<RootRow> {
    let text = fs::read_to_string(file(database)).ok()?;
    let mut fields = text.split_whitespace();
    Some(RootRow {
        version: fields.next()?.parse().ok()?,
        writer: fields.next()?.parse().ok()?,
        mtime: fields.next()?.parse().ok()?,
    })
}

/// Writes it so that it is on the disk.
///
/// # Errors
/// Those of the file system.
pub fn write_base(database: &Path, base: RootRow) -> io::Result<()> {
    let text = format!("{} {} {}\n", base.version, base.writer, base.mtime);
    durable::replace(&file(database), text.as_bytes(), 0o600, None)
}

/// Removes it, once everything committed is on the disk: with a database of before that and without
/// this file, the node would take itself for the one that has the newest state.
///
/// # Errors
/// Those of the file system; it is still there then, unless only syncing the directory failed.
pub fn remove_base(database: &Path) -> io::Result<()> {
    let path = file(database);
    if !path.try_exists()? {
        return Ok(());
    }
    sync_logs(&resolved(database))?;
    fs::remove_file(&path)?;
    durable::sync_directory_of(&path)
}

/// Commits are in the log without having been synced; what is in the database was. (The database
/// itself must not be opened here: module `store`.)
fn sync_logs(database: &Path) -> io::Result<()> {
    let in_use = std::iter::once(database.to_owned()).chain(rescued(database));
    for log in in_use.map(|path| beside(&path, "-wal")) {
        match File::open(&log) {
            Ok(file) => file.sync_all()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        durable::sync_directory_of(&log)?;
    }
    Ok(())
}
