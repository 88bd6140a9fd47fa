//! Pieces of JSON text, byte for byte as clients of the C daemon know them.
//!
//! Every function appends to `out` and leaves valid JSON (valid UTF-8 included) whatever the input.
#![forbid(unsafe_code)]

/// Appends a decimal number.
pub fn push_u64(out: &mut Vec<u8>, mut value: u64) {
    // 2^64 - 1 has 20 digits.
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        // A digit always fits a byte.
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Stands for bytes that are not UTF-8: U+FFFD.
const BROKEN: &[u8] = "\u{fffd}".as_bytes();
/// Bytes escaped at a time before the length is looked at.
const PART: usize = 4096;

/// Appends the inside of a JSON string: `"` and `\` get a backslash, bytes below 0x20 become
/// `\u00XX`, broken UTF-8 becomes U+FFFD, everything else stays raw.
pub fn push_escaped(out: &mut Vec<u8>, text: &[u8]) {
    push_escaped_within(out, text, usize::MAX);
}

/// As [`push_escaped`], but stops when `out` gets longer than `limit`, and tells so: false. What it
/// has appended by then is of no use; it goes past the limit by some kilobytes at most.
pub fn push_escaped_within(out: &mut Vec<u8>, text: &[u8], limit: usize) -> bool {
    for chunk in text.utf8_chunks() {
        // Only ASCII is escaped: characters may be cut in two here.
        for part in chunk.valid().as_bytes().chunks(PART) {
            push_escaped_part(out, part);
            if out.len() > limit {
                return false;
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice(BROKEN);
        }
        if out.len() > limit {
            return false;
        }
    }
    true
}

fn push_escaped_part(out: &mut Vec<u8>, part: &[u8]) {
    let mut clean = 0;
    for (i, &byte) in part.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&part[clean..i]);
        push_escaped_byte(out, byte);
        clean = i + 1;
    }
    out.extend_from_slice(&part[clean..]);
}

/// Appends the inside of a JSON string for text that may hold JSON escapes already: a cluster log
/// message, ident or tag (status.md 10.3).
///
/// Valid JSON escapes stay as they are: PVE's own senders write `\u00e4` and rely on it reaching
/// the client unescaped. A backslash that starts no escape, a bare `"`, a control byte and half a
/// surrogate pair (which JSON decoders refuse, too) are escaped.
pub fn push_preescaped(out: &mut Vec<u8>, text: &[u8]) {
    for chunk in text.utf8_chunks() {
        push_preescaped_part(out, chunk.valid().as_bytes());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice(BROKEN);
        }
    }
}

fn push_preescaped_part(out: &mut Vec<u8>, part: &[u8]) {
    let mut i = 0;
    while i < part.len() {
        let len = if part[i] == b'\\' {
            escape_len(&part[i..])
        } else {
            0
        };
        if len > 0 {
            out.extend_from_slice(&part[i..i + len]);
            i += len;
            continue;
        }
        let byte = part[i];
        if byte < 0x20 || byte == b'"' || byte == b'\\' {
            push_escaped_byte(out, byte);
        } else {
            out.push(byte);
        }
        i += 1;
    }
}

fn push_escaped_byte(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    if byte == b'"' || byte == b'\\' {
        out.extend_from_slice(&[b'\\', byte]);
    } else {
        out.extend_from_slice(b"\\u00");
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
}

/// Length of the complete JSON escape at the start of `text` (which starts with a backslash);
/// 0 if it is none.
fn escape_len(text: &[u8]) -> usize {
    match text.get(1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
        Some(b'u') => match code_unit(text) {
            Some(0xd800..=0xdbff) => match text.get(6..).and_then(code_unit) {
                Some(0xdc00..=0xdfff) => 12,
                _ => 0,
            },
            Some(0xdc00..=0xdfff) | None => 0,
            Some(_) => 6,
        },
        _ => 0,
    }
}

/// The value of `\uXXXX` at the start of `text`.
fn code_unit(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0u16, |value, byte| {
        let digit = char::from(*byte).to_digit(16)?;
        // A hexadecimal digit fits.
        Some(value << 4 | digit as u16)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn escaped(text: &[u8]) -> String {
        let mut out = Vec::new();
        push_escaped(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    fn preescaped(text: &[u8]) -> String {
        let mut out = Vec::new();
        push_preescaped(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers() {
        for value in [0, 7, 10, 4_294_967_295, u64::MAX] {
            let mut out = Vec::new();
            push_u64(&mut out, value);
            assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }
    }

    #[test]
    fn plain_text_is_escaped() {
        assert_eq!(
            escaped(b"a\"b\\c\td\x1f\x7f"),
            "a\\\"b\\\\c\\u0009d\\u001f\x7f"
        );
        assert_eq!(escaped(b"\xc3\xa4 \xff!"), "\u{e4} \u{fffd}!");
    }

    #[test]
    fn escapes_of_senders_survive() {
        for text in [
            "\\u00e4",
            "\\\"quoted\\\"",
            "a\\\\b",
            "\\n\\/",
            "\\ud83d\\ude00",
            "\u{e4}",
        ] {
            assert_eq!(preescaped(text.as_bytes()), text);
        }
    }

    #[test]
    fn what_no_parser_took_is_escaped() {
        assert_eq!(preescaped(b"back\\slash"), "back\\\\slash");
        assert_eq!(preescaped(b"end\\"), "end\\\\");
        assert_eq!(preescaped(b"\\u12"), "\\\\u12");
        assert_eq!(preescaped(b"\\ud800x"), "\\\\ud800x");
        assert_eq!(preescaped(b"\\udc00"), "\\\\udc00");
        // A sender's backslash before a quote: the daemon stores `\\"`.
        assert_eq!(preescaped(b"\\\\\"x"), "\\\\\\\"x");
    }

    proptest! {
        #[test]
        fn always_valid_json(text: Vec<u8>) {
            for inside in [escaped(&text), preescaped(&text)] {
                serde_json::from_str::<String>(&format!("\"{inside}\"")).unwrap();
            }
        }

        #[test]
        fn escapes_in_any_order(parts in prop::collection::vec("\\\\|\"|u|[0-9a-fA-F]{4}|n|d8|.", 0..12)) {
            let text: String = parts.concat();
            let inside = preescaped(text.as_bytes());
            serde_json::from_str::<String>(&format!("\"{inside}\"")).unwrap();
            if serde_json::from_str::<String>(&format!("\"{text}\"")).is_ok() {
                prop_assert_eq!(inside, text);
            }
        }

        #[test]
        fn a_limit_only_cuts(text in prop::collection::vec(any::<u8>(), 0..20_000), limit in 0usize..20_000) {
            let mut out = Vec::new();
            let whole = escaped(&text);
            let fits = push_escaped_within(&mut out, &text, limit);
            prop_assert!(whole.as_bytes().starts_with(&out));
            prop_assert_eq!(fits, whole.len() <= limit);
            prop_assert!(out.len() <= limit + 6 * PART + 3);
        }

        #[test]
        fn plain_text_round_trips(text: String) {
            let inside = escaped(text.as_bytes());
            prop_assert_eq!(serde_json::from_str::<String>(&format!("\"{inside}\"")).unwrap(), text);
        }
    }
}
