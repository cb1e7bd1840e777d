//! Spans out of instants: one block's tree as this node sees it. Pure but for chosen ids.

use std::time::{Instant, SystemTime};

use crate::instants::acks::Ack;
use crate::instants::event::{AppliedBlock, Batch, Delivered, Proposed, Served};
use crate::instants::proposal::Traced;
use crate::instants::ring::{Mark, Timing};
use crate::instants::shape::{Place, Range, apply_span_id, derived_trace_id};
use crate::telemetry::names;
use crate::telemetry::trace::{Attribute, Clock, Linked, Span, flag, int, signed, text};
use crate::types::NodeId;
use crate::types::position::LogPos;
use crate::types::trace::{SpanId, TraceId};

/// What is written of something that has not ended.
const PENDING: &str = "pending";

/// Everything that spans of one batch have in common.
pub(super) struct Scene<'a> {
    pub(super) clock: Clock,
    pub(super) cluster_id: &'a str,
    pub(super) node_id: NodeId,
    pub(super) role: &'static str,
}

/// The `block.apply` that a `block.deliver` hangs on.
#[derive(Debug, Clone, Copy)]
pub(super) struct ApplySpan {
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
    /// This clock minus the proposer's.
    pub(super) offset_us: Option<i64>,
}

/// One span of a block's tree before its attributes.
struct Leaf {
    name: &'static str,
    trace_id: TraceId,
    parent: Option<SpanId>,
    start: Instant,
    end: Instant,
}

