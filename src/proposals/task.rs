//! The one owner of the order in which blocks enter raft.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
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
use crate::proposals::handle::{Answer, Handle, Proposal, Queued, RETRY_AFTER_MS, Waiter};
use crate::proposals::metrics::Metrics;
use crate::proposals::order::{Flights, Next, decide};
use crate::proposals::{Chain, Config};
use crate::types::block::Block;
use crate::types::error::{ProposeError, Refusal};
use crate::types::{Height, NodeId};

/// Proposals taken from the queue at once. By eye: what apply answers in one batch.
const BATCH_MAX: usize = 1_024;

/// Those who wait for one block in flight. `None` once it was answered. A lock held for a push or
/// a take, by this task and by apply.
type Waiters = Arc<Mutex<Option<Vec<Waiter>>>>;

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
    flights: Flights<Waiters>,
    /// Heights that apply answered; drained at each turn. Held for a push or a swap.
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

    /// What is wrong with a proposal whoever leads and wherever the chain stands.
    fn check(&self, proposal: &Proposal) -> Result<(), ProposeError> {
        proposal.block.check_well_formed()?;
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
    /// those of the chain.
    async fn take(&mut self, queued: Queued, gate: &Gate) {
        if queued.answer.is_shut_out() {
            return;
        }
        if let Err(refused) = self.check(&queued.proposal) {
            return queued.answer.answer(Err(refused));
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
        if queued.proposal.fence.is_some_and(|given| given != fence) {
            let head = self.chain.view().head.clone();
            return queued.answer.answer(Err(ProposeError::Fenced { fence: Some(fence), term: fence, head }));
        }
        self.place(queued, fence, Instant::now()).await;
    }

    /// Gives a checked proposal its place; `since` is when it began to wait for predecessors.
    async fn place(&mut self, queued: Queued, fence: u64, since: Instant) {
        let view = self.chain.view();
        let window = if queued.may_wait { self.config.reorder_window } else { 0 };
        match decide(&view, &self.flights, &queued.proposal.block, now_ns(), window) {
            Next::Append => self.append(queued, fence).await,
            Next::Join => self.join(queued),
            Next::Wait => {
                let height = queued.proposal.block.height;
                self.early.entry(height).or_default().push(Early { queued, since });
            }
            Next::Taken => {
                let answer = self.taken(&queued.proposal.block);
                queued.answer.answer(answer);
            }
            // Stale would be a lie, for the head lies below it: the producer would skip the block.
            Next::Unsettled => {
                queued.answer.answer(Err(ProposeError::Overloaded { retry_after_ms: RETRY_AFTER_MS }))
            }
            Next::Refuse(refusal) => {
                let head = view.head.clone();
                queued.answer.answer(Err(ProposeError::Refused { refusal, head, oldest_height: None }));
            }
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

    fn join(&mut self, queued: Queued) {
        let Queued { proposal, answer, .. } = queued;
        let (_, waiters) = self.flights.get(&proposal.block.height).expect("it was found in flight");
        let mut waiters = waiters.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match waiters.as_mut() {
            Some(waiters) => waiters.push(answer),
            None => {
                drop(waiters);
                // Answered this instant: what it came to is in the state by now.
                let found = self.chain.find_same(&proposal.block);
                answer.answer(found.ok_or_else(|| self.no_leader()));
            }
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
        let waiters: Waiters = Arc::new(Mutex::new(Some(vec![answer])));
        let landing = Landing {
            height: block.height,
            hash: block.hash.clone(),
            waiters: Arc::clone(&waiters),
            landed: Arc::clone(&self.landed),
            no_leader: self.no_leader(),
            node_id: self.config.node_id,
        };
        self.flights.insert(block.height, (block, waiters));
        // A core that stopped drops the reply, which answers the waiters.
        let _ = self.raft.write(command, move |result| landing.land(result)).await;
    }

    fn forget_landed(&mut self) {
        let landed = std::mem::take(&mut *self.landed.lock().unwrap_or_else(|p| p.into_inner()));
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
                let Gate::Open { fence } = gate else {
                    self.take(queued, gate).await;
                    continue;
                };
                if self.config.reorder_wait <= since.elapsed() {
                    let late = Queued { may_wait: false, ..queued };
                    self.place(late, *fence, since).await;
                } else {
                    self.place(queued, *fence, since).await;
                }
            }
        }
    }
}

/// What becomes of one block handed to raft; answers its waiters from wherever apply runs.
struct Landing {
    height: Height,
    hash: Bytes,
    waiters: Waiters,
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
        let waiters = self.waiters.lock().unwrap_or_else(|p| p.into_inner()).take();
        if waiters.is_none() {
            return;
        }
        self.landed.lock().unwrap_or_else(|p| p.into_inner()).push(self.height);
        for waiter in waiters.into_iter().flatten() {
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
