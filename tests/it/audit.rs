//! What a node records: control operations in a hash chain, and what became of its leadership.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_control_call_is_recorded… | design 5: two records a call, refused ones too, over a restart |
//! | the_record_works_without_a_quorum | design 5: audit and history need no leader |
//! | a_hand_over_that_is_not_over_… | promise 2: what may still happen is not called done |
//! | the_node_that_was_elected_says_why_it_stood | promise 7: one look answers why there was an election |
//! | a_caller_that_goes_away_changes_nothing | design 5: the call is carried to its end and recorded |
//! | every_leadership_is_in_the_history… | safety 18: none is left out, kill -9 included |

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::support::{
    cluster::Cluster,
    config::Settings,
    node::Node,
    rpc,
    wait::{SOON, wait_for},
};

#[track_caller]
fn records(node: &Node) -> Vec<Value> {
    let page = node.call("audit_list", &json!({"limit": 1000})).expect("any node lists its records");
    page["records"].as_array().expect("a list").clone()
}

#[track_caller]
fn events(node: &Node) -> Vec<Value> {
    let page = node.call("raft_history", &json!({"limit": 1000})).expect("any node has a history");
    page["events"].as_array().expect("a list").clone()
}

#[track_caller]
fn verify(node: &Node) -> u64 {
    let verdict = node.call("audit_verify", &Value::Null).expect("any node verifies");
    assert_eq!((&verdict["ok"], &verdict["problems"]), (&json!(true), &json!([])), "{verdict}");
    verdict["checked"].as_u64().expect("a number")
}

#[test]
fn a_control_call_is_recorded_before_and_after_and_survives() {
    let mut cluster = Cluster::new(1, Settings::new());
    cluster.start();
    let node = cluster.node(1);
    assert_eq!(records(node), Vec::<Value>::new());
    let set = |value: &str| json!({"set": {"chain.block_interval": value}});
    let index = node.call("raft_configure", &set("1s")).expect("a leader configures")["index"].clone();
    let refused = json!({"set": {"chain.block_interval": "2s"}, "expectedIndex": 1});
    let error = node.call("raft_configure", &refused).expect_err("another index is in force").rpc();
    assert_eq!(error.reason(), "versionMismatch");
    node.call("raft_configure", &json!({"set": {"chain.nonsense": 1}})).expect_err("no such setting");
    // Not understood at all: it never became a call.
    node.call("raft_configure", &json!({"nonsense": 1})).expect_err("no such parameter");
    node.call("node_setLogFilter", &json!({"filter": "info"})).expect("a filter");
    let all = records(node);
    let seen: Vec<_> = all
        .iter()
        .map(|r| (r["method"].as_str().unwrap_or("?"), r["outcome"].as_str().unwrap_or("?")))
        .collect();
    let expected = [
        ("raft_configure", "started"),
        ("raft_configure", "ok"),
        ("raft_configure", "started"),
        ("raft_configure", "refused"),
        ("raft_configure", "started"),
        ("raft_configure", "refused"),
        ("node_setLogFilter", "started"),
        ("node_setLogFilter", "ok"),
    ];
    assert_eq!(seen, expected);
    assert_eq!((&all[0]["params"], &all[1]["index"]), (&set("1s"), &index));
    assert_eq!(all[3]["reason"], "versionMismatch");
    assert_eq!(all[5]["reason"], "invalidParams: set");
    for (i, r) in all.iter().enumerate() {
        let prev = if i == 0 { json!(format!("0x{}", "0".repeat(64))) } else { all[i - 1]["hash"].clone() };
        assert_eq!((&r["id"], &r["nodeId"], &r["prevHash"]), (&json!(i + 1), &json!(1), &prev));
        let addr = r["remoteAddr"].as_str().unwrap_or_default();
        assert!(addr.starts_with("127.0.0.1:"), "{r}");
        assert!(r["term"].as_u64().is_some_and(|term| 0 < term), "{r}");
    }
    assert_eq!(verify(node), 8);
    let text = node.get("/metrics", &[]).expect("it answers").text();
    let line = r#"blockraft_audit_events_total{action="raft_configure",outcome="refused"} 2"#;
    assert!(text.contains(line), "{line}");
    let page = node.call("audit_list", &json!({"fromId": 3, "limit": 2})).expect("a page");
    assert_eq!((&page["records"], &page["nextId"]), (&json!(all[2..4]), &json!(5)));
    cluster.node_mut(1).kill();
    cluster.node_mut(1).start();
    cluster.leader();
    assert_eq!(records(cluster.node(1)), all, "after kill -9");
    assert_eq!(verify(cluster.node(1)), 8);
    cluster.end();
}

