//! A tree written as a whole into a new database file.
#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::SystemTime;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, params};

use super::CREATE_TABLE;
use super::open::sqlite_text;
use crate::durable::Draft;
use crate::memdb::LoadRow;

/// Makes the database `target` of these rows, the version row among them: mode 0600, on the disk
/// when this returns, and never over a file.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if there is such a file, or one of SQLite's beside it; those of
/// the disk.
pub(super) fn write_new<'a>(
    target: &Path,
    rows: impl Iterator<Item = &'a LoadRow>,
) -> io::Result<()> {
    let draft = Draft::new(target, 0o600)?;
    fill(draft.path(), rows).map_err(|error| io::Error::other(sqlite_text(&error)))?;
    number(draft.path())?;
    draft.create()
}

/// Gives the closed database a change counter that no other one has: the time. So no log that was
/// there before is taken for its own (`format::belongs`).
fn number(path: &Path) -> io::Result<()> {
    /// Where page 1 has the counter, and the counter for which its other numbers hold.
    const COUNTERS: [u64; 2] = [24, 92];
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = since.map_or(0, |time| time.as_secs() as u32);
    let file = OpenOptions::new().write(true).open(path)?;
    for at in COUNTERS {
        file.write_all_at(&now.to_be_bytes(), at)?;
    }
    Ok(())
}

fn fill<'a>(path: &Path, rows: impl Iterator<Item = &'a LoadRow>) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    // Nobody knows the file yet, and it is synced as a whole: no journal, no sync.
    conn.execute_batch("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN")?;
    conn.execute_batch(CREATE_TABLE)?;
    let mut insert = conn.prepare("INSERT INTO tree VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?;
    for row in rows {
        let name = row.name.as_deref().unwrap_or_default();
        let name = ToSqlOutput::Borrowed(ValueRef::Text(name));
        let data = row.data.as_deref();
        let numbers = (row.inode, row.parent, row.version, row.writer, row.mtime);
        insert.execute(params![
            numbers.0,
            numbers.1,
            numbers.2,
            numbers.3,
            numbers.4,
            row.type_code,
            name,
            data
        ])?;
    }
    drop(insert);
    conn.execute_batch("COMMIT")?;
    // What both daemons make it: in the header of the file.
    conn.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))?;
    conn.close().map_err(|(_, error)| error)
}
