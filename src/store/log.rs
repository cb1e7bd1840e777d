//! The raft log.
//!
//! Driven by openraft through [`LogStore`]. `append` puts entries into memory, where they can be
//! read at once, and into the queue of the one thread that writes ([`writer`]); only a vote waits
//! for the disk. Knows nothing of what the entries mean.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use futures::Stream;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::{oneshot, watch};

use crate::instants::{Instants, Mark};
use crate::machine::command::Origin;
use crate::raft::{Entry, LogId, TypeConfig, Vote, log_id_of, pos_of, storage_error};
use crate::store::codec::{Edge, NO_LINK};
use crate::store::health::{Fatal, Health};
use crate::store::log::payloads::Payloads;
use crate::store::log::queue::{Op, Queue};
use crate::store::log::tail::Tail;
use crate::store::metrics::Metrics;
use crate::store::rocks::Db;
use crate::types::{LogIndex, position::LogPos};

pub(crate) mod age;
pub(crate) mod open;
pub(crate) mod payloads;
pub(crate) mod queue;
pub(crate) mod read;
pub(crate) mod room;
pub(crate) mod tail;
pub(crate) mod wal;
pub(crate) mod writer;

/// Where the log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LogStats {
    pub(crate) purged: Option<LogPos>,
    pub(crate) last: Option<LogPos>,
    /// Last index that this node's own sync covers.
    pub(crate) synced: LogIndex,
    /// Stored bytes and number of the entries that are not purged.
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

/// The log, as openraft sees it. Cheap to clone; all clones are one log.
#[derive(Clone)]
pub(crate) struct LogStore {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    /// Guards the end of the log for a few pushes or clones; read on every replication.
    tail: Mutex<Tail>,
    pub(crate) queue: Queue,
    /// Number of the last operation that is durable.
    pub(crate) synced: watch::Sender<u64>,
    synced_index: AtomicU64,
    /// Emptied at close, so that the database is dropped whoever still holds a handle.
    db: ArcSwapOption<Db>,
    payloads: Payloads,
    pub(crate) health: Health,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) instants: Arc<Instants>,
    oldest: age::Oldest,
}

impl Shared {
    pub(crate) fn new(
        tail: Tail,
        db: Arc<Db>,
        payloads: Payloads,
        health: Health,
        metrics: Arc<Metrics>,
        instants: Arc<Instants>,
    ) -> Arc<Self> {
        let synced_index = AtomicU64::new(tail.last().map_or(0, |e| e.pos.index));
        Arc::new(Self {
            tail: Mutex::new(tail),
            queue: Queue::default(),
            synced: watch::Sender::new(0),
            synced_index,
            db: ArcSwapOption::from(Some(db)),
            payloads,
            health,
            metrics,
            instants,
            oldest: age::Oldest::new(),
        })
    }

