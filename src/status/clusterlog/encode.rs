//! How text gets into a cluster log entry (status.md 10.3).
#![forbid(unsafe_code)]

use std::io::Write as _;

/// FNV-1a, 64 bit, of a string and the NUL behind it: the digest of node and ident.
pub fn digest(text: &[u8]) -> u64 {
    fnv1a(text.iter().chain(&[0]))
}

/// The same without a NUL: a name too long for its field is hashed as far as the field goes.
pub(super) fn digest_raw(text: &[u8]) -> u64 {
    fnv1a(text.iter())
}

fn fnv1a<'a>(bytes: impl Iterator<Item = &'a u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Converts a message to the ASCII form that is stored and replicated.
///
/// `room` is the space for text and NUL by the C daemon's account: no character is begun once
/// `room - 7` bytes are written. The last one may still go past that by up to five bytes; where
/// this would make the entry larger than the ring allows (more than `room - 5`), the character is
/// left out. The C daemon cuts the final NUL there, and its peers refuse the entry.
pub fn message(text: &[u8], room: usize) -> Vec<u8> {
    let mut out = Out {
        text: Vec::with_capacity(text.len().min(room)),
        room,
    };
    match std::str::from_utf8(text) {
        Ok(text) => {
            for c in text.chars() {
                let code = u32::from(c);
                let go_on = match code {
                    0x22 => out.push(format_args!("\\\"")),
                    0..32 | 127 => out.push(format_args!("#{code:03}")),
                    32..127 => out.push(format_args!("{c}")),
                    128..=0xffff => out.push(format_args!("\\u{code:04x}")),
                    _ => true,
                };
                if !go_on {
                    break;
                }
            }
        }
        Err(_) => {
            for byte in text {
                let go_on = match byte {
                    b'"' => out.push(format_args!("\\\"")),
                    0..32 => out.push(format_args!("#0{byte:02}")),
                    32..127 => out.push(format_args!("{}", char::from(*byte))),
                    _ => out.push(format_args!("?")),
                };
                if !go_on {
                    break;
                }
            }
        }
    }
    out.text
}

struct Out {
    text: Vec<u8>,
    room: usize,
}

impl Out {
    /// False when there is no room left.
    fn push(&mut self, piece: std::fmt::Arguments<'_>) -> bool {
        let before = self.text.len();
        if before + 7 >= self.room {
            return false;
        }
        // Writing to a vector cannot fail.
        let _ = self.text.write_fmt(piece);
        if self.text.len() + 5 > self.room {
            self.text.truncate(before);
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(text: &[u8]) -> String {
        String::from_utf8(message(text, 4000)).unwrap()
    }

    #[test]
    fn as_recorded() {
        assert_eq!(
            encode("umlaut \u{e4} euro \u{20ac}".as_bytes()),
            "umlaut \\u00e4 euro \\u20ac"
        );
        assert_eq!(
            encode("emoji \u{1f600} dropped".as_bytes()),
            "emoji  dropped"
        );
        assert_eq!(encode(b"ctrl \t\n\x01\x7f"), "ctrl #009#010#001#127");
        assert_eq!(encode(b"\"q\" a\\b"), "\\\"q\\\" a\\b");
        assert_eq!(
            encode(b"bad \xff\xfe \x01 \n \"q\" \x7f \xc3\xa4"),
            "bad ?? #001 #010 \\\"q\\\" ? ??"
        );
    }

    #[test]
    fn room_is_kept() {
        assert_eq!(message(&[b'M'; 9000], 3536).len(), 3529);
        assert_eq!(message(&[b'"'; 3000], 4035).len(), 4028);
        for room in 0..64 {
            for text in [
                &b"\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t"[..],
                "\u{e4}".repeat(20).as_bytes(),
            ] {
                let len = message(text, room).len();
                assert!(len == 0 || len + 5 <= room, "{len} in {room}");
            }
        }
    }

    #[test]
    fn digests() {
        // FNV-1a of the single byte 0.
        assert_eq!(
            digest(b""),
            0xcbf2_9ce4_8422_2325_u64.wrapping_mul(0x0000_0100_0000_01b3)
        );
        assert_ne!(digest(b"root"), digest(b"root@pam"));
    }
}