impl Scene<'_> {
    fn leaf(&self, leaf: Leaf, attributes: Vec<Attribute>) -> Span {
        let Leaf { name, trace_id, parent, start, end } = leaf;
        Span {
            name: name.into(),
            trace_id,
            span_id: rand::random(),
            // The proposer's span may be another process's.
            parent: parent.map(|id| (id, true)),
            is_server: false,
            start: self.clock.at(start),
            end: self.clock.at(end),
            attributes,
            links: Vec::new(),
            error: None,
        }
    }

    fn position(&self, pos: LogPos) -> Vec<Attribute> {
        // Room for what the largest span has.
        let mut attributes = Vec::with_capacity(12);
        attributes.push(int(names::TERM, pos.term));
        attributes.push(int(names::INDEX, pos.index));
        attributes.push(int(names::NODE_ID, self.node_id));
        attributes
    }

    /// `block.apply`.
    pub(super) fn apply(
        &self,
        batch: &Batch,
        block: &AppliedBlock,
        place: &Place,
        timing: Option<&Timing>,
        offset_us: Option<i64>,
    ) -> Span {
        // A slot that was taken over leaves apply's own instants.
        let start = timing.and_then(|t| t.at(Mark::ApplyStarted)).unwrap_or(batch.started);
        let (trace_id, parent) = (place.trace_id, place.parent);
        let leaf = Leaf { name: names::span::APPLY, trace_id, parent, start, end: batch.applied };
        let mut attributes = self.position(block.pos);
        attributes.push(text(names::ROLE, self.role));
        attributes.push(int(names::HEIGHT, block.height));
        attributes.push(text(names::HASH, hex(&block.hash)));
        attributes.push(int(names::BYTES, block.bytes));
        attributes.push(text(names::OUTCOME, block.outcome.label()));
        attributes.extend(offset_us.map(|us| signed(names::CLOCK_OFFSET_US, us)));
        if block.is_replay {
            attributes.push(flag(names::REPLAY, true));
        }
        let mut span = self.leaf(leaf, attributes);
        if !block.is_replay {
            span.span_id = apply_span_id(&trace_id, self.node_id, block.pos);
        }
        span.links.extend(place.link);
        span.error = block.outcome.is_error().then(|| block.outcome.label().into());
        span
    }

    /// `block.apply` of a range of blocks.
    pub(super) fn range(&self, batch: &Batch, range: &Range, offset_us: Option<i64>) -> Span {
        let pos = LogPos { term: range.term, index: range.index_first };
        let leaf = Leaf {
            name: names::span::APPLY,
            trace_id: derived_trace_id(self.cluster_id, pos),
            parent: None,
            start: batch.started,
            end: batch.applied,
        };
        let mut attributes = vec![
            int(names::TERM, range.term),
            int(names::INDEX_FIRST, range.index_first),
            int(names::INDEX_LAST, range.index_last),
            int(names::HEIGHT_FIRST, range.height_first),
            int(names::HEIGHT_LAST, range.height_last),
            int(names::NODE_ID, self.node_id),
            text(names::ROLE, self.role),
            text(names::OUTCOME, "applied"),
        ];
        attributes.extend(offset_us.map(|us| signed(names::CLOCK_OFFSET_US, us)));
        if range.is_replay {
            attributes.push(flag(names::REPLAY, true));
        }
        self.leaf(leaf, attributes)
    }

    /// `raft.queue` and `raft.commit`, on the node that proposed.
    pub(super) fn queue_and_commit(&self, pos: LogPos, place: &Place, timing: &Timing) -> Vec<Span> {
        let between = |name, from, to| {
            let (start, end) = (timing.at(from)?, timing.at(to)?);
            let leaf = Leaf { name, trace_id: place.trace_id, parent: place.parent, start, end };
            Some(self.leaf(leaf, self.position(pos)))
        };
        let queue = between(names::span::QUEUE, Mark::Received, Mark::Handed);
        let commit = between(names::span::COMMIT, Mark::Handed, Mark::Committed);
        queue.into_iter().chain(commit).collect()
    }

    /// `raft.append`; `None`: nothing is known of it.
    pub(super) fn append(
        &self,
        pos: LogPos,
        place: &Place,
        timing: &Timing,
        offset_us: Option<i64>,
        now: Instant,
    ) -> Option<Span> {
        let start = timing.at(Mark::Appended)?;
        let synced = timing.at(Mark::Synced);
        let end = synced.unwrap_or(now);
        let (trace_id, parent) = (place.trace_id, place.parent);
        let leaf = Leaf { name: names::span::APPEND, trace_id, parent, start, end };
        let mut attributes = self.position(pos);
        attributes.push(text(names::ROLE, self.role));
        if let Some(sync) = timing.sync {
            attributes.push(int(names::SYNC_US, sync.took.as_micros() as u64));
            attributes.push(int(names::SYNC_ENTRIES, sync.entries.into()));
        }
        attributes.extend(offset_us.map(|us| signed(names::CLOCK_OFFSET_US, us)));
        if synced.is_none() {
            attributes.push(text(names::OUTCOME, PENDING));
        }
        Some(self.leaf(leaf, attributes))
    }

    /// `raft.replicate` to one peer; without an acknowledgement it is still pending.
    pub(super) fn replicate(
        &self,
        pos: LogPos,
        place: &Place,
        peer_id: NodeId,
        ack: Option<Ack>,
        (handed, now): (Instant, Instant),
    ) -> Span {
        let (start, end) = ack.map_or((handed, now), |ack| (ack.sent, ack.acknowledged));
        let (trace_id, parent) = (place.trace_id, place.parent);
        let leaf = Leaf { name: names::span::REPLICATE, trace_id, parent, start, end };
        let mut attributes = self.position(pos);
        attributes.push(int(names::PEER_ID, peer_id));
        if ack.is_none() {
            attributes.push(text(names::OUTCOME, PENDING));
        }
        self.leaf(leaf, attributes)
    }

    /// `block.deliver`; not over, it is pending.
    pub(super) fn deliver(&self, delivered: &Delivered, on: &ApplySpan, is_over: bool) -> Span {
        let Delivered { pos, started: start, ended: end, subscribers, delivered } = *delivered;
        let trace_id = on.trace_id;
        let leaf = Leaf { name: names::span::DELIVER, trace_id, parent: None, start, end };
        let mut attributes = self.position(pos);
        attributes.push(int(names::SUBSCRIBERS, subscribers));
        attributes.push(int(names::DELIVERED, delivered));
        attributes.extend(on.offset_us.map(|us| signed(names::CLOCK_OFFSET_US, us)));
        if is_over {
            attributes.push(int(names::DROPPED, subscribers.saturating_sub(delivered)));
        } else {
            attributes.push(int(names::DROPPED, 0));
            attributes.push(text(names::OUTCOME, PENDING));
        }
        Span { parent: Some((on.span_id, false)), ..self.leaf(leaf, attributes) }
    }
}

