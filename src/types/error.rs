//! Why a proposal was not accepted. One list for the state machine, the queue before it and the API.

use crate::types::{Height, LogIndex, NodeId, Term, block::BlockRef, block::Malformed};

/// Whether something that failed may have happened all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certainty {
    /// It did not happen.
    Refused,
    /// It may have happened: read before trying again.
    Unknown,
}

/// What the state machine, or the leader before it, found wrong with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Another block holds that height.
    Conflict,
    /// The height lies behind the head.
    Stale,
    /// The height lies ahead of the next one.
    Gap,
    BadParent,
    BadTimestamp,
}

/// A block that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    pub height: Height,
    pub hash: bytes::Bytes,
    pub term: Term,
    pub index: LogIndex,
    /// The same block had been applied before; `term` and `index` are the first one's.
    pub duplicate: bool,
    pub trace_id: Option<[u8; 16]>,
}

/// Why a proposal was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("fence is required by chain.require_fence")]
    FenceRequired,
    #[error("header and data have {bytes} bytes, chain.max_block_bytes is {max}")]
    TooLarge { bytes: u64, max: u64 },
    #[error("this node does not lead")]
    NotLeader { leader_id: NodeId, leader_api: Option<String> },
    #[error("no leader is known")]
    NoLeader { retry_after_ms: u64 },
    #[error("the fence is not the one in force")]
    Fenced { fence: Option<u64>, term: Term, head: Option<BlockRef> },
    #[error("the block was refused")]
    Refused {
        refusal: Refusal,
        head: Option<BlockRef>,
        /// Given where nobody can tell what stood at that height: below the kept history.
        oldest_height: Option<Height>,
    },
    #[error("too many proposals are in flight")]
    Overloaded { retry_after_ms: u64 },
    #[error("not committed and applied in time")]
    Timeout { height: Height, hash: bytes::Bytes, term: Option<Term>, index: Option<LogIndex> },
    #[error("leadership was lost while the proposal was in flight")]
    LeadershipLost { height: Height, hash: bytes::Bytes, term: Option<Term>, index: Option<LogIndex> },
    #[error("the disk is full or damaged")]
    Storage,
    #[error("the node is stopping")]
    ShuttingDown,
    #[error("the leader is paused and handing over")]
    Paused,
    #[error("the leader is not ready")]
    NotReady,
}

impl ProposeError {
    pub fn certainty(&self) -> Certainty {
        match self {
            Self::Timeout { .. } | Self::LeadershipLost { .. } => Certainty::Unknown,
            Self::Refused { refusal: Refusal::Stale, oldest_height: Some(_), .. } => Certainty::Unknown,
            Self::Malformed(_)
            | Self::FenceRequired
            | Self::TooLarge { .. }
            | Self::NotLeader { .. }
            | Self::NoLeader { .. }
            | Self::Fenced { .. }
            | Self::Refused { .. }
            | Self::Overloaded { .. }
            | Self::Storage
            | Self::ShuttingDown
            | Self::Paused
            | Self::NotReady => Certainty::Refused,
        }
    }
}
