//! What is written of an applied block: a span of its own, a place in a range, or nothing. Pure.

use std::time::{Duration, Instant};

use crate::instants::event::{AppliedBlock, BlockOutcome};
use crate::instants::ring::{Mark, Timing};
use crate::telemetry::trace::Linked;
use crate::telemetry::trace::sampling::{Bucket, Sampling, is_within};
use crate::types::position::LogPos;
use crate::types::trace::{SpanId, TraceId};
use crate::types::{Height, LogIndex, NodeId, Term};

/// An entry that took so long to be applied here is always written. By eye: twenty heartbeats.
pub(super) const SLOW: Duration = Duration::from_secs(1);
/// Applied so long after it was proposed: its trace is over, and a new one is begun.
const LATE_MS: u64 = 5 * 60 * 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Hidden,
    Whole,
    Ranged,
}

/// Bounds what one node writes whole when it catches up or replays: the proposer's budget was of
/// another time. Wide enough that it is never met while blocks come as they are proposed.
pub(super) fn own_budget(sampling: &Sampling, now: Instant) -> Bucket {
    let n = sampling.traces_per_second;
    Bucket::new(n + n / 4, 3 * n.max(1), now)
}

/// Who decided is the proposer; errors and slow entries are written all the same, unless the variables
/// forbid it.
pub(super) fn shape_of(
    block: &AppliedBlock,
    trace_id: &TraceId,
    timing: Option<&Timing>,
    applied: Instant,
    sampling: &Sampling,
    budget: &mut Bucket,
) -> Shape {
    let is_slow = timing
        .and_then(|t| t.at(Mark::Appended))
        .is_some_and(|appended| SLOW <= applied.saturating_duration_since(appended));
    let is_always = (block.outcome.is_error() || is_slow) && !sampling.is_explicit;
    let (is_sampled, is_whole) = match block.carrier {
        Some(carrier) => (carrier.is_sampled, carrier.is_whole),
        // Every node decides the same by the derived id.
        None => (is_within(trace_id, sampling.ratio), true),
    };
    let wants_whole = is_sampled && is_whole || is_always;
    let is_new = block.outcome == BlockOutcome::Applied;
    match (wants_whole && budget.take(applied), is_sampled && is_new) {
        (true, _) => Shape::Whole,
        (false, true) => Shape::Ranged,
        (false, false) => Shape::Hidden,
    }
}

/// In which trace a block's spans stand on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) trace_id: TraceId,
    pub(super) parent: Option<SpanId>,
    pub(super) link: Option<Linked>,
}

pub(super) fn place_of(block: &AppliedBlock, cluster_id: &str, now_ms: u64) -> Place {
    let derived = derived_trace_id(cluster_id, block.pos);
    let is_late = LATE_MS < now_ms.saturating_sub(block.proposed_at_ms);
    match block.carrier {
        None => Place { trace_id: derived, parent: None, link: None },
        Some(carrier) if is_late => Place {
            trace_id: derived,
            parent: None,
            link: Some(Linked { trace_id: carrier.trace_id, span_id: carrier.span_id }),
        },
        Some(carrier) => Place { trace_id: carrier.trace_id, parent: Some(carrier.span_id), link: None },
    }
}

/// The trace of an entry that carries none: all nodes make the same of it.
pub(super) fn derived_trace_id(cluster_id: &str, pos: LogPos) -> TraceId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"trace").update(&(cluster_id.len() as u64).to_be_bytes()).update(cluster_id.as_bytes());
    hasher.update(&pos.term.to_be_bytes()).update(&pos.index.to_be_bytes());
    first(hasher.finalize().as_bytes())
}

/// A node's `block.apply` span of an entry: whoever hands the block on can name it without asking.
pub(super) fn apply_span_id(trace_id: &TraceId, node_id: NodeId, pos: LogPos) -> SpanId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"apply").update(trace_id).update(&node_id.to_be_bytes());
    hasher.update(&pos.term.to_be_bytes()).update(&pos.index.to_be_bytes());
    first(hasher.finalize().as_bytes())
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes[..N].try_into().expect("a hash is longer")
}

