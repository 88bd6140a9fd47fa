//! SQLite's file format, read without SQLite: from files that SQLite refuses, or before it is let
//! at them.
//!
//! Nothing in here may look at a database that this process has open by SQLite: closing a file
//! takes all POSIX locks of the process off it (module `store`).
#![forbid(unsafe_code)]

mod log;
mod pages;
mod record;
#[cfg(test)]
mod tests;
mod walk;

pub(super) use log::{Log, belongs, is_log_header};
pub(super) use pages::{Pages, beside};
pub(super) use record::record;
pub(super) use walk::{Cell, Walk};

/// Big-endian number of 4 bytes; 0 where there are none.
fn be32(bytes: &[u8], at: usize) -> u32 {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
        _ => 0,
    }
}

/// Big-endian number of 2 bytes; 0 where there are none.
fn be16(bytes: &[u8], at: usize) -> usize {
    match bytes.get(at..at + 2) {
        Some(&[a, b]) => usize::from(u16::from_be_bytes([a, b])),
        _ => 0,
    }
}

/// SQLite's number of 1 to 9 bytes at `at`, and where it ends.
fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value: u64 = 0;
    for (index, &byte) in bytes.get(at..)?.iter().take(9).enumerate() {
        if index == 8 {
            return Some((value << 8 | u64::from(byte), at + 9));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte < 0x80 {
            return Some((value, at + index + 1));
        }
    }
    None
}
