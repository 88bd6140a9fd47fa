//! Bytes of every CPG message (cluster-protocol.md 5): parsed once, encoded byte for byte.
//!
//! All integers are little-endian: the protocol is "host order", and every supported host is
//! little-endian.
#![forbid(unsafe_code)]

use super::{Epoch, MemberId};
use crate::le::{u16_at, u32_at, u64_at};

/// Base header: type, subtype, protocol version, time, reserved.
pub const BASE_LEN: usize = 16;
/// Base header and message count.
pub const NORMAL_LEN: usize = 24;
/// Base header and epoch.
pub const STATE_LEN: usize = 32;

/// Message type (offset 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    Normal,
    SyncStart,
    State,
    Update,
    UpdateComplete,
    VerifyRequest,
    Verify,
    /// Not known to protocol version 1.
    Other(u16),
}

impl Type {
    /// Number on the wire.
    pub fn code(self) -> u16 {
        match self {
            Type::Normal => 0,
            Type::SyncStart => 1,
            Type::State => 2,
            Type::Update => 3,
            Type::UpdateComplete => 4,
            Type::VerifyRequest => 5,
            Type::Verify => 6,
            Type::Other(code) => code,
        }
    }

    /// From the number on the wire.
    pub fn from_code(code: u16) -> Self {
        match code {
            0 => Type::Normal,
            1 => Type::SyncStart,
            2 => Type::State,
            3 => Type::Update,
            4 => Type::UpdateComplete,
            5 => Type::VerifyRequest,
            6 => Type::Verify,
            other => Type::Other(other),
        }
    }
}

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Shorter than the header (or payload) of its type.
    #[error("message too short ({len} < {need})")]
    Short { len: usize, need: usize },
    /// A payload whose length is fixed has another one.
    #[error("unexpected payload size ({len} != {need})")]
    Size { len: usize, need: usize },
}

/// The first 16 bytes of every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    pub kind: Type,
    /// Application message type of a NORMAL message; 0 otherwise.
    pub subtype: u16,
    pub protocol: u32,
    /// Wall clock of the sender, whole seconds.
    pub time: u32,
}

impl Base {
    /// Reads the base header. The reserved field is ignored.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() < BASE_LEN {
            return Err(WireError::Short {
                len: bytes.len(),
                need: BASE_LEN,
            });
        }
        Ok(Base {
            kind: Type::from_code(u16_at(bytes, 0)),
            subtype: u16_at(bytes, 2),
            protocol: u32_at(bytes, 4),
            time: u32_at(bytes, 8),
        })
    }

    fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.kind.code().to_le_bytes());
        out.extend_from_slice(&self.subtype.to_le_bytes());
        out.extend_from_slice(&self.protocol.to_le_bytes());
        out.extend_from_slice(&self.time.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
    }
}

/// What follows the base header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// An application message.
    Normal { count: u64, payload: &'a [u8] },
    /// Any other message: it belongs to one synchronisation.
    State { epoch: Epoch, payload: &'a [u8] },
}

/// A whole message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    pub base: Base,
    pub body: Body<'a>,
}

impl<'a> Message<'a> {
    /// Reads a message; its payload is left to whoever knows the type.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let base = Base::parse(bytes)?;
        let need = if base.kind == Type::Normal {
            NORMAL_LEN
        } else {
            STATE_LEN
        };
        if bytes.len() < need {
            return Err(WireError::Short {
                len: bytes.len(),
                need,
            });
        }
        let payload = &bytes[need..];
        let body = if base.kind == Type::Normal {
            Body::Normal {
                count: u64_at(bytes, 16),
                payload,
            }
        } else {
            Body::State {
                epoch: epoch_at(bytes, 16),
                payload,
            }
        };
        Ok(Message { base, body })
    }
}

/// Encodes a NORMAL message.
pub fn normal(protocol: u32, subtype: u16, time: u32, count: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(NORMAL_LEN + payload.len());
    Base {
        kind: Type::Normal,
        subtype,
        protocol,
        time,
    }
    .encode(&mut out);
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(payload);
    out
}

