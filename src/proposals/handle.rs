//! What the API calls: room for a body, one proposal, or a stream of them in order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc, oneshot};

use crate::instants::Instants;
use crate::instants::event::Proposed;
use crate::instants::proposal::{Door, Traced};
use crate::proposals::Config;
use crate::proposals::metrics::{Ended, Metrics};
use crate::types::Height;
use crate::types::block::Block;
use crate::types::error::{Accepted, ProposeError};

pub(crate) type Answer = Result<Accepted, ProposeError>;

/// After how long a refused caller may come again. By eye: a few commits.
pub(super) const RETRY_AFTER_MS: u64 = 50;

/// A block somebody wants agreed on.
#[derive(Debug)]
pub(crate) struct Proposal {
    pub(crate) block: Block,
    pub(crate) fence: Option<u64>,
    /// `None`: `api.propose_timeout`.
    pub(crate) timeout: Option<Duration>,
    /// The trace it belongs to; `None`: one of its own.
    pub(crate) trace: Option<Arc<Traced>>,
    pub(crate) received: Instant,
}

/// Proposals that stand and fall in order: after the first that is refused no further one of the
/// lane is handed to raft. Cheap to clone; every clone is the same lane.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lane {
    is_closed: Arc<AtomicBool>,
}

impl Lane {
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }
}

/// What the task is sent.
pub(super) struct Queued {
    pub(super) proposal: Proposal,
    /// Predecessors that are missing may still come by another call.
    pub(super) may_wait: bool,
    pub(super) answer: Waiter,
}

/// Somebody who waits for an answer, and the room the proposal takes.
pub(super) struct Waiter {
    pub(super) tx: oneshot::Sender<Answer>,
    pub(super) trace: Arc<Traced>,
    height: Height,
    received: Instant,
    permit: Permit,
    lane: Option<Lane>,
}

impl Waiter {
    /// Whether an earlier proposal of its lane was refused: this one is not taken.
    pub(super) fn is_shut_out(&self) -> bool {
        self.lane.as_ref().is_some_and(Lane::is_closed)
    }

    pub(super) fn answer(self, answer: Answer) {
        if let (Err(_), Some(lane)) = (&answer, &self.lane) {
            lane.is_closed.store(true, Ordering::Release);
        }
        self.permit.shared.ended(&answer, &self.trace, self.height, self.received);
        // A caller that went away gave up its answer, not the proposal.
        let _ = self.tx.send(answer);
    }
}

/// Room for one proposal; given back when dropped.
pub(crate) struct Permit {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.shared.metrics.in_flight.dec();
        if self.shared.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.drained.notify_waiters();
        }
    }
}

pub(super) struct Shared {
    config: Config,
    pub(super) metrics: Metrics,
    pub(super) instants: Arc<Instants>,
    count: AtomicUsize,
    bytes: AtomicU64,
    drained: Notify,
}

impl Shared {
    /// Counts, times and traces an answer.
    fn ended(&self, answer: &Answer, trace: &Arc<Traced>, height: Height, received: Instant) {
        let ended = Instant::now();
        self.metrics.ended(answer, ended.saturating_duration_since(received));
        if !self.instants.tracer().is_on() {
            return;
        }
        let Some(outcome) = Ended::of(answer) else { return };
        let at = answer.as_ref().ok();
        let proposed = Proposed {
            height,
            received,
            ended,
            outcome: outcome.label(),
            is_error: answer.is_err(),
            term: at.map(|a| a.term),
            index: at.map(|a| a.index),
        };
        self.instants.proposed(trace, proposed);
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(super) shared: Arc<Shared>,
    queue: mpsc::Sender<Queued>,
}

impl Handle {
    pub(super) fn new(
        config: Config,
        metrics: Metrics,
        instants: Arc<Instants>,
    ) -> (Self, mpsc::Receiver<Queued>) {
        // As many as may be in flight: a permit is held by each, so the queue never fills first.
        let (queue, rx) = mpsc::channel(config.in_flight_max.max(1));
        let shared = Shared {
            config,
            metrics,
            instants,
            count: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            drained: Notify::new(),
        };
        (Self { shared: Arc::new(shared), queue }, rx)
    }

    /// Takes room for a body of so many bytes before it is read. At least one proposal always fits.
    pub(crate) fn admit(&self, bytes: u64) -> Result<Permit, ProposeError> {
        let s = &self.shared;
        let count = s.count.fetch_add(1, Ordering::AcqRel);
        let held = s.bytes.fetch_add(bytes, Ordering::Relaxed);
        s.metrics.in_flight.inc();
        let permit = Permit { shared: Arc::clone(s), bytes };
        let fits = count < s.config.in_flight_max
            && (held == 0 || held.saturating_add(bytes) <= s.config.in_flight_bytes_max);
        if fits {
            return Ok(permit);
        }
        drop(permit);
        let refused = Err(ProposeError::Overloaded { retry_after_ms: RETRY_AFTER_MS });
        s.metrics.ended(&refused, Duration::ZERO);
        refused.map(|_: Accepted| unreachable!("it is an error"))
    }

