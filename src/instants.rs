//! When each entry of the recent log reached each stage on this node, and the spans of it.
//!
//! [`ring`] is written by whoever moves an entry on; the stage histograms, the block spans and the
//! timeline read it, and therefore agree by construction. Spans are built afterwards, by one [`task`].
//! Knows no raft and no disk.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus::{IntCounter, Registry};
use tokio::sync::{mpsc, oneshot};

use crate::instants::acks::Acks;
use crate::instants::event::{Batch, Delivered, Event, Proposed, Served};
use crate::instants::proposal::{Door, Traced};
use crate::instants::ring::{Lost, Ring};
use crate::instants::shape::SLOW;
use crate::instants::stages::Stages;
use crate::telemetry::trace::Tracer;
use crate::telemetry::trace::sampling::{Bucket, Sampler, Sampling};
use crate::types::position::LogPos;
use crate::types::trace::{Carrier, Context};
use crate::types::{LogIndex, NodeId, Term};

pub(crate) mod acks;
mod audit;
pub(crate) mod event;
pub(crate) mod proposal;
pub(crate) mod ring;
mod shape;
pub(crate) mod stages;
pub(crate) mod task;
#[cfg(test)]
mod tests;
pub(crate) mod timeline;
mod tree;

pub(crate) type Mark = ring::Mark;

/// Batches and answers that wait for the span task: a second of them at full speed, by eye.
const EVENTS_MAX: usize = 8_192;

/// What spans are made with.
pub(crate) struct Tracing {
    pub(crate) tracer: Tracer,
    pub(crate) sampler: Sampler,
    pub(crate) cluster_id: String,
    pub(crate) node_id: NodeId,
}

pub(crate) struct Instants {
    ring: Ring,
    acks: Acks,
    stages: Stages,
    lost: IntCounter,
    tracer: Tracer,
    sampler: Sampler,
    cluster_id: String,
    node_id: NodeId,
    /// `None`: nobody builds spans.
    events: Option<mpsc::Sender<Event>>,
    /// Term that a block was last proposed in.
    proposed_term: AtomicU64,
    /// It was told that the sampler of the variables hides blocks.
    told_hidden: AtomicBool,
    /// What is always recorded has a bound of its own: a client that does everything wrong must not
    /// cost more than one that does not. Locked for a few additions.
    exceptions: Mutex<Bucket>,
}

