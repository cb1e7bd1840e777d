//! Carries commands out: asks, calls, prints.

use std::time::Duration;

use serde_json::{Value, value::RawValue};
use tokio::time::Instant;

use crate::cli::ctl::command::{Audit, Block, Command, Snapshot};
use crate::cli::ctl::confirm::confirm;
use crate::cli::ctl::plan::{self, Call, plan};
use crate::cli::ctl::{Context, curl, export, live, probe, propose, render, watch};
use crate::cli::exit::{self, Failure};
use crate::cli::out;
use crate::client::cluster::{Cluster, ClusterError, Target};
use crate::client::endpoint::Endpoint;
use crate::client::rpc;

/// For `--curl`: how long to look for the node that the line should name.
const CURL_PATIENCE: Duration = Duration::from_millis(800);
const METHOD_NOT_FOUND: i64 = -32601;

pub(crate) async fn run(cx: &Context, command: Command) -> Result<u8, Failure> {
    let operation = format!("{:016x}", rand::random::<u64>());
    match command {
        Command::Live => probe::live(cx).await,
        Command::Ready { wait } => probe::ready(cx, wait).await,
        Command::Watch(asked) if live::is_wanted(cx, &asked) => live::run(cx).await,
        Command::Watch(asked) => watch::leadership(cx, asked.from_id).await,
        Command::Tail(tail) => watch::applied(cx, &tail).await,
        Command::Block(Block::Propose(block)) => propose::run(cx, block).await,
        Command::Block(Block::Range { from, limit }) => range(cx, from, limit).await,
        Command::Leader { .. } if cx.flags.node.is_none() && !cx.flags.curl => {
            leader(cx, &plan(command, &operation)?).await
        }
        Command::Snapshot(Snapshot::Export { id, output }) => export::run(cx, id, output).await,
        Command::History { ref page, .. } if page.all => {
            gather(cx, plan(command, &operation)?, "events").await
        }
        Command::Audit { ref page, verify: None } if page.all => {
            gather(cx, plan(command, &operation)?, "records").await
        }
        Command::Audit { verify: Some(Audit::Verify { all: true }), .. } => {
            verify_all(cx, &plan(command, &operation)?).await
        }
        Command::Call { method, params: Some(params) } if params == "-" => {
            let params = std::io::read_to_string(std::io::stdin())?;
            one(cx, plan(Command::Call { method, params: Some(params) }, &operation)?).await
        }
        Command::Call { method: name, params } if !is_method_name(&name) => {
            let _ = params;
            Err(Failure::usage(format!("`{name}` is no method's name")))
        }
        command => one(cx, plan(command, &operation)?).await,
    }
}

fn is_method_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))
}

/// The node a call goes to: the one named by `--node`, else the call's own target.
fn target(cx: &Context, call: &Call) -> Result<Target, Failure> {
    match cx.flags.node {
        Some(node_id) => Ok(Target::Node(node_id)),
        None if call.is_of_one_node && 1 < cx.endpoints.len() => {
            Err(Failure::usage("this acts on one node: say which with --node ID"))
        }
        None => Ok(call.target),
    }
}

/// One call, from the question to what is printed.
pub(crate) async fn one(cx: &Context, call: Call) -> Result<u8, Failure> {
    let target = target(cx, &call)?;
    if cx.flags.curl {
        let endpoint = endpoint_for_curl(cx, target).await;
        let line = curl::call(&endpoint, &call.method, &call.params, cx.token_file());
        out::print_line(&line)?;
        return Ok(exit::DONE);
    }
    if let Some(question) = &call.question {
        confirm(question, cx.flags.yes)?;
    }
    let cluster = cx.cluster(call.patience);
    let reply = match cluster.call(target, &call.method, &call.params).await {
        // A node that cannot ask the others still knows why it is not ready itself.
        Err(e) if call.or_status && is_not_found(&e) => {
            let reply = cluster.read(target, "raft_status").await?;
            return show(cx, &reply.raw, call.render, false);
        }
        reply => reply.map_err(|e| failure(&call, e))?,
    };
    show(cx, &reply.raw, call.render, call.is_json)
}

async fn leader(cx: &Context, call: &Call) -> Result<u8, Failure> {
    let reply = cx.cluster(call.patience).leader(&call.params).await.map_err(|e| failure(call, e))?;
    show(cx, &reply.raw, call.render, false)
}

