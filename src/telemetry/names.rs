//! Names of spans and of their attributes, all of them.
//!
//! Where OpenTelemetry's conventions have a name it is theirs.

/// The instrumentation scope of every span.
pub(crate) const SCOPE: &str = "blockraft";

pub(crate) mod span {
    pub(crate) const PROPOSE: &str = "block.propose";
    pub(crate) const APPLY: &str = "block.apply";
    pub(crate) const DELIVER: &str = "block.deliver";
    pub(crate) const QUEUE: &str = "raft.queue";
    pub(crate) const APPEND: &str = "raft.append";
    pub(crate) const REPLICATE: &str = "raft.replicate";
    pub(crate) const COMMIT: &str = "raft.commit";
    pub(crate) const ELECTION: &str = "raft.election";
    pub(crate) const HANDOVER: &str = "raft.handover";
    pub(crate) const SNAPSHOT_BUILD: &str = "snapshot.build";
    pub(crate) const SNAPSHOT_INSTALL: &str = "snapshot.install";
    pub(crate) const MEMBERSHIP_CHANGE: &str = "membership.change";
    pub(crate) const RECOVER: &str = "node.recover";
    /// A JSON-RPC call of a method that nobody registered.
    pub(crate) const UNKNOWN_CALL: &str = "jsonrpc";
    /// A JSON-RPC batch.
    pub(crate) const BATCH: &str = "POST /";
}

pub(crate) const TERM: &str = "raft.term";
pub(crate) const INDEX: &str = "raft.index";
pub(crate) const INDEX_FIRST: &str = "raft.index.first";
pub(crate) const INDEX_LAST: &str = "raft.index.last";
pub(crate) const NODE_ID: &str = "raft.node.id";
pub(crate) const ROLE: &str = "raft.role";
pub(crate) const REPLAY: &str = "raft.replay";
pub(crate) const PEER_ID: &str = "raft.peer.id";
/// This node's clock minus that of the node which proposed the block, in microseconds.
pub(crate) const CLOCK_OFFSET_US: &str = "raft.clock_offset_us";
pub(crate) const SYNC_US: &str = "raft.sync.duration_us";
pub(crate) const SYNC_ENTRIES: &str = "raft.sync.batch_entries";

pub(crate) const HEIGHT: &str = "block.height";
pub(crate) const HEIGHT_FIRST: &str = "block.height.first";
pub(crate) const HEIGHT_LAST: &str = "block.height.last";
pub(crate) const HASH: &str = "block.hash";
pub(crate) const BYTES: &str = "block.bytes";
pub(crate) const OUTCOME: &str = "outcome";
pub(crate) const SUBSCRIBERS: &str = "subscribers";
pub(crate) const DELIVERED: &str = "delivered";
pub(crate) const DROPPED: &str = "dropped";

pub(crate) const MEMBERSHIP_CHANGE: &str = "raft.membership.change";
/// Whom a change of membership is about.
pub(crate) const MEMBERSHIP_NODE_ID: &str = "raft.membership.node.id";
pub(crate) const VOTERS: &str = "raft.voters";

/// Why an election was held.
pub(crate) const TRIGGER: &str = "raft.election.trigger";
pub(crate) const ROUNDS: &str = "raft.election.rounds";
pub(crate) const HEARTBEAT_AGE_MS: &str = "raft.last_heartbeat_age_ms";
pub(crate) const SYNC_IN_PROGRESS_MS: &str = "raft.sync_in_progress_ms";
pub(crate) const STALL_MS: &str = "runtime.stall_ms";
pub(crate) const CLOCK_JUMP_MS: &str = "runtime.clock_jump_ms";

/// Of a hand-over.
pub(crate) const NEW_TERM: &str = "raft.handover.new_term";
pub(crate) const CAUSE: &str = "raft.handover.cause";
pub(crate) const REASON: &str = "raft.handover.reason";
pub(crate) const OPERATION_ID: &str = "operation.id";

pub(crate) const LAST_EXIT: &str = "node.last_exit";
pub(crate) const REPLAYED_ENTRIES: &str = "raft.replayed_entries";

pub(crate) const RPC_SYSTEM: &str = "rpc.system.name";
pub(crate) const RPC_METHOD: &str = "rpc.method";
pub(crate) const RPC_METHOD_ORIGINAL: &str = "rpc.method_original";
/// The new name; the conventions' crate still has the old one.
pub(crate) const RPC_STATUS: &str = "rpc.status_code";
pub(crate) const RPC_VERSION: &str = "jsonrpc.protocol.version";
pub(crate) const RPC_REQUEST_ID: &str = "jsonrpc.request.id";
pub(crate) const RPC_CALLS: &str = "jsonrpc.batch.calls";
pub(crate) const ERROR_TYPE: &str = "error.type";
pub(crate) const HTTP_METHOD: &str = "http.request.method";
pub(crate) const HTTP_ROUTE: &str = "http.route";
pub(crate) const HTTP_STATUS: &str = "http.response.status_code";

/// Of the resource.
pub(crate) const SERVICE_NAME: &str = "service.name";
pub(crate) const SERVICE_NAMESPACE: &str = "service.namespace";
pub(crate) const SERVICE_VERSION: &str = "service.version";
pub(crate) const SERVICE_INSTANCE: &str = "service.instance.id";
pub(crate) const CLUSTER_ID: &str = "blockraft.cluster.id";
