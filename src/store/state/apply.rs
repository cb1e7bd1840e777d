//! Applying entries: as many as are ready share one batch, one write and one view.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::{FutureExt, Stream, StreamExt};
use openraft::storage::EntryResponder;
use openraft::{EntryPayload, StoredMembership};
use prost::Message;
use rocksdb::{WriteBatch, WriteOptions};

use crate::instants::Mark;
use crate::machine::Outcome;
use crate::machine::apply::Applying;
use crate::machine::command::Kind;
use crate::raft::convert::stored_membership_to_proto;
use crate::raft::{Entry, TypeConfig, pos_of};
use crate::store::codec;
use crate::store::health::{Database, Fatal};
use crate::store::metrics::{ApplyKind, CHECKPOINTS};
use crate::store::rocks::{self, WriteError};
use crate::store::state::StateMachine;
use crate::store::state::db::{self, Family, KEY_MACHINE, KEY_MEMBERSHIP, StateDb, height_key};
use crate::store::state::table::{Changes, Overlay};
use crate::store::state::told::Told;
use crate::store::tap::Tapped;
use crate::types::{Height, LogIndex, position::LogPos, proto};

/// Payload bytes that one batch takes at most, but one entry: as much as one sync of the log.
const BATCH_BYTES: u64 = 4 << 20;
/// Entries that one batch takes at most, so that answers are not held back for long.
const BATCH_ENTRIES: usize = 1024;
/// How long a write that met a full disk waits. By eye: far below RocksDB's own 5 s.
const FULL_PAUSE: Duration = Duration::from_millis(100);

/// What one batch came to.
struct Applied {
    changes: Changes,
    outcomes: Vec<Outcome>,
    /// What each entry took; its share of the write is added once that is known.
    took: Vec<Duration>,
    membership: Option<bytes::Bytes>,
}