fn show(cx: &Context, raw: &RawValue, render: render::Render, is_json: bool) -> Result<u8, Failure> {
    let mut answer: Value = serde_json::from_str(raw.get()).unwrap_or(Value::Null);
    // Of several nodes the one that was named comes first.
    if let (Some(node_id), Value::Object(fields)) = (cx.flags.node, &mut answer)
        && fields.contains_key("nodes")
    {
        fields.insert("namedNodeId".into(), node_id.into());
    }
    let shown = render(&answer, cx.is_colored);
    if cx.flags.json || is_json {
        out::print_line(&out::pretty(raw))?;
    } else {
        out::print(&shown.text)?;
    }
    Ok(shown.code)
}

fn is_not_found(error: &ClusterError) -> bool {
    matches!(error, ClusterError::Call(e) if e.rpc().is_some_and(|e| e.code == METHOD_NOT_FOUND))
}

/// The failure of a call, in words and with its exit code.
pub(crate) fn failure(call: &Call, error: ClusterError) -> Failure {
    if is_not_found(&error) {
        return Failure::failed(format!("the node's version does not have {}", call.method));
    }
    let mut failure = Failure::from(error);
    if call.is_read {
        failure.code = exit::FAILED;
    } else if failure.code == exit::UNKNOWN
        && let Some(message) = &mut failure.message
    {
        message.push_str("; it may have happened: look before you try again");
    }
    failure
}

/// Where a curl line should point; the first endpoint when the right one does not answer.
pub(crate) async fn endpoint_for_curl(cx: &Context, target: Target) -> Endpoint {
    let first = cx.endpoints[0].clone();
    if matches!(target, Target::Any | Target::Informed) {
        return first;
    }
    let cluster = cx.cluster(CURL_PATIENCE);
    match cluster.find(target, Instant::now() + cluster.timeout()).await {
        Ok(endpoint) => endpoint,
        Err(e) => {
            out::note(&format!("# {e}; put the right address in"));
            first
        }
    }
}

/// Blocks by pages, as many as were asked for.
async fn range(cx: &Context, from: u64, limit: u64) -> Result<u8, Failure> {
    // The server's own bound of one page.
    const PAGE: u64 = 1_000;
    let call = |from: u64, limit: u64| plan::plan(Command::Block(Block::Range { from, limit }), "");
    if cx.flags.curl || limit <= PAGE && cx.flags.json {
        return one(cx, call(from, limit.min(PAGE))?).await;
    }
    let first = call(from, limit.min(PAGE))?;
    let cluster = cx.cluster(first.patience);
    let endpoint = cluster.find(target(cx, &first)?, Instant::now() + cluster.timeout()).await?;
    let mut blocks = Vec::new();
    let mut next = Some(from);
    while let Some(from) = next
        && (blocks.len() as u64) < limit
    {
        let page = call(from, (limit - blocks.len() as u64).min(PAGE))?;
        let end = Instant::now() + cluster.timeout();
        let reply = cluster
            .call_at(&endpoint, &page.method, &page.params, end)
            .await
            .map_err(|e| failure(&page, e.into()))?;
        let mut answer = reply.value();
        next = answer["nextHeight"].as_u64();
        match answer["blocks"].take() {
            Value::Array(more) if !more.is_empty() => blocks.extend(more),
            _ => break,
        }
    }
    let answer = plan::params([
        ("blocks", Value::Array(blocks)),
        ("nextHeight", next.map_or(Value::Null, Value::from)),
    ]);
    let raw = RawValue::from_string(answer.to_string()).expect("a value is JSON");
    show(cx, &raw, first.render, false)
}

/// The same question to every member; those that do not answer are told on stderr.
async fn ask_all(cx: &Context, call: &Call) -> Result<Vec<(u64, Result<rpc::Reply, ClusterError>)>, Failure> {
    let cluster = cx.cluster(call.patience);
    let members = cluster.members().await?;
    let asked = members.all().map(|m| {
        let cluster: Cluster = cluster.clone();
        let node_id = m.node_id;
        async move { (node_id, cluster.call(Target::Node(node_id), &call.method, &call.params).await) }
    });
    Ok(futures::future::join_all(asked).await)
}

/// One line for each endpoint, without asking who belongs to the cluster.
fn curl_of_all(cx: &Context, call: &Call) -> Result<u8, Failure> {
    for endpoint in &cx.endpoints {
        out::print_line(&curl::call(endpoint, &call.method, &call.params, cx.token_file()))?;
    }
    Ok(exit::DONE)
}

