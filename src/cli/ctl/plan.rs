//! From a command's words to the call that carries it out: method, params, node, and the question before it.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::cli::ctl::command::{Audit, Block, Change, Command, Members, Page, Settings, Snapshot, Transfer};
use crate::cli::ctl::render::{self, Render};
use crate::cli::exit::Failure;
use crate::client::cluster::{Target, is_leader_only};

/// Bound of a call that waits for nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// A snapshot, or a learner that catches up, takes as long as the state is large.
const PATIENCE_TO_BUILD: Duration = Duration::from_secs(60);
const PATIENCE_TO_CATCH_UP: Duration = Duration::from_secs(600);
/// Beyond the time a node was given, for its answer to arrive.
const ANSWER_MARGIN: Duration = Duration::from_secs(2);

/// One call, and what is done around it.
pub(crate) struct Call {
    pub(crate) target: Target,
    /// It changes one node: which one must have been said.
    pub(crate) is_of_one_node: bool,
    pub(crate) method: String,
    pub(crate) params: Value,
    /// Asked before it is sent.
    pub(crate) question: Option<String>,
    pub(crate) patience: Duration,
    /// Nothing changes when it is sent: no outcome is unknown.
    pub(crate) is_read: bool,
    /// Where the node does not have the method, its own `raft_status` is shown instead.
    pub(crate) or_status: bool,
    /// Shown as JSON, whatever the flags say.
    pub(crate) is_json: bool,
    pub(crate) render: Render,
}

/// Named params; those of null are left out.
pub(crate) fn params<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    let map: Map<String, Value> =
        pairs.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.to_string(), v)).collect();
    if map.is_empty() { Value::Null } else { Value::Object(map) }
}

fn millis(d: Option<Duration>) -> Value {
    d.map_or(Value::Null, |d| Value::from(d.as_millis() as u64))
}

/// Absent unless it is set.
fn flag(is_set: bool) -> Value {
    if is_set { Value::Bool(true) } else { Value::Null }
}

impl Call {
    pub(crate) fn read(method: &str, params: Value, render: Render) -> Self {
        Self {
            target: Target::Any,
            is_of_one_node: false,
            method: method.into(),
            params,
            question: None,
            patience: PATIENCE,
            is_read: true,
            or_status: false,
            is_json: false,
            render,
        }
    }

    fn act(method: &str, params: Value, render: Render) -> Self {
        let target = if is_leader_only(method) { Target::Leader } else { Target::Any };
        Self { target, is_read: false, ..Self::read(method, params, render) }
    }

    fn of_one_node(self) -> Self {
        Self { is_of_one_node: true, ..self }
    }

    fn asks(self, question: impl Into<String>) -> Self {
        Self { question: Some(question.into()), ..self }
    }

    fn asks_if(self, is_asked: bool, question: impl Into<String>) -> Self {
        if is_asked { self.asks(question) } else { self }
    }

    fn waits(self, node_waits: Option<Duration>) -> Self {
        let patience = node_waits.map_or(self.patience, |w| self.patience.max(w + ANSWER_MARGIN));
        Self { patience, ..self }
    }
}

