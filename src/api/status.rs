//! `raft_status`: one node's whole view of itself.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::api::Parts;
use crate::api::wire::BlockRefJson;
use crate::consensus;
use crate::consensus::Role;
use crate::leadership::handle::ExecutorView;
use crate::store::snapshot::incoming::{Incoming, Stage};
use crate::types::member::Members;
use crate::types::{Height, LogIndex, NodeId, Term};

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Status")]
pub(crate) struct StatusJson {
    cluster_id: String,
    node_id: NodeId,
    name: String,
    version: &'static str,
    role: RoleJson,
    term: Term,
    /// The leader that is heard.
    leader_id: Option<NodeId>,
    /// Held by a ready leader alone.
    fence: Option<u64>,
    ready: bool,
    paused: bool,
    /// Why the node is not ready.
    blockers: Vec<BlockerJson>,
    last_log_index: LogIndex,
    committed_index: LogIndex,
    cluster_committed_index: LogIndex,
    applied_index: LogIndex,
    snapshot_index: LogIndex,
    purged_index: LogIndex,
    /// Entries committed here and not yet applied here.
    apply_lag: u64,
    /// Entries a restart would replay.
    compaction_lag: u64,
    lease: LeaseJson,
    head: Option<BlockRefJson>,
    membership: MembershipJson,
    /// On the leader alone: one per other member.
    #[serde(skip_serializing_if = "Option::is_none")]
    peers: Option<Vec<PeerJson>>,
    /// Of the executor beside this node; absent where none reported and none has to.
    #[serde(skip_serializing_if = "Option::is_none")]
    executor: Option<ExecutorJson>,
    /// The snapshot that this node receives or installs; absent where none comes in.
    #[serde(skip_serializing_if = "Option::is_none")]
    install: Option<InstallJson>,
    /// This node's file has other values than the log under `chain` or `state`.
    settings_differ: bool,
    /// This node advertises another peer address than the membership names.
    address_differs: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_exit: Option<String>,
    uptime_ms: u64,
}

/// raft's own role, also when the node is cut off.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Role")]
pub(crate) enum RoleJson {
    Leader,
    Follower,
    Candidate,
    Learner,
    Stopped,
}

