//! The raft handle: what this node proposes, knows and decides through openraft.
//!
//! [`handle::Handle`] is given to everyone who needs raft; nobody else names openraft's API. The
//! transport is supplied by `node` as a [`Peers`].

pub(crate) mod agreement;
pub(crate) mod core;
pub(crate) mod founding;
pub(crate) mod handle;
pub(crate) mod membership;
pub(crate) mod snapshots;
pub(crate) mod status;

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;

use crate::types::{
    LogIndex, NodeId, Term,
    member::Members,
    position::{LogPos, Positions},
    proto::{FitnessGrade, LeadershipCause},
};

/// What a future of a trait object is here.
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why another node gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PeerError {
    #[error("no address is known for node {0}")]
    NoAddress(NodeId),
    #[error("node {node_id} is not reachable: {why}")]
    Unreachable { node_id: NodeId, why: String },
    /// Whoever it is that should listen there.
    #[error("nobody answers at {addr}: {why}")]
    Nobody { addr: String, why: String },
    #[error("node {node_id} gave no answer within {after:?}")]
    TimedOut { node_id: NodeId, after: Duration },
    #[error("refused: {0}")]
    Refused(String),
    /// It may be another answer in a moment.
    #[error("not yet: {0}")]
    NotYet(String),
}

/// Why a node does not take leadership over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Declined {
    /// It is catching up: worth asking again.
    NotYet(String),
    Unfit(String),
}

/// What a node without data shows while a cluster is founded, and with data says instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundingState {
    /// blake3 of the sorted founding list.
    pub(crate) list_hash: [u8; 32],
    pub(crate) has_data: bool,
}

/// Who listens at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probed {
    pub(crate) cluster_id: String,
    /// Its epoch is this node's, or it has no data and takes any.
    pub(crate) is_of_epoch: bool,
    pub(crate) node_id: NodeId,
    pub(crate) incarnation: [u8; 16],
    /// Each kind and version.
    pub(crate) known_commands: Vec<(u8, u8)>,
}

/// Questions to other nodes beside raft's own messages.
pub(crate) trait Peers: Send + Sync + 'static {
    /// The other node's `raft_status`, as JSON.
    fn status(&self, node_id: NodeId, within: Duration) -> BoxFuture<'_, Result<Bytes, PeerError>>;
    /// One ReadIndex round at the leader: the index a linearizable read must have applied.
    fn read_index(&self, leader_id: NodeId, within: Duration) -> BoxFuture<'_, Result<LogIndex, PeerError>>;
    /// What the node at the founding list's address shows.
    fn founding(&self, node_id: NodeId, within: Duration) -> BoxFuture<'_, Result<FoundingState, PeerError>>;
    /// When an entry reached each stage there, as JSON; empty: it is not remembered.
    fn timeline(
        &self,
        node_id: NodeId,
        pos: LogPos,
        within: Duration,
    ) -> BoxFuture<'_, Result<Bytes, PeerError>>;
    /// The life of a node that was admitted here first; `None`: it never was.
    fn incarnation(&self, node_id: NodeId) -> Option<[u8; 16]>;
    /// Whether a node said at connect that it does not know a command.
    fn lacks(&self, node_id: NodeId, kind: u8, version: u8) -> bool;
    /// Whoever listens there says who it is, and is not admitted (safety rule 8).
    fn probe<'a>(&'a self, addr: &'a str, within: Duration) -> BoxFuture<'a, Result<Probed, PeerError>>;
    /// One round trip. `Ok` proves that the node is reached at the addresses in force when it was asked, and
    /// is who it should be (safety rule 21c).
    fn ping(&self, node_id: NodeId, within: Duration) -> BoxFuture<'_, Result<(), PeerError>>;
    /// The other node's clock minus this one's, in microseconds, from round trips.
    fn clock_offset_us(&self, node_id: NodeId) -> Option<i64>;
    /// Whether a voter would take over now; nothing changes yet. A node of a version that does not know the
    /// question is taken to be willing.
    fn would_take_over(
        &self,
        to: NodeId,
        handover: &Handover,
        within: Duration,
    ) -> BoxFuture<'_, Result<(), PeerError>>;
    /// Rides with the transfers that follow in the same term.
    fn announce_handover(&self, handover: Handover);
    /// Asks the leader to hand over to this node. `Ok`: it told raft so, or why it refused.
    fn ask_handover(
        &self,
        leader_id: NodeId,
        ask: HandoverAsk,
        within: Duration,
    ) -> BoxFuture<'_, Result<Result<Term, HandoverRefusal>, PeerError>>;
    /// Bytes of log data given to the network for a node, but for those that are known to have left in vain; never falls.
    fn log_bytes_sent(&self, node_id: NodeId) -> u64;
    /// Completes when the node's process is found to be gone: its connection broke, and its machine says that
    /// nobody listens.
    fn gone(&self, node_id: NodeId) -> BoxFuture<'static, ()>;
}

