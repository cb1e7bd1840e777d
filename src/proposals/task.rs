//! The one owner of the order in which blocks enter raft.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use prometheus::Registry;
use tokio::sync::mpsc;

use crate::consensus;
use crate::consensus::handle::{WriteError, Written};
use crate::instants::Instants;
use crate::leadership;
use crate::machine::command::Origin;
use crate::machine::{Command, Outcome};
use crate::proposals::handle::{Answer, Handle, Proposal, Queued, Waiter, overloaded};
use crate::proposals::metrics::Metrics;
use crate::proposals::order::{Flights, Next, decide};
use crate::proposals::{Chain, Config, order};
use crate::types::block::Block;
use crate::types::error::{ProposeError, Refusal};
use crate::types::{Height, NodeId};

/// Proposals taken from the queue at once. By eye: what apply answers in one batch.
const BATCH_MAX: usize = 1_024;

/// A block in flight, and those who wait for it.
struct Flying {
    block: Block,
    waiters: Vec<Waiter>,
}

/// One flight. `None` once it was answered: its bytes go when their room is given back, however long it
/// takes until this task's next turn. A lock held for a push, a comparison or a take, by this task and by
/// apply.
#[derive(Clone)]
struct Slot(Arc<Mutex<Option<Flying>>>);

impl Slot {
    fn new(block: Block, waiter: Waiter) -> Self {
        Self(Arc::new(Mutex::new(Some(Flying { block, waiters: vec![waiter] }))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Flying>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl order::Flight for Slot {
    fn is_same(&self, block: &Block) -> Option<bool> {
        Some(self.lock().as_ref()?.block.is_same(block))
    }
}

/// A block whose predecessors are missing.
struct Early {
    queued: Queued,
    since: Instant,
}

/// Owns the order. Invariant: `flights` holds what was handed to raft and not yet answered, heights
/// rising in the order handed.
pub(crate) struct Task {
    config: Config,
    raft: consensus::handle::Handle,
    leadership: leadership::handle::Handle,
    chain: Arc<dyn Chain>,
    instants: Arc<Instants>,
    queue: mpsc::Receiver<Queued>,
    flights: Flights<Slot>,
    /// Heights whose slots are empty; drained at each turn. Held for a push or a swap.
    landed: Arc<Mutex<Vec<Height>>>,
    early: BTreeMap<Height, Vec<Early>>,
}

/// The queue's handle, and the task to be run.
pub(crate) fn start(
    config: Config,
    raft: consensus::handle::Handle,
    leadership: leadership::handle::Handle,
    chain: Arc<dyn Chain>,
    instants: Arc<Instants>,
    registry: &Registry,
) -> prometheus::Result<(Handle, Task)> {
    let (handle, queue) = Handle::new(config.clone(), Metrics::new(registry)?, Arc::clone(&instants));
    let task = Task {
        config,
        raft,
        leadership,
        chain,
        instants,
        queue,
        flights: Flights::new(),
        landed: Arc::default(),
        early: BTreeMap::new(),
    };
    Ok((handle, task))
}

/// What the leadership allows at the moment of a turn.
enum Gate {
    Open {
        fence: u64,
    },
    /// Refused before the duplicate check: this node does not lead.
    NotLeading(ProposeError),
    /// It leads, and may not append; a duplicate is still a success.
    Shut(ProposeError),
}

impl Task {
    /// Runs until every handle is gone.
    pub(crate) async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            let early_until = self.early_deadline();
            tokio::select! {
                n = self.queue.recv_many(&mut batch, BATCH_MAX) => {
                    if n == 0 {
                        return;
                    }
                }
                () = sleep_until(early_until) => {}
            }
            self.forget_landed();
            let gate = self.gate();
            for queued in batch.drain(..) {
                self.take(queued, &gate).await;
            }
            self.release_early(&gate).await;
        }
    }

    fn gate(&self) -> Gate {
        let now = self.leadership.now();
        let leads = now.role == consensus::Role::Leader;
        match now.fence {
            Some(fence) => Gate::Open { fence },
            None if now.is_stopping => Gate::NotLeading(ProposeError::ShuttingDown),
            None if leads && now.is_disk_full => Gate::Shut(ProposeError::Storage),
            // A leader whose lease is over knows of no leader (design 11).
            None if leads && now.quorum_ack_age.is_some() && !now.lease_valid => {
                Gate::NotLeading(self.no_leader())
            }
            None if leads && now.paused && now.is_handing_over => Gate::Shut(ProposeError::Paused),
            None if leads => Gate::Shut(ProposeError::NotReady),
            None => Gate::NotLeading(match now.leader_id {
                Some(leader_id) if leader_id != self.config.node_id => {
                    ProposeError::NotLeader { leader_id, leader_api: now.leader_api }
                }
                _ => self.no_leader(),
            }),
        }
    }

    fn no_leader(&self) -> ProposeError {
        let patience = self.raft.config().heartbeat_timeout;
        ProposeError::NoLeader { retry_after_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX) }
    }

    /// What the settings in force refuse. A block that was agreed on under others is known by then.
    fn check_settings(&self, proposal: &Proposal) -> Result<(), ProposeError> {
        let view = self.chain.view();
        let settings = &view.settings.settings;
        if settings.require_fence && proposal.fence.is_none() {
            return Err(ProposeError::FenceRequired);
        }
        let bytes = proposal.block.payload_bytes();
        if settings.max_block_bytes < bytes {
            return Err(ProposeError::TooLarge { bytes, max: settings.max_block_bytes });
        }
        Ok(())
    }

    /// The checks of one proposal, in the order of design 5: leader, duplicate, ready, fence, then
    /// those of the chain. One without a fence is stamped with the one that it meets, so it is of this
    /// term, however long it waits.
    async fn take(&mut self, queued: Queued, gate: &Gate) {
        self.take_since(queued, gate, Instant::now()).await;
    }

    /// As [`Task::take`]; `since` is when it began to wait for predecessors.
    async fn take_since(&mut self, mut queued: Queued, gate: &Gate, since: Instant) {
        if queued.answer.is_shut_out() {
            return;
        }
        if let Err(malformed) = queued.proposal.block.check_well_formed() {
            return queued.answer.answer(Err(malformed.into()));
        }
        if let Gate::NotLeading(error) = gate {
            return queued.answer.answer(Err(error.clone()));
        }
        if let Some(first) = self.chain.find_same(&queued.proposal.block) {
            return queued.answer.answer(Ok(first));
        }
        let fence = match gate {
            Gate::Open { fence } => *fence,
            Gate::Shut(error) | Gate::NotLeading(error) => {
                return queued.answer.answer(Err(error.clone()));
            }
        };
        if let Err(refused) = self.check_settings(&queued.proposal) {
            return queued.answer.answer(Err(refused));
        }
        if *queued.proposal.fence.get_or_insert(fence) != fence {
            let head = self.chain.view().head.clone();
            return queued.answer.answer(Err(ProposeError::Fenced { fence: Some(fence), term: fence, head }));
        }
        self.place(queued, fence, since).await;
    }

    /// Gives a checked proposal its place.
    async fn place(&mut self, mut queued: Queued, fence: u64, since: Instant) {
        let window = if queued.may_wait { self.config.reorder_window } else { 0 };
        let (view, next) = loop {
            let view = self.chain.view();
            match decide(&view, &self.flights, &queued.proposal.block, now_ns(), window) {
                Next::Join => match self.join(queued) {
                    Ok(()) => return,
                    // Answered this instant.
                    Err(again) => queued = again,
                },
                Next::Landed => {}
                next => break (view, next),
            }
            // What it came to is in the state by now; the flight is known to have landed, so it goes.
            self.forget_landed();
        };
        match next {
            Next::Append => self.append(queued, fence).await,
            Next::Wait => {
                let height = queued.proposal.block.height;
                self.early.entry(height).or_default().push(Early { queued, since });
            }
            Next::Taken => {
                let answer = self.taken(&queued.proposal.block);
                queued.answer.answer(answer);
            }
            Next::Behind => queued.answer.answer(Err(overloaded())),
            Next::Refuse(refusal) => {
                let head = view.head.clone();
                queued.answer.answer(Err(ProposeError::Refused { refusal, head, oldest_height: None }));
            }
            Next::Join | Next::Landed => unreachable!("both were seen to above"),
        }
    }

    /// The answer for a height that is applied or in flight with another block.
    fn taken(&self, block: &Block) -> Answer {
        // It may have been applied between the first look and this one.
        if let Some(first) = self.chain.find_same(block) {
            return Ok(first);
        }
        let view = self.chain.view();
        let oldest_height = match view.oldest_height {
            Some(oldest) if view.has_pruned && block.height < oldest => Some(oldest),
            _ => None,
        };
        let is_held =
            self.flights.contains_key(&block.height) || self.chain.holds(block.height).unwrap_or(false);
        let refusal = if is_held { Refusal::Conflict } else { Refusal::Stale };
        Err(ProposeError::Refused { refusal, head: view.head.clone(), oldest_height })
    }

    /// Adds a waiter to the same block in flight; given back when that has landed.
    fn join(&self, queued: Queued) -> Result<(), Queued> {
        let (_, slot) = self.flights.get(&queued.proposal.block.height).expect("it was found in flight");
        match slot.lock().as_mut() {
            Some(flying) => {
                flying.waiters.push(queued.answer);
                Ok(())
            }
            None => Err(queued),
        }
    }

    async fn append(&mut self, queued: Queued, fence: u64) {
        let Queued { proposal, answer, .. } = queued;
        let block = proposal.block;
        let proposed_at_ms = now_ns() / 1_000_000;
        let carrier = self.instants.carrier(&answer.trace, fence);
        let mut command =
            Command::block(block.clone(), fence, self.config.node_id, proposed_at_ms, Some(carrier));
        command.origin = Some(Origin { received: proposal.received, handed: Instant::now() });
        let (at, slot) = (block.to_ref(), Slot::new(block, answer));
        let landing = Landing {
            height: at.height,
            hash: at.hash.clone(),
            slot: slot.clone(),
            landed: Arc::clone(&self.landed),
            no_leader: self.no_leader(),
            node_id: self.config.node_id,
        };
        self.flights.insert(at.height, (at, slot));
        // A core that stopped drops the reply, which answers the waiters.
        let _ = self.raft.write(command, move |result| landing.land(result)).await;
    }

    fn forget_landed(&mut self) {
        let landed = std::mem::take(&mut *self.landed.lock().unwrap_or_else(PoisonError::into_inner));
        for height in landed {
            self.flights.remove(&height);
        }
    }

    fn early_deadline(&self) -> Option<Instant> {
        self.early.values().flatten().map(|e| e.since).min().map(|since| since + self.config.reorder_wait)
    }

    /// Appends what waited for a predecessor that came, and refuses what waited too long.
    async fn release_early(&mut self, gate: &Gate) {
        // Lowest height first: each may be the predecessor of the next.
        for (_, waiting) in std::mem::take(&mut self.early) {
            for Early { queued, since } in waiting {
                // All is looked at again: it may be another term's leader by now.
                let may_wait = since.elapsed() < self.config.reorder_wait && queued.may_wait;
                self.take_since(Queued { may_wait, ..queued }, gate, since).await;
            }
        }
    }
}

/// What becomes of one block handed to raft; answers its waiters from wherever apply runs.
struct Landing {
    height: Height,
    hash: Bytes,
    slot: Slot,
    landed: Arc<Mutex<Vec<Height>>>,
    no_leader: ProposeError,
    node_id: NodeId,
}

impl Landing {
    fn land(self, result: Result<Written, WriteError>) {
        let answer = match result {
            Ok(Written { outcome, .. }) => match outcome {
                Outcome::Accepted(accepted) => Ok(accepted),
                Outcome::Fenced { fence: _, term, head } => {
                    Err(ProposeError::Fenced { fence: None, term, head })
                }
                Outcome::Refused { refusal, head, oldest_height } => {
                    Err(ProposeError::Refused { refusal, head, oldest_height })
                }
                outcome => unreachable!("a block came to {outcome:?}"),
            },
            Err(WriteError::Forward { leader_id: Some(leader_id), leader_api })
                if leader_id != self.node_id =>
            {
                Err(ProposeError::NotLeader { leader_id, leader_api })
            }
            Err(WriteError::Forward { .. }) => Err(self.no_leader.clone()),
            Err(WriteError::Discarded) => Err(self.lost()),
        };
        self.finish(answer);
    }

