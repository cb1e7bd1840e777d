//! Reading what was applied: blocks, where they came from, leaderships.
//!
//! A read takes the state and the view of one batch together, so it never sees a mix across an
//! install; the view moves on when a block it names was pruned meanwhile.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;

use crate::machine::apply::{Leadership, View, same_block};
use crate::raft::pos_of;
use crate::store::health::Fatal;
use crate::store::log::{self, LogStats};
use crate::store::state::db::{self, Family, StateDb, height_key, height_of};
use crate::store::state::{Published, Shared, merge};
use crate::store::{files, rocks};
use crate::types::block::{Block, Provenance, StoredBlock};
use crate::types::error::Accepted;
use crate::types::position::LogPos;
use crate::types::proto::{BlockRow, LeadershipRow, RaftBlockState};
use crate::types::{Height, LogIndex, Term};

pub(crate) mod replay;

/// Why a block is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadError {
    /// No block was applied at that height.
    #[error("there is no block at that height")]
    NotFound { oldest: Option<Height> },
    /// The height lies below the kept history.
    #[error("the height lies below the kept history")]
    Pruned { oldest: Option<Height> },
    /// The disk did not answer.
    #[error("the state cannot be read: {0}")]
    Storage(String),
}

/// Consecutive blocks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Page {
    pub(crate) blocks: Vec<StoredBlock>,
    /// Given iff more follows.
    pub(crate) next_height: Option<Height>,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reader {
    state: Arc<Shared>,
    log: Arc<log::Shared>,
}

impl Reader {
    pub(crate) fn new(state: Arc<Shared>, log: Arc<log::Shared>) -> Self {
        Self { state, log }
    }

    /// What the last batch left.
    pub(crate) fn view(&self) -> Arc<View> {
        self.state.view()
    }

    /// The state's hashes at the last indexes divisible by 500 that were seen, oldest first.
    pub(crate) fn hash_marks(&self) -> Vec<(LogIndex, [u8; 32])> {
        self.state.hash_marks()
    }

    /// Whether this node holds neither entry nor vote nor state.
    pub(crate) fn is_blank(&self) -> bool {
        let tail = self.log.tail();
        tail.last().is_none() && tail.queued_vote.is_none() && self.view().applied.term == 0
    }

    /// Changes with every leadership that is applied: its term.
    pub(crate) fn watch_leadership(&self) -> watch::Receiver<Term> {
        self.state.watch_leadership()
    }

    /// Entries up to it came with the state: loaded, replayed, or in a snapshot.
    pub(crate) fn history_upto(&self) -> LogIndex {
        self.state.history_upto()
    }

    /// Blocking, short.
    pub(crate) fn block(&self, height: Height) -> Result<StoredBlock, ReadError> {
        self.one(height, |db, row| {
            let bytes = db.bytes(Family::Blocks, &height_key(height))?;
            bytes.map(|b| stored_block(row, b)).transpose()
        })
    }

    /// Blocks from a height on, at least one of them, else at most `limit` and about `max_bytes`.
    /// Empty above the head. Blocking.
    pub(crate) fn range(&self, from: Height, limit: usize, max_bytes: u64) -> Result<Page, ReadError> {
        loop {
            let published = self.published()?;
            let view = &published.view;
            let Some(head) = &view.head else { return Ok(Page::default()) };
            if head.height < from {
                return Ok(Page::default());
            }
            check_kept(view, from)?;
            if let Some((blocks, next_height)) =
                self.state.recent().range(from, head.height, limit, max_bytes)
            {
                return Ok(Page { blocks, next_height });
            }
            let page = read_page(&published.db, from, head.height, limit, max_bytes)?;
            // The files of blocks that were pruned meanwhile may be gone: then begin anew.
            if self.view().oldest_height.is_none_or(|oldest| oldest <= from) {
                return Ok(page);
            }
        }
    }

    /// Blocking, short.
    pub(crate) fn provenance(&self, height: Height) -> Result<Provenance, ReadError> {
        let mut found = self.one(height, |_, row| Ok(Some(provenance_of(height, row))))?;
        found.applied_at_ms = self.state.applied_at(height);
        Ok(found)
    }

