//! Carries changes of the membership out, one at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use openraft::ChangeMembers;
use tokio::sync::OwnedMutexGuard;

use crate::consensus::core::{ChangeFailed, Metrics, Stopped};
use crate::consensus::handle::Handle;
use crate::consensus::membership::plan::{Now, Plan, plan};
use crate::consensus::membership::{Change, ChangeError, Outlook, Reason, Request};
use crate::consensus::{PeerError, Probed, Role, Status};
use crate::raft::convert::{KNOWN_COMMANDS, members_of};
use crate::raft::{LogId, NodeRecord};
use crate::telemetry::names;
use crate::telemetry::ticks;
use crate::telemetry::trace::{Clock, Span, Tracer, int, text};
use crate::types::member::Members;
use crate::types::{LogIndex, NodeId};

/// Between two looks at raft while something is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A joint membership that nobody is changing is looked for so often. By eye.
const TIDY_EVERY: Duration = Duration::from_millis(250);
/// A change is answered as unknown after, and goes on. By eye: with a quorum it takes milliseconds.
const COMMIT_WITHIN: Duration = Duration::from_secs(10);
/// A new address answers within, or the answer is unknown.
const REACHED_WITHIN: Duration = Duration::from_secs(5);
/// A learner that is waited for may need a snapshot of many GiB.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(600);
/// Operation ids that are remembered for the history. By eye.
const OPERATIONS_MAX: usize = 64;

type NodeChange = ChangeMembers<NodeId, NodeRecord>;

/// Cheap to clone; all clones change one membership, one change at a time.
#[derive(Clone)]
pub(crate) struct Changer {
    shared: Arc<Shared>,
}

struct Shared {
    raft: Handle,
    tracer: Tracer,
    /// Which operation made a version; a few words, looked at when the history is written.
    operations: Mutex<Operations>,
}

#[derive(Default)]
struct Operations {
    running: Option<String>,
    made: BTreeMap<LogIndex, String>,
}

/// A change that may be made.
pub(crate) struct Prepared {
    changer: Changer,
    change: Change,
    plan: Plan,
    /// Log id of the membership that was looked at.
    base: Option<LogId>,
    was_voter: bool,
    turn: OwnedMutexGuard<()>,
}

/// A change that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) members: Members,
    /// Last entry of the leader's log when it was made.
    pub(crate) last: LogIndex,
}

impl Changer {
    pub(crate) fn new(raft: Handle, tracer: Tracer) -> Self {
        Self { shared: Arc::new(Shared { raft, tracer, operations: Mutex::default() }) }
    }

    fn raft(&self) -> &Handle {
        &self.shared.raft
    }

    /// The operation that made a version of the membership here, or is just making it.
    pub(crate) fn operation(&self, version: LogIndex) -> Option<String> {
        let operations = self.operations();
        operations.made.get(&version).or(operations.running.as_ref()).cloned()
    }

    fn operations(&self) -> std::sync::MutexGuard<'_, Operations> {
        self.shared.operations.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// This node leads, is heard, and has committed an entry of its own term.
    fn leading(&self) -> Result<Status, ChangeError> {
        let status = self.raft().status();
        match status.leader_id {
            Some(id) if id == self.raft().node_id() && status.committed_term == status.term => Ok(status),
            Some(leader_id) if leader_id != self.raft().node_id() => {
                let leader_api = self.raft().api_addr(&status, leader_id);
                Err(ChangeError::NotLeader { leader_id, leader_api })
            }
            Some(_) | None => {
                let patience = self.raft().config().heartbeat_timeout.as_millis();
                Err(ChangeError::NoLeader { retry_after_ms: u64::try_from(patience).unwrap_or(u64::MAX) })
            }
        }
    }

