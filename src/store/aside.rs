//! Databases that a synchronisation has replaced, kept as files of their own
//! (`docs/adr/008`). Written by the store thread, before the result is.
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ffi};

use super::commit::{SyncRows, Write, Writer};
use super::{CREATE_TABLE, DOMAIN};
use crate::dcdb::Aside;
use crate::durable::{self, Draft};

/// So many are kept.
const KEPT: usize = 5;
/// Files `<PREFIX><seconds since the epoch>.db` in the directory `backup` beside the database.
const DIRECTORY: &str = "backup";
const PREFIX: &str = "sync-";

/// Saves the database as it was; logs where it is and how to bring something back. `database`: the path
/// of the daemon's own.
///
/// # Errors
/// SQLite's, or those of the file system in its words; the text names the file.
pub(super) fn keep(database: &Path, aside: &Aside) -> rusqlite::Result<()> {
    let directory = database.with_file_name(DIRECTORY);
    let path = save(&directory, aside).map_err(|error| in_words_of_sqlite(&directory, &error))?;
    log::warn!(target: DOMAIN, "{}", text(&path, aside));
    prune(&directory);
    Ok(())
}

fn text(path: &Path, aside: &Aside) -> String {
    let (file, leader) = (path.display(), &aside.leader);
    let (gone, changed) = (aside.gone, aside.changed);
    let mut text = format!(
        "the state of {leader} takes the place of this node's: {gone} entries of this node are gone, \
         {changed} are different. Its database as it was is '{file}'. What is in it: sqlite3 '{file}' \
         \"SELECT inode, parent, name FROM tree\"."
    );
    if let Some((inode, path)) = &aside.example {
        let path = path.to_string();
        // Beside it: there is nothing that it could take the place of.
        let name = path.rsplit('/').next().unwrap_or_default();
        let name = name.replace(
            |c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c),
            "_",
        );
        let number = *inode as i64;
        text += &format!(
            " To save '{path}' as a file: sqlite3 '{file}' \"SELECT writefile('{file}.{name}', data) \
             FROM tree WHERE inode = {number}\""
        );
    }
    text
}

fn save(directory: &Path, aside: &Aside) -> io::Result<PathBuf> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Err(_) => {}
        Ok(()) => durable::sync_directory_of(directory)?,
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // The last one stays the last one, whatever the clock says.
    let after = kept(directory)
        .last()
        .map_or(0, |(seconds, _)| seconds.saturating_add(1));
    let seconds = now.unwrap_or_default().as_secs().max(after);
    let path = directory.join(format!("{PREFIX}{seconds}.db"));
    let draft = Draft::new(&path, 0o600)?;
    write(draft.path(), aside).map_err(io::Error::other)?;
    draft.create()?;
    Ok(path)
}

/// A database that SQLite has no other files for.
fn write(path: &Path, aside: &Aside) -> rusqlite::Result<()> {
    let conn = Connection::open(path)?;
    conn.query_row("PRAGMA journal_mode=MEMORY", [], |_| Ok(()))?;
    conn.execute_batch(CREATE_TABLE)?;
    let rows = SyncRows {
        delete: Vec::new(),
        put: aside.rows.clone(),
        root: Some(aside.root),
    };
    Writer::new(&conn)?.commit(std::iter::once(Write::Sync(&rows)))?;
    conn.close().map_err(|(_, error)| error)
}

/// What is there, the oldest first.
fn kept(directory: &Path) -> Vec<(u64, PathBuf)> {
    let number = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?;
        let digits = name.strip_prefix(PREFIX)?.strip_suffix(".db")?;
        digits.parse::<u64>().ok()
    };
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    let paths = files.map(|file| file.path());
    let mut kept: Vec<_> = paths.filter_map(|p| number(&p).map(|n| (n, p))).collect();
    kept.sort();
    kept
}

/// Removes all but the last ones.
fn prune(directory: &Path) {
    let mut kept = kept(directory);
    let surplus = kept.len().saturating_sub(KEPT);
    for (_, path) in kept.drain(..surplus) {
        if let Err(error) = fs::remove_file(&path) {
            log::warn!(target: DOMAIN, "cannot remove '{}': {error}", path.display());
        }
    }
}

/// What the store does about it is what it does about its own file.
fn in_words_of_sqlite(directory: &Path, error: &io::Error) -> rusqlite::Error {
    let code = match error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rusqlite::Error>())
    {
        Some(rusqlite::Error::SqliteFailure(cause, _)) => cause.extended_code,
        _ => match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ffi::SQLITE_FULL,
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                ffi::SQLITE_READONLY
            }
            _ => ffi::SQLITE_IOERR,
        },
    };
    let text = format!(
        "cannot keep the database as it is, before a synchronisation replaces it, in '{}': {error}",
        directory.display()
    );
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(text))
}
