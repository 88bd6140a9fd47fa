//! A client that has connected and not yet sent its whole request (ipc-transport.md 4.2).
#![forbid(unsafe_code)]

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg};

use super::handshake::{ConnectRequest, Credentials, REQUEST_LEN};

/// What has come so far.
pub struct Greeting {
    socket: OwnedFd,
    bytes: [u8; REQUEST_LEN],
    len: usize,
    sender: Option<Credentials>,
}

/// How far the handshake is.
pub enum Progress {
    /// More bytes are needed.
    Partial,
    Complete(ConnectRequest, Credentials),
    /// End of file, error, or something a client does not send: close without an answer.
    Failed,
}

impl Greeting {
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            bytes: [0; REQUEST_LEN],
            len: 0,
            sender: None,
        }
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Reads what has come, at most the 24 bytes: what stands behind them are notifications.
    pub fn read(&mut self) -> Progress {
        loop {
            match receive(&self.socket, &mut self.bytes[self.len..]) {
                Ok((0, _)) => return Progress::Failed,
                Ok((count, Some(sender))) => {
                    // All parts of a request are of one sender.
                    if *self.sender.get_or_insert(sender) != sender {
                        return Progress::Failed;
                    }
                    self.len += count;
                    if self.len == REQUEST_LEN {
                        return Progress::Complete(ConnectRequest::decode(&self.bytes), sender);
                    }
                }
                Ok((_, None)) => return Progress::Failed,
                Err(Errno::EAGAIN) => return Progress::Partial,
                Err(Errno::EINTR) => {}
                Err(_) => return Progress::Failed,
            }
        }
    }
}

/// One `recvmsg` with room for exactly one set of credentials. The kernel puts those first, so a
/// client that passes descriptors gets them closed, and the truncated list is an error here.
fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> Result<(usize, Option<Credentials>), Errno> {
    let mut control = nix::cmsg_space!(UnixCredentials);
    let mut parts = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut sender = None;
    for item in message.cmsgs()? {
        if let ControlMessageOwned::ScmCredentials(c) = item {
            sender = Some(Credentials {
                pid: c.pid(),
                uid: c.uid(),
                gid: c.gid(),
            });
        }
    }
    Ok((message.bytes, sender))
}
