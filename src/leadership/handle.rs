//! What everybody asks: who leads, is this node ready, with which fence; and how leadership is moved.

use std::{
    io,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{mpsc, oneshot, watch};

use crate::audit::chain::Chain;
use crate::audit::history::History;
use crate::consensus::core::Stopped;
use crate::consensus::{self, BoxFuture, Fitness, Handover, Role, Status};
use crate::leadership::executor::{self, At, Claim, Executor, Kept, Report, Verdict as Compared};
use crate::leadership::handover::{self, Asked, Done, Refused, Request};
use crate::leadership::keeper;
use crate::leadership::memory::Memory;
use crate::leadership::metrics::Facts;
use crate::leadership::numbers::Numbers;
use crate::leadership::operations::Operations;
use crate::leadership::pause;
use crate::leadership::policy::{Inputs, Intent, Verdict, hint, is_stuck, judge};
use crate::leadership::target::Candidate;
use crate::store;
use crate::telemetry::trace::Tracer;
use crate::types::{NodeId, Term, proto::LeadershipCause};

/// Requests for hand-overs that wait for the task. By eye: it takes each at once.
const REQUESTS_MAX: usize = 16;
/// One look at this node's leadership. True at the moment it was taken, and not cached.
#[derive(Debug, Clone)]
pub(crate) struct Leadership {
    pub(crate) term: Term,
    pub(crate) role: Role,
    /// The leader that is heard.
    pub(crate) leader_id: Option<NodeId>,
    pub(crate) leader_api: Option<String>,
    /// Leads and holds the fence.
    pub(crate) ready: bool,
    pub(crate) fence: Option<u64>,
    pub(crate) lease_valid: bool,
    /// Zero when not valid.
    pub(crate) lease_remaining: Duration,
    pub(crate) quorum_ack_age: Option<Duration>,
    pub(crate) paused: bool,
    pub(crate) is_stopping: bool,
    pub(crate) is_handing_over: bool,
    pub(crate) is_disk_full: bool,
    /// The state differs from the others': this node stopped serving.
    pub(crate) has_diverged: bool,
    pub(crate) is_caught_up: bool,
    pub(crate) blockers: Vec<Blocker>,
    pub(crate) executor: ExecutorView,
    /// As others are told.
    pub(crate) fitness: Fitness,
}

/// Why this node is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blocker {
    pub(crate) check: &'static str,
    pub(crate) since: Duration,
    pub(crate) hint: String,
}

/// The executor beside this node, as its newest report says; `None` before the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExecutorView {
    pub(crate) last: Option<(Report, Duration)>,
    pub(crate) is_well: bool,
    pub(crate) is_required: bool,
}

/// Settings of the leadership.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// `raft.*`.
    pub(crate) lease_timeout: Duration,
    pub(crate) election_timeout: Duration,
    pub(crate) resign_timeout: Duration,
    pub(crate) shutdown_timeout: Duration,
    /// `leadership.stall_after`.
    pub(crate) stall_after: Duration,
    pub(crate) keeper: keeper::Config,
    pub(crate) executor: executor::Config,
    /// The node was started with data: it may neither vote nor stand before (safety rule 16).
    pub(crate) barred_until: Option<Instant>,
}

/// What waits for an answer; supplied by `node` once it is there.
pub(crate) trait InFlight: Send + Sync + 'static {
    /// Completes when every proposal taken so far has its answer.
    fn drained(&self) -> BoxFuture<'_, ()>;
}

/// What a leadership is made of.
pub(crate) struct Parts {
    pub(crate) raft: consensus::handle::Handle,
    pub(crate) reader: store::Reader,
    pub(crate) local: store::Local,
    pub(crate) health: store::Health,
    pub(crate) operations: Operations,
    pub(crate) history: History,
    pub(crate) chain: Chain,
    pub(crate) tracer: Tracer,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    parts: Parts,
    in_flight: OnceLock<Arc<dyn InFlight>>,
    requests: mpsc::Sender<Request>,
    /// Small facts of this node, each held for a few stores; a task would lag behind the clock.
    memory: Mutex<Memory>,
    /// As above: ids of leaderships are given in order.
    numbers: Mutex<Numbers>,
    /// Id of the newest leadership.
    newest: watch::Sender<u64>,
}

