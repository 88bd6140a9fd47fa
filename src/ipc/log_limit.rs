//! Limit for log lines that a client can cause (ipc-transport.md 10, rule 11).
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Lines per [`WINDOW`].
const LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// Counts lines of a window of time.
#[derive(Debug, Default)]
pub struct LogLimit {
    window: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl LogLimit {
    /// Whether a line may be written now; `Some(n)` says that and how many were left out before.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        let fresh = self
            .window
            .is_none_or(|start| now.duration_since(start) >= WINDOW);
        if fresh {
            self.window = Some(now);
            self.lines = 0;
        }
        if self.lines >= LINES {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_it_leaves_out() {
        let mut limit = LogLimit::default();
        let start = Instant::now();
        for _ in 0..LINES {
            assert_eq!(limit.allow(start), Some(0));
        }
        assert_eq!(limit.allow(start), None);
        assert_eq!(limit.allow(start + WINDOW / 2), None);
        assert_eq!(limit.allow(start + WINDOW), Some(2));
        assert_eq!(limit.allow(start + WINDOW), Some(0));
    }
}
