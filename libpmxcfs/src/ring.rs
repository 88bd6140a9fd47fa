//! The two rings of a connection, client side (ipc-transport.md 6): requests are written, answers
//! read.
//!
//! The other side is the daemon, to which these files belong and which is trusted not to change
//! what it has committed; lengths and positions are checked all the same, so that nothing outside
//! of the mappings is touched.

use std::mem::MaybeUninit;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use ipc_layout::*;
use rustix::fs::{CWD, FallocateFlags, FileType, Mode, OFlags, fallocate, fstat, openat};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::thread::{futex, sched_yield};
use rustix::time::Timespec;

/// Value of the reference counter while both sides use a ring.
const BOTH: u32 = 2;

/// A file of the daemon in memory, shared.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread; its owner is used by one thread at a time.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a file that must have `least` of them.
    fn open(path: &Path, least: usize, len: usize) -> Result<Self, Errno> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(CWD, path, flags, Mode::empty())?;
        let stat = fstat(&file)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || size < least as u64 {
            return Err(Errno::PROTO);
        }
        // A full /dev/shm is an error here, and not a SIGBUS in the middle of a request.
        fallocate(&file, FallocateFlags::empty(), 0, least as u64)?;
        // SAFETY: a new mapping at an address chosen by the kernel replaces nothing.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, len })
    }

    fn check(&self, offset: usize, len: usize) {
        let inside = offset <= self.len && len <= self.len - offset;
        assert!(inside, "access outside of the mapping");
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        self.check(offset, 4);
        assert!(offset % 4 == 0, "unaligned word");
        // SAFETY: inside of the mapping and aligned (its base is a page) as just checked, mapped
        // as long as self lives, backed by the file's pages. The daemon uses it as an atomic, too.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    fn double(&self, offset: usize) -> &AtomicU64 {
        self.check(offset, 8);
        assert!(offset % 8 == 0, "unaligned double word");
        // SAFETY: as in `word`, with 8 bytes and 8 byte alignment.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    fn copy_in(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        // SAFETY: the target is inside of the mapping as just checked; `bytes` is private memory.
        // The place is free: the daemon reads it only after the semaphore says so.
        unsafe {
            let target = self.base.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        }
    }

    fn copy_out(&self, offset: usize, out: &mut [MaybeUninit<u8>]) {
        self.check(offset, out.len());
        // SAFETY: the source is inside of the mapping as just checked; `out` is private memory.
        // The daemon has committed these bytes and leaves them alone until they are given back.
        unsafe {
            let source = self.base.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(source, out.as_mut_ptr().cast(), out.len());
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `open` mapped; references into it borrow self and have ended.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// One ring.
struct Ring {
    header: Mapping,
    data: Mapping,
    word_size: u32,
    /// Position of this side: where it writes or reads next.
    at: u32,
}

impl Ring {
    /// Maps the ring whose files begin with `prefix` and counts itself as its user.
    fn open(prefix: &str, max_message: u32, header_len: usize) -> Result<Self, Errno> {
        let data_len = data_bytes(max_message);
        let file = |part: &str| format!("{prefix}-{part}");
        let header = Mapping::open(file("header").as_ref(), header_len, HEADER_SPAN)?;
        let data = Mapping::open(file("data").as_ref(), data_len, data_len)?;
        let word_size = (data_len / 4) as u32;
        if header.word(WORD_SIZE).load(Ordering::Acquire) != word_size {
            return Err(Errno::PROTO);
        }
        header.word(REF_COUNT).fetch_add(1, Ordering::AcqRel);
        Ok(Self {
            header,
            data,
            word_size,
            at: 0,
        })
    }

    /// Whether the daemon still uses the ring, too.
    fn is_shared(&self) -> bool {
        self.header.word(REF_COUNT).load(Ordering::Acquire) == BOTH
    }

    fn data_word(&self, index: u32) -> &AtomicU32 {
        self.data.word(4 * index as usize)
    }

    /// How many of `len` bytes that begin at word `at` come before the end of the data file.
    fn until_wrap(&self, at: u32, len: usize) -> usize {
        len.min(4 * (self.word_size - at) as usize)
    }

    fn write(&self, at: u32, bytes: &[u8]) {
        let (first, second) = bytes.split_at(self.until_wrap(at, bytes.len()));
        self.data.copy_in(4 * at as usize, first);
        self.data.copy_in(0, second);
    }

    fn read(&self, at: u32, out: &mut [MaybeUninit<u8>]) {
        let (first, second) = out.split_at_mut(self.until_wrap(at, out.len()));
        self.data.copy_out(4 * at as usize, first);
        self.data.copy_out(0, second);
    }

    fn semaphore(&self) -> &AtomicU64 {
        self.header.double(SEMAPHORE)
    }
}

/// The ring this side writes.
pub struct Requests(Ring);

impl Requests {
    /// Maps the ring for messages of up to `max_message` bytes.
    ///
    /// # Errors
    /// Of the system calls; `EPROTO` for files of another size; `ENOSPC` when `/dev/shm` is full.
    pub fn open(prefix: &str, max_message: u32) -> Result<Self, Errno> {
        // The reference makes it 4 bytes longer; what is there is not used.
        Ring::open(prefix, max_message, OTHER_HEADER_FILE).map(Self)
    }

    /// Whether the daemon has not closed the connection.
    pub fn is_shared(&self) -> bool {
        self.0.is_shared()
    }

    /// Commits one message made of `header` (whole words) and `payload`.
    ///
    /// # Errors
    /// `EAGAIN` without space for it; `EPROTO` for a read position that cannot be.
    pub fn put(&mut self, header: &[u8; 16], payload: &[u8]) -> Result<(), Errno> {
        let ring = &mut self.0;
        let len = u32::try_from(header.len() + payload.len()).map_err(|_| Errno::MSGSIZE)?;
        let read = ring.header.word(READ_PT).load(Ordering::Acquire);
        if read >= ring.word_size {
            return Err(Errno::PROTO);
        }
        let at = ring.at;
        let taken = ring.semaphore().load(Ordering::Relaxed) as u32 > 0;
        if !fits(free_words(at, read, ring.word_size, taken), len) {
            return Err(Errno::AGAIN);
        }
        let size = ring.word_size;
        let magic = ring.data_word(advance(at, 1, size));
        ring.data_word(at).store(0, Ordering::Relaxed);
        magic.store(MAGIC_ALLOC, Ordering::Release);
        let body = advance(at, CHUNK_HEADER_WORDS, size);
        ring.write(body, header);
        ring.write(advance(body, header.len() as u32 / 4, size), payload);
        let next = advance(at, chunk_words(len), size);
        ring.data_word(at).store(len, Ordering::Relaxed);
        ring.header.word(WRITE_PT).store(next, Ordering::Release);
        magic.store(MAGIC_VALID, Ordering::Release);
        ring.at = next;
        let before = self.0.semaphore().fetch_add(1, Ordering::Release);
        if before >> 32 > 0 {
            let value = self.0.header.word(SEMAPHORE);
            let _ = futex::wake(value, futex::Flags::empty(), 1);
        }
        Ok(())
    }
}

/// What [`Responses::wait`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// There is an answer, to be taken now.
    Ready,
    /// Not until now.
    Nothing,
    /// A signal came.
    Interrupted,
}

/// Size and first bytes of an answer that stands in the ring.
#[derive(Debug, Clone, Copy)]
pub struct Chunk {
    /// Response header.
    pub header: [u8; HEADER],
    /// Bytes behind it.
    pub payload: usize,
    body: u32,
}

const HEADER: usize = 24;
/// How often others are let go first before this side sleeps: some microseconds in all.
const YIELDS: u32 = 16;

/// The ring this side reads.
pub struct Responses(Ring);

impl Responses {
    /// As [`Requests::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(prefix: &str, max_message: u32) -> Result<Self, Errno> {
        Ring::open(prefix, max_message, OTHER_HEADER_FILE).map(Self)
    }

    /// Waits for an answer, for at most `limit`.
    pub fn wait(&self, limit: Duration) -> Wait {
        // Most answers come within the time it takes to fall asleep and be woken.
        for _ in 0..YIELDS {
            if self.try_wait(0) {
                return Wait::Ready;
            }
            sched_yield();
        }
        let semaphore = self.0.semaphore();
        // The daemon wakes only those who are counted; counting comes before looking again.
        let waiter = 1u64 << 32;
        if semaphore.fetch_add(waiter, Ordering::SeqCst) as u32 > 0 && self.try_wait(waiter) {
            return Wait::Ready;
        }
        let timeout = Timespec {
            tv_sec: limit.as_secs() as i64,
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        let value = self.0.header.word(SEMAPHORE);
        // Shared (no PRIVATE flag): whoever wakes is another process.
        let slept = futex::wait(value, futex::Flags::empty(), 0, Some(&timeout));
        if self.try_wait(waiter) {
            return Wait::Ready;
        }
        semaphore.fetch_sub(waiter, Ordering::Relaxed);
        if slept == Err(Errno::INTR) {
            Wait::Interrupted
        } else {
            Wait::Nothing
        }
    }

    /// `sem_trywait`, which also takes `waiters` out of the upper half.
    fn try_wait(&self, waiters: u64) -> bool {
        let take = |seen: u64| (seen as u32 > 0).then(|| seen.wrapping_sub(1 + waiters));
        self.0
            .semaphore()
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, take)
            .is_ok()
    }

    /// The answer that [`Responses::wait`] found.
    ///
    /// # Errors
    /// `EBADMSG` when there is none, or one that cannot be.
    pub fn peek(&self) -> Result<Chunk, Errno> {
        let ring = &self.0;
        let magic = ring.data_word(advance(ring.at, 1, ring.word_size));
        if magic.load(Ordering::Acquire) != MAGIC_VALID {
            return Err(Errno::BADMSG);
        }
        let len = ring.data_word(ring.at).load(Ordering::Relaxed);
        if (len as usize) < HEADER || len > 4 * ring.word_size - CHUNK_MARGIN {
            return Err(Errno::BADMSG);
        }
        let body = advance(ring.at, CHUNK_HEADER_WORDS, ring.word_size);
        let mut header = [0u8; HEADER];
        for (index, word) in header.chunks_exact_mut(4).enumerate() {
            let at = advance(body, index as u32, ring.word_size);
            word.copy_from_slice(&ring.data_word(at).load(Ordering::Relaxed).to_ne_bytes());
        }
        Ok(Chunk {
            header,
            payload: len as usize - HEADER,
            body: advance(body, HEADER as u32 / 4, ring.word_size),
        })
    }

    /// Copies the payload of `chunk`, filling `out`, which is as long.
    pub fn copy(&self, chunk: &Chunk, out: &mut [MaybeUninit<u8>]) {
        self.0.read(chunk.body, &mut out[..chunk.payload]);
    }

    /// Gives the place of `chunk` back.
    pub fn done(&mut self, chunk: &Chunk) {
        let ring = &mut self.0;
        let words = chunk_words((chunk.payload + HEADER) as u32);
        let next = advance(ring.at, words, ring.word_size);
        let magic = ring.data_word(advance(ring.at, 1, ring.word_size));
        ring.data_word(ring.at).store(0, Ordering::Relaxed);
        magic.store(MAGIC_CONSUMED, Ordering::Release);
        ring.header.word(READ_PT).store(next, Ordering::Release);
        ring.at = next;
    }
}
