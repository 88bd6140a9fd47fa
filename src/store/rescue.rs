//! Going on with another file when the one in use cannot be trusted or kept any more.
//!
//! The tree in memory is the truth. It is written as a whole into a new file, and that becomes the
//! database: under the old name if nobody else has taken that, else beside it.
#![forbid(unsafe_code)]

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::DOMAIN;
use super::check::{set_aside, set_aside_as};
use super::copy::write_new;
use super::db::Db;
use super::format::beside;
use super::names::free_name;
use super::open::{connect, sqlite_text};
use super::watch::{Loss, Watch};
use crate::durable;
use crate::memdb::load::VERSION_ROW_NAME;
use crate::memdb::{LoadRow, ROOT_INODE, RootRow, Row, Tree};

/// Why the store goes on with another file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reason {
    Lost(Loss),
    /// The log is this long (bytes), and another process keeps it from being moved.
    LongLog(u64),
}

/// All rows of a tree, the version row first.
pub fn rows_of(tree: &Tree) -> Vec<LoadRow> {
    let RootRow {
        version,
        writer,
        mtime,
    } = tree.root_row();
    let root = LoadRow::from(&Row {
        inode: ROOT_INODE,
        parent: ROOT_INODE,
        version,
        writer,
        mtime,
        // As after an ordinary change.
        type_code: 8,
        name: VERSION_ROW_NAME.into(),
        data: None,
    });
    let rows = tree.iter().filter_map(|(inode, _)| tree.row(inode));
    let rows = rows.map(|row| LoadRow {
        data: row.data.clone().filter(|data| !data.is_empty()),
        ..LoadRow::from(&row)
    });
    std::iter::once(root).chain(rows).collect()
}

fn now() -> u32 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs() as u32)
}

/// Writes `rows` into a new file beside `home`, where the daemon was told that its database is.
///
/// # Errors
/// Those of the disk.
pub(super) fn write_beside(home: &Path, rows: &[LoadRow]) -> io::Result<PathBuf> {
    if let Some(directory) = home.parent() {
        // Somebody may have removed that, too.
        let _ = std::fs::DirBuilder::new().mode(0o750).create(directory);
    }
    let now = now();
    let mut path = beside(home, &format!(".rescued-{now}"));
    for attempt in 2.. {
        match write_new(&path, rows.iter()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                path = beside(home, &format!(".rescued-{now}-{attempt}"));
            }
            done => return done.map(|()| path),
        }
    }
    unreachable!("some name is free")
}

/// A new file under the name that it keeps.
pub(super) struct Placed {
    file: Watch,
    /// What SQLite would take for the log and the index of that file: has to go first.
    left: Vec<PathBuf>,
    /// What was moved aside.
    pub aside: Vec<PathBuf>,
}

/// Gives the new file the name of the database, if that is free or still that of the old one; then
/// the old one is moved aside, or removed if nothing was wrong with it.
///
/// In this order, so that whoever is started after a kill at any time finds the new file under the
/// right name, or the old one complete: the old log beside the new file is refused, not mixed in.
///
/// # Errors
/// The new file cannot be found any more.
pub(super) fn put_in_place(
    rescued: PathBuf,
    home: &Path,
    old: &Watch,
    reason: &Reason,
) -> io::Result<Placed> {
    let at_home = old.path() == home;
    let is_there = at_home && old.is_ours("");
    let wanted = match reason {
        Reason::LongLog(_) => is_there,
        Reason::Lost(loss) => at_home && *loss != Loss::Replaced,
    };
    let named = wanted && take_name(&rescued, home, is_there);
    let mut aside = Vec::new();
    if named && is_there {
        put_away(rescued.clone(), home, reason, &mut aside);
    }
    // A log without its database is of no use to whoever put another one there, and would be taken
    // for that one's.
    let left = ["-wal", "-shm"]
        .into_iter()
        .filter(|suffix| at_home && old.is_ours(suffix) || named && beside(home, suffix).exists());
    let left = left.map(|suffix| beside(home, suffix)).collect();
    let file = Watch::new(if named { home } else { &rescued })?;
    let mut placed = Placed { file, left, aside };
    if !named {
        if let Err(error) = placed.clear(reason) {
            log::warn!(target: DOMAIN, "old files of '{}' stay there: {error}", home.display());
        }
        placed.left.clear();
    }
    Ok(placed)
}

