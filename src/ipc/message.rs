//! Requests of the service as validated values (ipc-messages.md).
//!
//! Everything in a request is checked here, once; nothing behind its end is ever looked at.
#![forbid(unsafe_code)]

use crate::memdb::TreePath;
use crate::status::guest_props::PropertyNames;
use crate::status::kvstore::MAX_VALUE;

/// Bytes of the request header: id, padding, size, padding.
pub const HEADER: usize = 16;
/// Size of key and node name fields in bytes.
const NAME: usize = 256;

/// Most bytes of property names in a request, their NULs included: 255 names have room, and requests
/// that wait for their turn take little memory. The longest name PVE asks for has some 20 bytes.
const MAX_NAMES: usize = 16 << 10;

/// Why a request is refused before it is looked into any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The operation, or this file, is not for read-only clients.
    #[error("operation not permitted")]
    NotPermitted,
    /// Wrong size or form.
    #[error("invalid request")]
    Invalid,
    /// The value is larger than allowed.
    #[error("status value too large")]
    TooBig,
    /// No such operation.
    #[error("unknown operation {0}")]
    Unknown(i32),
}

impl Refusal {
    /// The (positive) errno a client sees.
    pub fn errno(self) -> i32 {
        match self {
            Refusal::NotPermitted => libc::EPERM,
            Refusal::Invalid => libc::EINVAL,
            Refusal::TooBig => libc::EFBIG,
            Refusal::Unknown(_) => libc::ECHRNG,
        }
    }
}

/// Which guests a property query is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guests {
    All,
    /// A VMID of at least 100.
    One(u32),
}

/// One request.
#[derive(Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// 1: `.version`.
    FsVersion,
    /// 2: `.members`.
    ClusterInfo,
    /// 3: `.vmlist`.
    GuestList,
    /// 4: set a status value of this node; at most 32,768 bytes.
    SetStatus { key: &'a [u8], value: &'a [u8] },
    /// 5: get a status value; an empty node name means this node.
    GetStatus { key: &'a [u8], node: &'a [u8] },
    /// 6: content of a file the client may read.
    GetConfig { path: TreePath },
    /// 7: an entry for the cluster log. The priority may be out of range: it is ignored then.
    LogClusterMsg {
        priority: u8,
        ident: &'a [u8],
        tag: &'a [u8],
        message: &'a [u8],
    },
    /// 8: the cluster log; 0 entries means the default, an empty user means all.
    GetClusterLog { max: u32, user: &'a [u8] },
    /// 10: round-robin data.
    GetRrdDump,
    /// 11 and 13: properties of guests. `names` is `None` if they are malformed: that is told only
    /// to those who ask for a guest that exists.
    GetGuestProperties {
        guests: Guests,
        names: Option<PropertyNames>,
    },
    /// 12: is this text a line of the token file? No newline and no NUL in it, not empty.
    VerifyToken { token: &'a [u8] },
}

impl<'a> Request<'a> {
    /// Parses a whole message, header included.
    ///
    /// The size field of the header says where the request ends: bytes behind it are ignored, a
    /// request that claims to be larger than it is gets [`Refusal::Invalid`].
    ///
    /// # Errors
    /// [`Refusal`], in the order of checks of each operation.
    pub fn parse(message: &'a [u8], read_only: bool) -> Result<Self, Refusal> {
        let id = i32_at(message, 0).ok_or(Refusal::Invalid)?;
        if !matches!(id, 1..=8 | 10..=13) {
            return Err(Refusal::Unknown(id));
        }
        if read_only && matches!(id, 4 | 7) {
            return Err(Refusal::NotPermitted);
        }
        let size = i32_at(message, 8).and_then(|size| usize::try_from(size).ok());
        let payload = size
            .and_then(|size| message.get(HEADER..size))
            .ok_or(Refusal::Invalid)?;
        match id {
            1 => empty(payload, Request::FsVersion),
            2 => empty(payload, Request::ClusterInfo),
            3 => empty(payload, Request::GuestList),
            4 => set_status(payload),
            5 => get_status(payload),
            6 => get_config(payload, read_only),
            7 => log_cluster_msg(payload),
            8 => get_cluster_log(payload),
            10 => empty(payload, Request::GetRrdDump),
            11 => get_property(payload),
            12 => verify_token(payload),
            13 => get_properties(payload),
            _ => Err(Refusal::Unknown(id)),
        }
    }
}

fn empty<'a>(payload: &[u8], request: Request<'a>) -> Result<Request<'a>, Refusal> {
    if payload.is_empty() {
        Ok(request)
    } else {
        Err(Refusal::Invalid)
    }
}

