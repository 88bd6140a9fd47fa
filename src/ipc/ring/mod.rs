//! The rings of one connection (ipc-transport.md 6): request and response ring mapped and with
//! private copies of everything the client could lie about; the event ring, which is never used,
//! with its header only.
#![allow(unsafe_code)] // region.rs and sigbus.rs; this file has none

pub mod files;
mod region;
mod sigbus;

/// Shared with the client library.
pub use ipc_layout as layout;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use layout::*;
use region::Region;
use rustix::thread::futex;

/// Smallest message that can be taken: a request header.
const MIN_MESSAGE: u32 = 16;

/// The files of the three rings, in the order request, response, event.
pub struct RingFiles<'a> {
    pub headers: [BorrowedFd<'a>; 3],
    /// Request and response; the event ring's data is never touched by the server.
    pub data: [BorrowedFd<'a>; 2],
}

/// What [`Rings::take`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// No committed chunk.
    Nothing,
    /// The buffer holds a private copy of the message; the chunk is free again.
    Message,
    /// The client does not keep to the protocol: disconnect.
    Broken(&'static str),
}

/// Why [`Rings::put`] wrote nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutError {
    /// Longer than the message size of the connection or than the free space.
    NoSpace,
    /// The client does not keep to the protocol: disconnect.
    Broken(&'static str),
}

/// One ring inside the region.
#[derive(Debug, Clone, Copy)]
struct Place {
    header: usize,
    data: usize,
}

/// Server side of the rings of one connection. Positions and sizes are private copies; the words
/// in shared memory are written for the client's benefit and never read back.
pub struct Rings {
    region: Region,
    /// Largest message in bytes, both directions.
    max_message: u32,
    /// Words of each data file.
    word_size: u32,
    request: Place,
    response: Place,
    event_header: usize,
    request_read: u32,
    response_write: u32,
}

impl Rings {
    /// Maps the files, which must have the sizes of [`layout`] for `max_message` bytes.
    ///
    /// # Errors
    /// What `mmap` says; `ENFILE` when too many connections exist.
    pub fn map(max_message: u32, files: &RingFiles<'_>) -> io::Result<Self> {
        let data = data_bytes(max_message);
        let request = Place {
            header: 0,
            data: HEADER_SPAN,
        };
        let response = Place {
            header: HEADER_SPAN + data,
            data: 2 * HEADER_SPAN + data,
        };
        let event_header = 2 * (HEADER_SPAN + data);
        let mut region = Region::reserve(event_header + HEADER_SPAN)?;
        for (header, file) in [request.header, response.header, event_header]
            .into_iter()
            .zip(files.headers)
        {
            region.map(header, HEADER_SPAN, file)?;
        }
        for (place, file) in [request, response].into_iter().zip(files.data) {
            region.map(place.data, data, file)?;
        }
        Ok(Self {
            region,
            max_message,
            word_size: (data / 4) as u32,
            request,
            response,
            event_header,
            request_read: 0,
            response_write: 0,
        })
    }

    /// Whether a fault was hidden: disconnect, and believe nothing read since the last check.
    pub fn is_dead(&self) -> bool {
        self.region.is_dead()
    }

    /// Whether the request semaphore says that there is a chunk (a hint: the client owns it).
    pub fn has_request(&self) -> bool {
        self.sem_value(self.request) > 0
    }

    /// Whether the words of `ring` that only the server writes still are what it wrote. Nothing
    /// depends on them; a client that changes them is not a client to go on with.
    fn is_tampered(&self, ring: Place, position: usize, own: u32) -> bool {
        let word = |offset| {
            self.region
                .word(ring.header + offset)
                .load(Ordering::Relaxed)
        };
        word(WORD_SIZE) != self.word_size || word(position) != own
    }

    /// Takes the next chunk: copies it once into `message` and gives its place back.
    pub fn take(&mut self, message: &mut Vec<u8>) -> Take {
        if !self.sem_try_wait(self.request) {
            return if self.is_dead() {
                Take::Broken("request ring truncated")
            } else {
                Take::Nothing
            };
        }
        let at = self.request_read;
        if self.is_tampered(self.request, READ_PT, at) {
            return Take::Broken("header of the request ring changed");
        }
        let magic_at = self.data_offset(self.request, advance(at, 1, self.word_size));
        if self.region.word(magic_at).load(Ordering::Acquire) != MAGIC_VALID {
            return Take::Broken("Bad message (74)");
        }
        let length_at = self.data_offset(self.request, at);
        let len = self.region.word(length_at).load(Ordering::Relaxed);
        let limit = self.max_message.min(4 * self.word_size - CHUNK_MARGIN);
        if !(MIN_MESSAGE..=limit).contains(&len) {
            return Take::Broken("length of a request out of range");
        }
        message.clear();
        message.resize(len as usize, 0);
        let body = advance(at, CHUNK_HEADER_WORDS, self.word_size);
        let (first, second) = message.split_at_mut(self.until_wrap(body, len as usize));
        self.region
            .copy_out(self.data_offset(self.request, body), first);
        if !second.is_empty() {
            self.region
                .copy_out(self.data_offset(self.request, 0), second);
        }

        self.request_read = advance(at, chunk_words(len), self.word_size);
        self.region.word(length_at).store(0, Ordering::Relaxed);
        self.region
            .word(magic_at)
            .store(MAGIC_CONSUMED, Ordering::Release);
        self.region
            .word(self.request.header + READ_PT)
            .store(self.request_read, Ordering::Release);
        if self.is_dead() {
            return Take::Broken("request ring truncated");
        }
        Take::Message
    }

    /// Writes one chunk made of `header` and `payload` and wakes the client.
    pub fn put(&mut self, header: &[u8; 24], payload: &[u8]) -> Result<(), PutError> {
        let Some(len) = u32::try_from(header.len() + payload.len())
            .ok()
            .filter(|len| *len <= self.max_message)
        else {
            return Err(PutError::NoSpace);
        };
        let read = self
            .region
            .word(self.response.header + READ_PT)
            .load(Ordering::Acquire);
        if read >= self.word_size {
            return Err(PutError::Broken("read position out of range"));
        }
        let at = self.response_write;
        if self.is_tampered(self.response, WRITE_PT, at) {
            return Err(PutError::Broken("header of the response ring changed"));
        }
        let taken = self.sem_value(self.response) > 0;
        if !fits(free_words(at, read, self.word_size, taken), len) {
            return Err(PutError::NoSpace);
        }

        let length_at = self.data_offset(self.response, at);
        let magic_at = self.data_offset(self.response, advance(at, 1, self.word_size));
        self.region.word(length_at).store(0, Ordering::Relaxed);
        self.region
            .word(magic_at)
            .store(MAGIC_ALLOC, Ordering::Release);
        let body = advance(at, CHUNK_HEADER_WORDS, self.word_size);
        self.write_wrapped(body, header);
        // The header is whole words, so the payload begins on a word.
        self.write_wrapped(
            advance(body, header.len() as u32 / 4, self.word_size),
            payload,
        );
        self.response_write = advance(at, chunk_words(len), self.word_size);
        self.region.word(length_at).store(len, Ordering::Relaxed);
        self.region
            .word(self.response.header + WRITE_PT)
            .store(self.response_write, Ordering::Release);
        self.region
            .word(magic_at)
            .store(MAGIC_VALID, Ordering::Release);
        if self.is_dead() {
            return Err(PutError::Broken("response ring truncated"));
        }
        self.sem_post(self.response);
        Ok(())
    }

    /// Tells the client that the connection is over (its next send fails with ENOTCONN).
    pub fn close(&self) {
        for header in [self.request.header, self.response.header, self.event_header] {
            self.region
                .word(header + REF_COUNT)
                .store(0, Ordering::Release);
        }
    }

    fn data_offset(&self, ring: Place, word: u32) -> usize {
        ring.data + 4 * word as usize
    }

    /// How many of `len` bytes beginning at word `at` come before the end of the data file.
    fn until_wrap(&self, at: u32, len: usize) -> usize {
        len.min(4 * (self.word_size - at) as usize)
    }

    fn write_wrapped(&self, at: u32, bytes: &[u8]) {
        let (first, second) = bytes.split_at(self.until_wrap(at, bytes.len()));
        self.region
            .copy_in(self.data_offset(self.response, at), first);
        if !second.is_empty() {
            self.region
                .copy_in(self.data_offset(self.response, 0), second);
        }
    }

    fn sem_value(&self, ring: Place) -> u32 {
        self.region
            .double(ring.header + SEMAPHORE)
            .load(Ordering::Relaxed) as u32
    }

    /// `sem_trywait`: value and number of waiters are one 64 bit word, value below.
    fn sem_try_wait(&self, ring: Place) -> bool {
        let semaphore = self.region.double(ring.header + SEMAPHORE);
        let mut seen = semaphore.load(Ordering::Relaxed);
        // A client that keeps changing the word must not keep the server here.
        for _ in 0..16 {
            if seen as u32 == 0 {
                return false;
            }
            match semaphore.compare_exchange_weak(
                seen,
                seen - 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// `sem_post`; the system call is only made when somebody waits.
    fn sem_post(&self, ring: Place) {
        let semaphore = self.region.double(ring.header + SEMAPHORE);
        let before = semaphore.fetch_add(1, Ordering::Release);
        if before >> 32 > 0 {
            // Shared futex (no PRIVATE flag): the waiter is another process. A page that is gone
            // gives EFAULT here, which the next access notices.
            let value = self.region.word(ring.header + SEMAPHORE);
            let _ = futex::wake(value, futex::Flags::empty(), 1);
        }
    }
}

#[cfg(test)]
mod tests;
