//! The hostile clients of ipc-transport.md 10, one function per case. Each of them panics when
//! the server does not behave: the hostile client is disconnected (or refused, or simply answered
//! where it does no harm), well-behaved clients are served all the time, and afterwards open files
//! and `/dev/shm` are as before.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::time::{Duration, Instant};

use rustix::io::IoSlice;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::peer::{
    self, DATA_PATH, HEADER_PATH, Peer, READ_PT, SEMAPHORE, WORD_SIZE, WRITE_PT, closed_within,
    connect_request, message, message_with_size, open_socket, read_handshake, send_all,
};
use super::target::{NOBODY, ROOT, Target, www_data};

/// A case.
pub type Case = fn(&Target);

/// All cases, by the name they have in reports.
pub const ALL: [(&str, Case); 18] = [
    ("1 word_size is 0", word_size_zero),
    ("2 files are truncated", truncated_files),
    (
        "3 write position of the response ring",
        response_write_position,
    ),
    ("4 size field lies", size_field_lies),
    ("5 paths in the header name victims", paths_name_victims),
    ("6 two chunks, one notification", two_chunks_one_byte),
    ("7 huge message size", huge_message_size),
    ("8 responses are not read", responses_not_read),
    ("9 many connections", many_connections),
    ("10 notifications without chunks", bytes_without_chunks),
    ("11 read positions out of range", read_positions),
    ("12 message changes while processed", message_changes),
    (
        "13 nothing of the server's memory in answers",
        no_memory_in_answers,
    ),
    ("14 unfinished handshakes", unfinished_handshakes),
    ("15 bad chunks", bad_chunks),
    ("16 descriptors in the handshake", descriptors_in_handshake),
    ("17 directory replaced by a link", directory_replaced),
    ("18 semaphores", semaphores),
];

/// Time in which a hostile client has to be gone.
const SOON: Duration = Duration::from_secs(2);

fn connect(target: &Target) -> Peer {
    Peer::connect(&target.service).expect("the hostile client is accepted")
}

/// Runs one hostile client as www-data.
fn attack(target: &Target, work: impl FnOnce(&Target) + Send + 'static) {
    let inner = target.clone();
    target.undisturbed(|| target.run_as(www_data(), move || work(&inner)));
}

/// Runs a client that is expected to be disconnected for what it does after connecting.
fn attack_ends(target: &Target, mut crime: impl FnMut(&Target, &mut Peer) + Send + 'static) {
    attack(target, move |target| {
        let mut peer = connect(target);
        crime(target, &mut peer);
        assert!(
            peer.is_closed_within(SOON),
            "the hostile client is still connected"
        );
    });
}

/// Sends the probe without expecting anything.
fn send_probe(target: &Target, peer: &mut Peer) {
    let _ = peer.send(&message(target.probe.0, &target.probe.1));
}

/// 1: the reference divides by it and dies.
pub fn word_size_zero(target: &Target) {
    for value in [0, 1, u32::MAX] {
        attack_ends(target, move |target, peer| {
            peer.request.set(WORD_SIZE, value).expect("set");
            send_probe(target, peer);
        });
        attack_ends(target, move |target, peer| {
            peer.response.set(WORD_SIZE, value).expect("set");
            send_probe(target, peer);
        });
    }
}

