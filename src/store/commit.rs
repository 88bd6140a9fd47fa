//! One transaction for any number of changes.
#![forbid(unsafe_code)]

use std::collections::HashSet;

use rusqlite::types::{Null, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Result, Statement};

use crate::memdb::load::VERSION_ROW_NAME;
use crate::memdb::{Change, Inode, RootRow, Row};

/// Bytes of a database page.
const PAGE: usize = 4096;
/// Bytes of content that is worth a look at what it replaces.
const LARGE: usize = 4 * PAGE;

/// What a synchronisation changes.
pub(super) struct SyncRows {
    pub delete: Vec<Inode>,
    pub put: Vec<Row>,
    /// `None`: the version row stays as it is.
    pub root: Option<RootRow>,
}

/// Something to write.
#[derive(Clone, Copy)]
pub(super) enum Write<'a> {
    Change(&'a Change),
    Sync(&'a SyncRows),
    /// Only its turn counts.
    Nothing,
}

/// `type` of the version row: that of a file after a change, that of the message it came in after a
/// synchronisation.
const ROOT_OF_CHANGE: u8 = 8;
const ROOT_OF_SYNC: u8 = 4;

/// The prepared statements of the one connection.
pub(super) struct Writer<'c> {
    begin: Statement<'c>,
    commit: Statement<'c>,
    rollback: Statement<'c>,
    replace: Statement<'c>,
    update: Statement<'c>,
    update_root: Statement<'c>,
    length: Statement<'c>,
    clear: Statement<'c>,
    delete: Statement<'c>,
    /// Any query: as long as it has not ended, its read lock stays.
    snapshot: Statement<'c>,
    holds_snapshot: bool,
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
            update_root: conn.prepare(
                "UPDATE tree SET parent = 0, version = ?1, writer = ?2, mtime = ?3, type = ?5, \
                 name = ?4, data = NULL WHERE inode = 0",
            )?,
            length: conn.prepare("SELECT length(data) FROM tree WHERE inode = ?1")?,
            clear: conn.prepare("UPDATE tree SET data = NULL WHERE inode = ?1")?,
            delete: conn.prepare("DELETE FROM tree WHERE inode = ?1")?,
            // Not of `tree`, whose changes would have to save and restore the cursor.
            snapshot: conn.prepare("SELECT 1 FROM sqlite_master")?,
            holds_snapshot: false,
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
        changes: impl DoubleEndedIterator<Item = Write<'a>> + ExactSizeIterator,
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

    fn write<'a>(
        &mut self,
        changes: impl DoubleEndedIterator<Item = Write<'a>> + ExactSizeIterator,
    ) -> Result<usize> {
        let single = changes.len() == 1;
        let mut written: HashSet<Inode> = HashSet::new();
        let mut is_last = |inode| single || written.insert(inode);
        let mut root = None;
        let mut pages = 1;
        // Backwards: what comes first then is the last word about an inode.
        for change in changes.rev() {
            let (put, delete) = match change {
                Write::Change(change) => {
                    root.get_or_insert((change.root, ROOT_OF_CHANGE));
                    (change.put.as_slice(), change.delete.as_slice())
                }
                Write::Sync(rows) => {
                    root = root.or(rows.root.map(|root| (root, ROOT_OF_SYNC)));
                    (&rows.put[..], &rows.delete[..])
                }
                Write::Nothing => continue,
            };
            for row in put.iter().rev().filter(|row| is_last(row.inode)) {
                self.put(row)?;
                pages += 3 + row.data.as_ref().map_or(0, |data| data.len() / PAGE);
            }
            for inode in delete.iter().filter(|inode| is_last(**inode)) {
                self.delete.raw_bind_parameter(1, *inode as i64)?;
                self.delete.raw_execute()?;
                pages += 3;
            }
        }
        root.map_or(Ok(()), |(root, kind)| self.put_root_as(root, kind))?;
        Ok(pages)
    }

    fn put(&mut self, row: &Row) -> Result<()> {
        let data = row.data.as_deref().filter(|data| !data.is_empty());
        let numbers = [
            row.inode as i64,
            row.parent as i64,
            row.version as i64,
            i64::from(row.writer),
            i64::from(row.mtime),
            i64::from(row.type_code),
        ];
        // A new entry has the version of its creation as its inode.
        self.store(numbers, &row.name, data, row.inode != row.version)
    }

    /// Writes the version row.
    pub(super) fn put_root(&mut self, root: RootRow) -> Result<()> {
        self.put_root_as(root, ROOT_OF_CHANGE)
    }

    fn put_root_as(&mut self, root: RootRow, type_code: u8) -> Result<()> {
        let RootRow {
            version,
            writer,
            mtime,
        } = root;
        let update = &mut self.update_root;
        update.raw_bind_parameter(1, version as i64)?;
        update.raw_bind_parameter(2, writer)?;
        update.raw_bind_parameter(3, mtime)?;
        update.raw_bind_parameter(4, text(VERSION_ROW_NAME))?;
        update.raw_bind_parameter(5, type_code)?;
        if update.raw_execute()? == 1 {
            return Ok(());
        }
        let (writer, mtime) = (i64::from(writer), i64::from(mtime));
        let numbers = [0, 0, version as i64, writer, mtime, i64::from(type_code)];
        bind_and_run(&mut self.replace, numbers, VERSION_ROW_NAME, None).map(drop)
    }

    /// Keeps the read lock of the database over the end of the next transactions, so that each of
    /// them need not take it again: a quarter of the time of a small one. While it is held, other
    /// processes read and write as ever, but cannot move the whole log into the database; and once
    /// another one has written, the next transaction fails with `SQLITE_BUSY_SNAPSHOT`.
    pub(super) fn hold_snapshot(&mut self) -> Result<()> {
        if !self.holds_snapshot {
            let mut rows = self.snapshot.raw_query();
            rows.next()?;
            // Its drop would end the query.
            std::mem::forget(rows);
            self.holds_snapshot = true;
        }
        Ok(())
    }

    /// Ends what [`Writer::hold_snapshot`] began.
    pub(super) fn release_snapshot(&mut self) {
        if self.holds_snapshot {
            drop(self.snapshot.raw_query());
            self.holds_snapshot = false;
        }
    }

    pub(super) fn holds_snapshot(&self) -> bool {
        self.holds_snapshot
    }

    /// Writes one row. One that is there is updated, not replaced.
    fn store(
        &mut self,
        numbers: [i64; 6],
        name: &[u8],
        data: Option<&[u8]>,
        exists: bool,
    ) -> Result<()> {
        if exists {
            if let Some(data) = data.filter(|data| data.len() >= LARGE) {
                self.make_room(numbers[0], data.len())?;
            }
            if bind_and_run(&mut self.update, numbers, name, data)? == 1 {
                return Ok(());
            }
        }
        bind_and_run(&mut self.replace, numbers, name, data).map(drop)
    }

    /// SQLite writes content of the same length in place, and of that only the pages that differ.
    /// Other content gets new pages before the old ones are given back (and overwritten: Debian's
    /// SQLite deletes securely), so all of it would go into the log twice. Unless the old content
    /// is given back first.
    fn make_room(&mut self, inode: i64, len: usize) -> Result<()> {
        self.length.raw_bind_parameter(1, inode)?;
        let mut rows = self.length.raw_query();
        let stored: Option<i64> = match rows.next()? {
            Some(row) => row.get(0)?,
            None => None,
        };
        drop(rows);
        if stored.is_some_and(|stored| stored != len as i64) {
            self.clear.raw_bind_parameter(1, inode)?;
            self.clear.raw_execute()?;
        }
        Ok(())
    }
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
    statement.raw_bind_parameter(7, text(name))?;
    match data {
        Some(data) => statement.raw_bind_parameter(8, data)?,
        None => statement.raw_bind_parameter(8, Null)?,
    }
    statement.raw_execute()
}

/// Text that need not be UTF-8.
fn text(bytes: &[u8]) -> ToSqlOutput<'_> {
    ToSqlOutput::Borrowed(ValueRef::Text(bytes))
}
