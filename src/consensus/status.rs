//! What raft knows, read from one value of its metrics and one look at the clock.

use std::{
    sync::{Mutex, atomic::AtomicU64, atomic::Ordering},
    time::{Duration, Instant},
};

use openraft::{ServerState, async_runtime::Instant as _};

use crate::consensus::{PeerProgress, Role, Status, core::Metrics};
use crate::raft::convert::members_of;
use crate::types::{NodeId, Term, position::Positions};

/// A leader counts as heard for so long after its last message: 1.5 × heartbeat_timeout
/// (safety rule 11).
pub(crate) fn heard_for(heartbeat_timeout: Duration) -> Duration {
    heartbeat_timeout * 3 / 2
}

/// What must be remembered beside openraft's metrics, which forget it.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// The leader heard last. A lock around three words; a task would lag behind the clock.
    heard: Mutex<Option<Heard>>,
    /// Greatest commit index of the cluster seen in this process; never falls.
    cluster_committed: AtomicU64,
    /// The newest term this node was seen to lead in, and since when. A lock as above.
    won: Mutex<Option<(Term, Instant)>>,
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    term: Term,
    leader_id: NodeId,
    at: Instant,
}

impl Memory {
    /// Since the last message of any leader.
    pub(crate) fn heard_age(&self) -> Option<Duration> {
        Some(self.heard()?.at.elapsed())
    }

    /// An append or a heartbeat of that leader was handled.
    pub(crate) fn leader_heard(&self, term: Term, leader_id: NodeId, at: Instant) {
        let mut heard = self.heard.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if heard.is_none_or(|h| h.term <= term) {
            *heard = Some(Heard { term, leader_id, at });
        }
    }

    fn heard(&self) -> Option<Heard> {
        *self.heard.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Since this node was first seen to lead in that term; `None`: it was not.
    pub(crate) fn leading_for(&self, term: Term) -> Option<Duration> {
        let won = *self.won.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        won.filter(|(known, _)| *known == term).map(|(_, at)| at.elapsed())
    }

    fn leads(&self, term: Term, now: Instant) {
        let mut won = self.won.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if won.is_none_or(|(known, _)| known < term) {
            *won = Some((term, now));
        }
    }

    fn raise_cluster_committed(&self, index: u64) -> u64 {
        self.cluster_committed.fetch_max(index, Ordering::Relaxed).max(index)
    }
}

pub(crate) fn role_of(state: ServerState) -> Role {
    match state {
        ServerState::Leader => Role::Leader,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Learner => Role::Learner,
        ServerState::Shutdown => Role::Stopped,
    }
}

/// The status out of one metrics value.
pub(crate) fn read(
    m: &Metrics,
    memory: &Memory,
    is_started: bool,
    heartbeat_timeout: Duration,
    now: Instant,
) -> Status {
    let is_running = m.running_state.is_ok();
    let members = members_of(&m.membership_config);
    let role = if is_running { role_of(m.state) } else { Role::Stopped };
    let index = |id: &Option<crate::raft::LogId>| id.as_ref().map_or(0, |id| id.index());
    let committed = index(&m.local_committed);
    let positions = Positions {
        purged: index(&m.purged),
        snapshot: index(&m.snapshot),
        applied: index(&m.last_applied),
        committed,
        cluster_committed: memory.raise_cluster_committed(committed.max(index(&m.cluster_committed))),
        last: m.last_log_index.unwrap_or(0),
    };
    let leads = role == Role::Leader;
    if leads {
        memory.leads(m.current_term, now);
    }
    let is_sole_voter = members.voters.len() == 1 && members.voters.contains(&m.id);
    let age_of = |at: Instant| now.saturating_duration_since(at);
    let quorum_ack_age = match (leads, is_sole_voter) {
        (false, _) => None,
        // openraft moves that clock only on another's answer (safety rule 11).
        (true, true) => Some(Duration::ZERO),
        (true, false) => m.last_quorum_acked.as_ref().map(|at| at.elapsed()),
    };
    let leader_id = if leads {
        quorum_ack_age.filter(|age| *age < heard_for(heartbeat_timeout)).map(|_| m.id)
    } else {
        memory
            .heard()
            .filter(|h| is_running && h.term == m.current_term && age_of(h.at) < heard_for(heartbeat_timeout))
            .map(|h| h.leader_id)
    };
    let peers = leads.then(|| {
        members
            .nodes
            .keys()
            .filter(|id| **id != m.id)
            .map(|id| {
                let matched = m
                    .replication
                    .as_ref()
                    .and_then(|r| r.get(id))
                    .and_then(|log_id| log_id.as_ref().map(|l| l.index()));
                let ack_age = m
                    .heartbeat
                    .as_ref()
                    .and_then(|h| h.get(id))
                    .and_then(|at| at.as_ref().map(|at| at.elapsed()));
                PeerProgress {
                    node_id: *id,
                    matched,
                    lag: positions.last.saturating_sub(matched.unwrap_or(0)),
                    ack_age,
                    is_reachable: ack_age.is_some_and(|age| age < heartbeat_timeout * 2),
                }
            })
            .collect()
    });
    Status {
        role: if is_started { role } else { Role::Learner },
        term: m.current_term,
        leader_id,
        positions,
        committed_term: m.local_committed.as_ref().map_or(0, |id| id.committed_leader_id().term),
        members,
        quorum_ack_age,
        peers,
        is_started,
        is_running,
    }
}
