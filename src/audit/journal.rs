//! One numbered sequence of records in the node's own store.
//!
//! Appending never waits: a record gets its id at once, is kept in memory, and one task writes what waits,
//! synced. Ids rise from 1 without a hole; the oldest records go when there are too many. While the disk is
//! full what was appended stays in memory, at most [`PENDING_MAX`] records.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use crate::store;
use crate::store::local::Record;

/// Records that wait for a full disk. By eye: an operator's hour; with the bound of their bytes some 8 MiB.
pub(crate) const PENDING_MAX: usize = 1_000;
/// Records that one synced write takes.
const BATCH_MAX: usize = 256;
/// Before a write that failed is tried again: the store has failed, and the node is about to exit.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Records read at once where all are looked at.
const CHUNK: usize = 512;

/// What makes one sequence of another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec {
    /// Of its keys; ends with a slash.
    pub(crate) prefix: &'static [u8],
    /// Records that are kept.
    pub(crate) kept: u64,
    /// What is written in the same batch: given the newest record, and the newest of those that are dropped.
    pub(crate) beside: fn(newest: &Entry, dropped: Option<&Entry>) -> Vec<Record>,
}

/// A record and its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) value: Bytes,
}

/// A part of the sequence, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Page {
    pub(crate) entries: Vec<Entry>,
    /// Present if and only if more follows.
    pub(crate) next: Option<u64>,
}

/// Cheap to clone; all clones are one sequence.
#[derive(Clone)]
pub(crate) struct Journal {
    shared: Arc<Shared>,
}

struct Shared {
    spec: Spec,
    local: store::Local,
    /// A lock, held for a push or a copy: who appends must not wait for a task.
    memory: Mutex<Memory>,
    woken: Notify,
    /// Id of the newest record that is durable.
    durable: watch::Sender<u64>,
}

struct Memory {
    /// Of the newest record, 0 before the first.
    last_id: u64,
    last: Option<Bytes>,
    /// Id of the oldest record that is kept.
    oldest: u64,
    /// Not durable yet; its ids end with `last_id`.
    pending: VecDeque<Entry>,
    /// Records that found no room since the last one that did.
    lost: u64,
}

/// More records wait for the disk than may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

fn key(prefix: &[u8], id: u64) -> Vec<u8> {
    [prefix, &id.to_be_bytes()].concat()
}

fn entry_of(prefix: &[u8], key: &[u8], value: Bytes) -> Option<Entry> {
    let id = key.get(prefix.len()..)?.try_into().ok().map(u64::from_be_bytes)?;
    Some(Entry { id, value })
}

