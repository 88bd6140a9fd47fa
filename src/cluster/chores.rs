//! What may wait for other programs and slow disks: copying `corosync.conf` from the tree to the
//! host, and telling corosync (cluster-sync.md 1.6).
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::corosync_check::check;
use super::corosync_conf::{Export, Outcome};
use crate::memdb::TreePath;
use crate::replica::SharedTree;

/// The other nodes get this long to write their files before corosync reads its own.
const RELOAD_DELAY: Duration = Duration::from_secs(1);
/// `corosync-cfgtool -R` that takes longer is ended.
const RELOAD_LIMIT: Duration = Duration::from_secs(30);

enum Chore {
    Export { notify: bool },
}

/// Hands work to the thread, which ends with the last handle.
#[derive(Clone)]
pub(super) struct Chores {
    queue: Sender<Chore>,
}

impl Chores {
    /// Copies the file to the host if it is newer, before this returns, and starts the thread,
    /// which has corosync read it if there was an older one.
    pub fn start(tree: SharedTree, host_file: PathBuf, node: String) -> io::Result<Chores> {
        let (queue, chores) = channel();
        let mut worker = Worker {
            tree,
            export: Export {
                host_file,
                node,
                check,
            },
            reload_at: None,
        };
        worker.export(true, !corosync_runs());
        std::thread::Builder::new()
            .name("chores".into())
            .spawn(move || worker.run(&chores))?;
        Ok(Chores { queue })
    }

    /// Copies the file to the host if it is newer, and with `notify` has corosync read it.
    pub fn export(&self, notify: bool) {
        // The thread lives as long as this handle.
        let _ = self.queue.send(Chore::Export { notify });
    }
}

struct Worker {
    tree: SharedTree,
    export: Export,
    reload_at: Option<Instant>,
}

impl Worker {
    fn run(mut self, chores: &Receiver<Chore>) {
        loop {
            let chore = match self.reload_at {
                None => chores.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => chores.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match chore {
                Ok(Chore::Export { notify }) => self.export(notify, false),
                Err(RecvTimeoutError::Timeout) => {
                    self.reload_at = None;
                    reload();
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn export(&mut self, notify: bool, before_corosync: bool) {
        let content = self
            .tree
            .read()
            .read(&TreePath::new(b"corosync.conf"))
            .cloned();
        let outcome = self
            .export
            .run(content.as_deref().unwrap_or_default(), before_corosync);
        if notify && !before_corosync && outcome == (Outcome::Written { reload: true }) {
            // Several changes in a row are read once, the delay counted from the last.
            self.reload_at = Some(Instant::now() + RELOAD_DELAY);
        }
    }
}

/// Does corosync's service cmap listen on this host?
fn corosync_runs() -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let names = sockets
        .lines()
        .filter_map(|line| line.split_whitespace().last());
    // libqb binds the whole field, NULs included, which the kernel shows as @.
    names
        .into_iter()
        .any(|name| name.trim_matches('@') == "cmap")
}

/// Runs `corosync-cfgtool -R`.
fn reload() {
    let tool = Process::new("corosync-cfgtool")
        .arg("-R")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let ended = match tool {
        Ok(tool) => run_for(tool, RELOAD_LIMIT),
        Err(err) => return tracing::error!(target: "dcdb", "corosync-cfgtool -R failed: {err}"),
    };
    match ended {
        Ended::Code(0) => {}
        Ended::Code(code) => tracing::error!(
            target: "dcdb",
            "corosync-cfgtool -R failed with exit code {code}: corosync goes on with its old \
             configuration - run it by hand for the reason, or see 'journalctl -u corosync'"
        ),
        Ended::Killed => tracing::error!(
            target: "dcdb",
            "corosync-cfgtool -R did not end within {RELOAD_LIMIT:?}"
        ),
    }
}

/// How a program ended.
pub(super) enum Ended {
    /// By itself; -1 if a signal ended it.
    Code(i32),
    /// It took too long.
    Killed,
}

/// Waits for the end of a program, and ends it after `limit`.
pub(super) fn run_for(mut program: Child, limit: Duration) -> Ended {
    let end = Instant::now() + limit;
    loop {
        match program.try_wait() {
            Ok(Some(status)) => return Ended::Code(status.code().unwrap_or(-1)),
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) | Err(_) => {
                // It may have ended by itself in between.
                let _ = program.kill();
                let _ = program.wait();
                return Ended::Killed;
            }
        }
    }
}