    /// The place of the same block, when it was applied and is kept. Blocking, short.
    pub(crate) fn find_same(&self, block: &Block) -> Option<Accepted> {
        let published = self.state.published()?;
        let view = &published.view;
        if view.head.as_ref()?.height < block.height || block.height < view.oldest_height? {
            return None;
        }
        let key = height_key(block.height);
        let read = |family| published.db.bytes(family, &key).ok().flatten();
        same_block(read(Family::Rows), || read(Family::Blocks), block)
    }

    /// Leaderships from a term on, oldest first; without one the newest. Blocking.
    pub(crate) fn leaderships(&self, from_term: Option<Term>, limit: usize) -> Vec<Leadership> {
        let Some(published) = self.state.published() else { return Vec::new() };
        let rows = published.db.leaderships().unwrap_or_else(|e| {
            tracing::warn!(error = %e, "the leaderships cannot be read");
            Vec::new()
        });
        let skipped = match from_term {
            Some(from) => rows.iter().take_while(|r| r.term < from).count(),
            None => rows.len().saturating_sub(limit),
        };
        rows.into_iter().skip(skipped).take(limit).map(leadership_of).collect()
    }

    /// The last entry that is known here to be committed, unless this node has voted in a later term.
    pub(crate) fn committed_before(&self, term: Term) -> Option<LogPos> {
        let tail = self.log.tail();
        let voted = tail.queued_vote.as_ref().map_or(0, |vote| vote.leader_id.term);
        tail.committed.as_ref().filter(|_| voted <= term).map(pos_of)
    }

    pub(crate) fn log_stats(&self) -> LogStats {
        self.log.stats()
    }

    /// Stored bytes of the entries behind an index: what a snapshot at it would free.
    pub(crate) fn log_bytes_after(&self, index: LogIndex) -> u64 {
        self.log.tail().bytes_after(Some(index))
    }

    /// Number of the log's last durable operation.
    pub(crate) fn log_moves(&self) -> watch::Receiver<u64> {
        self.log.synced.subscribe()
    }

    /// Flushes the state while applies go on, so that the snapshot that is to be asked for next is made of
    /// what was flushed. A failure is counted, and left to the snapshot.
    pub(crate) async fn flush_ahead(&self) {
        let Some(published) = self.state.published() else { return };
        let db = published.db.clone();
        let task = tokio::task::spawn_blocking(move || published.db.flush(published.view.applied.index));
        match task.await {
            // Without room a merge fails, and RocksDB then takes no write for a while.
            Ok(Ok(())) if !self.log.health.is_full() => merge::start(db),
            Ok(Err(error)) => {
                self.log.metrics.error("state", "flush");
                // A full disk is told of by itself; this is tried again and again meanwhile.
                match self.log.health.is_full() && rocks::is_no_space(&error) {
                    true => {
                        tracing::debug!(%error, "the state was not flushed ahead of a snapshot: disk full")
                    }
                    false => tracing::warn!(%error, "the state was not flushed ahead of a snapshot"),
                }
            }
            Ok(Ok(())) | Err(_) => {}
        }
    }

    /// Whether a file of a snapshot is, by another name, one of the state in force. Blocking, short.
    pub(crate) fn state_shares(&self, file: &Path) -> bool {
        let inode = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
        let (Some(published), Some(name)) = (self.state.published(), file.file_name()) else { return false };
        let own = inode(&published.db.path().join(name));
        own.is_some() && own == inode(file)
    }

    /// The state was found damaged on the disk: this process ends, the next one rebuilds it. Blocking, short.
    pub(crate) fn state_is_damaged(&self, what: &str) {
        let Some(published) = self.state.published() else { return };
        let path = published.db.path();
        if let Err(error) = db::mark_damaged(files::parent(path)) {
            tracing::warn!(%error, "the damaged state cannot be marked: it will not be rebuilt by itself");
        }
        self.log.health.set_fatal(Fatal::StateDamaged { what: format!("{}: {what}", path.display()) });
    }

    fn published(&self) -> Result<Arc<Published>, ReadError> {
        self.state.published().ok_or_else(|| ReadError::Storage("the store is closed".into()))
    }

