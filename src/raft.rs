//! openraft's type parameters, the node record of the membership, and the answer to a proposal.
//!
//! Nothing else: behaviour lives in `store`, `peer` and `consensus`, which alone may name openraft
//! beside this module.

use std::{fmt, io};

use openraft::{RaftTypeConfig, raft::responder::Responder, type_config::alias::LogIdOf, vote::RaftLeaderId};

use crate::machine::{Command, Outcome};
use crate::types::{NodeId, Term, member::Member, position::LogPos};

pub(crate) mod convert;
pub(crate) mod runtime;

/// One leader per term, so that the term is the fence (safety rule 22).
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct TypeConfig {}

// By hand: the macro of openraft takes no responder of one's own.
impl RaftTypeConfig for TypeConfig {
    type D = Command;
    type R = Outcome;
    type NodeId = NodeId;
    type Node = NodeRecord;
    type Term = Term;
    type LeaderId = openraft::impls::leader_id_std::LeaderId<Term, NodeId>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Command, NodeId, NodeRecord>;
    type Entry = openraft::Entry<<Self::LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = runtime::Runtime;
    type Responder<T>
        = Reply<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type LogId = LogIdOf<TypeConfig>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<NodeId, NodeRecord>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type WriteResult = openraft::raft::ClientWriteResult<TypeConfig>;

/// A member as the membership in the log names it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct NodeRecord {
    pub(crate) name: String,
    pub(crate) peer_addr: String,
    pub(crate) api_addr: String,
    /// Made with the member's data folder. `None`: any, as for founding members (safety rule 8).
    pub(crate) incarnation: Option<[u8; 16]>,
}

impl NodeRecord {
    pub(crate) fn to_member(&self, node_id: NodeId) -> Member {
        Member {
            node_id,
            name: self.name.clone(),
            peer_addr: self.peer_addr.clone(),
            api_addr: self.api_addr.clone(),
        }
    }
}

impl fmt::Display for NodeRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.peer_addr)
    }
}

/// Receives what becomes of one proposal.
///
/// Dropped without completion: the outcome is unknown.
pub(crate) struct Reply<T> {
    pub(crate) complete: Box<dyn FnOnce(T) + Send>,
}

impl<T> Responder<TypeConfig, T> for Reply<T>
where
    T: Send + 'static,
{
    fn on_complete(self, result: T) {
        (self.complete)(result);
    }
}

/// A snapshot on its way into or out of a state machine: a folder of files and its manifest, held
/// alive while somebody reads it.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotData {
    pub(crate) manifest: crate::types::proto::SnapshotManifest,
    /// The folder that holds the files named by the manifest.
    pub(crate) dir: std::path::PathBuf,
    /// Keeps a retained snapshot from being deleted while it is sent.
    pub(crate) _pin: std::sync::Arc<dyn std::any::Any + Send + Sync>,
}

/// The position of an openraft log id.
pub(crate) fn pos_of(id: &LogId) -> LogPos {
    LogPos { term: id.committed_leader_id().term, index: id.index() }
}

/// The openraft log id of a position.
pub(crate) fn log_id_of(pos: LogPos) -> LogId {
    LogId::new(openraft::vote::leader_id_std::CommittedLeaderId::new(pos.term), pos.index)
}

/// An error of the storage as openraft wants it.
pub(crate) fn storage_error(what: impl fmt::Display) -> io::Error {
    io::Error::other(what.to_string())
}
