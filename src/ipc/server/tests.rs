use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicI32;
use std::time::Instant;

use compat_tests::shm::Peer;

use super::*;
use crate::ipc::{Answer, Client, Work};

const LIMIT: Duration = Duration::from_secs(5);
/// How long a service blocks.
const BLOCKED: Duration = Duration::from_secs(5);

/// 1: answered at once. 2: answered when `open` is set, with -1 when it never is. 3: never
/// answered. 4: blocks for [`BLOCKED`]. 5: worked off in pieces until `open` is set. 6: fails in
/// the second piece. 7: fails at once.
struct Gate {
    open: Arc<AtomicBool>,
    asked: Arc<AtomicI32>,
}

impl Service for Gate {
    fn handle(&mut self, _: &Client, message: &[u8], last: bool, out: &mut Vec<u8>) -> Answer {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match message[0] {
            2 if self.open.load(Ordering::SeqCst) => {}
            2 if last => return Answer::Reply(-1),
            2 | 3 => return Answer::Later,
            4 => std::thread::sleep(BLOCKED),
            5 => return Answer::Work(Box::new(Pieces(Arc::clone(&self.open)))),
            6 => return Answer::Work(Box::new(Fails(false))),
            7 => panic!("on purpose"),
            _ => {}
        }
        out.extend_from_slice(&message[16..]);
        Answer::Reply(0)
    }
}

struct Pieces(Arc<AtomicBool>);

impl Work for Pieces {
    fn go_on(&mut self, out: &mut Vec<u8>) -> Option<i32> {
        assert!(out.is_empty());
        out.extend_from_slice(b"pieces");
        self.0.load(Ordering::SeqCst).then_some(0)
    }
}

struct Fails(bool);

impl Work for Fails {
    fn go_on(&mut self, _: &mut Vec<u8>) -> Option<i32> {
        assert!(!std::mem::replace(&mut self.0, true), "on purpose");
        None
    }
}

struct Setup {
    name: String,
    handle: ServerHandle,
    open: Arc<AtomicBool>,
    asked: Arc<AtomicI32>,
}

fn setup(name: &str) -> Setup {
    let name = format!("u{}-{name}", std::process::id());
    let (open, asked) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicI32::new(0)),
    );
    let gate = Gate {
        open: Arc::clone(&open),
        asked: Arc::clone(&asked),
    };
    let gid = rustix::process::getgid().as_raw();
    let handle = Server::bind(&name, gid)
        .unwrap()
        .spawn(Box::new(gate))
        .unwrap();
    Setup {
        name,
        handle,
        open,
        asked,
    }
}

#[test]
fn names() {
    for name in ["", "a/b", "a\0b", "..\n", &"x".repeat(65)] {
        let error = Server::bind(name, 33).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{name:?}");
    }
}

#[test]
fn a_name_is_taken_once() {
    let Setup { name, handle, .. } = setup("once");
    assert!(Server::bind(&name, 33).unwrap().listener.is_none());
    handle.stop();
    assert!(Server::bind(&name, 33).unwrap().listener.is_some());
}

