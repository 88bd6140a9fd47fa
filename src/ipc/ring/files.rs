//! Directory and files of one connection in `/dev/shm` (ipc-transport.md 4.2, 6.2, 9.1).
//!
//! Everything goes through directory descriptors: made exclusively, never followed through a
//! link, handed to the client only when complete, and removed by fixed names. What the client
//! writes into shared memory names nothing.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, fchmod, fchown, ftruncate, mkdirat, openat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, getegid, geteuid};

use super::layout::*;
use super::{RingFiles, Rings};
use crate::ipc::handshake::MAX_MESSAGE_SIZE;

/// Where the rings live; clients get absolute paths.
pub const SHM: &str = "/dev/shm";
/// Rings of a connection, in the order of creation.
pub const RINGS: [&str; 3] = ["request", "response", "event"];

/// `/dev/shm` and the name of the service: what every connection needs to make its files.
#[derive(Debug)]
pub struct Shm {
    dir: OwnedFd,
    service: String,
}

impl Shm {
    /// Opens `/dev/shm`.
    pub fn open(service: &str) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            dir: openat(CWD, SHM, flags, Mode::empty())?,
            service: service.to_owned(),
        })
    }

    /// Descriptor of `/dev/shm`.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Name of the service.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// What an admin can do about an error of [`ConnectionDir::create_rings`].
    pub fn hint(&self, error: &io::Error) -> String {
        if error.raw_os_error() != Some(libc::ENOSPC) {
            return String::new();
        }
        let left = self.room().map_or(0, |bytes| bytes >> 10);
        format!(
            " - {SHM} is full ({left} KiB left, a client takes up to {} KiB): remove what else is in \
             it ('du -a {SHM}'; not 'qb-*', which corosync and its clients use), or enlarge it ('mount -o remount,size=50% {SHM}')",
            needed(MAX_MESSAGE_SIZE) >> 10
        )
    }

    /// Free bytes; `None` on a file system without a limit.
    fn room(&self) -> Option<u64> {
        let found = rustix::fs::fstatvfs(&self.dir).ok()?;
        (found.f_blocks > 0).then(|| found.f_bfree.saturating_mul(found.f_frsize))
    }
}

/// Bytes that the files of a connection can grow to.
fn needed(max_message: u32) -> u64 {
    (RINGS.len() * (data_bytes(max_message) + REQUEST_HEADER_FILE)) as u64
}

/// `qb-<ring>-<service>-<part>`; part is `header` or `data`.
pub fn file_name(ring: &str, service: &str, part: &str) -> String {
    format!("qb-{ring}-{service}-{part}")
}

/// The directory of one connection. Dropping it removes the files and the directory; errors are
/// ignored, since the client owns both and may have removed or replaced them.
#[derive(Debug)]
pub struct ConnectionDir {
    shm: Arc<Shm>,
    name: String,
    dir: OwnedFd,
}

impl ConnectionDir {
    /// Makes `/dev/shm/qb-<server pid>-<client pid>-<fd>-XXXXXX`, mode 0700, owned by the server.
    pub fn create(shm: Arc<Shm>, server_pid: u32, client_pid: i32, fd: i32) -> io::Result<Self> {
        let mut attempts = 0;
        let name = loop {
            let name = format!("qb-{server_pid}-{client_pid}-{fd}-{}", random_suffix());
            match mkdirat(&shm.dir, &name, Mode::RWXU) {
                Ok(()) => break name,
                // Names can be taken by others; more than a few of them means that nothing helps.
                Err(Errno::EXIST) if attempts < 100 => attempts += 1,
                Err(error) => return Err(error.into()),
            }
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&shm.dir, &name, flags, Mode::empty()) {
            Ok(dir) => Ok(Self { shm, name, dir }),
            Err(error) => {
                let _ = unlinkat(&shm.dir, &name, AtFlags::REMOVEDIR);
                Err(error.into())
            }
        }
    }

    /// Path prefix of a ring as the connection response carries it.
    pub fn prefix(&self, ring: &str) -> String {
        format!("{SHM}/{}/qb-{ring}-{}", self.name, self.shm.service)
    }

    /// Name in log lines.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Creates the six files for messages of up to `max_message` bytes, owned by the client, maps
    /// them, and then hands the directory over.
    ///
    /// # Errors
    /// Of the system calls; `ENOSPC` when `/dev/shm` is full.
    pub fn create_rings(&self, max_message: u32, uid: u32, gid: u32) -> io::Result<Rings> {
        // The client allocates all of it. If that fails there, nobody tells the admin.
        if self
            .shm
            .room()
            .is_some_and(|room| room < needed(max_message))
        {
            return Err(Errno::NOSPC.into());
        }
        let data_len = data_bytes(max_message);
        let word_size = (data_len / 4) as u32;
        let mut headers = Vec::with_capacity(3);
        let mut data = Vec::with_capacity(3);
        for (index, ring) in RINGS.iter().enumerate() {
            let header_len = if index == 0 {
                REQUEST_HEADER_FILE
            } else {
                OTHER_HEADER_FILE
            };
            let prefix = self.prefix(ring);
            let paths = (format!("{prefix}-header"), format!("{prefix}-data"));
            let image = header_image(header_len, word_size, &paths.0, &paths.1);
            let file = self.create_file(ring, "header", uid, gid)?;
            write_all(&file, &image)?;
            headers.push(file);
            let file = self.create_file(ring, "data", uid, gid)?;
            // Pages come when they are needed.
            ftruncate(&file, data_len as u64)?;
            data.push(file);
        }
        let rings = Rings::map(
            max_message,
            &RingFiles {
                headers: [headers[0].as_fd(), headers[1].as_fd(), headers[2].as_fd()],
                data: [data[0].as_fd(), data[1].as_fd()],
            },
        )?;
        fchmod(&self.dir, Mode::RWXU | Mode::RWXG)?;
        give(&self.dir, uid, gid)?;
        Ok(rings)
    }

    fn create_file(&self, ring: &str, part: &str, uid: u32, gid: u32) -> io::Result<OwnedFd> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = file_name(ring, &self.shm.service, part);
        let file = openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR)?;
        give(&file, uid, gid)?;
        Ok(file)
    }
}

impl Drop for ConnectionDir {
    fn drop(&mut self) {
        remove_files(self.dir.as_fd(), &self.shm.service);
        let _ = unlinkat(&self.shm.dir, &self.name, AtFlags::REMOVEDIR);
    }
}

/// Unlinks the six files of a connection in `dir`, in the order of the reference.
pub fn remove_files(dir: BorrowedFd<'_>, service: &str) {
    for ring in ["response", "event", "request"] {
        for part in ["data", "header"] {
            let _ = unlinkat(dir, file_name(ring, service, part), AtFlags::empty());
        }
    }
}

fn give(file: &OwnedFd, uid: u32, gid: u32) -> io::Result<()> {
    if uid == geteuid().as_raw() && gid == getegid().as_raw() {
        return Ok(());
    }
    Ok(fchown(
        file,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
    )?)
}

fn write_all(file: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        match rustix::io::pwrite(file, &bytes[at..], at as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => at += written,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Six characters as of `mkdtemp`. Only collisions matter: a taken name is tried again.
fn random_suffix() -> String {
    const LETTERS: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let mut value = RandomState::new().build_hasher().finish();
    (0..6)
        .map(|_| {
            let letter = LETTERS[(value % 62) as usize];
            value /= 62;
            char::from(letter)
        })
        .collect()
}
