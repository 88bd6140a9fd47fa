//! The version row that this node last shared with its cluster, in a file beside the database: written
//! when the first local mode after that starts, removed when the cluster has one database again
//! (`docs/adr/008`). The C daemon does not look at it.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

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
    let path = file(database);
    let temporary = path.with_extension("shared.tmp");
    let mut options = OpenOptions::new();
    let mut out = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    writeln!(out, "{} {} {}", base.version, base.writer, base.mtime)?;
    out.sync_all()?;
    fs::rename(&temporary, &path)?;
    sync_directory(&path)
}

/// Removes it.
///
/// # Errors
/// Those of the file system.
pub fn remove_base(database: &Path) -> io::Result<()> {
    let path = file(database);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_directory(&path),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}
