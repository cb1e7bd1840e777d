//! Who belongs to the cluster, and how that is changed (design 5, safety rule 21).
//!
//! [`plan`] decides, from one look at the membership and at who is heard; [`Changer`] asks the target who it
//! is, writes, and finishes what a dead leader left joint. A change is prepared, which checks everything,
//! and then committed: who removes the leader itself withdraws its fence in between.

pub(crate) mod changer;
pub(crate) mod plan;
pub(crate) mod standing;

pub(crate) type Changer = changer::Changer;

use crate::types::{LogIndex, NodeId};

/// What is to become of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    AddLearner { node_id: NodeId, peer_addr: String, api_addr: Option<String> },
    Promote { node_id: NodeId },
    Demote { node_id: NodeId },
    Remove { node_id: NodeId },
    Update { node_id: NodeId, peer_addr: Option<String>, api_addr: Option<String>, name: Option<String> },
}

impl Change {
    pub(crate) fn node_id(&self) -> NodeId {
        match self {
            Self::AddLearner { node_id, .. }
            | Self::Promote { node_id }
            | Self::Demote { node_id }
            | Self::Remove { node_id }
            | Self::Update { node_id, .. } => *node_id,
        }
    }

    /// As the history and the spans name it.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::AddLearner { .. } => "addLearner",
            Self::Promote { .. } => "promote",
            Self::Demote { .. } => "demote",
            Self::Remove { .. } => "removeMember",
            Self::Update { .. } => "updateMember",
        }
    }
}

/// A change and under what conditions it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) change: Change,
    /// Only if the membership still has this version.
    pub(crate) expected: Option<LogIndex>,
    /// Also where no reachable quorum is left, or the new member does not answer.
    pub(crate) force: bool,
}

/// Why the membership was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error("this node does not lead")]
    NotLeader { leader_id: NodeId, leader_api: Option<String> },
    #[error("no leader is known")]
    NoLeader { retry_after_ms: u64 },
    /// A parameter, and what is wrong with it.
    #[error("{param} {what}")]
    Invalid { param: &'static str, what: String },
    #[error("{why}")]
    Refused { reason: Reason, why: String, version: LogIndex },
    /// It may have happened.
    #[error("{why}")]
    Unknown { why: String },
}

/// The closed set of what keeps a change from being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    VersionMismatch,
    QuorumRisk,
    NotMember,
    AlreadyMember,
    NotVoter,
    NotCaughtUp,
    Unreachable,
    InProgress,
    UpgradeNeeded,
}

/// The membership behind a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outlook {
    /// Voters that must agree.
    pub(crate) quorum: usize,
    /// Voters that may fail.
    pub(crate) tolerance: usize,
    /// Voters that are heard of now.
    pub(crate) reachable: usize,
}
