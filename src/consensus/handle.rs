//! What the rest of the program asks of raft.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use openraft::{async_runtime::watch::WatchReceiver, errors::ClientWriteError};
use tokio::{
    sync::{Notify, oneshot},
    time::{timeout, timeout_at},
};

use crate::consensus::membership::standing::Standing;
use crate::consensus::{
    PeerError, Peers, Role, Status,
    core::{Config, Core, Metrics, MetricsWatch, ReadIndexError, ServerWatch, Stopped},
    status,
};
use crate::machine::command::Kind;
use crate::machine::{Command, Outcome, apply::settings_to_proto};
use crate::raft::convert::members_of;
use crate::raft::{Reply, WriteResult, pos_of};
use crate::types::{
    LogIndex, NodeId, Term,
    member::Members,
    position::LogPos,
    proto,
    settings::{ClusterSettings, SettingsInForce},
};

/// Why a linearizable read could not be served here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("no leader is known")]
    NoLeader,
    #[error("no quorum confirmed the leader: {0}")]
    NoQuorum(String),
    #[error("this node did not catch up in time")]
    TimedOut,
}

/// Why the settings were not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigureError {
    #[error("this node does not lead")]
    NotLeader { leader_id: NodeId, leader_api: Option<String> },
    #[error("no leader is known")]
    NoLeader { retry_after_ms: u64 },
    #[error("the settings were changed meanwhile, by the entry at index {version}")]
    VersionMismatch { version: LogIndex },
    #[error("node {node_id} does not know the command that changes settings")]
    UpgradeNeeded { node_id: NodeId },
    /// It may have happened.
    #[error("the change was not committed and applied in time")]
    Unknown,
}

/// A command that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) pos: LogPos,
    pub(crate) outcome: Outcome,
}

/// Why a command was not applied here (safety rule 20).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriteError {
    /// Refused: returned only before the entry is appended.
    #[error("this node may not append; the leader is {leader_id:?}")]
    Forward { leader_id: Option<NodeId>, leader_api: Option<String> },
    /// Unknown: appended, then replaced by another leader's log here.
    #[error("the entry was discarded here; it may be committed elsewhere")]
    Discarded,
}

fn written(result: WriteResult) -> Result<Written, WriteError> {
    match result {
        Ok(response) => Ok(Written { pos: pos_of(&response.log_id), outcome: response.data }),
        Err(ClientWriteError::ForwardToLeader(f)) => Err(WriteError::Forward {
            leader_id: f.leader_id,
            leader_api: f.leader_node.map(|node| node.api_addr).filter(|addr| !addr.is_empty()),
        }),
        Err(ClientWriteError::LogEntryDiscarded(_)) => Err(WriteError::Discarded),
        Err(e @ (ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_))) => {
            unreachable!("a command without preconditions failed with {e}")
        }
    }
}

/// Cheap to clone; every clone is the same node's raft.
#[derive(Clone)]
pub(crate) struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    node_id: NodeId,
    core: Arc<dyn Core>,
    peers: Arc<dyn Peers>,
    config: Config,
    /// Base of the bounded waits: `raft.send_timeout`.
    send_timeout: Duration,
    memory: status::Memory,
    /// See [`Handle::turn`].
    turn: Arc<tokio::sync::Mutex<()>>,
    removal: Standing,
    /// The core has run once: before that its metrics say learner, term 0, empty log.
    is_started: AtomicBool,
    /// Somebody wants a snapshot at once.
    snapshot_asked: Notify,
}

