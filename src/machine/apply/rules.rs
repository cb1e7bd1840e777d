//! The rule of acceptance: what a block must be to the head, and what makes two blocks the same.
//!
//! Plain functions, also for the proposer, which asks the same of a block before it appends it.

use bytes::Bytes;
use prost::Message;

use crate::machine::command::CARRIER_BYTES;
use crate::types::{
    block::{Block, BlockRef},
    error::{Accepted, Refusal},
    proto,
    settings::{ClusterSettings, Continuity, Timestamps},
};

/// What must hold between a block and the one it follows: height, gap, parent, timestamp, in this order.
///
/// Which of conflict and stale a height is that is taken, only the one who has the rows can tell: here it is stale.
pub(crate) fn check_successor(
    settings: &ClusterSettings,
    head: &BlockRef,
    block: &Block,
) -> Result<(), Refusal> {
    if block.height <= head.height {
        return Err(Refusal::Stale);
    }
    if settings.continuity == Continuity::Strict && block.height - head.height != 1 {
        return Err(Refusal::Gap);
    }
    if let Some(parent) = &block.parent_hash
        && *parent != head.hash
    {
        return Err(Refusal::BadParent);
    }
    let is_later = match settings.timestamps {
        Timestamps::Strict => head.timestamp < block.timestamp,
        Timestamps::Nondecreasing => head.timestamp <= block.timestamp,
    };
    if is_later { Ok(()) } else { Err(Refusal::BadTimestamp) }
}

/// Compares a block with the kept one at its height: by its row first, which spares reading the bytes.
pub(crate) fn same_block(
    row: Option<Bytes>,
    stored: impl FnOnce() -> Option<Bytes>,
    block: &Block,
) -> Option<Accepted> {
    let row = proto::BlockRow::decode(row?).expect("a row of our own decodes");
    if row.hash != block.hash
        || row.timestamp != block.timestamp
        || row.header_bytes != block.header.len() as u64
        || row.data_bytes != block.data.len() as u64
    {
        return None;
    }
    let stored = proto::RaftBlockState::decode(stored()?).expect("a block of our own decodes");
    Block::from(stored).is_same(block).then(|| Accepted {
        height: block.height,
        hash: row.hash,
        term: row.term,
        index: row.index,
        duplicate: true,
        trace_id: <[u8; 16]>::try_from(row.trace_id.as_ref()).ok(),
    })
}

/// The trace id of a carrier of a version this binary knows.
pub(crate) fn carrier_trace_id(carrier: &[u8]) -> Option<[u8; 16]> {
    match carrier {
        [1, rest @ ..] if carrier.len() == CARRIER_BYTES => {
            Some(rest[..16].try_into().expect("sixteen bytes are there"))
        }
        _ => None,
    }
}
