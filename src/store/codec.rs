//! How an entry of the log looks on disk.
//!
//! The frame of an entry is its key, the payload its value: the payload goes into the write batch as
//! it was received, in one copy. Every frame carries the CRC of its payload and a link, a hash over
//! the link before it and its own fields, so that a hole, a swap or a shortened log shows at open.

use bytes::Bytes;
use openraft::EntryPayload;
use prost::Message;

use crate::machine::command::{Command, Kind};
use crate::raft::{Entry, LogId, Membership, convert, log_id_of, pos_of};
use crate::types::{LogIndex, Term, position::LogPos, proto};

/// First byte of the key of an entry; those of vote, committed and purged begin with `m`.
pub(crate) const ENTRY: u8 = b'e';
/// Prefix, index, term, kind, version, length, payload CRC, link.
pub(crate) const KEY_BYTES: usize = 1 + 8 + 8 + 1 + 1 + 4 + 4 + 8;

/// Kinds below 16 are raft's own; those of commands stand in [`Kind`].
pub(crate) const KIND_BLANK: u8 = 0;
pub(crate) const KIND_MEMBERSHIP: u8 = 1;
const KIND_COMMANDS: u8 = 16;

/// First eight bytes of blake3(previous link, index, term, kind, version, length, payload CRC).
pub(crate) type Link = [u8; 8];

/// What the chain begins with: at the first entry ever, and after a purge beyond the end.
pub(crate) const NO_LINK: Link = [0; 8];

/// One entry but for its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) pos: LogPos,
    pub(crate) kind: u8,
    pub(crate) version: u8,
    pub(crate) length: u32,
    pub(crate) crc: u32,
    pub(crate) link: Link,
}

/// The end of the log, or of what was purged: a position and the link that the next entry continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) pos: LogPos,
    pub(crate) link: Link,
}

/// Why a stored entry cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    #[error("a key of {0} bytes is no frame")]
    Key(usize),
    #[error("entry {index}: the payload has {actual} bytes, its frame says {length}")]
    Length { index: LogIndex, length: u32, actual: usize },
    #[error("entry {index}: the payload has CRC {actual:08x}, its frame says {crc:08x}")]
    Crc { index: LogIndex, crc: u32, actual: u32 },
    #[error("entry {index}: kind {kind} is none of raft's")]
    Kind { index: LogIndex, kind: u8 },
    #[error("entry {index}: the membership does not decode: {why}")]
    Membership { index: LogIndex, why: String },
}

impl Frame {
    pub(crate) fn edge(&self) -> Edge {
        Edge { pos: self.pos, link: self.link }
    }

    pub(crate) fn log_id(&self) -> LogId {
        log_id_of(self.pos)
    }

    /// Bytes that the entry takes in the log.
    pub(crate) fn stored_bytes(&self) -> u64 {
        KEY_BYTES as u64 + u64::from(self.length)
    }

    /// The link that these fields have after a given one.
    pub(crate) fn link_after(&self, previous: Link) -> Link {
        let mut buf = [0u8; 8 + 8 + 8 + 1 + 1 + 4 + 4];
        buf[..8].copy_from_slice(&previous);
        buf[8..].copy_from_slice(&self.to_key()[1..KEY_BYTES - 8]);
        blake3::hash(&buf).as_bytes()[..8].try_into().expect("a hash has 32 bytes")
    }

    pub(crate) fn to_key(self) -> [u8; KEY_BYTES] {
        let mut key = [0u8; KEY_BYTES];
        key[0] = ENTRY;
        key[1..9].copy_from_slice(&self.pos.index.to_be_bytes());
        key[9..17].copy_from_slice(&self.pos.term.to_be_bytes());
        key[17] = self.kind;
        key[18] = self.version;
        key[19..23].copy_from_slice(&self.length.to_be_bytes());
        key[23..27].copy_from_slice(&self.crc.to_be_bytes());
        key[27..35].copy_from_slice(&self.link);
        key
    }

    pub(crate) fn from_key(key: &[u8]) -> Result<Self, CodecError> {
        let key: &[u8; KEY_BYTES] = key.try_into().map_err(|_| CodecError::Key(key.len()))?;
        let u64_at = |at: usize| u64::from_be_bytes(key[at..at + 8].try_into().expect("eight bytes"));
        let u32_at = |at: usize| u32::from_be_bytes(key[at..at + 4].try_into().expect("four bytes"));
        Ok(Self {
            pos: LogPos { index: u64_at(1), term: u64_at(9) },
            kind: key[17],
            version: key[18],
            length: u32_at(19),
            crc: u32_at(23),
            link: key[27..35].try_into().expect("eight bytes"),
        })
    }

