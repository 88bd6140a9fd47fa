//! A new database of all that can still be read of another one (`pmxcfs --salvage`).
//!
//! The old files are only read, and not by SQLite: it would refuse them, or fold in their log.
#![forbid(unsafe_code)]

mod gather;
mod mend;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use self::mend::{Mended, RULES, mend};
use super::check::read_log;
use super::copy::write_new;
use super::format::{Pages, belongs, beside};
use super::names::{SUFFIXES, free_name, resolved};
use crate::memdb::{Inode, ROOT_INODE, Tree};

/// Why there is no new database.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    #[error("a daemon runs on '{}': stop it first (systemctl stop pve-cluster)", .0.display())]
    Running(PathBuf),
    #[error("'{}' exists: name a file that does not", .0.display())]
    Exists(PathBuf),
    #[error("unable to read '{}': {error}", .path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("no row can be read from '{}'", .0.display())]
    Nothing(PathBuf),
    #[error("the rows do not make a tree: {0}")]
    Tree(String),
    #[error("unable to write '{}': {error}", .path.display())]
    Write { path: PathBuf, error: io::Error },
    #[error("unable to print what is done: {0}")]
    Print(#[from] io::Error),
}

/// Reads what can be read of the database `old` into the new one `new`, and prints on `out` by
/// which rules, what became of each row, and how to put the new file in the place of the old one.
///
/// # Errors
/// [`SalvageError`]; there is no new file then, and the old ones are as they were.
pub fn salvage(old: &Path, new: &Path, out: &mut dyn Write) -> Result<(), SalvageError> {
    let _locks = locks(old, new)?;
    let old = &*resolved(old);
    for suffix in SUFFIXES {
        let file = beside(new, suffix);
        if file.symlink_metadata().is_ok() {
            return Err(SalvageError::Exists(file));
        }
    }
    out.write_all(RULES.as_bytes())?;
    let gathered = {
        let pages = open(old, out)?;
        gather::gather(&pages)
    };
    for damage in &gathered.damage {
        writeln!(out, "damage     {damage}")?;
    }
    let found = gathered.found.len();
    if found == 0 {
        return Err(SalvageError::Nothing(old.to_owned()));
    }
    let damaged = !gathered.damage.is_empty();
    let (mended, tree) =
        mend(gathered.found, damaged).map_err(|error| SalvageError::Tree(error.to_string()))?;
    report_rows(&mended, &tree, out)?;
    write_new(new, mended.rows.values()).map_err(|error| SalvageError::Write {
        path: new.to_owned(),
        error,
    })?;
    report_end(old, new, found, &mended, out)?;
    Ok(())
}

/// Holds the daemon's locks of both directories, where a daemon ever ran.
fn locks(old: &Path, new: &Path) -> Result<Vec<File>, SalvageError> {
    let mut held: Vec<(u64, File)> = Vec::new();
    for database in [old, new] {
        let path = database.with_file_name(".pmxcfs.lockfile");
        let read = |error| SalvageError::Read {
            path: path.clone(),
            error,
        };
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(read)?,
        };
        // Both may be in one directory.
        let inode = file.metadata().map_err(read)?.ino();
        if held.iter().any(|(other, _)| *other == inode) {
            continue;
        }
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| SalvageError::Running(database.to_owned()))?;
        held.push((inode, file));
    }
    Ok(held.into_iter().map(|(_, file)| file).collect())
}

fn open(path: &Path, out: &mut dyn Write) -> Result<Pages, SalvageError> {
    let failed = |error| SalvageError::Read {
        path: path.to_owned(),
        error,
    };
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("not a regular file")));
    }
    let log_path = beside(path, "-wal");
    let mut log = read_log(path).map_err(|error| SalvageError::Read {
        path: log_path.clone(),
        error,
    })?;
    if let Some((_, content)) = &log {
        let header = Pages::header_of(&file).map_err(failed)?;
        match belongs(&header, content) {
            Ok(()) => writeln!(out, "reading '{}' with its log", path.display())?,
            Err(why) => {
                let log_path = log_path.display();
                writeln!(
                    out,
                    "left out   '{log_path}' is not the log of this database: {why}"
                )?;
                log = None;
            }
        }
    }
    Pages::new(file, log).map_err(failed)
}

fn report_rows(mended: &Mended, tree: &Tree, out: &mut dyn Write) -> io::Result<()> {
    for inode in mended.rows.keys() {
        let path = shown(*inode, tree);
        match mended.changes.get(inode) {
            None => writeln!(out, "taken      {inode:016X} {path}")?,
            Some(changes) => writeln!(
                out,
                "changed    {inode:016X} {path}: {}",
                changes.join("; ")
            )?,
        }
    }
    for line in &mended.left_out {
        writeln!(out, "left out   {line}")?;
    }
    Ok(())
}

/// The path of an entry, on one line.
fn shown(inode: Inode, tree: &Tree) -> String {
    if inode == ROOT_INODE {
        return "(version row)".to_owned();
    }
    let path = tree.path_of(inode);
    let path = path.as_ref().map_or(&b"?"[..], |path| path.as_bytes());
    String::from_utf8_lossy(path).escape_debug().to_string()
}

fn report_end(
    old: &Path,
    new: &Path,
    found: usize,
    mended: &Mended,
    out: &mut dyn Write,
) -> io::Result<()> {
    let (from, to) = (old.display(), new.display());
    writeln!(
        out,
        "'{to}' has {} rows ({found} were found, {} changed or made, {} left out).\n\
         To put it in the place of '{from}', run:",
        mended.rows.len(),
        mended.changes.len(),
        mended.left_out.len()
    )?;
    let damaged = free_name(&beside(old, ".damaged"));
    for suffix in SUFFIXES {
        let file = beside(old, suffix);
        if file.exists() {
            let aside = beside(&damaged, suffix);
            writeln!(out, "  mv -n '{}' '{}'", file.display(), aside.display())?;
        }
    }
    writeln!(out, "  mv -n '{to}' '{from}'")
}
