//! What the API calls: room for a body, one proposal, or a stream of them in order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
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
const RETRY_AFTER_MS: u64 = 50;

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

/// A proposal on its way, and when its outcome is called unknown.
pub(crate) struct Underway {
    outcome: oneshot::Receiver<Answer>,
    deadline: Instant,
    height: Height,
    hash: Bytes,
    received: Instant,
    trace: Arc<Traced>,
}

impl Underway {
    /// An outcome that is there already. A receiver that was asked after its sender is gone must not be
    /// awaited any more, so an empty one is not asked.
    pub(crate) fn try_outcome(&mut self) -> Option<Answer> {
        if self.outcome.is_empty() { None } else { self.outcome.try_recv().ok() }
    }

    /// What is said of a block whose outcome nobody knows in time.
    pub(crate) fn unknown(&self) -> ProposeError {
        ProposeError::Timeout { height: self.height, hash: self.hash.clone(), term: None, index: None }
    }

    fn lost(&self) -> ProposeError {
        ProposeError::LeadershipLost { height: self.height, hash: self.hash.clone(), term: None, index: None }
    }

    /// The answer, or at the deadline that it is unknown, which `late` is told of. `None`: it will not be
    /// answered, as whoever would have done it dropped it.
    pub(crate) async fn wait(&mut self, late: impl FnOnce(&Self, &Answer)) -> Option<Answer> {
        match tokio::time::timeout_at(self.deadline.into(), &mut self.outcome).await {
            Ok(answer) => answer.ok(),
            Err(_) => {
                let answer = Err(self.unknown());
                late(self, &answer);
                Some(answer)
            }
        }
    }
}

#[cfg(test)]
impl Underway {
    /// One of a block at `height`, and who is to answer it.
    pub(crate) fn of(height: Height, deadline: Instant) -> (oneshot::Sender<Answer>, Self) {
        let (tx, outcome) = oneshot::channel();
        let trace = Arc::new(Traced::new(None, Door::Other));
        (tx, Self { outcome, deadline, height, hash: Bytes::new(), received: Instant::now(), trace })
    }
}

/// Refused, and may be tried again in a moment.
pub(super) fn overloaded() -> ProposeError {
    ProposeError::Overloaded { retry_after_ms: RETRY_AFTER_MS }
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
    /// Its block was entered: before that it may still be on its way here.
    is_proposed: bool,
}

impl Permit {
    fn proposed(mut self) -> Self {
        self.is_proposed = true;
        self.shared.n_proposed.fetch_add(1, Ordering::AcqRel);
        self
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.shared.count.fetch_sub(1, Ordering::AcqRel);
        self.shared.metrics.in_flight.dec();
        if self.is_proposed && self.shared.n_proposed.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.drained.notify_waiters();
        }
    }
}

pub(super) struct Shared {
    config: Config,
    pub(super) metrics: Metrics,
    pub(super) instants: Arc<Instants>,
    /// Admitted and not yet answered, and their bytes.
    count: AtomicUsize,
    bytes: AtomicU64,
    /// Those of them whose block was entered.
    n_proposed: AtomicUsize,
    drained: Notify,
}

