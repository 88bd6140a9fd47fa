//! The mount point: clearing away what a killed daemon left, refusing what must not be hidden,
//! mount and unmount (daemon.md 3.2). With mount(2) itself, as root: no libfuse, no helper.
#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};

const DEVICE: &str = "/dev/fuse";
/// How many of the files that are in the way are named.
const NAMED: usize = 5;
/// Dead mounts that may lie on top of each other.
const MAX_STACKED: usize = 16;

/// Why the mount point cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error(
        "mount point {path} is not empty (holds {names}): mounting would hide these files; move them away"
    )]
    NotEmpty { path: PathBuf, names: String },
    #[error("mount point {0} is not a directory")]
    NotADirectory(PathBuf),
    #[error("cannot use mount point {path}: {source}")]
    MountPoint { path: PathBuf, source: io::Error },
    #[error(
        "cannot unmount what is left on {path}: {source} - 'umount -l {path}', then start again"
    )]
    Stale { path: PathBuf, source: io::Error },
    #[error("cannot open {DEVICE}: {0} (is the kernel module fuse loaded?)")]
    NoDevice(io::Error),
    #[error("cannot open {DEVICE}: {0} - root must be allowed to use it (see 'ls -l {DEVICE}')")]
    Device(io::Error),
    #[error("{DEVICE} is not the device of FUSE: rm {DEVICE}; mknod -m 600 {DEVICE} c 10 229")]
    NotFuse,
    #[error(
        "cannot mount on {path}: {source} - this process has no CAP_SYS_ADMIN (CapEff {effective}): \
         start it as root, outside of an unprivileged container, and without CapabilityBoundingSet= \
         or PrivateUsers= in the unit (systemctl cat pve-cluster)"
    )]
    Privilege {
        path: PathBuf,
        effective: String,
        source: io::Error,
    },
    #[error("cannot mount on {path}: {source} - see the last lines of 'dmesg'")]
    Mount { path: PathBuf, source: io::Error },
}

/// Number of the capability that mounting takes.
const CAP_SYS_ADMIN: u32 = 21;

/// The effective capabilities, in hexadecimal, of a process that may not mount.
fn lacking_privilege() -> Option<String> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?
        .trim();
    let bits = u64::from_str_radix(set, 16).ok()?;
    (bits & (1 << CAP_SYS_ADMIN) == 0).then(|| set.to_owned())
}

/// The error for a refused mount or umount.
fn refused(
    path: &Path,
    err: Errno,
    other: impl FnOnce(PathBuf, io::Error) -> MountError,
) -> MountError {
    match lacking_privilege() {
        Some(effective) if err == Errno::EPERM => MountError::Privilege {
            path: path.into(),
            effective,
            source: err.into(),
        },
        _ => other(path.into(), err.into()),
    }
}

fn open_device() -> Result<OwnedFd, MountError> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(DEVICE)
        .map_err(|err| match err.kind() {
            io::ErrorKind::NotFound => MountError::NoDevice(err),
            _ => MountError::Device(err),
        })?;
    let number = device.metadata().map_or(0, |found| found.rdev());
    if (libc::major(number), libc::minor(number)) != (10, 229) {
        return Err(MountError::NotFuse);
    }
    Ok(device.into())
}

/// Makes the mount point usable and mounts. Nothing is answered before the device that is returned
/// is served ([`super::serve`]); whoever touches the mount until then waits.
///
/// Something that is mounted there is unmounted by force: the caller holds the lock that says that
/// no other daemon serves it. The directory is made (0750) if it is missing.
///
/// # Errors
/// See [`MountError`]; nothing is mounted then.
pub fn mount(path: &Path) -> Result<OwnedFd, MountError> {
    clear(path)?;
    let failed = |source| MountError::MountPoint {
        path: path.into(),
        source,
    };
    match fs::DirBuilder::new().mode(0o750).create(path) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(failed(err)),
        _ => {}
    }
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Err(MountError::NotADirectory(path.into()));
    }
    refuse_files(path)?;

    let device = open_device()?;
    // The order is that of /proc/mounts as the C daemon's mount shows it.
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(
        Some(DEVICE),
        path,
        Some("fuse"),
        flags,
        Some(options.as_str()),
    )
    .map_err(|err| refused(path, err, |path, source| MountError::Mount { path, source }))?;
    Ok(device)
}

/// Takes away mounts that lie on `path`.
fn clear(path: &Path) -> Result<(), MountError> {
    for _ in 0..MAX_STACKED {
        match umount2(path, MntFlags::MNT_FORCE) {
            Ok(()) => continue,
            // Not a mount point, or not even there.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(err) => {
                // Some process sits in it (its working directory, an open file). The connection is
                // aborted by now, so nobody loses anything that would still work.
                tracing::debug!("umount of {}: {err}, detaching", path.display());
                umount2(path, MntFlags::MNT_DETACH).map_err(|err| {
                    refused(path, err, |path, source| MountError::Stale { path, source })
                })?;
            }
        }
    }
    Ok(())
}

fn refuse_files(path: &Path) -> Result<(), MountError> {
    let failed = |source| MountError::MountPoint {
        path: path.into(),
        source,
    };
    let mut names = Vec::new();
    let mut more = 0;
    for item in fs::read_dir(path).map_err(failed)? {
        let name = item.map_err(failed)?.file_name();
        if names.len() < NAMED {
            names.push(name.to_string_lossy().into_owned());
        } else {
            more += 1;
        }
    }
    if names.is_empty() {
        return Ok(());
    }
    names.sort();
    let mut names = names.join(", ");
    if more > 0 {
        names.push_str(&format!(" and {more} more"));
    }
    Err(MountError::NotEmpty {
        path: path.into(),
        names,
    })
}

/// Takes the mount away. If a process still has its working directory or an open file in it, the
/// mount leaves the name space at once and ends for that process when the daemon does.
///
/// # Errors
/// The kernel's refusal of the detach. A mount that is gone already is fine.
pub fn unmount(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(err) => Err(err.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_the_way_are_named() {
        let dir = tempfile::tempdir().unwrap();
        refuse_files(dir.path()).unwrap();
        for i in 0..7 {
            fs::write(dir.path().join(format!("file{i}")), "").unwrap();
        }
        let err = refuse_files(dir.path()).unwrap_err().to_string();
        assert!(err.contains("file") && err.contains("and 2 more"), "{err}");
    }

    #[test]
    fn a_file_is_no_mount_point() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "").unwrap();
        assert!(matches!(
            mount(&file),
            Err(MountError::NotADirectory(_) | MountError::Stale { .. })
        ));
    }
}