/// The call of a command that is one call. `operation` identifies this run of the command, so that a call
/// that is sent twice acts once.
pub(crate) fn plan(command: Command, operation: &str) -> Result<Call, Failure> {
    let operation = Value::from(operation);
    Ok(match command {
        Command::Status { all: false } => Call::read("raft_status", Value::Null, render::status::one),
        Command::Status { all: true } => {
            let call = Call::read("raft_cluster", Value::Null, render::status::all);
            Call { target: Target::Informed, ..call }
        }
        Command::Why => {
            let call = Call::read("raft_cluster", Value::Null, render::why::why);
            Call { or_status: true, target: Target::Informed, ..call }
        }
        Command::Leader { verify } => {
            let render: Render =
                if verify { render::members::verified_leader } else { render::members::leader };
            // Its fence and its lease are known to itself alone.
            let call = Call::read("raft_leader", params([("verify", flag(verify))]), render);
            Call { target: Target::Leader, ..call }
        }
        Command::Members { change: None } => {
            Call::read("raft_members", Value::Null, render::members::members)
        }
        Command::Members { change: Some(change) } => members(change, operation),
        Command::Transfer(t) => transfer(&t, operation),
        Command::Resign { reason, wait } => resign(reason, wait, operation),
        Command::Elect { force } => {
            let pairs = [("force", flag(force)), ("operationId", operation)];
            Call::act("raft_triggerElection", params(pairs), render::members::election)
                .of_one_node()
                .asks("Have this node stand for election?")
        }
        Command::Pause { reason } => Call::act("raft_pause", because(reason), render::members::pause)
            .of_one_node()
            .asks("Pause this node? If it leads, it hands over."),
        Command::Resume { reason } => {
            Call::act("raft_resume", because(reason), render::members::pause).of_one_node()
        }
        Command::History { page, operation } => history(&page, operation),
        Command::Audit { verify: Some(Audit::Verify { .. }), .. } => {
            Call::read("audit_verify", Value::Null, render::records::verdict)
        }
        Command::Audit { page, verify: None } => {
            Call::read("audit_list", page_params(&page, Value::Null), render::records::audit)
        }
        Command::Settings { set: None } => {
            Call::read("raft_settings", Value::Null, render::records::settings)
        }
        Command::Settings { set: Some(Settings::Set { pairs, expected_index }) } => {
            configure(&pairs, expected_index)?
        }
        Command::Log { filter, duration } => {
            let params = params([("filter", filter.into()), ("forMs", millis(duration))]);
            Call::act("node_setLogFilter", params, render::generic).of_one_node()
        }
        Command::Block(block) => read_block(block),
        Command::Snapshot(snapshot) => snapshots(snapshot, operation),
        Command::Call { method, params } => raw(method, params.as_deref())?,
        // These are more than one call; `acts` runs them.
        Command::Watch { .. } | Command::Tail(_) | Command::Live | Command::Ready { .. } => {
            unreachable!("not one call")
        }
    })
}

fn because(reason: Option<String>) -> Value {
    params([("reason", reason.map_or(Value::Null, Value::from))])
}

fn transfer(t: &Transfer, operation: Value) -> Call {
    let pairs = [
        ("to", t.to.map_or(Value::Null, Value::from)),
        ("timeoutMs", millis(t.wait)),
        ("force", flag(t.force)),
        ("dryRun", flag(t.dry_run)),
        ("operationId", operation),
    ];
    let whom = t.to.map_or("the most caught-up fit voter".into(), |to| format!("node {to}"));
    Call::act("raft_transferLeader", params(pairs), render::members::handover)
        .asks_if(!t.dry_run, format!("Hand leadership to {whom}?"))
        .waits(t.wait)
}

fn resign(reason: Option<String>, wait: Option<Duration>, operation: Value) -> Call {
    let pairs = [
        ("reason", reason.map_or(Value::Null, Value::from)),
        ("timeoutMs", millis(wait)),
        ("operationId", operation),
    ];
    let call = Call::act("raft_resign", params(pairs), render::members::handover);
    Call { target: Target::Leader, ..call }.asks("Have the leader resign?").waits(wait)
}

fn configure(pairs: &[String], expected_index: Option<u64>) -> Result<Call, Failure> {
    let set = pairs.iter().map(|p| setting(p)).collect::<Result<Map<_, _>, _>>()?;
    let question = format!("Set {} for the whole cluster?", pairs.join(" and "));
    let index = expected_index.map_or(Value::Null, Value::from);
    let params = params([("set", Value::Object(set)), ("expectedIndex", index)]);
    Ok(Call::act("raft_configure", params, render::records::settings).asks(question))
}

fn page_params(page: &Page, operation: Value) -> Value {
    params([
        ("fromId", page.from_id.map_or(Value::Null, Value::from)),
        ("limit", page.limit.map_or(Value::Null, Value::from)),
        ("operationId", operation),
    ])
}

