//! The name of the service: an abstract socket, or a file where libqb is told to use files
//! (ipc-transport.md 2), taken or waited for.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, chmodat, unlinkat};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use super::server::Shared;

/// `sun_path` of an abstract socket without its leading NUL.
const ABSTRACT_NAME_LEN: usize = 107;
const BACKLOG: i32 = 128;
/// Between two attempts to take a name that another process has.
const RETRY: Duration = Duration::from_secs(1);
/// Attempts between two lines of the log about that.
const TRIES_PER_LINE: u32 = 600;

/// The listening socket; removes its file when dropped.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    path: Option<PathBuf>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = unlinkat(CWD, path, rustix::fs::AtFlags::empty());
        }
    }
}

/// Where clients connect to.
#[derive(Debug)]
pub(super) struct Address {
    name: String,
    path: Option<PathBuf>,
}

impl Address {
    /// `place` is the directory for the socket's file, or none for an abstract socket.
    pub(super) fn new(place: Option<&Path>, name: &str) -> Self {
        Address {
            name: name.to_owned(),
            path: place.map(|dir| dir.join(name)),
        }
    }

    fn socket_address(&self) -> rustix::io::Result<SocketAddrUnix> {
        match &self.path {
            None => {
                let mut padded = [0u8; ABSTRACT_NAME_LEN];
                padded[..self.name.len()].copy_from_slice(self.name.as_bytes());
                SocketAddrUnix::new_abstract_name(&padded)
            }
            Some(path) => SocketAddrUnix::new(path),
        }
    }

    /// Takes the name. `None` if another process has it.
    pub(super) fn listen(&self) -> io::Result<Option<Listener>> {
        let address = self.socket_address()?;
        let socket = socket()?;
        if let Some(path) = &self.path {
            if self.connect().is_ok() {
                return Ok(None);
            }
            match unlinkat(CWD, path, rustix::fs::AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match bind(&socket, &address) {
            Ok(()) => {}
            Err(Errno::ADDRINUSE) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        if let Some(path) = &self.path {
            // Everybody may connect, as with an abstract socket; the handshake decides.
            let all = Mode::from_raw_mode(0o777);
            chmodat(CWD, path, all, rustix::fs::AtFlags::empty())?;
        }
        set_socket_passcred(&socket, true)?;
        listen(&socket, BACKLOG)?;
        Ok(Some(Listener {
            socket,
            path: self.path.clone(),
        }))
    }

    /// A connection to whoever has the name; none if nobody accepts connections (a file alone does
    /// not say that somebody does).
    fn connect(&self) -> io::Result<OwnedFd> {
        let probe = socket()?;
        match connect(&probe, &self.socket_address()?) {
            Ok(()) | Err(Errno::AGAIN) => Ok(probe),
            Err(error) => Err(error.into()),
        }
    }

    /// Says who has the name.
    pub(super) fn complain(&self) {
        let name = &self.name;
        let credentials = |probe| getsockopt(&probe, PeerCredentials).ok();
        let holder = self.connect().ok().and_then(credentials);
        let text: &dyn Display = match &holder {
            // Whoever made it listen may have ended, or have left it to a child.
            Some(holder) if has_socket(holder.pid(), name) => {
                let (pid, uid) = (holder.pid(), holder.uid());
                let program = std::fs::read_to_string(format!("/proc/{pid}/comm"));
                let program = program.as_deref().unwrap_or("?").trim().to_owned();
                &format!("process {pid} ({program}) of uid {uid}; 'kill {pid}' frees it")
            }
            _ => &format!("another process; \"ss -xap | grep -w '@{name}'\" shows it"),
        };
        tracing::error!(
            target: "ipcs",
            "no IPC service: its name '@{name}' is taken by {text}; trying again every second"
        );
    }

    /// Waits until the name is free, and takes it. `None`: told to stop.
    pub(super) fn wait(&self, shared: &Shared) -> Option<Listener> {
        let (mut tries, mut failing) = (0u32, false);
        loop {
            if shared.stop.load(Ordering::SeqCst) {
                return None;
            }
            match self.listen() {
                Ok(Some(listener)) => {
                    let name = &self.name;
                    tracing::info!(target: "ipcs", "the name '@{name}' is free: the IPC service begins");
                    return Some(listener);
                }
                Ok(None) => failing = false,
                Err(error) if !std::mem::replace(&mut failing, true) => {
                    tracing::error!(target: "ipcs", "cannot begin the IPC service: {error}");
                }
                Err(_) => {}
            }
            tries += 1;
            if tries % TRIES_PER_LINE == 0 {
                self.complain();
            }
            let mut fds = [PollFd::new(&shared.event, PollFlags::IN)];
            let pause = Timespec {
                tv_sec: RETRY.as_secs() as i64,
                tv_nsec: 0,
            };
            // Readable when told to stop. A wake-up that a stop did not cause stays for the reactor.
            let _ = poll(&mut fds, Some(&pause));
        }
    }
}

fn socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}
/// Has the process `pid` a socket with the abstract name `name` open?
fn has_socket(pid: i32, name: &str) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let of_name = sockets.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(6);
        let inode = fields.next()?;
        // libqb binds the whole field, NULs included, which the kernel shows as @.
        (fields.next()?.trim_matches('@') == name).then(|| format!("socket:[{inode}]"))
    });
    let of_name: Vec<String> = of_name.collect();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
    open.into_iter().flatten().flatten().any(|file| {
        let target = std::fs::read_link(file.path()).unwrap_or_default();
        of_name
            .iter()
            .any(|socket| target.as_os_str() == socket.as_str())
    })
}