/// Why leadership is handed over; rides with the transfer to the next leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handover {
    pub(crate) from_term: Term,
    pub(crate) from_node_id: NodeId,
    pub(crate) cause: LeadershipCause,
    pub(crate) operation_id: String,
    /// The worst fitness that is accepted of the target.
    pub(crate) accepts: FitnessGrade,
}

impl Handover {
    /// Somebody wants this very target, fit or not.
    pub(crate) fn is_forced(&self) -> bool {
        self.cause == LeadershipCause::Transfer && FitnessGrade::Fit < self.accepts
    }
}

/// A node that wants to lead in the leader's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HandoverAsk {
    pub(crate) to: NodeId,
    pub(crate) operation_id: String,
    pub(crate) within: Duration,
}

/// Why the leader did not take such a wish up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HandoverRefusal {
    /// As the JSON-RPC errors name it.
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// How fit a node is to lead, as nodes tell each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fitness {
    pub(crate) grade: FitnessGrade,
    /// What is wrong, for people; empty when it is fit.
    pub(crate) reason: String,
}

/// What this node answers to [`Peers`] of other nodes; supplied by `node`.
pub(crate) trait Answers: Send + Sync + 'static {
    fn status(&self) -> BoxFuture<'_, Bytes>;
    /// `Err` says why there is none: not the leader, or no quorum.
    fn read_index(&self) -> BoxFuture<'_, Result<LogIndex, String>>;
    fn founding(&self) -> FoundingState;
    /// When an entry reached each stage here, as JSON; empty: it is not remembered.
    fn timeline(&self, pos: LogPos) -> Bytes;
    /// Whether this node would take leadership over when asked now by the leader of `term`, which accepts no worse
    /// than `accepts`; `Err` says why not (safety rule 14).
    fn may_take_over(&self, term: Term, accepts: FitnessGrade) -> Result<(), Declined>;
    /// How fit this node is to lead.
    fn fitness(&self) -> Fitness;
    /// Another node wants to lead in this one's place. Returns once raft was told, or with why it was not.
    fn hand_over(&self, ask: HandoverAsk) -> BoxFuture<'_, Result<Term, HandoverRefusal>>;
    /// Whether this node may grant votes already (safety rule 16).
    fn may_vote(&self) -> bool;
    /// A sync of the log has been running for `leadership.stall_after`.
    fn is_sync_stuck(&self) -> bool;
    /// An append or a heartbeat of the leader of `term` was handled at this moment.
    fn leader_heard(&self, term: Term, leader_id: NodeId);
}

/// raft's own role, also when cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Leader,
    Follower,
    Candidate,
    Learner,
    Stopped,
}

/// What the leader knows of another member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerProgress {
    pub(crate) node_id: NodeId,
    pub(crate) matched: Option<LogIndex>,
    /// Leader's last − matched.
    pub(crate) lag: u64,
    /// Since the newest acknowledged heartbeat or append was sent.
    pub(crate) ack_age: Option<Duration>,
    /// Acknowledged within 2 × heartbeat_timeout.
    pub(crate) is_reachable: bool,
}

/// Everything raft knows, from one look at its metrics and one at the clock.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) role: Role,
    pub(crate) term: Term,
    /// The leader that is heard (safety rule 11); never openraft's `current_leader` alone.
    pub(crate) leader_id: Option<NodeId>,
    pub(crate) positions: Positions,
    /// Term of the last entry committed here.
    pub(crate) committed_term: Term,
    pub(crate) members: Members,
    /// Leader only: since the newest send that a quorum acknowledged. A sole voter: zero.
    pub(crate) quorum_ack_age: Option<Duration>,
    /// Leader only, one per other member.
    pub(crate) peers: Option<Vec<PeerProgress>>,
    /// The core has run once, so that the above means something.
    pub(crate) is_started: bool,
    pub(crate) is_running: bool,
}