fn history(page: &Page, operation: Option<String>) -> Call {
    let operation = operation.map_or(Value::Null, Value::from);
    Call::read("raft_history", page_params(page, operation), render::records::history)
}

fn change_params(node_id: u64, change: &Change, operation: Value) -> Value {
    params([
        ("nodeId", node_id.into()),
        ("expectedVersion", change.expected_version.map_or(Value::Null, Value::from)),
        ("force", flag(change.force)),
        ("dryRun", flag(change.dry_run)),
        ("operationId", operation),
    ])
}

fn members(change: Members, operation: Value) -> Call {
    let show: Render = render::members::members;
    match change {
        Members::Add { node_id, peer_addr, api, wait, expected_version, force } => {
            let params = params([
                ("nodeId", node_id.into()),
                ("peerAddr", peer_addr.into()),
                ("apiAddr", api.map_or(Value::Null, Value::from)),
                ("expectedVersion", expected_version.map_or(Value::Null, Value::from)),
                ("wait", flag(wait)),
                ("force", flag(force)),
                ("operationId", operation),
            ]);
            let question = format!("Add node {node_id} although it may not be reachable?");
            Call::act("raft_addLearner", params, show)
                .asks_if(force, question)
                .waits(wait.then_some(PATIENCE_TO_CATCH_UP))
        }
        Members::Promote { node_id, change } => {
            Call::act("raft_promote", change_params(node_id, &change, operation), show).asks_if(
                change.force && !change.dry_run,
                format!("Make node {node_id} a voter even if no reachable quorum is left?"),
            )
        }
        Members::Demote { node_id, change } => {
            Call::act("raft_demote", change_params(node_id, &change, operation), show)
                .asks_if(!change.dry_run, format!("Take node {node_id}'s vote?"))
        }
        Members::Remove { node_id, change } => {
            Call::act("raft_removeMember", change_params(node_id, &change, operation), show)
                .asks_if(!change.dry_run, format!("Remove node {node_id} from the cluster?"))
        }
        Members::Update { node_id, peer, api, name, expected_version } => {
            let params = params([
                ("nodeId", node_id.into()),
                ("peerAddr", peer.map_or(Value::Null, Value::from)),
                ("apiAddr", api.map_or(Value::Null, Value::from)),
                ("name", name.map_or(Value::Null, Value::from)),
                ("expectedVersion", expected_version.map_or(Value::Null, Value::from)),
                ("operationId", operation),
            ]);
            Call::act("raft_updateMember", params, show)
        }
    }
}

fn read_block(block: Block) -> Call {
    let at = |height: u64| params([("height", height.into())]);
    match block {
        Block::Head { linearizable } => {
            let consistency = if linearizable { Value::from("linearizable") } else { Value::Null };
            Call::read("block_head", params([("consistency", consistency)]), render::block::one)
        }
        Block::Get { height } => Call::read("block_get", at(height), render::block::one),
        Block::Range { from, limit } => {
            let params = params([("fromHeight", from.into()), ("limit", limit.into())]);
            Call::read("block_range", params, render::block::range)
        }
        Block::Provenance { height } => Call::read("block_provenance", at(height), render::block::provenance),
        Block::Timeline { height } => Call::read("block_timeline", at(height), render::block::timeline),
        Block::Reconcile { height, hash, hash_at_head } => {
            let params = params([
                ("height", height.into()),
                ("hash", hash.into()),
                ("hashAtHead", hash_at_head.map_or(Value::Null, Value::from)),
            ]);
            Call::read("block_reconcile", params, render::generic)
        }
        Block::Propose(_) => unreachable!("looks at the head first; `propose` plans it"),
    }
}

