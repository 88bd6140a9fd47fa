//! A queue whose reader sleeps in `poll`.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

struct Queue<T> {
    waiting: Vec<T>,
    closed: bool,
}

/// Many writers, one reader. Unbounded: every writer bounds itself.
pub(super) struct Inbox<T> {
    queue: Mutex<Queue<T>>,
    bell: OwnedFd,
}

impl<T> Inbox<T> {
    pub fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Inbox {
            queue: Mutex::new(Queue {
                waiting: Vec::new(),
                closed: false,
            }),
            bell,
        })
    }

    /// Appends `item`; gives it back if the reader has gone.
    pub fn push(&self, item: T) -> Result<(), T> {
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(item);
        }
        let first = queue.waiting.is_empty();
        queue.waiting.push(item);
        drop(queue);
        if first {
            // Cannot fail but for a counter at its limit, and then the reader is awake.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
        Ok(())
    }

    /// Takes everything, in order.
    pub fn take(&self, into: &mut Vec<T>) {
        // In this order: what comes in between rings again.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        into.append(&mut self.queue.lock().waiting);
    }

    /// From now on nothing is taken in. What waited goes to the caller.
    pub fn close(&self) -> Vec<T> {
        let mut queue = self.queue.lock();
        queue.closed = true;
        std::mem::take(&mut queue.waiting)
    }
}

impl<T> AsFd for Inbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Sleeps until one of `fds` is readable, broken or closed, or `limit` is over; returns which.
pub(super) fn wait<const N: usize>(
    fds: [Option<BorrowedFd<'_>>; N],
    limit: std::time::Duration,
) -> [bool; N] {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled: Vec<PollFd<'_>> = Vec::with_capacity(N);
    for fd in fds.iter().flatten() {
        polled.push(PollFd::from_borrowed_fd(*fd, PollFlags::IN));
    }
    // Limits are far below what the type holds; the shortest sleep is right if one were not.
    let limit = Timespec::try_from(limit).unwrap_or(Timespec {
        tv_sec: 0,
        tv_nsec: 1_000_000,
    });
    // A signal is as good as a timeout; nothing else can fail with descriptors that are open.
    let awake = poll(&mut polled, Some(&limit)).is_ok_and(|count| count > 0);
    let mut events = polled.into_iter().map(|fd| !fd.revents().is_empty());
    fds.map(|fd| fd.is_some() && events.next().unwrap_or(false) && awake)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rings(inbox: &Inbox<i32>) -> bool {
        wait([Some(inbox.as_fd()), None], Duration::ZERO)[0]
    }

    #[test]
    fn the_bell_rings_until_everything_is_taken() {
        let inbox = Inbox::new().unwrap();
        assert!(!rings(&inbox));
        inbox.push(1).unwrap();
        inbox.push(2).unwrap();
        assert!(rings(&inbox));
        let mut taken = Vec::new();
        inbox.take(&mut taken);
        assert_eq!(taken, [1, 2]);
        assert!(!rings(&inbox));
        inbox.push(3).unwrap();
        assert!(rings(&inbox));
        assert_eq!(inbox.close(), [3]);
        assert_eq!(inbox.push(4), Err(4));
    }

    #[test]
    fn waiting_tells_which_and_ends() {
        let (a, b) = (Inbox::<()>::new().unwrap(), Inbox::<()>::new().unwrap());
        b.push(()).unwrap();
        let ready = wait(
            [Some(a.as_fd()), None, Some(b.as_fd())],
            Duration::from_secs(10),
        );
        assert_eq!(ready, [false, false, true]);
        assert_eq!(wait([Some(a.as_fd())], Duration::from_millis(1)), [false]);
    }
}