impl Handle {
    pub(crate) fn new(
        node_id: NodeId,
        core: Arc<dyn Core>,
        peers: Arc<dyn Peers>,
        config: Config,
        send_timeout: Duration,
    ) -> Self {
        let memory = status::Memory::default();
        let shared = Shared {
            node_id,
            core,
            peers,
            config,
            send_timeout,
            memory,
            turn: Arc::default(),
            removal: Standing::default(),
            is_started: AtomicBool::new(false),
            snapshot_asked: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn node_id(&self) -> NodeId {
        self.shared.node_id
    }

    pub(crate) fn config(&self) -> &Config {
        &self.shared.config
    }

    pub(crate) fn send_timeout(&self) -> Duration {
        self.shared.send_timeout
    }

    pub(crate) fn core(&self) -> &dyn Core {
        &*self.shared.core
    }

    pub(crate) fn peers(&self) -> &dyn Peers {
        &*self.shared.peers
    }

    /// One look at raft and at the clock.
    pub(crate) fn status(&self) -> Status {
        self.status_of(&self.metrics())
    }

    /// The newest metrics, cloned at once: a held borrow blocks the core.
    pub(crate) fn metrics(&self) -> Metrics {
        self.shared.core.metrics().borrow_watched().clone()
    }

    pub(crate) fn watch(&self) -> MetricsWatch {
        self.shared.core.metrics()
    }

    /// Completes when the role, the term, the leader or the membership changed, or raft ended.
    pub(crate) fn role_changes(&self) -> RoleChanges {
        RoleChanges { watch: self.shared.core.server_metrics() }
    }

    pub(crate) fn status_of(&self, metrics: &Metrics) -> Status {
        let s = &self.shared;
        let is_started = s.is_started.load(Ordering::Acquire);
        status::read(metrics, &s.memory, is_started, s.config.heartbeat_timeout, Instant::now())
    }

    /// An append or a heartbeat of that leader was handled just now.
    pub(crate) fn leader_heard(&self, term: Term, leader_id: NodeId) {
        self.shared.memory.leader_heard(term, leader_id, Instant::now());
    }

    /// Since the last message of any leader.
    pub(crate) fn heard_age(&self) -> Option<Duration> {
        self.shared.memory.heard_age()
    }

    /// Since this node won that term, while it leads in it.
    pub(crate) fn leading_for(&self, term: Term) -> Option<Duration> {
        self.shared.memory.leading_for(term)
    }

    /// Held over a change of the membership, both of its entries included, and over a hand-over from the choice of
    /// its target on: a leader whose transfer goes to a node that just lost its vote takes no entries any more and
    /// is succeeded by nobody.
    pub(crate) fn turn(&self) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.shared.turn)
    }

    /// Whether this node was told that it is no member.
    pub(crate) fn removal(&self) -> &Standing {
        &self.shared.removal
    }

    /// Whether this node may vote and stand: not while the newest membership in its log names another life of
    /// it, which a wiped node that is sent old entries sees (safety rule 8).
    pub(crate) fn is_itself(&self) -> bool {
        let server = self.shared.core.server_metrics();
        let server = server.borrow_watched();
        let record = server.membership_config.membership().get_node(&self.shared.node_id);
        let named = record.and_then(|record| record.incarnation);
        named.is_none_or(|incarnation| incarnation == self.shared.config.incarnation)
    }

    /// The newest membership that is known to be committed.
    pub(crate) fn committed_members(&self) -> Members {
        let server = self.shared.core.server_metrics();
        let committed = Arc::clone(&server.borrow_watched().committed_membership_config);
        members_of(&committed)
    }

    /// On the leader: for each other member the newest committed entry that it acknowledged.
    pub(crate) fn held_by_others(&self) -> Vec<(NodeId, LogPos)> {
        let metrics = self.metrics();
        let (Some(replication), Some(committed)) = (&metrics.replication, &metrics.local_committed) else {
            return Vec::new();
        };
        let acknowledged = replication.iter().filter(|(id, _)| **id != self.shared.node_id);
        acknowledged.filter_map(|(id, held)| Some((*id, pos_of(held.as_ref()?.min(committed))))).collect()
    }

    /// Waits until the core has run once, from when on its metrics mean something. Returns whether
    /// the node holds a membership.
    pub(crate) async fn started(&self) -> Result<bool, Stopped> {
        let is_initialized = self.shared.core.is_initialized().await?;
        self.shared.is_started.store(true, Ordering::Release);
        Ok(is_initialized)
    }

    /// Hands a command to raft; `reply` learns its outcome once it is applied here. A reply that is
    /// dropped unused: the outcome is unknown.
    pub(crate) async fn write(
        &self,
        command: Command,
        reply: impl FnOnce(Result<Written, WriteError>) + Send + 'static,
    ) -> Result<(), Stopped> {
        let complete = Box::new(move |result: WriteResult| reply(written(result)));
        self.shared.core.write(command, Reply { complete }).await
    }

