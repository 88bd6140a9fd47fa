//! The two messages of the handshake and who may connect (ipc-transport.md 4, 5). Pure.
#![forbid(unsafe_code)]

use super::ring::layout::PATH_FIELD;

/// Bytes of the connection request.
pub const REQUEST_LEN: usize = 24;
/// Bytes of the connection response.
pub const RESPONSE_LEN: usize = 12328;
/// Id of both messages.
pub const AUTHENTICATE: i32 = -1;
/// Id of a request that ends the connection without an answer.
pub const DISCONNECT: i32 = -3;
/// Limits of the message size the server agrees to (hardening rule 7).
pub const MIN_MESSAGE_SIZE: u32 = 12328;
/// Upper limit, and what PVE's clients ask for.
pub const MAX_MESSAGE_SIZE: u32 = 1_048_576;

const TYPE_SHARED_MEMORY: i32 = 1;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectRequest {
    pub id: i32,
    /// Not checked by the reference; not used.
    pub size: i32,
    pub max_msg_size: u32,
}

impl ConnectRequest {
    /// Takes the fields out of the message; pads are ignored.
    pub fn decode(bytes: &[u8; REQUEST_LEN]) -> Self {
        Self {
            id: i32::from_le_bytes(field(bytes, 0)),
            size: i32::from_le_bytes(field(bytes, 8)),
            max_msg_size: u32::from_le_bytes(field(bytes, 16)),
        }
    }

    /// The message size of the connection.
    pub fn message_size(&self) -> u32 {
        self.max_msg_size.clamp(MIN_MESSAGE_SIZE, MAX_MESSAGE_SIZE)
    }
}

/// The response to an accepted client. Prefixes are shorter than 4096 bytes.
pub fn encode_accept(max_message: u32, connection: u64, prefixes: [&str; 3]) -> Vec<u8> {
    let mut bytes = response(0);
    put(&mut bytes, 24, &TYPE_SHARED_MEMORY.to_le_bytes());
    put(&mut bytes, 28, &max_message.to_le_bytes());
    put(&mut bytes, 32, &connection.to_le_bytes());
    for (index, prefix) in prefixes.into_iter().enumerate() {
        debug_assert!(prefix.len() < PATH_FIELD);
        put(&mut bytes, 40 + index * PATH_FIELD, prefix.as_bytes());
    }
    bytes
}

/// The response to a refused client; `error` is -errno.
pub fn encode_refusal(error: i32) -> Vec<u8> {
    response(error)
}

fn response(error: i32) -> Vec<u8> {
    let mut bytes = vec![0u8; RESPONSE_LEN];
    put(&mut bytes, 0, &AUTHENTICATE.to_le_bytes());
    put(&mut bytes, 8, &(RESPONSE_LEN as i32).to_le_bytes());
    put(&mut bytes, 16, &error.to_le_bytes());
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn field(bytes: &[u8; REQUEST_LEN], at: usize) -> [u8; 4] {
    [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]
}

/// Header of a response chunk, pads zeroed (ipc-transport.md 3).
pub fn response_header(id: i32, size: u32, error: i32) -> [u8; 24] {
    let mut header = [0u8; 24];
    header[0..4].copy_from_slice(&id.to_le_bytes());
    header[8..12].copy_from_slice(&size.to_le_bytes());
    header[16..20].copy_from_slice(&error.to_le_bytes());
    header
}

/// Who the kernel says sent the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
}

/// What a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadWrite,
    ReadOnly,
    Refused,
}

/// The table of ipc-transport.md 5; `www_gid` is the gid of group www-data.
pub fn access(uid: u32, gid: u32, www_gid: u32) -> Access {
    match (uid, gid) {
        (0, 0) => Access::ReadWrite,
        (_, gid) if gid == www_gid => Access::ReadOnly,
        _ => Access::Refused,
    }
}

/// What the log says about a client that [`access`] refuses.
pub fn bad_user(client: Credentials, www_gid: u32) -> String {
    let Credentials { pid, uid, gid } = client;
    format!(
        "connection from bad user {uid}! - rejected (pid {pid}, uid {uid}, gid {gid}: it needs uid 0 \
         with gid 0 or, for reading, gid {www_gid} (www-data), as its effective ids)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_root_is_told_of_its_group() {
        let (pid, uid, gid) = (4711, 0, 100);
        let text = bad_user(Credentials { pid, uid, gid }, 33);
        assert!(
            text.starts_with("connection from bad user 0! - rejected (pid 4711, uid 0, gid 100: "),
            "{text}"
        );
        assert!(
            text.contains("gid 0") && text.contains("gid 33 (www-data)"),
            "{text}"
        );
    }

    #[test]
    fn request_of_the_annotated_dump() {
        let mut bytes = [0u8; 24];
        bytes[..4].copy_from_slice(&[0xff; 4]);
        bytes[8] = 0x18;
        bytes[16..20].copy_from_slice(&[0, 0, 0x10, 0]);
        let request = ConnectRequest::decode(&bytes);
        assert_eq!(
            request,
            ConnectRequest {
                id: -1,
                size: 24,
                max_msg_size: 1_048_576
            }
        );
        assert_eq!(request.message_size(), 1_048_576);
    }

    #[test]
    fn message_size_has_limits() {
        let size = |max_msg_size| {
            ConnectRequest {
                id: -1,
                size: 24,
                max_msg_size,
            }
            .message_size()
        };
        assert_eq!(size(0), 12_328);
        assert_eq!(size(20_000), 20_000);
        assert_eq!(size(u32::MAX), 1_048_576);
    }

    #[test]
    fn accept_of_the_annotated_dump() {
        let request = "/dev/shm/qb-15387-15814-14-xq4393/qb-request-pve2";
        let bytes = encode_accept(1_048_576, 7, [request, "/r", "/e"]);
        assert_eq!(bytes.len(), 12328);
        let head: [u8; 40] = [
            0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0x28, 0x30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 1, 0, 0, 0, 0, 0, 0x10, 0, 7, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(&bytes[..40], &head);
        assert_eq!(&bytes[40..40 + request.len()], request.as_bytes());
        assert!(bytes[40 + request.len()..4136].iter().all(|b| *b == 0));
        assert_eq!(&bytes[4136..4139], b"/r\0");
        assert_eq!(&bytes[8232..8235], b"/e\0");
        assert!(bytes[8235..].iter().all(|b| *b == 0));
    }

    #[test]
    fn refusal_carries_only_the_error() {
        let bytes = encode_refusal(-13);
        assert_eq!(bytes.len(), 12328);
        assert_eq!(&bytes[16..20], &(-13i32).to_le_bytes());
        assert!(bytes[20..].iter().all(|b| *b == 0));
    }

    #[test]
    fn access_table() {
        assert_eq!(access(0, 0, 33), Access::ReadWrite);
        for uid in [0, 33, 65534] {
            assert_eq!(access(uid, 33, 33), Access::ReadOnly);
        }
        assert_eq!(access(33, 0, 33), Access::Refused);
        assert_eq!(access(0, 1, 33), Access::Refused);
        assert_eq!(access(1000, 1000, 33), Access::Refused);
    }

    #[test]
    fn response_header_is_padded_with_zeros() {
        let header = response_header(3, 42, -2);
        let mut expected = [0u8; 24];
        expected[0] = 3;
        expected[8] = 42;
        expected[16..20].copy_from_slice(&[0xfe, 0xff, 0xff, 0xff]);
        assert_eq!(header, expected);
    }
}