impl Instants {
    /// Keeps instants and observes the stages; builds no spans.
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let lost = IntCounter::new(
            "blockraft_telemetry_instants_lost_total",
            "Instants that found their slot taken by a newer entry.",
        )?;
        registry.register(Box::new(lost.clone()))?;
        Ok(Self {
            ring: Ring::new(),
            acks: Acks::default(),
            stages: Stages::new(registry)?,
            lost,
            tracer: Tracer::off(),
            sampler: Sampler::new(Sampling::none()),
            cluster_id: String::new(),
            node_id: 0,
            events: None,
            proposed_term: AtomicU64::new(0),
            told_hidden: AtomicBool::new(false),
            exceptions: Mutex::new(Bucket::new(0, 0, Instant::now())),
        })
    }

    /// The same with spans, and the events that the [`task::Task`] is to be given.
    pub(crate) fn traced(self, tracing: Tracing) -> (Self, mpsc::Receiver<Event>) {
        let Tracing { tracer, sampler, cluster_id, node_id } = tracing;
        let (events, rx) = mpsc::channel(EVENTS_MAX);
        let n = sampler.sampling().traces_per_second.max(1);
        let exceptions = Mutex::new(Bucket::new(n, n, Instant::now()));
        (Self { tracer, sampler, cluster_id, node_id, events: Some(events), exceptions, ..self }, rx)
    }

    /// Spans that are of no block.
    pub(crate) fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Remembers that an entry reached a stage. A mark for an entry older than the slot's is lost.
    pub(crate) fn mark(&self, pos: LogPos, mark: Mark, at: Instant) {
        match self.ring.mark(pos, mark, at) {
            Ok(timing) if mark == Mark::Applied => self.stages.observe(&timing),
            Ok(_) => {}
            Err(Lost) => self.lost.inc(),
        }
    }

    /// One synced write made these entries durable.
    pub(crate) fn synced(&self, entries: &[LogPos], at: Instant, took: Duration) {
        let sync = ring::Sync { took, entries: u32::try_from(entries.len()).unwrap_or(u32::MAX) };
        for pos in entries {
            if self.ring.synced(*pos, at, sync) == Err(Lost) {
                self.lost.inc();
            }
        }
    }

    /// Another node acknowledged the `n_entries` up to `last`.
    pub(crate) fn replicated(
        &self,
        node_id: NodeId,
        last: LogPos,
        n_entries: usize,
        sent: Instant,
        acknowledged: Instant,
    ) {
        self.acks.push(node_id, last, n_entries, sent, acknowledged);
        self.stages.observe_replicated(n_entries, acknowledged.saturating_duration_since(sent));
    }

    /// Since when the newest entry with an index is in a stage, as far as it is remembered.
    pub(crate) fn age(&self, index: LogIndex, mark: Mark) -> Option<Duration> {
        Some(self.ring.at_index(index)?.at(mark)?.elapsed())
    }

    /// Whether anybody reads what is told of applied blocks: else telling is spared.
    pub(crate) fn wants_blocks(&self) -> bool {
        self.events.is_some() && (self.tracer.is_on() || audit::is_read())
    }

    /// Blocks were applied and are published.
    pub(crate) fn applied(&self, batch: Batch) {
        let n = batch.blocks.len() as u64;
        self.tell(Event::Applied(batch), n);
    }

    /// The last subscriber of the feed took blocks, or lost them; without any, all of them read the store.
    pub(crate) fn delivered(&self, delivered: Vec<Delivered>) {
        for d in delivered.iter().filter(|d| 0 < d.subscribers) {
            self.stages.observe_delivered(d.ended.saturating_duration_since(d.started));
        }
        if self.tracer.is_on() && !delivered.is_empty() {
            let n = delivered.len() as u64;
            self.tell(Event::Delivered(delivered), n);
        }
    }

    /// Ids of a proposal that begins here.
    pub(crate) fn begin(&self, caller: Option<Context>, door: Door) -> Arc<Traced> {
        Arc::new(Traced::new(caller, door))
    }

    /// The ids of a call that has a span: a proposal, and any other whose caller asks for one.
    pub(crate) fn begin_call(&self, caller: Option<Context>, is_proposal: bool) -> Option<Arc<Traced>> {
        let is_asked = caller.is_some_and(|c| c.is_sampled);
        if !self.tracer.is_on() || !(is_proposal || is_asked) {
            return None;
        }
        let traced = self.begin(caller, Door::Call);
        if !is_proposal {
            traced.record();
        }
        Some(traced)
    }

    /// Decides once what is recorded of a block that is appended under `fence`; what rides in the log.
    pub(crate) fn carrier(&self, traced: &Traced, fence: Term) -> [u8; Carrier::BYTES] {
        let is_first = self.proposed_term.swap(fence, Ordering::Relaxed) != fence;
        let verdict = self.sampler.decide(&traced.trace_id, traced.parent.is_some(), is_first);
        traced.decide(verdict.is_whole);
        if !verdict.is_sampled && self.sampler.sampling().is_explicit && self.tracer.is_on() {
            self.tell_hidden();
        }
        Carrier {
            trace_id: traced.trace_id,
            span_id: traced.span_id,
            is_sampled: verdict.is_sampled,
            is_whole: verdict.is_whole,
        }
        .to_bytes()
    }

    fn tell_hidden(&self) {
        if !self.told_hidden.swap(true, Ordering::Relaxed) {
            tracing::warn!("OTEL_TRACES_SAMPLER hides blocks from the traces: they are tagged by no span");
        }
    }

    /// A proposal was answered for the first time, as [`Traced::end`] says: a caller that gave up had its own.
    pub(crate) fn proposed(&self, traced: &Arc<Traced>, proposed: Proposed) {
        if !self.tracer.is_on() {
            return;
        }
        let took = proposed.ended.saturating_duration_since(proposed.received);
        let is_recorded = if proposed.is_error || SLOW <= took {
            traced.is_recorded() || self.is_exception_recorded()
        } else if traced.is_decided() {
            traced.is_recorded()
        } else {
            // It never came to an entry of its own: a duplicate, or joined to another.
            self.sampler.decide(&traced.trace_id, traced.parent.is_some(), false).is_whole
        };
        if is_recorded {
            traced.record();
            self.tell(Event::Proposed(Arc::clone(traced), proposed), 1);
        }
    }

    /// A call was answered; after its proposal, where it made one.
    pub(crate) fn served(&self, traced: &Arc<Traced>, served: Served) {
        // Refused before it became a proposal.
        let is_bare = !traced.has_ended() && served.error.is_some();
        let is_recorded = traced.is_recorded() || is_bare && self.is_exception_recorded();
        if is_recorded {
            self.tell(Event::Served(Arc::clone(traced), Box::new(served)), 1);
        }
    }

    /// Errors and slow entries are recorded whatever the ratio, unless the variables have the last word.
    fn is_exception_recorded(&self) -> bool {
        let mut exceptions = self.exceptions.lock().unwrap_or_else(PoisonError::into_inner);
        !self.sampler.sampling().is_explicit && exceptions.take(Instant::now())
    }

    /// Writes what is pending, for at most `within`.
    pub(crate) async fn finish(&self, within: Duration) {
        let Some(events) = &self.events else { return };
        let (done_tx, done_rx) = oneshot::channel();
        let finished = async {
            if events.send(Event::Finish(done_tx)).await.is_ok() {
                // An error says that the task ended.
                let _ = done_rx.await;
            }
        };
        let _ = tokio::time::timeout(within, finished).await;
    }

    /// Never waits: a full queue costs spans.
    fn tell(&self, event: Event, n_spans: u64) {
        if let Some(events) = &self.events
            && events.try_send(event).is_err()
        {
            self.tracer.count_lost(n_spans);
        }
    }
}