#[test]
fn a_taken_name_is_waited_for() {
    let first = setup("wait");
    let waiting = || {
        let gate = Gate {
            open: Arc::default(),
            asked: Arc::default(),
        };
        let gid = rustix::process::getgid().as_raw();
        let server = Server::bind(&first.name, gid).unwrap();
        assert!(server.listener.is_none());
        server.spawn(Box::new(gate)).unwrap()
    };
    // Stopping does not wait for the name.
    waiting().stop();
    let second = waiting();
    first.handle.stop();
    let end = Instant::now() + 6 * LIMIT;
    let mut peer = loop {
        match Peer::connect(&first.name) {
            Ok(peer) => break peer,
            Err(_) => assert!(Instant::now() < end, "the name is not taken"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(peer.ask(1, b"y", LIMIT).unwrap().payload, b"y");
    second.stop();
}

#[test]
fn stopping_disconnects_and_cleans() {
    let Setup { name, handle, .. } = setup("stop");
    let peers: Vec<Peer> = (0..20).map(|_| Peer::connect(&name).unwrap()).collect();
    assert!(peers[0].directory().exists());
    // Returns when everything is gone, or at its limit: the thread goes on with it then.
    handle.stop();
    for peer in &peers {
        assert!(peer.is_closed_within(LIMIT));
        let end = Instant::now() + LIMIT;
        while peer.directory().exists() {
            assert!(Instant::now() < end, "{:?}", peer.directory());
            std::thread::yield_now();
        }
        assert_eq!(
            peer.request
                .get(compat_tests::shm::peer::REF_COUNT)
                .unwrap(),
            0
        );
    }
}

#[test]
fn stopping_does_not_wait_for_a_service_that_blocks() {
    let Setup {
        name,
        handle,
        asked,
        ..
    } = setup("blocks");
    let mut peer = Peer::connect(&name).unwrap();
    peer.send(&compat_tests::shm::peer::message(4, &[]))
        .unwrap();
    while asked.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    let start = Instant::now();
    handle.stop();
    assert!(start.elapsed() < BLOCKED / 2, "{:?}", start.elapsed());
    assert!(
        peer.is_closed_within(BLOCKED + LIMIT),
        "the thread ends all the same"
    );
}

#[test]
fn deferred_until_woken() {
    let Setup {
        name,
        handle,
        open,
        asked,
    } = setup("woken");
    let mut peer = Peer::connect(&name).unwrap();
    let mut other = Peer::connect(&name).unwrap();
    let mut woken = 0;
    for _ in 0..200 {
        open.store(false, Ordering::SeqCst);
        let before = asked.load(Ordering::SeqCst);
        peer.send(&compat_tests::shm::peer::message(2, b"x"))
            .unwrap();
        while asked.load(Ordering::SeqCst) == before {
            std::hint::spin_loop();
        }
        open.store(true, Ordering::SeqCst);
        handle.waker().wake();
        peer.await_responses(1, LIMIT).unwrap();
        let answer = peer.take().unwrap();
        woken += i32::from(answer.error == 0);
        assert_eq!(other.ask(1, b"y", LIMIT).unwrap().payload, b"y");
    }
    // A thread may be held up for 100 ms between asking and opening, but not often.
    assert!(woken >= 150, "{woken} of 200 woken in time");
    handle.stop();
}

#[test]
fn deferred_has_an_end_and_keeps_the_order() {
    let Setup { name, handle, .. } = setup("end");
    let mut peer = Peer::connect(&name).unwrap();
    let mut other = Peer::connect(&name).unwrap();
    let start = Instant::now();
    for id in [2, 1, 3, 1] {
        let message = compat_tests::shm::peer::message(id, b"z");
        peer.request.write_chunk(&message).unwrap();
    }
    peer.post(4, 4).unwrap();
    // Others are served meanwhile.
    for _ in 0..10 {
        assert_eq!(other.ask(1, b"y", LIMIT).unwrap().payload, b"y");
    }
    peer.await_responses(4, LIMIT).unwrap();
    assert!(start.elapsed() >= 2 * DEFER_LIMIT);
    let answers: Vec<(i32, i32)> = (0..4)
        .map(|_| {
            let answer = peer.take().unwrap();
            (answer.id, answer.error)
        })
        .collect();
    assert_eq!(answers, [(2, -1), (1, 0), (3, -5), (1, 0)]);
    handle.stop();
}

#[test]
fn others_are_served_between_pieces() {
    use compat_tests::shm::peer::message;
    let Setup {
        name, handle, open, ..
    } = setup("pieces");
    let [mut first, mut second, mut other, mut gone] =
        [(); 4].map(|()| Peer::connect(&name).unwrap());
    gone.send(&message(5, &[])).unwrap();
    for peer in [&mut first, &mut second] {
        // With a request behind, which waits.
        for id in [5, 1] {
            peer.request.write_chunk(&message(id, b"behind")).unwrap();
        }
        peer.post(2, 2).unwrap();
    }
    for _ in 0..20 {
        assert_eq!(other.ask(1, b"y", LIMIT).unwrap().payload, b"y");
    }
    // A client that goes takes its work with it.
    let directory = gone.directory();
    drop(gone);
    while directory.exists() {
        std::thread::yield_now();
    }
    for peer in [&first, &second] {
        let answers = peer.response.get(compat_tests::shm::peer::SEMAPHORE);
        assert_eq!(answers.unwrap(), 0);
    }
    open.store(true, Ordering::SeqCst);
    for peer in [&mut first, &mut second] {
        peer.await_responses(2, LIMIT).unwrap();
        assert_eq!(peer.take().unwrap().payload, b"pieces");
        assert_eq!(peer.take().unwrap().payload, b"behind");
    }
    open.store(false, Ordering::SeqCst);
    first.send(&message(5, &[])).unwrap();
    assert_eq!(other.ask(1, b"y", LIMIT).unwrap().payload, b"y");
    // Work under way does not hold up the end.
    let directory = first.directory();
    handle.stop();
    assert!(!directory.exists());
}

#[test]
fn a_failure_costs_one_answer() {
    let Setup { name, handle, .. } = setup("fails");
    let mut peer = Peer::connect(&name).unwrap();
    for id in [6, 7] {
        assert_eq!(peer.ask(id, b"", LIMIT).unwrap().error, -libc::EIO);
        assert_eq!(peer.ask(1, b"y", LIMIT).unwrap().payload, b"y");
    }
    handle.stop();
}

#[test]
fn a_client_that_goes_while_deferred() {
    let Setup {
        name, handle, open, ..
    } = setup("goes");
    for _ in 0..20 {
        let mut peer = Peer::connect(&name).unwrap();
        peer.send(&compat_tests::shm::peer::message(2, b"x"))
            .unwrap();
        let directory = peer.directory();
        drop(peer);
        while directory.exists() {
            std::thread::yield_now();
        }
    }
    open.store(true, Ordering::SeqCst);
    handle.waker().wake();
    assert_eq!(
        Peer::connect(&name)
            .unwrap()
            .ask(2, b"w", LIMIT)
            .unwrap()
            .payload,
        b"w"
    );
    handle.stop();
}

#[test]
fn more_requests_than_one_turn() {
    let Setup { name, handle, .. } = setup("turns");
    let mut peer = Peer::connect(&name).unwrap();
    for _ in 0..300 {
        peer.request
            .write_chunk(&compat_tests::shm::peer::message(1, b"many"))
            .unwrap();
    }
    peer.post(300, 1).unwrap();
    peer.await_responses(300, LIMIT).unwrap();
    for _ in 0..300 {
        assert_eq!(peer.take().unwrap().payload, b"many");
    }
    handle.stop();
}

#[test]
fn socket_in_the_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let name = format!("u{}-file", std::process::id());
    let path = dir.path().join(&name);
    std::fs::write(&path, b"left over").unwrap();
    let gid = rustix::process::getgid().as_raw();
    let gate = Gate {
        open: Arc::default(),
        asked: Arc::default(),
    };
    let server = Server::bind_in(Some(dir.path()), &name, gid).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o777);
    let second = Server::bind_in(Some(dir.path()), &name, gid).unwrap();
    assert!(second.listener.is_none());
    assert!(path.exists());

    let handle = server.spawn(Box::new(gate)).unwrap();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream
        .write_all(&compat_tests::shm::peer::connect_request(-1, 0))
        .unwrap();
    let mut answer = vec![0u8; 12328];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!((&answer[16..20], answer[24]), (&[0u8; 4][..], 1));
    drop(stream);
    handle.stop();
    assert!(!path.exists());
}