    /// Checks everything and asks the addressed node who it is; nothing is changed. While the result lives
    /// no other change is made here.
    pub(crate) async fn prepare(&self, request: &Request) -> Result<Prepared, ChangeError> {
        let status = self.leading()?;
        let metrics = self.raft().metrics();
        let now = now_of(&metrics);
        let Ok(turn) = self.raft().turn().try_lock_owned() else {
            let why = "another change of membership, or a hand-over, is under way".into();
            return Err(ChangeError::Refused { reason: Reason::InProgress, why, version: now.version });
        };
        let reachable = self.reachable(&status);
        let mut plan = plan(&now, request, &reachable)?;
        self.dial(&now, request, &mut plan).await?;
        if let Change::Promote { node_id } = &request.change {
            self.check_caught_up(&now, *node_id).await?;
        }
        if plan.is_risky() && !request.force {
            let Outlook { quorum, reachable, .. } = plan.outlook;
            let why = format!("of the voters behind it {reachable} are heard of, and a quorum is {quorum}");
            return Err(ChangeError::Refused { reason: Reason::QuorumRisk, why, version: now.version });
        }
        if plan.voters != now.voters && !request.force {
            self.check_quorum_is_up(&now, &plan).await?;
        }
        Ok(Prepared {
            changer: self.clone(),
            change: request.change.clone(),
            plan,
            base: *metrics.membership_config.log_id(),
            was_voter: now.voters.contains(&request.change.node_id()),
            turn,
        })
    }

    /// Members that are heard of, this node included.
    fn reachable(&self, status: &Status) -> BTreeSet<NodeId> {
        let peers = status.peers.iter().flatten().filter(|p| p.is_reachable).map(|p| p.node_id);
        peers.chain([self.raft().node_id()]).collect()
    }

    /// Who listens at the new address must be the node that is meant (safety rule 8).
    async fn dial(&self, now: &Now, request: &Request, plan: &mut Plan) -> Result<(), ChangeError> {
        let Some(addr) = plan.dial.clone() else { return Ok(()) };
        let node_id = request.change.node_id();
        let refused =
            |why: String| ChangeError::Refused { reason: Reason::Unreachable, why, version: now.version };
        let within = 5 * self.raft().send_timeout();
        let found = match self.raft().peers().probe(&addr, within).await {
            Ok(found) => found,
            Err(_) if request.force => return Ok(()),
            Err(error) => return Err(refused(format!("{addr}: {error}"))),
        };
        if let Some(other) = mismatch(&self.raft().config().cluster_id, node_id, &found) {
            return Err(refused(format!("{addr}: {other}")));
        }
        let lacks = |(kind, version): &&(crate::machine::command::Kind, u8)| {
            !found.known_commands.contains(&(kind.to_u8(), *version))
        };
        if let Some((kind, version)) = KNOWN_COMMANDS.iter().find(lacks) {
            let why = format!("node {node_id} does not know commands of kind {kind:?}, version {version}");
            return Err(ChangeError::Refused { reason: Reason::UpgradeNeeded, why, version: now.version });
        }
        let record = plan.nodes.get_mut(&node_id).expect("the plan names whom it dials");
        // The first members' are not in the membership: this node remembers whom it met.
        let known = record.incarnation.or_else(|| self.raft().peers().incarnation(node_id));
        match (&request.change, known) {
            (Change::AddLearner { .. }, _) => record.incarnation = Some(found.incarnation),
            (_, Some(known)) if known != found.incarnation => {
                return Err(refused(format!(
                    "{addr}: node {node_id} lost its data; remove it and add it again"
                )));
            }
            _ => {}
        }
        Ok(())
    }

