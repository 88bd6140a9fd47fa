//! The clock that nobody can set.
#![forbid(unsafe_code)]

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since some fixed moment before this process, the same one for all its threads.
pub(crate) fn monotonic() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    // Neither is ever negative on this clock.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// [`monotonic`] in whole seconds, which is what the ages of locks are counted in (`memdb`).
pub(crate) fn uptime() -> u32 {
    monotonic().as_secs() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on() {
        let before = monotonic();
        std::thread::sleep(Duration::from_millis(2));
        assert!(monotonic() >= before + Duration::from_millis(2));
    }
}
