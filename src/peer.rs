//! Node-to-node transport: raft's messages, questions between nodes, snapshots.
//!
//! [`Network`] owns the links to the other nodes and answers theirs. Each kind of traffic has a
//! connection of its own, so that a vote never waits behind data. What is said is written down in
//! `api/proto/blockraft/v1/peer.proto`. Knows nothing of disks and of what is replicated.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;

use crate::consensus::agreement::Evidence;
use crate::consensus::{Fitness, Handover};
use crate::raft::SnapshotData;
use crate::types::block::BLOCK_BYTES_MAX;
use crate::types::{LogIndex, NodeId, Term, position::LogPos, proto};

mod append;
mod asker;
mod client;
mod clock;
mod control;
mod convert;
mod dial;
mod flow;
mod hello;
mod install;
mod keeper;
mod link;
mod metrics;
mod network;
mod said;
mod server;
mod session;
mod snapshot;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use asker::Asker;
pub(crate) use link::LinkState;
pub(crate) use network::Network;

/// Addresses of each node, in the order to try them: its membership record, then this node's own
/// `cluster.peers`; what the node itself said comes last. Looked up at each dial, never kept by a client (safety rule 21c).
pub(crate) type Addresses = Arc<ArcSwap<BTreeMap<NodeId, Vec<String>>>>;

/// Made once with a node's data folder.
pub(crate) type Incarnation = [u8; 16];

/// Who this node is, as its data folder says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster_id: String,
    pub(crate) epoch: u64,
    pub(crate) node_id: NodeId,
    pub(crate) incarnation: Incarnation,
}

/// Times and bounds of the transport.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// `host:port` where this node says that it is reached; empty: it does not say.
    pub(crate) advertise: String,
    pub(crate) heartbeat_interval: Duration,
    /// Also how long a control connection may be silent while a ping is out.
    pub(crate) heartbeat_timeout: Duration,
    /// One attempt to look a name up, or to connect to one address.
    pub(crate) connect_timeout: Duration,
    /// A handshake, on both sides.
    pub(crate) hello_timeout: Duration,
    /// Log data out and no answer at all for so long: the connection is given up.
    pub(crate) answer_timeout: Duration,
    /// A frame begun, or bytes to be sent, and no byte moved for so long: the connection is closed.
    pub(crate) stall_timeout: Duration,
    /// A control connection on which nothing was asked for so long is closed by the answerer.
    pub(crate) idle_timeout: Duration,
    /// Neither side of a snapshot transfer was heard for so long: it is broken off, to be resumed.
    pub(crate) snapshot_timeout: Duration,
    /// Of the largest frame.
    pub(crate) frame_bytes_max: usize,
    /// Append requests on their way to one node, and their bytes; at least one request.
    pub(crate) window_requests_max: usize,
    pub(crate) window_bytes_max: usize,
    /// Admitted connections.
    pub(crate) connections_max: usize,
}

impl Config {
    /// Everything that follows from the three raft timeouts.
    pub(crate) fn new(
        heartbeat_interval: Duration,
        heartbeat_timeout: Duration,
        send_timeout: Duration,
    ) -> Self {
        Self {
            advertise: String::new(),
            heartbeat_interval,
            heartbeat_timeout,
            connect_timeout: send_timeout,
            hello_timeout: 5 * send_timeout,
            // By eye: a follower whose disk hangs for a second is slow, not gone.
            answer_timeout: 10 * send_timeout,
            stall_timeout: 25 * send_timeout,
            idle_timeout: 30 * heartbeat_timeout,
            snapshot_timeout: 50 * send_timeout,
            // The largest block, and what stands around it and beside it in one request.
            frame_bytes_max: BLOCK_BYTES_MAX as usize + (16 << 20),
            // performance.md 5.6; openraft's own server side keeps 64 in flight too.
            window_requests_max: 64,
            window_bytes_max: 4 << 20,
            // By eye: four purposes, seven members, and their reconnects, many times over.
            connections_max: 256,
        }
    }
}

