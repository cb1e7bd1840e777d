//! The one task that writes block spans, exemplars and audit lines.
//!
//! It gathers what the hot path told it in a moment and builds from the ring what is missing. What ends
//! after apply is written when it ends, or after a while as pending.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use crate::instants::audit::Audit;
use crate::instants::event::{AppliedBlock, Batch, BlockOutcome, Delivered, Event};
use crate::instants::ring::{Mark, Timing};
use crate::instants::shape::{Place, Ranges, Shape, apply_span_id, own_budget, place_of, shape_of};
use crate::instants::stages::StageExemplars;
use crate::instants::tree::{self, ApplySpan, Scene};
use crate::instants::{Instants, audit};
use crate::telemetry::trace::Clock;
use crate::telemetry::trace::sampling::Bucket;
use crate::types::NodeId;
use crate::types::position::LogPos;

/// After the first news the task waits so long for more: a sleeper costs who tells it a wake-up.
const GATHER: Duration = Duration::from_millis(20);
/// Events taken at once.
const EVENTS_MAX: usize = 1_024;
/// A part of a tree that has not ended by then is written as pending.
const PENDING_MAX: Duration = Duration::from_secs(5);
/// What the task asks of the node it runs on; supplied by `node`. Must not block.
pub(crate) trait Standing: Send + Sync + 'static {
    /// As a span names it.
    fn role(&self) -> &'static str;
    /// The other members.
    fn peers(&self) -> Vec<NodeId>;
    /// This clock minus another node's, in microseconds.
    fn clock_offset_us(&self, node_id: NodeId) -> Option<i64>;
}

/// A tree that lacks a part.
struct Pending {
    pos: LogPos,
    place: Place,
    handed: Instant,
    /// Peers that have not acknowledged.
    peers: Vec<NodeId>,
    until: Instant,
}

/// A tree whose block is on its way to subscribers.
struct Awaited {
    on: ApplySpan,
    applied: Instant,
    subscribers: u64,
    until: Instant,
}

/// Owns what is pending.
pub(crate) struct Task {
    instants: Arc<Instants>,
    standing: Arc<dyn Standing>,
    exemplars: StageExemplars,
    events: mpsc::Receiver<Event>,
    budget: Bucket,
    audit: Audit,
    /// By when they were applied.
    pending: VecDeque<Pending>,
    awaited: HashMap<LogPos, Awaited>,
}

impl Task {
    pub(crate) fn new(
        instants: Arc<Instants>,
        standing: Arc<dyn Standing>,
        exemplars: StageExemplars,
        events: mpsc::Receiver<Event>,
    ) -> Self {
        let now = Instant::now();
        let budget = own_budget(&instants.sampler.sampling(), now);
        Self {
            instants,
            standing,
            exemplars,
            events,
            budget,
            audit: Audit::new(now),
            pending: VecDeque::new(),
            awaited: HashMap::new(),
        }
    }

