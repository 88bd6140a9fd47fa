//! Signals: TERM, INT and HUP end the daemon in order; everything else has its default
//! (daemon.md 6; Rust ignores PIPE already).
#![forbid(unsafe_code)]

use std::io;

use nix::sys::signal::{SigSet, Signal};

/// The signals that end the daemon, blocked in every thread so that only [`Terminator::wait`]
/// takes them.
#[derive(Debug)]
pub struct Terminator(SigSet);

impl Terminator {
    /// Must be called before any thread is started: threads inherit the mask.
    pub fn install() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block()?;
        Ok(Terminator(set))
    }

    /// Waits for one of the signals.
    pub fn wait(&self) -> io::Result<Signal> {
        Ok(self.0.wait()?)
    }
}

/// Ends the own process in order, from any thread: as if somebody had sent SIGTERM.
pub fn terminate_self() {
    // Cannot fail: the process exists and may signal itself.
    let _ = nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGTERM);
}
