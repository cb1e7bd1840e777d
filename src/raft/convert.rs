//! Between openraft's types and the protobuf contract.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::machine::{Command, command::Kind};
use crate::raft::{LogId, Membership, NodeRecord, StoredMembership, Vote, log_id_of, pos_of};
use crate::types::{NodeId, member::Members, proto};

/// What a received membership lacks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConvertError {
    #[error("incarnation has {0} bytes, not 16")]
    Incarnation(usize),
    #[error("membership is not valid: {0}")]
    Membership(String),
    #[error("{0} is missing")]
    Missing(&'static str),
}

/// Kind and version of each command that this binary can apply.
pub(crate) const KNOWN_COMMANDS: [(Kind, u8); 3] =
    [(Kind::Block, 1), (Kind::Leadership, 1), (Kind::Configure, 1)];

/// A command as it was received; the caller has compared the CRC.
pub(crate) fn received_command(kind: u8, version: u8, crc: u32, payload: Bytes) -> Command {
    Command { kind: Kind::from_u8(kind), version, crc, payload, origin: None }
}

pub(crate) fn log_id_to_proto(id: &LogId) -> proto::LogId {
    pos_of(id).into()
}

pub(crate) fn log_id_from_proto(id: &proto::LogId) -> LogId {
    log_id_of((*id).into())
}

pub(crate) fn vote_to_proto(vote: &Vote) -> proto::Vote {
    proto::Vote { term: vote.leader_id.term, node_id: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn vote_from_proto(vote: &proto::Vote) -> Vote {
    let leader_id = openraft::impls::leader_id_std::LeaderId { term: vote.term, voted_for: vote.node_id };
    Vote { leader_id, committed: vote.committed }
}

pub(crate) fn node_to_proto(node_id: NodeId, node: &NodeRecord) -> proto::NodeRecord {
    proto::NodeRecord {
        node_id,
        name: node.name.clone(),
        peer_addr: node.peer_addr.clone(),
        api_addr: node.api_addr.clone(),
        incarnation: node.incarnation.map(|i| Bytes::copy_from_slice(&i)).unwrap_or_default(),
    }
}

pub(crate) fn node_from_proto(node: &proto::NodeRecord) -> Result<NodeRecord, ConvertError> {
    let incarnation = match node.incarnation.len() {
        0 => None,
        _ => Some(
            <[u8; 16]>::try_from(node.incarnation.as_ref())
                .map_err(|_| ConvertError::Incarnation(node.incarnation.len()))?,
        ),
    };
    Ok(NodeRecord {
        name: node.name.clone(),
        peer_addr: node.peer_addr.clone(),
        api_addr: node.api_addr.clone(),
        incarnation,
    })
}

pub(crate) fn membership_to_proto(m: &Membership) -> proto::Membership {
    proto::Membership {
        configs: m
            .get_joint_config()
            .iter()
            .map(|c| proto::Config { voter_ids: c.iter().copied().collect() })
            .collect(),
        nodes: m.nodes().map(|(id, node)| node_to_proto(*id, node)).collect(),
    }
}

pub(crate) fn membership_from_proto(m: &proto::Membership) -> Result<Membership, ConvertError> {
    let configs: Vec<BTreeSet<NodeId>> =
        m.configs.iter().map(|c| c.voter_ids.iter().copied().collect()).collect();
    let mut nodes = BTreeMap::new();
    for node in &m.nodes {
        nodes.insert(node.node_id, node_from_proto(node)?);
    }
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|e| ConvertError::Membership(e.to_string()))
}

pub(crate) fn stored_membership_to_proto(m: &StoredMembership) -> proto::StoredMembership {
    proto::StoredMembership {
        log_id: m.log_id().as_ref().map(log_id_to_proto),
        membership: Some(membership_to_proto(m.membership())),
    }
}

pub(crate) fn stored_membership_from_proto(
    m: &proto::StoredMembership,
) -> Result<StoredMembership, ConvertError> {
    let membership = m.membership.as_ref().ok_or(ConvertError::Missing("membership"))?;
    Ok(StoredMembership::new(m.log_id.as_ref().map(log_id_from_proto), membership_from_proto(membership)?))
}

/// The membership in the words of the API.
pub(crate) fn members_of(m: &StoredMembership) -> Members {
    let membership = m.membership();
    Members {
        version: m.log_id().as_ref().map_or(0, |id| id.index()),
        voters: membership.voter_ids().collect(),
        learners: membership.learner_ids().collect(),
        nodes: membership.nodes().map(|(id, n)| (*id, n.to_member(*id))).collect(),
        joint: 1 < membership.get_joint_config().len(),
    }
}