impl Handle {
    /// The requests are for [`crate::leadership::task::run`]. Reads this node's records: blocking, short.
    pub(crate) fn new(config: Config, parts: Parts) -> io::Result<(Self, mpsc::Receiver<Request>)> {
        let is_paused = parts.local.get(pause::PAUSED)?.is_some();
        let executor = Executor::new(config.executor, Instant::now());
        let memory = Mutex::new(Memory::new(executor, is_paused));
        let numbers = Numbers::load(&parts.local)?;
        let newest = watch::Sender::new(numbers.newest());
        let numbers = Mutex::new(numbers);
        let (requests, rx) = mpsc::channel(REQUESTS_MAX);
        let in_flight = OnceLock::new();
        let shared = Shared { config, parts, in_flight, requests, memory, numbers, newest };
        Ok((Self { shared: Arc::new(shared) }, rx))
    }

    /// Whose answers a hand-over waits for.
    pub(crate) fn set_in_flight(&self, in_flight: Arc<dyn InFlight>) {
        // Set once, by `node`.
        let _ = self.shared.in_flight.set(in_flight);
    }

    pub(super) async fn drained(&self) {
        if let Some(in_flight) = self.shared.in_flight.get() {
            in_flight.drained().await;
        }
    }

    pub(super) fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.shared.memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn numbers(&self) -> std::sync::MutexGuard<'_, Numbers> {
        self.shared.numbers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn newest(&self) -> &watch::Sender<u64> {
        &self.shared.newest
    }

    pub(crate) fn config(&self) -> &Config {
        &self.shared.config
    }

    pub(crate) fn now(&self) -> Leadership {
        self.of(&self.shared.parts.raft.status())
    }

    /// The leadership out of a status just read.
    pub(crate) fn of(&self, status: &Status) -> Leadership {
        self.judged(status, |verdict, inputs, memory| {
            let now = inputs.now;
            memory.failing.retain(|check, _| verdict.failing.contains(check));
            let blockers = verdict
                .failing
                .iter()
                .map(|check| Blocker {
                    check: check.name(),
                    since: now.saturating_duration_since(*memory.failing.entry(*check).or_insert(now)),
                    hint: hint(*check, inputs),
                })
                .collect();
            let last = memory.executor.last(now).map(|(report, age)| (report.clone(), age));
            Leadership {
                term: status.term,
                role: status.role,
                leader_id: status.leader_id,
                leader_api: status.leader_id.and_then(|id| self.raft().api_addr(status, id)),
                ready: verdict.fence.is_some(),
                fence: verdict.fence,
                lease_valid: !verdict.lease_remaining.is_zero(),
                lease_remaining: verdict.lease_remaining,
                quorum_ack_age: status.quorum_ack_age,
                paused: inputs.is_paused,
                is_stopping: inputs.intent == Intent::Stop,
                is_handing_over: inputs.intent == Intent::HandOver,
                is_disk_full: inputs.is_disk_full,
                has_diverged: inputs.has_diverged,
                is_caught_up: verdict.is_caught_up,
                blockers,
                executor: ExecutorView {
                    last,
                    is_well: inputs.executor.is_none(),
                    is_required: memory.executor.config().is_required,
                },
                fitness: fitness(&verdict, inputs),
            }
        })
    }

    /// Judges a status by what is remembered, and gives all three on.
    pub(super) fn judged<T>(
        &self,
        status: &Status,
        then: impl FnOnce(Verdict, &Inputs<'_>, &mut Memory) -> T,
    ) -> T {
        let Parts { raft, reader, health, .. } = &self.shared.parts;
        let config = &self.shared.config;
        let view = reader.view();
        let disk = health.get();
        let (now, wall) = (Instant::now(), SystemTime::now());
        let mut memory = self.memory();
        memory.look_at_clocks(now, wall, status);
        let ill = memory.executor.ill(now);
        let led_since = memory.led_since(now, status);
        let inputs = Inputs {
            node_id: raft.node_id(),
            now,
            status,
            view: &view,
            lease_timeout: config.lease_timeout,
            stall_after: config.stall_after,
            sync_timeout: config.executor.sync_timeout,
            is_disk_full: disk.is_full,
            is_store_failed: disk.fatal.is_some(),
            has_diverged: disk.diverged.is_some(),
            intent: memory.intent,
            removed: raft.removal().get(),
            is_itself: raft.is_itself(),
            committed_a_second_ago: memory.committed_ago(now),
            has_applied_enough: memory.has_applied_enough(status),
            is_paused: memory.is_paused,
            executor: ill.as_ref(),
            sync_in_progress: health.sync_in_progress(),
            stalled_for: memory.stall.lasts(now, config.stall_after),
            is_clock_unsure: memory.unsure_term == Some(status.term),
            given_up_term: memory.given_up_term,
            fenced_term: memory.fenced_term,
            led_since,
        };
        let verdict = judge(&inputs);
        if verdict.fence.is_some() {
            memory.fenced_term = verdict.fence;
        }
        then(verdict, &inputs, &mut memory)
    }

    /// How fit this node is to lead, as others are told.
    pub(crate) fn fitness(&self) -> Fitness {
        let status = self.raft().status();
        self.judged(&status, |verdict, inputs, _| fitness(&verdict, inputs))
    }

    /// Whether this node is as fit as can be told while nobody leads; `Err` says why not.
    pub(crate) fn fitness_to_stand(&self) -> Result<(), String> {
        let status = self.raft().status();
        self.judged(&status, |verdict, inputs, _| match verdict.may_stand {
            true => Ok(()),
            false => Err(fitness(&verdict, inputs).reason),
        })
    }

    /// Was caught up when a leader was last heard, or has applied all it knows to be committed.
    pub(crate) fn has_applied_enough(&self) -> bool {
        let status = self.raft().status();
        self.judged(&status, |_, inputs, _| inputs.has_applied_enough)
    }

    /// Why this node must not stand for election, whoever asks: an old leader's lease may hold still (safety rule
    /// 16), or the membership names another life of it (rule 8).
    pub(crate) fn barred(&self, now: Instant) -> Option<&'static str> {
        if self.shared.config.barred_until.is_some_and(|until| now < until) {
            return Some("it has just started, and the lease of the leader before may hold still");
        }
        (!self.raft().is_itself()).then_some("the membership names another life of it")
    }