/// 2: the reference dies of SIGBUS. All files the server touches, to nothing and to a part.
pub fn truncated_files(target: &Target) {
    for len in [0, 4096] {
        attack_ends(target, move |target, peer| {
            // Beyond the first page, so that a part of the file is not enough.
            while peer.request.at < 2048 {
                target.probe(peer);
            }
            peer.request
                .write_chunk(&message(target.probe.0, &target.probe.1))
                .expect("chunk");
            peer.request.data.set_len(len).expect("truncate");
            peer.post(1, 1).expect("post");
        });
        attack_ends(target, move |_, peer| {
            peer.request.header.set_len(len).expect("truncate");
            peer.notify(1).expect("notify");
        });
        attack_ends(target, move |target, peer| {
            peer.response.header.set_len(len).expect("truncate");
            send_probe(target, peer);
        });
    }
    attack_ends(target, |target, peer| {
        peer.response.data.set_len(0).expect("truncate");
        send_probe(target, peer);
    });
    // While the server is at work.
    attack(target, |target| {
        for turn in 0..200 {
            let mut peer = connect(target);
            let len = peer.request.data.metadata().expect("data file").len();
            for _ in 0..5 {
                send_probe(target, &mut peer);
                for ring in [&peer.request, &peer.response] {
                    let file = if turn % 2 == 0 {
                        &ring.data
                    } else {
                        &ring.header
                    };
                    file.set_len(0).expect("truncate");
                    file.set_len(if turn % 2 == 0 { len } else { 8252 })
                        .expect("extend");
                }
            }
        }
    });
    // Noticed only when the connection ends.
    attack(target, |target| {
        let mut peer = connect(target);
        target.probe(&mut peer);
        for ring in [&peer.request, &peer.response, &peer.event] {
            ring.header.set_len(0).expect("truncate");
            ring.data.set_len(0).expect("truncate");
        }
    });
}

/// 3: the reference writes where the client says.
pub fn response_write_position(target: &Target) {
    for value in [0x7fff_ffff, u32::MAX, 0x40400, 12] {
        attack_ends(target, move |target, peer| {
            peer.response.set(WRITE_PT, value).expect("set");
            send_probe(target, peer);
        });
    }
}

/// 4: the reference writes a NUL byte behind the message.
pub fn size_field_lies(target: &Target) {
    attack(target, |target| {
        let mut peer = connect(target);
        for size in [0x7fff_ffff, i32::MIN, -1, 0, 15, 4096] {
            for id in [1, 4, 5, 6, 7, 8, 11, 12, 13] {
                peer.send(&message_with_size(id, size, &target.probe.1))
                    .expect("send");
                peer.await_responses(1, SOON).expect("an answer");
                let answer = peer.take().expect("an answer");
                assert_eq!(answer.id, id);
            }
        }
        target.probe(&mut peer);
    });
}

/// 5: the reference unlinks, as root, what the client names.
pub fn paths_name_victims(target: &Target) {
    let victims = std::env::temp_dir().join(format!("qb-victims-{}", std::process::id()));
    fs::create_dir_all(&victims).expect("directory of the victims");
    let (header, data) = (victims.join("header"), victims.join("data"));
    for victim in [&header, &data] {
        fs::write(victim, b"keep").expect("victim");
    }
    let paths = [&header, &data].map(|p| format!("{}\0", p.display()));
    attack(target, move |target| {
        let mut peer = connect(target);
        target.probe(&mut peer);
        for ring in [&peer.request, &peer.response, &peer.event] {
            for (at, path) in [(HEADER_PATH, &paths[0]), (DATA_PATH, &paths[1])] {
                use std::os::unix::fs::FileExt;
                ring.header
                    .write_all_at(path.as_bytes(), at)
                    .expect("overwrite");
            }
        }
    });
    for victim in [&header, &data] {
        assert_eq!(fs::read(victim).expect("the victim still exists"), b"keep");
    }
    fs::remove_dir_all(&victims).expect("cleaning up");
}

/// 6: the reference waits for the missing byte, and everybody with it.
pub fn two_chunks_one_byte(target: &Target) {
    attack(target, |target| {
        let mut peer = connect(target);
        let probe = message(target.probe.0, &target.probe.1);
        for _ in 0..2 {
            peer.request.write_chunk(&probe).expect("chunk");
        }
        peer.post(2, 1).expect("post");
        peer.await_responses(2, SOON).expect("both are answered");
        for _ in 0..2 {
            assert_eq!(peer.take().expect("answer").error, 0);
        }
        // Surplus chunks on a client that stays: others are served (the witnesses).
        peer.request.write_chunk(&probe).expect("chunk");
        peer.post(1, 1).expect("post");
        std::thread::sleep(Duration::from_millis(300));
    });
}

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