#[test]
fn the_record_works_without_a_quorum() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    let leader = cluster.leader();
    for id in cluster.others(leader) {
        cluster.node_mut(id).kill();
    }
    let node = cluster.node(leader);
    wait_for("the leader knows that it is alone", SOON, || {
        let status = node.status()?;
        ensure!(status["leaderId"].is_null(), "{status}");
        Ok(())
    });
    node.call("node_setLogFilter", &json!({"filter": "info"})).expect("a filter");
    let error = node
        .call("raft_configure", &json!({"set": {"chain.block_interval": "1s"}}))
        .expect_err("nobody leads")
        .rpc();
    assert_eq!(error.code, -32031);
    let all = records(node);
    let last: Vec<_> = all.iter().map(|r| r["outcome"].as_str().unwrap_or("?")).collect();
    assert_eq!(last, ["started", "ok", "started", "refused"]);
    assert_eq!(verify(node), 4);
    assert!(!events(node).is_empty());
    cluster.assert_quiet();
}

#[test]
fn the_node_that_was_elected_says_why_it_stood() {
    let mut cluster = Cluster::three(Settings::new());
    let leader = cluster.leader();
    let term = cluster.term_of(leader);
    cluster.node_mut(leader).kill();
    let elected = cluster.leader_above(term);
    let term = cluster.term_of(elected);
    for id in cluster.others(leader) {
        let detail = wait_for("the leadership is in the history", SOON, || {
            let events = events(cluster.node(id));
            let event = events.iter().find(|e| e["kind"] == "leadership" && e["term"] == term);
            Ok(event.context("not yet")?["detail"].clone())
        });
        // The others cannot know.
        let knows = detail["trigger"].is_string() && detail["heartbeatAgeMs"].is_u64();
        assert_eq!(knows, id == elected, "{detail}");
    }
    cluster.node_mut(leader).start();
    cluster.settled();
    cluster.end();
}

/// It may still happen, so the record must not say that it did.
#[test]
fn a_hand_over_that_is_not_over_in_time_is_recorded_as_unknown() {
    let mut cluster = Cluster::three(Settings::new());
    let mut outcomes = BTreeSet::new();
    while !outcomes.contains("timedOut") {
        let leader = cluster.leader();
        let term = cluster.term_of(leader);
        let params = json!({"timeoutMs": 1});
        let answer = cluster.node(leader).call("raft_transferLeader", &params).expect("somebody is fit");
        let outcome = answer["outcome"].as_str().expect("an outcome").to_owned();
        let records = records(cluster.node(leader));
        let is_end = |r: &&Value| r["method"] == "raft_transferLeader" && r["outcome"] != "started";
        let ended = records.iter().rfind(is_end).expect("it is recorded");
        let expected = if outcome == "timedOut" { "unknown" } else { "ok" };
        assert_eq!(ended["outcome"], expected, "{answer}, {ended}");
        outcomes.insert(outcome);
        cluster.leader_above(term);
    }
    cluster.end();
}

