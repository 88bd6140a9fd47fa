//! What is looked at before SQLite is let at the files, because it would take them for good.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::format::{Log, Pages, Walk, belongs, beside};
use super::names::{SUFFIXES, free_name, rescued};
use crate::durable;

/// Another process may be moving the log into the database just now: what looks wrong is looked at
/// that often, with these pauses.
const LOOKS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);

/// There is no database, or nothing in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Empty {
    /// False: a file of 0 bytes.
    pub missing: bool,
    /// Logs that stood there without it: the old name, the new one.
    pub left: Vec<(PathBuf, PathBuf)>,
}

/// There is no database, or nothing in it, but one that a rescue made for this name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unnamed {
    /// The newest such file.
    pub file: PathBuf,
    /// What has to be renamed to what, so that it is used.
    pub moves: Vec<(PathBuf, PathBuf)>,
}

/// Looks for that one; changes nothing.
pub(super) fn unnamed(path: &Path) -> Option<Unnamed> {
    let nothing = match fs::metadata(path) {
        Ok(meta) => meta.is_file() && meta.len() == 0,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if !nothing {
        return None;
    }
    let file = rescued(path).pop()?;
    let aside = free_name(&beside(path, ".other"));
    let old = SUFFIXES.map(|suffix| (beside(path, suffix), beside(&aside, suffix)));
    // The log first: without its database it is of no use to anybody.
    let new = ["-wal", ""].map(|suffix| (beside(&file, suffix), beside(path, suffix)));
    let moves = old.into_iter().chain(new);
    let moves = moves.filter(|(from, _)| from.exists()).collect();
    Some(Unnamed { file, moves })
}

/// If there is no database: moves aside what SQLite would remove then, its logs.
///
/// # Errors
/// Those of the disk. Nothing is removed.
pub(super) fn empty(path: &Path, now: u32) -> io::Result<Option<Empty>> {
    let missing = match fs::metadata(path) {
        Ok(meta) if meta.is_file() && meta.len() == 0 => false,
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        // Whoever opens it says it better.
        Err(_) => return Ok(None),
    };
    let mut left = Vec::new();
    for suffix in ["-wal", "-journal"] {
        let log = beside(path, suffix);
        if fs::metadata(&log).is_ok_and(|meta| meta.is_file() && meta.len() > 0) {
            left.push((log.clone(), set_aside(&log, "left", now)?));
        }
    }
    Ok(Some(Empty { missing, left }))
}

/// Renames a file to `<name>.<word>-<now>`, or the first such name that is free.
pub(super) fn set_aside(file: &Path, word: &str, now: u32) -> io::Result<PathBuf> {
    set_aside_as(file, file, word, now)
}

/// As [`set_aside`], with a name made of that of another file.
pub(super) fn set_aside_as(file: &Path, name: &Path, word: &str, now: u32) -> io::Result<PathBuf> {
    let mut to = beside(name, &format!(".{word}-{now}"));
    for attempt in 2.. {
        match durable::rename_new(file, &to) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                to = beside(name, &format!(".{word}-{now}-{attempt}"));
            }
            done => return done.map(|()| to),
        }
    }
    unreachable!("some name is free")
}

/// What is wrong with a database that there is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// The log is that of another database; why.
    pub foreign_log: Option<String>,
    /// Pages that do not fit together.
    pub damage: Vec<String>,
}

/// Looks at the files, without SQLite: only while this process has not opened them. A damage is a
/// suspicion only, and to be confirmed by SQLite, which keeps other processes out while it looks.
/// Files that cannot be read are SQLite's to report.
pub(super) fn examine(path: &Path) -> Findings {
    let mut findings = Findings::default();
    for look in 1..=LOOKS {
        findings = look_at(path).unwrap_or_default();
        if findings == Findings::default() || look == LOOKS {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    findings
}

/// The log, if there is one and SQLite would read it.
pub(super) fn read_log(path: &Path) -> io::Result<Option<(File, Log)>> {
    let file = match File::open(beside(path, "-wal")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let log = Log::read(&file)?;
    Ok(log.map(|log| (file, log)))
}

fn look_at(path: &Path) -> io::Result<Findings> {
    let mut findings = Findings::default();
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(findings);
    }
    let log = read_log(path)?;
    if let Some((_, log)) = &log {
        if let Err(why) = belongs(&Pages::header_of(&file)?, log) {
            findings.foreign_log = Some(why);
            return Ok(findings);
        }
    }
    findings.damage = structure(&Pages::new(file, log)?);
    Ok(findings)
}

/// Every page and every row is where it belongs: what SQLite's `quick_check` looks at, but for the
/// types of the values and for indexes, in a tenth of the time.
pub(super) fn structure(pages: &Pages) -> Vec<String> {
    let mut walk = Walk::new(pages);
    let (root, others) = walk.schema();
    if let Some(root) = root {
        walk.table(root, &mut |walk, _, cell| walk.follow(cell));
    }
    walk.free_pages();
    const AUTO_VACUUM: usize = 52;
    if root.is_some() && !others && pages.header32(AUTO_VACUUM) == 0 {
        walk.check_all_used();
    }
    walk.damage
}
