//! What happens when the nodes' states differ: the one that is wrong stops serving.
//!
//! The leader collects the evidence and sends it with its heartbeats while there is a dispute; every
//! node judges by itself. A node that stopped serving stays up, so that it can be looked at.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::consensus::agreement::{Evidence, Hash, Mark, Marks, Verdict, is_wrong, judge};
use crate::consensus::{self, core::Stopped};
use crate::feed;
use crate::leadership;
use crate::leadership::handover::{Asked, By};
use crate::leadership::policy::Intent;
use crate::leadership::task::operation_id;
use crate::store;
use crate::types::proto::{FitnessGrade, LeadershipCause};
use crate::types::{LogIndex, NodeId};

/// How long a voter that says nothing may still decide. By eye: many times what one that is alive needs.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks while there is a dispute.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What is known of the others' states. Cheap to share; asked at every heartbeat.
pub(super) struct Agreement {
    own_id: NodeId,
    reader: store::Reader,
    /// Guards a look and a push per heartbeat; a task would be a queue for that.
    known: Mutex<Known>,
    /// Something was said that needs a look.
    news: Notify,
}

#[derive(Default)]
struct Known {
    marks: Marks,
    /// Collected here as leader; sent with every heartbeat.
    own: Option<Evidence>,
    /// Sent by the leader, not judged yet.
    told: Option<Evidence>,
}

impl Agreement {
    pub(super) fn new(own_id: NodeId, reader: store::Reader) -> Self {
        Self { own_id, reader, known: Mutex::default(), news: Notify::new() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The answer to a heartbeat told another node's newest mark.
    pub(super) fn on_mark(&self, node_id: NodeId, mark: Mark) {
        if !self.known().marks.note(node_id, mark) {
            return;
        }
        // A follower may apply before its leader does: what this node has not come to is compared later.
        if self.own_at(mark.0) != Some(mark.1) {
            self.news.notify_one();
        }
    }

    /// The leader sent what it knows.
    pub(super) fn on_told(&self, evidence: Evidence) {
        self.known().told = Some(evidence);
        self.news.notify_one();
    }

    /// What goes with a heartbeat of this leader; `None`: all is well.
    pub(super) fn evidence(&self) -> Option<Evidence> {
        self.known().own.clone()
    }

    fn own_at(&self, index: LogIndex) -> Option<Hash> {
        self.reader.hash_marks().into_iter().find(|(i, _)| *i == index).map(|(_, hash)| hash)
    }

    /// This node's hash where the evidence says that it holds it.
    fn own_in(&self, evidence: &Evidence) -> Option<Hash> {
        let said = *evidence.hashes.get(&self.own_id)?;
        self.own_at(evidence.index).filter(|own| *own == said)
    }
}

/// What judging needs beside the evidence.
pub(super) struct Judge {
    pub(super) agreement: Arc<Agreement>,
    pub(super) raft: consensus::handle::Handle,
    pub(super) leadership: leadership::Handle,
    pub(super) health: store::Health,
    pub(super) feed: feed::Hub,
    pub(super) resign_timeout: Duration,
}

impl Judge {
    /// Runs until raft stops, or until this node stopped serving.
    pub(super) async fn run(self) -> Result<(), Stopped> {
        let mut since: Option<Instant> = None;
        loop {
            let wait = if since.is_some() || self.is_behind() { LOOK_EVERY } else { Duration::MAX };
            // Not in time: the dispute, or this node's own mark, is looked at again.
            let _ = tokio::time::timeout(wait, self.agreement.news.notified()).await;
            let told = self.agreement.known().told.take();
            let own = self.collect(&mut since);
            for evidence in told.iter().chain(&own) {
                if let Some((index, own, verdict)) = self.judged(evidence) {
                    self.stop_serving(index, &own, &verdict, evidence).await?;
                    // What this leader knows is still sent; and it is never judged better again.
                    return std::future::pending().await;
                }
            }
        }
    }

    /// As leader it knows a mark of another node that it has not come to itself.
    fn is_behind(&self) -> bool {
        self.raft.is_leader() && self.agreement.known().marks.is_ahead_of(&self.agreement.reader.hash_marks())
    }

    /// What this node knows as leader, and shows to the others from here on.
    fn collect(&self, since: &mut Option<Instant>) -> Option<Evidence> {
        let members = self.raft.status().members;
        let own_marks = self.agreement.reader.hash_marks();
        let mut known = self.agreement.known();
        known.marks.keep(|id| members.nodes.contains_key(&id));
        let mut dispute = match self.raft.is_leader() {
            true => known.marks.dispute(self.agreement.own_id, &own_marks),
            false => None,
        };
        match &mut dispute {
            None => *since = None,
            Some(evidence) => {
                let since = since.get_or_insert_with(Instant::now);
                evidence.is_last_word = PATIENCE <= since.elapsed();
            }
        }
        known.own = dispute.clone();
        dispute
    }

    fn judged(&self, evidence: &Evidence) -> Option<(LogIndex, Hash, Verdict)> {
        let own = self.agreement.own_in(evidence)?;
        let verdict = judge(evidence, &self.raft.status().members.voters);
        is_wrong(&own, &verdict).then_some((evidence.index, own, verdict))
    }

    async fn stop_serving(
        &self,
        index: LogIndex,
        own: &Hash,
        verdict: &Verdict,
        evidence: &Evidence,
    ) -> Result<(), Stopped> {
        let other = match verdict {
            Verdict::Majority(hash) => Some(*hash),
            Verdict::Open | Verdict::NoMajority => evidence.hashes.values().find(|h| *h != own).copied(),
        };
        let (own, other) = (hex(own), other.as_ref().map_or("none".into(), hex));
        let has_majority = matches!(verdict, Verdict::Majority(_));
        tracing::error!(
            index,
            own_hash = own,
            other_hash = other,
            has_majority,
            "the state of this node differs from the others': it stops serving"
        );
        self.health.set_diverged(format!(
            "the state at index {index} has hash {own} here and {other} on {}: this node stopped serving",
            if has_majority { "most nodes" } else { "others, and no majority agrees" }
        ));
        // It may not lead; where another can, it goes first.
        self.raft.core().set_may_stand(false);
        self.feed.stop();
        if has_majority && self.raft.is_leader() {
            let asked = Asked {
                to: None,
                within: self.resign_timeout,
                accepts: FitnessGrade::Unwilling,
                cause: LeadershipCause::Unfit,
                operation_id: operation_id(),
                reason: Some("diverged".into()),
                by: By::Node,
                intent: Intent::HandOver,
            };
            let handed_over = self.leadership.hand_over(asked).await;
            tracing::info!(?handed_over, "a leader whose state differs handed over");
        }
        Ok(())
    }
}

fn hex(hash: &Hash) -> String {
    hex_simd::encode_to_string(hash, hex_simd::AsciiCase::Lower)
}
