//! The stage histograms, and the exemplars of all that is timed around an entry.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, HistogramVec, Registry};

use crate::instants::ring::{Mark, Timing};
use crate::telemetry::buckets;
use crate::telemetry::exemplars::{Exemplars, Series};
use crate::types::trace::TraceId;

const FAMILY: &str = "blockraft_raft_stage_seconds";

/// Label of a stage, and the marks it lies between.
pub(crate) const STAGES: [(&str, Mark, Mark); 5] = [
    ("queue", Mark::Received, Mark::Handed),
    ("append", Mark::Appended, Mark::Synced),
    ("commit_wait", Mark::Handed, Mark::Committed),
    ("apply_wait", Mark::Committed, Mark::ApplyStarted),
    ("apply", Mark::ApplyStarted, Mark::Applied),
];
/// From sending to acknowledging, on the leader, for each peer.
pub(crate) const REPLICATE: &str = "replicate";
/// From apply to the last subscriber's queue.
pub(crate) const DELIVER: &str = "deliver";

pub(crate) struct Stages {
    stages: [Histogram; STAGES.len()],
    replicate: Histogram,
    deliver: Histogram,
}

impl Stages {
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let stages = HistogramVec::new(
            HistogramOpts::new(FAMILY, "Time an entry spent in each stage on this node.")
                .buckets(buckets::stage()),
            &["stage"],
        )?;
        registry.register(Box::new(stages.clone()))?;
        Ok(Self {
            stages: STAGES.map(|(name, ..)| stages.with_label_values(&[name])),
            replicate: stages.with_label_values(&[REPLICATE]),
            deliver: stages.with_label_values(&[DELIVER]),
        })
    }

    /// An entry is through.
    pub(crate) fn observe(&self, timing: &Timing) {
        for (histogram, (_, from, to)) in self.stages.iter().zip(STAGES) {
            if let Some(took) = timing.between(from, to) {
                histogram.observe(took.as_secs_f64());
            }
        }
    }

    /// Each entry of an append counts.
    pub(crate) fn observe_replicated(&self, n_entries: usize, took: Duration) {
        (0..n_entries).for_each(|_| self.replicate.observe(took.as_secs_f64()));
    }

    pub(crate) fn observe_delivered(&self, took: Duration) {
        self.deliver.observe(took.as_secs_f64());
    }
}

/// Traces of single observations. Given only those that are exported, by who exports them.
pub(crate) struct StageExemplars {
    stages: [Series; STAGES.len()],
    replicate: Series,
    deliver: Series,
    sync: Series,
    apply: Series,
    proposals: Vec<(&'static str, Series)>,
}

impl StageExemplars {
    /// `outcomes` are the labels that a proposal may end with.
    pub(crate) fn new(exemplars: &Exemplars, outcomes: &[&'static str]) -> Self {
        let bounds = buckets::stage();
        let series = |name: &str, labels: &[(&str, &str)]| exemplars.series(name, labels, &bounds);
        let stage = |name: &str| series(FAMILY, &[("stage", name)]);
        Self {
            stages: STAGES.map(|(name, ..)| stage(name)),
            replicate: stage(REPLICATE),
            deliver: stage(DELIVER),
            sync: series("blockraft_raft_log_sync_seconds", &[]),
            apply: series("blockraft_raft_apply_seconds", &[("kind", "block")]),
            proposals: outcomes
                .iter()
                .map(|o| (*o, series("blockraft_raft_proposal_seconds", &[("outcome", *o)])))
                .collect(),
        }
    }

    pub(crate) fn applied(&self, timing: &Timing, took: Duration, trace_id: TraceId) {
        for (series, (_, from, to)) in self.stages.iter().zip(STAGES) {
            if let Some(took) = timing.between(from, to) {
                series.observe(took.as_secs_f64(), trace_id);
            }
        }
        if let Some(sync) = timing.sync {
            self.sync.observe(sync.took.as_secs_f64(), trace_id);
        }
        self.apply.observe(took.as_secs_f64(), trace_id);
    }

    pub(crate) fn replicated(&self, took: Duration, trace_id: TraceId) {
        self.replicate.observe(took.as_secs_f64(), trace_id);
    }

    pub(crate) fn delivered(&self, took: Duration, trace_id: TraceId) {
        self.deliver.observe(took.as_secs_f64(), trace_id);
    }

    pub(crate) fn proposed(&self, outcome: &str, took: Duration, trace_id: TraceId) {
        if let Some((_, series)) = self.proposals.iter().find(|(o, _)| *o == outcome) {
            series.observe(took.as_secs_f64(), trace_id);
        }
    }
}
