//! The metrics of the store.

use std::time::Instant;

use prometheus::{
    Counter, CounterVec, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

use crate::machine::apply::Outcome;
use crate::telemetry::trace::{Clock, Span, Tracer, int, text};
use crate::telemetry::{buckets, names};
use crate::types::block::BlockRef;
use crate::types::error::Refusal;
use crate::types::position::LogPos;

mod checkpoints;
pub(crate) use checkpoints::{CHECKPOINTS, Checkpoints};

/// Label values of `raft_apply_seconds`.
const KINDS: [&str; 4] = ["block", "membership", "blank", "control"];
const REFUSALS: [&str; 6] = ["conflict", "stale", "gap", "bad_parent", "bad_timestamp", "fenced"];
const OUTCOMES: [&str; 3] = ["ok", "failed", "corrupt"];
const OPS: [&str; 5] = ["build", "send", "install", "verify", "restore"];
const ERROR_OPS: [&str; 6] = ["write", "sync", "read", "flush", "open", "snapshot"];
const DBS: [&str; 2] = ["log", "state"];

/// What an entry is, for `raft_apply_seconds`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ApplyKind {
    Block,
    Membership,
    Blank,
    Control,
}

/// Registered once per store; the handles are cached, so that counting costs no look-up.
pub(crate) struct Metrics {
    pub(crate) append_seconds: Histogram,
    pub(crate) sync_seconds: Histogram,
    pub(crate) sync_batch_entries: Histogram,
    pub(crate) purged_entries: IntCounter,
    apply_seconds: [Histogram; KINDS.len()],
    errors: IntCounterVec,
    stall_seconds: CounterVec,
    pub(crate) starts: IntCounter,
    pub(crate) last_exit: IntGaugeVec,
    pub(crate) blocks: BlockMetrics,
    pub(crate) snapshots: SnapshotMetrics,
}

/// What was applied, and what stands at the head.
pub(crate) struct BlockMetrics {
    applied: IntCounter,
    pub(crate) bytes: IntCounter,
    refused: [IntCounter; REFUSALS.len()],
    head_height: IntGauge,
    head_timestamp: Gauge,
    applied_timestamp: Gauge,
    pub(crate) checkpoints: Checkpoints,
}

/// Building, sending, installing and what is kept.
pub(crate) struct SnapshotMetrics {
    seconds: [(&'static str, HistogramVec); 3],
    total: IntCounterVec,
    running: IntGaugeVec,
    pub(crate) bytes: IntGauge,
    pub(crate) last_success: Gauge,
    pub(crate) retained: IntGauge,
    /// Of the snapshot that comes in.
    pub(crate) incoming_bytes: IntGauge,
    pub(crate) incoming_received_bytes: IntGauge,
    tracer: Tracer,
}

/// Makes a metric and registers it.
struct Builder<'a>(&'a Registry);

impl Builder<'_> {
    fn add<T>(&self, made: prometheus::Result<T>) -> prometheus::Result<T>
    where
        T: prometheus::core::Collector + Clone + 'static,
    {
        let made = made?;
        self.0.register(Box::new(made.clone()))?;
        Ok(made)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.add(IntGauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> prometheus::Result<IntGaugeVec> {
        self.add(IntGaugeVec::new(Opts::new(name, help), &[label]))
    }

    fn time(&self, name: &str, help: &str) -> prometheus::Result<Gauge> {
        self.add(Gauge::new(name, help))
    }

    fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> prometheus::Result<Histogram> {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        label: &str,
        buckets: Vec<f64>,
    ) -> prometheus::Result<HistogramVec> {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), &[label]))
    }
}

