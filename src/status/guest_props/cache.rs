//! Answers for all guests that are kept.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::PropertyNames;
use crate::memdb::{Inode, RootRow};

/// Answers kept; clients ask for few different sets of names.
const ANSWERS: usize = 4;
/// Most memory they may take together in bytes: three answers about 10,000 guests.
const BYTES: usize = 16 << 20;

/// What one guest contributed to an answer.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub vmid: u32,
    pub inode: Inode,
    /// Of the entry: a rename changes it, too.
    pub version: u64,
    pub config: Arc<[u8]>,
    /// End of its text in the answer; it begins where that of the guest before ends.
    pub end: usize,
}

#[derive(Debug)]
pub(super) struct Answer {
    pub names: PropertyNames,
    /// State of the tree and of the guest list it was made from.
    pub state: (RootRow, u32),
    /// By VMID.
    pub parts: Vec<Part>,
    pub text: Arc<Vec<u8>>,
}

impl Answer {
    /// Memory it takes, that of configs included: once they are replaced nobody else has them.
    fn bytes(&self) -> usize {
        let configs: usize = self.parts.iter().map(|part| part.config.len()).sum();
        configs + self.text.len() + self.parts.len() * size_of::<Part>()
    }
}

/// Answers for all guests. One is given again as it is while nothing in the tree changes; after a
/// change only the configs that are not the same any more are searched again.
#[derive(Debug, Default)]
pub struct PropertyCache {
    /// With its size; the one used last comes first.
    answers: Vec<(Arc<Answer>, usize)>,
}

impl PropertyCache {
    /// The answer to `names`, whatever state it was made from.
    pub(super) fn get(&mut self, names: &PropertyNames) -> Option<Arc<Answer>> {
        let at = self
            .answers
            .iter()
            .position(|(answer, _)| answer.names == *names)?;
        self.answers[..=at].rotate_right(1);
        Some(Arc::clone(&self.answers[0].0))
    }

    /// Keeps `answer` in place of an older one for the same names.
    pub(super) fn insert(&mut self, answer: Arc<Answer>) {
        self.answers.retain(|(old, _)| old.names != answer.names);
        let bytes = answer.bytes();
        self.answers.insert(0, (answer, bytes));
        let mut sum = 0;
        let fit = self.answers.iter().take_while(|(_, bytes)| {
            sum += bytes;
            sum <= BYTES
        });
        let fit = fit.count();
        self.answers.truncate(fit.min(ANSWERS));
    }
}
