//! One trace a block over all nodes, as a collector receives it.
//!
//! | test | attacks |
//! | --- | --- |
//! | one_trace_a_block_… | the tree, the integers, the caller as parent or as link; over HTTP |
//! | a_trace_goes_on_… | another leader, a node that catches up, one that replays |
//! | every_block_above_the_budget_… | promise 7 at any rate: no applied block without a span; over gRPC |
//! | a_timeline_shows_every_node | block_timeline from any node |
//! | a_log_filter_is_changed_and_given_back | node_setLogFilter, the audit line |

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::support::{
    NodeId,
    block::Block,
    cluster::Cluster,
    config::settings,
    http::Connection,
    otlp::{Attr, Receiver, Span},
    rpc::{post, result_of},
    stream::fill,
    wait::{LATER, SOON, wait_for},
};

fn traced(receiver: &Receiver, protocol: &str, per_second: i64) -> Cluster {
    Cluster::three(settings([
        ("telemetry.otlp_endpoint", receiver.endpoint.as_str().into()),
        ("telemetry.otlp_protocol", protocol.into()),
        ("telemetry.traces_per_second", per_second.into()),
    ]))
}

const CALLER_TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER_SPAN: &str = "00f067aa0ba902b7";

/// Proposes as a traced caller does; the answer.
#[track_caller]
fn propose(api: &str, block: &Block, flags: &str, is_fast: bool) -> Value {
    let parent = format!("00-{CALLER_TRACE}-{CALLER_SPAN}-{flags}");
    let mut conn = Connection::open(api).expect("it listens");
    if is_fast {
        let headers = [("Content-Type", "application/x-protobuf"), ("traceparent", parent.as_str())];
        let answer = conn.request("POST", "/v1/blocks", &headers, &block.to_protobuf());
        let answer = answer.unwrap_or_else(|e| panic!("no answer: {e}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        return answer.json().expect("JSON");
    }
    let call =
        json!({"jsonrpc": "2.0", "id": 1, "method": "block_propose", "params": {"block": block.to_json()}});
    let headers = [("Content-Type", "application/json"), ("traceparent", parent.as_str())];
    let answer = conn.request("POST", "/", &headers, call.to_string().as_bytes());
    result_of(&answer.unwrap_or_else(|e| panic!("no answer: {e}"))).unwrap_or_else(|e| panic!("{e}"))
}

/// The spans of a block's trace, once the tree is whole.
#[track_caller]
fn tree(receiver: &Receiver, trace: &str, leader: NodeId) -> Vec<Span> {
    wait_for("the tree of a block is whole", SOON, || {
        let spans: Vec<Span> = receiver.all().into_iter().filter(|s| s.trace == trace).collect();
        let count = |name: &str| spans.iter().filter(|s| s.name == name).count();
        for (name, n) in [
            ("block.propose", 1),
            ("raft.queue", 1),
            ("raft.commit", 1),
            ("raft.append", 3),
            ("raft.replicate", 2),
            ("block.apply", 3),
            ("block.deliver", 3),
        ] {
            ensure!(count(name) == n, "{} of {name}, not {n}", count(name));
        }
        let propose = spans.iter().find(|s| s.name == "block.propose").context("block.propose")?;
        ensure!(propose.node == leader.to_string());
        for s in &spans {
            let want = match s.name.as_str() {
                "raft.queue" | "raft.commit" | "raft.append" | "raft.replicate" | "block.apply" => {
                    &propose.id
                }
                "block.deliver" => {
                    let apply = spans.iter().find(|a| a.name == "block.apply" && a.node == s.node);
                    &apply.context("block.apply")?.id
                }
                _ => continue,
            };
            ensure!(s.parent == *want, "{} of node {} has another parent", s.name, s.node);
        }
        Ok(spans)
    })
}

#[test]
fn one_trace_a_block_over_all_nodes() {
    let receiver = Receiver::start();
    let mut cluster = traced(&receiver, "http", 500);
    let leader = cluster.leader();
    let api = cluster.node(leader).api.clone();
    for (height, flags, is_fast) in [(1, "01", false), (2, "01", true), (3, "00", false), (4, "00", true)] {
        let block = Block::sized(height, "trace", 300);
        let answer = propose(&api, &block, flags, is_fast);
        let trace = answer["traceId"].as_str().expect("a trace id").to_owned();
        assert_eq!(trace == CALLER_TRACE, flags == "01", "the caller's trace, flags {flags}");
        // Two blocks share the caller's trace: each is told by its height.
        let spans = if flags == "00" { tree(&receiver, &trace, leader) } else { Vec::new() };
        let applied = wait_for("every node applied the block", SOON, || {
            let applied: Vec<Span> = receiver
                .of("block.apply")
                .into_iter()
                .filter(|s| s.trace == trace && s.int("block.height") == Some(height as i64))
                .collect();
            ensure!(applied.len() == 3, "{} spans", applied.len());
            Ok(applied)
        });
        let nodes: BTreeSet<&str> = applied.iter().map(|s| s.node.as_str()).collect();
        assert_eq!(nodes.len(), 3);
        for s in &applied {
            assert_eq!(s.int("raft.term"), answer["term"].as_i64(), "on node {}", s.node);
            assert_eq!(s.int("raft.index"), answer["index"].as_i64(), "on node {}", s.node);
            let role = if s.node == leader.to_string() { "leader" } else { "follower" };
            assert_eq!(s.attrs.get("raft.role"), Some(&Attr::Text(role.into())));
        }
        check_server(&receiver, height, flags, is_fast, &spans);
    }
    cluster.end();
}

#[track_caller]
fn check_server(receiver: &Receiver, height: u64, flags: &str, is_fast: bool, spans: &[Span]) {
    let name = if is_fast { "POST /v1/blocks" } else { "block_propose" };
    let server = wait_for("the call has a span", SOON, || {
        let propose = receiver.of("block.propose");
        let propose = propose.iter().find(|s| s.int("block.height") == Some(height as i64));
        let parent = &propose.context("block.propose")?.parent;
        receiver.of(name).into_iter().find(|s| s.id == *parent).context("the parent of block.propose")
    });
    assert!(server.is_server);
    let is_sampled = flags == "01";
    assert_eq!(server.parent, if is_sampled { CALLER_SPAN } else { "" });
    assert_eq!(server.links, if is_sampled { vec![] } else { vec![CALLER_TRACE.to_owned()] });
    assert!(is_sampled || !spans.is_empty());
    if is_fast {
        assert_eq!(server.int("http.response.status_code"), Some(200));
    } else {
        assert_eq!(server.attrs.get("rpc.method"), Some(&Attr::Text("block_propose".into())));
    }
}

/// The `block.apply` spans of a block by node, once there are as many.
#[track_caller]
fn applied(receiver: &Receiver, height: u64, n: usize) -> Vec<Span> {
    wait_for(&format!("block {height} is applied by {n} nodes"), LATER, || {
        let of = |s: &Span| s.int("block.height") == Some(height as i64);
        let spans: Vec<Span> = receiver.of("block.apply").into_iter().filter(of).collect();
        let nodes: BTreeSet<&str> = spans.iter().map(|s| s.node.as_str()).collect();
        ensure!(nodes.len() == n, "nodes {nodes:?}");
        Ok(spans)
    })
}

#[test]
fn a_trace_goes_on_after_another_leader_and_on_nodes_that_come_late_or_again() {
    let receiver = Receiver::start();
    let mut cluster = traced(&receiver, "grpc", 500);
    cluster.allow_deaths();
    let first = cluster.leader();
    fill(&cluster.node(first).api.clone(), &[Block::new(1, "late")]);
    applied(&receiver, 1, 3);
    // One node is not there while a leader dies and another one goes on.
    let term = cluster.node(first).status().expect("it answers")["term"].as_u64().expect("a term");
    cluster.node_mut(first).kill();
    let second = cluster.leader_above(term);
    let answer = propose(&cluster.node(second).api.clone(), &Block::new(2, "late"), "01", true);
    for s in applied(&receiver, 2, 2) {
        assert_eq!((s.trace.as_str(), s.int("raft.term")), (CALLER_TRACE, answer["term"].as_i64()));
        assert_eq!(s.int("raft.index"), answer["index"].as_i64());
    }
    assert!(Some(term) < answer["term"].as_u64(), "{answer}");
    // It comes back and catches up: the same trace, and the block it had applied before is said to be replayed.
    cluster.node_mut(first).start();
    let late = applied(&receiver, 2, 3).into_iter().find(|s| s.node == first.to_string());
    let late = late.expect("it is one of the three");
    assert_eq!((late.trace.as_str(), late.int("raft.term")), (CALLER_TRACE, answer["term"].as_i64()));
    assert_eq!(late.attrs.get("raft.replay"), None, "it was not committed when it began");
    let propose_span = receiver.of("block.propose").into_iter().find(|s| s.int("block.height") == Some(2));
    assert_eq!(late.parent, propose_span.expect("it was sampled").id);
    // State without a log of its own is what the log brought since the last snapshot: killed, it is replayed.
    cluster.settled();
    cluster.node_mut(second).kill();
    cluster.node_mut(second).start();
    wait_for("what is applied again says so", LATER, || {
        let again = receiver.of("block.apply").into_iter().filter(|s| s.node == second.to_string());
        let again: Vec<Span> =
            again.filter(|s| s.attrs.get("raft.replay") == Some(&Attr::Bool(true))).collect();
        let of_second = again.iter().find(|s| s.int("block.height") == Some(2)).context("block 2")?;
        ensure!(of_second.trace == CALLER_TRACE && of_second.int("raft.index") == answer["index"].as_i64());
        Ok(())
    });
    let ids: Vec<String> = receiver.of("block.apply").into_iter().map(|s| s.id).collect();
    let distinct: BTreeSet<&String> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len(), "no id is used twice");
    cluster.leader();
    cluster.end();
}

#[test]
fn every_block_above_the_budget_lies_in_one_range_of_each_node() {
    const BLOCKS: u64 = 150;
    let receiver = Receiver::start();
    let mut cluster = traced(&receiver, "grpc", 5);
    let leader = cluster.leader();
    let blocks: Vec<Block> = (1..=BLOCKS).map(|h| Block::new(h, "budget")).collect();
    fill(&cluster.node(leader).api.clone(), &blocks);
    cluster.settled();
    let at: BTreeMap<u64, u64> = cluster
        .node(leader)
        .range(1, BLOCKS)
        .expect("it answers")
        .iter()
        .map(|b| (b["block"]["height"].as_u64().expect("a height"), b["index"].as_u64().expect("an index")))
        .collect();
    wait_for("every applied block is tagged on every node", SOON, || {
        for node in ["1", "2", "3"] {
            let (mut tagged, mut ranged) = (BTreeSet::new(), BTreeMap::<u64, u32>::new());
            for s in receiver.of("block.apply").iter().filter(|s| s.node == node) {
                let get = |name| s.int(name).map(|n| n as u64);
                let (low, high, first) = match get("block.height") {
                    Some(height) => (height, height, get("raft.index")),
                    None => {
                        let (low, high) = (get("block.height.first"), get("block.height.last"));
                        let low = low.context("a first height")?;
                        (low, high.context("a last height")?, get("raft.index.first"))
                    }
                };
                let first = first.context("an index")?;
                assert!(s.int("raft.term").is_some());
                for height in low..=high {
                    assert_eq!(at.get(&height), Some(&(first + height - low)), "block {height}");
                    tagged.insert(height);
                    *ranged.entry(height).or_default() += u32::from(get("block.height").is_none());
                }
            }
            ensure!(tagged.len() as u64 == BLOCKS, "node {node} tagged {} blocks", tagged.len());
            assert!(ranged.values().all(|n| *n <= 1), "a block of node {node} is in two ranges");
        }
        Ok(())
    });
    cluster.end();
}

#[test]
fn a_timeline_shows_every_node() {
    let mut cluster = Cluster::three(settings([]));
    let leader = cluster.leader();
    fill(&cluster.node(leader).api.clone(), &[Block::new(1, "time")]);
    cluster.settled();
    for node in &cluster.nodes {
        let timeline = node.call("block_timeline", &json!({"height": 1})).unwrap_or_else(|e| panic!("{e}"));
        let nodes = timeline["nodes"].as_array().expect("a list");
        assert_eq!(nodes.len(), 3, "{timeline}");
        for n in nodes {
            assert_eq!(n["role"] == "leader", n["nodeId"] == leader, "{n}");
            let stages = n["stages"].as_array().expect("a list");
            assert!(stages.iter().any(|s| s["stage"] == "apply"), "{n}");
        }
    }
    let missing = cluster.node(1).call("block_timeline", &json!({"height": 9})).expect_err("no block");
    assert_eq!(missing.rpc().reason(), "notFound");
    cluster.end();
}

#[test]
fn a_log_filter_is_changed_and_given_back() {
    let mut cluster = Cluster::three(settings([]));
    let leader = cluster.leader();
    let set = |params: Value| {
        let node = cluster.node(leader);
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "node_setLogFilter", "params": params});
        result_of(&post(&mut node.connect(), request.to_string().as_bytes()).expect("it answers"))
    };
    let changed = set(json!({"filter": "info,blockraft::audit=debug", "forMs": 60_000})).expect("a filter");
    assert!(changed["untilMs"].is_u64(), "{changed}");
    fill(&cluster.node(leader).api.clone(), &[Block::new(1, "audit")]);
    let line = cluster.node(leader).wait_line(&["block applied"]);
    let line: Value = serde_json::from_str(&line.text).expect("JSON");
    assert!(line["trace_id"].as_str().is_some_and(|id| id.len() == 32), "{line}");
    assert!(line["raft.term"].is_u64() && line["raft.index"].is_u64(), "{line}");
    let back = set(json!({"filter": "info"})).expect("a filter");
    assert_eq!(back["previous"], "info,blockraft::audit=debug");
    assert_eq!(set(json!({"filter": "a=b=c"})).expect_err("no filter").rpc().code, -32602);
    cluster.settled();
    cluster.end();
}
