//! The client against a service that keeps to the transport, or does not. Needs no daemon and no
//! root; the restart flag is that of the machine, which has none.
#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod server;

use std::ffi::CString;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use ::pmxcfs_client::call::{
    pmxcfs_answer, pmxcfs_answer_free, pmxcfs_call, pmxcfs_client, pmxcfs_client_free,
    pmxcfs_client_new,
};
use server::Behaviour::*;
use server::{Behaviour, MESSAGE, name, serve};

/// A client of the library and its answer.
struct Client {
    client: *mut pmxcfs_client,
    answer: pmxcfs_answer,
}

impl Client {
    fn new(service: &str) -> Self {
        let service = CString::new(service).unwrap();
        // SAFETY: a string.
        let client = unsafe { pmxcfs_client_new(service.as_ptr()) };
        assert!(!client.is_null());
        let answer = pmxcfs_answer {
            data: null_mut(),
            size: 0,
            capacity: 0,
        };
        Self { client, answer }
    }

    fn call(&mut self, op: i32, payload: &[u8]) -> Result<Vec<u8>, i32> {
        let data = payload.as_ptr().cast();
        // SAFETY: client and answer are this value's, the payload is as long as it says.
        match unsafe { pmxcfs_call(self.client, op, data, payload.len(), &mut self.answer) } {
            // SAFETY: the library put `size` bytes there.
            0 => Ok(unsafe {
                std::slice::from_raw_parts(self.answer.data.cast::<u8>(), self.answer.size).to_vec()
            }),
            code => {
                assert_eq!(self.answer.size, 0);
                Err(-code)
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: both are not used any more.
        unsafe {
            pmxcfs_answer_free(&mut self.answer);
            pmxcfs_client_free(self.client);
        }
    }
}

/// What the first call to a service of these connections gives.
fn first_call(behaviours: &[Behaviour]) -> Result<Vec<u8>, i32> {
    let service = name();
    let thread = serve(&service, behaviours);
    let mut client = Client::new(&service);
    let result = client.call(7, b"question");
    drop(client);
    thread.join().unwrap();
    result
}

#[test]
fn messages_of_every_size_around_the_ring() {
    let service = name();
    let thread = serve(&service, &[Echo(usize::MAX)]);
    let mut client = Client::new(&service);
    for round in 0..120usize {
        let size = (round * 1237) % (MESSAGE - 24);
        let payload: Vec<u8> = (0..size).map(|i| (i * 7 + round) as u8).collect();
        let answer = client.call(round as i32, &payload).unwrap();
        assert!(answer == payload, "round {round}, {size} bytes");
    }
    assert_eq!(client.call(1, &vec![0; MESSAGE - 15]), Err(libc::EMSGSIZE));
    assert_eq!(client.call(1, b"still there"), Ok(b"still there".to_vec()));
    drop(client);
    thread.join().unwrap();
}

#[test]
fn nobody_listens() {
    let begin = Instant::now();
    assert_eq!(Client::new(&name()).call(1, b""), Err(libc::ECONNREFUSED));
    assert!(begin.elapsed() < Duration::from_secs(4));
}

#[test]
fn refusals() {
    assert_eq!(first_call(&[Refuse(-libc::EACCES)]), Err(libc::EACCES));
    // what the C daemon says
    assert_eq!(first_call(&[Refuse(1)]), Err(libc::EPERM));
    assert_eq!(first_call(&[Refuse(i32::MIN)]), Err(libc::EPROTO));
    assert_eq!(first_call(&[Small]), Err(libc::EPROTO));
}

#[test]
fn closed_in_the_handshake() {
    assert_eq!(first_call(&[Close, Close]), Err(libc::ECONNRESET));
    assert_eq!(first_call(&[Close, Echo(1)]), Ok(b"question".to_vec()));
}

#[test]
fn hung_up_instead_of_an_answer() {
    let begin = Instant::now();
    assert_eq!(first_call(&[Echo(0), Echo(1)]), Ok(b"question".to_vec()));
    assert_eq!(first_call(&[Echo(0), Echo(0)]), Err(libc::ENOTCONN));
    assert!(begin.elapsed() < Duration::from_secs(4));
}

#[test]
fn answers_that_cannot_be() {
    for behaviour in [OtherId, NoMagic, Larger] {
        let service = name();
        let thread = serve(&service, &[behaviour, behaviour, Echo(1)]);
        let mut client = Client::new(&service);
        assert_eq!(client.call(7, b"x"), Err(libc::EBADMSG), "{behaviour:?}");
        // on another connection
        assert_eq!(client.call(7, b"y"), Ok(b"y".to_vec()), "{behaviour:?}");
        drop(client);
        thread.join().unwrap();
        assert_eq!(first_call(&[behaviour, Echo(1)]), Ok(b"question".to_vec()));
    }
}