    /// Compares length and CRC of a payload that was read or received with those of its frame.
    pub(crate) fn check_payload(&self, payload: &[u8]) -> Result<(), CodecError> {
        let index = self.pos.index;
        if payload.len() != self.length as usize {
            return Err(CodecError::Length { index, length: self.length, actual: payload.len() });
        }
        let actual = crc32fast::hash(payload);
        if actual != self.crc {
            return Err(CodecError::Crc { index, crc: self.crc, actual });
        }
        Ok(())
    }
}

/// The key before the first entry with an index.
pub(crate) fn first_key(index: LogIndex) -> [u8; 9] {
    let mut key = [0u8; 9];
    key[0] = ENTRY;
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

/// The key behind all entries.
pub(crate) const ENTRIES_END: [u8; 1] = [ENTRY + 1];

/// Frame and payload of an entry that follows `previous`.
pub(crate) fn encode(entry: &Entry, previous: Link) -> (Frame, Bytes) {
    let (kind, version, crc, payload) = match &entry.payload {
        EntryPayload::Blank => (KIND_BLANK, 1, crc32fast::hash(&[]), Bytes::new()),
        EntryPayload::Membership(m) => {
            let payload = membership_payload(m);
            (KIND_MEMBERSHIP, 1, crc32fast::hash(&payload), payload)
        }
        EntryPayload::Normal(c) => (c.kind.to_u8(), c.version, c.crc, c.payload.clone()),
    };
    let mut frame = Frame {
        pos: pos_of(&entry.log_id),
        kind,
        version,
        length: u32::try_from(payload.len()).expect("a payload is far below 4 GiB"),
        crc,
        link: NO_LINK,
    };
    frame.link = frame.link_after(previous);
    (frame, payload)
}

/// The entry of a frame and its payload; the payload was checked before.
pub(crate) fn decode(frame: &Frame, payload: Bytes) -> Result<Entry, CodecError> {
    let payload = match frame.kind {
        KIND_BLANK => EntryPayload::Blank,
        KIND_MEMBERSHIP => EntryPayload::Membership(decode_membership(frame.pos.index, &payload)?),
        kind if kind < KIND_COMMANDS => {
            return Err(CodecError::Kind { index: frame.pos.index, kind });
        }
        kind => EntryPayload::Normal(Command {
            kind: Kind::from_u8(kind),
            version: frame.version,
            crc: frame.crc,
            payload,
            origin: None,
        }),
    };
    Ok(Entry { log_id: frame.log_id(), payload })
}

/// What stands in the log for a membership, and what its CRC in the state hash is computed over.
pub(crate) fn membership_payload(m: &Membership) -> Bytes {
    Bytes::from(convert::membership_to_proto(m).encode_to_vec())
}

fn decode_membership(index: LogIndex, payload: &Bytes) -> Result<Membership, CodecError> {
    let fail = |why: String| CodecError::Membership { index, why };
    let m = proto::Membership::decode(payload.clone()).map_err(|e| fail(e.to_string()))?;
    convert::membership_from_proto(&m).map_err(|e| fail(e.to_string()))
}

/// The payload bytes of an entry, as far as they are in memory: what bounds of reads count.
pub(crate) fn payload_bytes(entry: &Entry) -> u64 {
    match &entry.payload {
        EntryPayload::Blank | EntryPayload::Membership(_) => 64,
        EntryPayload::Normal(c) => c.payload.len() as u64,
    }
}

/// Sixteen bytes of a position, and the link behind it.
pub(crate) fn edge_to_bytes(edge: Edge) -> [u8; 24] {
    let mut buf = [0u8; 24];
    buf[..8].copy_from_slice(&edge.pos.term.to_be_bytes());
    buf[8..16].copy_from_slice(&edge.pos.index.to_be_bytes());
    buf[16..].copy_from_slice(&edge.link);
    buf
}

pub(crate) fn edge_from_bytes(bytes: &[u8]) -> Option<Edge> {
    let bytes: &[u8; 24] = bytes.try_into().ok()?;
    Some(Edge {
        pos: LogPos {
            term: Term::from_be_bytes(bytes[..8].try_into().expect("eight bytes")),
            index: LogIndex::from_be_bytes(bytes[8..16].try_into().expect("eight bytes")),
        },
        link: bytes[16..].try_into().expect("eight bytes"),
    })
}