impl Metrics {
    pub(crate) fn new(registry: &Registry, tracer: Tracer) -> prometheus::Result<Self> {
        let b = Builder(registry);
        let apply_seconds = b.histograms(
            "blockraft_raft_apply_seconds",
            "Time one entry took to apply, by kind.",
            "kind",
            buckets::stage(),
        )?;
        let stall_seconds = CounterVec::new(
            Opts::new(
                "blockraft_store_write_stall_seconds_total",
                "Time writes waited for flushes, compactions or disk space.",
            ),
            &["db"],
        );
        let metrics = Self {
            append_seconds: b.histogram(
                "blockraft_raft_log_append_seconds",
                "Time from an append's arrival until it is durable here.",
                buckets::stage(),
            )?,
            sync_seconds: b.histogram(
                "blockraft_raft_log_sync_seconds",
                "Time of one synced write of the log.",
                buckets::stage(),
            )?,
            sync_batch_entries: b.histogram(
                "blockraft_raft_log_sync_batch_entries",
                "Entries that one synced write of the log made durable.",
                buckets::batch(),
            )?,
            purged_entries: b.counter(
                "blockraft_raft_log_purged_entries_total",
                "Entries purged from the log because a snapshot holds them.",
            )?,
            apply_seconds: KINDS.map(|k| apply_seconds.with_label_values(&[k])),
            errors: b.counters(
                "blockraft_store_errors_total",
                "Errors of the databases, by operation.",
                &["db", "op"],
            )?,
            stall_seconds: b.add(stall_seconds)?,
            starts: b.counter("blockraft_node_starts_total", "Starts of this node on its data folder.")?,
            last_exit: b.gauges(
                "blockraft_node_last_exit",
                "How the process before this one ended.",
                "cause",
            )?,
            blocks: BlockMetrics::new(&b)?,
            snapshots: SnapshotMetrics::new(&b, tracer)?,
        };
        for db in DBS {
            for op in ERROR_OPS {
                metrics.errors.with_label_values(&[db, op]);
            }
            metrics.stall_seconds.with_label_values(&[db]);
        }
        Ok(metrics)
    }

    pub(crate) fn apply_seconds(&self, kind: ApplyKind) -> &Histogram {
        &self.apply_seconds[kind as usize]
    }

    pub(crate) fn error(&self, db: &str, op: &str) {
        self.errors.with_label_values(&[db, op]).inc();
    }

    pub(crate) fn stall_seconds(&self, db: &str) -> Counter {
        self.stall_seconds.with_label_values(&[db])
    }
}

impl BlockMetrics {
    fn new(b: &Builder<'_>) -> prometheus::Result<Self> {
        let refused = b.counters(
            "blockraft_block_refused_total",
            "Blocks refused when applied, by reason.",
            &["reason"],
        )?;
        Ok(Self {
            applied: b.counter("blockraft_blocks_applied_total", "Blocks applied for the first time.")?,
            bytes: b
                .counter("blockraft_block_bytes_total", "Header and data bytes of the blocks applied.")?,
            refused: REFUSALS.map(|r| refused.with_label_values(&[r])),
            head_height: b
                .gauge("blockraft_block_head_height", "Height of the head; 0 before the first block.")?,
            head_timestamp: b
                .time("blockraft_block_head_timestamp_seconds", "Timestamp that the head carries.")?,
            applied_timestamp: b.time(
                "blockraft_block_applied_timestamp_seconds",
                "When this node last applied a block; of one applied before it was started, when it was proposed.",
            )?,
            checkpoints: b.add(Checkpoints::new())?,
        })
    }

    /// Counts what applying an entry for the first time came to.
    pub(crate) fn count(&self, outcome: &Outcome) {
        let reason = match outcome {
            Outcome::Accepted(a) if !a.duplicate => return self.applied.inc(),
            Outcome::Fenced { .. } => 5,
            Outcome::Refused { refusal, .. } => match refusal {
                Refusal::Conflict => 0,
                Refusal::Stale => 1,
                Refusal::Gap => 2,
                Refusal::BadParent => 3,
                Refusal::BadTimestamp => 4,
            },
            Outcome::Accepted(_)
            | Outcome::Nothing
            | Outcome::Led
            | Outcome::Configured(_)
            | Outcome::SettingsMoved(_)
            | Outcome::Undecodable => return,
        };
        self.refused[reason].inc();
    }

