//! A channel that does as it is told, for tests.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use parking_lot::Mutex;

use super::group::Channel;
use crate::corosync::Error;
use crate::corosync::cpg::Event;

/// What the channel will say, and what it was given.
#[derive(Default)]
pub(super) struct Script {
    pub sent: Vec<Vec<u8>>,
    /// Results of the next sends; then all succeed.
    pub send: VecDeque<Result<(), Error>>,
    pub dispatch: VecDeque<Result<Vec<Event>, Error>>,
}

struct Fake(Arc<Mutex<Script>>, std::fs::File);

/// A channel of node 1.
pub(super) fn channel(script: &Arc<Mutex<Script>>) -> Box<dyn Channel> {
    let file = std::fs::File::open("/dev/null").unwrap();
    Box::new(Fake(script.clone(), file))
}

impl Channel for Fake {
    fn fd(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }
    fn nodeid(&self) -> u32 {
        1
    }
    fn send(&mut self, message: &[u8]) -> Result<(), Error> {
        let mut script = self.0.lock();
        script.send.pop_front().unwrap_or(Ok(()))?;
        script.sent.push(message.to_vec());
        Ok(())
    }
    fn dispatch(&mut self) -> Result<Vec<Event>, Error> {
        self.0.lock().dispatch.pop_front().unwrap_or(Ok(Vec::new()))
    }
    fn leave(&mut self) {}
}
