//! Blocks, as a sequencer hands them over.

use bytes::Bytes;

use crate::types::{Height, LogIndex, NodeId, Term, proto::RaftBlockState};

/// Greatest height: the greatest integer that every JSON reader keeps exact.
pub const HEIGHT_MAX: Height = (1 << 53) - 1;
/// Greatest `chain.max_block_bytes`: a block must fit into one frame between nodes.
pub(crate) const BLOCK_BYTES_MAX: u64 = 32 << 20;
/// Longest hash, in bytes.
pub const HASH_BYTES_MAX: usize = 64;

/// What a sequencer produced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Block {
    pub height: Height,
    /// 1 to [`HASH_BYTES_MAX`] bytes.
    pub hash: Bytes,
    /// Nanoseconds since the epoch.
    pub timestamp: u64,
    /// Never decoded; may be empty.
    pub header: Bytes,
    /// Never decoded; may be empty.
    pub data: Bytes,
    /// When given, it must equal the hash of the head.
    pub parent_hash: Option<Bytes>,
    pub last_submitted_da_header_height: Height,
    pub last_submitted_da_data_height: Height,
}

/// A block without its content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockRef {
    pub height: Height,
    pub hash: Bytes,
    pub timestamp: u64,
}

/// A block of the kept history and its place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBlock {
    pub block: Block,
    pub term: Term,
    pub index: LogIndex,
}

/// Where a block of the kept history comes from. All of it but `applied_at_ms` is replicated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Provenance {
    pub height: Height,
    pub hash: Bytes,
    pub timestamp: u64,
    pub term: Term,
    pub index: LogIndex,
    pub proposer_id: NodeId,
    /// Unix milliseconds by the proposer's clock.
    pub proposed_at_ms: u64,
    /// Unix milliseconds by this node's clock; `None` when the block came by snapshot or before a restart.
    pub applied_at_ms: Option<u64>,
    pub trace_id: Option<[u8; 16]>,
    pub header_bytes: u64,
    pub data_bytes: u64,
}

/// What is wrong with a block that is not even well-formed. The message names the field and the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("height {0} is above 2^53 - 1")]
    Height(u64),
    #[error("hash has {0} bytes, not 1 to 64")]
    Hash(usize),
    #[error("parentHash has {0} bytes, not 1 to 64")]
    ParentHash(usize),
    #[error("{field} {value} is above 2^53 - 1")]
    DaHeight { field: &'static str, value: u64 },
}

impl Malformed {
    /// The JSON name of the field at fault.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Height(_) => "block.height",
            Self::Hash(_) => "block.hash",
            Self::ParentHash(_) => "block.parentHash",
            Self::DaHeight { field, .. } => field,
        }
    }
}

impl Block {
    pub fn to_ref(&self) -> BlockRef {
        BlockRef { height: self.height, hash: self.hash.clone(), timestamp: self.timestamp }
    }

    /// What `chain.max_block_bytes` bounds.
    pub fn payload_bytes(&self) -> u64 {
        (self.header.len() + self.data.len()) as u64
    }

    /// Checks the rules that hold for every block whatever the chain says.
    pub fn check_well_formed(&self) -> Result<(), Malformed> {
        if HEIGHT_MAX < self.height {
            return Err(Malformed::Height(self.height));
        }
        if self.hash.is_empty() || HASH_BYTES_MAX < self.hash.len() {
            return Err(Malformed::Hash(self.hash.len()));
        }
        if let Some(parent) = &self.parent_hash
            && (parent.is_empty() || HASH_BYTES_MAX < parent.len())
        {
            return Err(Malformed::ParentHash(parent.len()));
        }
        for (field, value) in [
            ("block.lastSubmittedDaHeaderHeight", self.last_submitted_da_header_height),
            ("block.lastSubmittedDaDataHeight", self.last_submitted_da_data_height),
        ] {
            if HEIGHT_MAX < value {
                return Err(Malformed::DaHeight { field, value });
            }
        }
        Ok(())
    }

    /// Whether both are the same block: all that counts but the DA heights.
    pub fn is_same(&self, other: &Block) -> bool {
        self.height == other.height
            && self.hash == other.hash
            && self.timestamp == other.timestamp
            && self.parent_hash == other.parent_hash
            && self.header == other.header
            && self.data == other.data
    }
}

impl From<RaftBlockState> for Block {
    fn from(b: RaftBlockState) -> Self {
        Self {
            height: b.height,
            hash: b.hash,
            timestamp: b.timestamp,
            header: b.header,
            data: b.data,
            parent_hash: b.parent_hash,
            last_submitted_da_header_height: b.last_submitted_da_header_height,
            last_submitted_da_data_height: b.last_submitted_da_data_height,
        }
    }
}

impl From<Block> for RaftBlockState {
    fn from(b: Block) -> Self {
        Self {
            height: b.height,
            hash: b.hash,
            timestamp: b.timestamp,
            header: b.header,
            data: b.data,
            parent_hash: b.parent_hash,
            last_submitted_da_header_height: b.last_submitted_da_header_height,
            last_submitted_da_data_height: b.last_submitted_da_data_height,
        }
    }
}