fn set_status(payload: &[u8]) -> Result<Request<'_>, Refusal> {
    let (key, value) = payload.split_at_checked(NAME).ok_or(Refusal::Invalid)?;
    if value.len() > MAX_VALUE {
        return Err(Refusal::TooBig);
    }
    Ok(Request::SetStatus {
        key: forced_c_string(key),
        value,
    })
}

fn get_status(payload: &[u8]) -> Result<Request<'_>, Refusal> {
    let (key, rest) = payload.split_at_checked(NAME).ok_or(Refusal::Invalid)?;
    let node = rest.get(..NAME).ok_or(Refusal::Invalid)?;
    Ok(Request::GetStatus {
        key: forced_c_string(key),
        node: forced_c_string(node),
    })
}

fn get_config(payload: &[u8], read_only: bool) -> Result<Request<'_>, Refusal> {
    if payload.is_empty() {
        return Err(Refusal::Invalid);
    }
    // Classified in the form in which it is looked up: extra slashes open no private file.
    let path = TreePath::new(forced_c_string(payload));
    if read_only && path.is_private() {
        return Err(Refusal::NotPermitted);
    }
    Ok(Request::GetConfig { path })
}

fn log_cluster_msg(payload: &[u8]) -> Result<Request<'_>, Refusal> {
    let &[priority, ident_len, tag_len, ref strings @ ..] = payload else {
        return Err(Refusal::Invalid);
    };
    let tag_at = usize::from(ident_len);
    let message_at = tag_at + usize::from(tag_len);
    // A length of 0 moves the check to the byte before: the C daemon takes the text of the next
    // string for an empty field if that byte is NUL.
    let terminated = payload.get(2 + tag_at) == Some(&0) && payload.get(2 + message_at) == Some(&0);
    if message_at >= strings.len() || !terminated {
        return Err(Refusal::Invalid);
    }
    Ok(Request::LogClusterMsg {
        priority,
        ident: until_nul(strings),
        tag: until_nul(&strings[tag_at..]),
        message: until_nul(&strings[message_at..]),
    })
}

fn get_cluster_log(payload: &[u8]) -> Result<Request<'_>, Refusal> {
    let max = u32_at(payload, 0).ok_or(Refusal::Invalid)?;
    match payload.get(16..) {
        Some(user) if !user.is_empty() => Ok(Request::GetClusterLog {
            max,
            user: forced_c_string(user),
        }),
        _ => Err(Refusal::Invalid),
    }
}

fn guests(payload: &[u8]) -> Result<Guests, Refusal> {
    match u32_at(payload, 0).ok_or(Refusal::Invalid)? {
        0 => Ok(Guests::All),
        1..=99 => Err(Refusal::Invalid),
        vmid => Ok(Guests::One(vmid)),
    }
}

fn get_property(payload: &[u8]) -> Result<Request<'_>, Refusal> {
    let guests = guests(payload)?;
    let name = payload.get(4..);
    let name = name.filter(|name| (1..=MAX_NAMES).contains(&name.len()));
    let names = name.map(|name| PropertyNames::new([forced_c_string(name)]));
    Ok(Request::GetGuestProperties { guests, names })
}

fn get_properties(payload: &[u8]) -> Result<Request<'_>, Refusal> {
    let guests = guests(payload)?;
    let [count, strings @ ..] = payload.get(4..).ok_or(Refusal::Invalid)? else {
        return Err(Refusal::Invalid);
    };
    Ok(Request::GetGuestProperties {
        guests,
        names: property_names(usize::from(*count), strings),
    })
}

/// Exactly `count` C strings, at least one, of [`MAX_NAMES`] bytes together, each beginning with `a` to `z`, and nothing else.
fn property_names(count: usize, strings: &[u8]) -> Option<PropertyNames> {
    let (last, names) = strings.split_last()?;
    if *last != 0 || count == 0 || strings.len() > MAX_NAMES {
        return None;
    }
    let names: Vec<&[u8]> = names.split(|byte| *byte == 0).collect();
    let good = names
        .iter()
        .all(|name| name.first().is_some_and(u8::is_ascii_lowercase));
    (good && names.len() == count).then(|| PropertyNames::new(names))
}

fn verify_token(payload: &[u8]) -> Result<Request<'_>, Refusal> {
    match payload.split_last() {
        Some((0, token)) if !token.is_empty() && !token.iter().any(|b| matches!(b, 0 | b'\n')) => {
            Ok(Request::VerifyToken { token })
        }
        _ => Err(Refusal::Invalid),
    }
}