    /// The leader's own vote is being taken: it hands over once that is agreed on, and not before.
    pub(crate) fn set_leaving(&self, is_leaving: bool) {
        self.memory().is_leaving = is_leaving;
        self.restore_intent();
    }

    /// A hand-over is over: the fence may come back, unless another one follows.
    pub(super) fn restore_intent(&self) {
        let is_leaving = self.memory().is_leaving;
        self.set_intent(if is_leaving { Intent::HandOver } else { Intent::Lead });
    }

    /// Withdraws or restores the fence of this node. A stop is never taken back.
    pub(crate) fn set_intent(&self, intent: Intent) {
        let mut memory = self.memory();
        if memory.intent != Intent::Stop {
            memory.intent = intent;
        }
    }

    /// A leader said that it hands over, to this node or another.
    pub(crate) fn announced(&self, handover: Handover, is_target: bool) {
        self.memory().announced(Instant::now(), handover, is_target);
    }

    /// Why a candidacy that begins now begins, where that is not this node's timer.
    pub(super) fn trigger(&self) -> Option<&'static str> {
        self.memory().trigger(Instant::now())
    }

    /// Stands for election at once, by a round of pre-votes; `trigger` says why, for the span.
    pub(crate) async fn stand(&self, trigger: &'static str) -> Result<(), Stopped> {
        self.memory().stands(Instant::now(), trigger);
        self.raft().core().elect().await
    }

    pub(crate) fn is_sync_stuck(&self) -> bool {
        is_stuck(self.sync_in_progress(), self.shared.config.stall_after)
    }

    /// Since when the log's sync in progress runs.
    pub(super) fn sync_in_progress(&self) -> Option<Duration> {
        self.shared.parts.health.sync_in_progress()
    }

    /// Why the leadership of this term begins now, and the operation that asked for it.
    pub(super) fn cause(&self, term: Term) -> (LeadershipCause, String) {
        let announced = self.memory().take_announced(Instant::now());
        // Somebody else came to office by it meanwhile.
        let before = self.reader().view().leadership.as_ref().map_or(0, |leadership| leadership.pos.term);
        let announced = announced.filter(|handover| before <= handover.from_term);
        if announced.as_ref().is_some_and(Handover::is_forced) {
            self.memory().forced_term = Some(term);
        }
        match announced {
            Some(Handover { cause: LeadershipCause::Unknown, operation_id, .. }) => {
                (LeadershipCause::Transfer, operation_id)
            }
            Some(handover) => (handover.cause, handover.operation_id),
            // All nodes were down, or this one founds the cluster alone.
            None if self.raft().heard_age().is_none() && self.shared.config.barred_until.is_some() => {
                (LeadershipCause::Restart, String::new())
            }
            None => (LeadershipCause::Election, String::new()),
        }
    }

    /// Another node said how fit it is.
    pub(crate) fn peer_fitness(&self, node_id: NodeId, fitness: Fitness) {
        self.memory().peers.insert(node_id, fitness);
    }

    /// The other members as targets of a hand-over, from a status just read.
    pub(super) fn candidates(&self, status: &Status) -> Vec<Candidate> {
        let memory = self.memory();
        let heartbeat_timeout = self.raft().config().heartbeat_timeout;
        let peers = status.peers.iter().flatten();
        peers
            .map(|peer| Candidate {
                node_id: peer.node_id,
                is_voter: status.members.voters.contains(&peer.node_id),
                ack_age: peer.ack_age.filter(|age| *age < heartbeat_timeout),
                missing: peer.matched.map(|_| peer.lag),
                fitness: memory.peers.get(&peer.node_id).cloned(),
            })
            .collect()
    }

    /// Hands leadership over, in the order of design 11. Goes on when the future is dropped, unless another
    /// hand-over is still before it.
    pub(crate) async fn hand_over(&self, asked: Asked) -> Result<Done, Refused> {
        // One that has begun answers in its own time.
        let patience = asked.within + self.shared.config.election_timeout;
        let asked_of = (self.raft().status().term, asked.operation_id.clone());
        let (answer, outcome) = oneshot::channel();
        let request = Request::new(asked, Some(answer));
        if self.shared.requests.send(request).await.is_err() {
            return Err(Refused::Stopped);
        }
        let began = Instant::now();
        match tokio::time::timeout(patience, outcome).await {
            Ok(outcome) => outcome.unwrap_or_else(|_| handover::ended_with(self, asked_of, began.elapsed())),
            Err(_) => Err(Refused::Busy(self.memory().handover.clone().unwrap_or_default())),
        }
    }

    /// As [`Handle::hand_over`], and returns once raft was told: the term that is given up.
    pub(crate) async fn begin_handover(&self, asked: Asked) -> Result<Term, Refused> {
        let (began, asked_of) = (Instant::now(), (self.raft().status().term, asked.operation_id.clone()));
        let (answer, outcome) = oneshot::channel();
        let (told, is_told) = oneshot::channel();
        let request = Request::new(asked, Some(answer)).tells(told);
        if self.shared.requests.send(request).await.is_err() {
            return Err(Refused::Stopped);
        }
        match is_told.await {
            Ok(term) => Ok(term),
            // It ended before raft was told: refused, or the target was this leader itself.
            Err(_) => match outcome.await {
                Ok(Ok(done)) => Ok(done.old_term),
                Ok(Err(refused)) => Err(refused),
                Err(_) => handover::ended_with(self, asked_of, began.elapsed()).map(|done| done.old_term),
            },
        }
    }

    /// Compares an executor's block with the agreed ones; changes nothing. Reads one row: blocking, short.
    pub(crate) fn reconcile(&self, claim: &Claim) -> Result<Compared, store::ReadError> {
        let reader = &self.shared.parts.reader;
        let view = reader.view();
        let kept =
            Kept { head: view.head.clone(), oldest_height: view.oldest_height, has_pruned: view.has_pruned };
        executor::verdict(claim, &kept, |height| match reader.provenance(height) {
            Ok(found) => Ok(At::Hash(found.hash)),
            Err(store::ReadError::NotFound { .. }) => Ok(At::Nothing),
            Err(store::ReadError::Pruned { .. }) => Ok(At::Forgotten),
            Err(e @ store::ReadError::Storage(_)) => Err(e),
        })
    }

    /// Notes a report of the executor, judged against the head of now.
    pub(crate) fn report(&self, report: Report) {
        self.shared.parts.operations.verdict(report.verdict.label());
        self.memory().executor.report(Instant::now(), report);
    }

    pub(super) fn facts(&self) -> Facts {
        let view = self.reader().view();
        Facts {
            leader_since_ms: view.leadership.as_ref().map_or(0, |l| l.started_at_ms),
            apply_lag_max: self.memory().lag.get(Instant::now()),
            block_interval: view.settings.settings.block_interval,
            is_removed: self.raft().removal().get().is_some(),
        }
    }

    pub(crate) fn raft(&self) -> &consensus::handle::Handle {
        &self.shared.parts.raft
    }

    pub(super) fn reader(&self) -> &store::Reader {
        &self.shared.parts.reader
    }

    pub(super) fn local(&self) -> &store::Local {
        &self.shared.parts.local
    }

    pub(super) fn history(&self) -> &History {
        &self.shared.parts.history
    }

    pub(super) fn chain(&self) -> &Chain {
        &self.shared.parts.chain
    }

    pub(super) fn operations(&self) -> &Operations {
        &self.shared.parts.operations
    }

    pub(super) fn tracer(&self) -> &Tracer {
        &self.shared.parts.tracer
    }
}

fn fitness(verdict: &Verdict, inputs: &Inputs<'_>) -> Fitness {
    let reasons: Vec<String> = verdict.unfit.iter().map(|check| hint(*check, inputs)).collect();
    Fitness { grade: verdict.grade(), reason: reasons.join("; ") }
}
