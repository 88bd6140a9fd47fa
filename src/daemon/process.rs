//! Becoming a daemon (daemon.md 4): the parent returns to its caller only when the child works.
//!
//! Unlike the C daemon, everything that matters (database, mount, threads) is opened **after** the
//! fork, in the process that uses it: SQLite's file locks are not inherited (database.md 2), nor
//! are threads. Until it is ready the child shares the parent's stderr, so that the caller sees
//! every error.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setsid};

use super::files::{no_pid_file, write_pid_file};
use super::{StartError, logging};

/// What the child says when it is ready.
const READY: u8 = b'1';
/// How long a child that gave up may take to end: its last log lines and closing the database.
const END_TRIES: u32 = 500;
const END_PAUSE: Duration = Duration::from_millis(10);

/// The duty to report: to the parent, if there is one, and to systemd.
#[derive(Debug)]
pub struct Ready(Option<OwnedFd>);

impl Ready {
    /// Nobody waits (foreground).
    pub fn foreground() -> Self {
        Ready(None)
    }

    /// Tells systemd, if it asked for that, and the parent, and leaves the terminal.
    pub fn signal(self) -> io::Result<()> {
        // First: the process that systemd started is about to end. Without NOTIFY_SOCKET this does
        // nothing; a lost message is systemd's to notice.
        let _ = sd_notify::notify(&[
            sd_notify::NotifyState::MainPid(std::process::id()),
            sd_notify::NotifyState::Ready,
        ]);
        if let Some(pipe) = self.0 {
            logging::leave_stderr();
            let null = OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/null")?;
            rustix::stdio::dup2_stdout(&null)?;
            rustix::stdio::dup2_stderr(&null)?;
            std::fs::File::from(pipe).write_all(&[READY])?;
        }
        Ok(())
    }
}

/// Does systemd wait for a message from this process or its children?
pub fn under_systemd() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Ends the process at once. Threads may live that hang in the kernel or use what the C library would
/// take down at an ordinary exit.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes any number and runs no code of this process.
    unsafe { libc::_exit(code) }
}

/// Forks. Returns in the child; the parent waits for it, writes the pid file and ends.
///
/// Must be called while the process has one thread only.
pub fn daemonize(pid_file: &Path) -> Result<Ready, StartError> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|err| StartError::Pipe(err.into()))?;
    // SAFETY: no other thread exists yet (logging, arguments, name resolution and lock need none),
    // so the child inherits no lock that a vanished thread holds.
    match unsafe { fork() } {
        Err(err) => Err(StartError::Fork(err.into())),
        Ok(ForkResult::Child) => {
            drop(read);
            detach().map_err(StartError::Fork)?;
            Ok(Ready(Some(write)))
        }
        Ok(ForkResult::Parent { child }) => {
            drop(write);
            logging::leave_lines_to_child();
            let code = wait_for_child(child, read, pid_file);
            logging::finish();
            std::process::exit(code);
        }
    }
}

fn detach() -> io::Result<()> {
    setsid()?;
    std::env::set_current_dir("/")?;
    let null = OpenOptions::new().read(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(())
}

/// Exit code of the parent.
fn wait_for_child(child: Pid, pipe: OwnedFd, pid_file: &Path) -> i32 {
    let mut answer = [0u8; 1];
    match std::fs::File::from(pipe).read_exact(&mut answer) {
        Ok(()) if answer[0] == READY => {
            if let Err(err) = write_pid_file(pid_file, child.as_raw() as u32) {
                no_pid_file(pid_file, &err);
            }
            return 0;
        }
        Ok(()) => no_answer(),
        // The child says itself why it ends.
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => {
            if ended_by_itself(child) {
                return 255;
            }
            no_answer();
        }
        Err(err) => tracing::error!(target: "main", "read error: {err}"),
    }
    // It may be gone already, and a zombie does not mind.
    let _ = kill(child, Signal::SIGKILL);
    let _ = waitpid(child, None);
    255
}

fn no_answer() {
    tracing::error!(
        target: "main",
        "child failed to send '1' - the daemon was ended before it was ready, see 'journalctl -t pmxcfs'"
    );
}

/// Waits a moment for the child to end with an exit code of its own.
fn ended_by_itself(child: Pid) -> bool {
    for _ in 0..END_TRIES {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(END_PAUSE),
            Ok(WaitStatus::Exited(..)) => return true,
            _ => return false,
        }
    }
    false
}
