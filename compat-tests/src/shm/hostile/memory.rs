//! Cases about the content of shared memory.

use std::time::{Duration, Instant};

use super::{SOON, attack, attack_ends, connect, send_probe};
use crate::shm::peer::{self, READ_PT, SEMAPHORE, WORD_SIZE, WRITE_PT, message, message_with_size};
use crate::shm::target::{PATIENCE, ROOT, Secret, Target};

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
        // Stays for longer than the witnesses are willing to wait.
        std::thread::sleep(PATIENCE + Duration::from_millis(500));
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
    let fallback = Secret {
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
