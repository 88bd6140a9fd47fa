//! What stands in the way of a file that is to be made or written, and what to do about it: words
//! for error messages, found after something failed. Looks at the file system, changes nothing.
#![forbid(unsafe_code)]

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, access, statvfs};
use rustix::io::Errno;

/// Less room than this is a full disk: a database needs 32 KiB for `-shm` and some pages for its
/// log.
const ROOM: u64 = 128 << 10;

/// The obstacle for the regular file `path`, which need not exist; `None` if there is none to see.
pub fn obstacle(path: &Path) -> Option<String> {
    wrong_kind(path)
        .or_else(|| no_directory(path))
        .or_else(|| forbidden(path))
        .or_else(|| full(path.parent()?))
}

/// ` - …` with the obstacle, or nothing: the tail of a message.
pub fn tail(path: &Path) -> String {
    obstacle(path).map_or_else(String::new, |text| format!(" - {text}"))
}

/// What is at `path` cannot be a file to read and write: a directory, a link to nothing, a device.
pub fn wrong_kind(path: &Path) -> Option<String> {
    let shown = path.display();
    let link = fs::symlink_metadata(path).ok()?.is_symlink();
    match fs::metadata(path) {
        Err(err) if link && err.kind() == io::ErrorKind::NotFound => {
            let target = fs::read_link(path).unwrap_or_default();
            let target = target.display();
            Some(format!(
                "'{shown}' is a symbolic link to '{target}', which does not exist: mount what \
                 '{target}' is on, or remove the link"
            ))
        }
        Ok(found) if found.is_dir() => Some(format!(
            "'{shown}' is a directory where a file belongs: mv '{shown}' '{shown}.dir'"
        )),
        Ok(found) if !found.is_file() => {
            Some(format!("'{shown}' is no regular file: move it away"))
        }
        _ => None,
    }
}

fn no_directory(path: &Path) -> Option<String> {
    let dir = path.parent()?;
    let shown = dir.display();
    match fs::metadata(dir) {
        Ok(found) if !found.is_dir() => Some(format!("'{shown}' is not a directory")),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            let why = dir
                .parent()
                .and_then(|above| refusal(above, Access::WRITE_OK));
            Some(match why {
                Some(why) => format!("directory '{shown}' is missing, and {why}"),
                None => format!("directory '{shown}' is missing: mkdir -m 750 '{shown}'"),
            })
        }
        _ => None,
    }
}

/// The file, if it is there, must be readable and writable, its directory must take new files.
fn forbidden(path: &Path) -> Option<String> {
    refusal(path, Access::READ_OK | Access::WRITE_OK)
        .or_else(|| refusal(path.parent()?, Access::WRITE_OK | Access::EXEC_OK))
}

fn refusal(path: &Path, wanted: Access) -> Option<String> {
    let shown = path.display();
    match access(path, wanted) {
        Err(Errno::ROFS) => Some(format!(
            "'{shown}' is on a read-only file system; the kernel makes it so after errors of the \
             disk (dmesg). When that is mended: mount -o remount,rw \"$(findmnt -nfo TARGET -T '{shown}')\""
        )),
        // Of a file that root may write otherwise.
        Err(Errno::PERM) => Some(format!(
            "'{shown}' is immutable (lsattr -d '{shown}'): chattr -i '{shown}'"
        )),
        Err(Errno::ACCESS) => Some(no_permission(path)),
        _ => None,
    }
}

/// The part of the path that refuses: root without `CAP_DAC_OVERRIDE`, or somebody else.
fn no_permission(path: &Path) -> String {
    let user = rustix::process::geteuid();
    let whose = |found: &Metadata| {
        let mode = found.mode() & 0o7777;
        format!("owner {}:{}, mode {mode:04o}", found.uid(), found.gid())
    };
    let at = path
        .ancestors()
        .find_map(|at| Some((at, fs::symlink_metadata(at).ok()?)));
    let (shown, whose) = match &at {
        Some((at, found)) => (at.display(), whose(found)),
        None => (path.display(), "unknown".into()),
    };
    format!(
        "user {user} may not write '{shown}' ({whose}), and has no CAP_DAC_OVERRIDE, either \
         (CapabilityBoundingSet= in the unit): chown root:root '{shown}'",
        user = user.as_raw()
    )
}

fn full(dir: &Path) -> Option<String> {
    let found = statvfs(dir).ok()?;
    let shown = dir.display();
    let free = found.f_bfree.saturating_mul(found.f_frsize);
    if found.f_blocks > 0 && free < ROOM {
        return Some(format!(
            "the file system of '{shown}' is full ({free} bytes left): make room (df -h '{shown}')"
        ));
    }
    (found.f_files > 0 && found.f_ffree == 0).then(|| {
        format!(
            "the file system of '{shown}' is full (no inode left): remove files (df -i '{shown}')"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_no_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("config.db");
        assert_eq!(obstacle(&at), None);
        fs::create_dir(&at).unwrap();
        assert!(obstacle(&at).unwrap().contains("is a directory"));
        fs::remove_dir(&at).unwrap();
        symlink("/nowhere/at/all", &at).unwrap();
        let text = obstacle(&at).unwrap();
        assert!(
            text.contains("link to '/nowhere/at/all', which does not exist"),
            "{text}"
        );
        fs::remove_file(&at).unwrap();
        fs::write(&at, "").unwrap();
        assert_eq!(obstacle(&at), None);
        assert_eq!(tail(&at), "");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = obstacle(&dir.path().join("below/config.db")).unwrap();
        assert!(text.contains("/below' is missing"), "{text}");
        fs::write(dir.path().join("below"), "").unwrap();
        let text = obstacle(&dir.path().join("below/config.db")).unwrap();
        assert!(text.contains("/below' is not a directory"), "{text}");
    }
}
