//! Names of files beside the database.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use super::format::beside;

/// What SQLite may have under the name of a database.
pub(super) const SUFFIXES: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// Where the file is if its name is a symbolic link: SQLite has the other files beside that.
pub(super) fn resolved(path: &Path) -> Cow<'_, Path> {
    let is_link = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
    match is_link.then(|| fs::canonicalize(path)) {
        Some(Ok(target)) => Cow::Owned(target),
        // Whoever opens it says it better.
        _ => Cow::Borrowed(path),
    }
}

/// `name`, or the first of `name-2`, … that nothing has, nor anything of SQLite's beside it.
pub(super) fn free_name(name: &Path) -> PathBuf {
    let is_free = |path: &Path| {
        let taken = |suffix: &str| fs::symlink_metadata(beside(path, suffix)).is_ok();
        !SUFFIXES.into_iter().any(taken)
    };
    let mut path = name.to_owned();
    for attempt in 2.. {
        if is_free(&path) {
            break;
        }
        path = beside(name, &format!("-{attempt}"));
    }
    path
}

/// The files that a rescue made beside this database, the newest last.
pub(super) fn rescued(database: &Path) -> Vec<PathBuf> {
    let directory = match database.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let Some(name) = database.file_name().and_then(|name| name.to_str()) else {
        return Vec::new();
    };
    // `<time>`, or `<time>-<attempt>`.
    let number = |file: &str| -> Option<(u64, u64)> {
        let rest = file.strip_prefix(name)?.strip_prefix(".rescued-")?;
        match rest.split_once('-') {
            Some((time, attempt)) => Some((time.parse().ok()?, attempt.parse().ok()?)),
            None => Some((rest.parse().ok()?, 1)),
        }
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let file = entry.file_name();
            Some((number(file.to_str()?)?, database.with_file_name(&file)))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}
