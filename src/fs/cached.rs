//! What the kernel shows of a file right now, asked without a request and without waiting.
#![forbid(unsafe_code)]

use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};

/// Size in bytes that a reader of the file `path` is given at this moment. `None` if another file
/// than inode `ino` is there, or the kernel cannot tell from its caches alone (then no reader has an
/// older size either, apart from those who keep the file open), or is older than 5.12.
///
/// Never sends a request to the daemon and never waits for a lock of a directory.
pub fn size(path: &Path, ino: u64) -> Option<u64> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).ok()?;
    let how = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let facts = statx(&file, c"", how, StatxFlags::SIZE | StatxFlags::INO).ok()?;
    (facts.stx_ino == ino).then_some(facts.stx_size)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_size_is_that_of_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "abc").unwrap();
        let ino = std::fs::metadata(&path).unwrap().ino();
        // Old kernels and emulations know no answer; a wrong one must never come.
        assert!(matches!(size(&path, ino), None | Some(3)));
        std::fs::write(&path, "").unwrap();
        assert!(matches!(size(&path, ino), None | Some(0)));
        assert_eq!(size(&path, ino + 1), None);
        assert_eq!(size(&dir.path().join("missing"), ino), None);
    }
}
