//! `block_timeline`: where one block's time went, on every node, asked from whichever is at hand.

use futures::future::join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::api::args::Args;
use crate::api::error::Fault;
use crate::api::handlers::{Answer, Call, to_raw};
use crate::api::wire::TraceId;
use crate::api::{Api, Parts};
use crate::instants::timeline::StageSpan;
use crate::store;
use crate::types::position::LogPos;
use crate::types::{Height, LogIndex, NodeId, Term};

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Timeline")]
pub(crate) struct TimelineJson {
    height: Height,
    term: Term,
    index: LogIndex,
    trace_id: Option<TraceId>,
    /// Those that remember the block.
    nodes: Vec<NodeTimelineJson>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "NodeTimeline")]
struct NodeTimelineJson {
    node_id: NodeId,
    /// The proposer's is leader, whatever it is by now.
    role: String,
    /// That node's clock minus the asked one's; null: not measured yet.
    clock_offset_us: Option<i64>,
    #[schemars(with = "Vec<StageJson>")]
    stages: Box<RawValue>,
}

/// What one node says of itself.
#[derive(Serialize, Deserialize)]
pub(crate) struct OwnTimeline {
    role: String,
    stages: Box<RawValue>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Stage")]
struct StageJson {
    stage: &'static str,
    /// Of the stage that is once for each peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_id: Option<NodeId>,
    /// Unix microseconds by that node's clock.
    start_us: u64,
    duration_us: u64,
}

impl From<StageSpan> for StageJson {
    fn from(s: StageSpan) -> Self {
        Self { stage: s.stage, peer_id: s.peer_id, start_us: s.start_us, duration_us: s.duration_us }
    }
}

/// `None`: the entry left the ring of instants, or was never in it.
pub(crate) fn own(parts: &Parts, pos: LogPos) -> Option<OwnTimeline> {
    let stages: Vec<StageJson> = parts.instants.timeline(pos)?.into_iter().map(Into::into).collect();
    let role = if parts.instants.is_proposed_here(pos) { "leader" } else { "follower" };
    Some(OwnTimeline { role: role.to_owned(), stages: to_raw(&stages) })
}

pub(crate) fn block_timeline<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move { Ok(to_raw(&view(&call.api, args.need("height")?).await?)) })
}

async fn view(api: &Api, height: Height) -> Result<TimelineJson, Fault> {
    let parts = &api.parts;
    let at = parts.reader.provenance(height)?;
    let pos = LogPos { term: at.term, index: at.index };
    let mut members: Vec<NodeId> = parts.consensus.status().members.nodes.into_keys().collect();
    if !members.contains(&parts.node.node_id) {
        members.push(parts.node.node_id);
    }
    let asked = members.into_iter().map(|node_id| of_node(parts, node_id, pos));
    let nodes: Vec<NodeTimelineJson> = join_all(asked).await.into_iter().flatten().collect();
    if nodes.is_empty() {
        let why =
            "no node keeps the times of that block any more: the newest are kept, until a node is restarted";
        return Err(Fault { message: why.into(), ..store::ReadError::NotFound { oldest: None }.into() });
    }
    let trace_id = at.trace_id.map(TraceId);
    Ok(TimelineJson { height, term: at.term, index: at.index, trace_id, nodes })
}

async fn of_node(parts: &Parts, node_id: NodeId, pos: LogPos) -> Option<NodeTimelineJson> {
    let is_own = node_id == parts.node.node_id;
    let OwnTimeline { role, stages } = if is_own {
        own(parts, pos)?
    } else {
        let json = parts.consensus.peer_timeline(node_id, pos).await.ok()?;
        // Empty, or of a node that means something else by it.
        serde_json::from_slice(&json).ok()?
    };
    let clock_offset_us = if is_own { Some(0) } else { parts.consensus.peers().clock_offset_us(node_id) };
    Some(NodeTimelineJson { node_id, role, clock_offset_us, stages })
}
