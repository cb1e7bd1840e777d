//! Spans on their way to a collector, over OTLP.
//!
//! A [`Span`] is built when all of it is known and handed to [`Tracer::record`], which never waits: a
//! full queue, a dead collector and one that refuses cost spans, each counted, and one log line.
//! [`export`] chooses the transport, [`sampling`] decides what is recorded at all.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId, Value,
    trace::{Link, SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanLinks, SpanProcessor};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use crate::telemetry::{names, trace::counted::Health};

pub(crate) mod counted;
pub(crate) mod export;
mod http;
mod resource;
pub(crate) mod sampling;
pub(crate) mod variables;

/// Attributes of a span: the SDK's limit, which does not touch spans that are built by hand.
const ATTRIBUTES_MAX: usize = 128;

/// What the settings say.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    /// `http://host:port`; `None`: nothing is exported unless a variable says so.
    pub(crate) endpoint: Option<String>,
    pub(crate) protocol: Protocol,
    /// Of the traces that begin here; 0 to 1.
    pub(crate) sample_ratio: f64,
    /// Whole trees a second.
    pub(crate) per_second: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Grpc,
    Http,
}

impl Config {
    /// `protocol` is a word of the settings: `http`, and everything else is gRPC.
    pub(crate) fn new(endpoint: Option<&str>, protocol: &str, sample_ratio: f64, per_second: u64) -> Self {
        let protocol = if protocol == "http" { Protocol::Http } else { Protocol::Grpc };
        Self { endpoint: endpoint.map(str::to_owned), protocol, sample_ratio, per_second }
    }
}

/// What became of spans.
#[derive(Clone)]
pub(crate) struct Counts {
    exported: IntCounter,
    failures: IntCounter,
    /// The queue was full.
    pub(crate) dropped_queue: IntCounter,
    /// Their export failed.
    dropped_export: IntCounter,
    /// The collector took the batch, but not these.
    dropped_rejected: IntCounter,
}

impl Counts {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let exported =
            IntCounter::new("blockraft_telemetry_spans_exported_total", "Spans that the collector took.")?;
        let failures = IntCounter::new(
            "blockraft_telemetry_export_failures_total",
            "Batches of spans that the collector did not take.",
        )?;
        let dropped = IntCounterVec::new(
            Opts::new("blockraft_telemetry_spans_dropped_total", "Spans that were lost, by reason."),
            &["reason"],
        )?;
        registry.register(Box::new(exported.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        registry.register(Box::new(dropped.clone()))?;
        Ok(Self {
            exported,
            failures,
            dropped_queue: dropped.with_label_values(&["queue"]),
            dropped_export: dropped.with_label_values(&["export"]),
            dropped_rejected: dropped.with_label_values(&["rejected"]),
        })
    }
}

/// Where the two clocks stood at one moment: wall time is computed when a span is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    wall: SystemTime,
    monotonic: Instant,
}

impl Clock {
    pub(crate) fn now() -> Self {
        Self { wall: SystemTime::now(), monotonic: Instant::now() }
    }

    pub(crate) fn at(&self, then: Instant) -> SystemTime {
        let wall = match self.monotonic.checked_duration_since(then) {
            Some(ago) => self.wall.checked_sub(ago),
            None => self.wall.checked_add(then - self.monotonic),
        };
        // A clock before 1970 is wrong anyway; the protocol has no time before it.
        wall.unwrap_or(UNIX_EPOCH).max(UNIX_EPOCH)
    }

    /// Unix microseconds.
    pub(crate) fn micros(&self, then: Instant) -> u64 {
        let since = self.at(then).duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    pub(crate) fn unix_ms(&self) -> u64 {
        self.micros(self.monotonic) / 1_000
    }
}

/// Integers leave as integers, up to 2^63.
pub(crate) fn int(name: &'static str, value: u64) -> KeyValue {
    KeyValue::new(name, i64::try_from(value).unwrap_or(i64::MAX))
}

pub(crate) fn signed(name: &'static str, value: i64) -> KeyValue {
    KeyValue::new(name, value)
}

pub(crate) fn text(name: &'static str, value: impl Into<Cow<'static, str>>) -> KeyValue {
    KeyValue::new(name, Value::String(value.into().into()))
}

pub(crate) fn flag(name: &'static str, value: bool) -> KeyValue {
    KeyValue::new(name, value)
}

/// A key and its value.
pub(crate) type Attribute = KeyValue;

/// Another span, to be linked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Linked {
    pub(crate) trace_id: [u8; 16],
    pub(crate) span_id: [u8; 8],
}