impl From<Role> for RoleJson {
    fn from(role: Role) -> Self {
        match role {
            Role::Leader => Self::Leader,
            Role::Follower => Self::Follower,
            Role::Candidate => Self::Candidate,
            Role::Learner => Self::Learner,
            Role::Stopped => Self::Stopped,
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Blocker")]
struct BlockerJson {
    check: &'static str,
    since_ms: u64,
    hint: String,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Lease")]
struct LeaseJson {
    valid: bool,
    remaining_ms: u64,
    /// Null where this node does not lead.
    quorum_ack_age_ms: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Membership")]
pub(crate) struct MembershipJson {
    version: LogIndex,
    voters: Vec<NodeId>,
    learners: Vec<NodeId>,
    joint: bool,
}

impl From<&Members> for MembershipJson {
    fn from(m: &Members) -> Self {
        Self {
            version: m.version,
            voters: m.voters.iter().copied().collect(),
            learners: m.learners.iter().copied().collect(),
            joint: m.joint,
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Peer")]
struct PeerJson {
    node_id: NodeId,
    /// Null before the peer's first answer.
    matched_index: Option<LogIndex>,
    lag: u64,
    last_ack_age_ms: Option<u64>,
    reachable: bool,
}

/// How far a snapshot is on its way in.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Install")]
struct InstallJson {
    snapshot_id: String,
    /// The last entry in it.
    last_index: LogIndex,
    stage: StageJson,
    received_bytes: u64,
    size_bytes: u64,
}

/// `interrupted`: the transfer broke off, and goes on from there.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "InstallStage")]
enum StageJson {
    Receiving,
    Interrupted,
    Verifying,
    Installing,
}

impl From<Incoming> for InstallJson {
    fn from(incoming: Incoming) -> Self {
        Self {
            snapshot_id: incoming.id,
            last_index: incoming.last.index,
            stage: match incoming.stage {
                Stage::Receiving => StageJson::Receiving,
                Stage::Interrupted => StageJson::Interrupted,
                Stage::Verifying => StageJson::Verifying,
                Stage::Installing => StageJson::Installing,
            },
            received_bytes: incoming.received_bytes,
            size_bytes: incoming.size_bytes,
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Executor")]
struct ExecutorJson {
    reported: bool,
    height: Option<Height>,
    /// Blocks behind the head applied when its newest report came.
    lag: Option<u64>,
    /// It reports in time, is healthy by its own word, holds our chain and is not too far behind.
    healthy: bool,
    /// Whether it produces, where it says so.
    active: Option<bool>,
    report_age_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

fn executor(view: ExecutorView) -> Option<ExecutorJson> {
    let Some((report, age)) = view.last else {
        return view.is_required.then_some(ExecutorJson {
            reported: false,
            height: None,
            lag: None,
            healthy: false,
            active: None,
            report_age_ms: None,
            reason: None,
        });
    };
    Some(ExecutorJson {
        reported: true,
        height: Some(report.height),
        lag: Some(report.lag),
        healthy: view.is_well,
        active: report.is_active,
        report_age_ms: Some(ms(age)),
        reason: report.reason,
    })
}

pub(crate) fn of(parts: &Parts) -> StatusJson {
    // The view first: what it shows is applied, so no position read after it lies behind it.
    let view = parts.reader.view();
    let raft = parts.consensus.status();
    let leadership = parts.leadership.now();
    let p = raft.positions;
    let own = raft.members.nodes.get(&parts.node.node_id);
    StatusJson {
        cluster_id: parts.node.cluster_id.clone(),
        node_id: parts.node.node_id,
        name: parts.node.name.clone(),
        version: parts.node.version,
        role: leadership.role.into(),
        term: leadership.term,
        leader_id: leadership.leader_id,
        fence: leadership.fence,
        ready: leadership.ready,
        paused: leadership.paused,
        blockers: leadership
            .blockers
            .into_iter()
            .map(|b| BlockerJson { check: b.check, since_ms: ms(b.since), hint: b.hint })
            .collect(),
        last_log_index: p.last,
        committed_index: p.committed,
        cluster_committed_index: p.cluster_committed,
        applied_index: p.applied,
        snapshot_index: p.snapshot,
        purged_index: p.purged,
        apply_lag: p.apply_lag(),
        compaction_lag: p.compaction_lag(),
        lease: LeaseJson {
            valid: leadership.lease_valid,
            remaining_ms: ms(leadership.lease_remaining),
            quorum_ack_age_ms: leadership.quorum_ack_age.map(ms),
        },
        head: view.head.clone().map(Into::into),
        address_differs: own.is_some_and(|m| m.peer_addr != parts.node.peer_advertise),
        membership: MembershipJson::from(&raft.members),
        peers: (leadership.role == Role::Leader).then(|| peers(raft.peers.unwrap_or_default())),
        executor: executor(leadership.executor),
        install: parts.snapshots.incoming().map(Into::into),
        settings_differ: view.settings.index != 0 && view.settings.settings != parts.settings_file,
        last_exit: parts.last_exit.clone(),
        uptime_ms: ms(parts.started.elapsed()),
    }
}

fn peers(peers: Vec<consensus::PeerProgress>) -> Vec<PeerJson> {
    peers
        .into_iter()
        .map(|p| PeerJson {
            node_id: p.node_id,
            matched_index: p.matched,
            lag: p.lag,
            last_ack_age_ms: p.ack_age.map(ms),
            reachable: p.is_reachable,
        })
        .collect()
}

/// Whole milliseconds.
pub(crate) fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