impl Journal {
    /// Blocking. The sequence goes on behind `floor`, an id and the value of its record, where the store
    /// holds less than that.
    pub(crate) fn open(local: store::Local, spec: Spec, floor: Option<Entry>) -> io::Result<Self> {
        let first = local.scan(spec.prefix, spec.prefix, 1)?;
        let last = local.scan_last(spec.prefix, 1)?;
        let entry = |found: Vec<(Bytes, Bytes)>| {
            found.into_iter().find_map(|(key, value)| entry_of(spec.prefix, &key, value))
        };
        let oldest = entry(first).map(|e| e.id);
        let stored = entry(last);
        let last = match (stored, floor) {
            (Some(stored), Some(floor)) if stored.id < floor.id => Some(floor),
            (Some(stored), _) => Some(stored),
            (None, floor) => floor,
        };
        let last_id = last.as_ref().map_or(0, |e| e.id);
        let memory = Memory {
            last_id,
            last: last.map(|e| e.value),
            oldest: oldest.unwrap_or(last_id + 1),
            pending: VecDeque::new(),
            lost: 0,
        };
        Ok(Self {
            shared: Arc::new(Shared {
                spec,
                local,
                memory: Mutex::new(memory),
                woken: Notify::new(),
                durable: watch::Sender::new(last_id),
            }),
        })
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Plain data: what a panicking holder leaves behind is as good as any.
        self.shared.memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds a record; `make` is given its id and the value of the one before. Never waits.
    pub(crate) fn append(&self, make: impl FnOnce(u64, Option<&Bytes>) -> Bytes) -> Result<u64, Full> {
        let id = {
            let mut memory = self.memory();
            if PENDING_MAX <= memory.pending.len() {
                memory.lost += 1;
                return Err(Full);
            }
            let id = memory.last_id + 1;
            let value = make(id, memory.last.as_ref());
            memory.last_id = id;
            memory.last = Some(value.clone());
            memory.pending.push_back(Entry { id, value });
            id
        };
        self.shared.woken.notify_one();
        Ok(id)
    }

    /// How many records were lost since this was asked last, once there is room again to say so.
    pub(crate) fn take_lost(&self) -> Option<u64> {
        let mut memory = self.memory();
        let has_room = memory.pending.len() < PENDING_MAX;
        (has_room && 0 < memory.lost).then(|| std::mem::take(&mut memory.lost))
    }

    /// Ids of the oldest record that is kept and of the newest; the newest is 0 before the first.
    pub(crate) fn ends(&self) -> (u64, u64) {
        let memory = self.memory();
        (memory.oldest, memory.last_id)
    }

    /// Returns when the record is durable.
    pub(crate) async fn durable(&self, id: u64) {
        let mut durable = self.shared.durable.subscribe();
        // The sender lives as long as this handle.
        let _ = durable.wait_for(|durable| id <= *durable).await;
    }

    /// Returns when everything appended so far is durable.
    pub(crate) async fn flush(&self) {
        let last = self.ends().1;
        self.durable(last).await;
    }

    /// Writes what waits, until it is dropped.
    pub(crate) async fn run(&self) {
        let mut has_failed = false;
        loop {
            let batch: Vec<Entry> = self.memory().pending.iter().take(BATCH_MAX).cloned().collect();
            if batch.is_empty() {
                self.shared.woken.notified().await;
                continue;
            }
            match self.write(batch).await {
                Ok(()) => has_failed = false,
                Err(error) => {
                    if !std::mem::replace(&mut has_failed, true) {
                        tracing::warn!(%error, "records of this node cannot be written");
                    }
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    async fn write(&self, batch: Vec<Entry>) -> io::Result<()> {
        let Some(newest) = batch.last().cloned() else { return Ok(()) };
        let spec = self.shared.spec;
        let oldest = self.memory().oldest;
        let oldest_kept = (newest.id + 1).saturating_sub(spec.kept).max(oldest);
        let dropped = match oldest_kept.checked_sub(1).filter(|last| oldest <= *last) {
            Some(id) => self.read(id, id).await?.into_iter().next(),
            None => None,
        };
        let mut records: Vec<Record> =
            batch.into_iter().map(|e| (key(spec.prefix, e.id), Some(e.value))).collect();
        records.extend((oldest..oldest_kept).map(|id| (key(spec.prefix, id), None)));
        records.extend((spec.beside)(&newest, dropped.as_ref()));
        self.shared.local.write(records).await?;
        {
            let mut memory = self.memory();
            memory.oldest = oldest_kept;
            while memory.pending.front().is_some_and(|e| e.id <= newest.id) {
                memory.pending.pop_front();
            }
        }
        self.shared.durable.send_replace(newest.id);
        Ok(())
    }

    /// At most `limit` records from an id on; without one the newest.
    pub(crate) async fn page(&self, from: Option<u64>, limit: usize) -> io::Result<Page> {
        let (oldest, last_id) = self.ends();
        let newest = (last_id + 1).saturating_sub(limit as u64);
        let from = from.unwrap_or(newest).max(oldest);
        let upto = last_id.min(from.saturating_add(limit as u64).saturating_sub(1));
        let entries = self.read(from, upto).await?;
        let next = entries.last().map(|e| e.id + 1).filter(|next| *next <= last_id);
        Ok(Page { entries, next })
    }

    /// At most `limit` of the records that `is_wanted`, from an id on; without one the newest of them.
    pub(crate) async fn search(
        &self,
        from: Option<u64>,
        limit: usize,
        is_wanted: impl Fn(&Entry) -> bool,
    ) -> io::Result<Page> {
        let (oldest, last_id) = self.ends();
        let mut found = VecDeque::new();
        let mut at = from.unwrap_or(oldest).max(oldest);
        while at <= last_id {
            let upto = last_id.min(at + CHUNK as u64 - 1);
            for entry in self.read(at, upto).await?.into_iter().filter(|e| is_wanted(e)) {
                if found.len() == limit {
                    match from {
                        Some(_) => return Ok(Page { entries: found.into(), next: Some(entry.id) }),
                        // The newest are wanted, and there is one more.
                        None => found.pop_front(),
                    };
                }
                found.push_back(entry);
            }
            at = upto + 1;
        }
        Ok(Page { entries: found.into(), next: None })
    }

    /// Records of `from..=upto`, those that wait for the disk included.
    pub(crate) async fn read(&self, from: u64, upto: u64) -> io::Result<Vec<Entry>> {
        if upto < from {
            return Ok(Vec::new());
        }
        // First those in memory: what leaves it meanwhile can be read by then.
        let waiting: Vec<Entry> =
            self.memory().pending.iter().filter(|e| from <= e.id && e.id <= upto).cloned().collect();
        let stored_upto = waiting.first().map_or(upto, |e| e.id - 1);
        if stored_upto < from {
            return Ok(waiting);
        }
        let (local, prefix) = (self.shared.local.clone(), self.shared.spec.prefix);
        let read = move || {
            let n = usize::try_from(stored_upto - from + 1).unwrap_or(usize::MAX);
            local.scan(prefix, &key(prefix, from), n)
        };
        let stored = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
        Ok(stored
            .into_iter()
            .filter_map(|(key, value)| entry_of(prefix, &key, value))
            .filter(|e| e.id <= stored_upto)
            .chain(waiting)
            .collect())
    }

    /// Chunks of everything that is kept, from the oldest on; for who looks at all of it.
    pub(crate) async fn each_chunk(&self, mut look: impl FnMut(&[Entry])) -> io::Result<()> {
        let (mut at, last_id) = self.ends();
        while at <= last_id {
            let upto = last_id.min(at + CHUNK as u64 - 1);
            look(&self.read(at, upto).await?);
            at = upto + 1;
        }
        Ok(())
    }
}
