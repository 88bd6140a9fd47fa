//! The client against servers that misbehave.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::rrd::rrdcached::{Client, Outcome, Timeouts};

const TIMEOUTS: Timeouts = Timeouts {
    reply: Duration::from_millis(200),
    batch: Duration::from_millis(600),
    pause: Duration::from_millis(300),
};

/// For tests in which every answer comes, as late as a busy machine brings it.
const PATIENT: Timeouts = Timeouts {
    reply: Duration::from_secs(5),
    batch: Duration::from_secs(15),
    pause: Duration::from_secs(5),
};

/// A server whose connections are handled by `serve`, one after another.
fn server(
    dir: &Path,
    timeouts: Timeouts,
    mut serve: impl FnMut(UnixStream) + Send + 'static,
) -> (Client, JoinHandle<()>) {
    let socket = dir.join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let thread = thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            serve(stream);
        }
    });
    (Client::new(socket, timeouts), thread)
}

fn send(client: &mut Client, count: usize) -> (Vec<Outcome>, Duration) {
    let names: Vec<String> = (0..count).map(|i| format!("/f/{i}")).collect();
    let start = Instant::now();
    let outcomes = client.update(names.iter().map(|name| (Path::new(name), &b"9:1"[..])));
    assert_eq!(outcomes.len(), count);
    (outcomes, start.elapsed())
}

#[test]
fn commands_are_sent_at_once_and_fields_quoted() {
    let dir = tempfile::tempdir().unwrap();
    let (send_line, lines) = std::sync::mpsc::channel();
    let (mut client, _thread) = server(dir.path(), PATIENT, move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut all = Vec::new();
        // All commands are there before the first answer.
        for _ in 0..3 {
            let mut line = Vec::new();
            reader.read_until(b'\n', &mut line).unwrap();
            all.push(String::from_utf8_lossy(&line).into_owned());
        }
        send_line.send(all).unwrap();
        // In small pieces, with lines that follow.
        for piece in [
            "0 err",
            "ors\n-1 no such",
            " file: x\n2 two lines\na\n",
            "b\n",
        ] {
            stream.write_all(piece.as_bytes()).unwrap();
            thread::sleep(Duration::from_millis(20));
        }
    });
    let outcomes = client.update([
        (Path::new("/a b\\c"), &b"9:1:U"[..]),
        (Path::new("/x"), &b"9:2"[..]),
        (Path::new("/y"), &b"9:3"[..]),
    ]);
    assert_eq!(
        lines.recv().unwrap(),
        [
            "UPDATE /a\\ b\\\\c 9:1:U\n",
            "UPDATE /x 9:2\n",
            "UPDATE /y 9:3\n"
        ]
    );
    let text = "no such file: x".to_owned();
    assert_eq!(
        outcomes,
        [
            Outcome::Taken,
            Outcome::Refused { status: -1, text },
            Outcome::Taken
        ]
    );
}

#[test]
fn nobody_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::new(dir.path().join("none"), PATIENT);
    let (outcomes, time) = send(&mut client, 3);
    assert!(outcomes.iter().all(|o| *o == Outcome::NotSent));
    assert!(time < Duration::from_secs(3), "{time:?}");
    // No pause: it may come at any time.
    let listener = UnixListener::bind(dir.path().join("none")).unwrap();
    let answer = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"0 errors\n").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert_eq!(send(&mut client, 1).0, [Outcome::Taken]);
    drop(client);
    answer.join().unwrap();
}

#[test]
fn a_server_that_says_nothing_gets_a_pause() {
    let dir = tempfile::tempdir().unwrap();
    let timeouts = Timeouts {
        reply: Duration::from_secs(1),
        batch: Duration::from_secs(3),
        pause: Duration::from_secs(3),
    };
    let (mut client, _thread) = server(dir.path(), timeouts, |mut stream| {
        // Reads everything, one answer for the first of two.
        stream.write_all(b"0 errors\n").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let (outcomes, time) = send(&mut client, 2);
    assert_eq!(outcomes, [Outcome::Taken, Outcome::Lost(libc::ETIMEDOUT)]);
    assert!(
        time >= timeouts.reply && time < timeouts.reply * 5,
        "{time:?}"
    );
    let (outcomes, time) = send(&mut client, 1);
    assert_eq!(outcomes, [Outcome::NotSent]);
    assert!(time < timeouts.reply, "{time:?}");
    thread::sleep(timeouts.pause);
    assert_eq!(send(&mut client, 1).0, [Outcome::Taken]);
}

#[test]
fn a_server_that_trickles_has_an_end_too() {
    let dir = tempfile::tempdir().unwrap();
    let (mut client, _thread) = server(dir.path(), TIMEOUTS, |mut stream| {
        while stream.write_all(b"0 errors\n").is_ok() {
            thread::sleep(Duration::from_millis(50));
        }
    });
    let (outcomes, time) = send(&mut client, 50);
    assert!(time < TIMEOUTS.batch * 4, "{time:?}");
    let taken = outcomes.iter().filter(|o| **o == Outcome::Taken).count();
    assert!((2..20).contains(&taken), "{taken}");
    assert_eq!(outcomes[taken..].len(), 50 - taken);
    assert!(
        outcomes[taken..]
            .iter()
            .all(|o| *o == Outcome::Lost(libc::ETIMEDOUT))
    );
}

#[test]
fn a_server_that_never_accepts() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    // The queue of connections becomes full: `connect` would block.
    let mut others = Vec::new();
    for _ in 0..20 {
        let mut client = Client::new(socket.clone(), TIMEOUTS);
        let (outcomes, time) = send(&mut client, 1);
        assert!(matches!(outcomes[0], Outcome::Lost(_) | Outcome::NotSent));
        assert!(time < Duration::from_secs(5), "{time:?}");
        others.push(client);
    }
}

#[test]
fn a_connection_that_broke_since_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut client, _thread) = server(dir.path(), PATIENT, |stream| {
        // One command a connection.
        let mut reader = BufReader::new(&stream);
        reader.read_line(&mut String::new()).unwrap();
        let _ = (&stream).write_all(b"0 errors\n");
    });
    for _ in 0..5 {
        assert_eq!(send(&mut client, 1).0, [Outcome::Taken]);
    }
    // The second of two is not answered, nor when it is sent again.
    assert!(matches!(
        send(&mut client, 4).0[..],
        [Outcome::Taken, .., Outcome::Lost(_)]
    ));
}

#[test]
fn what_is_not_the_protocol_ends_the_connection() {
    for reply in [&b"hello\n"[..], b"\n", b"0 a\n0 b\n", &[b'x'; 40_000]] {
        let dir = tempfile::tempdir().unwrap();
        let (mut client, _thread) = server(dir.path(), PATIENT, move |mut stream| {
            let _ = stream.write_all(reply);
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let (outcomes, time) = send(&mut client, 1);
        let lost = matches!(outcomes[..], [Outcome::Lost(libc::EPROTO)]);
        assert!(lost || outcomes == [Outcome::Taken], "{outcomes:?}");
        assert!(time < PATIENT.reply, "{time:?}");
    }
}

#[test]
fn a_command_that_is_too_long_is_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (mut client, _thread) = server(dir.path(), PATIENT, |mut stream| {
        stream.write_all(b"0 errors\n0 errors\n").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let long = vec![b'1'; 4095];
    let outcomes = client.update([
        (Path::new("/a"), &b"9:1"[..]),
        (Path::new("/b"), &long),
        (Path::new("/c"), &b"9:1"[..]),
    ]);
    assert_eq!(outcomes, [Outcome::Taken, Outcome::NotSent, Outcome::Taken]);
}