/// `block.propose`.
pub(super) fn propose(clock: &Clock, traced: &Traced, proposed: &Proposed) -> Span {
    let mut attributes = vec![int(names::HEIGHT, proposed.height), text(names::OUTCOME, proposed.outcome)];
    attributes.extend(proposed.term.map(|term| int(names::TERM, term)));
    attributes.extend(proposed.index.map(|index| int(names::INDEX, index)));
    Span {
        name: names::span::PROPOSE.into(),
        trace_id: traced.trace_id,
        span_id: traced.span_id,
        parent: traced.server.map(|id| (id, false)),
        is_server: false,
        start: clock.at(proposed.received),
        end: clock.at(proposed.ended),
        attributes,
        // Where there is a call's span, it has the link.
        links: traced.link.filter(|_| traced.server.is_none()).map(linked).into_iter().collect(),
        error: proposed.is_error.then(|| proposed.outcome.into()),
    }
}

/// The span of a call.
pub(super) fn serve(clock: &Clock, traced: &Traced, served: Served) -> Span {
    let end: SystemTime = clock.at(served.ended);
    Span {
        name: served.name,
        trace_id: traced.trace_id,
        span_id: traced.server.unwrap_or(traced.span_id),
        parent: traced.parent.map(|p| (p.span_id, !served.is_inner)),
        is_server: !served.is_inner,
        start: clock.at(served.started),
        end,
        attributes: served.attributes,
        links: traced.link.map(linked).into_iter().collect(),
        error: served.error,
    }
}