/// The incarnations of other nodes, kept durably by `node` (safety rule 8).
pub(crate) trait Incarnations: Send + Sync + 'static {
    /// Called on an async task: answered from memory.
    fn known(&self, node_id: NodeId) -> Option<Incarnation>;
    /// Durable on return. Called on a blocking thread; replaces what was known.
    fn remember(&self, node_id: NodeId, incarnation: Incarnation) -> io::Result<()>;
    /// Whether this node holds neither entry nor vote: then it is in the epoch of whoever of its
    /// cluster speaks to it first (safety rule 10). Called on an async task.
    fn may_adopt_epoch(&self) -> bool {
        false
    }
    /// Durable on return. Called on a blocking thread.
    fn adopt_epoch(&self, _epoch: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The state hash at an index, as nodes compare it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HashMark {
    pub(crate) index: LogIndex,
    pub(crate) hash: [u8; 32],
}

/// What the transport tells and learns on the way; supplied by `node`. Every method is called on an
/// async task and must not block; each may be left out.
pub(crate) trait Notices: Send + Sync + 'static {
    /// The last entry of this node's log.
    fn own_last(&self) -> Option<LogPos> {
        None
    }
    /// The last entry that this node knows to be committed; nothing for a leader whose term is over, which raft refuses and
    /// which need not have it.
    fn committed_before(&self, _leader_term: Term) -> Option<LogPos> {
        None
    }
    /// A leader's log has another entry where this node's is committed, which raft would take for the same (safety rule 8).
    fn contradicted(&self, _leader_id: NodeId, _own: LogPos, _theirs: LogPos) {}
    /// A committed entry the node is known to hold: one that shows less is refused (safety rule 8).
    fn floor(&self, _node_id: NodeId) -> Option<LogPos> {
        None
    }
    /// What this leader knows the members to hold, told with its heartbeats.
    fn floors(&self) -> Vec<Floor> {
        Vec::new()
    }
    fn floors_told(&self, _floors: Vec<Floor>) {}
    /// Whether an append that carries entries can be stored: `false` while the disk is full.
    fn may_store(&self) -> bool {
        true
    }
    /// A member says that this node is in no membership up to this one (safety rule 21d).
    fn not_member(&self, _told_by: NodeId, _version: LogIndex) {}
    /// Commands the node can apply, each kind and version.
    fn commands_known(&self, _node_id: NodeId, _commands: &[(u8, u8)]) {}
    /// Whether the node said, now or once, that it does not know a command.
    fn lacks(&self, _node_id: NodeId, _kind: u8, _version: u8) -> bool {
        false
    }
    /// This node's newest state hash, told with the answer to a heartbeat.
    fn hash_mark(&self) -> Option<HashMark> {
        None
    }
    fn peer_hash_mark(&self, _node_id: NodeId, _mark: HashMark) {}
    /// What goes with this leader's heartbeats while the nodes' states differ.
    fn state_evidence(&self) -> Option<Evidence> {
        None
    }
    /// A leader says that the nodes' states differ.
    fn state_evidence_told(&self, _evidence: Evidence) {}
    /// The leader hands over, to this node or to another; told before raft is.
    fn handed_over(&self, _handover: &Handover, _is_target: bool) {}
    /// A node said how fit it is to lead, with the answer to a heartbeat of this leader's.
    fn peer_fitness(&self, _node_id: NodeId, _fitness: Fitness) {}
    /// Entries up to `last` were acknowledged by the node.
    fn replicated(&self, _node_id: NodeId, _replicated: Replicated) {}
}

/// A committed entry that a node is known to hold, in one of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Floor {
    pub(crate) node_id: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) pos: LogPos,
}

/// One append that carried entries and was acknowledged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replicated {
    pub(crate) last: LogPos,
    pub(crate) n_entries: usize,
    pub(crate) sent: std::time::Instant,
    pub(crate) acknowledged: std::time::Instant,
}

/// Where received snapshots go; implemented over the store. Every method blocks and is called on a
/// blocking thread.
pub(crate) trait SnapshotStore: Send + Sync + 'static {
    /// Begins to receive, or goes on where a transfer of the same snapshot stopped.
    fn receive(&self, manifest: &proto::SnapshotManifest) -> io::Result<Box<dyn Receiving>>;
    /// Raft was done with a received snapshot, whether or not it became the state.
    fn settled(&self, _id: &str) {}
    /// Another node found a snapshot damaged that was sent to it. Called on an async task.
    fn doubted(&self, _id: &str) {}
    /// A transfer to another node ended.
    fn sent(&self, _outcome: SendOutcome, _took: Duration) {}
    /// A transfer to another node begins or ends.
    fn sending(&self, _is_running: bool) {}
}

/// How the sending of a snapshot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SendOutcome {
    Ok,
    Failed,
    /// The receiver found it damaged.
    Corrupt,
}

/// A snapshot on its way to this node's disk. Dropped before [`Receiving::finish`]: what was
/// written stays, to be resumed.
pub(crate) trait Receiving: Send + 'static {
    /// Bytes of this file that are stored already.
    fn have(&self, file: &str) -> u64;
    /// Pieces of one file come in order, from `have` on.
    fn write_chunk(&mut self, file: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Verifies, syncs and publishes the snapshot. A damaged one is deleted:
    /// [`io::ErrorKind::InvalidData`].
    fn finish(self: Box<Self>) -> io::Result<SnapshotData>;
}
