//! Traces to an OTLP collector: a bounded queue, batches, and a count of every span that gets lost.
//!
//! Spans come as [`SpanData`] by [`Sink::send`], with ids of the caller's choice, or from `tracing` by
//! [`Traces::layer`]. Standard `OTEL_*` variables win over the settings. A collector that is down costs
//! spans and one log line, and nothing waits for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData, SpanProcessor},
};
use prometheus::Registry;
use tracing_subscriber::{Layer, filter::Targets};

use crate::telemetry::{
    log::BoxedLayer,
    traces::{count::Counts, plan::Plan},
};

mod count;
mod http;
pub(crate) mod plan;

/// Attributes of one span; the SDK's own limit does not touch what comes as [`SpanData`].
const ATTRIBUTES_MAX: usize = 128;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    /// `http://host:port`; `None`: no traces, unless the environment names a collector.
    pub(crate) endpoint: Option<String>,
    pub(crate) protocol: Protocol,
    /// 0 to 1.
    pub(crate) sample_ratio: f64,
    /// Whole trees a second; the proposer keeps the budget.
    pub(crate) per_second: u64,
}

impl Config {
    /// `protocol` is a word of the settings: `http`, and everything else is gRPC.
    pub(crate) fn new(endpoint: Option<&str>, protocol: &str, sample_ratio: f64, per_second: u64) -> Self {
        let protocol = if protocol == "http" { Protocol::Http } else { Protocol::Grpc };
        Self { endpoint: endpoint.map(str::to_owned), protocol, sample_ratio, per_second }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Grpc,
    Http,
}

/// What every span says of the process it comes from.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) cluster_id: String,
    pub(crate) node_id: u64,
    pub(crate) version: &'static str,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("the metrics of traces cannot be registered")]
    Metric(#[from] prometheus::Error),
    #[error("the exporter of traces cannot be built")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Everything that exports traces. Off when there is nowhere to send them.
pub(crate) struct Traces {
    sink: Sink,
    provider: Option<SdkTracerProvider>,
    plan: Plan,
}

/// Where finished spans go. Cheap to clone; never waits.
#[derive(Debug, Clone)]
pub(crate) struct Sink(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    processor: BatchSpanProcessor,
    counts: Arc<Counts>,
    /// Spans handed over and not yet taken into a batch.
    waiting: Arc<AtomicUsize>,
    waiting_max: usize,
}

/// Starts exporting, if there is a collector. `lookup` reads the environment. The exporter lives on
/// `runtime`, which must have another thread than the one that calls [`Traces::shutdown`].
pub(crate) fn start(
    config: &Config,
    who: &Who,
    lookup: &dyn Fn(&str) -> Option<String>,
    registry: &Registry,
    runtime: &tokio::runtime::Handle,
) -> Result<Traces, StartError> {
    let counts = Arc::new(Counts::register(registry)?);
    let plan = Plan::new(config, lookup);
    if !plan.is_on {
        return Ok(Traces { sink: Sink(None), provider: None, plan });
    }
    let waiting = Arc::new(AtomicUsize::new(0));
    let exporter = {
        // A gRPC channel needs the runtime it is built in.
        let _entered = runtime.enter();
        plan.exporter(runtime)?
    };
    let exporter = count::Exporter::new(exporter, counts.clone(), waiting.clone());
    let resource = plan.resource(who);
    let mut processor = BatchSpanProcessor::builder(exporter).with_batch_config(plan.batch_config()).build();
    // Only the provider's build would do it, and this processor is shared with the sink.
    processor.set_resource(&resource);
    let sink = Sink(Some(Arc::new(Inner { processor, counts, waiting, waiting_max: plan.queue })));
    let provider = SdkTracerProvider::builder()
        .with_resource(resource)
        // What comes from `tracing` is few and chosen; blocks are sampled by who proposes them.
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(plan.sampling.ratio))))
        .with_span_processor(sink.clone())
        .build();
    Ok(Traces { sink, provider: Some(provider), plan })
}

impl Traces {
    pub(crate) fn sink(&self) -> Sink {
        self.sink.clone()
    }

    /// Which blocks are traced.
    pub(crate) fn sampling(&self) -> plan::Sampling {
        self.plan.sampling
    }

    /// Makes spans of `tracing`'s: our own at INFO, nobody else's. openraft's never end.
    pub(crate) fn layer(&self) -> Option<BoxedLayer> {
        let tracer = self.provider.as_ref()?.tracer("blockraft");
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target("blockraft", tracing::Level::INFO));
        Some(Box::new(layer))
    }

    /// Reads from the SDK's own log what its results do not tell: how many spans the collector rejected.
    pub(crate) fn rejections(&self) -> Option<BoxedLayer> {
        let counts = self.sink.0.as_ref()?.counts.clone();
        Some(Box::new(count::Rejections(counts)))
    }

    /// Sends what waits, at most for `limit`. Blocks: call it on a blocking thread.
    pub(crate) fn shutdown(self, limit: Duration) {
        if let Some(inner) = self.sink.0 {
            // What could not be sent is counted, and has nobody to be told to any more.
            let _ = inner.processor.shutdown_with_timeout(limit);
        }
    }
}

impl Sink {
    /// A sink that is off.
    pub(crate) fn off() -> Self {
        Self(None)
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Hands a finished span over. One that is not sampled is not sent; one too many is dropped and counted.
    pub(crate) fn send(&self, mut span: SpanData) {
        let Some(inner) = &self.0 else { return };
        // The SDK's processor sends whatever the flag says.
        if !span.span_context.is_sampled() || !span.span_context.is_valid() {
            return;
        }
        if inner.waiting_max <= inner.waiting.fetch_add(1, Ordering::Relaxed) {
            inner.waiting.fetch_sub(1, Ordering::Relaxed);
            inner.counts.dropped_queue.inc();
            return;
        }
        tidy(&mut span);
        inner.processor.on_end(span);
    }
}

/// What a collector would refuse, or read in its own way.
fn tidy(span: &mut SpanData) {
    span.start_time = span.start_time.max(UNIX_EPOCH);
    span.end_time = span.end_time.max(span.start_time);
    let mut seen = std::collections::HashSet::new();
    let before = span.attributes.len();
    // The first value of a key stays.
    span.attributes.retain(|pair| seen.insert(pair.key.clone()));
    span.attributes.truncate(ATTRIBUTES_MAX);
    let lost = u32::try_from(before - span.attributes.len()).unwrap_or(u32::MAX);
    span.dropped_attributes_count = span.dropped_attributes_count.saturating_add(lost);
}

/// For spans made by `tracing`. The processor behind is shut down by [`Traces::shutdown`] alone.
impl SpanProcessor for Sink {
    fn on_start(&self, _span: &mut Span, _context: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        self.send(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
