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
use super::check::set_aside;
use super::copy::write_new;
use super::db::Db;
use super::format::beside;
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

/// Gives the new file the name of the database, if that is free or still that of the old one. The
/// old files are moved aside, or removed if nothing was wrong with them. Returns what the new file
/// is called now, and what was moved aside.
pub(super) fn put_in_place(
    rescued: PathBuf,
    home: &Path,
    old: &Watch,
    reason: &Reason,
) -> (PathBuf, Vec<PathBuf>) {
    let mut aside = Vec::new();
    let at_home = old.path() == home;
    let ours = |suffix: &str| at_home && old.is_ours(suffix);
    let keep = at_home && *reason != Reason::Lost(Loss::Replaced);
    let result = (|| -> io::Result<PathBuf> {
        if let Reason::LongLog(_) = reason {
            if !ours("") {
                return Ok(rescued.clone());
            }
            // In this order: until the log is gone, the two together are refused, not mixed.
            std::fs::rename(&rescued, home)?;
            for suffix in ["-wal", "-shm"] {
                std::fs::remove_file(beside(home, suffix))?;
            }
            durable::sync_directory_of(home)?;
            return Ok(home.to_owned());
        }
        // A log without its database is of no use to whoever put another one there, and would be
        // taken for that one's.
        for suffix in ["-shm", "-wal", ""] {
            let file = beside(home, suffix);
            let orphaned = keep && !suffix.is_empty() && file.exists();
            if !(ours(suffix) || orphaned) {
                continue;
            }
            if suffix == "-shm" {
                // Nothing is in there.
                std::fs::remove_file(file)?;
            } else {
                aside.push(set_aside(&file, "damaged", now())?);
            }
        }
        if keep {
            durable::rename_new(&rescued, home)?;
            return Ok(home.to_owned());
        }
        Ok(rescued.clone())
    })();
    match result {
        Ok(path) => (path, aside),
        // Somebody was quicker: theirs stays, and ours keeps its name.
        Err(error) => {
            let home = home.display();
            log::warn!(target: DOMAIN, "the new database cannot be named '{home}': {error}");
            (rescued, aside)
        }
    }
}

/// Opens the new file for writing.
///
/// # Errors
/// SQLite's, in words.
pub(super) fn reopen(path: &Path) -> Result<(Db, Watch), String> {
    let conn = connect(path).map_err(|error| error.to_string())?;
    let db = Db::new(conn).map_err(|error| sqlite_text(&error))?;
    let watch = Watch::new(path).map_err(|error| error.to_string())?;
    Ok((db, watch))
}

/// Says what happened, what was done, and what there is to do.
pub(super) fn report(reason: &Reason, home: &Path, now_at: &Path, aside: &[PathBuf]) {
    let (db, new) = (home.display(), now_at.display());
    let mut moved = String::new();
    for file in aside {
        moved += &format!("; '{}' is what was left of the old one", file.display());
    }
    if now_at != home {
        log::error!(
            target: DOMAIN,
            "'{db}' was replaced by another file while pmxcfs runs. That file is left as it is and \
             not used. All files of /etc/pve were written to the new database '{new}', and every \
             further change goes there{moved}. To use the file that was put there: systemctl \
             restart pve-cluster. To keep the state of this node: systemctl stop pve-cluster; mv \
             -n '{db}' '{db}.other'; mv -n '{new}' '{db}'; systemctl start pve-cluster"
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