/// Encodes a message of any type but NORMAL.
pub fn state(protocol: u32, kind: Type, time: u32, epoch: Epoch, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(STATE_LEN + payload.len());
    Base {
        kind,
        subtype: 0,
        protocol,
        time,
    }
    .encode(&mut out);
    out.extend_from_slice(&epoch.counter.to_le_bytes());
    out.extend_from_slice(&epoch.time.to_le_bytes());
    out.extend_from_slice(&epoch.from.nodeid.to_le_bytes());
    out.extend_from_slice(&epoch.from.pid.to_le_bytes());
    out.extend_from_slice(payload);
    out
}

/// Payload of VERIFY_REQUEST: the checksum id.
pub fn parse_verify_request(payload: &[u8]) -> Result<u64, WireError> {
    exactly(payload, 8)?;
    Ok(u64_at(payload, 0))
}

/// Payload of VERIFY: the checksum id and the checksum.
pub fn parse_verify(payload: &[u8]) -> Result<(u64, [u8; 32]), WireError> {
    exactly(payload, 40)?;
    let mut sum = [0; 32];
    sum.copy_from_slice(&payload[8..40]);
    Ok((u64_at(payload, 0), sum))
}

/// Encodes the payload of VERIFY.
pub fn verify_payload(id: u64, checksum: &[u8; 32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(40);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(checksum);
    out
}

fn exactly(payload: &[u8], need: usize) -> Result<(), WireError> {
    if payload.len() == need {
        Ok(())
    } else {
        Err(WireError::Size {
            len: payload.len(),
            need,
        })
    }
}

fn epoch_at(bytes: &[u8], at: usize) -> Epoch {
    Epoch {
        counter: u32_at(bytes, at),
        time: u32_at(bytes, at + 4),
        from: MemberId {
            nodeid: u32_at(bytes, at + 8),
            pid: u32_at(bytes, at + 12),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn epoch() -> Epoch {
        Epoch {
            counter: 2,
            time: 0x6b029e0a,
            from: MemberId {
                nodeid: 1,
                pid: 0x7502,
            },
        }
    }

    #[test]
    fn sync_start_as_recorded() {
        let bytes = state(1, Type::SyncStart, 0x6b029e0a, epoch(), b"");
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "01000000010000000a9e026b00000000020000000a9e026b0100000002750000"
        );
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.base.kind, Type::SyncStart);
        assert_eq!(
            message.body,
            Body::State {
                epoch: epoch(),
                payload: b""
            }
        );
    }

    #[test]
    fn normal_as_recorded() {
        let payload = b"\0\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\0\0\0\0m/u000\0";
        let bytes = normal(1, 5, 0x6b029e0f, 1, payload);
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "00000500010000000f9e026b0000000001000000000000000000000000000000070000000000000000000\
             0006d2f7530303000"
        );
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.base.subtype, 5);
        assert_eq!(message.body, Body::Normal { count: 1, payload });
    }

    #[test]
    fn short_messages_are_errors() {
        assert_eq!(
            Base::parse(&[0; 15]),
            Err(WireError::Short { len: 15, need: 16 })
        );
        assert_eq!(
            Message::parse(&[0; 23]),
            Err(WireError::Short { len: 23, need: 24 })
        );
        let mut sync = [0; 31];
        sync[0] = 1;
        assert_eq!(
            Message::parse(&sync),
            Err(WireError::Short { len: 31, need: 32 })
        );
    }

    #[test]
    fn verify_payloads() {
        let payload = verify_payload(7, &[9; 32]);
        assert_eq!(parse_verify(&payload), Ok((7, [9; 32])));
        assert_eq!(
            parse_verify_request(&payload),
            Err(WireError::Size { len: 40, need: 8 })
        );
        assert_eq!(parse_verify_request(&7u64.to_le_bytes()), Ok(7));
        assert!(parse_verify(&payload[..39]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(message) = Message::parse(&bytes) {
                let again = match message.body {
                    Body::Normal { count, payload } => normal(
                        message.base.protocol, message.base.subtype, message.base.time, count, payload),
                    Body::State { epoch, payload } => state(
                        message.base.protocol, message.base.kind, message.base.time, epoch, payload),
                };
                prop_assert_eq!(again.len(), bytes.len());
                prop_assert_eq!(Message::parse(&again).unwrap().body, message.body);
            }
        }
    }
}
