//! Reading the history again in log order, from any place.
//!
//! Rows are kept by height, and their indexes rise with the heights: so a place in the log is found by
//! halving the heights.

use crate::store::reader::{ReadError, Reader, decode_height, decode_row, each_row, stored_block};
use crate::store::state::db::{Family, StateDb, height_key};
use crate::types::block::StoredBlock;
use crate::types::proto::BlockRow;
use crate::types::{Height, LogIndex};

/// Where a replay begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// With the first block at or above a height.
    Height(Height),
    /// With the first block at or behind a place in the log.
    Index(LogIndex),
}

/// Consecutive blocks of the history.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Replay {
    pub(crate) blocks: Vec<Replayed>,
    /// Whether a bound cut it short.
    pub(crate) has_more: bool,
    /// There are none, for the first is larger than was allowed.
    pub(crate) needs: Option<First>,
}

/// A block that was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct First {
    pub(crate) index: LogIndex,
    pub(crate) bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replayed {
    pub(crate) stored: StoredBlock,
    pub(crate) trace_id: Option<[u8; 16]>,
}

/// Why nothing is replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReplayError {
    /// What stood there is forgotten, or may be; this is the oldest block that is kept.
    #[error("it lies below the kept history")]
    Pruned { height: Height, index: LogIndex },
    #[error("{0}")]
    Storage(String),
}

impl From<ReadError> for ReplayError {
    fn from(error: ReadError) -> Self {
        Self::Storage(error.to_string())
    }
}

impl From<rocksdb::Error> for ReplayError {
    fn from(error: rocksdb::Error) -> Self {
        Self::Storage(error.into_string())
    }
}

impl Reader {
    /// Blocks from a place on, at most `limit` and `max_bytes`; none when the place lies behind the head, or
    /// the first is larger: it is not read then. Blocking.
    pub(crate) fn replay(&self, from: Place, limit: usize, max_bytes: u64) -> Result<Replay, ReplayError> {
        loop {
            let published = self.published()?;
            let (view, db) = (&published.view, &*published.db);
            let (Some(head), Some(oldest)) = (&view.head, view.oldest_height) else {
                return Ok(Replay::default());
            };
            let is_behind_head = match from {
                Place::Height(height) => head.height < height,
                Place::Index(index) => view.head_pos.index < index,
            };
            if is_behind_head {
                return Ok(Replay::default());
            }
            // A row that is not there was pruned since the view was taken.
            let start = match seek(db, oldest)? {
                Some((height, row)) if height == oldest => {
                    let is_below = match from {
                        Place::Height(height) => height < oldest,
                        Place::Index(index) => index < row.index,
                    };
                    match from {
                        _ if is_below && view.has_pruned => {
                            Err(ReplayError::Pruned { height: oldest, index: row.index })
                        }
                        _ if is_below => Ok(oldest),
                        Place::Height(height) => Ok(height),
                        Place::Index(index) => height_at(db, index, oldest, head.height).map_err(Into::into),
                    }
                }
                Some(_) | None => Ok(oldest),
            };
            let replay = start.and_then(|start| {
                if let Some((height, row)) = seek(db, start)?
                    && height <= head.height
                    && max_bytes < row.stored_bytes
                {
                    let needs = Some(First { index: row.index, bytes: row.stored_bytes });
                    return Ok((start, Replay { blocks: Vec::new(), has_more: true, needs }));
                }
                let mut blocks = Vec::new();
                let next = each_row(db, start, head.height, limit, max_bytes, |_, row, block| {
                    let trace_id = <[u8; 16]>::try_from(row.trace_id.as_ref()).ok();
                    blocks.push(Replayed { stored: stored_block(&row, block)?, trace_id });
                    Ok(())
                })?;
                Ok((start, Replay { blocks, has_more: next.is_some(), needs: None }))
            });
            // The files of blocks that were pruned meanwhile may be gone: then begin anew.
            let floor = self.view().oldest_height;
            match replay {
                Ok((start, replay)) if floor.is_none_or(|floor| floor <= start) => return Ok(replay),
                Err(error) if floor == Some(oldest) => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
    }
}

/// The first row at or above a height.
fn seek(db: &StateDb, height: Height) -> Result<Option<(Height, BlockRow)>, ReadError> {
    let Some(item) = db.from(Family::Rows, &height_key(height)).next() else { return Ok(None) };
    let (key, row) = item?;
    Ok(Some((decode_height(&key)?, decode_row(&row)?)))
}

/// The least height from which on no row lies before an index; the row at `high` does not.
fn height_at(db: &StateDb, index: LogIndex, low: Height, high: Height) -> Result<Height, ReadError> {
    let (mut low, mut high) = (low, high);
    while low < high {
        let middle = low + (high - low) / 2;
        match seek(db, middle)? {
            Some((height, row)) if row.index < index => low = height + 1,
            Some(_) | None => high = middle,
        }
    }
    Ok(low)
}