    pub(crate) fn set_head(&self, head: Option<&BlockRef>) {
        self.head_height.set(head.map_or(0, |h| h.height as i64));
        self.head_timestamp.set(head.map_or(0.0, |h| h.timestamp as f64 / 1e9));
    }

    pub(crate) fn set_applied_at(&self, unix_ms: u64) {
        self.applied_timestamp.set(unix_ms as f64 / 1e3);
    }
}

impl SnapshotMetrics {
    fn new(b: &Builder<'_>, tracer: Tracer) -> prometheus::Result<Self> {
        let seconds = |name: &str, help: &str| b.histograms(name, help, "outcome", buckets::snapshot());
        let metrics = Self {
            seconds: [
                ("build", seconds("blockraft_raft_snapshot_build_seconds", "Time of building a snapshot.")?),
                (
                    "send",
                    seconds("blockraft_raft_snapshot_send_seconds", "Time of sending a snapshot to a peer.")?,
                ),
                (
                    "install",
                    seconds("blockraft_raft_snapshot_install_seconds", "Time of installing a snapshot.")?,
                ),
            ],
            total: b.counters(
                "blockraft_raft_snapshots_total",
                "Snapshot operations, by outcome.",
                &["op", "outcome"],
            )?,
            running: b.gauges(
                "blockraft_raft_snapshot_running",
                "Whether a snapshot operation is running.",
                "op",
            )?,
            bytes: b.gauge("blockraft_raft_snapshot_bytes", "Bytes of the newest snapshot.")?,
            last_success: b.time(
                "blockraft_raft_snapshot_last_success_timestamp_seconds",
                "When the newest snapshot was made; 0: there is none.",
            )?,
            retained: b.gauge("blockraft_raft_snapshots_retained", "Snapshots kept on disk.")?,
            incoming_bytes: b.gauge(
                "blockraft_raft_snapshot_incoming_bytes",
                "Bytes of the snapshot that is being received or installed; 0: none is.",
            )?,
            incoming_received_bytes: b.gauge(
                "blockraft_raft_snapshot_incoming_received_bytes",
                "Bytes of that snapshot that are here.",
            )?,
            tracer,
        };
        for outcome in OUTCOMES {
            for op in OPS {
                metrics.total.with_label_values(&[op, outcome]);
            }
            for (_, histogram) in &metrics.seconds {
                histogram.with_label_values(&[outcome]);
            }
        }
        for (op, _) in &metrics.seconds {
            metrics.running.with_label_values(&[op]);
        }
        Ok(metrics)
    }

    /// Counts an operation, and times it where it has a histogram.
    pub(crate) fn count(&self, op: &str, outcome: &str, seconds: f64) {
        self.total.with_label_values(&[op, outcome]).inc();
        if let Some((_, histogram)) = self.seconds.iter().find(|(name, _)| *name == op) {
            histogram.with_label_values(&[outcome]).observe(seconds);
        }
    }

    /// Writes the span of a snapshot operation that ends now; `pos` is where the snapshot ends.
    pub(crate) fn trace(
        &self,
        name: &'static str,
        outcome: &'static str,
        began: Instant,
        pos: Option<LogPos>,
    ) {
        let clock = Clock::now();
        let mut span = Span::own(name, clock.at(began), clock.at(Instant::now()));
        span.attributes.push(text(names::OUTCOME, outcome));
        if let Some(LogPos { term, index }) = pos {
            span.attributes.extend([int(names::TERM, term), int(names::INDEX, index)]);
        }
        span.error = (outcome != "ok").then(|| outcome.into());
        self.tracer.record(span);
    }

    pub(crate) fn set_running(&self, op: &str, is_running: bool) {
        self.running.with_label_values(&[op]).set(i64::from(is_running));
    }
}
