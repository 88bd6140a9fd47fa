//! Whether the files of the database are still those that were opened.
//!
//! Somebody may remove, replace or shorten them under the daemon. SQLite would not notice, and what
//! is acknowledged would be in files that nobody finds again. Only names and sizes are looked at:
//! nothing in here opens the database (module `store`).
#![forbid(unsafe_code)]

use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::format::{beside, is_log_header};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(5);

/// What happened to the files. Whatever it is, what is in memory is all there is for sure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Loss {
    /// Another file has the name of the database.
    Replaced,
    /// What happened to which file.
    Broken(String),
}

/// What a look at the files has shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    Good,
    /// Something is shorter than before, which may be the work of another process that uses the
    /// database as it should: SQLite knows.
    Shorter,
    Lost(Loss),
}

/// A file as it was when it was looked at last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    device: u64,
    inode: u64,
    length: u64,
}

impl Seen {
    fn is(&self, meta: &Metadata) -> bool {
        (self.device, self.inode) == (meta.dev(), meta.ino())
    }
}

impl From<Metadata> for Seen {
    fn from(meta: Metadata) -> Self {
        Seen {
            device: meta.dev(),
            inode: meta.ino(),
            length: meta.len(),
        }
    }
}

/// The three files of an open database.
pub(super) struct Watch {
    path: PathBuf,
    database: Seen,
    /// The log, and its index, which all processes that use the database map. `None`: the file
    /// system does not let SQLite have them.
    log: Option<(Seen, Seen)>,
    /// Something was shorter, and [`Watch::settle`] was not called since.
    shorter: bool,
    next: Instant,
}

impl Watch {
    /// Of the database that was just opened at `path`.
    ///
    /// # Errors
    /// It is not there.
    pub fn new(path: &Path) -> io::Result<Self> {
        let seen = |suffix| fs::metadata(beside(path, suffix)).map(Seen::from);
        Ok(Watch {
            path: path.to_owned(),
            database: seen("")?,
            log: seen("-wal").ok().zip(seen("-shm").ok()),
            shorter: false,
            next: Instant::now() + INTERVAL,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When to look again.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// The next look comes after the usual time.
    pub fn put_off(&mut self) {
        self.next = Instant::now() + INTERVAL;
    }

    /// Looks at the files. `in_log`: something was written into the log since it was last moved
    /// into the database.
    pub fn look(&mut self, in_log: bool) -> Look {
        self.put_off();
        let database = match self.stat("") {
            Ok(Some(meta)) if !self.database.is(&meta) => return Look::Lost(Loss::Replaced),
            Ok(found) => found,
            // Nothing is known then, and nothing to be done.
            Err(_) => return Look::Good,
        };
        let Some(database) = database else {
            return self.broken("", "was removed");
        };
        if database.len() == 0 {
            return self.broken("", "was truncated");
        }
        self.shorter |= database.len() < self.database.length;
        self.database.length = database.len();
        match self.look_at_log(in_log) {
            Look::Good if self.shorter => Look::Shorter,
            look => look,
        }
    }

    fn look_at_log(&mut self, in_log: bool) -> Look {
        let Some((seen_log, seen_index)) = self.log else {
            return Look::Good;
        };
        let (Ok(log), Ok(index)) = (self.stat("-wal"), self.stat("-shm")) else {
            return Look::Good;
        };
        let (Some(log), Some(index)) = (&log, &index) else {
            let gone = if log.is_none() { "-wal" } else { "-shm" };
            return self.broken(gone, "was removed");
        };
        if !seen_log.is(log) {
            return self.broken("-wal", "was replaced");
        }
        if !seen_index.is(index) {
            return self.broken("-shm", "was replaced");
        }
        // SQLite never makes it shorter while the database is open. It must not be asked: what it
        // maps of the index is gone.
        if index.len() < seen_index.length {
            return self.broken("-shm", "was truncated");
        }
        if log.len() > 0 && !self.log_has_header() {
            return self.broken("-wal", "was overwritten");
        }
        self.shorter |= log.len() < seen_log.length || in_log && log.len() == 0;
        let seen = |meta: &Metadata| Seen::from(meta.clone());
        self.log = Some((seen(log), seen(index)));
        Look::Good
    }

    /// What was shorter is as it should be.
    pub fn settle(&mut self) {
        self.shorter = false;
    }

    fn broken(&self, suffix: &str, what: &str) -> Look {
        let file = beside(&self.path, suffix);
        Look::Lost(Loss::Broken(format!("'{}' {what}", file.display())))
    }

    /// `None`: there is no such file.
    fn stat(&self, suffix: &str) -> io::Result<Option<Metadata>> {
        match fs::metadata(beside(&self.path, suffix)) {
            Ok(meta) => Ok(Some(meta)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// True also if it cannot be read. SQLite has no locks on the log that closing it would drop.
    fn log_has_header(&self) -> bool {
        let mut header = [0; 32];
        let read = fs::File::open(beside(&self.path, "-wal"))
            .and_then(|mut file| file.read_exact(&mut header));
        read.is_err() || is_log_header(&header)
    }

    /// Length of the log when it was looked at last.
    pub fn log_length(&self) -> u64 {
        self.log.map_or(0, |(log, _)| log.length)
    }

    /// Whether the file with this suffix is (still) one of the open database.
    pub fn is_ours(&self, suffix: &str) -> bool {
        let seen = match (suffix, self.log) {
            ("", _) => self.database,
            ("-wal", Some((log, _))) => log,
            (_, Some((_, index))) => index,
            (_, None) => return false,
        };
        matches!(self.stat(suffix), Ok(Some(meta)) if seen.is(&meta))
    }
}
