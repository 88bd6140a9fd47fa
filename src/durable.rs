//! Files that are there as a whole, or not at all: also after a power cut.
//!
//! A file is written under a temporary name in the directory where it is to stand, synced, renamed,
//! and the directory is synced. `docs/architecture.md`: every file that the daemon makes beside its
//! database or on the host is made here (pid file, restart flag and lock file excepted: what they
//! say does not outlive a boot).
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// A file under its temporary name. It is removed when dropped without a final name.
#[derive(Debug)]
pub struct Draft {
    temporary: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Draft {
    /// Makes an empty file of this mode (whatever the umask is) beside `target`. Its name is that
    /// of `target` with the process id, so one that a killed process left is replaced.
    ///
    /// # Errors
    /// Those of making a file.
    pub fn new(target: &Path, mode: u32) -> io::Result<Self> {
        let mut name = target.as_os_str().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let draft = Draft {
            temporary: PathBuf::from(name),
            target: target.to_owned(),
            published: false,
        };
        match std::fs::remove_file(&draft.temporary) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&draft.temporary)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        Ok(draft)
    }

    /// Where the content is to be written. Whoever writes it has closed it before it is published.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Gives the file its name; one that has the name now is replaced.
    ///
    /// # Errors
    /// Those of the disk. A failure of the last step, syncing the directory, comes when the file
    /// has its name already.
    pub fn replace(self) -> io::Result<()> {
        self.publish(RenameFlags::empty())
    }

    /// Gives the file its name, if no file has it.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`], or those of the disk as in [`Draft::replace`].
    pub fn create(self) -> io::Result<()> {
        self.publish(RenameFlags::NOREPLACE)
    }

    fn publish(mut self, flags: RenameFlags) -> io::Result<()> {
        File::open(&self.temporary)?.sync_all()?;
        renameat_with(CWD, &self.temporary, CWD, &self.target, flags)?;
        self.published = true;
        sync_directory_of(&self.target)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // The error that led here is the one to tell.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Replaces the file at `path` by one with this content and mode; with `owner`, of this user and
/// group.
///
/// # Errors
/// Those of the disk; the old file is there as a whole then, unless only syncing the directory
/// failed.
pub fn replace(
    path: &Path,
    content: &[u8],
    mode: u32,
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    let draft = Draft::new(path, mode)?;
    let mut file = OpenOptions::new().write(true).open(draft.path())?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
    }
    file.write_all(content)?;
    drop(file);
    draft.replace()
}

/// Gives a file another name in the same directory, if no file has that.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], or those of the disk.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    take_free_name(from, to)?;
    sync_directory_of(to)
}

/// As [`rename_new`], but whoever calls syncs the directory: an error says that nothing was renamed.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], or those of the disk.
pub fn take_free_name(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

/// Two files of a directory get each other's name in one step; whoever calls syncs the directory.
///
/// # Errors
/// Those of the file system; each has its old name then.
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

/// What was made, renamed or removed in the directory of `path` survives a power cut.
///
/// # Errors
/// Those of opening and syncing the directory.
pub fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "old").unwrap();
        replace(&path, b"new", 0o640, None).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn a_new_file_replaces_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "somebody's").unwrap();
        let draft = Draft::new(&path, 0o600).unwrap();
        let error = draft.create().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        let error = rename_new(&path, &path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody's");
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn what_is_given_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        drop(Draft::new(&path, 0o600).unwrap());
        assert!(names(dir.path()).is_empty());
        assert!(Draft::new(&dir.path().join("missing/file"), 0o600).is_err());
    }

    /// The order of the system calls, as a power cut needs it: seen from outside.
    #[test]
    fn content_is_synced_before_its_name_and_the_name_before_the_end() {
        const CHILD: &str = "PMXCFS_DURABLE_TEST_CHILD";
        if let Some(dir) = std::env::var_os(CHILD) {
            let path = Path::new(&dir).join("file");
            replace(&path, b"content", 0o600, None).unwrap();
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let trace = dir.path().join("trace");
        let status = std::process::Command::new("strace")
            .args(["-f", "-qq", "-y", "-e", "trace=write,fsync,renameat2", "-o"])
            .arg(&trace)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "--test-threads=1"])
            .arg("durable::tests::content_is_synced_before_its_name_and_the_name_before_the_end")
            .env(CHILD, dir.path())
            .status()
            .expect("strace runs (apt install strace)");
        assert!(status.success());
        let trace = std::fs::read_to_string(&trace).unwrap();
        let home = dir.path().display().to_string();
        let calls: Vec<&str> = trace
            .lines()
            .filter(|line| line.contains(&home))
            .filter_map(|line| line.split_whitespace().nth(1)?.split('(').next())
            .collect();
        assert_eq!(calls, ["write", "fsync", "renameat2", "fsync"], "{trace}");
        let last = trace.lines().rfind(|line| line.contains(&home));
        assert!(last.unwrap().contains(&format!("<{home}>")), "{trace}");
    }
}
