//! The exporter with its counts: what arrived, what was lost, and one log line on each change.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SpanData, SpanExporter},
};
use tracing::field::{Field, Visit};
use tracing_subscriber::{Layer, filter::filter_fn, layer::Context, registry::LookupSpan};

use crate::telemetry::trace::Counts;

/// Target of the exporter's own events, with a hyphen.
const EXPORTER_TARGET: &str = "opentelemetry-otlp";

/// Whether the last export succeeded. Before the first one: it will.
#[derive(Debug, Default)]
pub(crate) struct Health {
    is_failing: AtomicBool,
}

impl Health {
    pub(crate) fn is_ok(&self) -> bool {
        !self.is_failing.load(Ordering::Relaxed)
    }
}

/// What the exporter and who records share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared {
    pub(crate) queued: Arc<AtomicUsize>,
    pub(crate) health: Arc<Health>,
}

/// Spans that a collector refused of a batch it took. The exporter says so in an event alone, on the
/// thread that exports, before the export returns.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rejected(Arc<AtomicU64>);

impl Rejected {
    /// Reads the exporter's events; part of the process's subscriber.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    {
        Partial(self.clone()).with_filter(filter_fn(|meta| {
            meta.is_event() && meta.target() == EXPORTER_TARGET && meta.name().ends_with(".PartialSuccess")
        }))
    }

    fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

struct Partial(Rejected);

impl<S: tracing::Subscriber> Layer<S> for Partial {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut found = Found(0);
        event.record(&mut found);
        self.0.0.fetch_add(found.0, Ordering::Relaxed);
    }
}

struct Found(u64);

impl Visit for Found {
    fn record_i64(&mut self, field: &Field, value: i64) {
        if field.name() == "rejected_spans" {
            self.0 = u64::try_from(value).unwrap_or(0);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

/// An exporter that counts.
#[derive(Debug)]
pub(crate) struct Counted<E> {
    inner: E,
    counts: Counts,
    shared: Shared,
    rejected: Rejected,
    /// For the log line.
    endpoint: String,
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counts")
    }
}

impl<E> Counted<E> {
    pub(crate) fn new(inner: E, counts: Counts, rejected: Rejected, endpoint: String) -> Self {
        Self { inner, counts, shared: Shared::default(), rejected, endpoint }
    }

    pub(crate) fn shared(&self) -> Shared {
        self.shared.clone()
    }

    fn ended(&self, n: u64, result: &OTelSdkResult) {
        let is_failing = &self.shared.health.is_failing;
        match result {
            Ok(()) => {
                let rejected = self.rejected.take().min(n);
                self.counts.exported.inc_by(n - rejected);
                self.counts.dropped_rejected.inc_by(rejected);
                if is_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(endpoint = self.endpoint, "spans are exported again");
                }
            }
            Err(error) => {
                self.counts.failures.inc();
                self.counts.dropped_export.inc_by(n);
                if !is_failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        endpoint = self.endpoint,
                        %error,
                        "spans cannot be exported: they are lost until the collector takes them again"
                    );
                }
            }
        }
    }
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let n = batch.len();
        self.shared.queued.fetch_sub(n, Ordering::AcqRel);
        let result = self.inner.export(batch).await;
        self.ended(n as u64, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
