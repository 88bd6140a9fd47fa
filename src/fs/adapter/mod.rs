//! `fuser` and nothing but `fuser`: turns its requests into [`super::ops::Operations`] and back,
//! counts them, runs the workers.
#![forbid(unsafe_code)]

mod convert;
mod requests;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{Config, INodeNo, Session, SessionACL};

use super::counters::RequestCounts;
use super::notify::{Kernel, Notifier, Refresher};
use super::ops::Ino;
use super::view::View;
use requests::Adapter;

/// How requests are served.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Threads that take requests; at least one.
    ///
    /// None of them ever waits for a change, so a second one is only there for the moments when
    /// the first is busy. More make it slower: the kernel hands requests out in turn, each time to
    /// the thread that has slept longest (a creation took 31 µs with two, 32 to 54 µs with four; a
    /// device handle per thread changed nothing).
    pub workers: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning { workers: 2 }
    }
}

/// A mount that is being served.
pub struct Served {
    /// Keeps the kernel's caches true.
    pub notifier: Notifier,
    /// What the kernel asked so far.
    pub requests: Arc<RequestCounts>,
    session: JoinHandle<io::Result<()>>,
}

impl Served {
    /// True once the mount is gone (unmounted, or the connection was aborted).
    pub fn has_ended(&self) -> bool {
        self.session.is_finished()
    }

    /// Waits at most `limit` for the end of the mount: it was unmounted and no process has a file
    /// or its working directory in it, or the connection was aborted.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while !self.has_ended() {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Waits for the end of the mount, however long that takes.
    ///
    /// # Errors
    /// What ended the workers, if it was not the end of the mount.
    pub fn wait(self) -> io::Result<()> {
        self.session
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("FUSE worker panicked")))
    }
}

/// Serves `view` on `device`, a handle of `/dev/fuse` that is already mounted
/// ([`super::mount::mount`]). `ended` is called from a thread of its own when the mount is gone.
///
/// # Errors
/// The kernel's protocol is too old, the mount is gone already, or no thread can be started.
pub fn serve(
    device: OwnedFd,
    view: View,
    tuning: Tuning,
    ended: impl FnOnce() + Send + 'static,
) -> io::Result<Served> {
    let requests = Arc::new(RequestCounts::default());
    let adapter = Adapter {
        view: view.clone(),
        requests: Arc::clone(&requests),
    };
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(tuning.workers.max(1));
    let session = Session::from_fd(adapter, device, SessionACL::All, config)?;
    let kernel: Arc<dyn Kernel> = Arc::new(Device(session.notifier()));
    view.attach(Arc::clone(&kernel), Refresher::start(Arc::clone(&kernel))?);
    let notifier = Notifier::new(kernel, Arc::clone(view.inodes()), Arc::clone(view.tree()));
    let session = std::thread::Builder::new()
        .name("fuse".into())
        .spawn(move || {
            let result = session.run();
            ended();
            result
        })?;
    Ok(Served {
        notifier,
        requests,
        session,
    })
}

/// Sends notifications. What the kernel does not know (any more) is no error, and when the mount
/// is gone there is nothing left to keep true.
struct Device(fuser::Notifier);

impl Device {
    fn log(what: &str, ino: Ino, result: io::Result<()>) {
        match result {
            Err(err) if err.raw_os_error() != Some(libc::ENOTCONN) => {
                tracing::debug!("{what} of inode {ino:#x}: {err}");
            }
            _ => {}
        }
    }
}

impl Kernel for Device {
    fn inval_attr(&self, ino: Ino) {
        Device::log("invalidation", ino, self.0.inval_inode(INodeNo(ino), -1, 0));
    }

    fn inval_content(&self, ino: Ino) {
        Device::log("invalidation", ino, self.0.inval_inode(INodeNo(ino), 0, 0));
    }

    fn inval_entry(&self, dir: Ino, name: &[u8]) {
        let name = OsStr::from_bytes(name);
        Device::log(
            "invalidation below",
            dir,
            self.0.inval_entry(INodeNo(dir), name),
        );
    }
}
