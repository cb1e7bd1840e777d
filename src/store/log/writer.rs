//! The thread that writes the log.
//!
//! Takes whatever waits, up to 4 MiB, writes it in one synced batch, then reports: the newest
//! `Notify` callback and every `Signal`, in order. Never tries a failed sync again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::storage::IOFlushed;
use prost::Message;
use rocksdb::{WriteBatch, WriteOptions};
use tokio::sync::oneshot;

use crate::raft::convert::vote_to_proto;
use crate::raft::{TypeConfig, Vote, storage_error};
use crate::store::codec::{self, Edge, KEY_BYTES};
use crate::store::files;
use crate::store::health::{Database, Fatal};
use crate::store::log::Shared;
use crate::store::log::payloads::{Failed as Unwritten, Filler, PAYLOAD_BYTES_MIN, Place, WRITE_BYTES_MIN};
use crate::store::log::queue::{Group, Op};
use crate::store::log::room::Room;
use crate::store::rocks::{self, Db, WriteError};
use crate::store::watermark::Watermark;
use crate::types::LogIndex;
use crate::types::position::LogPos;

/// Keys of the log's own records.
pub(crate) const KEY_VOTE: &[u8] = b"mvote";
pub(crate) const KEY_COMMITTED: &[u8] = b"mcommitted";
pub(crate) const KEY_PURGED: &[u8] = b"mpurged";

/// How long a write that met a full disk waits. By eye: far below RocksDB's own 5 s.
const FULL_PAUSE: Duration = Duration::from_millis(100);

pub(crate) struct Writer {
    shared: Arc<Shared>,
    db: Arc<Db>,
    watermark: Watermark,
    room: Room,
    filler: Filler,
    /// Where the log ends once everything taken so far is written.
    last: Option<Edge>,
    /// Index of the first entry that may still be in the database.
    first: u64,
}

/// Who is to be told once a group is durable.
#[derive(Default)]
struct Reports {
    callbacks: Vec<IOFlushed<TypeConfig>>,
    since: Vec<Instant>,
    votes: Vec<(Vote, oneshot::Sender<()>)>,
    locals: Vec<oneshot::Sender<()>>,
    synced: Vec<LogPos>,
}

/// Why a group was not written.
enum Failed {
    Sync(String),
    /// The store was closed while the disk was full.
    Closed,
}

/// Why an attempt to write was in vain.
struct Refused {
    kind: WriteError,
    what: String,
}

impl From<rocksdb::Error> for Refused {
    fn from(e: rocksdb::Error) -> Self {
        Self { kind: rocks::classify(&e), what: e.into_string() }
    }
}

impl From<Unwritten> for Refused {
    fn from(e: Unwritten) -> Self {
        match e {
            Unwritten::Write(e) if files::is_no_space(&e) => {
                Self { kind: WriteError::NoSpace, what: e.to_string() }
            }
            Unwritten::Write(e) => Self { kind: WriteError::Fatal, what: format!("a payload: {e}") },
            Unwritten::Sync(e) => Self { kind: WriteError::Fatal, what: format!("sync of a payload: {e}") },
        }
    }
}

fn may_be_placed(payload: &[u8]) -> bool {
    PAYLOAD_BYTES_MIN <= payload.len()
}