    pub(crate) fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(|p| p.into_inner())
    }

    pub(crate) fn db(&self) -> io::Result<Arc<Db>> {
        self.db.load_full().ok_or_else(|| storage_error("the log is closed"))
    }

    pub(crate) fn close_db(&self) {
        self.db.store(None);
    }

    fn set_synced_index(&self, index: LogIndex) {
        self.synced_index.store(index, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> LogStats {
        let tail = self.tail();
        LogStats {
            purged: tail.purged.map(|e| e.pos),
            last: tail.last().map(|e| e.pos),
            synced: self.synced_index.load(Ordering::Relaxed),
            bytes: tail.bytes_after(None),
            entries: tail.len(),
        }
    }

    /// Waits until this very entry is durable here, if the log holds it and it is not yet
    /// (safety rule 3). Never returns when its sync failed.
    pub(crate) async fn await_synced(&self, pos: LogPos) {
        let Some(seq) = self.tail().seq_of(pos) else { return };
        let mut synced = self.synced.subscribe();
        if synced.wait_for(|synced| seq <= *synced).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until everything that was queued so far is durable. Never returns when it cannot be.
    pub(crate) async fn await_written(&self) {
        let (done, written) = oneshot::channel();
        self.write_local(Vec::new(), Some(done));
        if written.await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Records of this node alone, in the order of the log's queue.
    pub(crate) fn write_local(
        &self,
        records: Vec<(Vec<u8>, Option<bytes::Bytes>)>,
        done: Option<oneshot::Sender<()>>,
    ) {
        self.queue.add().push(Op::Local { records, done });
    }

    fn edge_at(&self, index: LogIndex) -> io::Result<Edge> {
        if let Some(edge) = self.tail().edge_of(index) {
            return Ok(edge);
        }
        read::frame_at(&*self.db()?, index)
            .and_then(|frame| frame.ok_or(read::ReadError::Missing { index }))
            .map(|frame| frame.edge())
            .map_err(|e| self.damaged(&e))
    }

    /// A stored entry that cannot be read ends the node; where it is damaged, a restart will not help.
    fn damaged(&self, error: &read::ReadError) -> io::Error {
        self.metrics.error("log", "read");
        let what = format!("log: {error}");
        let fatal = if error.is_damage() { Fatal::Damaged { what } } else { Fatal::ReadFailed { what } };
        self.health.set_fatal(fatal);
        storage_error(error)
    }
}

impl LogStore {
    /// Entries of `[start, end)` that the log holds; at most about `max_bytes`, but one.
    async fn read(&self, start: LogIndex, end: LogIndex, max_bytes: u64) -> io::Result<Vec<Entry>> {
        loop {
            let found = self.shared.tail().read(start, end, max_bytes);
            if found.cold.is_empty() {
                return Ok(found.entries);
            }
            let (db, payloads, cold) = (self.shared.db()?, self.shared.payloads.clone(), found.cold.clone());
            let result = tokio::task::spawn_blocking(move || read::entries(&db, &payloads, cold, max_bytes))
                .await
                .map_err(storage_error)?;
            if self.shared.tail().generation != found.generation {
                // The log was cut meanwhile: what was read may be gone, or never have been whole.
                continue;
            }
            // A purge may have taken the first of them; a hole behind that is damage.
            let first = self.shared.tail().first_index();
            if let Err(read::ReadError::Payload { index, .. }) = &result
                && *index < first
            {
                // Where it lay, another lies by now.
                continue;
            }
            let mut entries = result.map_err(|e| self.shared.damaged(&e))?;
            entries.retain(|e| first <= e.log_id.index);
            let expected = found.cold.start.max(first);
            match entries.first() {
                None if expected < found.cold.end => {
                    return Err(self.shared.damaged(&read::ReadError::Missing { index: expected }));
                }
                Some(e) if e.log_id.index != expected => {
                    return Err(self.shared.damaged(&read::ReadError::Missing { index: expected }));
                }
                _ => {}
            }
            if max_bytes == u64::MAX {
                // Nothing bounded this read, so what it lacks at its end is missing.
                if let Some(next) = entries.last().map(|e| e.log_id.index + 1)
                    && next != found.cold.end
                {
                    return Err(self.shared.damaged(&read::ReadError::Missing { index: next }));
                }
                entries.extend(found.entries);
            }
            return Ok(entries);
        }
    }

    /// The entries of a range in chunks of about [`read::CHUNK_BYTES`].
    fn stream(self, range: std::ops::Range<LogIndex>) -> impl Stream<Item = io::Result<Entry>> + Send {
        let chunks = futures::stream::try_unfold((self, range), |(log, range)| async move {
            if range.is_empty() {
                return Ok(None);
            }
            let entries = log.read(range.start, range.end, read::CHUNK_BYTES).await?;
            let Some(last) = entries.last() else { return Ok(None) };
            let next = last.log_id.index + 1..range.end;
            let chunk = futures::stream::iter(entries.into_iter().map(Ok));
            Ok::<_, io::Error>(Some((chunk, (log, next))))
        });
        futures::TryStreamExt::try_flatten(chunks)
    }

    /// Marks what became committed in the ring of instants.
    fn mark_committed(&self, from: LogIndex, upto: LogIndex) {
        let now = Instant::now();
        let positions: Vec<LogPos> = {
            let tail = self.shared.tail();
            (from..=upto).filter_map(|i| tail.edge_of(i)).map(|e| e.pos).collect()
        };
        positions.into_iter().for_each(|pos| self.shared.instants.mark(pos, Mark::Committed, now));
    }

    /// Those that came from another node carry a CRC that somebody else computed.
    fn check(&self, entry: &Entry) -> io::Result<Option<Origin>> {
        let openraft::EntryPayload::Normal(command) = &entry.payload else { return Ok(None) };
        if command.origin.is_none() && crc32fast::hash(&command.payload) != command.crc {
            let what = format!("entry {} does not have the CRC that it came with", entry.log_id.index);
            self.shared.health.set_fatal(Fatal::Damaged { what: what.clone() });
            return Err(storage_error(what));
        }
        Ok(command.origin)
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> std::ops::Range<LogIndex> {
    let start = match range.start_bound() {
        Bound::Included(i) => *i,
        Bound::Excluded(i) => i + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(i) => i.saturating_add(1),
        Bound::Excluded(i) => *i,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let range = bounds(&range);
        self.read(range.start, range.end, u64::MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.tail().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, read::CHUNK_BYTES).await
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        self.clone().stream(bounds(&range))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let tail = self.shared.tail();
        Ok(LogState {
            last_purged_log_id: tail.purged.map(|e| log_id_of(e.pos)),
            last_log_id: tail.last().map(|e| log_id_of(e.pos)),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, durable) = oneshot::channel();
        {
            let mut tail = self.shared.tail();
            tail.queued_vote = Some(*vote);
            self.shared.queue.add().push(Op::Vote { vote: *vote, done });
        }
        durable.await.map_err(|_| storage_error("the vote could not be written"))?;
        self.shared.tail().vote = Some(*vote);
        Ok(())
    }

    /// Rides in the next batch; in the order of the queue, so that it never names an entry that is
    /// not written yet.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(id) = committed else { return Ok(()) };
        let before = {
            let mut tail = self.shared.tail();
            self.shared.queue.add().push(Op::Committed(pos_of(&id)));
            tail.committed.replace(id)
        };
        self.mark_committed(before.map_or(id.index(), |b| b.index() + 1), id.index());
        Ok(())
    }

    /// What was saved, but no more than the log holds: openraft does not look.
    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let tail = self.shared.tail();
        Ok(tail.committed.min(tail.last().map(|e| log_id_of(e.pos))))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let since = Instant::now();
        let mut checked = Vec::new();
        for entry in entries {
            let origin = self.check(&entry)?;
            let pos = pos_of(&entry.log_id);
            if let Some(origin) = origin {
                self.shared.instants.mark(pos, Mark::Received, origin.received);
                self.shared.instants.mark(pos, Mark::Handed, origin.handed);
            }
            self.shared.instants.mark(pos, Mark::Appended, since);
            checked.push(entry);
        }
        let mut tail = self.shared.tail();
        let mut queue = self.shared.queue.add();
        for entry in checked {
            let (frame, payload) = tail.append(entry, queue.next_seq());
            queue.push(Op::Entry { frame, payload });
        }
        queue.push(Op::Flushed { callback, since });
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let after = last_log_id.map(|id| id.index());
        let (end, committed) = {
            let tail = self.shared.tail();
            (tail.last().map(|e| e.pos.index), tail.committed.map(|id| id.index()))
        };
        if end <= after {
            return Ok(());
        }
        if let Some(committed) = committed
            && after < Some(committed)
        {
            // Safety rule 8: what was committed is never cut; this data folder is not this node's.
            let fatal = Fatal::TruncateBelowCommitted { after, committed };
            self.shared.health.set_fatal(fatal.clone());
            return Err(storage_error(fatal));
        }
        let edge = after.map(|index| self.shared.edge_at(index)).transpose()?;
        let mut tail = self.shared.tail();
        if tail.truncate(edge) {
            self.shared.queue.add().push(Op::Truncate { after: tail.last() });
        }
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let pos = pos_of(&log_id);
        let (first, last) = {
            let tail = self.shared.tail();
            (tail.first_index(), tail.last())
        };
        if pos.index < first && self.shared.tail().purged.is_some_and(|p| pos <= p.pos) {
            return Ok(());
        }
        let is_held = last.is_some_and(|l| pos.index <= l.pos.index) && first <= pos.index;
        let link = if is_held { self.shared.edge_at(pos.index)?.link } else { NO_LINK };
        let upto = Edge { pos, link };
        let mut tail = self.shared.tail();
        let gone = tail.purge(upto);
        self.shared.queue.add().push(Op::Purge { upto });
        self.shared.metrics.purged_entries.inc_by(gone);
        Ok(())
    }
}
