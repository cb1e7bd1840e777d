//! openraft behind one trait, so that nobody else carries the type of its state machine.

use openraft::{
    ChangeMembers, RaftNetworkFactory, RaftTypeConfig, ReadPolicy,
    errors::{
        ChangeMembershipError, ClientWriteError, Fatal, InitializeError, LinearizableReadError,
        PreconditionFailed, RaftError,
    },
    metrics::{RaftMetrics, RaftServerMetrics},
    network::NetSnapshot,
    raft::Precondition,
    storage::{RaftLogStorage, RaftStateMachine},
    type_config::alias::WatchReceiverOf,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::consensus::BoxFuture;
use crate::machine::Command;
use crate::raft::{LogId, NodeRecord, Reply, StoredMembership, TypeConfig, WriteResult, runtime};
use crate::types::{LogIndex, NodeId};

pub(crate) type Metrics = RaftMetrics<TypeConfig>;
pub(crate) type MetricsWatch = WatchReceiverOf<TypeConfig, Metrics>;
pub(crate) type ServerWatch = WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>;

/// openraft's core has stopped; it does not start again in this process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("raft has stopped: {0}")]
pub(crate) struct Stopped(pub(crate) String);

impl From<Fatal<TypeConfig>> for Stopped {
    fn from(fatal: Fatal<TypeConfig>) -> Self {
        Self(fatal.to_string())
    }
}

/// Why the leader could not be confirmed by a quorum.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadIndexError {
    #[error("this node does not lead")]
    NotLeader { leader_id: Option<NodeId> },
    #[error("no quorum answered")]
    NoQuorum,
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why openraft did not change the membership. But for `is_first` and what openraft says before it appends
/// anything, the first of two entries may have been committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChangeFailed {
    Forward,
    InProgress,
    /// The membership is not the one that was to be changed; `is_first`: nothing was appended.
    Moved {
        is_first: bool,
    },
    Invalid(String),
    Discarded,
}

/// What this program needs of openraft.
pub(crate) trait Core: Send + Sync + 'static {
    fn metrics(&self) -> MetricsWatch;
    /// Changes with the role, the vote, the leader and the membership alone.
    fn server_metrics(&self) -> ServerWatch;
    /// Hands a command to raft. `reply` learns what becomes of it, also when it is refused
    /// (safety rule 20: a write without a responder answers Ok on a follower).
    fn write(&self, command: Command, reply: Reply<WriteResult>) -> BoxFuture<'_, Result<(), Stopped>>;
    /// One ReadIndex round: never the lease (safety rule 19).
    fn read_index(&self) -> BoxFuture<'_, Result<LogIndex, ReadIndexError>>;
    fn is_initialized(&self) -> BoxFuture<'_, Result<bool, Stopped>>;
    /// `Ok(false)`: the cluster had been founded already.
    fn initialize(&self, members: BTreeMap<NodeId, NodeRecord>) -> BoxFuture<'_, Result<bool, Stopped>>;
    fn trigger_snapshot(&self) -> BoxFuture<'_, Result<(), Stopped>>;
    fn purge_log(&self, upto: LogIndex) -> BoxFuture<'_, Result<(), Stopped>>;
    /// `to` must be a voter other than this node: openraft checks nothing (safety rule 13).
    fn transfer_leader(&self, to: NodeId) -> BoxFuture<'_, Result<(), Stopped>>;
    /// Changes the membership whose log id is `base`, in one entry or, where voters change, in two. The
    /// membership behind it. Dropping the future may leave it joint (safety rule 21a).
    fn change_membership(
        &self,
        change: ChangeMembers<NodeId, NodeRecord>,
        keeps_removed: bool,
        base: Option<LogId>,
    ) -> BoxFuture<'_, Result<Result<StoredMembership, ChangeFailed>, Stopped>>;
    /// A leader that its committed membership does not name steps down.
    fn refresh_server_state(&self) -> BoxFuture<'_, Result<(), Stopped>>;
    /// Whether this node may stand for election by its timer.
    fn set_may_stand(&self, may: bool);
    /// Stands for election at once, by a round of pre-votes: nothing happens while a lease holds. Goes past
    /// [`Core::set_may_stand`] (safety rule 14).
    fn elect(&self) -> BoxFuture<'_, Result<(), Stopped>>;
    /// Whether this node sends heartbeats while it leads.
    fn set_heartbeats(&self, on: bool);
    /// Returns when everything this node knew as committed before it started is applied.
    fn wait_for_recovery(&self, within: Duration) -> BoxFuture<'_, bool>;
    fn shutdown(&self) -> BoxFuture<'_, ()>;
}

