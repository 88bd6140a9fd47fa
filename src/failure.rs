//! What happens when something fails that must not (docs/architecture.md, "When something fails").
//!
//! A panic ends the process, whichever thread it is in: all that must last is on the disk, and
//! systemd starts the daemon again within a second. The exception is the answer to one request, and
//! what else is wrapped in [`contain`]: that answer is lost, the daemon goes on. A change under way
//! ([`uninterrupted`]) is no such answer: half of it must not be served or written.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};

thread_local! {
    /// Calls of [`contain`] this thread is in.
    static CONTAINED: Cell<u32> = const { Cell::new(0) };
    /// Changes this thread has under way.
    static UNINTERRUPTED: Cell<u32> = const { Cell::new(0) };
}

/// From now on panics are logged and end the process as said above. For the daemon; elsewhere, in
/// tests, a panic ends its thread.
pub fn install() {
    std::panic::set_hook(Box::new(|info| {
        let contained = CONTAINED.get() > 0 && UNINTERRUPTED.get() == 0;
        let text = text(info);
        if !contained {
            end(text);
        }
        tracing::error!(target: "main", "bug: {text}");
    }));
}

fn text(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("?");
    let payload = info.payload();
    let string = payload.downcast_ref::<String>().map(String::as_str);
    let message = string.or_else(|| payload.downcast_ref().copied());
    let message = message.unwrap_or("no text");
    let place = info.location().map(|place| format!(" at {place}"));
    let place = place.unwrap_or_default();
    format!("panic in thread '{name}'{place}: {message}")
}

/// Ends the process like a crash: for the failure of a thread that the daemon is nothing without.
pub fn end(why: impl Display) -> ! {
    tracing::error!(target: "main", "{why} - the daemon ends and has to be started again (systemd does)");
    crate::daemon::logging::finish();
    std::process::abort()
}

/// Runs the answer to one request. A panic in it costs that answer: `None`.
pub fn contain<T>(what: &str, work: impl FnOnce() -> T) -> Option<T> {
    let _counted = Counted::new(&CONTAINED);
    let done = catch_unwind(AssertUnwindSafe(work));
    if done.is_err() {
        tracing::error!(target: "main", "bug: {what} failed - the daemon goes on without");
    }
    done.ok()
}

/// Held while something is changed that is served and written: a panic ends the process before
/// anybody sees half of the change. To be dropped before the lock of what is changed.
#[must_use]
pub fn uninterrupted() -> Uninterrupted {
    Uninterrupted(Counted::new(&UNINTERRUPTED))
}

/// See [`uninterrupted`].
pub struct Uninterrupted(#[allow(dead_code)] Counted);

type Counter = std::thread::LocalKey<Cell<u32>>;

struct Counted(&'static Counter);

impl Counted {
    fn new(counter: &'static Counter) -> Self {
        counter.set(counter.get() + 1);
        Counted(counter)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// For tests of what ends the process.
#[cfg(test)]
pub(crate) mod scene {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const VARIABLE: &str = "FAILURE_SCENE";

    /// The process of the test: the same number in the test and in its scene.
    pub(crate) fn test_process() -> u32 {
        if std::env::var_os(VARIABLE).is_some() {
            std::os::unix::process::parent_id()
        } else {
            std::process::id()
        }
    }

    /// Runs `scene` in a process of its own: the test with this name, once more. Gives back the signal
    /// that ended it.
    pub(crate) fn ended_by(test: &str, scene: impl FnOnce()) -> Option<i32> {
        if std::env::var(VARIABLE).is_ok_and(|name| name == test) {
            super::install();
            scene();
            std::process::exit(0);
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test]);
        command.env(VARIABLE, test).env("RUST_BACKTRACE", "0");
        let status = command.output().unwrap().status;
        assert!(status.success() || status.signal().is_some(), "{status}");
        status.signal()
    }
}

#[cfg(test)]
mod tests {
    use super::scene::ended_by;
    use super::*;

    fn in_a_thread(work: impl FnOnce() + Send + 'static) {
        let _ = std::thread::spawn(work).join();
    }

    #[test]
    fn a_dead_thread_ends_the_process() {
        let signal = ended_by("failure::tests::a_dead_thread_ends_the_process", || {
            in_a_thread(|| panic!("on purpose"));
        });
        assert_eq!(signal, Some(libc::SIGABRT));
    }

    #[test]
    fn an_answer_is_contained() {
        let signal = ended_by("failure::tests::an_answer_is_contained", || {
            in_a_thread(|| {
                let done = contain("an answer", || panic!("on purpose"));
                assert!(done.is_none());
                // Counted off again.
                assert_eq!(CONTAINED.get(), 0);
                assert_eq!(contain("an answer", || 5), Some(5));
            });
        });
        assert_eq!(signal, None);
    }

    #[test]
    fn half_a_change_is_not() {
        let signal = ended_by("failure::tests::half_a_change_is_not", || {
            contain("an answer", || {
                let _whole = uninterrupted();
                panic!("on purpose")
            });
        });
        assert_eq!(signal, Some(libc::SIGABRT));
    }

    #[test]
    fn a_change_that_ended_well_contains_again() {
        let signal = ended_by(
            "failure::tests::a_change_that_ended_well_contains_again",
            || {
                contain("an answer", || {
                    drop(uninterrupted());
                    panic!("on purpose")
                });
            },
        );
        assert_eq!(signal, None);
    }
}
