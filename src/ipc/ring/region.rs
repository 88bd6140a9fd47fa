//! Address space of one connection: the mapped ring files behind one another. All access to
//! shared memory of the transport goes through here.
//!
//! The other side can change every byte at any time. Therefore no reference to plain memory is
//! ever made: single words are atomics, copies go word by word through relaxed atomics.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::layout::PAGE;
use super::sigbus::Registration;

/// Reserved address range; files are mapped into it with [`Region::map`].
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    /// `None` only while dropping.
    registration: Option<Registration>,
}

// SAFETY: the region owns its mapping, which belongs to no thread, and all access is atomic.
unsafe impl Send for Region {}

impl Region {
    /// Reserves `len` bytes (whole pages) without access rights.
    pub fn reserve(len: usize) -> io::Result<Self> {
        assert!(
            len > 0 && len % PAGE == 0,
            "a region is made of whole pages"
        );
        // SAFETY: a new private mapping at an address chosen by the kernel touches nothing.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        match Registration::new(base.as_ptr() as usize, len) {
            Ok(registration) => Ok(Self {
                base,
                len,
                registration: Some(registration),
            }),
            Err(error) => {
                // SAFETY: exactly the mapping made above; nothing refers to it yet.
                let _ = unsafe { munmap(base.as_ptr().cast(), len) };
                Err(error)
            }
        }
    }

    /// Maps the first `len` bytes of `file` shared at `offset`; both are whole pages.
    pub fn map(&mut self, offset: usize, len: usize, file: BorrowedFd<'_>) -> io::Result<()> {
        assert!(
            offset % PAGE == 0 && len % PAGE == 0,
            "files are mapped in whole pages"
        );
        self.check(offset, len);
        // SAFETY: offset..offset + len lies inside the range this region reserved and owns, so
        // MAP_FIXED replaces nothing else; `&mut self` excludes references into it.
        unsafe {
            mmap(
                self.base.as_ptr().add(offset).cast(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED,
                file,
                0,
            )
        }?;
        Ok(())
    }

    /// Whether the client has truncated a file under the server's access.
    pub fn is_dead(&self) -> bool {
        self.registration.as_ref().is_none_or(Registration::is_dead)
    }

    /// The word at `offset` bytes.
    pub fn word(&self, offset: usize) -> &AtomicU32 {
        self.check(offset, 4);
        assert!(offset % 4 == 0, "unaligned word");
        // SAFETY: in bounds and aligned (the base is page aligned) as just checked, mapped for
        // the life of self. Other processes change it, which an atomic permits; a missing page
        // is replaced by the SIGBUS handler.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// The double word at `offset` bytes.
    pub fn double(&self, offset: usize) -> &AtomicU64 {
        self.check(offset, 8);
        assert!(offset % 8 == 0, "unaligned double word");
        // SAFETY: as in `word`, with 8 bytes and 8 byte alignment.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Copies from `offset` (a multiple of 4) into private memory; reads whole words.
    pub fn copy_out(&self, offset: usize, out: &mut [u8]) {
        self.check(offset, out.len().next_multiple_of(4));
        let lead = if offset % 8 == 4 { out.len().min(4) } else { 0 };
        let (head, rest) = out.split_at_mut(lead);
        if lead > 0 {
            head.copy_from_slice(&self.load(offset)[..lead]);
        }
        let mut at = offset + lead;
        let mut doubles = rest.chunks_exact_mut(8);
        for double in &mut doubles {
            let value = self.double(at).load(Ordering::Relaxed);
            double.copy_from_slice(&value.to_ne_bytes());
            at += 8;
        }
        for tail in doubles.into_remainder().chunks_mut(4) {
            tail.copy_from_slice(&self.load(at)[..tail.len()]);
            at += 4;
        }
    }

    /// Copies to `offset` (a multiple of 4); writes whole words, filled up with zeros.
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len().next_multiple_of(4));
        let lead = if offset % 8 == 4 {
            bytes.len().min(4)
        } else {
            0
        };
        let (head, rest) = bytes.split_at(lead);
        if lead > 0 {
            self.store(offset, head);
        }
        let mut at = offset + lead;
        let mut doubles = rest.chunks_exact(8);
        for double in &mut doubles {
            let mut value = [0u8; 8];
            value.copy_from_slice(double);
            self.double(at)
                .store(u64::from_ne_bytes(value), Ordering::Relaxed);
            at += 8;
        }
        for tail in doubles.remainder().chunks(4) {
            self.store(at, tail);
            at += 4;
        }
    }

    fn load(&self, offset: usize) -> [u8; 4] {
        self.word(offset).load(Ordering::Relaxed).to_ne_bytes()
    }

    fn store(&self, offset: usize, bytes: &[u8]) {
        let mut value = [0u8; 4];
        value[..bytes.len()].copy_from_slice(bytes);
        self.word(offset)
            .store(u32::from_ne_bytes(value), Ordering::Relaxed);
    }

    fn check(&self, offset: usize, len: usize) {
        let inside = offset <= self.len && len <= self.len - offset;
        assert!(inside, "access outside of the region");
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // First out of the table, so that the handler never touches a range that is not ours.
        self.registration = None;
        // SAFETY: the whole range reserved in `reserve`; references into it borrow self and so
        // have ended.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}