    /// A learner that is behind would make a quorum that cannot commit.
    async fn check_caught_up(&self, now: &Now, node_id: NodeId) -> Result<(), ChangeError> {
        let goal = self.raft().status().positions.last;
        let until = Instant::now() + 5 * self.raft().send_timeout();
        loop {
            let Err(why) = self.holds(&self.leading()?, node_id, goal) else { return Ok(()) };
            if until <= Instant::now() {
                let reason = Reason::NotCaughtUp;
                return Err(ChangeError::Refused { reason, why, version: now.version });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Of the voters behind the change a quorum must hold everything: else nothing would be agreed on until one
    /// that is far behind has caught up, the second entry of the change included.
    async fn check_quorum_is_up(&self, now: &Now, plan: &Plan) -> Result<(), ChangeError> {
        let goal = self.raft().status().positions.last;
        let until = Instant::now() + 5 * self.raft().send_timeout();
        loop {
            let status = self.leading()?;
            let faults: Vec<String> =
                plan.voters.iter().filter_map(|id| self.holds(&status, *id, goal).err()).collect();
            if plan.outlook.quorum + faults.len() <= plan.voters.len() {
                return Ok(());
            }
            if until <= Instant::now() {
                let why = format!("nothing would be agreed on for a while: {}", faults.join("; "));
                let reason = Reason::NotCaughtUp;
                return Err(ChangeError::Refused { reason, why, version: now.version });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether a member acknowledged lately, and holds everything up to `goal`; `Err` says what is wrong.
    fn holds(&self, status: &Status, node_id: NodeId, goal: LogIndex) -> Result<(), String> {
        if node_id == self.raft().node_id() {
            // What a leader applied is on its own disk too (safety rule 3); that hangs as others' do.
            let applied = status.positions.applied;
            let why = || format!("this leader has applied {applied} of {goal} entries");
            return if goal <= applied { Ok(()) } else { Err(why()) };
        }
        let progress = status.peers.iter().flatten().find(|p| p.node_id == node_id);
        let is_heard =
            progress.and_then(|p| p.ack_age).is_some_and(|age| age < self.raft().config().heartbeat_timeout);
        let matched = progress.and_then(|p| p.matched).unwrap_or(0);
        match (is_heard, goal <= matched) {
            (true, true) => Ok(()),
            (true, false) => Err(format!("node {node_id} holds {matched} of {goal} entries")),
            (false, _) => Err(format!("node {node_id} did not acknowledge lately")),
        }
    }

    /// Returns once a member holds everything up to an index.
    pub(crate) async fn caught_up(&self, node_id: NodeId, goal: LogIndex) -> Result<(), ChangeError> {
        let until = Instant::now() + CAUGHT_UP_WITHIN;
        let unknown = |why: &str| ChangeError::Unknown { why: format!("node {node_id} was added, {why}") };
        loop {
            let status = self.raft().status();
            if status.role != Role::Leader {
                return Err(unknown("and this node does not lead any more"));
            }
            let Some(progress) = status.peers.iter().flatten().find(|p| p.node_id == node_id) else {
                return Err(unknown("and removed again"));
            };
            if progress.matched.is_some_and(|matched| goal <= matched) {
                return Ok(());
            }
            if until <= Instant::now() {
                return Err(unknown("and has not caught up"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Returns once a member answered at the address in force (safety rule 21c).
    pub(crate) async fn reached(&self, node_id: NodeId) -> Result<(), ChangeError> {
        let until = Instant::now() + REACHED_WITHIN;
        loop {
            match self.raft().peers().ping(node_id, self.raft().send_timeout()).await {
                Ok(()) => return Ok(()),
                Err(error) if until <= Instant::now() => {
                    let why =
                        format!("the membership was changed, and node {node_id} does not answer: {error}");
                    return Err(ChangeError::Unknown { why });
                }
                Err(PeerError::TimedOut { .. }) => {}
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Finishes what was left joint: its leader died, or lost the lease between the two entries
    /// (safety rule 21a). Runs until raft stops.
    pub(crate) async fn run(self) -> Result<(), Stopped> {
        let mut changes = self.raft().role_changes();
        let mut looks = ticks::every(TIDY_EVERY);
        loop {
            tokio::select! {
                changed = changes.next() => changed?,
                _ = looks.tick() => {}
            }
            let metrics = self.raft().metrics();
            let is_joint = 1 < metrics.membership_config.membership().get_joint_config().len();
            let is_committed =
                metrics.membership_config.log_id() == metrics.committed_membership_config.log_id();
            if !is_joint || !is_committed || self.leading().is_err() {
                continue;
            }
            let Ok(_turn) = self.raft().turn().try_lock_owned() else { continue };
            let base = *metrics.membership_config.log_id();
            tracing::info!(
                version = base.map(|b| b.index()),
                "finishing a change of membership that was left"
            );
            // Who lost its vote stays a learner: a removal that was cut short is asked for again.
            let flatten = NodeChange::AddVoterIds(BTreeSet::new());
            let done = self.raft().core().change_membership(flatten, true, base).await?;
            if let Err(error) = done {
                tracing::debug!(?error, "the change is not finished yet");
            }
        }
    }

    /// The operation under way ended, with a version if it made one.
    fn ended(&self, version: Option<LogIndex>) {
        let mut operations = self.operations();
        let running = operations.running.take();
        let (Some(operation_id), Some(version)) = (running, version) else { return };
        operations.made.insert(version, operation_id);
        while OPERATIONS_MAX < operations.made.len() {
            operations.made.pop_first();
        }
    }
}

/// Why it is not who is meant.
fn mismatch(cluster_id: &str, node_id: NodeId, found: &Probed) -> Option<String> {
    if found.cluster_id != cluster_id {
        return Some(format!("it belongs to cluster {:?}, not {cluster_id:?}", found.cluster_id));
    }
    if !found.is_of_epoch {
        return Some("its cluster was recovered without this one, or the other way round".into());
    }
    (found.node_id != node_id).then(|| format!("node {} listens there, not {node_id}", found.node_id))
}

fn now_of(metrics: &Metrics) -> Now {
    let newest = &metrics.membership_config;
    let membership = newest.membership();
    Now {
        version: newest.log_id().as_ref().map_or(0, |id| id.index()),
        voters: membership.voter_ids().collect(),
        nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
        is_changing: 1 < membership.get_joint_config().len()
            || newest.log_id() != metrics.committed_membership_config.log_id(),
    }
}

impl Prepared {
    pub(crate) fn outlook(&self) -> Outlook {
        self.plan.outlook
    }

    /// Voters and learners behind the change.
    pub(crate) fn behind(&self) -> (Vec<NodeId>, Vec<NodeId>) {
        let voters = self.plan.voters.iter().copied().collect();
        let is_learner = |id: &&NodeId| !self.plan.voters.contains(id);
        (voters, self.plan.nodes.keys().filter(is_learner).copied().collect())
    }

    /// Version of the membership that is to be changed.
    pub(crate) fn version(&self) -> LogIndex {
        self.base.map_or(0, |id| id.index())
    }

    /// Another node gets a new address.
    pub(crate) fn moves_another(&self) -> bool {
        let is_update = matches!(self.change, Change::Update { .. });
        is_update && self.plan.dial.is_some() && self.change.node_id() != self.changer.raft().node_id()
    }

    /// The node that makes the change has no vote behind it.
    pub(crate) fn takes_own_vote(&self) -> bool {
        let node_id = self.changer.raft().node_id();
        self.was_voter && self.change.node_id() == node_id && !self.plan.voters.contains(&node_id)
    }

    /// Makes the change. Dropping the future does not stop it.
    pub(crate) async fn commit(self, operation_id: Option<String>) -> Result<Changed, ChangeError> {
        // In a task of its own: its second entry must follow the first whoever waits (safety rule 21a).
        let task = tokio::spawn(self.write(operation_id));
        match tokio::time::timeout(COMMIT_WITHIN, task).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(ChangeError::Unknown { why: "the change broke off".into() }),
            Err(_) => Err(ChangeError::Unknown { why: "no quorum agreed in time; it may still".into() }),
        }
    }

    async fn write(self, operation_id: Option<String>) -> Result<Changed, ChangeError> {
        let began = Instant::now();
        let node_id = self.change.node_id();
        let record = || self.plan.nodes.get(&node_id).cloned().expect("the plan names whom it changes");
        let (change, keeps_removed) = match &self.change {
            Change::AddLearner { .. } => (NodeChange::AddNodes(BTreeMap::from([(node_id, record())])), true),
            Change::Update { .. } => (NodeChange::SetNodes(BTreeMap::from([(node_id, record())])), true),
            Change::Promote { .. } => (NodeChange::AddVoterIds(BTreeSet::from([node_id])), true),
            Change::Demote { .. } => (NodeChange::RemoveVoters(BTreeSet::from([node_id])), true),
            Change::Remove { .. } if self.was_voter => {
                (NodeChange::RemoveVoters(BTreeSet::from([node_id])), false)
            }
            Change::Remove { .. } => (NodeChange::RemoveNodes(BTreeSet::from([node_id])), true),
        };
        let raft = self.changer.raft().clone();
        self.changer.operations().running = operation_id;
        let written = raft.core().change_membership(change, keeps_removed, self.base).await;
        let outcome = match written {
            Ok(Ok(stored)) => {
                let members = members_of(&stored);
                shown(&raft, members.version).await;
                Ok(Changed { members, last: raft.status().positions.last })
            }
            Ok(Err(failed)) => Err(self.failed(failed)),
            Err(stopped) => Err(ChangeError::Unknown { why: stopped.to_string() }),
        };
        self.changer.ended(outcome.as_ref().ok().map(|changed| changed.members.version));
        self.tell(began, &outcome);
        outcome
    }

    /// Refused only where nothing was appended: the second entry's errors look like the first's.
    fn failed(&self, failed: ChangeFailed) -> ChangeError {
        let metrics = self.changer.raft().metrics();
        let is_untouched = *metrics.membership_config.log_id() == self.base;
        let version = metrics.membership_config.log_id().as_ref().map_or(0, |id| id.index());
        let refused = |reason, why: String| ChangeError::Refused { reason, why, version };
        match failed {
            ChangeFailed::Moved { is_first: true } => refused(
                Reason::VersionMismatch,
                format!("the membership was changed meanwhile, to version {version}"),
            ),
            ChangeFailed::InProgress => {
                refused(Reason::InProgress, "another change of membership is under way".into())
            }
            ChangeFailed::Invalid(why) => refused(Reason::NotMember, why),
            ChangeFailed::Forward if is_untouched => match self.changer.leading() {
                Err(error) => error,
                Ok(_) => ChangeError::NoLeader { retry_after_ms: 1 },
            },
            ChangeFailed::Forward | ChangeFailed::Moved { is_first: false } | ChangeFailed::Discarded => {
                ChangeError::Unknown {
                    why: "leadership was lost during the change; the next leader ends it".into(),
                }
            }
        }
    }

    fn tell(&self, began: Instant, outcome: &Result<Changed, ChangeError>) {
        let (raft, clock) = (self.changer.raft(), Clock::now());
        let status = raft.status();
        let (word, node_id) = (self.change.word(), self.change.node_id());
        let mut span = Span::own(names::span::MEMBERSHIP_CHANGE, clock.at(began), clock.at(Instant::now()));
        span.attributes.extend([
            int(names::TERM, status.term),
            int(names::NODE_ID, raft.node_id()),
            text(names::MEMBERSHIP_CHANGE, word),
            int(names::MEMBERSHIP_NODE_ID, node_id),
            int(names::VOTERS, self.plan.voters.len() as u64),
        ]);
        let result = match outcome {
            Ok(changed) => {
                span.attributes.push(int(names::INDEX, changed.members.version));
                tracing::info!(
                    change = word,
                    of_node = node_id,
                    version = changed.members.version,
                    "membership changed"
                );
                "ok"
            }
            Err(ChangeError::Unknown { .. }) => "unknown",
            Err(error) => {
                tracing::info!(change = word, of_node = node_id, %error, "the membership was not changed");
                "refused"
            }
        };
        span.attributes.push(text(names::OUTCOME, result));
        self.changer.shared.tracer.record(span);
        // The next change waits for this one to be told.
        let _ = &self.turn;
    }
}

/// Waits a moment until raft's own view shows a version that is committed.
async fn shown(raft: &Handle, version: LogIndex) {
    let until = Instant::now() + 5 * raft.send_timeout();
    let is_shown = || {
        let metrics = raft.metrics();
        metrics.committed_membership_config.log_id().as_ref().is_some_and(|id| version <= id.index())
    };
    while !is_shown() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
