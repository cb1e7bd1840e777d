//! What the span task makes of what it is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry::Value;
use opentelemetry_sdk::trace::SpanData;
use prometheus::Registry;

use crate::instants::event::{AppliedBlock, Batch, BlockOutcome, Delivered};
use crate::instants::ring::Mark;
use crate::instants::stages::StageExemplars;
use crate::instants::task::{Standing, Task};
use crate::instants::{Instants, Tracing};
use crate::telemetry::exemplars::Exemplars;
use crate::telemetry::trace::sampling::{Sampler, Sampling};
use crate::telemetry::trace::tests::{Kept, tracer};
use crate::types::NodeId;
use crate::types::position::LogPos;
use crate::types::trace::Carrier;

struct Follower;

impl Standing for Follower {
    fn role(&self) -> &'static str {
        "follower"
    }

    fn peers(&self) -> Vec<NodeId> {
        vec![1, 3]
    }

    fn clock_offset_us(&self, node_id: NodeId) -> Option<i64> {
        (node_id == 1).then_some(70)
    }
}

fn pos(index: u64) -> LogPos {
    LogPos { term: 2, index }
}

fn batch(indexes: std::ops::RangeInclusive<u64>, is_whole: bool, subscribers: u64) -> Batch {
    let now = Instant::now();
    let block = |index| AppliedBlock {
        pos: pos(index),
        height: index,
        hash: Bytes::from_static(b"h"),
        bytes: 3,
        outcome: BlockOutcome::Applied,
        carrier: Some(Carrier { trace_id: [7; 16], span_id: [index as u8; 8], is_sampled: true, is_whole }),
        proposer_id: 1,
        proposed_at_ms: u64::MAX,
        took: Duration::ZERO,
        is_replay: false,
    };
    Batch { blocks: indexes.map(block).collect(), subscribers, started: now, applied: now }
}

fn delivered(index: u64, subscribers: u64, delivered: u64) -> Delivered {
    let now = Instant::now();
    Delivered { pos: pos(index), started: now, ended: now, subscribers, delivered }
}

/// Runs the task of node 2 over what it is told, to its end; the spans it wrote.
fn spans_of(tell: impl FnOnce(&Instants)) -> Vec<SpanData> {
    let kept = Kept::default();
    let (tracer, _) = tracer(&kept, 10_000, Duration::from_millis(1));
    let sampling = Sampling { ratio: 1.0, obeys_parent: true, is_explicit: false, traces_per_second: 1_000 };
    let (instants, events) = Instants::new(&Registry::new()).unwrap().traced(Tracing {
        tracer: tracer.clone(),
        sampler: Sampler::new(sampling),
        cluster_id: "c".into(),
        node_id: 2,
    });
    let instants = Arc::new(instants);
    let exemplars = StageExemplars::new(&Exemplars::default(), &[]);
    let task = Task::new(instants.clone(), Arc::new(Follower), exemplars, events);
    tell(&instants);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let running = tokio::spawn(task.run());
        instants.finish(Duration::from_secs(20)).await;
        running.await.unwrap();
    });
    tracer.shut_down(Duration::from_secs(20));
    kept.spans.lock().unwrap().clone()
}

fn attributes(span: &SpanData) -> BTreeMap<&str, Value> {
    span.attributes.iter().map(|kv| (kv.key.as_str(), kv.value.clone())).collect()
}

fn named<'a>(spans: &'a [SpanData], name: &str) -> Vec<&'a SpanData> {
    spans.iter().filter(|s| s.name == name).collect()
}

#[test]
fn a_delivery_waits_for_those_who_subscribed_as_its_block_was_applied() {
    let spans = spans_of(|instants| {
        (1..=4).for_each(|i| instants.mark(pos(i), Mark::Appended, Instant::now()));
        // Nobody; two, one of whom was slow; one who has not taken it by the end; and news of a block that
        // nobody waits for.
        instants.applied(batch(1..=1, true, 0));
        instants.applied(batch(2..=2, true, 2));
        instants.applied(batch(3..=3, true, 1));
        instants.applied(batch(4..=4, false, 1));
        instants.delivered(vec![delivered(1, 1, 1), delivered(2, 2, 1), delivered(4, 1, 1)]);
    });
    let deliveries = named(&spans, "block.deliver");
    let shown: Vec<_> = deliveries
        .iter()
        .map(|s| {
            let of = attributes(s);
            let get = |name: &str| of.get(name).cloned();
            (get("raft.index"), get("subscribers"), get("delivered"), get("dropped"), get("outcome"))
        })
        .collect();
    let int = |n: i64| Some(Value::I64(n));
    assert_eq!(
        shown,
        [
            (int(1), int(0), int(0), int(0), None),
            (int(2), int(2), int(1), int(1), None),
            (int(3), int(1), int(0), int(0), Some(Value::from("pending"))),
        ]
    );
    for deliver in deliveries {
        let of_block = attributes(deliver)["raft.index"].clone();
        let applies = named(&spans, "block.apply");
        let apply = applies.iter().find(|s| attributes(s).get("raft.index") == Some(&of_block)).unwrap();
        assert_eq!(deliver.parent_span_id, apply.span_context.span_id());
    }
}

#[test]
fn every_span_of_a_follower_says_how_its_clock_stands_to_the_proposers() {
    let spans = spans_of(|instants| {
        (1..=6).for_each(|i| instants.mark(pos(i), Mark::Appended, Instant::now()));
        instants.applied(batch(1..=1, true, 0));
        instants.applied(batch(2..=6, false, 0));
    });
    let names: Vec<_> = spans.iter().map(|s| s.name.to_string()).collect();
    assert_eq!(names, ["block.apply", "block.deliver", "raft.append", "block.apply"]);
    for span in &spans {
        assert_eq!(attributes(span).get("raft.clock_offset_us"), Some(&Value::I64(70)), "{}", span.name);
    }
    let range = attributes(&spans[3]);
    assert_eq!((&range["raft.index.first"], &range["raft.index.last"]), (&Value::I64(2), &Value::I64(6)));
}
