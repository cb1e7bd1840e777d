//! What this node answers to the questions of others.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::api;
use crate::consensus::{
    Answers, BoxFuture, Declined, Fitness, FoundingState, HandoverAsk, HandoverRefusal, Role, handle::Handle,
};
use crate::leadership;
use crate::leadership::handover::{Asked, By};
use crate::leadership::policy::Intent;
use crate::types::position::LogPos;
use crate::types::proto::{FitnessGrade, LeadershipCause};
use crate::types::{LogIndex, NodeId, Term};

/// What a node that asks for a hand-over may give it. As a call of the API may.
const HANDOVER_MAX: Duration = Duration::from_secs(30);

/// Answers out of the parts, which are all there before the first question is.
pub(super) struct NodeAnswers {
    pub(super) raft: Handle,
    pub(super) leadership: leadership::handle::Handle,
    /// Set once the API is built; until then a status is asked for in vain.
    pub(super) api: Arc<OnceLock<Arc<api::Parts>>>,
    pub(super) list_hash: [u8; 32],
    /// A node started with data grants no vote before: an old leader's lease may still hold
    /// (safety rule 16).
    pub(super) votes_from: Option<Instant>,
}

impl NodeAnswers {
    /// When a node that starts with data may vote and stand.
    pub(super) fn votes_from(had_data: bool, lease_timeout: Duration) -> Option<Instant> {
        had_data.then(|| Instant::now() + lease_timeout)
    }
}

impl Answers for NodeAnswers {
    fn status(&self) -> BoxFuture<'_, Bytes> {
        Box::pin(async move {
            match self.api.get() {
                Some(parts) => api::status_json(parts),
                None => Bytes::from_static(b"null"),
            }
        })
    }

    fn read_index(&self) -> BoxFuture<'_, Result<LogIndex, String>> {
        Box::pin(async move { self.raft.own_read_index().await.map_err(|e| e.to_string()) })
    }

    fn founding(&self) -> FoundingState {
        let status = self.raft.status();
        let has_data = status.term != 0 || status.members.version != 0 || !status.members.nodes.is_empty();
        FoundingState { list_hash: self.list_hash, has_data }
    }

    fn timeline(&self, pos: LogPos) -> Bytes {
        match self.api.get() {
            Some(parts) => api::timeline_json(parts, pos),
            None => Bytes::new(),
        }
    }

    fn may_take_over(&self, term: Term, accepts: FitnessGrade) -> Result<(), Declined> {
        let now = self.leadership.now();
        if now.is_stopping {
            return Err(Declined::Unfit("the node is stopping".into()));
        }
        if accepts.max(FitnessGrade::Fit) < now.fitness.grade {
            return Err(Declined::Unfit(now.fitness.reason));
        }
        // A leader that was told to hand over sends no heartbeats, and asks again when nobody took over.
        let is_caught_up = now.is_caught_up || (now.term == term && self.leadership.has_applied_enough());
        if now.role != Role::Follower || !is_caught_up {
            return Err(Declined::NotYet("the node is not a caught-up follower".into()));
        }
        if !self.may_vote() {
            return Err(Declined::NotYet("the node has just started".into()));
        }
        Ok(())
    }

    fn fitness(&self) -> Fitness {
        self.leadership.fitness()
    }

    fn hand_over(&self, ask: HandoverAsk) -> BoxFuture<'_, Result<Term, HandoverRefusal>> {
        Box::pin(async move {
            let asked = Asked {
                to: Some(ask.to),
                within: ask.within.min(HANDOVER_MAX),
                accepts: FitnessGrade::Fit,
                cause: LeadershipCause::Transfer,
                operation_id: ask.operation_id,
                reason: None,
                by: By::Node,
                intent: Intent::HandOver,
            };
            let begun = self.leadership.begin_handover(asked).await;
            begun.map_err(|refused| HandoverRefusal {
                reason: refused.reason().into(),
                message: refused.to_string(),
            })
        })
    }

    fn may_vote(&self) -> bool {
        self.votes_from.is_none_or(|from| from <= Instant::now()) && self.raft.is_itself()
    }

    fn is_sync_stuck(&self) -> bool {
        self.leadership.is_sync_stuck()
    }

    fn leader_heard(&self, term: Term, leader_id: NodeId) {
        self.raft.leader_heard(term, leader_id);
    }
}
