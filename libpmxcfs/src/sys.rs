//! The one system call that needs `unsafe` here: rustix takes the process id 0, which a peer of
//! another pid namespace has, for impossible.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// User id of the process that listens at the other end of `socket`.
pub fn peer_uid(socket: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as it is borrowed; `peer` and `len` are valid places,
    // and `len` says how large the first is.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if done == 0 {
        Ok(peer.uid)
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}
