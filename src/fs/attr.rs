//! Modes and attributes of what the mount shows (filesystem.md 3).
#![forbid(unsafe_code)]

use super::DotFile;
use super::ops::{Attr, FileKind, Ino};
use crate::memdb::TreePath;

/// Unit of `st_blksize` and, other than everywhere else, of `st_blocks`.
pub const BLOCK: u64 = 4096;
/// All write bits: gone without quorum.
const WRITE_BITS: u16 = 0o222;

/// Permission bits of a database entry.
pub fn mode(path: &TreePath, is_dir: bool, quorate: bool) -> u16 {
    if path.is_root() {
        return 0o755;
    }
    let mut mode = match (is_dir, path.is_private()) {
        (true, false) => 0o755,
        (true, true) => 0o700,
        (false, false) => 0o640,
        (false, true) => 0o600,
    };
    if !is_dir
        && path
            .split_last()
            .is_some_and(|(_, name)| is_guest_script(name))
    {
        mode |= 0o100;
    }
    if quorate { mode } else { mode & !WRITE_BITS }
}

/// Hook scripts of OpenVZ guests are executable for root: `vps.mount`, `101.start` …
fn is_guest_script(name: &[u8]) -> bool {
    let Some(dot) = name.iter().rposition(|&b| b == b'.') else {
        return false;
    };
    let (stem, action) = (&name[..dot], &name[dot + 1..]);
    let is_action = matches!(
        action,
        b"mount" | b"umount" | b"start" | b"stop" | b"premount" | b"postumount"
    );
    let is_vmid = || {
        stem.first().is_some_and(|b| (b'1'..=b'9').contains(b))
            && stem.iter().all(u8::is_ascii_digit)
    };
    is_action && (stem == b"vps" || is_vmid())
}

/// Permission bits of a symbolic link in the root.
pub fn link_mode(quorate: bool) -> u16 {
    if quorate { 0o755 } else { 0o555 }
}

/// Permission bits of a dot file; they do not depend on quorum.
pub fn dot_mode(file: DotFile) -> u16 {
    match file {
        DotFile::Debug => 0o640,
        _ => 0o440,
    }
}

/// What `chmod` to `mode` answers: only the mode a public or private *file* has is accepted, for
/// whatever it is asked (filesystem.md 5).
pub fn chmod_allowed(private: bool, mode: u32) -> bool {
    mode & 0o7777 == if private { 0o600 } else { 0o640 }
}

/// May the owner be set to this? Only to what it is.
pub fn chown_allowed(uid: Option<u32>, gid: Option<u32>, group: u32) -> bool {
    let uid_ok = uid.is_none_or(|uid| uid == 0 || uid == u32::MAX);
    let gid_ok = gid.is_none_or(|gid| gid == group || gid == u32::MAX);
    uid_ok && gid_ok
}

/// Attributes of a regular file or directory of the database.
pub fn entry(ino: Ino, is_dir: bool, size: u64, mtime: u32, perm: u16, gid: u32) -> Attr {
    Attr {
        ino,
        kind: if is_dir {
            FileKind::Directory
        } else {
            FileKind::Regular
        },
        perm,
        nlink: if is_dir { 2 } else { 1 },
        size,
        blocks: size.div_ceil(BLOCK),
        mtime,
        edition: 0,
        gid,
    }
}

/// Attributes of a link or dot file.
pub fn plugin(ino: Ino, kind: FileKind, size: u64, perm: u16, gid: u32) -> Attr {
    Attr {
        ino,
        kind,
        perm,
        nlink: 1,
        size,
        blocks: 0,
        mtime: 0,
        edition: 0,
        gid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes(path: &str, is_dir: bool) -> (u16, u16) {
        let path = TreePath::new(path.as_bytes());
        (mode(&path, is_dir, true), mode(&path, is_dir, false))
    }

    #[test]
    fn modes_by_path_and_quorum() {
        assert_eq!(modes("", true), (0o755, 0o755));
        assert_eq!(modes("nodes", true), (0o755, 0o555));
        assert_eq!(modes("user.cfg", false), (0o640, 0o440));
        assert_eq!(modes("priv", true), (0o700, 0o500));
        assert_eq!(modes("priv/lock/x", true), (0o700, 0o500));
        assert_eq!(modes("priv/a", false), (0o600, 0o400));
        assert_eq!(modes("nodes/n/priv", true), (0o700, 0o500));
        assert_eq!(modes("nodes/n/priv/a/b", false), (0o600, 0o400));
        assert_eq!(modes("nodes//n//priv/key", false), (0o600, 0o400));
        assert_eq!(modes("privx/a", false), (0o640, 0o440));
        assert_eq!(modes("x/priv/a", false), (0o640, 0o440));
    }

    #[test]
    fn guest_scripts_are_executable() {
        assert_eq!(modes("vps.mount", false), (0o740, 0o540));
        assert_eq!(modes("a/101.start", false), (0o740, 0o540));
        assert_eq!(modes("priv/7.postumount", false), (0o700, 0o500));
        for plain in [
            "vps.mounts",
            "vps",
            "0101.start",
            ".start",
            "1x.stop",
            "vps.",
            "mount",
        ] {
            assert_eq!(modes(plain, false), (0o640, 0o440), "{plain}");
        }
        assert_eq!(modes("vps.mount", true), (0o755, 0o555));
    }

    #[test]
    fn chmod_and_chown_rules() {
        assert!(chmod_allowed(false, 0o640) && chmod_allowed(true, 0o600));
        assert!(chmod_allowed(false, 0o100_640));
        for refused in [0o600, 0o644, 0o755, 0o4640, 0o400] {
            assert!(!chmod_allowed(false, refused), "{refused:o}");
        }
        assert!(!chmod_allowed(true, 0o640));
        assert!(chown_allowed(None, None, 33) && chown_allowed(Some(0), Some(33), 33));
        assert!(chown_allowed(Some(u32::MAX), Some(u32::MAX), 33));
        assert!(!chown_allowed(Some(0), Some(0), 33) && !chown_allowed(Some(1), None, 33));
    }

    #[test]
    fn blocks_count_4096() {
        assert_eq!(entry(2, false, 0, 9, 0o640, 33).blocks, 0);
        assert_eq!(entry(2, false, 1, 9, 0o640, 33).blocks, 1);
        assert_eq!(entry(2, false, 300_000, 9, 0o640, 33).blocks, 74);
        assert_eq!(entry(2, true, 0, 9, 0o755, 33).nlink, 2);
    }
}
