//! Cases about numbers and sizes.

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::io::IoSlice;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::{SOON, attack, connect};
use crate::shm::peer::{
    self, Peer, closed_within, connect_request, message, open_socket, read_handshake, send_all,
};
use crate::shm::target::{NOBODY, ROOT, Target, www_data};

/// 7: the reference creates files of any size.
pub fn huge_message_size(target: &Target) {
    for (wanted, agreed) in [(u32::MAX, 1 << 20), (1 << 30, 1 << 20), (0, 12328)] {
        attack(target, move |target| {
            let mut peer = Peer::connect_with(&target.service, wanted).expect("accepted");
            assert_eq!(peer.message_size(), agreed);
            let data = peer.request.data.metadata().expect("data file");
            let expected = (u64::from(agreed) + 13).next_multiple_of(4096);
            assert_eq!(data.len(), expected, "size of the data file");
            target.probe(&mut peer);
        });
    }
}

/// 8: the reference uses a connection that it has freed.
pub fn responses_not_read(target: &Target) {
    attack(target, |target| {
        let mut peer = Peer::connect_with(&target.service, 0).expect("accepted");
        let probe = message(target.probe.0, &target.probe.1);
        let end = Instant::now() + 4 * SOON;
        // Until the ring cannot even take an error, which ends the connection.
        while !peer.is_closed_within(Duration::ZERO) {
            assert!(
                Instant::now() < end,
                "a client that reads nothing is still connected"
            );
            for _ in 0..20 {
                peer.request.write_chunk(&probe).expect("chunk");
            }
            let _ = peer.post(20, 20);
            std::thread::sleep(Duration::from_millis(2));
        }
    });
}

/// 9: the reference has no limit. Ours: 512 for www-data, and root is not concerned.
pub fn many_connections(target: &Target) {
    let inner = target.clone();
    target.undisturbed(|| {
        let attacker = inner.clone();
        let mut accepted = inner.run_as(www_data(), move || open_until_refused(&attacker));
        inner.probe_new(ROOT);
        // There is room again when one goes.
        accepted.pop();
        let attacker = inner.clone();
        inner.run_as(www_data(), move || {
            let end = Instant::now() + SOON;
            while begin(&attacker).1 != 0 {
                assert!(Instant::now() < end, "no room after a disconnect");
            }
        });
    });
}

/// A connection after its handshake, without opening the rings, and the error of the response.
fn begin(target: &Target) -> (OwnedFd, i32) {
    let socket = open_socket(&target.service).expect("connect");
    send_all(&socket, &connect_request(-1, 1 << 20)).expect("send");
    let answer = read_handshake(socket.as_fd(), SOON).expect("an answer");
    assert_eq!(answer.len(), 12328, "an answer, also to those refused");
    (socket, peer::int(&answer, 16))
}

fn open_until_refused(target: &Target) -> Vec<OwnedFd> {
    let mut accepted = Vec::new();
    loop {
        let (socket, error) = begin(target);
        if error != 0 {
            let closed = closed_within(socket.as_fd(), SOON).expect("poll");
            assert!(closed, "refused and left open");
            break;
        }
        accepted.push(socket);
        assert!(
            accepted.len() <= 512,
            "more than 512 connections of www-data"
        );
    }
    assert!(accepted.len() > 400, "only {} connections", accepted.len());
    accepted
}

/// 10: the reference writes a log line per byte, without end.
pub fn bytes_without_chunks(target: &Target) {
    attack(target, |target| {
        let mut peer = connect(target);
        for _ in 0..200 {
            if peer.notify(5000).is_err() {
                return; // disconnecting it is as good
            }
        }
        target.probe(&mut peer);
    });
}

/// 14: the reference keeps them for ever.
pub fn unfinished_handshakes(target: &Target) {
    let inner = target.clone();
    target.undisturbed(|| {
        target.run_as(NOBODY, move || {
            let begin = |bytes: usize| {
                let socket = open_socket(&inner.service).expect("connect");
                send_all(&socket, &connect_request(-1, 1 << 20)[..bytes]).expect("send");
                socket
            };
            // More than are allowed at a time: the oldest go, the newest stay.
            let sockets: Vec<OwnedFd> = (0..100).map(|n| begin(n % 24)).collect();
            let start = Instant::now();
            assert!(
                closed_within(sockets[0].as_fd(), SOON).expect("poll"),
                "the oldest stays"
            );
            let last = sockets[99].as_fd();
            let early = closed_within(last, Duration::from_secs(5)).expect("poll");
            assert!(!early, "a slow client is given up too early");
            for socket in &sockets {
                let left = Duration::from_secs(13).saturating_sub(start.elapsed());
                assert!(
                    closed_within(socket.as_fd(), left).expect("poll"),
                    "kept for ever"
                );
            }
            // Another id is no handshake; a user without rights is refused with an answer.
            let socket = open_socket(&inner.service).expect("connect");
            send_all(&socket, &connect_request(7, 1 << 20)).expect("send");
            assert!(
                read_handshake(socket.as_fd(), SOON)
                    .expect("close")
                    .is_empty()
            );
            let error = Peer::connect(&inner.service).expect_err("nobody is refused");
            assert!(
                error.raw_os_error().is_some(),
                "refused without an answer: {error}"
            );
        });
    });
}

/// 16: passed descriptors do not pile up in the server (checked by the number of its files).
pub fn descriptors_in_handshake(target: &Target) {
    attack(target, |target| {
        let file = fs::File::open("/dev/null").expect("file");
        let files = [file.as_fd(); 20];
        for whole in [true, false] {
            for _ in 0..50 {
                let socket = open_socket(&target.service).expect("connect");
                let request = connect_request(-1, 1 << 20);
                let part = if whole { &request[..] } else { &request[..10] };
                let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(20))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
                let parts = [IoSlice::new(part)];
                sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL).expect("send");
            }
        }
        let peer = connect(target);
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(20))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        let parts = [IoSlice::new(b"x")];
        sendmsg(&peer.socket, &parts, &mut control, SendFlags::NOSIGNAL).expect("send");
        std::thread::sleep(Duration::from_millis(50));
    });
}