/// Consecutive blocks of one term whose heights rise with their indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) term: Term,
    pub(super) index_first: LogIndex,
    pub(super) index_last: LogIndex,
    pub(super) height_first: Height,
    pub(super) height_last: Height,
    pub(super) is_replay: bool,
    /// One node proposes in a term.
    pub(super) proposer_id: NodeId,
    /// Whether any of them has no span of its own.
    is_wanted: bool,
}

/// The ranges of one batch. Blocks with a span of their own stand in them too, so that they do not cut
/// them up; a range of such blocks alone is left out.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    all: Vec<Range>,
}

impl Ranges {
    /// Blocks in log order; `is_ranged`: it has no span of its own.
    pub(super) fn add(&mut self, block: &AppliedBlock, is_ranged: bool) {
        let LogPos { term, index } = block.pos;
        if let Some(last) = self.all.last_mut()
            && last.term == term
            && last.index_last + 1 == index
            && last.height_last + 1 == block.height
            && last.is_replay == block.is_replay
        {
            (last.index_last, last.height_last) = (index, block.height);
            last.is_wanted |= is_ranged;
            return;
        }
        self.all.push(Range {
            term,
            index_first: index,
            index_last: index,
            height_first: block.height,
            height_last: block.height,
            is_replay: block.is_replay,
            proposer_id: block.proposer_id,
            is_wanted: is_ranged,
        });
    }

