//! The ring of instants: when each entry of the recent log reached each stage on this node.
//!
//! Written by whoever moves an entry on; read by the stage histograms, the block spans and the
//! timeline, which therefore agree by construction. Knows no raft and no disk.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use prometheus::{HistogramOpts, HistogramVec, Registry};

use crate::telemetry::buckets;
use crate::types::position::LogPos;

/// Entries remembered. A power of two, by eye: a few seconds at full speed.
const SLOTS: usize = 16_384;

/// What an entry went through, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The proposal reached this node. Leader only.
    Received,
    /// It was handed to raft. Leader only.
    Handed,
    /// The log accepted it: readable, not yet durable.
    Appended,
    /// This node's own sync covers it.
    Synced,
    /// This node may apply it.
    Committed,
    /// Apply took it up.
    ApplyStarted,
    Applied,
}

const MARKS: usize = 7;

/// One entry's instants.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Timing {
    at: [Option<Instant>; MARKS],
}

impl Timing {
    pub(crate) fn at(&self, mark: Mark) -> Option<Instant> {
        self.at[mark as usize]
    }

    fn between(&self, from: Mark, to: Mark) -> Option<Duration> {
        Some(self.at(to)?.saturating_duration_since(self.at(from)?))
    }
}

#[derive(Default)]
struct Slot {
    pos: LogPos,
    timing: Timing,
}

/// A slot belongs to one (term, index); a mark for another entry takes it over.
pub(crate) struct Instants {
    /// Each lock guards one slot for a few stores; a task would cost a queue on the hot path.
    slots: Vec<Mutex<Slot>>,
    stages: [prometheus::Histogram; STAGES.len()],
    deliver: prometheus::Histogram,
    lost: prometheus::IntCounter,
}

/// Label of a stage, and the marks it lies between.
const STAGES: [(&str, Mark, Mark); 5] = [
    ("queue", Mark::Received, Mark::Handed),
    ("append", Mark::Appended, Mark::Synced),
    ("commit_wait", Mark::Handed, Mark::Committed),
    ("apply_wait", Mark::Committed, Mark::ApplyStarted),
    ("apply", Mark::ApplyStarted, Mark::Applied),
];

impl Instants {
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let stages = HistogramVec::new(
            HistogramOpts::new(
                "blockraft_raft_stage_seconds",
                "Time an entry spent in each stage on this node.",
            )
            .buckets(buckets::stage()),
            &["stage"],
        )?;
        registry.register(Box::new(stages.clone()))?;
        // Comes with the peer spans; the series exists from the start.
        let _ = stages.with_label_values(&["replicate"]);
        let lost = prometheus::IntCounter::new(
            "blockraft_telemetry_instants_lost_total",
            "Instants that found their slot taken by a newer entry.",
        )?;
        registry.register(Box::new(lost.clone()))?;
        Ok(Self {
            slots: (0..SLOTS).map(|_| Mutex::new(Slot::default())).collect(),
            stages: STAGES.map(|(name, ..)| stages.with_label_values(&[name])),
            deliver: stages.with_label_values(&["deliver"]),
            lost,
        })
    }

    /// Remembers that an entry reached a stage. A mark for an entry older than the slot's is lost.
    pub(crate) fn mark(&self, pos: LogPos, mark: Mark, at: Instant) {
        let mut slot = self.slot(pos);
        if slot.pos != pos {
            if pos < slot.pos {
                self.lost.inc();
                return;
            }
            *slot = Slot { pos, timing: Timing::default() };
        }
        slot.timing.at[mark as usize] = Some(at);
        if mark == Mark::Applied {
            let timing = slot.timing;
            drop(slot);
            for (histogram, (_, from, to)) in self.stages.iter().zip(STAGES) {
                if let Some(took) = timing.between(from, to) {
                    histogram.observe(took.as_secs_f64());
                }
            }
        }
    }

    /// The last subscriber took a block, or lost it, so long after it was applied.
    pub(crate) fn delivered(&self, took: Duration) {
        self.deliver.observe(took.as_secs_f64());
    }

    /// What is known of an entry; `None` once its slot was taken over.
    pub(crate) fn get(&self, pos: LogPos) -> Option<Timing> {
        let slot = self.slot(pos);
        (slot.pos == pos).then_some(slot.timing)
    }

    fn slot(&self, pos: LogPos) -> std::sync::MutexGuard<'_, Slot> {
        let slot = &self.slots[pos.index as usize % SLOTS];
        // A panic while a slot was held leaves plain data behind: still fine to use.
        slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
