//! What is replicated: a kind, a version and an encoded payload.

use std::{fmt, time::Instant};

use bytes::{Bytes, BytesMut};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};

use crate::types::{NodeId, block::Block, proto};

/// Length of a trace carrier: version, trace id, span id, flags.
pub(crate) const CARRIER_BYTES: usize = 1 + 16 + 8 + 1;

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