    pub(super) fn wanted(self) -> impl Iterator<Item = Range> {
        self.all.into_iter().filter(|range| range.is_wanted)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::trace::Carrier;

    fn block(height: u64, index: u64, term: u64) -> AppliedBlock {
        AppliedBlock {
            pos: LogPos { term, index },
            height,
            hash: Bytes::from_static(b"h"),
            bytes: 3,
            outcome: BlockOutcome::Applied,
            carrier: Some(carrier(true, true)),
            proposer_id: 1,
            proposed_at_ms: 1_000,
            took: Duration::ZERO,
            is_replay: false,
        }
    }

    fn carrier(is_sampled: bool, is_whole: bool) -> Carrier {
        Carrier { trace_id: [7; 16], span_id: [8; 8], is_sampled, is_whole }
    }

    fn sampling(n: u64) -> Sampling {
        Sampling { ratio: 1.0, obeys_parent: true, is_explicit: false, traces_per_second: n }
    }

    fn shape(block: &AppliedBlock, timing: Option<&Timing>, sampling: &Sampling) -> Shape {
        let now = Instant::now();
        shape_of(block, &[7; 16], timing, now, sampling, &mut own_budget(sampling, now))
    }

    #[test]
    fn the_proposer_decides_and_errors_and_slow_ones_are_always_whole() {
        let s = sampling(9);
        let with = |c: Option<Carrier>| AppliedBlock { carrier: c, ..block(1, 1, 1) };
        assert_eq!(shape(&with(Some(carrier(true, true))), None, &s), Shape::Whole);
        assert_eq!(shape(&with(Some(carrier(true, false))), None, &s), Shape::Ranged);
        assert_eq!(shape(&with(Some(carrier(false, false))), None, &s), Shape::Hidden);
        assert_eq!(shape(&with(None), None, &s), Shape::Whole);
        let refused =
            AppliedBlock { outcome: BlockOutcome::Refused("gap"), ..with(Some(carrier(false, false))) };
        assert_eq!(shape(&refused, None, &s), Shape::Whole);
        let slow = Timing::default().with(Mark::Appended, Instant::now() - SLOW);
        assert_eq!(shape(&with(Some(carrier(false, false))), Some(&slow), &s), Shape::Whole);
        let explicit = Sampling { is_explicit: true, ..s };
        assert_eq!(shape(&refused, None, &explicit), Shape::Hidden);
        // A duplicate was applied before: no range holds it.
        let duplicate = AppliedBlock { outcome: BlockOutcome::Duplicate, ..with(Some(carrier(true, false))) };
        assert_eq!(shape(&duplicate, None, &s), Shape::Hidden);
    }

    #[test]
    fn what_exceeds_the_nodes_own_budget_is_ranged() {
        let (s, now) = (sampling(2), Instant::now());
        let mut budget = own_budget(&s, now);
        let shapes: Vec<Shape> =
            (1..=8).map(|h| shape_of(&block(h, h, 1), &[7; 16], None, now, &s, &mut budget)).collect();
        assert_eq!(shapes, [&[Shape::Whole; 6][..], &[Shape::Ranged; 2]].concat());
    }

    #[test]
    fn ranges_are_split_where_the_term_the_distance_or_the_replay_changes() {
        let ranges = |blocks: &[AppliedBlock]| -> Vec<(u64, u64, u64, u64)> {
            let mut ranges = Ranges::default();
            blocks.iter().for_each(|b| ranges.add(b, true));
            ranges.wanted().map(|r| (r.index_first, r.index_last, r.height_first, r.height_last)).collect()
        };
        let run = [block(1, 10, 1), block(2, 11, 1), block(3, 12, 1)];
        assert_eq!(ranges(&run), [(10, 12, 1, 3)]);
        assert_eq!(ranges(&[block(1, 10, 1), block(2, 11, 2)]), [(10, 10, 1, 1), (11, 11, 2, 2)]);
        // An entry that is no block lies between, and a chain may leave heights out.
        assert_eq!(ranges(&[block(1, 10, 1), block(2, 12, 1)]), [(10, 10, 1, 1), (12, 12, 2, 2)]);
        assert_eq!(ranges(&[block(1, 10, 1), block(3, 11, 1)]), [(10, 10, 1, 1), (11, 11, 3, 3)]);
        // The distance is the same, and what lies between is no block of the range.
        assert_eq!(ranges(&[block(1, 10, 1), block(3, 12, 1)]), [(10, 10, 1, 1), (12, 12, 3, 3)]);
        let replayed = AppliedBlock { is_replay: true, ..block(1, 10, 1) };
        assert_eq!(ranges(&[replayed, block(2, 11, 1)]).len(), 2);
    }

    #[test]
    fn a_whole_block_cuts_no_range_and_makes_none() {
        let mut ranges = Ranges::default();
        for (h, is_ranged) in [(1, false), (2, true), (3, false), (4, true)] {
            ranges.add(&block(h, h + 9, 1), is_ranged);
        }
        assert_eq!(ranges.wanted().count(), 1);
        let mut whole = Ranges::default();
        whole.add(&block(1, 10, 1), false);
        assert_eq!(whole.wanted().count(), 0);
    }

    #[test]
    fn a_late_block_begins_a_trace_that_is_linked_to_the_first() {
        let b = block(1, 1, 1);
        let now = place_of(&b, "c", 2_000);
        assert_eq!((now.trace_id, now.parent, now.link), ([7; 16], Some([8; 8]), None));
        let late = place_of(&b, "c", 1_000 + LATE_MS + 1);
        assert_eq!((late.parent, late.link.map(|l| l.trace_id)), (None, Some([7; 16])));
        assert_eq!(late.trace_id, derived_trace_id("c", b.pos));
        let bare = place_of(&AppliedBlock { carrier: None, ..b.clone() }, "c", 2_000);
        assert_eq!(bare.trace_id, late.trace_id);
        assert_ne!(derived_trace_id("d", b.pos), bare.trace_id);
        assert_ne!(apply_span_id(&[7; 16], 1, b.pos), apply_span_id(&[7; 16], 2, b.pos));
    }
}