/// 11: positions that the other side would follow out of the mapping.
pub fn read_positions(target: &Target) {
    for value in [0x7fff_ffff, u32::MAX, 0x40400] {
        attack_ends(target, move |target, peer| {
            peer.request.set(READ_PT, value).expect("set");
            send_probe(target, peer);
        });
        attack_ends(target, move |target, peer| {
            peer.response.set(READ_PT, value).expect("set");
            send_probe(target, peer);
        });
    }
    // The write position of the request ring is nothing the server looks at.
    attack(target, |target| {
        let mut peer = connect(target);
        peer.request
            .write_chunk(&message(target.probe.0, &target.probe.1))
            .expect("chunk");
        peer.request.set(WRITE_PT, u32::MAX).expect("set");
        peer.post(1, 1).expect("post");
        let _ = peer.await_responses(1, SOON);
    });
}

/// 12: what was checked must be what is used. Without a secret only that nothing breaks.
pub fn message_changes(target: &Target) {
    let (id, payload) = target.probe.clone();
    let fallback = super::Secret {
        id,
        public: payload.clone(),
        private: payload,
        leak: b"\0never\0".to_vec(),
    };
    let secret = target.secret.clone().unwrap_or(fallback);
    assert_eq!(
        secret.public.len(),
        secret.private.len(),
        "both forms are of one length"
    );
    attack(target, move |target| {
        let mut peer = connect(target);
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end {
            let at = peer.request.at;
            peer.send(&message(secret.id, &secret.public))
                .expect("send");
            let body = (at + 2 + 4) % peer.request.words;
            while peer.response.get(SEMAPHORE).expect("semaphore") == 0 {
                peer.request
                    .write_words(body, &secret.private)
                    .expect("change");
                peer.request
                    .write_words(body, &secret.public)
                    .expect("change");
            }
            let answer = peer.take().expect("answer");
            let leaks = answer
                .payload
                .windows(secret.leak.len())
                .any(|w| w == secret.leak);
            assert!(!leaks, "a private answer to a changed message");
        }
    });
}

/// 13: pads, path fields and the connection field carry nothing.
pub fn no_memory_in_answers(target: &Target) {
    let inner = target.clone();
    target.undisturbed(|| {
        target.run_as(ROOT, move || {
            let mut peer = connect(&inner);
            let bytes = &peer.handshake;
            for pad in [4, 12, 20] {
                assert_eq!(peer::int(bytes, pad), 0, "pad at {pad}");
            }
            // A counter, not an address.
            assert_eq!(peer::int(bytes, 36), 0, "connection field");
            for field in [40, 4136, 8232] {
                let path = &bytes[field..field + 4096];
                let end = path.iter().position(|b| *b == 0).expect("NUL");
                assert!(
                    path[end..].iter().all(|b| *b == 0),
                    "rest of the path at {field}"
                );
            }
            for ring in [&peer.request, &peer.response, &peer.event] {
                for pad in [8216 + 4, 8240, 8244] {
                    assert_eq!(
                        ring.get(pad).expect("header"),
                        0,
                        "header of {}",
                        ring.prefix
                    );
                }
            }
            for _ in 0..50 {
                let answer = peer
                    .ask(inner.probe.0, &inner.probe.1, SOON)
                    .expect("answer");
                for pad in [4, 12, 20] {
                    assert_eq!(peer::int(&answer.header, pad), 0, "pad at {pad}");
                }
            }
        });
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

/// 15: chunks that are none.
pub fn bad_chunks(target: &Target) {
    for len in [0, 1, 15, 1_048_577, 1_052_660, 0x7fff_ffff, u32::MAX] {
        attack_ends(target, move |target, peer| {
            let at = peer.request.at;
            peer.request
                .write_chunk(&message(target.probe.0, &target.probe.1))
                .expect("chunk");
            peer.request
                .write_words(at, &len.to_le_bytes())
                .expect("length");
            peer.post(1, 1).expect("post");
        });
    }
    for magic in [0, 0xA110_CED0u32, 0xD0D0_D0D0] {
        attack_ends(target, move |target, peer| {
            let at = peer.request.at;
            peer.request
                .write_chunk(&message(target.probe.0, &target.probe.1))
                .expect("chunk");
            peer.request
                .write_words(at + 1, &magic.to_le_bytes())
                .expect("magic");
            peer.post(1, 1).expect("post");
        });
    }
    // The way of the transport to say good-bye.
    attack_ends(target, |_, peer| {
        peer.send(&message(-3, &[])).expect("send")
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
                let mut space =
                    [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(20))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
                let parts = [IoSlice::new(part)];
                sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL).expect("send");
            }
        }
        let peer = connect(target);
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(20))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        let parts = [IoSlice::new(b"x")];
        sendmsg(&peer.socket, &parts, &mut control, SendFlags::NOSIGNAL).expect("send");
        std::thread::sleep(Duration::from_millis(50));
    });
}

