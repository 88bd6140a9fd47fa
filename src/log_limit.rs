//! A bound on what clients, peers or a broken disk can write to the log (ipc-transport.md 10,
//! rule 11).
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Counts lines in windows of time.
#[derive(Debug)]
pub(crate) struct LogLimit {
    lines: u32,
    window: Duration,
    start: Option<Instant>,
    written: u32,
    suppressed: u64,
}

impl LogLimit {
    /// At most `lines` in each `window`.
    pub(crate) const fn new(lines: u32, window: Duration) -> Self {
        LogLimit {
            lines,
            window,
            start: None,
            written: 0,
            suppressed: 0,
        }
    }

    /// Whether a line may be written now; `Some(n)` says that and how many were left out before.
    pub(crate) fn allow(&mut self, now: Instant) -> Option<u64> {
        let current = |start| now.saturating_duration_since(start) < self.window;
        if !self.start.is_some_and(current) {
            self.start = Some(now);
            self.written = 0;
        }
        if self.written >= self.lines {
            self.suppressed += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.suppressed))
    }

    /// [`LogLimit::allow`] now; `tell` writes the line about those that were left out.
    pub(crate) fn allows(&mut self, tell: impl FnOnce(u64)) -> bool {
        let allowed = self.allow(Instant::now());
        if let Some(count @ 1..) = allowed {
            tell(count);
        }
        allowed.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    #[test]
    fn counts_what_it_leaves_out() {
        let mut limit = LogLimit::new(20, WINDOW);
        let start = Instant::now();
        for _ in 0..20 {
            assert_eq!(limit.allow(start), Some(0));
        }
        assert_eq!(limit.allow(start), None);
        assert_eq!(limit.allow(start + WINDOW / 2), None);
        assert_eq!(limit.allow(start + WINDOW), Some(2));
        assert_eq!(limit.allow(start + WINDOW), Some(0));
        assert_eq!(limit.allow(start + 3 * WINDOW), Some(0));
    }

    #[test]
    fn tells_what_was_left_out() {
        let mut limit = LogLimit::new(1, Duration::from_millis(1));
        let mut told = 0;
        assert!(limit.allows(|_| panic!("nothing was left out")));
        limit.suppressed = 3;
        std::thread::sleep(Duration::from_millis(2));
        assert!(limit.allows(|count| told = count));
        assert_eq!(told, 3);
    }
}
