//! What becomes of spans, counted around the exporter.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SpanData, SpanExporter},
};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer};

#[derive(Debug)]
pub(crate) struct Counts {
    exported: IntCounter,
    failures: IntCounter,
    pub(crate) dropped_queue: IntCounter,
    dropped_export: IntCounter,
    dropped_rejected: IntCounter,
    /// Rejected by the collector within the export in progress: taken off what it exported.
    rejected: AtomicU64,
}

impl Counts {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let exported =
            IntCounter::new("blockraft_telemetry_spans_exported_total", "Spans that the collector took.")?;
        let failures = IntCounter::new(
            "blockraft_telemetry_export_failures_total",
            "Exports of spans that failed after all tries.",
        )?;
        let dropped = IntCounterVec::new(
            Opts::new(
                "blockraft_telemetry_spans_dropped_total",
                "Spans lost: the queue was full, the export failed, or the collector rejected them.",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(exported.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        registry.register(Box::new(dropped.clone()))?;
        let reason = |reason| dropped.with_label_values(&[reason]);
        Ok(Self {
            exported,
            failures,
            dropped_queue: reason("queue"),
            dropped_export: reason("export"),
            dropped_rejected: reason("rejected"),
            rejected: AtomicU64::new(0),
        })
    }
}

/// Counts what the exporter behind it does, and says once when that changes between well and not.
#[derive(Debug)]
pub(crate) struct Exporter<E> {
    exporter: E,
    counts: Arc<Counts>,
    waiting: Arc<AtomicUsize>,
    is_failing: AtomicBool,
}

impl<E: SpanExporter> Exporter<E> {
    pub(crate) fn new(exporter: E, counts: Arc<Counts>, waiting: Arc<AtomicUsize>) -> Self {
        Self { exporter, counts, waiting, is_failing: AtomicBool::new(false) }
    }
}

impl<E: SpanExporter> SpanExporter for Exporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let n = batch.len();
        self.waiting.fetch_sub(n, Ordering::Relaxed);
        let result = self.exporter.export(batch).await;
        let n = n as u64;
        let rejected = self.counts.rejected.swap(0, Ordering::Relaxed).min(n);
        match &result {
            Ok(()) => {
                self.counts.exported.inc_by(n - rejected);
                self.counts.dropped_rejected.inc_by(rejected);
                if self.is_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("traces reach the collector again");
                }
            }
            Err(error) => {
                self.counts.failures.inc();
                self.counts.dropped_export.inc_by(n);
                if !self.is_failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "traces do not reach the collector");
                }
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: std::time::Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// A partial success is a success to the exporter; only an event of the SDK's says how many were rejected.
pub(crate) struct Rejections(pub(crate) Arc<Counts>);

impl<S: tracing::Subscriber> Layer<S> for Rejections {
    fn on_event(&self, event: &tracing::Event<'_>, _context: Context<'_, S>) {
        let meta = event.metadata();
        if meta.target() == "opentelemetry-otlp" && meta.name().ends_with(".PartialSuccess") {
            let mut found = Rejected(0);
            event.record(&mut found);
            self.0.rejected.fetch_add(found.0, Ordering::Relaxed);
        }
    }
}

struct Rejected(u64);

impl Visit for Rejected {
    fn record_i64(&mut self, field: &Field, value: i64) {
        if field.name() == "rejected_spans" {
            self.0 = u64::try_from(value).unwrap_or(0);
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn std::fmt::Debug) {}
}