    /// Reads one height; a block that is pruned under the read is looked for anew.
    fn one<T>(
        &self,
        height: Height,
        read: impl Fn(&StateDb, &BlockRow) -> Result<Option<T>, ReadError>,
    ) -> Result<T, ReadError> {
        loop {
            let published = self.published()?;
            let view = &published.view;
            check_kept(view, height)?;
            let row = published.db.bytes(Family::Rows, &height_key(height))?;
            if let Some(row) = row
                && let Some(found) = read(&published.db, &decode_row(&row)?)?
            {
                return Ok(found);
            }
            if self.view().oldest_height == view.oldest_height {
                return Err(ReadError::NotFound { oldest: view.oldest_height });
            }
        }
    }
}

impl From<rocksdb::Error> for ReadError {
    fn from(error: rocksdb::Error) -> Self {
        Self::Storage(error.into_string())
    }
}

/// Whether a height may be kept at all.
fn check_kept(view: &View, height: Height) -> Result<(), ReadError> {
    let oldest = view.oldest_height;
    match (&view.head, oldest) {
        (Some(head), Some(first)) if first <= height && height <= head.height => Ok(()),
        (Some(_), Some(first)) if height < first && view.has_pruned => Err(ReadError::Pruned { oldest }),
        _ => Err(ReadError::NotFound { oldest }),
    }
}

fn read_page(
    db: &StateDb,
    from: Height,
    head: Height,
    limit: usize,
    max_bytes: u64,
) -> Result<Page, ReadError> {
    let mut blocks = Vec::new();
    let next_height = each_row(db, from, head, limit, max_bytes, |_, row, block| {
        blocks.push(stored_block(&row, block)?);
        Ok(())
    })?;
    Ok(Page { blocks, next_height })
}

/// Gives rows and blocks from a height on, at least one, else at most `limit` and about `max_bytes`; the
/// height at which it stopped when more follows.
fn each_row(
    db: &StateDb,
    from: Height,
    head: Height,
    limit: usize,
    max_bytes: u64,
    mut give: impl FnMut(Height, BlockRow, Bytes) -> Result<(), ReadError>,
) -> Result<Option<Height>, ReadError> {
    let (mut n_given, mut bytes) = (0, 0);
    for item in db.from(Family::Rows, &height_key(from)) {
        let (key, row) = item?;
        let height = decode_height(&key)?;
        // The view is older than the database: what came later belongs to the next page.
        if head < height {
            break;
        }
        let row = decode_row(&row)?;
        bytes += row.stored_bytes;
        if limit.max(1) <= n_given || (max_bytes < bytes && 0 < n_given) {
            return Ok(Some(height));
        }
        let Some(block) = db.bytes(Family::Blocks, &key)? else { break };
        give(height, row, block)?;
        n_given += 1;
    }
    Ok(None)
}

fn decode_height(key: &[u8]) -> Result<Height, ReadError> {
    height_of(key).ok_or_else(|| ReadError::Storage("a row's key does not decode".into()))
}

fn decode_row(row: &[u8]) -> Result<BlockRow, ReadError> {
    BlockRow::decode(row).map_err(|e| ReadError::Storage(format!("a row does not decode: {e}")))
}

fn stored_block(row: &BlockRow, bytes: Bytes) -> Result<StoredBlock, ReadError> {
    let block = RaftBlockState::decode(bytes)
        .map_err(|e| ReadError::Storage(format!("the block of entry {} does not decode: {e}", row.index)))?;
    Ok(StoredBlock { block: block.into(), term: row.term, index: row.index })
}

fn provenance_of(height: Height, row: &BlockRow) -> Provenance {
    Provenance {
        height,
        hash: row.hash.clone(),
        timestamp: row.timestamp,
        term: row.term,
        index: row.index,
        proposer_id: row.proposer_id,
        proposed_at_ms: row.proposed_at_ms,
        applied_at_ms: None,
        trace_id: <[u8; 16]>::try_from(row.trace_id.as_ref()).ok(),
        header_bytes: row.header_bytes,
        data_bytes: row.data_bytes,
    }
}

fn leadership_of(row: LeadershipRow) -> Leadership {
    Leadership {
        pos: LogPos { term: row.term, index: row.index },
        node_id: row.node_id,
        cause: row.cause(),
        operation_id: row.operation_id,
        started_at_ms: row.started_at_ms,
    }
}