    /// Proposes a block and waits for its verdict. Dropping the future does not take the proposal
    /// back: its outcome is then unknown.
    pub(crate) async fn propose(&self, proposal: Proposal, permit: Permit) -> Answer {
        let (timeout, received, height) =
            (self.timeout_of(&proposal), proposal.received, proposal.block.height);
        let unknown = unknown_of(&proposal.block);
        let trace = self.trace_of(&proposal);
        let proposal = Proposal { trace: Some(Arc::clone(&trace)), ..proposal };
        let rx = self.enqueue(proposal, permit, None).await;
        let late = |answer: &Answer| self.shared.ended(answer, &trace, height, received);
        wait(rx, received + timeout, unknown, late).await
    }

    /// Enters a block in the order of the calls, without waiting for its verdict. Missing
    /// predecessors are a gap at once: on this path they cannot come later. The receiver ends
    /// without an answer when an earlier block of the lane was refused.
    pub(crate) async fn submit(
        &self,
        proposal: Proposal,
        permit: Permit,
        lane: &Lane,
    ) -> oneshot::Receiver<Answer> {
        self.enqueue(proposal, permit, Some(lane.clone())).await
    }

    /// Waits for an answer until a deadline, after which it is unknown.
    async fn await_answer(
        &self,
        rx: oneshot::Receiver<Answer>,
        deadline: Instant,
        unknown: ProposeError,
    ) -> Answer {
        let timeout = self.shared.config.propose_timeout;
        // Its span is written when it lands.
        wait(rx, deadline, unknown, |answer| self.shared.metrics.ended(answer, timeout)).await
    }

    /// As [`Handle::await_answer`], for [`Handle::submit`]; none: an earlier block of the lane was
    /// refused, and this one was never taken.
    pub(crate) async fn await_in_lane(
        &self,
        rx: oneshot::Receiver<Answer>,
        deadline: Instant,
        unknown: ProposeError,
        lane: &Lane,
    ) -> Option<Answer> {
        let answer = self.await_answer(rx, deadline, unknown).await;
        let was_dropped = matches!(answer, Err(ProposeError::LeadershipLost { term: None, .. }));
        (!(was_dropped && lane.is_closed())).then_some(answer)
    }

    pub(crate) fn timeout_of(&self, proposal: &Proposal) -> Duration {
        proposal.timeout.unwrap_or(self.shared.config.propose_timeout)
    }

    fn trace_of(&self, proposal: &Proposal) -> Arc<Traced> {
        let own = || self.shared.instants.begin(None, Door::Other);
        proposal.trace.clone().unwrap_or_else(own)
    }

    async fn enqueue(
        &self,
        proposal: Proposal,
        permit: Permit,
        lane: Option<Lane>,
    ) -> oneshot::Receiver<Answer> {
        let (tx, rx) = oneshot::channel();
        let may_wait = lane.is_none();
        let (trace, height) = (self.trace_of(&proposal), proposal.block.height);
        let answer = Waiter { tx, trace, height, received: proposal.received, permit, lane };
        if let Err(mpsc::error::SendError(queued)) =
            self.queue.send(Queued { proposal, may_wait, answer }).await
        {
            queued.answer.answer(Err(ProposeError::ShuttingDown));
        }
        rx
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.shared.count.load(Ordering::Acquire)
    }

    /// Completes when every admitted proposal has its answer.
    pub(crate) async fn drained(&self) {
        loop {
            let drained = self.shared.drained.notified();
            if self.in_flight() == 0 {
                return;
            }
            drained.await;
        }
    }
}

async fn wait(
    rx: oneshot::Receiver<Answer>,
    deadline: Instant,
    unknown: ProposeError,
    late: impl FnOnce(&Answer),
) -> Answer {
    match tokio::time::timeout_at(deadline.into(), rx).await {
        Ok(Ok(answer)) => answer,
        // The reply was dropped with the core: nobody knows.
        Ok(Err(_)) => Err(lost(unknown)),
        Err(_) => {
            let answer = Err(unknown);
            late(&answer);
            answer
        }
    }
}

/// What is said of a block whose outcome nobody knows in time.
pub(crate) fn unknown_of(block: &Block) -> ProposeError {
    ProposeError::Timeout { height: block.height, hash: block.hash.clone(), term: None, index: None }
}

fn lost(unknown: ProposeError) -> ProposeError {
    match unknown {
        ProposeError::Timeout { height, hash, term, index } => {
            ProposeError::LeadershipLost { height, hash, term, index }
        }
        other => other,
    }
}
