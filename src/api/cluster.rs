//! `raft_cluster`: every node's status, asked from whichever node is at hand.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use futures::future::join_all;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::api::status::{StatusJson, ms};
use crate::api::wire::api_addr_of;
use crate::api::{Api, handlers, status};
use crate::types::NodeId;
use crate::types::member::Member;

/// Guards against an answer that never comes; a peer is given `raft.send_timeout` by who asks it.
const ANSWER_WITHIN_MAX: Duration = Duration::from_secs(2);

/// When each other node gave its last good answer to this one.
///
/// A lock, held for a look or a store: a task would add a hop to every question.
#[derive(Default)]
pub(crate) struct Seen(Mutex<BTreeMap<NodeId, Instant>>);

impl Seen {
    fn put(&self, node_id: NodeId, at: Instant) {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(node_id, at);
    }

    fn get(&self, node_id: NodeId) -> Option<Instant> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get(&node_id).copied()
    }
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Cluster")]
pub(crate) struct ClusterJson {
    nodes: Vec<NodeView>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct NodeView {
    node_id: NodeId,
    name: String,
    api_addr: Option<String>,
    reachable: bool,
    /// Since its last good answer to this node; null: none yet.
    age_ms: Option<u64>,
    /// Absent while it is not reachable.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<StatusJson>")]
    status: Option<Box<RawValue>>,
    /// Why it is not reachable from this node; a handshake that is refused says for what.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Asks all members at once.
pub(crate) async fn view(api: &Api) -> ClusterJson {
    let own = &api.parts.node;
    let mut members = api.parts.consensus.status().members.nodes;
    // A node that waits to be added still tells of itself.
    members.entry(own.node_id).or_insert_with(|| Member {
        node_id: own.node_id,
        name: own.name.clone(),
        peer_addr: own.peer_advertise.clone(),
        api_addr: api.config.advertise.clone(),
    });
    let nodes = join_all(members.values().map(|member| look_at(api, member))).await;
    ClusterJson { nodes }
}

async fn look_at(api: &Api, member: &Member) -> NodeView {
    let node_id = member.node_id;
    let answer = if node_id == api.parts.node.node_id {
        Ok(handlers::to_raw(&status::of(&api.parts)))
    } else {
        match tokio::time::timeout(ANSWER_WITHIN_MAX, api.parts.consensus.peer_status(node_id)).await {
            Ok(Ok(json)) => serde_json::from_slice(&json).map_err(|e| e.to_string()),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err(format!("no answer within {ANSWER_WITHIN_MAX:?}")),
        }
    };
    let now = Instant::now();
    if answer.is_ok() {
        api.seen.put(node_id, now);
    }
    NodeView {
        node_id,
        name: member.name.clone(),
        api_addr: api_addr_of(member),
        reachable: answer.is_ok(),
        age_ms: api.seen.get(node_id).map(|at| ms(now.saturating_duration_since(at))),
        error: answer.as_ref().err().cloned(),
        status: answer.ok(),
    }
}
