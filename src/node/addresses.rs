//! Where the other nodes are dialled.

use std::{collections::BTreeMap, sync::Arc};

use crate::config;
use crate::consensus;
use crate::consensus::core::Stopped;
use crate::peer;
use crate::types::NodeId;
use crate::types::member::Members;

/// Where each other node may be dialled: as the membership says, then as this node's file does.
pub(super) fn addresses(settings: &config::Settings, members: &Members) -> BTreeMap<NodeId, Vec<String>> {
    let mut addresses: BTreeMap<NodeId, Vec<String>> = BTreeMap::new();
    let from_file = settings.cluster.peers.iter();
    for member in members.nodes.values().chain(from_file) {
        let is_named = members.nodes.is_empty() || members.nodes.contains_key(&member.node_id);
        if member.node_id == settings.node.id || !is_named {
            continue;
        }
        let known = addresses.entry(member.node_id).or_default();
        if !known.contains(&member.peer_addr) {
            known.push(member.peer_addr.clone());
        }
    }
    addresses
}

/// Follows the membership, so that a moved member is dialled at its new address.
pub(super) async fn keep_addresses(
    raft: consensus::handle::Handle,
    settings: config::Settings,
    kept: peer::Addresses,
) -> Result<(), Stopped> {
    let mut changes = raft.role_changes();
    loop {
        let newest = addresses(&settings, &raft.status().members);
        if **kept.load() != newest {
            kept.store(Arc::new(newest));
        }
        changes.next().await?;
    }
}
