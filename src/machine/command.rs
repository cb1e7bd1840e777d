//! What is replicated: a kind, a version and an encoded payload.

use std::{fmt, time::Instant};

use bytes::{Bytes, BytesMut};
use prost::{
    Message,
    encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint},
};

use crate::types::{Height, NodeId, block::Block, proto, trace::Carrier};

/// Length of a trace carrier.
pub(crate) const CARRIER_BYTES: usize = Carrier::BYTES;

/// What a command asks for. The number stands in the log: it is never given to another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Block,
    Leadership,
    Configure,
    /// One this binary does not know. The node stops before it applies it.
    Unknown(u8),
}

impl Kind {
    pub(crate) fn to_u8(self) -> u8 {
        match self {
            Self::Block => 16,
            Self::Leadership => 17,
            Self::Configure => 18,
            Self::Unknown(n) => n,
        }
    }

    pub(crate) fn from_u8(n: u8) -> Self {
        match n {
            16 => Self::Block,
            17 => Self::Leadership,
            18 => Self::Configure,
            n => Self::Unknown(n),
        }
    }
}

/// When a proposal reached this node and when it was handed to raft. Local: never replicated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    pub(crate) received: Instant,
    pub(crate) handed: Instant,
}

/// A command on its way through the log.
///
/// Invariant: `crc` is the CRC-32 of `payload`, computed once by whoever made the command;
/// followers verify it and store the payload as received (safety rule 5).
#[derive(Clone)]
pub(crate) struct Command {
    pub(crate) kind: Kind,
    pub(crate) version: u8,
    pub(crate) crc: u32,
    pub(crate) payload: Bytes,
    pub(crate) origin: Option<Origin>,
}

impl Command {
    pub(crate) fn new(kind: Kind, payload: Bytes) -> Self {
        Self { kind, version: 1, crc: crc32fast::hash(&payload), payload, origin: None }
    }

    /// The block is encoded once, straight into the command.
    pub(crate) fn block(
        block: Block,
        fence: u64,
        proposer_id: NodeId,
        proposed_at_ms: u64,
        trace: Option<[u8; CARRIER_BYTES]>,
    ) -> Self {
        let head = proto::BlockCommand {
            fence,
            proposer_id,
            proposed_at_ms,
            trace: trace.map(|t| Bytes::copy_from_slice(&t)).unwrap_or_default(),
            block: Bytes::new(),
        };
        let block = proto::RaftBlockState::from(block);
        let block_bytes = block.encoded_len();
        let mut buf = BytesMut::with_capacity(head.encoded_len() + block_bytes + 12);
        head.encode_raw(&mut buf);
        // Field 5, `block`, by hand: as a `bytes` field it would be encoded and then copied.
        encode_key(5, WireType::LengthDelimited, &mut buf);
        encode_varint(block_bytes as u64, &mut buf);
        block.encode_raw(&mut buf);
        Self::new(Kind::Block, buf.freeze())
    }

    pub(crate) fn leadership(command: &proto::LeadershipCommand) -> Self {
        Self::new(Kind::Leadership, encode(command))
    }

    pub(crate) fn configure(command: &proto::ConfigureCommand) -> Self {
        Self::new(Kind::Configure, encode(command))
    }

    /// The trace context beside a block. Only the head of the payload is looked at.
    pub(crate) fn carrier(&self) -> Option<Carrier> {
        if self.kind != Kind::Block {
            return None;
        }
        let mut head: &[u8] = &self.payload;
        loop {
            match decode_key(&mut head).ok()? {
                (4, WireType::LengthDelimited) => {
                    let n = usize::try_from(decode_varint(&mut head).ok()?).ok()?;
                    return Carrier::from_bytes(head.get(..n)?);
                }
                (_, WireType::Varint) => {
                    decode_varint(&mut head).ok()?;
                }
                // What stands behind it: there was none.
                _ => return None,
            }
        }
    }

    /// The height of the block that it proposes, accepted or not.
    pub(crate) fn block_height(&self) -> Option<Height> {
        if self.kind != Kind::Block {
            return None;
        }
        let command = proto::BlockCommand::decode(self.payload.clone()).ok()?;
        Some(proto::RaftBlockState::decode(command.block).ok()?.height)
    }

    /// Whether this binary can apply it.
    pub(crate) fn is_known(&self) -> bool {
        !matches!(self.kind, Kind::Unknown(_)) && self.version == 1
    }
}

fn encode(message: &impl Message) -> Bytes {
    let mut buf = BytesMut::with_capacity(message.encoded_len());
    message.encode_raw(&mut buf);
    buf.freeze()
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} v{} {} B", self.kind, self.version, self.payload.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_carrier_is_read_from_the_head_of_the_payload() {
        let carrier = Carrier { trace_id: [7; 16], span_id: [9; 8], is_sampled: true, is_whole: false };
        let block = Block { height: 5, hash: Bytes::from_static(b"h"), ..Block::default() };
        let with = |trace| Command::block(block.clone(), u64::MAX, 1, 1 << 41, trace);
        assert_eq!(with(Some(carrier.to_bytes())).carrier(), Some(carrier));
        assert_eq!(with(None).carrier(), None);
        assert_eq!(Command::leadership(&proto::LeadershipCommand::default()).carrier(), None);
        let whole = with(Some(carrier.to_bytes())).payload;
        for n in 0..whole.len().min(60) {
            let cut = Command::new(Kind::Block, whole.slice(..n)).carrier();
            assert!(cut.is_none() || cut == Some(carrier), "cut at {n}");
        }
    }
}