    /// Runs until it is told to finish.
    pub(crate) async fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            match self.pending.is_empty() && self.awaited.is_empty() {
                true => {
                    if self.events.recv_many(&mut events, EVENTS_MAX).await == 0 {
                        return;
                    }
                }
                false => {
                    let more = self.events.recv_many(&mut events, EVENTS_MAX);
                    if tokio::time::timeout(GATHER, more).await == Ok(0) {
                        return;
                    }
                }
            }
            for event in events.drain(..) {
                if let Event::Finish(done) = event {
                    self.write_pending(true);
                    // Who waits gives up after a while.
                    let _ = done.send(());
                    return;
                }
                self.on_event(event);
            }
            self.write_pending(false);
            if self.events.is_empty() {
                tokio::time::sleep(GATHER).await;
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Applied(batch) => self.on_applied(&batch),
            Event::Proposed(traced, proposed) => {
                let span = tree::propose(&Clock::now(), &traced, &proposed);
                self.instants.tracer.record(span);
                if self.instants.tracer.is_exporting() {
                    let took = proposed.ended.saturating_duration_since(proposed.received);
                    self.exemplars.proposed(proposed.outcome, took, traced.trace_id);
                }
            }
            Event::Served(traced, served) => {
                self.instants.tracer.record(tree::serve(&Clock::now(), &traced, *served));
            }
            Event::Delivered(delivered) => delivered.iter().for_each(|d| self.on_delivered(d)),
            Event::Finish(_) => unreachable!("taken by the loop"),
        }
    }

    fn on_delivered(&mut self, delivered: &Delivered) {
        let Some(awaited) = self.awaited.remove(&delivered.pos) else { return };
        let instants = Arc::clone(&self.instants);
        let scene = scene(&instants, self.standing.role());
        instants.tracer.record(scene.deliver(delivered, &awaited.on, true));
        if instants.tracer.is_exporting() {
            let took = delivered.ended.saturating_duration_since(delivered.started);
            self.exemplars.delivered(took, awaited.on.trace_id);
        }
    }

    fn on_applied(&mut self, batch: &Batch) {
        let instants = Arc::clone(&self.instants);
        let scene = scene(&instants, self.standing.role());
        let sampling = instants.sampler.sampling();
        let (is_read, is_on) = (audit::is_read(), instants.tracer.is_on());
        let now_ms = scene.clock.unix_ms();
        let mut ranges = Ranges::default();
        for block in &batch.blocks {
            let place = place_of(block, scene.cluster_id, now_ms);
            if is_read {
                self.audit.applied(&scene, block, &place.trace_id, batch.applied);
            }
            if !is_on {
                continue;
            }
            let timing = instants.ring.get(block.pos);
            let budget = &mut self.budget;
            let shape = shape_of(block, &place.trace_id, timing.as_ref(), batch.applied, &sampling, budget);
            match shape {
                Shape::Hidden => continue,
                Shape::Ranged => ranges.add(block, true),
                Shape::Whole => {
                    self.write_tree(&scene, batch, block, &place, timing.as_ref());
                    if block.outcome == BlockOutcome::Applied {
                        ranges.add(block, false);
                    }
                }
            }
        }
        for range in ranges.wanted() {
            let offset_us = self.offset_us(range.proposer_id);
            instants.tracer.record(scene.range(batch, &range, offset_us));
        }
    }

    /// This clock minus that of a block's proposer; `None`: it is this node, or is not known.
    fn offset_us(&self, proposer_id: NodeId) -> Option<i64> {
        let is_foreign = proposer_id != self.instants.node_id;
        is_foreign.then(|| self.standing.clock_offset_us(proposer_id)).flatten()
    }

    fn write_tree(
        &mut self,
        scene: &Scene<'_>,
        batch: &Batch,
        block: &AppliedBlock,
        place: &Place,
        timing: Option<&Timing>,
    ) {
        let tracer = self.instants.tracer.clone();
        let offset_us = self.offset_us(block.proposer_id);
        tracer.record(scene.apply(batch, block, place, timing, offset_us));
        self.await_delivery(scene, batch, block, place, offset_us);
        let Some(timing) = timing else {
            // Applied before it was appended in this process is no loss.
            if !block.is_replay {
                self.instants.lost.inc();
            }
            return;
        };
        if tracer.is_exporting() {
            self.exemplars.applied(timing, block.took, place.trace_id);
        }
        // A trace that was begun anew has no place for what came before.
        if place.link.is_some() {
            return;
        }
        if let Some(append) = scene.append(block.pos, place, timing, offset_us, batch.applied) {
            tracer.record(append);
        }
        let Some(handed) = timing.at(Mark::Handed) else { return };
        scene.queue_and_commit(block.pos, place, timing).into_iter().for_each(|span| tracer.record(span));
        let peers = self.standing.peers();
        if !peers.is_empty() {
            let until = batch.applied + PENDING_MAX;
            self.pending.push_back(Pending { pos: block.pos, place: *place, handed, peers, until });
        }
    }

    /// `block.deliver` is written once the last subscriber has the block, at once where there is none.
    fn await_delivery(
        &mut self,
        scene: &Scene<'_>,
        batch: &Batch,
        block: &AppliedBlock,
        place: &Place,
        offset_us: Option<i64>,
    ) {
        if block.is_replay || block.outcome != BlockOutcome::Applied {
            return;
        }
        let (pos, applied, trace_id) = (block.pos, batch.applied, place.trace_id);
        let span_id = apply_span_id(&trace_id, scene.node_id, pos);
        let on = ApplySpan { trace_id, span_id, offset_us };
        let subscribers = batch.subscribers;
        if subscribers == 0 {
            let delivered = Delivered { pos, started: applied, ended: applied, subscribers, delivered: 0 };
            self.instants.tracer.record(scene.deliver(&delivered, &on, true));
            return;
        }
        let until = applied + PENDING_MAX;
        self.awaited.insert(pos, Awaited { on, applied, subscribers, until });
    }

    /// Writes what ended since; everything when it `is_last`.
    fn write_pending(&mut self, is_last: bool) {
        if self.pending.is_empty() && self.awaited.is_empty() {
            return;
        }
        let instants = Arc::clone(&self.instants);
        let scene = scene(&instants, self.standing.role());
        let now = Instant::now();
        let exemplars = &self.exemplars;
        let is_exporting = instants.tracer.is_exporting();
        self.pending.retain_mut(|pending| {
            let is_over = is_last || pending.until <= now;
            let Pending { pos, place, handed, peers, .. } = pending;
            peers.retain(|peer_id| {
                let ack = instants.acks.get(*peer_id, *pos);
                if ack.is_none() && !is_over {
                    return true;
                }
                instants.tracer.record(scene.replicate(*pos, place, *peer_id, ack, (*handed, now)));
                if let Some(ack) = ack.filter(|_| is_exporting) {
                    let took = ack.acknowledged.saturating_duration_since(ack.sent);
                    exemplars.replicated(took, place.trace_id);
                }
                false
            });
            !peers.is_empty()
        });
        self.awaited.retain(|pos, awaited| {
            let is_over = is_last || awaited.until <= now;
            if is_over {
                let Awaited { on, applied, subscribers, .. } = *awaited;
                let so_far = Delivered { pos: *pos, started: applied, ended: now, subscribers, delivered: 0 };
                instants.tracer.record(scene.deliver(&so_far, &on, false));
            }
            !is_over
        });
    }
}

fn scene<'a>(instants: &'a Instants, role: &'static str) -> Scene<'a> {
    Scene { clock: Clock::now(), cluster_id: &instants.cluster_id, node_id: instants.node_id, role }
}
