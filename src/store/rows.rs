//! Values of rows as SQLite gives them, converted as the C daemon's column calls do.
#![forbid(unsafe_code)]

use std::sync::Arc;

use rusqlite::Row;
use rusqlite::types::ValueRef;

use crate::memdb::LoadRow;

/// All columns the daemon knows, in the order [`load_row`] takes them.
pub(super) const SELECT: &str =
    "SELECT inode, parent, version, writer, mtime, type, name, data FROM tree";

/// The current row of a [`SELECT`].
pub(super) fn load_row(row: &Row<'_>) -> rusqlite::Result<LoadRow> {
    // Whether there are so many columns is seen once for all.
    row.get_ref(7)?;
    Ok(row_of(|column| {
        row.get_ref(column).unwrap_or(ValueRef::Null)
    }))
}

/// A row of the values in its columns.
pub(super) fn row_of<'a>(value: impl Fn(usize) -> ValueRef<'a>) -> LoadRow {
    LoadRow {
        inode: integer(value(0)),
        parent: integer(value(1)),
        version: integer(value(2)),
        writer: integer(value(3)),
        mtime: integer(value(4)),
        type_code: integer(value(5)),
        name: bytes(value(6)),
        data: bytes(value(7)),
    }
}

/// A column read as a number: text counts up to its first non-digit.
fn integer(value: ValueRef<'_>) -> i64 {
    match value {
        ValueRef::Integer(number) => number,
        ValueRef::Real(number) => number as i64,
        ValueRef::Text(text) | ValueRef::Blob(text) => leading_number(text),
        ValueRef::Null => 0,
    }
}

fn leading_number(text: &[u8]) -> i64 {
    let text = text.trim_ascii_start();
    let (negative, digits) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, text),
    };
    let number = digits
        .iter()
        .take_while(|b| b.is_ascii_digit())
        .fold(0i64, |sum, b| {
            sum.saturating_mul(10).saturating_add(i64::from(b - b'0'))
        });
    if negative { -number } else { number }
}

/// A column read as bytes.
fn bytes(value: ValueRef<'_>) -> Option<Arc<[u8]>> {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(Arc::from(bytes)),
        ValueRef::Integer(number) => Some(Arc::from(number.to_string().as_bytes())),
        ValueRef::Real(number) => Some(Arc::from(number.to_string().as_bytes())),
        ValueRef::Null => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_sqlite_reads_them() {
        assert_eq!(integer(ValueRef::Text(b"abc")), 0);
        assert_eq!(integer(ValueRef::Text(b" -12x")), -12);
        assert_eq!(integer(ValueRef::Text(b"99999999999999999999")), i64::MAX);
        assert_eq!(integer(ValueRef::Real(2.9)), 2);
        assert_eq!(integer(ValueRef::Null), 0);
    }
}