impl Shared {
    /// Counts, times and traces the first answer; a caller that gave up had its own.
    fn ended(&self, answer: &Answer, trace: &Arc<Traced>, height: Height, received: Instant) {
        if !trace.end() {
            return;
        }
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
            n_proposed: AtomicUsize::new(0),
            drained: Notify::new(),
        };
        (Self { shared: Arc::new(shared), queue }, rx)
    }

    /// Takes room for a body of so many bytes before it is read. A refusal is counted as an outcome: whoever
    /// tries again asks with [`Handle::try_admit`].
    pub(crate) fn admit(&self, bytes: u64) -> Result<Permit, ProposeError> {
        self.try_admit(bytes).ok_or_else(|| {
            let refused = Err(overloaded());
            self.shared.metrics.ended(&refused, Duration::ZERO);
            overloaded()
        })
    }

    /// As [`Handle::admit`], and nobody is told when there is no room. At least one proposal always fits.
    pub(crate) fn try_admit(&self, bytes: u64) -> Option<Permit> {
        let s = &self.shared;
        let count = s.count.fetch_add(1, Ordering::AcqRel);
        let held = s.bytes.fetch_add(bytes, Ordering::Relaxed);
        s.metrics.in_flight.inc();
        let permit = Permit { shared: Arc::clone(s), bytes, is_proposed: false };
        let fits = count < s.config.in_flight_max
            && (held == 0 || held.saturating_add(bytes) <= s.config.in_flight_bytes_max);
        fits.then_some(permit)
    }

    /// Proposes a block and waits for its verdict. Dropping the future does not take the proposal
    /// back: its outcome is then unknown.
    pub(crate) async fn propose(&self, proposal: Proposal, permit: Permit) -> Answer {
        let mut underway = self.enqueue(proposal, permit, None).await;
        // The reply was dropped with the core: nobody knows.
        self.wait(&mut underway).await.unwrap_or_else(|| Err(underway.lost()))
    }

    /// Enters a block in the order of the calls, without waiting for its verdict. Missing
    /// predecessors are a gap at once: on this path they cannot come later.
    pub(crate) async fn submit(&self, proposal: Proposal, permit: Permit, lane: &Lane) -> Underway {
        self.enqueue(proposal, permit, Some(lane.clone())).await
    }

    /// Waits for the outcome of [`Handle::submit`]; none: an earlier block of the lane was refused, and this
    /// one was never taken. What was taken is always answered, also when it is lost, so only a block that
    /// nobody answers can have been left out.
    pub(crate) async fn await_in_lane(&self, mut underway: Underway, lane: &Lane) -> Option<Answer> {
        match self.wait(&mut underway).await {
            None if lane.is_closed() => None,
            None => Some(Err(underway.lost())),
            answered => answered,
        }
    }

    async fn wait(&self, underway: &mut Underway) -> Option<Answer> {
        let late = |u: &Underway, answer: &Answer| {
            self.shared.ended(answer, &u.trace, u.height, u.received);
        };
        underway.wait(late).await
    }

    /// How long a proposal is waited for, unless it says otherwise.
    pub(crate) fn patience(&self) -> Duration {
        self.shared.config.propose_timeout
    }

    fn trace_of(&self, proposal: &Proposal) -> Arc<Traced> {
        let own = || self.shared.instants.begin(None, Door::Other);
        proposal.trace.clone().unwrap_or_else(own)
    }

    async fn enqueue(&self, proposal: Proposal, permit: Permit, lane: Option<Lane>) -> Underway {
        let (tx, outcome) = oneshot::channel();
        let may_wait = lane.is_none();
        let trace = self.trace_of(&proposal);
        let (received, height, hash) =
            (proposal.received, proposal.block.height, proposal.block.hash.clone());
        let deadline = received + proposal.timeout.unwrap_or(self.patience());
        let permit = permit.proposed();
        let answer = Waiter { tx, trace: Arc::clone(&trace), height, received, permit, lane };
        if let Err(mpsc::error::SendError(queued)) =
            self.queue.send(Queued { proposal, may_wait, answer }).await
        {
            queued.answer.answer(Err(ProposeError::ShuttingDown));
        }
        Underway { outcome, deadline, height, hash, received, trace }
    }

    /// Proposals that were entered and have no answer.
    pub(crate) fn in_flight(&self) -> usize {
        self.shared.n_proposed.load(Ordering::Acquire)
    }

    /// Completes when every proposal that was entered has its answer. Not waited for is a block that has not
    /// come whole: nobody took it, so nobody answers for it.
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

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn start() -> (Handle, mpsc::Receiver<Queued>, Registry) {
        let config = Config {
            node_id: 1,
            propose_timeout: LONG,
            in_flight_max: 8,
            in_flight_bytes_max: 1_000,
            reorder_window: 8,
            reorder_wait: Duration::ZERO,
        };
        let registry = Registry::new();
        let (metrics, instants) = (Metrics::new(&registry).unwrap(), Instants::new(&registry).unwrap());
        let (handle, queue) = Handle::new(config, metrics, Arc::new(instants));
        (handle, queue, registry)
    }

    fn proposal(height: Height) -> Proposal {
        let block = Block { height, hash: Bytes::from_static(b"h"), ..Block::default() };
        Proposal { block, fence: None, timeout: None, trace: None, received: Instant::now() }
    }

    /// Enters a block into a lane; what the task is sent, and the outcome that is waited for.
    async fn enter(
        handle: &Handle,
        queue: &mut mpsc::Receiver<Queued>,
        lane: &Lane,
        proposal: Proposal,
    ) -> (Queued, Underway) {
        let underway = handle.submit(proposal, handle.admit(1).unwrap(), lane).await;
        (queue.recv().await.expect("it was entered"), underway)
    }

    fn accepted(height: Height) -> Answer {
        let hash = Bytes::from_static(b"h");
        Ok(Accepted { height, hash, term: 1, index: height, duplicate: false, trace_id: None })
    }

    /// How often each outcome was counted, zeros left out, and how many times were observed in all.
    fn counted(registry: &Registry) -> (Vec<(String, u64)>, u64) {
        let (mut outcomes, mut n_times) = (Vec::new(), 0);
        for family in registry.gather() {
            for metric in family.get_metric() {
                match family.name() {
                    "blockraft_raft_proposals_total" if 0.0 < metric.get_counter().get_value() => outcomes
                        .push((
                            metric.get_label()[0].value().to_owned(),
                            metric.get_counter().get_value() as u64,
                        )),
                    "blockraft_raft_proposal_seconds" => n_times += metric.get_histogram().get_sample_count(),
                    _ => {}
                }
            }
        }
        (outcomes, n_times)
    }

    #[tokio::test]
    async fn each_block_of_a_lane_that_was_taken_and_lost_is_answered_and_those_behind_are_not() {
        let (handle, mut queue, _registry) = start();
        let lane = Lane::default();
        let (first, first_underway) = enter(&handle, &mut queue, &lane, proposal(1)).await;
        let (second, second_underway) = enter(&handle, &mut queue, &lane, proposal(2)).await;
        let (third, third_underway) = enter(&handle, &mut queue, &lane, proposal(3)).await;
        // As it is when another leader's log replaced both.
        first.answer.answer(Err(first_underway.lost()));
        second.answer.answer(Err(second_underway.lost()));
        assert!(third.answer.is_shut_out());
        drop(third);
        for (height, underway) in [(1, first_underway), (2, second_underway)] {
            let outcome = handle.await_in_lane(underway, &lane).await;
            let is_lost =
                matches!(outcome, Some(Err(ProposeError::LeadershipLost { height: h, .. })) if h == height);
            assert!(is_lost, "block {height}: {outcome:?}");
        }
        assert_eq!(handle.await_in_lane(third_underway, &lane).await, None);
    }

    #[tokio::test]
    async fn a_block_whose_answer_is_dropped_in_an_open_lane_is_unknown() {
        let (handle, mut queue, _registry) = start();
        let lane = Lane::default();
        let (queued, underway) = enter(&handle, &mut queue, &lane, proposal(1)).await;
        drop(queued);
        let outcome = handle.await_in_lane(underway, &lane).await;
        assert!(matches!(outcome, Some(Err(ProposeError::LeadershipLost { height: 1, .. }))), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_proposal_that_lands_late_is_counted_once_by_whatever_door_it_came() {
        let (handle, mut queue, registry) = start();
        let lane = Lane::default();
        let late = |height| Proposal { timeout: Some(Duration::ZERO), ..proposal(height) };
        let (queued, underway) = enter(&handle, &mut queue, &lane, late(1)).await;
        let outcome = handle.await_in_lane(underway, &lane).await;
        assert!(matches!(outcome, Some(Err(ProposeError::Timeout { height: 1, .. }))), "{outcome:?}");
        queued.answer.answer(accepted(1));
        let outcome = handle.propose(late(2), handle.admit(1).unwrap()).await;
        assert!(matches!(outcome, Err(ProposeError::Timeout { height: 2, .. })), "{outcome:?}");
        queue.recv().await.expect("it was entered").answer.answer(accepted(2));
        assert_eq!(counted(&registry), (vec![("timeout".to_owned(), 2)], 2));
    }

    #[tokio::test]
    async fn a_block_that_did_not_come_whole_takes_room_and_is_not_waited_for() {
        let (handle, mut queue, _registry) = start();
        let half = handle.admit(1_000).unwrap();
        assert!(matches!(handle.admit(1), Err(ProposeError::Overloaded { .. })));
        assert!(futures::poll!(std::pin::pin!(handle.drained())).is_ready(), "it waits for half a block");
        let underway = handle.submit(proposal(1), half, &Lane::default()).await;
        assert_eq!(handle.in_flight(), 1);
        assert!(futures::poll!(std::pin::pin!(handle.drained())).is_pending());
        queue.recv().await.expect("it was entered").answer.answer(accepted(1));
        handle.drained().await;
        assert!(handle.admit(1_000).is_ok());
        drop(underway);
    }
}
