//! One transaction for any number of changes.
#![forbid(unsafe_code)]

use std::collections::HashSet;

use rusqlite::types::{Null, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Result, Statement};

use super::thread::SyncRows;
use crate::memdb::load::VERSION_ROW_NAME;
use crate::memdb::{Change, Inode, RootRow, Row};

/// Bytes of a database page.
const PAGE: usize = 4096;

/// The prepared statements of the one connection.
pub(super) struct Writer<'c> {
    begin: Statement<'c>,
    commit: Statement<'c>,
    rollback: Statement<'c>,
    replace: Statement<'c>,
    update: Statement<'c>,
    delete: Statement<'c>,
}

impl<'c> Writer<'c> {
    pub(super) fn new(conn: &'c Connection) -> Result<Self> {
        Ok(Writer {
            // First, because its failure is the one with a known text (a column is missing).
            replace: conn.prepare(
                "REPLACE INTO tree (inode, parent, version, writer, mtime, type, name, data) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?,
            update: conn.prepare(
                "UPDATE tree SET parent = ?2, version = ?3, writer = ?4, mtime = ?5, type = ?6, \
                 name = ?7, data = ?8 WHERE inode = ?1",
            )?,
            delete: conn.prepare("DELETE FROM tree WHERE inode = ?1")?,
            // At once for writing: a transaction that began with a read cannot wait for a lock.
            begin: conn.prepare("BEGIN IMMEDIATE")?,
            commit: conn.prepare("COMMIT TRANSACTION")?,
            rollback: conn.prepare("ROLLBACK TRANSACTION")?,
        })
    }

    /// Writes all changes in one transaction: each inode once, as the last change left it, and the
    /// last version row. Returns about how many pages that put into the log.
    pub(super) fn commit<'a>(
        &mut self,
        changes: impl DoubleEndedIterator<Item = &'a Change> + ExactSizeIterator + Clone,
    ) -> Result<usize> {
        self.begin.raw_execute()?;
        let done = self
            .write(changes)
            .and_then(|pages| self.commit.raw_execute().map(|_| pages));
        if done.is_err() {
            // Nothing to add to the error that is reported; SQLite may have rolled back already.
            let _ = self.rollback.raw_execute();
        }
        done
    }

    /// Writes what a synchronisation changed, in one transaction. Returns about how many pages that
    /// put into the log.
    pub(super) fn sync(&mut self, rows: &SyncRows) -> Result<usize> {
        self.begin.raw_execute()?;
        let done = self
            .write_sync(rows)
            .and_then(|pages| self.commit.raw_execute().map(|_| pages));
        if done.is_err() {
            // As above.
            let _ = self.rollback.raw_execute();
        }
        done
    }

    fn write_sync(&mut self, rows: &SyncRows) -> Result<usize> {
        let mut pages = 1 + 3 * rows.delete.len();
        for inode in &rows.delete {
            self.delete.raw_bind_parameter(1, *inode as i64)?;
            self.delete.raw_execute()?;
        }
        for row in &rows.put {
            let data = row.data.as_deref().filter(|data| !data.is_empty());
            self.store(numbers_of(row), &row.name, data, true)?;
            pages += 3 + row.data.as_ref().map_or(0, |data| data.len() / PAGE);
        }
        // The version row gets the type of the message it came in: that of a directory.
        rows.root.map_or(Ok(()), |root| self.put_root_as(root, 4))?;
        Ok(pages)
    }

    fn write<'a>(
        &mut self,
        changes: impl DoubleEndedIterator<Item = &'a Change> + ExactSizeIterator,
    ) -> Result<usize> {
        let single = changes.len() == 1;
        let mut written: HashSet<Inode> = HashSet::new();
        let mut root = None;
        let mut pages = 1;
        // Backwards: what comes first then is the last word about an inode.
        for change in changes.rev() {
            root.get_or_insert(change.root);
            if let Some(row) = change
                .put
                .as_ref()
                .filter(|r| single || written.insert(r.inode))
            {
                self.put(row)?;
                pages += 3 + row.data.as_ref().map_or(0, |data| data.len() / PAGE);
            }
            if let Some(inode) = change
                .delete
                .filter(|inode| single || written.insert(*inode))
            {
                self.delete.raw_bind_parameter(1, inode as i64)?;
                self.delete.raw_execute()?;
                pages += 3;
            }
        }
        root.map_or(Ok(()), |root| self.put_root(root))?;
        Ok(pages)
    }

    fn put(&mut self, row: &Row) -> Result<()> {
        let data = row.data.as_deref().filter(|data| !data.is_empty());
        // A new entry has the version of its creation as its inode.
        self.store(numbers_of(row), &row.name, data, row.inode != row.version)
    }

    /// Writes the version row.
    pub(super) fn put_root(&mut self, root: RootRow) -> Result<()> {
        self.put_root_as(root, 8)
    }

    fn put_root_as(&mut self, root: RootRow, type_code: i64) -> Result<()> {
        let RootRow {
            version,
            writer,
            mtime,
        } = root;
        let numbers = [
            0,
            0,
            version as i64,
            i64::from(writer),
            i64::from(mtime),
            type_code,
        ];
        self.store(numbers, VERSION_ROW_NAME, None, true)
    }

    /// Writes one row. One that is there is updated, not replaced: SQLite reuses the pages of its
    /// content then, which halves what goes into the log for a large file.
    fn store(
        &mut self,
        numbers: [i64; 6],
        name: &[u8],
        data: Option<&[u8]>,
        exists: bool,
    ) -> Result<()> {
        if exists && bind_and_run(&mut self.update, numbers, name, data)? == 1 {
            return Ok(());
        }
        bind_and_run(&mut self.replace, numbers, name, data).map(drop)
    }
}

/// The columns of a row that are numbers.
fn numbers_of(row: &Row) -> [i64; 6] {
    [
        row.inode as i64,
        row.parent as i64,
        row.version as i64,
        i64::from(row.writer),
        i64::from(row.mtime),
        i64::from(row.type_code),
    ]
}

/// Runs a statement that takes all columns; returns the number of rows it changed.
fn bind_and_run(
    statement: &mut Statement<'_>,
    numbers: [i64; 6],
    name: &[u8],
    data: Option<&[u8]>,
) -> Result<usize> {
    for (index, number) in numbers.into_iter().enumerate() {
        statement.raw_bind_parameter(index + 1, number)?;
    }
    // Text that need not be UTF-8.
    statement.raw_bind_parameter(7, ToSqlOutput::Borrowed(ValueRef::Text(name)))?;
    match data {
        Some(data) => statement.raw_bind_parameter(8, data)?,
        None => statement.raw_bind_parameter(8, Null)?,
    }
    statement.raw_execute()
}
