use std::{borrow::Cow, sync::Mutex, time::SystemTime};

use opentelemetry::{
    KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::telemetry::encode::encode;

/// Longer than any step takes.
const LIMIT: Duration = Duration::from_secs(10);

fn span(id: u64, is_sampled: bool) -> SpanData {
    let flags = if is_sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    SpanData {
        span_context: SpanContext::new(
            TraceId::from_bytes([7; 16]),
            SpanId::from_bytes(id.to_be_bytes()),
            flags,
            false,
            TraceState::default(),
        ),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: Cow::Borrowed("block.apply"),
        start_time: SystemTime::now(),
        end_time: SystemTime::now(),
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: opentelemetry::InstrumentationScope::default(),
    }
}

/// A collector that answers every export with `answer`; the bodies it got.
async fn collector(answer: &'static [u8]) -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let got = Arc::new(Mutex::new(Vec::new()));
    let bodies = got.clone();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let bodies = bodies.clone();
            tokio::spawn(async move {
                let mut text = Vec::new();
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = socket.read(&mut buffer).await {
                    text.extend_from_slice(&buffer[..n]);
                    let Some(head) = text.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
                    let length = String::from_utf8_lossy(&text[..head])
                        .lines()
                        .find_map(|l| {
                            l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok()
                        })
                        .unwrap_or(0);
                    if head + 4 + length <= text.len() {
                        bodies.lock().expect("nobody panics").extend_from_slice(&text[head + 4..]);
                        text.clear();
                        let _ = socket.write_all(answer).await;
                    }
                }
            });
        }
    });
    (url, got)
}

fn started(url: &str, env: &'static [(&'static str, &'static str)], registry: &Registry) -> Traces {
    let config =
        Config { endpoint: Some(url.into()), protocol: Protocol::Http, sample_ratio: 1.0, per_second: 500 };
    let who = Who { cluster_id: "c".into(), node_id: 1, version: "0.1.0" };
    let lookup = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    start(&config, &who, &lookup, registry, &tokio::runtime::Handle::current()).expect("an exporter")
}

fn count(registry: &Registry, series: &str) -> u64 {
    let (_, body) = encode(&registry.gather(), None, None);
    let line = body.lines().find_map(|l| l.strip_prefix("blockraft_telemetry_")?.strip_prefix(series));
    line.expect("the series exists from the start").trim().parse().expect("a count")
}

async fn finish(traces: Traces) {
    tokio::task::spawn_blocking(move || traces.shutdown(LIMIT)).await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_reach_the_collector_and_are_counted() {
    let (url, got) = collector(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let registry = Registry::new();
    let traces = started(&url, &[], &registry);
    for id in 1..=10 {
        traces.sink().send(span(id, true));
    }
    // Neither is one that is not sampled sent, nor one without an id.
    traces.sink().send(span(11, false));
    traces.sink().send(span(0, true));
    finish(traces).await;
    assert_eq!(count(&registry, "spans_exported_total"), 10);
    let body = got.lock().expect("nobody panics").clone();
    assert_eq!(body.windows(11).filter(|w| *w == b"block.apply").count(), 10);
    assert!(body.windows(19).any(|w| w == b"service.instance.id"));
    for reason in ["queue", "export", "rejected"] {
        assert_eq!(count(&registry, &format!("spans_dropped_total{{reason=\"{reason}\"}}")), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_refuses_costs_counted_spans() {
    let (url, _) = collector(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let registry = Registry::new();
    let traces = started(&url, &[], &registry);
    traces.sink().send(span(1, true));
    traces.sink().send(span(2, true));
    finish(traces).await;
    assert_eq!(count(&registry, "spans_exported_total"), 0);
    assert_eq!(count(&registry, "export_failures_total"), 1);
    assert_eq!(count(&registry, "spans_dropped_total{reason=\"export\"}"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_drops_and_counts_and_never_waits() {
    let (url, _) = collector(b"").await;
    let registry = Registry::new();
    let traces =
        started(&url, &[("OTEL_BSP_MAX_QUEUE_SIZE", "4"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "50")], &registry);
    let n = 100;
    for id in 1..=n {
        traces.sink().send(span(id, true));
    }
    assert!(0 < count(&registry, "spans_dropped_total{reason=\"queue\"}"));
    finish(traces).await;
    let lost: u64 = ["queue", "export"]
        .iter()
        .map(|r| count(&registry, &format!("spans_dropped_total{{reason=\"{r}\"}}")))
        .sum();
    assert_eq!(lost, n);
}

#[test]
fn rejected_spans_are_read_from_the_sdks_log() {
    let registry = Registry::new();
    let counts = Arc::new(Counts::register(&registry).expect("a fresh registry"));
    let subscriber = tracing_subscriber::registry().with(count::Rejections(counts.clone()));
    tracing::subscriber::with_default(subscriber, || {
        tracing::warn!(name: "HttpTraceClient.PartialSuccess", target: "opentelemetry-otlp", rejected_spans = 3_i64, "");
        tracing::warn!(name: "HttpLogsClient.Other", target: "opentelemetry-otlp", rejected_spans = 9_i64, "");
    });
    let exporter = count::Exporter::new(Fine, counts, Arc::new(AtomicUsize::new(5)));
    let batch: Vec<_> = (1..=5).map(|id| span(id, true)).collect();
    futures::executor::block_on(opentelemetry_sdk::trace::SpanExporter::export(&exporter, batch))
        .expect("it is fine");
    assert_eq!(count(&registry, "spans_exported_total"), 2);
    assert_eq!(count(&registry, "spans_dropped_total{reason=\"rejected\"}"), 3);
}

#[derive(Debug)]
struct Fine;

impl opentelemetry_sdk::trace::SpanExporter for Fine {
    async fn export(&self, _batch: Vec<SpanData>) -> OTelSdkResult {
        Ok(())
    }
}

#[test]
fn a_span_is_tidied() {
    let mut odd = span(1, true);
    odd.start_time = UNIX_EPOCH - Duration::from_secs(5);
    odd.end_time = UNIX_EPOCH - Duration::from_secs(4);
    odd.attributes = (0..200).map(|i| KeyValue::new(format!("k{}", i % 150), i64::from(i))).collect();
    tidy(&mut odd);
    assert_eq!((odd.start_time, odd.end_time), (UNIX_EPOCH, UNIX_EPOCH));
    assert_eq!((odd.attributes.len(), odd.dropped_attributes_count), (128, 72));
    assert_eq!(odd.attributes[7], KeyValue::new("k7", 7_i64));
}