/// Gives the new file the name of the database. True if it has it now.
fn take_name(rescued: &Path, home: &Path, is_there: bool) -> bool {
    let taken = if is_there {
        durable::exchange(rescued, home)
    } else {
        durable::take_free_name(rescued, home)
    };
    let shown = home.display();
    if let Err(error) = taken {
        // Somebody was quicker: theirs stays, and ours keeps its name.
        log::warn!(target: DOMAIN, "the new database cannot be named '{shown}': {error}");
        return false;
    }
    if let Err(error) = durable::sync_directory_of(home) {
        log::warn!(target: DOMAIN, "cannot sync the directory of '{shown}': {error}");
    }
    true
}

/// The old database, which has the new one's first name.
fn put_away(old: PathBuf, home: &Path, reason: &Reason, aside: &mut Vec<PathBuf>) {
    let done = match reason {
        Reason::LongLog(_) => std::fs::remove_file(&old),
        Reason::Lost(_) => set_aside_as(&old, home, "damaged", now()).map(|to| aside.push(to)),
    };
    if let Err(error) = done {
        log::warn!(target: DOMAIN, "the old database is now '{}': {error}", old.display());
        aside.push(old);
    }
}

impl Placed {
    /// Whether the file is still the one that was put there.
    pub fn is_there(&self) -> bool {
        self.file.is_ours("")
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Moves the other files of the old database aside, or removes them.
    fn clear(&mut self, reason: &Reason) -> io::Result<()> {
        while let Some(file) = self.left.last() {
            // Nothing is in an index.
            let worthless =
                matches!(reason, Reason::LongLog(_)) || file == &beside(self.path(), "-shm");
            let done = if worthless {
                std::fs::remove_file(file)
            } else {
                set_aside(file, "damaged", now()).map(|to| self.aside.push(to))
            };
            match done {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => drop(self.left.pop()),
            }
        }
        durable::sync_directory_of(self.path())
    }

    /// Opens the file for writing. After an error it can be tried again.
    ///
    /// # Errors
    /// SQLite's and those of the disk, in words.
    pub fn open(&mut self, reason: &Reason) -> Result<(Db, Watch), String> {
        self.clear(reason).map_err(|error| error.to_string())?;
        let conn = connect(self.path()).map_err(|error| error.to_string())?;
        let db = Db::new(conn).map_err(|error| sqlite_text(&error))?;
        let watch = Watch::new(self.path()).map_err(|error| error.to_string())?;
        Ok((db, watch))
    }
}

/// Says what happened, what was done, and what there is to do.
pub(super) fn report(reason: &Reason, home: &Path, now_at: &Path, aside: &[PathBuf]) {
    let (db, new) = (home.display(), now_at.display());
    let mut moved = String::new();
    for file in aside {
        moved += &format!("; '{}' is what was left of the old one", file.display());
    }
    if now_at != home {
        let other = free_name(&beside(home, ".other"));
        let other = other.display();
        log::error!(
            target: DOMAIN,
            "'{db}' was replaced by another file while pmxcfs runs. That file is left as it is and \
             not used. All files of /etc/pve were written to the new database '{new}', and every \
             further change goes there{moved}. To use the file that was put there: systemctl \
             restart pve-cluster. To keep the state of this node: systemctl stop pve-cluster; mv \
             -n '{db}' '{other}'; test ! -e '{db}-wal' || mv -n '{db}-wal' '{other}-wal'; test ! -e \
             '{new}-wal' || mv -n '{new}-wal' '{db}-wal'; mv -n '{new}' '{db}'; systemctl start \
             pve-cluster"
        );
        return;
    }
    match reason {
        Reason::LongLog(bytes) => log::warn!(
            target: DOMAIN,
            "the log of '{db}' was {} MiB long and could not be made shorter, because another \
             process does not stop reading: all files of /etc/pve were written to a new file of \
             this name. That process goes on with the old one, as it was",
            bytes >> 20
        ),
        Reason::Lost(loss) => {
            let what = match loss {
                Loss::Broken(what) => what.clone(),
                Loss::Replaced => format!("'{db}' was replaced"),
            };
            log::error!(
                target: DOMAIN,
                "{what} while pmxcfs runs: all files of /etc/pve were written to the new database \
                 '{new}', and every further change goes there{moved}. Nothing is lost and nothing \
                 has to be done, but find out who did that"
            );
        }
    }
}
