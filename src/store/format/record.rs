//! A row as SQLite stores it.
#![forbid(unsafe_code)]

use rusqlite::types::ValueRef;

use super::varint;

/// The values of a record, and whether all of it is there: where the bytes end early, so does the
/// last value. `None`: this is no record.
pub(in crate::store) fn record(bytes: &[u8]) -> Option<(Vec<ValueRef<'_>>, bool)> {
    let (header, mut at) = varint(bytes, 0)?;
    let header = usize::try_from(header)
        .ok()
        .filter(|len| *len <= bytes.len())?;
    let mut rest = &bytes[header..];
    let mut values = Vec::new();
    let mut complete = true;
    while at < header {
        let (serial, next) = varint(&bytes[..header], at)?;
        at = next;
        let length = match serial {
            0 | 8 | 9 => 0,
            1..=4 => serial as usize,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return None,
            _ => usize::try_from((serial - 12) / 2).ok()?,
        };
        let value = match rest.get(..length) {
            Some(value) => value,
            None if serial >= 12 => {
                complete = false;
                rest
            }
            None => return None,
        };
        rest = &rest[value.len()..];
        values.push(match serial {
            0 => ValueRef::Null,
            7 => ValueRef::Real(f64::from_bits(integer(value) as u64)),
            8 | 9 => ValueRef::Integer(serial as i64 - 8),
            1..=6 => ValueRef::Integer(integer(value)),
            _ if serial % 2 == 0 => ValueRef::Blob(value),
            _ => ValueRef::Text(value),
        });
    }
    (at == header).then_some((values, complete))
}

/// Big-endian, with sign.
fn integer(bytes: &[u8]) -> i64 {
    let sign = if bytes.first().is_some_and(|first| *first >= 0x80) {
        -1
    } else {
        0
    };
    bytes
        .iter()
        .fold(sign, |value, byte| value << 8 | i64::from(*byte))
}
