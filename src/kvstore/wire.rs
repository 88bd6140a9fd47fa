//! Payloads of the status group (cluster-sync.md 3).
#![forbid(unsafe_code)]

use crate::dfsm::Outgoing;

/// Subtype of a key/value update.
pub const UPDATE: u16 = 1;
/// Subtype of a cluster log entry.
pub const LOG: u16 = 3;
/// Bytes of the key field.
pub const KEY_LEN: usize = 256;

/// Key and value of an UPDATE message. The key ends at its first NUL; what follows in the field is
/// stray memory of old senders. `None` if the field is cut short or has no NUL.
pub fn parse_update(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let field = payload.get(..KEY_LEN)?;
    let end = field.iter().position(|&b| b == 0)?;
    Some((&field[..end], &payload[KEY_LEN..]))
}

/// An UPDATE message. The key is cut to 255 bytes (and at a NUL); the rest of its field is zero.
pub fn encode_update(key: &[u8], value: &[u8]) -> Outgoing {
    let key = &key[..key.len().min(KEY_LEN - 1)];
    let mut payload = Vec::with_capacity(KEY_LEN + value.len());
    payload.extend_from_slice(key);
    payload.resize(KEY_LEN, 0);
    payload.extend_from_slice(value);
    Outgoing {
        subtype: UPDATE,
        payload,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stray_bytes_are_ignored_and_never_sent() {
        let sent = encode_update(b"nodeip", b"10.0.0.1\0");
        assert_eq!(sent.payload.len(), 256 + 9);
        assert!(sent.payload[6..256].iter().all(|&b| b == 0));
        let mut stray = sent.payload.clone();
        stray[7..256].fill(0x55);
        assert_eq!(
            parse_update(&stray),
            Some((&b"nodeip"[..], &b"10.0.0.1\0"[..]))
        );
    }

    #[test]
    fn keys_without_end() {
        assert_eq!(parse_update(&[b'k'; 300]), None);
        assert_eq!(parse_update(&[0; 255]), None);
        assert_eq!(parse_update(&[0; 256]), Some((&b""[..], &b""[..])));
        let long = encode_update(&[b'k'; 400], b"v");
        assert_eq!(
            parse_update(&long.payload),
            Some((&[b'k'; 255][..], &b"v"[..]))
        );
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Some((key, value)) = parse_update(&bytes) {
                let again = encode_update(key, value);
                prop_assert_eq!(parse_update(&again.payload), Some((key, value)));
            }
        }
    }
}