    /// Whether this node may change the settings: who leads, as far as it knows.
    pub(crate) fn may_configure(&self) -> Result<Status, ConfigureError> {
        let status = self.status();
        match status.leader_id {
            Some(id) if id == self.shared.node_id => Ok(status),
            Some(leader_id) => {
                let leader_api = self.api_addr(&status, leader_id);
                Err(ConfigureError::NotLeader { leader_id, leader_api })
            }
            None => Err(self.no_leader()),
        }
    }

    /// Puts settings into the log, if those of `expected_index` are still in force. Leader only. After
    /// `until` the outcome is unknown: an entry without a quorum is neither applied nor refused.
    pub(crate) async fn configure(
        &self,
        settings: ClusterSettings,
        expected_index: Option<LogIndex>,
        until: Instant,
    ) -> Result<SettingsInForce, ConfigureError> {
        let status = self.may_configure()?;
        let (kind, version) = (Kind::Configure, 1);
        // A node stops when it meets a command that it does not know.
        let lacks = |id: &&NodeId| self.shared.peers.lacks(**id, kind.to_u8(), version);
        if let Some(node_id) = status.members.nodes.keys().find(lacks) {
            return Err(ConfigureError::UpgradeNeeded { node_id: *node_id });
        }
        let command = Command::configure(&proto::ConfigureCommand {
            settings: Some(settings_to_proto(&settings)),
            expected_index: expected_index.unwrap_or(0),
        });
        let (done_tx, done_rx) = oneshot::channel();
        let sent = self.write(command, move |result| {
            // Nobody waits any more when the time is over, or when the caller's task was stopped.
            let _ = done_tx.send(result);
        });
        let Ok(sent) = timeout_at(until.into(), sent).await else { return Err(ConfigureError::Unknown) };
        sent.map_err(|_| self.no_leader())?;
        let Ok(done) = timeout_at(until.into(), done_rx).await else { return Err(ConfigureError::Unknown) };
        match done {
            Ok(Ok(written)) => match written.outcome {
                Outcome::Configured(settings) => Ok(settings),
                Outcome::SettingsMoved(in_force) => {
                    Err(ConfigureError::VersionMismatch { version: in_force.index })
                }
                outcome => unreachable!("a configure command came to {outcome:?}"),
            },
            Ok(Err(WriteError::Forward { leader_id: Some(leader_id), leader_api }))
                if leader_id != self.shared.node_id =>
            {
                Err(ConfigureError::NotLeader { leader_id, leader_api })
            }
            Ok(Err(WriteError::Forward { .. })) => Err(self.no_leader()),
            Ok(Err(WriteError::Discarded)) | Err(_) => Err(ConfigureError::Unknown),
        }
    }

    fn no_leader(&self) -> ConfigureError {
        let patience = self.shared.config.heartbeat_timeout.as_millis();
        ConfigureError::NoLeader { retry_after_ms: u64::try_from(patience).unwrap_or(u64::MAX) }
    }

    /// The index a linearizable read must have applied, asked of the leader wherever it is.
    pub(crate) async fn read_index(&self) -> Result<LogIndex, ReadError> {
        let status = self.status();
        match status.leader_id {
            None => Err(ReadError::NoLeader),
            Some(id) if id == self.shared.node_id => self.own_read_index().await,
            Some(id) => self
                .shared
                .peers
                .read_index(id, self.quorum_round())
                .await
                .map_err(|e| ReadError::NoQuorum(e.to_string())),
        }
    }

    /// A ReadIndex round of this node as leader.
    pub(crate) async fn own_read_index(&self) -> Result<LogIndex, ReadError> {
        match timeout(self.quorum_round(), self.shared.core.read_index()).await {
            Ok(Ok(index)) => Ok(index),
            Ok(Err(ReadIndexError::NotLeader { .. })) => Err(ReadError::NoLeader),
            Ok(Err(e)) => Err(ReadError::NoQuorum(e.to_string())),
            Err(_) => Err(ReadError::NoQuorum("no answer in time".into())),
        }
    }

