//! What the kernel shows of a name right now, asked without a request and without waiting.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
use rustix::io::Errno;

/// What somebody who looks up a name is shown at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    Entry {
        ino: u64,
        size: u64,
    },
    /// The name does not exist.
    Nothing,
    /// The kernel cannot tell from its caches alone (then nobody is shown anything older, apart from
    /// those who keep the file open), or is older than 5.12, or another directory is there.
    Unknown,
}

/// Looks up `name` in the directory `dir`, which has to be inode `dir_ino`.
///
/// Never sends a request to the daemon and never waits for a lock of a directory.
pub fn look(dir: &Path, dir_ino: u64, name: &OsStr) -> Shown {
    try_look(dir, dir_ino, name).unwrap_or(Shown::Unknown)
}

fn try_look(dir: &Path, dir_ino: u64, name: &OsStr) -> Result<Shown, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::SIZE | StatxFlags::INO;
    let cached = ResolveFlags::CACHED;
    let dir = openat2(CWD, dir, flags, Mode::empty(), cached)?;
    if statx(&dir, c"", how, wanted)?.stx_ino != dir_ino {
        return Ok(Shown::Unknown);
    }
    match openat2(&dir, name, flags, Mode::empty(), cached) {
        Ok(file) => {
            let facts = statx(&file, c"", how, wanted)?;
            let (ino, size) = (facts.stx_ino, facts.stx_size);
            Ok(Shown::Entry { ino, size })
        }
        Err(Errno::NOENT) => Ok(Shown::Nothing),
        Err(err) => Err(err),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_entry_is_that_of_now() {
        let dir = tempfile::tempdir().unwrap();
        let (path, dir_ino) = (dir.path(), std::fs::metadata(dir.path()).unwrap().ino());
        let file = path.join("file");
        std::fs::write(&file, "abc").unwrap();
        let ino = std::fs::metadata(&file).unwrap().ino();
        let name = OsStr::new("file");
        // Old kernels and emulations know no answer; a wrong one must never come.
        let can_be = |shown, expected| shown == Shown::Unknown || shown == expected;
        let entry = |size| Shown::Entry { ino, size };
        assert!(can_be(look(path, dir_ino, name), entry(3)));
        std::fs::write(&file, "").unwrap();
        assert!(can_be(look(path, dir_ino, name), entry(0)));
        assert_eq!(look(path, dir_ino + 1, name), Shown::Unknown);
        std::fs::remove_file(&file).unwrap();
        assert!(can_be(look(path, dir_ino, name), Shown::Nothing));
        assert_eq!(look(&path.join("missing"), dir_ino, name), Shown::Unknown);
    }
}
