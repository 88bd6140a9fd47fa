//! Who holds the lock file, for those who wonder why the daemon does not start.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

/// A process that holds the lock.
#[derive(Debug, PartialEq, Eq)]
struct Holder {
    pid: u32,
    /// `None`: it was killed, and a thread of it has not ended yet.
    command: Option<String>,
}

/// For a process that waits in the kernel for its own mount, which no signal can end.
const ABORT: &str = "echo 1 > /sys/fs/fuse/connections/$(awk '$5 == \"/etc/pve\" { split($3, n, \":\"); c = n[2] } \
                     END { print c }' /proc/self/mountinfo)/abort";

/// ` (held by pid 1234: /usr/bin/pmxcfs -l)`, or nothing if nobody is found.
pub fn name(lock: &Path) -> String {
    match find(lock) {
        Some(Holder {
            pid,
            command: Some(command),
        }) => format!(" (held by pid {pid}: {command})"),
        Some(Holder { pid, command: None }) => format!(" (held by pid {pid}, which was killed)"),
        None => String::new(),
    }
}

/// Who holds it, and how to end that; the tail of a message.
pub fn advice(lock: &Path) -> String {
    let file = lock.display();
    match find(lock) {
        Some(Holder {
            pid,
            command: Some(command),
        }) => format!(
            " - '{file}' is held by pid {pid} ({command}): 'systemctl stop pve-cluster' ends the \
             service, 'kill {pid}' one that was started by hand"
        ),
        Some(Holder { pid, command: None }) => format!(
            " - '{file}' is held by pid {pid}, which was killed and has not ended yet. If it is still \
             there in a minute, it waits in the kernel for /etc/pve, which has to be cut off: {ABORT}"
        ),
        None => format!(
            " - '{file}' is held by a process that is not to be seen from here (another container \
             or PID name space?)"
        ),
    }
}

/// Looks through the open files of all threads. `/proc/locks` would not do: it names the process
/// that took the lock, which has ended since if the daemon went to the background.
fn find(lock: &Path) -> Option<Holder> {
    let name = lock.file_name()?;
    let inode = {
        use std::os::unix::fs::MetadataExt;
        format!(":{} ", fs::metadata(lock).ok()?.ino())
    };
    let numbered = |dir: PathBuf| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
    };
    for process in numbered("/proc".into()) {
        // The first thread of a process that was killed is gone before the last one.
        for thread in numbered(process.path().join("task")) {
            let holds = numbered(thread.path().join("fdinfo")).any(|info| {
                let open = thread.path().join("fd").join(info.file_name());
                fs::read_link(open).is_ok_and(|file| file.file_name() == Some(name))
                    && fs::read_to_string(info.path()).is_ok_and(|text| has_lock(&text, &inode))
            });
            if holds {
                let pid = process.file_name().to_string_lossy().parse().ok()?;
                let command = command(&process.path());
                return Some(Holder { pid, command });
            }
        }
    }
    None
}

/// Is there a lock of flock(2) on the file of this inode among those of an open file?
fn has_lock(fdinfo: &str, inode: &str) -> bool {
    fdinfo
        .lines()
        .any(|line| line.starts_with("lock:") && line.contains("FLOCK") && line.contains(inode))
}

/// The command line; a process that was killed has none any more.
fn command(process: &Path) -> Option<String> {
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    Some(line.trim().to_owned()).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FlockOperation, flock};

    #[test]
    fn the_holder_is_found_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".pmxcfs.lockfile");
        let file = fs::File::create(&path).unwrap();
        assert_eq!(find(&path), None);
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        let holder = find(&path).unwrap();
        assert_eq!(holder.pid, std::process::id());
        assert!(holder.command.unwrap().contains("pmxcfs"));
        assert!(advice(&path).contains("systemctl stop pve-cluster"));
        drop(file);
        assert_eq!(name(&path), "");
    }
}