/// Lists of all nodes in one, by time.
async fn gather(cx: &Context, call: Call, list: &str) -> Result<u8, Failure> {
    if cx.flags.curl {
        return curl_of_all(cx, &call);
    }
    let mut answers = Vec::new();
    for (node_id, answer) in ask_all(cx, &call).await? {
        match answer {
            Ok(reply) => answers.push((node_id, reply.value())),
            Err(e) if is_not_found(&e) => return Err(failure(&call, e)),
            Err(e) => out::complain(&format!("node {node_id} is missing: {e}")),
        }
    }
    if answers.is_empty() {
        return Err(Failure::failed("no node answers"));
    }
    let raw = RawValue::from_string(merged(answers, list).to_string()).expect("a value is JSON");
    show(cx, &raw, call.render, false)
}

/// The pages of several nodes in one, with where each goes on that has more.
fn merged(answers: Vec<(u64, Value)>, list: &str) -> Value {
    let (mut rows, mut more) = (Vec::new(), Vec::new());
    for (node_id, mut answer) in answers {
        if let Value::Array(items) = answer[list].take() {
            rows.extend(items.into_iter().map(|mut item| {
                item["nodeId"] = node_id.into();
                item
            }));
        }
        if !answer["nextId"].is_null() {
            more.push(plan::params([("nodeId", node_id.into()), ("nextId", answer["nextId"].take())]));
        }
    }
    rows.sort_by_key(|r| (r["at"].as_u64(), r["nodeId"].as_u64(), r["id"].as_u64()));
    let more = if more.is_empty() { Value::Null } else { Value::Array(more) };
    plan::params([(list, Value::Array(rows)), ("more", more)])
}

/// What every node says of its own records. One that cannot be asked is a failure: its records are not checked.
async fn verify_all(cx: &Context, call: &Call) -> Result<u8, Failure> {
    if cx.flags.curl {
        return curl_of_all(cx, call);
    }
    let mut code = exit::DONE;
    let mut nodes = Vec::new();
    for (node_id, answer) in ask_all(cx, call).await? {
        match answer {
            Ok(reply) => nodes.push((node_id, reply.value())),
            Err(e) if is_not_found(&e) => return Err(failure(call, e)),
            Err(e) => {
                out::complain(&format!("node {node_id} is missing: {e}"));
                code = exit::FAILED;
            }
        }
    }
    let shown = render::records::verdicts(&nodes, cx.is_colored);
    if cx.flags.json {
        let raw = RawValue::from_string(verdicts_json(nodes).to_string()).expect("a value is JSON");
        out::print_line(&out::pretty(&raw))?;
    } else {
        out::print(&shown.text)?;
    }
    Ok(code.max(shown.code))
}

fn verdicts_json(nodes: Vec<(u64, Value)>) -> Value {
    let rows = nodes.into_iter().map(|(node_id, mut verdict)| {
        if let Value::Object(verdict) = &mut verdict {
            verdict.insert("nodeId".into(), node_id.into());
        }
        verdict
    });
    plan::params([("nodes", Value::Array(rows.collect()))])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pages_of_all_nodes_are_one_by_time_and_say_where_each_goes_on() {
        let answers = || {
            vec![
                (1, json!({"events": [{"id": 3, "at": 30}, {"id": 4, "at": 50}], "nextId": 5})),
                (2, json!({"events": [{"id": 9, "at": 40}]})),
            ]
        };
        let answer = merged(answers(), "events");
        assert_eq!(
            answer,
            json!({
                "events": [
                    {"id": 3, "at": 30, "nodeId": 1},
                    {"id": 9, "at": 40, "nodeId": 2},
                    {"id": 4, "at": 50, "nodeId": 1},
                ],
                "more": [{"nodeId": 1, "nextId": 5}],
            })
        );
        let text = render::records::history(&answer, false).text;
        assert!(text.ends_with("\nmore of node 1 from --node 1 --from-id 5\n"), "{text}");
        assert!(merged(answers().split_off(1), "events")["more"].is_null());
    }

    #[test]
    fn verdicts_of_all_nodes_are_one_value() {
        let nodes = vec![(1, json!({"ok": true, "checked": 3, "problems": []})), (2, json!({"ok": false}))];
        assert_eq!(
            verdicts_json(nodes),
            json!({"nodes": [
                {"nodeId": 1, "ok": true, "checked": 3, "problems": []},
                {"nodeId": 2, "ok": false},
            ]})
        );
        assert_eq!(verdicts_json(Vec::new()), json!({"nodes": []}));
    }
}
