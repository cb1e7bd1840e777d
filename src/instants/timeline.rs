//! Where one entry's time went on this node.

use std::time::Instant;

use crate::instants::Instants;
use crate::instants::ring::Mark;
use crate::instants::stages::{REPLICATE, STAGES};
use crate::telemetry::trace::Clock;
use crate::types::NodeId;
use crate::types::position::LogPos;

/// One stage of one entry, by this node's wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StageSpan {
    pub(crate) stage: &'static str,
    /// Of the stage that is once for each peer.
    pub(crate) peer_id: Option<NodeId>,
    /// Unix microseconds.
    pub(crate) start_us: u64,
    pub(crate) duration_us: u64,
}

impl Instants {
    /// The stages that an entry went through, by when they began; `None` when nothing is known of it.
    pub(crate) fn timeline(&self, pos: LogPos) -> Option<Vec<StageSpan>> {
        let timing = self.ring.get(pos)?;
        let clock = Clock::now();
        let span = |stage, peer_id, start: Instant, end: Instant| {
            let start_us = clock.micros(start);
            StageSpan { stage, peer_id, start_us, duration_us: clock.micros(end).saturating_sub(start_us) }
        };
        let own = STAGES
            .iter()
            .filter_map(|(stage, from, to)| Some(span(*stage, None, timing.at(*from)?, timing.at(*to)?)));
        let mut stages: Vec<StageSpan> = own.collect();
        if timing.is_proposed_here() {
            let acks = self.acks.all(pos);
            stages
                .extend(acks.iter().map(|(id, ack)| span(REPLICATE, Some(*id), ack.sent, ack.acknowledged)));
        }
        stages.sort_by_key(|s| s.start_us);
        (!stages.is_empty()).then_some(stages)
    }

    /// Whether this node proposed the entry, as far as it remembers.
    pub(crate) fn is_proposed_here(&self, pos: LogPos) -> bool {
        self.ring.get(pos).is_some_and(|timing| timing.at(Mark::Handed).is_some())
    }
}
