//! What everybody asks: who leads, is this node ready, with which fence.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::consensus::{self, Role, Status};
use crate::leadership::metrics::{Facts, LagMax};
use crate::leadership::policy::{Check, Inputs, Intent, Verdict, hint, judge};
use crate::store;
use crate::types::{LogIndex, NodeId, Term, proto::LeadershipCause};

/// Commit indexes are remembered this far back, for *caught up* (design 11).
const COMMITTED_AGO: Duration = Duration::from_secs(1);
/// A leadership that begins so soon after this node was asked to take over came by transfer.
/// By eye: a transfer takes milliseconds; an election begins a heartbeat_timeout later.
const TRANSFER_WITHIN: Duration = Duration::from_secs(1);

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
    pub(crate) is_disk_full: bool,
    /// The state differs from the others': this node stopped serving.
    pub(crate) has_diverged: bool,
    pub(crate) is_caught_up: bool,
    pub(crate) blockers: Vec<Blocker>,
}

/// Why this node is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blocker {
    pub(crate) check: &'static str,
    pub(crate) since: Duration,
    pub(crate) hint: String,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    raft: consensus::handle::Handle,
    reader: store::Reader,
    health: store::Health,
    lease_timeout: Duration,
    /// Small facts of this node, each held for a few stores; a task would lag behind the clock.
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    intent: Intent,
    /// Since when each failing check fails.
    failing: BTreeMap<Check, Instant>,
    /// Commit index of the cluster by time, oldest first.
    committed: VecDeque<(Instant, LogIndex)>,
    /// When this node was last asked to take over, and why.
    asked: Option<(Instant, LeadershipCause)>,
    lag: LagMax,
}

impl Handle {
    pub(crate) fn new(
        raft: consensus::handle::Handle,
        reader: store::Reader,
        health: store::Health,
        lease_timeout: Duration,
    ) -> Self {
        let memory = Mutex::new(Memory::default());
        Self { shared: Arc::new(Shared { raft, reader, health, lease_timeout, memory }) }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.shared.memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn now(&self) -> Leadership {
        self.of(&self.shared.raft.status())
    }

    /// The leadership out of a status just read.
    pub(crate) fn of(&self, status: &Status) -> Leadership {
        let view = self.shared.reader.view();
        let health = self.shared.health.get();
        let now = Instant::now();
        let mut memory = self.memory();
        let inputs = Inputs {
            node_id: self.shared.raft.node_id(),
            status,
            view: &view,
            lease_timeout: self.shared.lease_timeout,
            is_disk_full: health.is_full,
            is_store_failed: health.fatal.is_some(),
            has_diverged: health.diverged.is_some(),
            intent: memory.intent,
            removed: self.shared.raft.removal().get(),
            committed_a_second_ago: memory.committed_ago(now),
        };
        let Verdict { fence, lease_remaining, is_caught_up, failing } = judge(&inputs);
        memory.failing.retain(|check, _| failing.contains(check));
        let blockers = failing
            .iter()
            .map(|check| Blocker {
                check: check.name(),
                since: now.saturating_duration_since(*memory.failing.entry(*check).or_insert(now)),
                hint: hint(*check, &inputs),
            })
            .collect();
        Leadership {
            term: status.term,
            role: status.role,
            leader_id: status.leader_id,
            leader_api: status.leader_id.and_then(|id| self.shared.raft.api_addr(status, id)),
            ready: fence.is_some(),
            fence,
            lease_valid: !lease_remaining.is_zero(),
            lease_remaining,
            quorum_ack_age: status.quorum_ack_age,
            paused: false,
            is_stopping: memory.intent == Intent::Stop,
            is_disk_full: health.is_full,
            has_diverged: health.diverged.is_some(),
            is_caught_up,
            blockers,
        }
    }

    /// Withdraws or restores the fence of this node. A stop is never taken back.
    pub(crate) fn set_intent(&self, intent: Intent) {
        let mut memory = self.memory();
        if memory.intent != Intent::Stop {
            memory.intent = intent;
        }
    }

    /// The leader asked this node to take over.
    pub(crate) fn asked_to_take_over(&self, cause: LeadershipCause) {
        self.memory().asked = Some((Instant::now(), cause));
    }

    /// The leader asked this node to take over just now.
    pub(super) fn was_asked(&self) -> bool {
        self.memory().asked.is_some_and(|(at, _)| at.elapsed() < TRANSFER_WITHIN)
    }

    /// Since when the log's sync in progress runs.
    pub(super) fn sync_in_progress(&self) -> Option<Duration> {
        self.shared.health.sync_in_progress()
    }

    /// Why a leadership that begins now begins.
    pub(super) fn cause(&self) -> LeadershipCause {
        match self.memory().asked.take() {
            Some((at, cause)) if at.elapsed() < TRANSFER_WITHIN => cause,
            _ => LeadershipCause::Election,
        }
    }

    /// Remembers the cluster's commit index; called several times a second.
    pub(super) fn sample(&self, status: &Status) {
        let now = Instant::now();
        let mut memory = self.memory();
        memory.committed.push_back((now, status.positions.cluster_committed));
        memory.lag.observe(now, status.positions.apply_lag());
        // One sample older than the horizon stays: it is what was known a second ago.
        while memory.committed.get(1).is_some_and(|(at, _)| COMMITTED_AGO <= now.duration_since(*at)) {
            memory.committed.pop_front();
        }
    }

    pub(super) fn facts(&self) -> Facts {
        let view = self.shared.reader.view();
        Facts {
            leader_since_ms: view.leadership.as_ref().map_or(0, |l| l.started_at_ms),
            apply_lag_max: self.memory().lag.get(Instant::now()),
            block_interval: view.settings.settings.block_interval,
        }
    }

    pub(super) fn raft(&self) -> &consensus::handle::Handle {
        &self.shared.raft
    }

    pub(super) fn reader(&self) -> &store::Reader {
        &self.shared.reader
    }
}

impl Memory {
    fn committed_ago(&self, now: Instant) -> LogIndex {
        match self.committed.front() {
            Some((at, index)) if COMMITTED_AGO <= now.saturating_duration_since(*at) => *index,
            _ => 0,
        }
    }
}
