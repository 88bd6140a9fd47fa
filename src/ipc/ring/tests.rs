use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};

use super::*;
use crate::ipc::handshake::response_header;

/// Smallest data file: one page, so that positions come round quickly.
const SMALL: u32 = 1000;

/// The rings of a connection and, as plain files, the client's side of them.
struct Bench {
    rings: Rings,
    headers: Vec<File>,
    data: Vec<File>,
    write: u32,
    read: u32,
}

impl Bench {
    fn new(max_message: u32) -> Self {
        let bytes = data_bytes(max_message);
        let words = (bytes / 4) as u32;
        let file = |content: &[u8], len: usize| {
            let file = File::from(memfd_create("ring", MemfdFlags::CLOEXEC).unwrap());
            file.set_len(len as u64).unwrap();
            file.write_all_at(content, 0).unwrap();
            file
        };
        let headers: Vec<File> = [REQUEST_HEADER_FILE, OTHER_HEADER_FILE, OTHER_HEADER_FILE]
            .map(|len| file(&header_image(len, words, "/h", "/d"), len))
            .into();
        let data: Vec<File> = [bytes, bytes].map(|len| file(&[], len)).into();
        let files = RingFiles {
            headers: [headers[0].as_fd(), headers[1].as_fd(), headers[2].as_fd()],
            data: [data[0].as_fd(), data[1].as_fd()],
        };
        let rings = Rings::map(max_message, &files).unwrap();
        Self {
            rings,
            headers,
            data,
            write: 0,
            read: 0,
        }
    }

    fn words(&self) -> u32 {
        self.rings.word_size
    }

    fn header(&self, ring: usize, offset: usize) -> u32 {
        let mut word = [0u8; 4];
        self.headers[ring]
            .read_exact_at(&mut word, offset as u64)
            .unwrap();
        u32::from_le_bytes(word)
    }

    fn set_header(&self, ring: usize, offset: usize, value: u32) {
        self.headers[ring]
            .write_all_at(&value.to_le_bytes(), offset as u64)
            .unwrap();
    }

    fn word(&self, ring: usize, index: u32) -> u32 {
        let mut word = [0u8; 4];
        self.data[ring]
            .read_exact_at(&mut word, 4 * u64::from(index))
            .unwrap();
        u32::from_le_bytes(word)
    }

    fn set_word(&self, ring: usize, index: u32, value: u32) {
        self.data[ring]
            .write_all_at(&value.to_le_bytes(), 4 * u64::from(index))
            .unwrap();
    }