/// The text of a field whose last byte counts as NUL whatever it is.
fn forced_c_string(field: &[u8]) -> &[u8] {
    until_nul(field.split_last().map_or(field, |(_, text)| text))
}

fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|raw| u32::from_le_bytes(*raw))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|raw| i32::from_le_bytes(*raw))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(id: i32, payload: &[u8]) -> Vec<u8> {
        let size = (HEADER + payload.len()) as i32;
        let mut out = Vec::new();
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&size.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(payload);
        out
    }

    fn refusal(id: i32, payload: &[u8], read_only: bool) -> Refusal {
        Request::parse(&message(id, payload), read_only).unwrap_err()
    }

    #[test]
    fn size_field() {
        let mut lie = message(6, b"storage.cfg\0");
        lie[8] = 29;
        assert_eq!(Request::parse(&lie, false), Err(Refusal::Invalid));
        lie[8] = 16 + 4;
        let path = TreePath::new(b"sto");
        assert_eq!(Request::parse(&lie, false), Ok(Request::GetConfig { path }));
        lie[8..12].copy_from_slice(&(-1i32).to_le_bytes());
        assert_eq!(Request::parse(&lie, false), Err(Refusal::Invalid));
        assert_eq!(Request::parse(b"", false), Err(Refusal::Invalid));
    }

    #[test]
    fn private_paths_in_every_spelling() {
        for path in [
            "priv",
            "/priv/x",
            "nodes/n/priv",
            "nodes//n/priv/k",
            "//nodes/n//priv//k",
        ] {
            let payload = [path.as_bytes(), b"\0"].concat();
            assert_eq!(refusal(6, &payload, true), Refusal::NotPermitted, "{path}");
            assert!(Request::parse(&message(6, &payload), false).is_ok());
        }
    }

    #[test]
    fn order_of_checks() {
        assert_eq!(refusal(99, b"", true), Refusal::Unknown(99));
        assert_eq!(refusal(4, b"", true), Refusal::NotPermitted);
        assert_eq!(refusal(7, b"", true), Refusal::NotPermitted);
        assert_eq!(refusal(4, &[0; 255], false), Refusal::Invalid);
        assert_eq!(refusal(4, &[0; 256 + 32_769], false), Refusal::TooBig);
        assert_eq!(
            refusal(13, &[5, 0, 0, 0, 1, b'a', 0], false),
            Refusal::Invalid
        );
    }

    #[test]
    fn log_messages() {
        let parse = |payload: &[u8]| match Request::parse(&message(7, payload), false) {
            Ok(Request::LogClusterMsg {
                ident,
                tag,
                message,
                ..
            }) => Some([ident, tag, message].map(|t| String::from_utf8(t.to_vec()).unwrap())),
            _ => None,
        };
        let strings = |a: &str, b: &str, c: &str| Some([a.into(), b.into(), c.into()]);
        assert_eq!(
            parse(b"\x06\x02\x02a\0b\0text\0"),
            strings("a", "b", "text")
        );
        assert_eq!(parse(b"\x06\x02\x02a\0b\0text"), strings("a", "b", "text"));
        assert_eq!(parse(b"\x06\x02\x02a\0b\0\0"), strings("a", "b", ""));
        assert_eq!(parse(b"\x06\x02\x02a\0b\0"), None);
        assert_eq!(parse(b"\x06\x02\x02ax0\0t"), None);
        assert_eq!(parse(b"\x06\x02\x02a\0bxt"), None);
        assert_eq!(parse(b"\x06\x02\0a\0text\0"), strings("a", "text", "text"));
        assert_eq!(parse(b"\x06\0\0text\0"), strings("text", "text", "text"));
        assert_eq!(parse(b"\x06\0\x02a\0text\0"), None);
        assert_eq!(parse(b"\x06\xff\xffa\0text\0"), None);
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600), read_only: bool) {
            let _ = Request::parse(&bytes, read_only);
        }

        #[test]
        fn any_payload(
            id in 0i32..15, payload in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..600),
            lie in -20i32..20, read_only: bool,
        ) {
            let mut bytes = message(id, &payload);
            let _ = Request::parse(&bytes, read_only);
            let size = (bytes.len() as i32).wrapping_add(lie);
            bytes[8..12].copy_from_slice(&size.to_le_bytes());
            let outcome = Request::parse(&bytes, read_only);
            if lie > 0 {
                prop_assert!(outcome.is_err());
            }
        }
    }
}
