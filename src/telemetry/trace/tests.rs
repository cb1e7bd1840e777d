use std::sync::Mutex;

use opentelemetry_sdk::{
    error::{OTelSdkError, OTelSdkResult},
    trace::{BatchConfigBuilder, SpanExporter},
};

use super::{
    counted::{Counted, Rejected},
    *,
};

/// Keeps what it is given; fails while it is told to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    pub(crate) spans: Arc<Mutex<Vec<SpanData>>>,
    is_broken: Arc<std::sync::atomic::AtomicBool>,
    /// Held: it stands still.
    gate: Arc<Mutex<()>>,
}

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let _open = self.gate.lock().expect("no panic before");
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(OTelSdkError::InternalFailure("no collector".into()));
        }
        self.spans.lock().expect("no panic before").extend(batch);
        Ok(())
    }
}

/// A tracer whose spans are kept.
pub(crate) fn tracer(kept: &Kept, queue_max: usize, delay: Duration) -> (Tracer, Counts) {
    let counts = Counts::register(&Registry::new()).expect("a fresh registry");
    let counted = Counted::new(kept.clone(), counts.clone(), Rejected::default(), "here".into());
    let shared = counted.shared();
    let config =
        BatchConfigBuilder::default().with_max_queue_size(queue_max).with_scheduled_delay(delay).build();
    let processor = BatchSpanProcessor::builder(counted).with_batch_config(config).build();
    (Tracer::new(processor, queue_max, counts.clone(), shared), counts)
}

fn span() -> Span {
    let now = SystemTime::now();
    Span::own("test", now, now)
}

#[test]
fn what_is_recorded_arrives_with_its_ids_and_integers() {
    let kept = Kept::default();
    let (tracer, counts) = tracer(&kept, 64, Duration::from_secs(60));
    let now = SystemTime::now();
    let sent = Span {
        trace_id: [7; 16],
        span_id: [8; 8],
        parent: Some(([9; 8], true)),
        attributes: vec![int("raft.term", 3), int("large", u64::MAX), text("t", "x")],
        links: vec![Linked { trace_id: [1; 16], span_id: [2; 8] }],
        error: Some("gap".into()),
        // A clock that was set back within the span.
        end: now - Duration::from_secs(1),
        ..Span::own("block.apply", now, now)
    };
    tracer.record(sent);
    tracer.shut_down(Duration::from_secs(5));
    let spans = kept.spans.lock().expect("no panic before");
    let got = &spans[0];
    assert_eq!(got.span_context.trace_id(), TraceId::from_bytes([7; 16]));
    assert_eq!(got.parent_span_id, SpanId::from_bytes([9; 8]));
    assert!(got.span_context.is_sampled() && got.parent_span_is_remote);
    assert_eq!(got.attributes[0].value, Value::I64(3));
    assert_eq!(got.attributes[1].value, Value::I64(i64::MAX));
    assert_eq!(got.links.links.len(), 1);
    assert_eq!(got.status, Status::Error { description: "gap".into() });
    assert_eq!(got.end_time, got.start_time);
    assert_eq!(counts.exported.get(), 1);
}

#[test]
fn ids_that_name_nothing_are_replaced() {
    let kept = Kept::default();
    let (tracer, _) = tracer(&kept, 64, Duration::from_secs(60));
    tracer.record(Span { trace_id: [0; 16], span_id: [0; 8], ..span() });
    tracer.shut_down(Duration::from_secs(5));
    assert!(kept.spans.lock().expect("no panic before")[0].span_context.is_valid());
}

#[test]
fn every_span_is_counted_once() {
    let kept = Kept::default();
    let (tracer, counts) = tracer(&kept, 10, Duration::from_secs(60));
    let standing = kept.gate.lock().expect("no panic before");
    (0..25).for_each(|_| tracer.record(span()));
    // The exporter may have taken one batch meanwhile: ten at most, beside the ten of the queue.
    let dropped = counts.dropped_queue.get();
    assert!((5..=15).contains(&dropped), "a full queue drops, and dropped {dropped}");
    assert!(tracer.is_exporting());
    kept.is_broken.store(true, Ordering::Relaxed);
    drop(standing);
    tracer.shut_down(Duration::from_secs(5));
    assert_eq!((counts.exported.get(), counts.dropped_export.get()), (0, 25 - dropped));
    assert!(0 < counts.failures.get());
    assert!(!tracer.is_exporting());
}

#[test]
fn what_a_collector_refuses_of_a_batch_is_not_exported() {
    use tracing_subscriber::layer::SubscriberExt;

    /// Takes the batch but for two spans, and says so as the exporter does.
    #[derive(Debug)]
    struct Partial;
    impl SpanExporter for Partial {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            tracing::warn!(
                name: "HttpTraceClient.PartialSuccess",
                target: "opentelemetry-otlp",
                rejected_spans = 2i64,
                "partial"
            );
            Ok(())
        }
    }
    let rejected = Rejected::default();
    let counts = Counts::register(&Registry::new()).expect("a fresh registry");
    let counted = Counted::new(Partial, counts.clone(), rejected.clone(), "here".into());
    let subscriber = tracing_subscriber::registry().with(rejected.layer());
    tracing::subscriber::with_default(subscriber, || {
        let batch: Vec<SpanData> =
            (0..5).map(|_| span().into_data(&InstrumentationScope::builder("t").build())).collect();
        futures::executor::block_on(counted.export(batch)).expect("it is taken");
    });
    assert_eq!((counts.exported.get(), counts.dropped_rejected.get()), (3, 2));
}

#[test]
fn wall_time_is_computed_from_the_monotonic_clock() {
    let clock = Clock::now();
    let ago = clock.monotonic - Duration::from_millis(250);
    assert_eq!(clock.at(ago), clock.wall - Duration::from_millis(250));
    assert_eq!(clock.at(clock.monotonic + Duration::from_millis(5)), clock.wall + Duration::from_millis(5));
    assert_eq!(clock.micros(clock.monotonic) / 1_000, clock.unix_ms());
}