/// One span, whole. Ids that are zero are replaced: the protocol has none.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) name: Cow<'static, str>,
    pub(crate) trace_id: [u8; 16],
    pub(crate) span_id: [u8; 8],
    /// And whether it is another process's.
    pub(crate) parent: Option<([u8; 8], bool)>,
    /// A request that this node answers.
    pub(crate) is_server: bool,
    pub(crate) start: SystemTime,
    pub(crate) end: SystemTime,
    /// Each key once.
    pub(crate) attributes: Vec<KeyValue>,
    pub(crate) links: Vec<Linked>,
    /// What went wrong.
    pub(crate) error: Option<Cow<'static, str>>,
}

impl Span {
    /// A span without attributes, of a trace of its own.
    pub(crate) fn own(name: &'static str, start: SystemTime, end: SystemTime) -> Self {
        Self {
            name: name.into(),
            trace_id: rand::random(),
            span_id: rand::random(),
            parent: None,
            is_server: false,
            start,
            end,
            attributes: Vec::new(),
            links: Vec::new(),
            error: None,
        }
    }

    fn into_data(mut self, scope: &InstrumentationScope) -> SpanData {
        let ids = |trace_id: [u8; 16], span_id: [u8; 8], is_remote: bool| {
            SpanContext::new(
                TraceId::from_bytes(trace_id),
                SpanId::from_bytes(span_id),
                TraceFlags::SAMPLED,
                is_remote,
                TraceState::NONE,
            )
        };
        if self.trace_id == [0; 16] {
            self.trace_id = rand::random();
        }
        if self.span_id == [0; 8] {
            self.span_id = rand::random();
        }
        self.attributes.truncate(ATTRIBUTES_MAX);
        let mut links = SpanLinks::default();
        let linked = self.links.iter().map(|l| Link::with_context(ids(l.trace_id, l.span_id, true)));
        links.links.extend(linked);
        let (parent, is_remote) = self.parent.unwrap_or_default();
        SpanData {
            span_context: ids(self.trace_id, self.span_id, false),
            parent_span_id: SpanId::from_bytes(parent),
            parent_span_is_remote: is_remote,
            span_kind: if self.is_server { SpanKind::Server } else { SpanKind::Internal },
            name: self.name,
            start_time: self.start.max(UNIX_EPOCH),
            end_time: self.end.max(self.start),
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events: Default::default(),
            links,
            status: self.error.map_or(Status::Unset, |what| Status::Error { description: what }),
            instrumentation_scope: scope.clone(),
        }
    }
}

/// Takes spans. Cheap to clone; all clones are one queue.
#[derive(Clone, Default)]
pub(crate) struct Tracer(Option<Arc<Inner>>);

struct Inner {
    processor: BatchSpanProcessor,
    /// Spans given to the processor that its exporter has not taken yet.
    queued: Arc<AtomicUsize>,
    queue_max: usize,
    counts: Counts,
    health: Arc<Health>,
    scope: InstrumentationScope,
}

impl Tracer {
    /// Records nothing.
    pub(crate) fn off() -> Self {
        Self(None)
    }

    fn new(processor: BatchSpanProcessor, queue_max: usize, counts: Counts, shared: counted::Shared) -> Self {
        let scope =
            InstrumentationScope::builder(names::SCOPE).with_version(env!("CARGO_PKG_VERSION")).build();
        let counted::Shared { queued, health } = shared;
        Self(Some(Arc::new(Inner { processor, queued, queue_max, counts, health, scope })))
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether what is recorded is likely to arrive: an exemplar must not name a trace that never does.
    pub(crate) fn is_exporting(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.health.is_ok())
    }

    /// Never waits.
    pub(crate) fn record(&self, span: Span) {
        let Some(inner) = &self.0 else { return };
        if inner.queue_max <= inner.queued.fetch_add(1, Ordering::AcqRel) {
            inner.queued.fetch_sub(1, Ordering::AcqRel);
            inner.counts.dropped_queue.inc();
            return;
        }
        inner.processor.on_end(span.into_data(&inner.scope));
    }

    /// Spans that are lost before they were built: the queue of what they are built from was full.
    pub(crate) fn count_lost(&self, n: u64) {
        if let Some(inner) = &self.0 {
            inner.counts.dropped_queue.inc_by(n);
        }
    }

    /// Exports what is queued, for at most `within`; what is recorded later is lost. Blocks its thread,
    /// which must not be one of the runtime's workers.
    pub(crate) fn shut_down(&self, within: Duration) {
        let Some(inner) = &self.0 else { return };
        if let Err(error) = inner.processor.shutdown_with_timeout(within) {
            tracing::debug!(%error, "spans that were still queued may be lost");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