    /// openraft waits one lease for a quorum before it says that there is none.
    fn quorum_round(&self) -> Duration {
        self.shared.config.lease() + self.shared.send_timeout
    }

    /// Returns once a linearizable read may be served from this node's state.
    pub(crate) async fn linearizable(&self) -> Result<(), ReadError> {
        let index = self.read_index().await?;
        self.applied(index, self.shared.send_timeout * 5).await
    }

    /// Waits until an index is applied here.
    pub(crate) async fn applied(&self, index: LogIndex, within: Duration) -> Result<(), ReadError> {
        let mut watch = self.watch();
        let caught_up = async {
            loop {
                let applied = watch.borrow_and_update().last_applied.as_ref().map_or(0, |id| id.index());
                if index <= applied {
                    return true;
                }
                if watch.changed().await.is_err() {
                    return false;
                }
            }
        };
        match timeout(within, caught_up).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(ReadError::TimedOut),
        }
    }

    /// Asks for a snapshot at once, whatever the policy says. One that is being built is the answer too.
    pub(crate) fn ask_snapshot(&self) {
        self.shared.snapshot_asked.notify_one();
    }

    /// Completes when somebody asked; each asking once.
    pub(super) async fn snapshot_asked(&self) {
        self.shared.snapshot_asked.notified().await;
    }

    /// Purges the log up to an index, but never beyond the newest snapshot. Returns where it begins
    /// then: raft waits for what it is sending to a follower, and this waits for that, bounded.
    pub(crate) async fn purge(&self, upto: LogIndex) -> Result<LogIndex, Stopped> {
        let upto = upto.min(self.status().positions.snapshot);
        if self.status().positions.purged < upto {
            self.shared.core.purge_log(upto).await?;
        }
        let mut watch = self.watch();
        let purged =
            async { while self.status().positions.purged < upto && watch.changed().await.is_ok() {} };
        // Not in time: what is answered is how far it came.
        let _ = timeout(self.shared.send_timeout * 5, purged).await;
        Ok(self.status().positions.purged)
    }

    /// Waits until raft has taken a snapshot up to an index over; `false`: not in time.
    pub(crate) async fn snapshot_taken_over(&self, index: LogIndex) -> bool {
        let mut watch = self.watch();
        let taken =
            async { while self.status().positions.snapshot < index && watch.changed().await.is_ok() {} };
        timeout(self.shared.send_timeout * 5, taken).await.is_ok()
    }

    /// Whether a quorum confirms the leader that this node names.
    pub(crate) async fn verify_leader(&self) -> bool {
        self.read_index().await.is_ok()
    }

    /// Another node's `raft_status`, as JSON.
    pub(crate) async fn peer_status(&self, node_id: NodeId) -> Result<Bytes, PeerError> {
        self.shared.peers.status(node_id, self.shared.send_timeout).await
    }

    /// When an entry reached each stage on another node, as JSON.
    pub(crate) async fn peer_timeline(&self, node_id: NodeId, pos: LogPos) -> Result<Bytes, PeerError> {
        self.shared.peers.timeline(node_id, pos, self.shared.send_timeout).await
    }

    /// raft's own role and the other members; a shorter look than [`Handle::status`].
    pub(crate) fn standing(&self) -> (Role, Vec<NodeId>) {
        let server = self.shared.core.server_metrics();
        let server = server.borrow_watched();
        let others = server.membership_config.membership().nodes().map(|(id, _)| *id);
        (status::role_of(server.state), others.filter(|id| *id != self.shared.node_id).collect())
    }

    /// The API address of a member, if the membership names one.
    pub(crate) fn api_addr(&self, status: &Status, node_id: NodeId) -> Option<String> {
        status.members.nodes.get(&node_id).map(|m| m.api_addr.clone()).filter(|addr| !addr.is_empty())
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.status().role == Role::Leader
    }
}

/// News of this node's role; several changes between two looks are one.
pub(crate) struct RoleChanges {
    watch: ServerWatch,
}

impl RoleChanges {
    pub(crate) async fn next(&mut self) -> Result<(), Stopped> {
        self.watch.changed().await.map_err(|_| Stopped("its metrics ended".into()))
    }
}
