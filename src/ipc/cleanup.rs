//! Removes what dead servers left in `/dev/shm` (ipc-transport.md 9.3).
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, unlinkat};
use rustix::process::{Pid, test_kill_process};

use super::ring::files::{RINGS, file_name, remove_files};

/// Removes directories `qb-<pid>-<pid>-<fd>-XXXXXX` of servers that do not exist any more, when
/// they hold nothing but ring files of `service`. Returns how many. Everything else is left
/// alone, as is what cannot be opened or removed.
///
/// Directories of this very process are leftovers too, if they hold such files: the caller has
/// the service's name and no connection yet.
pub fn remove_stale(shm: BorrowedFd<'_>, service: &str, own_pid: u32) -> io::Result<usize> {
    let mut removed = 0;
    let list = openat(shm, ".", directory_flags(), Mode::empty())?;
    for entry in Dir::new(list)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        let Some(pid) = server_pid(name) else {
            continue;
        };
        let own = pid.as_raw_nonzero().get().unsigned_abs() == own_pid;
        if (own || is_dead(pid)) && remove_directory(shm, name, service, own) {
            removed += 1;
        }
    }
    Ok(removed)
}

/// The first pid in the name of a connection directory.
fn server_pid(name: &str) -> Option<Pid> {
    let parts: Vec<&str> = name.strip_prefix("qb-")?.split('-').collect();
    let [server, client, fd, suffix] = parts[..] else {
        return None;
    };
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let random = suffix.len() == 6 && suffix.bytes().all(|b| b.is_ascii_alphanumeric());
    if !(digits(server) && digits(client) && digits(fd) && random) {
        return None;
    }
    server.parse().ok().and_then(Pid::from_raw)
}

fn is_dead(pid: Pid) -> bool {
    test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn remove_directory(shm: BorrowedFd<'_>, name: &str, service: &str, need_files: bool) -> bool {
    let Ok(dir) = openat(shm, name, directory_flags(), Mode::empty()) else {
        return false;
    };
    match only_ring_files(&dir, service) {
        Some(files) if files > 0 || !need_files => {}
        _ => return false,
    }
    remove_files(std::os::fd::AsFd::as_fd(&dir), service);
    unlinkat(shm, name, AtFlags::REMOVEDIR).is_ok()
}

/// Number of entries, if all of them are ring files of `service`.
fn only_ring_files(dir: &impl std::os::fd::AsFd, service: &str) -> Option<usize> {
    let mut known = Vec::with_capacity(6);
    for ring in RINGS {
        for part in ["header", "data"] {
            known.push(file_name(ring, service, part));
        }
    }
    let mut count = 0;
    for entry in Dir::read_from(dir).ok()? {
        let entry = entry.ok()?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        if !known.iter().any(|k| k.as_bytes() == name) {
            return None;
        }
        count += 1;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsFd;
    use std::path::Path;

    fn leave(shm: &Path, name: &str, files: &[&str]) {
        fs::create_dir(shm.join(name)).unwrap();
        for file in files {
            fs::write(shm.join(name).join(file), b"x").unwrap();
        }
    }

    /// A pid that belonged to a process and does not any more.
    fn dead_pid() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        pid
    }

    #[test]
    fn names() {
        let pid = |name| server_pid(name).map(|p| p.as_raw_nonzero().get());
        assert_eq!(pid("qb-15387-15814-14-xq4393"), Some(15387));
        for name in [
            "qb-15387-15814-14-xq439",
            "qb-15387-15814-14-xq43/3",
            "qb-15387-15814-xq4393",
            "qb-x-15814-14-xq4393",
            "qb--1-2-xq4393",
            "qb-0-1-2-xq4393",
            "qb-99999999999-1-2-xq4393",
            "xb-1-1-2-xq4393",
        ] {
            assert_eq!(pid(name), None, "{name}");
        }
    }

    #[test]
    fn removes_exactly_what_dead_servers_left() {
        let shm = tempfile::tempdir().unwrap();
        let (dead, own) = (dead_pid(), std::process::id());
        let all = |s: &str| {
            RINGS
                .iter()
                .flat_map(|r| [file_name(r, s, "header"), file_name(r, s, "data")])
                .collect::<Vec<_>>()
        };
        let ours = all("pve2");
        let ours: Vec<&str> = ours.iter().map(String::as_str).collect();
        let other = all("cmap");
        let other: Vec<&str> = other.iter().map(String::as_str).collect();

        let gone = [
            (format!("qb-{dead}-1-2-aaaaaa"), ours.clone()),
            (format!("qb-{dead}-1-2-bbbbbb"), vec![]),
            (
                format!("qb-{dead}-1-2-cccccc"),
                vec!["qb-request-pve2-data"],
            ),
            (format!("qb-{own}-1-2-dddddd"), ours.clone()),
        ];
        let kept = [
            (format!("qb-{dead}-1-2-eeeeee"), other),
            (
                format!("qb-{dead}-1-2-ffffff"),
                vec!["qb-request-pve2-data", "notes"],
            ),
            (format!("qb-{own}-1-2-gggggg"), vec![]),
            ("qb-1-1-2-hhhhhh".to_owned(), ours.clone()),
            (format!("qb-{dead}-iiiiii"), ours.clone()),
        ];
        for (name, files) in gone.iter().chain(&kept) {
            leave(shm.path(), name, files);
        }
        // A link in the place of a directory must not lead out.
        let victim = tempfile::tempdir().unwrap();
        fs::write(victim.path().join("qb-request-pve2-data"), b"x").unwrap();
        let link = format!("qb-{dead}-1-2-jjjjjj");
        std::os::unix::fs::symlink(victim.path(), shm.path().join(&link)).unwrap();

        let dir = fs::File::open(shm.path()).unwrap();
        assert_eq!(remove_stale(dir.as_fd(), "pve2", own).unwrap(), gone.len());
        for (name, _) in &gone {
            assert!(!shm.path().join(name).exists(), "{name}");
        }
        for (name, files) in &kept {
            assert_eq!(
                fs::read_dir(shm.path().join(name)).unwrap().count(),
                files.len(),
                "{name}"
            );
        }
        assert!(victim.path().join("qb-request-pve2-data").exists());
    }
}
