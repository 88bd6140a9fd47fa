//! Opening and loading `config.db` (database.md 4 and 6).
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::commit::{Write, Writer};
use super::rows::{SELECT, load_row};
use super::{CREATE_TABLE, DOMAIN};
use crate::memdb::{Change, LoadError, LoadNote, Loader, RootRow, Tree};
use crate::obstacle::{obstacle, wrong_kind};

/// How long a foreign lock on the file is waited for (database.md 4).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Page cache while loading and later, in KiB (negative, so SQLite has it); SQLite's default later.
const LOAD_CACHE: i64 = -256;
const CACHE: i64 = -2000;

/// An open database that nobody writes to yet.
#[derive(Debug)]
pub struct Store {
    pub(super) conn: Connection,
    path: PathBuf,
}

/// What [`Store::open`] found.
#[derive(Debug)]
pub struct Loaded {
    pub tree: Tree,
    /// What was odd; already logged.
    pub notes: Vec<LoadNote>,
    /// The file was not there before (a file of 0 bytes was).
    pub created: bool,
}

/// Why `config.db` cannot be used. The text is that of the C daemon where it has one.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("unable to create '{path}': {source}")]
    Create { path: String, source: io::Error },
    #[error("chmod failed: {0}")]
    Mode(io::Error),
    #[error("{what}: {text}")]
    Sqlite {
        what: &'static str,
        text: String,
        /// What is wrong is around the file, not in it.
        outside: bool,
    },
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// What was tried when reading the rows fails.
const SELECT_FAILED: &str = "select returned error";

impl OpenError {
    /// The file is a database, but not one to be loaded.
    fn is_load(&self) -> bool {
        matches!(
            self,
            OpenError::Load(_)
                | OpenError::Sqlite {
                    what: SELECT_FAILED,
                    ..
                }
        )
    }

    /// What an operator can do about it; `path` is that of the file.
    pub fn way_out(&self, path: &Path) -> String {
        let db = path.display();
        match self {
            OpenError::Create { .. } | OpenError::Mode(_) => obstacle(path)
                .unwrap_or_else(|| format!("check that '{db}' and its directory are writable")),
            OpenError::Sqlite { outside: true, .. } => obstacle(path).unwrap_or_else(|| {
                format!(
                    "look for errors of the disk of '{db}' (dmesg), for its free space (df) and for \
                     quotas; the database itself need not be damaged"
                )
            }),
            OpenError::Sqlite { text, .. } if text.contains("locked") => format!(
                "another process holds '{db}' for writing: find it (fuser -v '{db}*') and let it \
                 finish, then start again; the database itself is fine"
            ),
            OpenError::Sqlite { .. } => format!(
                "'{db}' is not usable as it is. With pmxcfs stopped and a copy of it made, restore \
                 a backup (zcat backup/config-<epoch>.sql.gz | sqlite3 '{db}.new'), or save what \
                 can be read: sqlite3 '{db}' .recover | sqlite3 '{db}.new'; then move the new file \
                 into place"
            ),
            OpenError::Load(error) => error.way_out(&db.to_string()),
        }
    }
}

/// SQLite's own text without the statement rusqlite adds.
pub(super) fn sqlite_text(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(_, Some(text)) => text.clone(),
        other => other.to_string(),
    }
}

/// For `map_err`: says what was tried.
fn sqlite(what: &'static str) -> impl FnOnce(rusqlite::Error) -> OpenError {
    move |error| OpenError::Sqlite {
        what,
        outside: is_outside(&error),
        text: sqlite_text(&error),
    }
}

/// Is the disk, the file system or a permission the reason, rather than what is in the file?
fn is_outside(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::OutOfMemory
        )
    )
}

impl Store {
    /// Opens the database at `path`, makes it if it is missing, loads and checks it.
    /// `now` is the local time in seconds. Logs what is odd, and why it refuses.
    ///
    /// # Errors
    /// [`OpenError`]; the file is unchanged then, but for its mode (0600) and journal mode.
    pub fn open(path: &Path, now: u32) -> Result<(Store, Loaded), OpenError> {
        let opened = Store::open_quietly(path, now);
        match &opened {
            Ok((_, loaded)) => {
                for note in loaded.notes.iter().filter(|note| note.is_warning()) {
                    log::error!(target: note.domain(), "{note}");
                }
            }
            Err(error) => {
                log::error!(target: DOMAIN, "{error}");
                if error.is_load() {
                    log::error!(target: DOMAIN, "DB load failed");
                }
                log::error!(target: DOMAIN, "way out: {}", error.way_out(path));
            }
        }
        opened
    }

