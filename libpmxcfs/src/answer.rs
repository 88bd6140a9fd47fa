//! Memory of answers.
#![allow(non_camel_case_types)] // names of C

use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;

use crate::link::Place;

/// Payload of an answer. Begin with all zero; it may be used for any number of calls, which
/// overwrite it, and is freed by pmxcfs_answer_free. After an error the content is empty.
#[repr(C)]
#[derive(Debug)]
pub struct pmxcfs_answer {
    /// `size` bytes and a NUL behind them; NULL before the first call.
    pub data: *mut c_char,
    /// Bytes of the payload, without that NUL.
    pub size: usize,
    /// Bytes allocated; not to be changed.
    pub capacity: usize,
}

impl pmxcfs_answer {
    /// Makes it empty.
    pub(crate) fn clear(&mut self) {
        self.size = 0;
        if self.capacity > 0 && !self.data.is_null() {
            // SAFETY: at least one byte is allocated, as `reserve` and the caller say.
            unsafe { self.data.write(0) };
        }
    }

    /// Makes space for `size` bytes and a NUL; false without memory.
    fn reserve(&mut self, size: usize) -> bool {
        let Some(need) = size.checked_add(1) else {
            return false;
        };
        if !self.data.is_null() && self.capacity >= need {
            return true;
        }
        // SAFETY: `data` is NULL or came from realloc here and was not freed since.
        let data = unsafe { libc::realloc(self.data.cast(), need) };
        if data.is_null() {
            return false;
        }
        self.data = data.cast();
        self.capacity = need;
        true
    }

    /// Gives the memory back.
    pub(crate) fn free(&mut self) {
        // SAFETY: as in `reserve`; the pointer is forgotten.
        unsafe { libc::free(self.data.cast()) };
        self.data = null_mut();
        self.size = 0;
        self.capacity = 0;
    }

    /// An answer without payload is an empty string, too.
    pub(crate) fn finish(&mut self) {
        if self.data.is_null() && self.reserve(0) {
            self.clear();
        }
    }
}

impl Place for pmxcfs_answer {
    fn place(&mut self, len: usize) -> Option<&mut [MaybeUninit<u8>]> {
        if !self.reserve(len) {
            return None;
        }
        self.size = len;
        let data = self.data.cast::<MaybeUninit<u8>>();
        // SAFETY: `reserve` made len + 1 bytes, which belong to self alone.
        unsafe {
            data.add(len).write(MaybeUninit::new(0));
            Some(std::slice::from_raw_parts_mut(data, len))
        }
    }
}

/// Called once with the size of an answer (never 0); gives the memory it is copied to, or NULL.
/// It must return, and must not call the library.
pub type pmxcfs_place = Option<unsafe extern "C" fn(size: usize, arg: *mut c_void) -> *mut c_void>;

/// A place the caller of the library has.
pub(crate) struct Foreign {
    pub place: pmxcfs_place,
    pub arg: *mut c_void,
}

impl Place for Foreign {
    fn place(&mut self, len: usize) -> Option<&mut [MaybeUninit<u8>]> {
        // SAFETY: the caller of the library vouches for the function and its argument.
        let data = unsafe { self.place?(len, self.arg) };
        if data.is_null() {
            return None;
        }
        // SAFETY: the function promises memory for `len` bytes that nobody uses meanwhile.
        Some(unsafe { std::slice::from_raw_parts_mut(data.cast(), len) })
    }
}

/// For answers nobody wants.
#[derive(Default)]
pub(crate) struct Unwanted(Vec<u8>);

impl Place for Unwanted {
    fn place(&mut self, len: usize) -> Option<&mut [MaybeUninit<u8>]> {
        self.0.clear();
        self.0.reserve(len);
        self.0.spare_capacity_mut().get_mut(..len)
    }
}