impl<SM> Core for openraft::Raft<TypeConfig, SM>
where
    SM: RaftStateMachine<TypeConfig>,
{
    fn metrics(&self) -> MetricsWatch {
        Self::metrics(self)
    }

    fn server_metrics(&self) -> ServerWatch {
        Self::server_metrics(self)
    }

    fn write(&self, command: Command, reply: Reply<WriteResult>) -> BoxFuture<'_, Result<(), Stopped>> {
        Box::pin(async move { Ok(self.client_write_ff(command, Some(reply)).await?) })
    }

    fn read_index(&self) -> BoxFuture<'_, Result<LogIndex, ReadIndexError>> {
        Box::pin(async move {
            match self.get_read_linearizer(ReadPolicy::ReadIndex).await {
                Ok(linearizer) => Ok(linearizer.read_log_id().log_id().index()),
                Err(RaftError::Fatal(fatal)) => Err(ReadIndexError::Stopped(fatal.into())),
                Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(f))) => {
                    Err(ReadIndexError::NotLeader { leader_id: f.leader_id })
                }
                Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                    Err(ReadIndexError::NoQuorum)
                }
            }
        })
    }

    fn is_initialized(&self) -> BoxFuture<'_, Result<bool, Stopped>> {
        Box::pin(async move { Ok(Self::is_initialized(self).await?) })
    }

    fn initialize(&self, members: BTreeMap<NodeId, NodeRecord>) -> BoxFuture<'_, Result<bool, Stopped>> {
        Box::pin(async move {
            match Self::initialize(self, members).await {
                Ok(()) => Ok(true),
                Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(false),
                Err(RaftError::APIError(e)) => Err(Stopped(e.to_string())),
                Err(RaftError::Fatal(fatal)) => Err(fatal.into()),
            }
        })
    }

    fn trigger_snapshot(&self) -> BoxFuture<'_, Result<(), Stopped>> {
        Box::pin(async move { Ok(self.trigger().snapshot().await?) })
    }

    fn purge_log(&self, upto: LogIndex) -> BoxFuture<'_, Result<(), Stopped>> {
        Box::pin(async move { Ok(self.trigger().purge_log(upto).await?) })
    }

    fn transfer_leader(&self, to: NodeId) -> BoxFuture<'_, Result<(), Stopped>> {
        Box::pin(async move { Ok(self.trigger().transfer_leader(to).await?) })
    }

    fn change_membership(
        &self,
        change: ChangeMembers<NodeId, NodeRecord>,
        keeps_removed: bool,
        base: Option<LogId>,
    ) -> BoxFuture<'_, Result<Result<StoredMembership, ChangeFailed>, Stopped>> {
        Box::pin(async move {
            let precondition = Precondition::LastMembershipLogId { last_membership_log_id: base };
            match self.change_membership_if(change, keeps_removed, [precondition]).await {
                Ok(written) => {
                    let membership = written.membership.expect("an entry of membership has one");
                    Ok(Ok(StoredMembership::new(Some(written.log_id), membership)))
                }
                Err(RaftError::Fatal(fatal)) => Err(fatal.into()),
                Err(RaftError::APIError(error)) => Ok(Err(change_failed(error, base))),
            }
        })
    }

    fn refresh_server_state(&self) -> BoxFuture<'_, Result<(), Stopped>> {
        Box::pin(async move { Ok(self.trigger().refresh_server_state(None, None).await?) })
    }

    fn set_may_stand(&self, may: bool) {
        self.runtime_config().elect(may);
    }

    fn elect(&self) -> BoxFuture<'_, Result<(), Stopped>> {
        Box::pin(async move { Ok(self.trigger().elect(true).await?) })
    }

    fn set_heartbeats(&self, on: bool) {
        self.runtime_config().heartbeat(on);
    }

    fn wait_for_recovery(&self, within: Duration) -> BoxFuture<'_, bool> {
        Box::pin(async move { Self::wait_for_recovery(self, Some(within)).await.is_ok() })
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Err(e) = Self::shutdown(self).await {
                tracing::warn!(error = %e, "raft did not stop cleanly");
            }
        })
    }
}

fn change_failed(error: ClientWriteError<TypeConfig>, base: Option<LogId>) -> ChangeFailed {
    match error {
        ClientWriteError::ForwardToLeader(_) => ChangeFailed::Forward,
        ClientWriteError::LogEntryDiscarded(_) => ChangeFailed::Discarded,
        ClientWriteError::PreconditionFailed(PreconditionFailed::LastMembershipLogIdMismatch {
            expected,
            ..
        }) => ChangeFailed::Moved { is_first: expected == base },
        ClientWriteError::PreconditionFailed(_) => ChangeFailed::Moved { is_first: false },
        ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => {
            ChangeFailed::InProgress
        }
        ClientWriteError::ChangeMembershipError(error) => ChangeFailed::Invalid(error.to_string()),
    }
}

/// openraft with a state machine.
pub(crate) type Raft<SM> = openraft::Raft<TypeConfig, SM>;