impl StateMachine {
    pub(super) async fn apply_all<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        while let Some(first) = entries.next().await {
            let (entry, responder) = first?;
            let mut bytes = codec::payload_bytes(&entry);
            let (mut batch, mut responders) = (vec![entry], vec![responder]);
            // What is ready shares the batch; what is not would hold the answers back.
            while bytes < BATCH_BYTES
                && batch.len() < BATCH_ENTRIES
                && let Some(Some(next)) = entries.next().now_or_never()
            {
                let (entry, responder) = next?;
                bytes += codec::payload_bytes(&entry);
                batch.push(entry);
                responders.push(responder);
            }
            let unknown = batch.iter().position(is_unknown);
            let later = batch.split_off(unknown.unwrap_or(batch.len()));
            if !batch.is_empty() {
                let outcomes = self.apply_batch(&batch).await;
                for (responder, outcome) in responders.into_iter().zip(outcomes) {
                    if let Some(responder) = responder {
                        responder.send(outcome);
                    }
                }
            }
            if let Some(entry) = later.first() {
                self.stand_still::<()>(upgrade_needed(entry)).await;
            }
        }
        Ok(())
    }

    async fn apply_batch(&mut self, entries: &[Entry]) -> Vec<Outcome> {
        let last = pos_of(&entries[entries.len() - 1].log_id);
        self.log.await_synced(last).await;
        let started = Instant::now();
        let mut applied = match self.run_machine(entries) {
            Ok(applied) => applied,
            Err(e) => {
                self.metrics.error("state", "read");
                if let Err(e) = db::mark_damaged(&self.data_dir) {
                    tracing::warn!(error = %e, "the damaged state cannot be marked: it will not be rebuilt by itself");
                }
                let what = format!("{}: {e}", self.db.path().display());
                return self.stand_still(Fatal::StateDamaged { what }).await;
            }
        };
        let record = self.machine.record();
        let began = Instant::now();
        self.write(&applied, &record).await;
        let share = began.elapsed() / entries.len() as u32;
        for (entry, took) in entries.iter().zip(&mut applied.took) {
            *took += share;
            self.metrics.apply_seconds(kind_of(entry)).observe(took.as_secs_f64());
        }
        self.applied = Some(last);
        self.floor = applied.changes.floor;
        self.publish(entries, &applied, started);
        self.pruner.pruned_to(self.floor, &self.db, &self.metrics);
        applied.outcomes
    }

    /// Computes what the entries do; nothing is written yet.
    fn run_machine(&mut self, entries: &[Entry]) -> Result<Applied, rocksdb::Error> {
        let mut overlay = Overlay::new(&self.db, self.floor);
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut took = Vec::with_capacity(entries.len());
        let mut membership = None;
        let mut began = Instant::now();
        for entry in entries {
            let pos = pos_of(&entry.log_id);
            self.instants.mark(pos, Mark::ApplyStarted, began);
            let payload;
            let applying = match &entry.payload {
                EntryPayload::Blank => Applying::Blank,
                EntryPayload::Normal(command) => Applying::Command(command),
                EntryPayload::Membership(m) => {
                    payload = codec::membership_payload(m);
                    self.membership = StoredMembership::new(Some(entry.log_id), m.clone());
                    let stored = stored_membership_to_proto(&self.membership).encode_to_vec();
                    membership = Some(bytes::Bytes::from(stored));
                    Applying::Membership { crc: crc32fast::hash(&payload), length: payload.len() as u32 }
                }
            };
            let outcome = self.machine.apply(&mut overlay, pos, applying);
            let now = Instant::now();
            took.push(now - began);
            began = now;
            if self.replay_upto < pos.index {
                self.metrics.blocks.count(&outcome);
            }
            outcomes.push(outcome);
        }
        let changes = overlay.finish()?;
        Ok(Applied { changes, outcomes, took, membership })
    }

    /// Writes until it is written: a full disk is waited for.
    async fn write(&self, applied: &Applied, record: &[u8]) {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        // Waits for nothing, so that it may be done right here.
        options.set_no_slowdown(true);
        let mut result = self.db.db().write_opt(fill(&self.db, applied, record), &options);
        let mut began = Instant::now();
        let mut is_blocked = false;
        while let Err(error) = &result {
            let kind = rocks::classify(error);
            match kind {
                WriteError::Fatal => {
                    self.metrics.error("state", "write");
                    let fatal = Fatal::WriteFailed { db: "state", what: error.to_string() };
                    return self.stand_still(fatal).await;
                }
                WriteError::NoSpace if !is_blocked => {
                    tracing::warn!(error = %error, "the state cannot be written: disk full; tried again until space returns");
                    self.metrics.error("state", "write");
                    self.health.set_blocked(Database::State, true);
                    is_blocked = true;
                }
                WriteError::NoSpace | WriteError::WouldStall => {}
            }
            if kind == WriteError::NoSpace {
                tokio::time::sleep(FULL_PAUSE).await;
            }
            let (db, batch) = (self.db.clone(), fill(&self.db, applied, record));
            let written = tokio::task::spawn_blocking(move || {
                let mut options = WriteOptions::default();
                options.disable_wal(true);
                db.db().write_opt(batch, &options)
            });
            result = match written.await {
                Ok(result) => result,
                // The runtime is going away: so does this node.
                Err(_) => std::future::pending().await,
            };
            let now = Instant::now();
            self.metrics.stall_seconds("state").inc_by((now - began).as_secs_f64());
            began = now;
        }
        if is_blocked {
            self.health.set_blocked(Database::State, false);
        }
    }

    fn publish(&self, entries: &[Entry], applied: &Applied, started: Instant) {
        let now = Instant::now();
        for entry in entries {
            self.instants.mark(pos_of(&entry.log_id), Mark::Applied, now);
        }
        let unix_ms = unix_ms();
        let (mut rows, mut tapped) = (Vec::new(), Vec::new());
        for (height, row, block) in applied.changes.blocks() {
            self.shared.remember_applied(height, unix_ms);
            let row = proto::BlockRow::decode(row.clone()).expect("a row of our own decodes");
            self.shared.recent().push(height, &row, block);
            if self.replay_upto < row.index {
                self.metrics.blocks.bytes.inc_by(row.header_bytes + row.data_bytes);
            }
            for (slot, every) in CHECKPOINTS.iter().enumerate() {
                if height.is_multiple_of(*every) {
                    self.metrics.blocks.checkpoints.set(slot, height, &row.hash);
                }
            }
            let pos = LogPos { term: row.term, index: row.index };
            tapped.push(Tapped {
                pos,
                height,
                block: block.clone(),
                command: payload_at(entries, row.index),
            });
            rows.push((height, row));
        }
        let view = self.machine.view();
        if let Some((_, row)) = rows.last() {
            self.metrics.blocks.set_head(view.head.as_ref());
            // What a start applies again is no news.
            let is_news = self.replay_upto < row.index;
            self.metrics.blocks.set_applied_at(if is_news { unix_ms } else { row.proposed_at_ms });
        }
        // Before anybody else learns of the batch: what they tell of it comes after it.
        if self.instants.wants_blocks() {
            let Applied { outcomes, took, .. } = applied;
            let told = Told {
                entries,
                outcomes,
                took,
                rows: &rows,
                replay_upto: self.replay_upto,
                subscribers: self.tap.as_ref().map_or(0, |tap| tap.subscribers()),
                started,
                applied: now,
            };
            self.instants.applied(told.batch());
        }
        self.shared.publish(&self.db, Arc::new(view.clone()));
        // Last: whoever is told can read it.
        if let Some(tap) = &self.tap {
            tap.applied(self.told(), &tapped);
        }
    }

    /// Sets what the metrics say of blocks from a state that was loaded or installed.
    pub(super) fn show_blocks(&self) {
        let view = self.machine.view();
        self.metrics.blocks.set_head(view.head.as_ref());
        let Some(head) = &view.head else { return };
        // A chain that stands still does so since then, whoever was started meanwhile.
        if let Some(row) = self.row(head.height) {
            self.metrics.blocks.set_applied_at(row.proposed_at_ms);
        }
        for (slot, every) in CHECKPOINTS.iter().enumerate() {
            let height = head.height / every * every;
            if let Some(row) = Some(height).filter(|h| 0 < *h).and_then(|height| self.row(height)) {
                self.metrics.blocks.checkpoints.set(slot, height, &row.hash);
            }
        }
    }

    /// Of a block of the kept history.
    fn row(&self, height: Height) -> Option<proto::BlockRow> {
        let row = self.db.bytes(Family::Rows, &height_key(height)).ok().flatten();
        row.filter(|_| self.floor <= height).and_then(|row| proto::BlockRow::decode(row).ok())
    }
}