    fn lost(&self) -> ProposeError {
        ProposeError::LeadershipLost { height: self.height, hash: self.hash.clone(), term: None, index: None }
    }

    fn finish(&self, answer: Answer) {
        let mut slot = self.slot.lock();
        let Some(flying) = slot.take() else { return };
        // Under the slot's lock: whoever finds it empty finds its height here.
        self.landed.lock().unwrap_or_else(PoisonError::into_inner).push(self.height);
        drop(slot);
        for waiter in flying.waiters {
            waiter.answer(answer.clone());
        }
    }
}

impl Drop for Landing {
    /// raft dropped the reply: nobody knows what became of the block.
    fn drop(&mut self) {
        self.finish(Err(self.lost()));
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proposals::Lane;
    use crate::proposals::order::Flight;

    #[tokio::test]
    async fn a_block_that_landed_is_let_go_of_though_no_turn_follows() {
        let config = Config {
            node_id: 1,
            propose_timeout: Duration::from_secs(60),
            in_flight_max: 8,
            in_flight_bytes_max: 1_000,
            reorder_window: 8,
            reorder_wait: Duration::ZERO,
        };
        let registry = Registry::new();
        let instants = Arc::new(Instants::new(&registry).unwrap());
        let (handle, mut queue) = Handle::new(config, Metrics::new(&registry).unwrap(), instants);
        let (lane, data) = (Lane::default(), Bytes::from(vec![7; 64]));
        let block =
            Block { height: 5, hash: Bytes::from_static(b"h"), data: data.clone(), ..Block::default() };
        let proposal = Proposal {
            block: Block { data: Bytes::new(), ..block.clone() },
            fence: None,
            timeout: None,
            trace: None,
            received: Instant::now(),
        };
        let underway = handle.submit(proposal, handle.admit(64).unwrap(), &lane).await;
        let waiter = queue.recv().await.expect("it was entered").answer;
        let slot = Slot::new(block.clone(), waiter);
        let landing = Landing {
            height: block.height,
            hash: block.hash.clone(),
            slot: slot.clone(),
            landed: Arc::default(),
            no_leader: ProposeError::NoLeader { retry_after_ms: 1 },
            node_id: 1,
        };
        let landed = Arc::clone(&landing.landed);
        assert_eq!(slot.is_same(&block), Some(true));
        let other = Block { data: Bytes::new(), ..block.clone() };
        assert_eq!(slot.is_same(&other), Some(false));
        drop(block);
        assert!(!data.is_unique(), "it is kept to be compared");
        landing.land(Err(WriteError::Discarded));
        assert!(data.is_unique());
        assert_eq!((slot.is_same(&other), landed.lock().unwrap().as_slice()), (None, &[5][..]));
        let outcome = handle.await_in_lane(underway, &lane).await;
        assert!(matches!(outcome, Some(Err(ProposeError::LeadershipLost { height: 5, .. }))), "{outcome:?}");
    }
}
