//! The blocks applied last, in memory: what live readers ask for next.
//!
//! Invariant: every block from the first one here up to the head, heights rising.

use std::collections::VecDeque;

use bytes::Bytes;
use prost::Message;

use crate::types::block::StoredBlock;
use crate::types::proto::{BlockRow, RaftBlockState};
use crate::types::{Height, LogIndex, Term};

/// The share of the feed in the memory plan.
const BYTES_MAX: usize = 8 << 20;
/// So many small ones at most; by eye: a tenth of a second at full speed.
const BLOCKS_MAX: usize = 4096;

struct Recent {
    height: Height,
    term: Term,
    index: LogIndex,
    /// As it was proposed; a slice of the entry it came in.
    block: Bytes,
}

#[derive(Default)]
pub(crate) struct RecentBlocks {
    blocks: VecDeque<Recent>,
    bytes: usize,
}

impl RecentBlocks {
    pub(super) fn push(&mut self, height: Height, row: &BlockRow, block: &Bytes) {
        self.bytes += block.len();
        self.blocks.push_back(Recent { height, term: row.term, index: row.index, block: block.clone() });
        while (BYTES_MAX < self.bytes || BLOCKS_MAX < self.blocks.len())
            && let Some(gone) = self.blocks.pop_front()
        {
            self.bytes -= gone.block.len();
        }
    }

    /// The blocks before this one are not those behind which the next one comes.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Blocks from a height up to the head, and the height of the next one. `None`: ask the database.
    pub(crate) fn range(
        &self,
        from: Height,
        head: Height,
        limit: usize,
        max_bytes: u64,
    ) -> Option<(Vec<StoredBlock>, Option<Height>)> {
        if from < self.blocks.front()?.height {
            return None;
        }
        let first = self.blocks.partition_point(|b| b.height < from);
        let (mut found, mut bytes) = (Vec::new(), 0);
        for recent in self.blocks.range(first..).take_while(|b| b.height <= head) {
            bytes += recent.block.len() as u64;
            if limit.max(1) <= found.len() || (max_bytes < bytes && !found.is_empty()) {
                return Some((found, Some(recent.height)));
            }
            let block = RaftBlockState::decode(recent.block.clone()).ok()?;
            found.push(StoredBlock { block: block.into(), term: recent.term, index: recent.index });
        }
        Some((found, None))
    }
}