    /// The client writes a request, word by word.
    fn request(&mut self, message: &[u8]) {
        let words = self.words();
        let at = self.write;
        self.set_word(0, at, message.len() as u32);
        self.set_word(0, (at + 1) % words, MAGIC_VALID);
        for (index, chunk) in message.chunks(4).enumerate() {
            let mut word = [0xEE; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            self.set_word(0, (at + 2 + index as u32) % words, u32::from_le_bytes(word));
        }
        self.write = (at + 2 + message.len().div_ceil(4) as u32) % words;
        self.set_header(0, WRITE_PT, self.write);
        self.set_header(0, SEMAPHORE, self.header(0, SEMAPHORE) + 1);
    }

    /// The client takes a response, word by word.
    fn response(&mut self) -> Option<Vec<u8>> {
        let words = self.words();
        let posted = self.header(1, SEMAPHORE);
        if posted == 0 {
            return None;
        }
        self.set_header(1, SEMAPHORE, posted - 1);
        let at = self.read;
        assert_eq!(self.word(1, (at + 1) % words), MAGIC_VALID);
        let len = self.word(1, at);
        let mut bytes = Vec::new();
        for index in 0..len.div_ceil(4) {
            bytes.extend(self.word(1, (at + 2 + index) % words).to_le_bytes());
        }
        assert!(
            bytes[len as usize..].iter().all(|b| *b == 0),
            "padding is zero"
        );
        bytes.truncate(len as usize);
        self.read = (at + 2 + len.div_ceil(4)) % words;
        self.set_header(1, READ_PT, self.read);
        Some(bytes)
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

#[test]
fn requests_at_every_position() {
    let mut bench = Bench::new(SMALL);
    let mut message = Vec::new();
    // 2 + 5 words per chunk and 1024 words: seven rounds come by all positions.
    for turn in 0..7 * 1024u32 {
        let sent = pattern(17 + (turn % 4) as usize, turn as u8);
        bench.request(&sent);
        assert_eq!(bench.rings.take(&mut message), Take::Message);
        assert_eq!(message, sent, "turn {turn}");
        assert_eq!(bench.header(0, READ_PT), bench.write);
        assert_eq!(bench.header(0, SEMAPHORE), 0);
        assert_eq!(bench.rings.take(&mut message), Take::Nothing);
    }
}

#[test]
fn a_taken_chunk_is_marked() {
    let mut bench = Bench::new(SMALL);
    bench.request(&pattern(16, 1));
    assert_eq!(bench.rings.take(&mut Vec::new()), Take::Message);
    assert_eq!((bench.word(0, 0), bench.word(0, 1)), (0, MAGIC_CONSUMED));
}

#[test]
fn responses_at_every_position() {
    let mut bench = Bench::new(SMALL);
    for turn in 0..7 * 1024u32 {
        let payload = pattern(1 + (turn % 11) as usize, turn as u8);
        let header = response_header(turn as i32, 24 + payload.len() as u32, 0);
        bench.rings.put(&header, &payload).unwrap();
        assert_eq!(
            bench.response().unwrap(),
            [&header[..], &payload].concat(),
            "turn {turn}"
        );
    }
}

#[test]
fn limits_of_a_response() {
    let header = [0u8; 24];
    let mut bench = Bench::new(SMALL);
    // The agreed size is the limit, although the ring has more room.
    assert_eq!(bench.rings.put(&header, &[1; 977]), Err(PutError::NoSpace));
    for _ in 0..4 {
        bench.rings.put(&header, &[1; 976]).unwrap();
    }
    // 4 * 252 of 1024 words are taken; a response without payload takes 8 and one stays free.
    bench.rings.put(&header, &[]).unwrap();
    assert_eq!(bench.rings.put(&header, &[]), Err(PutError::NoSpace));
    for _ in 0..5 {
        bench.response().unwrap();
    }
    assert_eq!(bench.response(), None);
    bench.rings.put(&header, &[1; 976]).unwrap();
}

#[test]
fn lies_in_the_headers() {
    let header = [0u8; 24];
    for (ring, offset) in [(0, WORD_SIZE), (0, READ_PT), (1, WORD_SIZE), (1, WRITE_PT)] {
        for value in [12, 0x7fff_ffff, u32::MAX] {
            let mut bench = Bench::new(SMALL);
            bench.request(&pattern(16, 0));
            bench.set_header(ring, offset, value);
            let taken = bench.rings.take(&mut Vec::new());
            let put = bench.rings.put(&header, &[]);
            assert_eq!(matches!(taken, Take::Broken(_)), ring == 0);
            assert_eq!(matches!(put, Err(PutError::Broken(_))), ring == 1);
        }
    }
    for value in [1024, 0x7fff_ffff, u32::MAX] {
        let mut bench = Bench::new(SMALL);
        bench.set_header(1, READ_PT, value);
        assert!(matches!(
            bench.rings.put(&header, &[]),
            Err(PutError::Broken(_))
        ));
    }
}

#[test]
fn lies_in_the_chunks() {
    for (len, good) in [
        (15, false),
        (16, true),
        (1000, true),
        (1001, false),
        (u32::MAX, false),
    ] {
        let mut bench = Bench::new(SMALL);
        bench.request(&pattern(16, 0));
        bench.set_word(0, 0, len);
        let taken = bench.rings.take(&mut Vec::new());
        assert_eq!(taken == Take::Message, good, "{len}");
    }
    for magic in [0, MAGIC_ALLOC, MAGIC_CONSUMED] {
        let mut bench = Bench::new(SMALL);
        bench.request(&pattern(16, 0));
        bench.set_word(0, 1, magic);
        assert_eq!(
            bench.rings.take(&mut Vec::new()),
            Take::Broken("Bad message (74)")
        );
    }
}

#[test]
fn closing_resets_the_reference_counts() {
    let bench = Bench::new(SMALL);
    assert_eq!([0, 1, 2].map(|ring| bench.header(ring, REF_COUNT)), [1; 3]);
    bench.rings.close();
    assert_eq!([0, 1, 2].map(|ring| bench.header(ring, REF_COUNT)), [0; 3]);
}

#[test]
fn truncated_files_are_survived() {
    for (file, len) in [(0, 0), (0, 4096), (1, 0), (2, 0), (2, 4096), (3, 0)] {
        let mut bench = Bench::new(SMALL);
        bench.request(&pattern(100, 0));
        let files = [
            &bench.headers[0],
            &bench.data[0],
            &bench.headers[1],
            &bench.data[1],
        ];
        files[file].set_len(len).unwrap();
        let taken = bench.rings.take(&mut Vec::new());
        assert_eq!(matches!(taken, Take::Broken(_)), file < 2, "file {file}");
        let put = bench.rings.put(&[0; 24], &[]);
        assert!(
            file < 2 || matches!(put, Err(PutError::Broken(_))),
            "file {file}"
        );
        assert!(bench.rings.is_dead());
        bench.rings.close();
    }
    // The table takes new regions, which are not dead.
    assert!(!Bench::new(SMALL).rings.is_dead());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any sequence of requests and responses, several in the ring at a time, comes out as it went
    /// in, or is refused for want of space exactly when the formula says so.
    #[test]
    fn both_rings_against_a_queue(
        steps in prop::collection::vec((16usize..=1000, 0usize..=976, 0u8..4), 1..200),
    ) {
        let mut bench = Bench::new(SMALL);
        let mut requests = std::collections::VecDeque::new();
        let mut responses = std::collections::VecDeque::new();
        let mut message = Vec::new();
        for (turn, (request, payload, take)) in steps.into_iter().enumerate() {
            let used: usize = requests.iter().map(|m: &Vec<u8>| 2 + m.len().div_ceil(4)).sum();
            if used + 3 + request.div_ceil(4) < 1024 {
                let sent = pattern(request, turn as u8);
                bench.request(&sent);
                requests.push_back(sent);
            }
            let header = response_header(1, 24 + payload as u32, 0);
            let body = pattern(payload, turn as u8);
            let used: usize = responses.iter().map(|m: &Vec<u8>| 2 + m.len().div_ceil(4)).sum();
            let free = if responses.is_empty() { 1024 } else { 1024 - used - 1 };
            let room = 4 * free >= 24 + payload + 12;
            prop_assert_eq!(bench.rings.put(&header, &body).is_ok(), room);
            if room {
                responses.push_back([&header[..], &body].concat());
            }
            for _ in 0..take {
                if let Some(expected) = requests.pop_front() {
                    prop_assert_eq!(bench.rings.take(&mut message), Take::Message);
                    prop_assert_eq!(&message, &expected);
                } else {
                    prop_assert_eq!(bench.rings.take(&mut message), Take::Nothing);
                }
                prop_assert_eq!(bench.response(), responses.pop_front());
            }
        }
    }
}
