//! `raft_addLearner`, `raft_promote`, `raft_demote`, `raft_removeMember`, `raft_updateMember`.
//!
//! What a change means and whether it may be made is for [`crate::consensus::membership`]; in here it is
//! taken from parameters and told, and a leader that goes itself gives its leadership up around it.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::api::args::{Args, Param};
use crate::api::control::{self, OPERATION_ID};
use crate::api::error::Fault;
use crate::api::handlers::{Answer, Call, to_raw};
use crate::api::wire::MembersJson;
use crate::consensus::membership::changer::{Changed, Prepared};
use crate::consensus::membership::{Change, Request};
use crate::leadership::leave;
use crate::leadership::task::operation_id;
use crate::types::{LogIndex, NodeId};

/// A leader that leaves waits so long for what is in flight. By eye: far above any proposal's wait, and below
/// the patience of a client.
const DRAINED_WITHIN: Duration = Duration::from_secs(2);

const NODE_ID: Param = Param::required::<u64>("nodeId", "The node.");
const EXPECTED: Param =
    Param::optional::<u64>("expectedVersion", "Refuse when the membership has another version.");
const FORCE: Param =
    Param::optional::<bool>("force", "Also when no quorum of reachable voters would be left.");
const DRY_RUN: Param = Param::optional::<bool>(control::DRY_RUN, "Only say what would be left.");

pub(crate) const ADD_PARAMS: &[Param] = &[
    Param::required::<u64>("nodeId", "The new node's id, 1 to 2^53 - 1."),
    Param::required::<String>("peerAddr", "host:port where the others reach it."),
    Param::optional::<String>("apiAddr", "host:port of its API."),
    EXPECTED,
    Param::optional::<bool>("wait", "Answer only once it has caught up."),
    Param::optional::<bool>("force", "Also when it does not answer."),
    OPERATION_ID,
];
pub(crate) const VOTE_PARAMS: &[Param] = &[NODE_ID, EXPECTED, FORCE, DRY_RUN, OPERATION_ID];
pub(crate) const UPDATE_PARAMS: &[Param] = &[
    NODE_ID,
    Param::optional::<String>("peerAddr", "host:port; dialled first."),
    Param::optional::<String>("apiAddr", "host:port."),
    Param::optional::<String>("name", "1 to 63 of a-z, 0-9 and -; unique."),
    EXPECTED,
    OPERATION_ID,
];

/// What a change would leave; nothing was changed.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "MembershipOutlook")]
pub(crate) struct OutlookJson {
    dry_run: bool,
    /// Of the membership that was looked at.
    version: LogIndex,
    /// Voters that would have to agree.
    quorum: u64,
    /// Voters that could fail.
    tolerance: u64,
    /// Of the voters: how many are heard of now.
    reachable: u64,
    voter_ids: Vec<NodeId>,
    learner_ids: Vec<NodeId>,
}

/// The members behind the change; of a dry run what it would leave.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "MembersOrOutlook")]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) enum ChangedJson {
    Members(MembersJson),
    Outlook(OutlookJson),
}

pub(crate) fn add_learner<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let change = Change::AddLearner {
            node_id: args.need("nodeId")?,
            peer_addr: args.need("peerAddr")?,
            api_addr: args.get("apiAddr")?,
        };
        let node_id = change.node_id();
        let wait = args.get::<bool>("wait")? == Some(true);
        let request = Request {
            change,
            expected: args.get("expectedVersion")?,
            force: args.get::<bool>("force")? == Some(true),
        };
        let changer = &call.api.parts.changer;
        let changed = changer.prepare(&request).await?.commit(call.operation_id.clone()).await?;
        call.note(None, Some(changed.members.version));
        if wait {
            changer.caught_up(node_id, changed.last).await?;
        }
        Ok(to_raw(&MembersJson::from(&changed.members)))
    })
}

pub(crate) fn promote<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move { change(call, &args, Change::Promote { node_id: args.need("nodeId")? }).await })
}

pub(crate) fn demote<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move { change(call, &args, Change::Demote { node_id: args.need("nodeId")? }).await })
}

pub(crate) fn remove<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move { change(call, &args, Change::Remove { node_id: args.need("nodeId")? }).await })
}

async fn change(call: &Call, args: &Args<'_>, change: Change) -> Result<Box<RawValue>, Fault> {
    let request = Request {
        change,
        expected: args.get("expectedVersion")?,
        force: args.get::<bool>("force")? == Some(true),
    };
    let is_dry = args.get::<bool>(control::DRY_RUN)? == Some(true);
    let prepared = call.api.parts.changer.prepare(&request).await?;
    if is_dry {
        call.note(None, Some(prepared.version()));
        return Ok(to_raw(&outlook(&prepared)));
    }
    let changed = match prepared.takes_own_vote() {
        true => leave(call, prepared).await?,
        false => prepared.commit(call.operation_id.clone()).await?,
    };
    call.note(None, Some(changed.members.version));
    Ok(to_raw(&MembersJson::from(&changed.members)))
}

fn outlook(prepared: &Prepared) -> OutlookJson {
    let (voter_ids, learner_ids) = prepared.behind();
    let outlook = prepared.outlook();
    OutlookJson {
        dry_run: true,
        version: prepared.version(),
        quorum: outlook.quorum as u64,
        tolerance: outlook.tolerance as u64,
        reachable: outlook.reachable as u64,
        voter_ids,
        learner_ids,
    }
}

pub(crate) fn update<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let change = Change::Update {
            node_id: args.need("nodeId")?,
            peer_addr: args.get("peerAddr")?,
            api_addr: args.get("apiAddr")?,
            name: args.get("name")?,
        };
        let node_id = change.node_id();
        let request = Request { change, expected: args.get("expectedVersion")?, force: false };
        let changer = &call.api.parts.changer;
        let prepared = changer.prepare(&request).await?;
        let has_moved = prepared.moves_another();
        let changed = prepared.commit(call.operation_id.clone()).await?;
        call.note(None, Some(changed.members.version));
        if has_moved {
            // The sitting leader has redialled: else it would go on at the old address for ever.
            changer.reached(node_id).await?;
        }
        Ok(to_raw(&MembersJson::from(&changed.members)))
    })
}

/// The leader's own vote is taken: its fence goes first, then what is in flight is answered, then this very
/// leader commits the change, and hands over once that is answered (design 11).
async fn leave(call: &Call, prepared: Prepared) -> Result<Changed, Fault> {
    let parts = &call.api.parts;
    parts.leadership.set_leaving(true);
    if tokio::time::timeout(DRAINED_WITHIN, parts.proposals.drained()).await.is_err() {
        tracing::warn!(in_flight = parts.proposals.in_flight(), "leaving with proposals unanswered");
    }
    match prepared.commit(call.operation_id.clone()).await {
        Ok(changed) => {
            let (leadership, operation) = (parts.leadership.clone(), call.operation_id.clone());
            let operation = operation.unwrap_or_else(operation_id);
            call.api.tasks.spawn(async move {
                leave::hand_over(&leadership, operation).await;
                leadership.set_leaving(false);
            });
            Ok(changed)
        }
        Err(error) => {
            parts.leadership.set_leaving(false);
            Err(error.into())
        }
    }
}
