//! The members that the settings name.

use std::collections::BTreeMap;

use crate::config::Settings;
use crate::consensus::founding::FoundingList;
use crate::raft::NodeRecord;
use crate::types::NodeId;

/// The founding members; this node is one of them whether its file lists it or not. Empty: it waits to
/// be added.
pub(super) fn founding_list(settings: &Settings) -> FoundingList {
    let mut list: BTreeMap<NodeId, NodeRecord> = settings
        .cluster
        .peers
        .iter()
        .map(|m| (m.node_id, record(&m.name, &m.peer_addr, &m.api_addr)))
        .collect();
    if !list.is_empty() {
        list.entry(settings.node.id).or_insert_with(|| own(settings));
    }
    FoundingList(list)
}

/// As [`founding_list`], but a node that is named alone, or not at all, is the only member.
pub(crate) fn members_to_be(settings: &Settings) -> FoundingList {
    let mut list = founding_list(settings);
    list.0.entry(settings.node.id).or_insert_with(|| own(settings));
    list
}

fn own(settings: &Settings) -> NodeRecord {
    record(&settings.node.name, &settings.peer.advertise, &settings.api.advertise)
}

fn record(name: &str, peer: &str, api: &str) -> NodeRecord {
    NodeRecord {
        name: name.to_owned(),
        peer_addr: peer.to_owned(),
        api_addr: api.to_owned(),
        incarnation: None,
    }
}
