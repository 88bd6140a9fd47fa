//! A bound on what a broken disk or a confused peer can write to the log.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(60);
/// Lines in one window.
const LINES: u32 = 100;

/// Counts lines.
#[derive(Debug, Default)]
pub(super) struct LogLimit {
    start: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

/// May a line be written?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Write,
    /// Yes, and tell that so many were not before.
    WriteAfter(u64),
    Suppress,
}

impl LogLimit {
    pub(super) fn ask(&mut self, now: Instant) -> Verdict {
        let current = |start| now.saturating_duration_since(start) < WINDOW;
        if !self.start.is_some_and(current) {
            self.start = Some(now);
            self.lines = 1;
            return match std::mem::take(&mut self.suppressed) {
                0 => Verdict::Write,
                count => Verdict::WriteAfter(count),
            };
        }
        if self.lines < LINES {
            self.lines += 1;
            return Verdict::Write;
        }
        self.suppressed += 1;
        Verdict::Suppress
    }

    /// [`LogLimit::ask`], with the line about suppressed ones written.
    pub(super) fn allows(&mut self) -> bool {
        match self.ask(Instant::now()) {
            Verdict::Write => true,
            Verdict::WriteAfter(count) => {
                tracing::info!(target: super::DOMAIN, "{count} RRD messages suppressed");
                true
            }
            Verdict::Suppress => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_lines_in_a_minute() {
        let mut limit = LogLimit::default();
        let start = Instant::now();
        for _ in 0..100 {
            assert_eq!(limit.ask(start), Verdict::Write);
        }
        for _ in 0..5 {
            assert_eq!(limit.ask(start), Verdict::Suppress);
        }
        let later = start + WINDOW;
        assert_eq!(limit.ask(later), Verdict::WriteAfter(5));
        assert_eq!(limit.ask(later), Verdict::Write);
        assert_eq!(limit.ask(later + WINDOW), Verdict::Write);
    }
}