/// The call that proposes a finished block.
pub(crate) fn propose(block: Value, fence: Option<u64>, wait: Option<Duration>) -> Call {
    let params = params([
        ("block", block),
        ("fence", fence.map_or(Value::Null, Value::from)),
        ("timeoutMs", millis(wait)),
    ]);
    Call::act("block_propose", params, render::block::accepted).waits(wait)
}

fn snapshots(snapshot: Snapshot, operation: Value) -> Call {
    let of = |id: String| params([("id", id.into())]);
    match snapshot {
        Snapshot::Create { no_wait } => {
            let wait = if no_wait { Value::Bool(false) } else { Value::Null };
            let call = Call::act(
                "snapshot_create",
                params([("wait", wait), ("operationId", operation)]),
                render::snapshot::created,
            );
            Call { patience: PATIENCE_TO_BUILD, ..call }
        }
        Snapshot::List => Call::read("snapshot_list", Value::Null, render::snapshot::list_all),
        Snapshot::Describe { id } => Call::read("snapshot_describe", of(id), render::snapshot::describe),
        Snapshot::Verify { id } => {
            let call = Call::read("snapshot_verify", of(id), render::records::verdict);
            Call { patience: PATIENCE_TO_BUILD, ..call }
        }
        Snapshot::Status => Call::read("snapshot_status", Value::Null, render::snapshot::status),
        Snapshot::PurgeLog { upto } => {
            let params = params([("uptoIndex", upto.map_or(Value::Null, Value::from))]);
            let question =
                "Purge this node's log? A node that is further behind than the snapshot then needs it.";
            Call::act("snapshot_purgeLog", params, render::generic).of_one_node().asks(question)
        }
        Snapshot::Export { .. } => unreachable!("not a call of JSON-RPC; `acts` runs it"),
    }
}

/// Methods that change something, and are asked about when called by name too.
const ASKED: [&str; 9] = [
    "raft_configure",
    "raft_demote",
    "raft_pause",
    "raft_promote",
    "raft_removeMember",
    "raft_resign",
    "raft_transferLeader",
    "raft_triggerElection",
    "snapshot_purgeLog",
];
/// Methods that change nothing: no failure of theirs is unknown.
const READS: [&str; 21] = [
    "audit_list",
    "audit_verify",
    "block_get",
    "block_head",
    "block_provenance",
    "block_range",
    "block_reconcile",
    "block_timeline",
    "raft_cluster",
    "raft_history",
    "raft_leader",
    "raft_members",
    "raft_settings",
    "raft_status",
    "rpc.discover",
    "rpc_discover",
    "rpc_methods",
    "snapshot_describe",
    "snapshot_list",
    "snapshot_status",
    "snapshot_verify",
];

fn raw(method: String, text: Option<&str>) -> Result<Call, Failure> {
    let params: Value = match text {
        None => Value::Null,
        Some(text) => serde_json::from_str(text).map_err(|e| Failure::usage(format!("PARAMS: {e}")))?,
    };
    if !matches!(params, Value::Null | Value::Object(_) | Value::Array(_)) {
        return Err(Failure::usage("PARAMS: a JSON object or array"));
    }
    let is_asked = ASKED.contains(&method.as_str());
    let call = Call::act(&method, params, render::generic).asks_if(is_asked, format!("Call {method}?"));
    Ok(Call { is_json: true, is_read: READS.contains(&method.as_str()), ..call })
}

/// `KEY=VALUE`, the value as TOML writes it; what is none of its values is text.
fn setting(pair: &str) -> Result<(String, Value), Failure> {
    let Some((key, text)) = pair.split_once('=') else {
        return Err(Failure::usage(format!("`{pair}` is not KEY=VALUE")));
    };
    let (key, text) = (key.trim(), text.trim());
    if key.is_empty() {
        return Err(Failure::usage(format!("`{pair}` is not KEY=VALUE")));
    }
    let value = match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        text => match text.parse::<u64>() {
            Ok(number) => number.into(),
            Err(_) => text.trim_matches('"').into(),
        },
    };
    Ok((key.into(), value))
}

#[cfg(test)]
mod tests;
