//! `fuser` and nothing but `fuser`: turns its requests into [`super::ops::Operations`] and back,
//! counts them, runs the workers.
#![forbid(unsafe_code)]

mod convert;
mod requests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{Config, INodeNo, Session, SessionACL};

use super::counters::RequestCounts;
use super::notify::{Kernel, NameCache, Notifier};
use super::ops::Ino;
use super::view::View;
use crate::failure;
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
    /// How names are kept true; `None`: as well as the kernel can.
    pub names: Option<NameCache>,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            workers: 2,
            names: None,
        }
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
/// The kernel's protocol is too old (also for [`Tuning::names`]), the mount is gone already, or no
/// thread can be started.
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
    let raw = device.try_clone()?;
    let session = Session::from_fd(adapter, device, SessionACL::All, config)?;
    let device = Device {
        notifier: session.notifier(),
        raw,
    };
    let names = device.name_cache(tuning.names)?;
    tracing::debug!(target: "main", "names in the kernel's cache: {names:?}");
    let kernel: Arc<dyn Kernel> = Arc::new(device);
    view.attach(Arc::clone(&kernel), names);
    let notifier = Notifier::new(
        kernel,
        names,
        Arc::clone(view.inodes()),
        Arc::clone(view.tree()),
    );
    let session = std::thread::Builder::new()
        .name("fuse".into())
        .spawn(move || {
            let result = session.run();
            // The end of the mount is none.
            if let Err(err) = &result {
                failure::end(format_args!("serving the mount failed: {err}"));
            }
            ended();
            result
        })?;
    Ok(Served {
        notifier,
        requests,
        session,
    })
}

/// `FUSE_NOTIFY_INC_EPOCH`, which `fuser` does not know: a header without a body.
const INC_EPOCH: i32 = 8;

/// Sends notifications. What the kernel does not know (any more) is no error, and when the mount
/// is gone there is nothing left to keep true.
struct Device {
    notifier: fuser::Notifier,
    /// The same open file.
    raw: OwnedFd,
}

impl Device {
    fn send_epoch(&self) -> io::Result<()> {
        // struct fuse_out_header: length, code in the place of the error, unique 0.
        let mut message = [0; 16];
        message[..4].copy_from_slice(&16_u32.to_ne_bytes());
        message[4..8].copy_from_slice(&INC_EPOCH.to_ne_bytes());
        rustix::io::write(&self.raw, &message)?;
        Ok(())
    }

    /// How names are kept true on this kernel.
    fn name_cache(&self, wanted: Option<NameCache>) -> io::Result<NameCache> {
        match (wanted, self.send_epoch()) {
            (Some(NameCache::Lifetime), _) => Ok(NameCache::Lifetime),
            (_, Ok(())) => Ok(NameCache::Epoch),
            (None, Err(_)) => Ok(NameCache::Lifetime),
            (Some(NameCache::Epoch), Err(err)) => Err(err),
        }
    }

    fn log(what: &str, result: io::Result<()>) {
        match result {
            Err(err) if err.raw_os_error() != Some(libc::ENOTCONN) => {
                tracing::debug!("{what}: {err}");
            }
            _ => {}
        }
    }
}

impl Kernel for Device {
    fn inval_attr(&self, ino: Ino) {
        let result = self.notifier.inval_inode(INodeNo(ino), -1, 0);
        Device::log("invalidation of attributes", result);
    }

    fn inval_names(&self) {
        Device::log("invalidation of names", self.send_epoch());
    }
}