fn fill(db: &StateDb, applied: &Applied, record: &[u8]) -> WriteBatch {
    let mut batch = WriteBatch::with_capacity_bytes(applied.changes.bytes() + record.len());
    applied.changes.fill(db, &mut batch);
    let meta = db.family(Family::Meta);
    if let Some(membership) = &applied.membership {
        batch.put_cf(meta, KEY_MEMBERSHIP, membership);
    }
    batch.put_cf(meta, KEY_MACHINE, record);
    batch
}

/// The payload of the command at an index of a batch.
fn payload_at(entries: &[Entry], index: LogIndex) -> bytes::Bytes {
    let at = entries.binary_search_by_key(&index, |e| pos_of(&e.log_id).index);
    match &entries[at.expect("a row names an entry of its batch")].payload {
        EntryPayload::Normal(command) => command.payload.clone(),
        EntryPayload::Blank | EntryPayload::Membership(_) => unreachable!("a block came by a command"),
    }
}

fn kind_of(entry: &Entry) -> ApplyKind {
    match &entry.payload {
        EntryPayload::Blank => ApplyKind::Blank,
        EntryPayload::Membership(_) => ApplyKind::Membership,
        EntryPayload::Normal(c) if c.kind == Kind::Block => ApplyKind::Block,
        EntryPayload::Normal(_) => ApplyKind::Control,
    }
}

fn is_unknown(entry: &Entry) -> bool {
    matches!(&entry.payload, EntryPayload::Normal(c) if !c.is_known())
}

fn upgrade_needed(entry: &Entry) -> Fatal {
    let LogPos { index, .. } = pos_of(&entry.log_id);
    match &entry.payload {
        EntryPayload::Normal(c) => Fatal::UpgradeNeeded { kind: c.kind.to_u8(), version: c.version, index },
        EntryPayload::Blank | EntryPayload::Membership(_) => unreachable!("raft's own entries are known"),
    }
}

pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
