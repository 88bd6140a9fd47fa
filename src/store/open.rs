//! Opening and loading `config.db` (database.md 4 and 6).
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::check::{self, Empty};
use super::commit::{Write, Writer};
use super::format::beside;
use super::names::{free_name, resolved};
use super::rows::{SELECT, load_row};
use super::{CREATE_TABLE, DOMAIN};
use crate::clock::uptime;
use crate::durable;
use crate::memdb::{Change, LoadError, LoadNote, Loader, RootRow, Tree};
use crate::obstacle::{obstacle, wrong_kind};

/// How long a foreign lock on the file is waited for (database.md 4).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Page cache while loading and later, in KiB (negative, so SQLite has it); SQLite's default later.
const LOAD_CACHE: i64 = -256;
const CACHE: i64 = -2000;

/// Bytes of a log that is begun anew: what usually is in it before it is.
const LOG_SIZE: u64 = 4 << 20;

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
    #[error("'{log}' is not the log of this database: {why}")]
    ForeignLog { log: String, why: String },
    #[error(
        "there is nothing in '{path}', but pmxcfs went on with '{}' in its place", .rescued.display()
    )]
    Unnamed {
        path: String,
        /// The newest such file.
        rescued: PathBuf,
        /// What has to be renamed to what, so that it is used.
        moves: Vec<(PathBuf, PathBuf)>,
    },
    #[error("the database is damaged: {0}")]
    Damaged(String),
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
                "another process holds '{db}' for writing: find it with 'fuser -v {db}' and let it \
                 finish, then start again; the database itself is fine"
            ),
            OpenError::ForeignLog { log, .. } => format!(
                "nothing was changed. With pmxcfs stopped, either use '{db}' without that log: \
                 mv -n '{log}' '{}'; or move '{db}' away, put the database that the log \
                 belongs to in its place, and leave the log. Then start again",
                free_name(&beside(Path::new(log), ".other")).display()
            ),
            OpenError::Unnamed { moves, .. } => {
                let moves = moves.iter();
                let moves = moves.map(|(a, b)| format!("mv -n '{}' '{}'", a.display(), b.display()));
                format!(
                    "nothing was changed. To go on with that file: {}; or, to begin with a new \
                     database, move all '{db}.rescued-*' to another directory. Then start again",
                    moves.collect::<Vec<_>>().join("; ")
                )
            }
            OpenError::Sqlite { .. } | OpenError::Damaged(_) => salvage_or_backup(path),
            OpenError::Load(error) => error.way_out(&db.to_string()),
        }
    }
}

/// For a database that is not usable as it is.
fn salvage_or_backup(path: &Path) -> String {
    let db = path.display();
    let backups = path.with_file_name("backup");
    format!(
        "'{db}' is not usable as it is. With pmxcfs stopped, save what can be read into a new \
         file: pmxcfs --salvage '{db}' '{db}.salvaged'; or restore a backup: zcat \
         '{}'/config-<epoch>.sql.gz | sqlite3 '{db}.new', move '{db}' and its -wal and -shm away, \
         and '{db}.new' to '{db}'",
        backups.display()
    )
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
        let path = &*resolved(path);
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
        if let Some(found) = check::unnamed(path) {
            let path = path.display().to_string();
            return Err(OpenError::Unnamed {
                path,
                rescued: found.file,
                moves: found.moves,
            });
        }
        let empty = check::empty(path, now).map_err(|error| cannot_create(path, error))?;
        let found = check::examine(path);
        if let Some(why) = found.foreign_log {
            let log = beside(path, "-wal").display().to_string();
            return Err(OpenError::ForeignLog { log, why });
        }
        let created = make_private(path)?;
        let conn = connect(path)?;
        let store = Store {
            conn,
            path: path.to_owned(),
        };
        let (tree, notes) = store.load()?;
        if !found.damage.is_empty() {
            store.confirm_damage()?;
        }
        if let Some(empty) = empty {
            warn_of_empty(path, &empty);
        }
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
    fn load(&self) -> Result<(Tree, Vec<LoadNote>), OpenError> {
        let select = SELECT_FAILED;
        // Each page is needed once: no use in filling the page cache.
        let cache = |size: i64| {
            self.conn
                .execute_batch(&format!("PRAGMA cache_size={size}"))
        };
        cache(LOAD_CACHE).map_err(sqlite(select))?;
        let loaded = self.load_rows(select)?;
        cache(CACHE).map_err(sqlite(select))?;
        Ok(loaded)
    }

    fn load_rows(&self, select: &'static str) -> Result<(Tree, Vec<LoadNote>), OpenError> {
        let mut loader = Loader::new();
        let mut statement = self.conn.prepare(SELECT).map_err(sqlite(select))?;
        let mut rows = statement.query([]).map_err(sqlite(select))?;
        while let Some(row) = rows.next().map_err(sqlite(select))? {
            loader.push(load_row(row).map_err(sqlite(select))?)?;
        }
        Ok(loader.finish(uptime())?)
    }

    /// Other processes may have changed pages while [`check::examine`] read them.
    fn confirm_damage(&self) -> Result<(), OpenError> {
        let what = "unable to check the database";
        let answer: String = self
            .conn
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(sqlite(what))?;
        if answer == "ok" {
            return Ok(());
        }
        // Its first line is a heading.
        Err(OpenError::Damaged(
            answer.replace('\n', " ").trim().to_owned(),
        ))
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
        Ok(_) => {
            durable::sync_directory_of(path).map_err(|error| cannot_create(path, error))?;
            true
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(cannot_create(path, error)),
    };
    // Fails where the file cannot be written, which SQLite takes for a wish to read only.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(OpenError::Mode)?;
    Ok(created)
}

/// One line: whoever expects files in there has to know at once.
fn warn_of_empty(path: &Path, empty: &Empty) {
    let db = path.display();
    let why = if empty.missing {
        "there was none"
    } else {
        "it had 0 bytes"
    };
    let mut left = String::new();
    for (from, to) in &empty.left {
        left += &format!(
            "; '{}', which is of no use without its database, is now '{}'",
            from.display(),
            to.display()
        );
    }
    log::warn!(
        target: DOMAIN,
        "made a new, empty database '{db}' ({why}){left}. If this node had one, stop pmxcfs and put \
         it in place of this one"
    );
}

/// Opens and prepares a connection for writing. The file is there: SQLite never makes it.
pub(super) fn connect(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(sqlite("unable to open"))?;
    prepare(&conn)?;
    Ok(conn)
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
    // A log that readers made long is cut when it begins anew.
    conn.query_row(&format!("PRAGMA journal_size_limit={LOG_SIZE}"), [], |_| {
        Ok(())
    })
    .map_err(sqlite("unable to set journal_size_limit"))?;
    // The store thread moves the log into the database itself, when nobody waits for it.
    conn.query_row("PRAGMA wal_autocheckpoint=0", [], |_| Ok(()))
        .map_err(sqlite("unable to set wal_autocheckpoint"))?;
    conn.execute_batch(CREATE_TABLE)
        .map_err(sqlite("unable to create table"))?;
    Writer::new(conn)
        .map(drop)
        .map_err(sqlite("sqlite3_prepare 'sql_insert_entry' failed"))
}