    fn open_quietly(path: &Path, now: u32) -> Result<(Store, Loaded), OpenError> {
        if wrong_kind(path).is_some() {
            // Before anything is touched: SQLite would follow a dangling link, and what stands beside
            // it may belong to a database that is only not mounted yet.
            return Err(cannot_create(
                path,
                io::Error::other("something else is there"),
            ));
        }
        let created = make_private(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags).map_err(sqlite("unable to open"))?;
        prepare(&conn)?;
        let store = Store {
            conn,
            path: path.to_owned(),
        };
        let (tree, notes) = store.load(now)?;
        store.put_first_version(&tree, &notes, now)?;
        Ok((
            store,
            Loaded {
                tree,
                notes,
                created,
            },
        ))
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the whole table.
    fn load(&self, now: u32) -> Result<(Tree, Vec<LoadNote>), OpenError> {
        let select = SELECT_FAILED;
        // Each page is needed once: no use in filling the page cache.
        let cache = |size: i64| {
            self.conn
                .execute_batch(&format!("PRAGMA cache_size={size}"))
        };
        cache(LOAD_CACHE).map_err(sqlite(select))?;
        let loaded = self.load_rows(now, select)?;
        cache(CACHE).map_err(sqlite(select))?;
        Ok(loaded)
    }

    fn load_rows(
        &self,
        now: u32,
        select: &'static str,
    ) -> Result<(Tree, Vec<LoadNote>), OpenError> {
        let mut loader = Loader::new();
        let mut statement = self.conn.prepare(SELECT).map_err(sqlite(select))?;
        let mut rows = statement.query([]).map_err(sqlite(select))?;
        while let Some(row) = rows.next().map_err(sqlite(select))? {
            loader.push(load_row(row).map_err(sqlite(select))?)?;
        }
        Ok(loader.finish(now)?)
    }

    /// Writes the version row of a database that has none yet, with the current time; the tree does
    /// not get that (database.md 4).
    fn put_first_version(
        &self,
        tree: &Tree,
        notes: &[LoadNote],
        now: u32,
    ) -> Result<(), OpenError> {
        if !notes.contains(&LoadNote::NoVersion) {
            return Ok(());
        }
        let root = RootRow {
            writer: 0,
            mtime: now,
            ..tree.root_row()
        };
        let what = "unable to write the version row";
        Writer::new(&self.conn)
            .and_then(|mut writer| writer.put_root(root))
            .map_err(sqlite(what))
    }

    /// Writes `changes` in one transaction, in this thread.
    ///
    /// # Errors
    /// SQLite's; nothing of `changes` is in the database then.
    pub fn commit(&self, changes: &[Change]) -> rusqlite::Result<()> {
        Writer::new(&self.conn)?
            .commit(changes.iter().map(Write::Change))
            .map(drop)
    }

    pub(super) fn into_parts(self) -> (Connection, PathBuf) {
        (self.conn, self.path)
    }

    /// Moves the log into the database and closes it.
    ///
    /// # Errors
    /// SQLite's; everything committed is safe in the log then.
    pub fn close(self) -> rusqlite::Result<()> {
        self.conn.close().map_err(|(_, error)| error)
    }
}

fn cannot_create(path: &Path, source: io::Error) -> OpenError {
    OpenError::Create {
        path: path.display().to_string(),
        source,
    }
}

/// Makes the file with mode 0600 before SQLite could make it with another; true if it was missing.
fn make_private(path: &Path) -> Result<bool, OpenError> {
    let made = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let created = match made {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(cannot_create(path, error)),
    };
    // Fails where the file cannot be written, which SQLite takes for a wish to read only.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(OpenError::Mode)?;
    Ok(created)
}

fn prepare(conn: &Connection) -> Result<(), OpenError> {
    // First of all, so that whoever has a lock now (a backup) is waited for.
    conn.busy_timeout(BUSY_TIMEOUT)
        .map_err(sqlite("unable to set busy timeout"))?;
    let mode: String = conn
        .query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))
        .map_err(sqlite("unable to set WAL mode"))?;
    if mode != "wal" {
        log::warn!(target: DOMAIN, "database has journal mode '{mode}' instead of 'wal'");
    }
    conn.execute_batch("PRAGMA synchronous=NORMAL")
        .map_err(sqlite("unable to set synchronous mode"))?;
    // The store thread moves the log into the database itself, when nobody waits for it.
    conn.query_row("PRAGMA wal_autocheckpoint=0", [], |_| Ok(()))
        .map_err(sqlite("unable to set wal_autocheckpoint"))?;
    conn.execute_batch(CREATE_TABLE)
        .map_err(sqlite("unable to create table"))?;
    Writer::new(conn)
        .map(drop)
        .map_err(sqlite("sqlite3_prepare 'sql_insert_entry' failed"))
}