#[test]
fn a_caller_that_goes_away_changes_nothing() {
    let mut cluster = Cluster::new(1, Settings::new());
    cluster.start();
    let node = cluster.node(1);
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "raft_configure",
        "params": {"set": {"chain.block_interval": "3s"}}})
    .to_string();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        node.api,
        body.len()
    );
    let mut conn = node.connect();
    conn.send(head.as_bytes()).expect("it is read");
    drop(conn);
    // Either nothing of it was read, or all of it happens.
    let all = wait_for("the call is over, or never began", SOON, || {
        let all = records(node);
        ensure!(all.len() != 1, "it has begun: {all:?}");
        if all.is_empty() {
            let again = node.call("raft_configure", &json!({"set": {"chain.block_interval": "3s"}}))?;
            ensure!(again["settings"]["chain.block_interval"] == "3s", "{again}");
        }
        Ok(records(node))
    });
    assert_eq!(all.last().map(|r| &r["outcome"]), Some(&json!("ok")), "{all:?}");
    let settings = node.call("raft_settings", &Value::Null).expect("any node has settings");
    assert_eq!(settings["settings"]["chain.block_interval"], "3s");
    cluster.end();
}

#[test]
fn every_leadership_is_in_the_history_of_every_node() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    let mut terms = Vec::new();
    for _ in 0..3 {
        let leader = cluster.leader();
        let status = cluster.node(leader).status().expect("it answers");
        terms.push((status["term"].as_u64(), Some(leader)));
        cluster.node_mut(leader).kill();
        cluster.leader_above(status["term"].as_u64().expect("a number"));
        cluster.node_mut(leader).start();
    }
    let leader = cluster.leader();
    let term = cluster.node(leader).status().expect("it answers")["term"].as_u64();
    terms.push((term, Some(leader)));
    cluster.settled();
    let of = |node: &Node, kind: &str| -> Vec<Value> {
        events(node).into_iter().filter(|e| e["kind"] == kind).collect()
    };
    let mut histories = Vec::new();
    for node in &cluster.nodes {
        let led = wait_for("every leadership is in the history", SOON, || {
            let led: Vec<_> =
                of(node, "leadership").iter().map(|e| (e["term"].as_u64(), e["leaderId"].as_u64())).collect();
            ensure!(terms.iter().all(|t| led.contains(t)), "node {}: {led:?}, wanted {terms:?}", node.id);
            Ok(led)
        });
        assert!(led.is_sorted() && led.windows(2).all(|w| w[0].0 < w[1].0), "each once, in order: {led:?}");
        histories.push(led);
        let all = events(node);
        assert!(all.iter().enumerate().all(|(i, e)| e["id"] == json!(i + 1)), "{all:?}");
        let starts: Vec<_> = of(node, "lifecycle").iter().map(|e| e["detail"]["lastExit"].clone()).collect();
        assert_eq!(starts.first(), Some(&json!("first")));
        assert!(starts[1..].iter().all(|exit| exit == "killed"), "{starts:?}");
    }
    assert!(histories.iter().all(|h| h == &histories[0]), "{histories:?}");
    let (exit, _) = cluster.node_mut(1).stop(SOON);
    assert!(exit.success());
    cluster.node_mut(1).start();
    cluster.leader();
    let ends: Vec<_> =
        of(cluster.node(1), "lifecycle").iter().rev().take(2).map(|e| e["cause"].clone()).collect();
    assert_eq!(ends, ["start", "stop"]);
    cluster.end();
}

#[test]
fn an_operation_id_is_looked_at_before_anything_is_done() {
    let mut cluster = Cluster::new(1, Settings::new());
    cluster.start();
    let node = cluster.node(1);
    let error = node.call("raft_history", &json!({"operationId": "a b"})).expect_err("a blank").rpc();
    assert_eq!((error.code, error.data["param"].as_str()), (-32602, Some("operationId")));
    let page = node.call("raft_history", &json!({"operationId": "nobody-1"})).expect("a page");
    assert_eq!(page, json!({"events": []}));
    let error = rpc::call(&node.api, "audit_list", &json!({"limit": 0})).expect_err("no page").rpc();
    assert_eq!((error.code, error.data["param"].as_str()), (-32602, Some("limit")));
    cluster.end();
}