/// The payloads of a group that lie in files of their own, if they are enough for that: all that may, or none.
fn to_place(ops: &[Op]) -> Vec<(LogIndex, &[u8])> {
    let payloads: Vec<(LogIndex, &[u8])> = ops
        .iter()
        .filter_map(|op| match op {
            Op::Entry { frame, payload } if may_be_placed(payload) => Some((frame.pos.index, &payload[..])),
            _ => None,
        })
        .collect();
    let bytes: usize = payloads.iter().map(|(_, payload)| payload.len()).sum();
    if WRITE_BYTES_MIN <= bytes { payloads } else { Vec::new() }
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        db: Arc<Db>,
        watermark: Watermark,
        room: Room,
        filler: Filler,
        last: Option<Edge>,
        first: u64,
    ) -> Self {
        Self { shared, db, watermark, room, filler, last, first }
    }

    /// Runs until the queue is closed and empty, or a write failed for good.
    pub(crate) fn run(mut self) {
        while let Some(group) = self.shared.queue.take() {
            // Whatever ended this node, nothing is reported durable after it.
            if self.shared.health.is_fatal() {
                self.fail(group, "the store cannot go on");
                break;
            }
            if !self.write(group) {
                break;
            }
        }
        // Who still waits learns that nobody will answer: dropping the senders tells them.
        self.shared.queue.abandon();
    }

    fn write(&mut self, group: Group) -> bool {
        if let Some(after) = lowest_truncation(&group.ops)
            && !self.watermark.lower(after)
        {
            self.fail(group, "the watermark could not be lowered before the log is cut");
            return false;
        }
        self.room.look();
        let n_entries = group.ops.iter().filter(|op| matches!(op, Op::Entry { .. })).count();
        let (last, took) = match self.write_synced(&group) {
            Ok(written) => written,
            Err(Failed::Sync(what)) => {
                self.shared.health.set_fatal(Fatal::SyncFailed { what: what.clone() });
                self.fail(group, &what);
                return false;
            }
            // Nobody was told that it was written, and nobody will be.
            Err(Failed::Closed) => return false,
        };
        self.last = last;
        if 0 < n_entries {
            self.shared.metrics.sync_batch_entries.observe(n_entries as f64);
        }
        let purged = highest_purge(&group.ops);
        self.report(group, took);
        purged.into_iter().for_each(|upto| self.filler.purged(upto));
        true
    }

    /// Writes until it is durable or has failed for good. A full disk is neither.
    fn write_synced(&mut self, group: &Group) -> Result<(Option<Edge>, Duration), Failed> {
        let mut places = Vec::new();
        let mut is_blocked = false;
        loop {
            let began = Instant::now();
            self.shared.health.sync_began(began);
            let result = self.attempt(group, &mut places);
            self.shared.health.sync_ended();
            let took = began.elapsed();
            let Refused { kind, what } = match result {
                Ok((last, first)) => {
                    self.shared.metrics.sync_seconds.observe(took.as_secs_f64());
                    self.first = first;
                    if is_blocked {
                        self.shared.health.set_blocked(Database::Log, false);
                    }
                    return Ok((last, took));
                }
                Err(refused) => refused,
            };
            self.shared.metrics.error("log", if kind == WriteError::Fatal { "sync" } else { "write" });
            if kind == WriteError::Fatal {
                return Err(Failed::Sync(what));
            }
            if !is_blocked {
                tracing::warn!(
                    error = what,
                    "the log cannot be written: disk full; tried again until space returns"
                );
                self.shared.health.set_blocked(Database::Log, true);
                is_blocked = true;
            }
            if !self.shared.queue.pause(FULL_PAUSE) {
                return Err(Failed::Closed);
            }
            self.shared.metrics.stall_seconds("log").inc_by(began.elapsed().as_secs_f64());
        }
    }

    /// The payloads first: a record that is there has its payload. The log's end after it, and its first index.
    fn attempt(&mut self, group: &Group, places: &mut Vec<Place>) -> Result<(Option<Edge>, u64), Refused> {
        if places.is_empty() {
            *places = self.filler.write(&to_place(&group.ops))?;
        }
        let (batch, last, first) = self.batch(group, places);
        let mut options = WriteOptions::default();
        // Each record, `committed` alone too: that nothing whole lies behind a torn one is what tells it from damage.
        options.set_sync(true);
        self.db.write_opt(batch, &options)?;
        Ok((last, first))
    }

    /// The batch of a group, the log's end after it, and its first index after it.
    fn batch(&self, group: &Group, places: &[Place]) -> (WriteBatch, Option<Edge>, u64) {
        let local = self.db.cf_handle("local").expect("the family was opened");
        let bytes = if places.is_empty() { group.bytes as usize } else { 0 };
        let mut batch = WriteBatch::with_capacity_bytes(bytes + group.ops.len() * KEY_BYTES);
        let mut places = places.iter();
        let (mut last, mut first) = (self.last, self.first);
        let mut committed = None;
        for op in &group.ops {
            match op {
                Op::Entry { frame, payload } => {
                    match may_be_placed(payload).then(|| places.next()).flatten() {
                        Some(place) => batch.put(frame.to_key(), place.to_bytes()),
                        None => batch.put(frame.to_key(), payload),
                    }
                    last = Some(frame.edge());
                }
                Op::Vote { vote, .. } => batch.put(KEY_VOTE, vote_to_proto(vote).encode_to_vec()),
                // Only the newest: its place among the entries of one batch does not matter.
                Op::Committed(pos) => committed = Some(*pos),
                Op::Truncate { after } => {
                    let from = after.map_or(first, |e| e.pos.index + 1);
                    batch.delete_range(&codec::first_key(from)[..], &codec::ENTRIES_END[..]);
                    last = *after;
                }
                Op::Purge { upto } => {
                    batch.put(KEY_PURGED, codec::edge_to_bytes(*upto));
                    // From the last purge on, not from 0: else every range covers all those before it.
                    if first <= upto.pos.index {
                        batch.delete_range(codec::first_key(first), codec::first_key(upto.pos.index + 1));
                        first = upto.pos.index + 1;
                    }
                    if last.is_none_or(|l| l.pos.index <= upto.pos.index) {
                        last = Some(*upto);
                    }
                }
                Op::Local { records, .. } => {
                    for (key, value) in records {
                        match value {
                            Some(value) => batch.put_cf(local, key, value),
                            None => batch.delete_cf(local, key),
                        }
                    }
                }
                Op::Flushed { .. } => {}
            }
        }
        if let Some(pos) = committed {
            batch.put(KEY_COMMITTED, codec::edge_to_bytes(Edge { pos, link: codec::NO_LINK }));
        }
        (batch, last, first)
    }

    fn report(&self, group: Group, took: Duration) {
        let last_seq = group.last_seq;
        let mut reports = Reports::default();
        group.ops.into_iter().for_each(|op| reports.add(op));
        let now = Instant::now();
        self.shared.instants.synced(&reports.synced, now, took);
        self.shared.set_synced_index(self.last.map_or(0, |e| e.pos.index));
        self.shared.tail().evict(last_seq);
        self.shared.synced.send_replace(last_seq);
        // After the sync it records; a vote's below is answered once the watermark has it too.
        self.watermark.advance(self.last);
        for since in &reports.since {
            self.shared.metrics.append_seconds.observe((now - *since).as_secs_f64());
        }
        let newest = reports.callbacks.iter().rposition(|c| matches!(c, IOFlushed::Notify(_)));
        for (i, callback) in reports.callbacks.into_iter().enumerate() {
            match &callback {
                IOFlushed::Notify(_) if Some(i) != newest => {}
                IOFlushed::Notify(_) | IOFlushed::Signal(_) | IOFlushed::Noop => {
                    callback.io_completed(Ok(()))
                }
            }
        }
        for (vote, done) in reports.votes {
            self.watermark.vote(vote, done);
        }
        for done in reports.locals {
            let _ = done.send(());
        }
    }

    /// Everybody in the group, and everybody behind it, learns that it failed.
    fn fail(&self, group: Group, what: &str) {
        let mut reports = Reports::default();
        group.ops.into_iter().for_each(|op| reports.add(op));
        for callback in reports.callbacks {
            callback.io_completed(Err(storage_error(what)));
        }
    }
}

impl Reports {
    fn add(&mut self, op: Op) {
        match op {
            Op::Entry { frame, .. } => self.synced.push(frame.pos),
            Op::Flushed { callback, since } => {
                self.callbacks.push(callback);
                self.since.push(since);
            }
            Op::Vote { vote, done } => self.votes.push((vote, done)),
            Op::Local { done, .. } => self.locals.extend(done),
            Op::Committed(_) | Op::Truncate { .. } | Op::Purge { .. } => {}
        }
    }
}

/// The highest index that the group purges.
fn highest_purge(ops: &[Op]) -> Option<u64> {
    ops.iter()
        .filter_map(|op| match op {
            Op::Purge { upto } => Some(upto.pos.index),
            _ => None,
        })
        .max()
}

/// The lowest end that the log has within the group; `None`: nothing is cut.
fn lowest_truncation(ops: &[Op]) -> Option<Option<Edge>> {
    ops.iter()
        .filter_map(|op| match op {
            Op::Truncate { after } => Some(*after),
            _ => None,
        })
        .min_by_key(|after| after.map(|e| e.pos.index))
}
