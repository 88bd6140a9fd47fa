//! The libqb shared-memory service `pve2`: [`server`] is the transport, [`service`] what it answers.

mod address;
mod cleanup;
mod connection;
mod greeting;
pub mod handshake;
pub mod message;
mod peers;
mod reactor;
pub mod ring;
pub mod server;
pub mod service;

/// Who sent a request. Fixed for the life of the connection (ipc-transport.md 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
    /// Connected by group www-data: may not change anything and not read private files.
    pub read_only: bool,
}

/// What the service says to a request.
pub enum Answer {
    /// 0 or -errno; the payload stands in the buffer (ignored unless the value is 0).
    Reply(i32),
    /// Not yet: ask again with the same request when the server is woken, or when the bounded
    /// wait of the server is over (`last` is then true and the answer must not be `Later`).
    Later,
    /// Takes longer than others may have to wait: to be worked off in pieces.
    Work(Box<dyn Work>),
}

/// A request that takes long.
pub trait Work: Send {
    /// Does a piece, of less than a millisecond. `Some`: done, 0 or -errno; the payload was appended
    /// to `out`, which is empty at each call.
    fn go_on(&mut self, out: &mut Vec<u8>) -> Option<i32>;
}

/// Answers requests. Called from the one IPC thread; must not block, nor work for longer than a
/// millisecond or so.
pub trait Service: Send {
    /// `message` is a private copy of the whole request, header included, at least 16 bytes.
    /// The payload of the answer is appended to `out`, which is empty.
    fn handle(&mut self, client: &Client, message: &[u8], last: bool, out: &mut Vec<u8>) -> Answer;
}