/// Recovers raft from its log and state; nothing runs before [`openraft::Raft::run`].
pub(crate) async fn build<N, LS, SM>(
    node_id: NodeId,
    config: &Config,
    network: N,
    log: LS,
    machine: SM,
) -> Result<Raft<SM>, Stopped>
where
    N: RaftNetworkFactory<TypeConfig>,
    N::Network: NetSnapshot<TypeConfig, SnapshotData = SM::SnapshotData>,
    LS: RaftLogStorage<TypeConfig>,
    SM: RaftStateMachine<TypeConfig>,
{
    runtime::tick_for(config.heartbeat_interval);
    let config = config.to_openraft().map_err(|e| Stopped(format!("the settings are refused: {e}")))?;
    Ok(openraft::Raft::build(node_id, Arc::new(config), network, log, machine).await?)
}

/// openraft's configuration out of ours (design 10 says how the timeouts map).
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) cluster_id: String,
    /// Made with this node's data folder.
    pub(crate) incarnation: [u8; 16],
    pub(crate) heartbeat_interval: Duration,
    /// A follower's patience is drawn from it to 1.5 × it.
    pub(crate) heartbeat_timeout: Duration,
}

impl Config {
    /// openraft's lease.
    pub(crate) fn lease(&self) -> Duration {
        self.heartbeat_timeout * 3 / 4
    }

    /// Lower bound of the drawn part of a follower's patience.
    pub(crate) fn election_min(&self) -> Duration {
        self.heartbeat_timeout / 4
    }

    pub(crate) fn to_openraft(&self) -> Result<openraft::Config, openraft::ConfigError> {
        let millis = |d: Duration| d.as_millis() as u64;
        let config = openraft::Config {
            cluster_name: self.cluster_id.clone(),
            // In whole milliseconds too it is above the interval, as the settings are.
            election_timeout_min: millis(self.election_min()).max(millis(self.heartbeat_interval) + 1),
            election_timeout_max: millis(self.lease()),
            heartbeat_interval: millis(self.heartbeat_interval),
            heartbeat_min_interval: Some(0),
            max_payload_entries: 1_024,
            max_append_entries: Some(4_096),
            api_batch_capacity: 4_096,
            api_batch_linger_ms: 0,
            // A full one blocks the core, heartbeats included: proposals are refused by lag before.
            state_machine_channel_size: Some(16_384),
            // Policy and purge are ours (safety rules 29 and 30).
            snapshot_policy: openraft::SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            broadcast_submitted_on_append: Some(true),
            enable_pre_vote: Some(true),
            // Safety rule 1: a leader that was killed before its own sync must not lead on.
            enable_leader_restore: Some(false),
            // Safety rule 12: a leader that hears no answers goes silent.
            quorum_loss_probe_interval: Some(2 * millis(self.lease())),
            // Safety rule 14: a removed leader hands over by our own rules.
            removed_leader_step_down: openraft::StepDownPolicy::Never,
            backoff: "10ms 20ms 40ms ..200ms".into(),
            ..openraft::Config::default()
        }
        .validate()?;
        assert_eq!(config.enable_leader_restore, Some(false), "safety rule 1");
        Ok(config)
    }
}

const _: fn() = || {
    fn leader_ids_are_terms<C: RaftTypeConfig<Term = u64>>() {}
    leader_ids_are_terms::<TypeConfig>();
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Safety rules 1, 12, 14, 22, 26, 29 and 30: each is a default of openraft that breaks a promise.
    #[test]
    fn openraft_is_told_what_safety_asks_for() {
        let ms = Duration::from_millis;
        let config = Config {
            cluster_id: "c".into(),
            incarnation: [0; 16],
            heartbeat_interval: ms(50),
            heartbeat_timeout: ms(350),
        };
        let told = config.to_openraft().unwrap();
        assert_eq!(told.enable_leader_restore, Some(false));
        // A follower's patience is the lease and something drawn up to it: 350 to 525 ms.
        assert_eq!((told.election_timeout_min, told.election_timeout_max), (87, 262));
        assert_eq!(told.quorum_loss_probe_interval, Some(524));
        assert!(matches!(told.removed_leader_step_down, openraft::StepDownPolicy::Never));
        assert_eq!(told.enable_pre_vote, Some(true));
        assert_eq!(told.backoff, "10ms 20ms 40ms ..200ms");
        assert!(matches!(told.snapshot_policy, openraft::SnapshotPolicy::Never));
        assert_eq!(told.max_in_snapshot_log_to_keep, u64::MAX);
        for (interval, timeout) in [(50, 201), (50, 203), (5, 21), (100, 401)] {
            let config =
                Config { heartbeat_interval: ms(interval), heartbeat_timeout: ms(timeout), ..config.clone() };
            config.to_openraft().unwrap_or_else(|e| panic!("{interval} and {timeout} ms: {e}"));
        }
    }
}
