//! Messages that wait for the end of a synchronisation (cluster-protocol.md 7.3).
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::MemberId;

/// A NORMAL message as it was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Queued {
    pub from: MemberId,
    pub count: u64,
    pub bytes: Box<[u8]>,
}

/// What a message counts for beside its bytes.
const MESSAGE_BYTES: usize = 1024;

impl Queued {
    fn cost(&self) -> usize {
        MESSAGE_BYTES + self.bytes.len()
    }
}

/// Messages in order of arrival.
#[derive(Debug, Default)]
pub(super) struct Fifo {
    messages: VecDeque<Queued>,
    bytes: usize,
}

impl Fifo {
    pub fn push(&mut self, message: Queued) {
        self.bytes += message.cost();
        self.messages.push_back(message);
    }

    /// Bytes of memory that it takes, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All messages in order; the queue is empty afterwards.
    pub fn take(&mut self) -> VecDeque<Queued> {
        self.bytes = 0;
        std::mem::take(&mut self.messages)
    }
}

/// Messages by count, ascending over all senders; equal counts in order of arrival.
#[derive(Debug, Default)]
pub(super) struct CountQueue(Fifo);

impl CountQueue {
    /// Only the low 32 bits of the difference count, as a signed number: every node does the same.
    fn after(a: u64, b: u64) -> bool {
        (a.wrapping_sub(b) as u32 as i32) > 0
    }

    pub fn insert(&mut self, message: Queued) {
        let Fifo { messages, bytes } = &mut self.0;
        let at = messages.partition_point(|have| !Self::after(have.count, message.count));
        *bytes += message.cost();
        messages.insert(at, message);
    }

    pub fn is_empty(&self) -> bool {
        self.0.messages.is_empty()
    }

    /// Bytes of memory that it takes, roughly.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// All messages in order; the queue is empty afterwards.
    pub fn take(&mut self) -> VecDeque<Queued> {
        self.0.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(nodeid: u32, count: u64) -> Queued {
        Queued {
            from: MemberId { nodeid, pid: 1 },
            count,
            bytes: Box::default(),
        }
    }

    fn order(input: &[(u32, u64)]) -> Vec<(u32, u64)> {
        let mut queue = CountQueue::default();
        for (nodeid, count) in input {
            queue.insert(message(*nodeid, *count));
        }
        queue
            .take()
            .into_iter()
            .map(|m| (m.from.nodeid, m.count))
            .collect()
    }

    #[test]
    fn by_count_then_arrival() {
        assert_eq!(
            order(&[(1, 7), (2, 3), (3, 7), (1, 8), (2, 4)]),
            [(2, 3), (2, 4), (1, 7), (3, 7), (1, 8)]
        );
    }

    #[test]
    fn only_the_low_half_counts() {
        assert_eq!(
            order(&[(1, 1 << 32), (2, (1 << 32) - 1), (3, 5)]),
            [(2, (1 << 32) - 1), (1, 1 << 32), (3, 5)]
        );
    }
}