/// 17: the client owns its directory and may put a link in its place.
pub fn directory_replaced(target: &Target) {
    let victims = std::env::temp_dir().join(format!("qb-linked-{}", std::process::id()));
    fs::create_dir_all(&victims).expect("directory of the victims");
    let service = target.service.clone();
    let names = ["request", "response", "event"]
        .iter()
        .flat_map(|ring| ["header", "data"].map(|part| format!("qb-{ring}-{service}-{part}")))
        .collect::<Vec<_>>();
    for name in &names {
        fs::write(victims.join(name), b"keep").expect("victim");
    }
    let inner = (target.clone(), victims.clone());
    target.undisturbed(|| {
        inner.0.clone().run_as(www_data(), move || {
            let (target, victims) = inner;
            let mut peer = connect(&target);
            let directory = peer.directory();
            let aside = directory.with_extension("aside");
            fs::rename(&directory, &aside).expect("rename");
            symlink(&victims, &directory).expect("link");
            target.probe(&mut peer);
            drop(peer);
            let end = Instant::now() + SOON;
            while fs::read_dir(&aside).is_ok_and(|mut d| d.next().is_some()) {
                assert!(Instant::now() < end, "files in the renamed directory stay");
                std::thread::sleep(Duration::from_millis(1));
            }
            // Its own litter.
            fs::remove_dir(&aside).expect("remove");
            fs::remove_file(&directory).expect("remove");
        });
    });
    for name in &names {
        assert_eq!(
            fs::read(victims.join(name)).expect("the victim still exists"),
            b"keep"
        );
    }
    fs::remove_dir_all(&victims).expect("cleaning up");
}

/// 18: semaphores that promise anything.
pub fn semaphores(target: &Target) {
    // More requests than there are.
    attack_ends(target, |target, peer| {
        peer.request.set(SEMAPHORE, u32::MAX).expect("set");
        peer.request
            .write_chunk(&message(target.probe.0, &target.probe.1))
            .expect("chunk");
        peer.notify(1).expect("notify");
    });
    // A response ring that pretends to be full, overflows, or has waiters that do not exist.
    for (value, waiters) in [(u32::MAX, 0), (u32::MAX, u32::MAX), (0, u32::MAX), (5, 1)] {
        attack(target, move |target| {
            let mut peer = connect(target);
            peer.response.set(SEMAPHORE, value).expect("set");
            peer.response.set(SEMAPHORE + 4, waiters).expect("set");
            for _ in 0..3 {
                send_probe(target, &mut peer);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
    }
}

/// Files and directory as the protocol wants them: owners, modes, sizes (no attack).
pub fn ownership(target: &Target) {
    for identity in [ROOT, www_data()] {
        let inner = target.clone();
        target.run_as(identity, move || {
            let peer = connect(&inner);
            let stat = |path: std::path::PathBuf| {
                let meta = fs::metadata(path).expect("file");
                (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.len())
            };
            let directory = stat(peer.directory());
            let (uid, gid) = identity;
            assert_eq!((directory.0, directory.1, directory.2), (0o770, uid, gid));
            for ring in [&peer.request, &peer.response, &peer.event] {
                let header = stat(format!("{}-header", ring.prefix).into());
                assert!([8248, 8252].contains(&header.3));
                assert_eq!((header.0, header.1, header.2), (0o600, uid, gid));
                let data = stat(format!("{}-data", ring.prefix).into());
                assert_eq!(data, (0o600, uid, gid, 1_052_672));
            }
        });
    }
}
