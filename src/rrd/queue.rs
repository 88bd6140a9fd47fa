//! Values on their way to the files. Bounded: when it is full, only the newest value of a file is
//! kept, then the oldest ones go. Pure.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::key::Kind;

/// Most values that wait.
pub const MAX_VALUES: usize = 32_768;
/// Most memory they may take, in bytes.
pub const MAX_BYTES: usize = 8 << 20;
/// Memory a value takes beside its texts, about.
const OVERHEAD: usize = 160;
/// The log tells about dropped values so often at most.
const REPORT: Duration = Duration::from_secs(60);

/// One update of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Name of the file, below the base directory.
    pub file: Arc<Path>,
    pub kind: Kind,
    /// `<time>:<value>…`
    pub line: Box<[u8]>,
    /// When it arrived, in seconds since the epoch.
    pub arrival: u32,
}

impl Update {
    fn size(&self) -> usize {
        self.file.as_os_str().len() + self.line.len() + OVERHEAD
    }
}

/// The queue. Updates of one file come out in the order they went in.
#[derive(Debug)]
pub struct Queue {
    waiting: VecDeque<Update>,
    /// Number of the newest update of a file. Updates are numbered from 0.
    newest: HashMap<Arc<Path>, u64>,
    /// Number of the first update that waits.
    first: u64,
    bytes: usize,
    max_values: usize,
    max_bytes: usize,
    /// It was full and has not become half empty since: one value of a file is enough.
    crowded: bool,
    dropped: u64,
    reported: Option<Instant>,
}

impl Queue {
    /// An empty queue. A value larger than `max_bytes` never gets in.
    pub fn new(max_values: usize, max_bytes: usize) -> Self {
        Queue {
            waiting: VecDeque::new(),
            newest: HashMap::new(),
            first: 0,
            bytes: 0,
            max_values,
            max_bytes,
            crowded: false,
            dropped: 0,
            reported: None,
        }
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds an update. If there is no room for it, older values of files that have newer ones go;
    /// if that is not enough, the oldest values of all.
    pub fn push(&mut self, update: Update) {
        let size = update.size();
        if size > self.max_bytes {
            self.dropped += 1;
            return;
        }
        self.crowded |= !self.has_room(size);
        if self.crowded {
            if let Some(number) = self.newest.get(&update.file) {
                // Only what waits is in `newest`.
                let at = (number - self.first) as usize;
                self.bytes = self.bytes - self.waiting[at].size() + size;
                self.waiting[at] = update;
                self.dropped += 1;
                while self.bytes > self.max_bytes {
                    self.drop_oldest();
                }
                return;
            }
        }
        if !self.has_room(size) {
            self.keep_newest();
        }
        while !self.has_room(size) {
            self.drop_oldest();
        }
        let number = self.first + self.waiting.len() as u64;
        self.newest.insert(Arc::clone(&update.file), number);
        self.bytes += size;
        self.waiting.push_back(update);
    }

    /// Up to `count` updates, oldest first.
    pub fn take(&mut self, count: usize) -> Vec<Update> {
        let count = count.min(self.waiting.len());
        let batch = (0..count).filter_map(|_| self.pop()).collect();
        if self.waiting.len() <= self.max_values / 2 && self.bytes <= self.max_bytes / 2 {
            self.crowded = false;
        }
        if self.waiting.is_empty() {
            // What a long stall needed is not needed again soon.
            self.waiting.shrink_to(1024);
            self.newest.shrink_to(1024);
        }
        batch
    }

    /// Counts values that were lost elsewhere.
    pub fn count_dropped(&mut self, values: u64) {
        self.dropped += values;
    }

    /// How many values were dropped since the last report, if there is something to report and
    /// that was not within the last minute.
    pub fn report(&mut self, now: Instant) -> Option<u64> {
        let recent = |last: Instant| now.saturating_duration_since(last) < REPORT;
        if self.dropped == 0 || self.reported.is_some_and(recent) {
            return None;
        }
        self.reported = Some(now);
        Some(std::mem::take(&mut self.dropped))
    }

    fn has_room(&self, size: usize) -> bool {
        self.waiting.len() < self.max_values && self.bytes + size <= self.max_bytes
    }

    /// Drops every value of which a newer one of the same file waits. Rare: while the queue is
    /// crowded no such value gets in.
    fn keep_newest(&mut self) {
        if self.newest.len() == self.waiting.len() {
            return;
        }
        let mut number = self.first;
        let newest = &self.newest;
        self.waiting.retain(|update| {
            number += 1;
            newest.get(&update.file) == Some(&(number - 1))
        });
        let kept: usize = self.waiting.iter().map(Update::size).sum();
        self.dropped += number - self.first - self.waiting.len() as u64;
        self.bytes = kept;
        for (update, number) in self.waiting.iter().zip(self.first..) {
            self.newest.insert(Arc::clone(&update.file), number);
        }
    }

    fn drop_oldest(&mut self) {
        if self.pop().is_some() {
            self.dropped += 1;
        }
    }

    fn pop(&mut self) -> Option<Update> {
        let update = self.waiting.pop_front()?;
        if self.newest.get(&update.file) == Some(&self.first) {
            self.newest.remove(&update.file);
        }
        self.first += 1;
        self.bytes -= update.size();
        Some(update)
    }
}
