//! Changes of the membership: nodes that join, calls on the leader, callers that do not wait.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};

use crate::support::{
    NodeId,
    block::{Block, Way},
    cluster::{CLUSTER_ID, Cluster},
    node::Node,
    wait::{SOON, pause, wait_for},
};

/// A node that is in nobody's membership yet; the last of the cluster's.
#[track_caller]
pub(crate) fn start_joiner(cluster: &mut Cluster) -> NodeId {
    let id = cluster.nodes.len() as NodeId + 1;
    let dir = cluster.node(1).config.parent().expect("it has one").to_owned();
    let mut joiner = Node::new(id, &dir);
    joiner.write_config(CLUSTER_ID, &cluster.founders(), &cluster.settings);
    joiner.start();
    wait_for("the new node answers", SOON, || joiner.get("/livez", &[]));
    cluster.nodes.push(joiner);
    id
}

#[track_caller]
pub(crate) fn call(cluster: &Cluster, on: NodeId, method: &str, params: Value) -> Value {
    cluster.node(on).call(method, &params).unwrap_or_else(|e| panic!("{method} {params}: {e}"))
}

#[track_caller]
pub(crate) fn assert_refused(cluster: &Cluster, on: NodeId, method: &str, params: Value, reason: &str) {
    let error = cluster.node(on).call(method, &params).expect_err(reason).rpc();
    assert_eq!((error.code, error.reason()), (-32036, reason), "{method} {params}: {error}");
    assert!(error.is_refusal() && error.data["version"].is_u64(), "{error:?}");
}

pub(crate) fn add(node: &Node) -> Value {
    json!({"nodeId": node.id, "peerAddr": node.peer, "apiAddr": node.api})
}

pub(crate) fn ids(members: &Value, suffrage: &str) -> Vec<u64> {
    members[suffrage].as_array().into_iter().flatten().filter_map(|m| m["nodeId"].as_u64()).collect()
}

#[track_caller]
pub(crate) fn version(cluster: &Cluster, on: NodeId) -> u64 {
    call(cluster, on, "raft_members", Value::Null)["version"].as_u64().expect("a number")
}

#[track_caller]
pub(crate) fn one_more_block(cluster: &Cluster, leader: NodeId) {
    let height = cluster.height(leader) + 1;
    let mut conn = cluster.node(leader).connect();
    Block::new(height, "members").propose(&mut conn, Way::JsonRpc, None).acknowledged();
}

/// Sends a call and goes away after a moment without reading.
pub(crate) fn send_and_leave(node: &Node, method: &str, params: &Value, moment: Duration) {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        node.api,
        body.len()
    );
    let mut conn = node.connect();
    conn.send(head.as_bytes()).expect("it is read");
    pause(moment);
}

/// Waits until nobody's membership is joint, and all have the same.
#[track_caller]
pub(crate) fn assert_uniform(cluster: &mut Cluster) -> Value {
    let running = cluster.running();
    wait_for("no membership is joint, and all are the same", SOON, || {
        let memberships: Vec<Value> = running
            .iter()
            .map(|id| Ok(cluster.node(*id).status()?["membership"].clone()))
            .collect::<anyhow::Result<_>>()?;
        ensure!(memberships.iter().all(|m| m["joint"] == false && *m == memberships[0]), "{memberships:?}");
        Ok(memberships[0].clone())
    })
}