fn linked(context: crate::types::trace::Context) -> Linked {
    Linked { trace_id: context.trace_id, span_id: context.span_id }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    hex_simd::encode_to_string(bytes, hex_simd::AsciiCase::Lower)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use opentelemetry::Value;

    use super::*;
    use crate::instants::event::BlockOutcome;

    fn scene() -> Scene<'static> {
        Scene { clock: Clock::now(), cluster_id: "c", node_id: 2, role: "follower" }
    }

    fn batch() -> Batch {
        let started = Instant::now();
        Batch { blocks: Vec::new(), subscribers: 0, started, applied: started + Duration::from_millis(3) }
    }

    fn block() -> AppliedBlock {
        AppliedBlock {
            pos: LogPos { term: 3, index: 9 },
            height: 7,
            hash: Bytes::from_static(&[0xab, 1]),
            bytes: 300,
            outcome: BlockOutcome::Applied,
            carrier: None,
            proposer_id: 1,
            proposed_at_ms: 0,
            took: Duration::ZERO,
            is_replay: false,
        }
    }

    fn place() -> Place {
        Place { trace_id: [1; 16], parent: Some([2; 8]), link: None }
    }

    fn get<'a>(span: &'a Span, name: &str) -> Option<&'a Value> {
        span.attributes.iter().find(|kv| kv.key.as_str() == name).map(|kv| &kv.value)
    }

    #[test]
    fn an_applied_block_has_its_place_as_integers() {
        let span = scene().apply(&batch(), &block(), &place(), None, Some(-12));
        assert_eq!(span.name, "block.apply");
        assert_eq!((span.trace_id, span.parent), ([1; 16], Some(([2; 8], true))));
        for (name, want) in [
            ("raft.term", 3),
            ("raft.index", 9),
            ("raft.node.id", 2),
            ("block.height", 7),
            ("block.bytes", 300),
            ("raft.clock_offset_us", -12),
        ] {
            assert_eq!(get(&span, name), Some(&Value::I64(want)), "{name}");
        }
        assert_eq!(get(&span, "block.hash"), Some(&Value::from("ab01")));
        assert_eq!(get(&span, "outcome"), Some(&Value::from("applied")));
        assert_eq!((get(&span, "raft.replay"), span.error.clone()), (None, None));
        assert_eq!(span.end.duration_since(span.start).ok(), Some(Duration::from_millis(3)));
        let keys: std::collections::BTreeSet<_> = span.attributes.iter().map(|kv| kv.key.as_str()).collect();
        assert_eq!(keys.len(), span.attributes.len(), "each key once");
    }

    #[test]
    fn a_refused_or_replayed_block_says_so() {
        let refused = AppliedBlock { outcome: BlockOutcome::Refused("gap"), ..block() };
        let span = scene().apply(&batch(), &refused, &place(), None, None);
        assert_eq!(span.error.as_deref(), Some("gap"));
        let replayed = AppliedBlock { is_replay: true, ..block() };
        let again = scene().apply(&batch(), &replayed, &place(), None, None);
        assert_eq!(get(&again, "raft.replay"), Some(&Value::Bool(true)));
        assert_ne!(again.span_id, apply_span_id(&[1; 16], 2, block().pos), "no id is used twice");
    }

    #[test]
    fn a_delivery_hangs_on_the_nodes_own_apply() {
        let on = ApplySpan { trace_id: [1; 16], span_id: [5; 8], offset_us: Some(40) };
        let now = Instant::now();
        let delivered =
            Delivered { pos: block().pos, started: now, ended: now, subscribers: 3, delivered: 1 };
        let over = scene().deliver(&delivered, &on, true);
        assert_eq!((over.trace_id, over.parent), ([1; 16], Some(([5; 8], false))));
        for (name, want) in
            [("subscribers", 3), ("delivered", 1), ("dropped", 2), ("raft.clock_offset_us", 40)]
        {
            assert_eq!(get(&over, name), Some(&Value::I64(want)), "{name}");
        }
        assert_eq!(get(&over, "outcome"), None);
        let pending = scene().deliver(&delivered, &on, false);
        assert_eq!(get(&pending, "dropped"), Some(&Value::I64(0)), "who is slow may still get it");
        assert_eq!(get(&pending, "outcome"), Some(&Value::from("pending")));
    }

    #[test]
    fn stages_lie_between_their_instants() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let timing = Timing::default()
            .with(Mark::Received, at(0))
            .with(Mark::Handed, at(1))
            .with(Mark::Appended, at(2))
            .with(Mark::Synced, at(5))
            .with(Mark::Committed, at(9));
        let took = |span: &Span| span.end.duration_since(span.start).unwrap_or_default().as_millis();
        let pos = block().pos;
        let spans = scene().queue_and_commit(pos, &place(), &timing);
        let shown: Vec<_> = spans.iter().map(|s| (s.name.as_ref(), took(s))).collect();
        assert_eq!(shown, [("raft.queue", 1), ("raft.commit", 8)]);
        let append = scene().append(pos, &place(), &timing, None, at(20)).expect("it was appended");
        assert_eq!((took(&append), get(&append, "outcome")), (3, None));
        let unsynced = Timing::default().with(Mark::Appended, at(2));
        let pending = scene().append(pos, &place(), &unsynced, None, at(20)).expect("it was appended");
        assert_eq!((took(&pending), get(&pending, "outcome")), (18, Some(&Value::from("pending"))));
        let unacknowledged = scene().replicate(pos, &place(), 3, None, (at(1), at(20)));
        assert_eq!(get(&unacknowledged, "outcome"), Some(&Value::from("pending")));
        assert_eq!(get(&unacknowledged, "raft.peer.id"), Some(&Value::I64(3)));
    }
}
