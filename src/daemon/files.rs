//! Lock, pid file, restart flag and directories (daemon.md 1, 3 and 6).
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::config::Config;
use super::{StartError, holder};
use crate::obstacle;

const LOCK_TRIES: u32 = 11;
const LOCK_PAUSE: Duration = Duration::from_secs(1);

/// State and run directory. Failures are ignored here: what needs the directory will say so.
pub fn make_directories(config: &Config, www_gid: u32) {
    let _ = DirBuilder::new().mode(0o750).create(config.state_dir());
    let _ = DirBuilder::new().mode(0o750).create(&config.runtime_dir);
    let _ = chown(&config.runtime_dir, Some(0), Some(www_gid));
}

/// What the daemon itself has open, without any client.
const MIN_FILES: u64 = 64;

/// Makes sure that [`MIN_FILES`] files may be open, although root's limit was set lower; otherwise
/// every step of the start fails in its own way. The IPC server asks for more, for its clients.
pub fn raise_file_limit() -> Result<(), StartError> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= MIN_FILES) {
        return Ok(());
    }
    let raised = Rlimit {
        current: Some(MIN_FILES),
        maximum: limit.maximum.map(|maximum| maximum.max(MIN_FILES)),
    };
    setrlimit(Resource::Nofile, raised).map_err(|_| StartError::FileLimit {
        limit: limit.maximum.unwrap_or_default(),
        needed: MIN_FILES,
    })
}

/// The single-instance lock; held as long as the value lives (and by forked children).
#[derive(Debug)]
pub struct Lock {
    file: File,
    /// Nobody was here before.
    new: bool,
}

impl Lock {
    /// Waits up to 10 s for an instance that is about to end.
    pub fn acquire(path: &Path) -> Result<Self, StartError> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).mode(0o600);
        let (file, new) = match options.clone().create_new(true).open(path) {
            Ok(file) => (Ok(file), true),
            Err(_) => (options.create(true).open(path), false),
        };
        let file = file.map_err(|source| StartError::LockCreate {
            path: path.display().to_string(),
            source,
            obstacle: obstacle::tail(path),
        })?;
        for attempt in 1..=LOCK_TRIES {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock { file, new }),
                Err(err) if attempt == LOCK_TRIES => {
                    return Err(StartError::Lock {
                        source: err.into(),
                        holder: holder::advice(path),
                    });
                }
                Err(_) if attempt == 1 => {
                    let who = holder::name(path);
                    tracing::info!(
                        target: "main",
                        "unable to acquire pmxcfs lock - trying again{who}"
                    );
                }
                Err(_) => {}
            }
            sleep(LOCK_PAUSE);
        }
        unreachable!("the last attempt returns")
    }

    /// Start time of this instance in seconds: now, but never the one of the instance before.
    ///
    /// Clients drop their caches when it changes (status.md 3) and know whole seconds only, and
    /// this daemon starts much faster than that. The lock file's mtime remembers the last value.
    pub fn start_time(&self) -> u32 {
        let now = unix_time(SystemTime::now());
        let modified = self.file.metadata().and_then(|m| m.modified());
        let last = match modified {
            Ok(at) if !self.new => unix_time(at),
            _ => 0,
        };
        // A clock that was far ahead once must not drag the start time along for ever.
        let start = if last >= now && last - now < 3600 {
            last + 1
        } else {
            now
        };
        let at = UNIX_EPOCH + Duration::from_secs(u64::from(start));
        if let Err(err) = self.file.set_modified(at) {
            tracing::warn!(target: "main", "unable to remember the start time on the lock file: {err} - clients may keep old caches if pmxcfs is restarted within a second");
        }
        start
    }
}

/// Seconds since the epoch, low 32 bits.
pub fn unix_time(at: SystemTime) -> u32 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() as u32)
}

/// Writes `<pid>\n` by atomic replacement.
pub fn write_pid_file(path: &Path, pid: u32) -> io::Result<()> {
    let mut temp = path.as_os_str().to_owned();
    temp.push(format!(".{}", std::process::id()));
    let temp = PathBuf::from(temp);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&temp)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(format!("{pid}\n").as_bytes())?;
        fs::rename(&temp, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temp);
    })
}

/// Says that the pid file could not be written; the daemon serves without.
pub fn no_pid_file(path: &Path, err: &io::Error) {
    let (path, why) = (path.display(), obstacle::tail(path));
    tracing::error!(target: "main", "unable to write pid file '{path}': {err}{why}");
}

/// Removes the pid file if it names this process.
pub fn remove_pid_file(path: &Path) {
    let own =
        fs::read_to_string(path).is_ok_and(|text| text.trim() == std::process::id().to_string());
    if own {
        let _ = fs::remove_file(path);
    }
}

/// Asks clients to wait for the next start. An existing flag is kept.
pub fn create_restart_flag(path: &Path, www_gid: u32) {
    let made = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o440)
        .open(path);
    // An existing flag is read-only, even root may be refused by a strict filesystem: chown anyway.
    drop(made);
    if let Err(err) = chown(path, Some(0), Some(www_gid)) {
        tracing::warn!(
            "unable to create the restart flag '{}': {err}{}",
            path.display(),
            obstacle::tail(path)
        );
    }
}

/// Service is back: clients need not wait.
pub fn remove_restart_flag(path: &Path) {
    if let Err(err) = fs::remove_file(path) {
        if err.kind() != io::ErrorKind::NotFound {
            tracing::warn!(
                "unable to remove the restart flag '{}': {err}",
                path.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times_never_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::acquire(&path).unwrap().start_time();
        assert!(first <= unix_time(SystemTime::now()));
        let second = Lock::acquire(&path).unwrap().start_time();
        let third = Lock::acquire(&path).unwrap().start_time();
        assert!(first < second && second < third, "{first} {second} {third}");
    }

    #[test]
    fn a_lock_from_the_far_future_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::acquire(&path).unwrap();
        lock.file
            .set_modified(SystemTime::now() + Duration::from_secs(1_000_000))
            .unwrap();
        let now = unix_time(SystemTime::now());
        assert!(lock.start_time().abs_diff(now) < 5);
    }

    #[test]
    fn pid_file_is_readable_by_all_and_removed_by_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        write_pid_file(&path, 4711).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "4711\n");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o644
        );
        remove_pid_file(&path);
        assert!(path.exists());
        write_pid_file(&path, std::process::id()).unwrap();
        remove_pid_file(&path);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_flag_is_empty_and_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flag");
        create_restart_flag(&path, 33);
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (0, 0o440));
        create_restart_flag(&path, 33);
        remove_restart_flag(&path);
        assert!(!path.exists());
    }
}
