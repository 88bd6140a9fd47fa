//! Signals: TERM and INT end the daemon in order, HUP does nothing, USR1 logs what the kernel asked
//! so far; everything else has its default (daemon.md 6; Rust ignores PIPE already).
#![forbid(unsafe_code)]

use std::io;

use nix::sys::signal::{SigSet, Signal};

/// The signals that are waited for, blocked in every thread so that only [`Terminator::wait`]
/// takes them.
#[derive(Debug)]
pub struct Terminator(SigSet);

impl Terminator {
    /// Must be called before any thread is started: threads inherit the mask.
    pub fn install() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGUSR1,
        ] {
            set.add(signal);
        }
        set.thread_block()?;
        Ok(Terminator(set))
    }

    /// Waits for a signal that ends the daemon; calls `report` for each USR1 before.
    pub fn wait(&self, report: impl Fn()) -> io::Result<Signal> {
        loop {
            match self.0.wait()? {
                Signal::SIGUSR1 => report(),
                // A closed terminal, or somebody who expects a configuration to be read again.
                Signal::SIGHUP => tracing::info!(
                    target: "main",
                    "SIGHUP ignored: there is no configuration to read again"
                ),
                signal => return Ok(signal),
            }
        }
    }
}

/// Ends the own process in order, from any thread: as if somebody had sent SIGTERM.
pub fn terminate_self() {
    // Cannot fail: the process exists and may signal itself.
    let _ = nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGTERM);
}
