//! The way in when leadership is lost or room is short: every attempt ends, and says what is known of it.
//!
//! | test | attacks |
//! | --- | --- |
//! | each_block_of_a_stream_… | design 6: a line for each block that was taken; unknown is told as unknown |
//! | a_block_that_waits_… | promise 3: a block enters in the term it was proposed in, or not at all |
//! | a_change_of_settings_… | a call ends in time, without a quorum too |
//! | a_block_that_was_agreed_on_… | promise 2, and the order of checks of design 5 |
//! | a_part_of_a_block_… | memory: room is taken before bytes are kept |
//! | a_stream_that_waits_for_room_… | promise 7: slowing a producer down is no refusal |
//! | a_stream_that_falls_silent_… | memory and room held by who sends no more |

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::support::{
    NodeId,
    block::{Answer, Block, Way},
    cluster::Cluster,
    config::{Settings, settings},
    exposition::Scrape,
    net::{self, Net},
    rpc,
    stream::{Stream, fill, put_framed},
    wait::{SOON, wait_for},
};

/// Three nodes behind a network, whose leader is not deposed for entries that do not get through.
fn three(more: Settings) -> (Cluster, Net) {
    let mut all = settings([("leadership.stall_after", "600s".into())]);
    all.extend(more);
    let (mut cluster, net) = Cluster::behind(3, all, |_| {});
    cluster.allow_deaths();
    (cluster, net)
}

/// Heartbeats of the leader pass, and its entries do not.
fn hold_entries(net: &Net, leader: NodeId, others: &[NodeId]) {
    for other in others {
        net.set(leader, *other, net::Way { is_log_cut: true, ..net::Way::default() });
    }
}

#[track_caller]
fn position(cluster: &Cluster, id: NodeId, name: &str) -> u64 {
    cluster.node(id).status().expect("it answers")[name].as_u64().expect("a position")
}

/// Waits until so many proposals have room.
#[track_caller]
fn wait_in_flight(cluster: &Cluster, id: NodeId, n: u64) {
    wait_for("the proposals are admitted", SOON, || {
        let text = cluster.node(id).get("/metrics", &[])?.text();
        let now = Scrape::parse(&text).get("blockraft_raft_proposals_in_flight", &[]);
        ensure!(now == Some(n as f64), "in flight: {now:?}, not {n}");
        Ok(())
    });
}

#[test]
fn each_block_of_a_stream_whose_leader_was_replaced_is_told_as_unknown() {
    let (mut cluster, net) = three(Settings::new());
    for n_lost in [1, 3] {
        let leader = cluster.leader();
        let (others, height) = (cluster.others(leader), cluster.height(leader));
        let term = position(&cluster, leader, "term");
        let mut stream = Stream::open_with(&cluster.node(leader).api, &[("Blockraft-Timeout", "30s")])
            .expect("it answers");
        stream.send(&[Block::new(height + 1, "whole")]).expect("it reads");
        stream.next().expect("it answers").expect("a line for each").acknowledged();
        let last = position(&cluster, leader, "lastLogIndex");
        hold_entries(&net, leader, &others);
        let lost: Vec<Block> = (2..2 + n_lost).map(|i| Block::new(height + i, "lost")).collect();
        stream.send(&lost).expect("it reads");
        wait_for("the leader has appended them", SOON, || {
            let now = position(&cluster, leader, "lastLogIndex");
            ensure!(last + n_lost <= now, "its log ends at {now}, not {}", last + n_lost);
            Ok(())
        });
        net.part(&[leader], &others);
        cluster.leader_among(&others, 0);
        net.heal();
        for block in &lost {
            let line = stream.next_line().expect("it answers").expect("a line for each");
            let data = &line["error"]["data"];
            let told = (line["error"]["code"].as_i64(), data["kind"].as_str(), data["reason"].as_str());
            assert_eq!(told, (Some(-32035), Some("unknown"), Some("leadershipLost")), "{line}");
            assert_eq!(data["height"].as_u64(), Some(block.height), "{n_lost} lost: {line}");
        }
        assert!(stream.next_line().expect("it answers").is_none(), "the stream ends with it");
        cluster.leader_above(term);
    }
    cluster.end();
}

#[test]
fn a_block_that_waits_for_its_predecessor_does_not_enter_in_a_later_term() {
    const WAITS: Duration = Duration::from_secs(30);
    let (mut cluster, net) = three(settings([("api.reorder_wait", "30s".into())]));
    let leader = cluster.leader();
    let (others, term) = (cluster.others(leader), position(&cluster, leader, "term"));
    let take = |cluster: &Cluster, height| {
        let block = Block::new(height, "in order");
        block.propose(&mut cluster.node(leader).connect(), Way::Protobuf, None).acknowledged();
    };
    take(&cluster, 1);
    let (api, proposed) = (cluster.node(leader).api.clone(), Instant::now());
    let early = thread::spawn(move || {
        let params =
            json!({"block": Block::new(3, "early").to_json(), "timeoutMs": WAITS.as_millis() as u64});
        rpc::call(&api, "block_propose", &params)
    });
    wait_in_flight(&cluster, leader, 1);
    net.part(&[leader], &others);
    let between = cluster.leader_among(&others, 0);
    net.heal();
    cluster.leader_above(term);
    wait_for("the first leader leads again", SOON, || {
        let moved: Value = cluster.node(between).call("raft_transferLeader", &json!({"to": leader}))?;
        ensure!(moved["leaderId"].as_u64() == Some(leader), "{moved}");
        Ok(())
    });
    assert_eq!(cluster.leader_above(term + 1), leader);
    take(&cluster, 2);
    let waited = proposed.elapsed();
    match early.join().expect("it does not panic") {
        Ok(result) => panic!("proposed in term {term}: {result}"),
        Err(e) if waited < WAITS => assert_eq!(e.rpc().code, -32032),
        // On a very slow machine its time was over before.
        Err(e) => assert!(e.rpc().is_refusal()),
    }
    assert_eq!(cluster.height(leader), 2);
    cluster.end();
}

#[test]
fn a_change_of_settings_without_a_quorum_is_unknown_in_time() {
    let (mut cluster, net) = three(Settings::new());
    let leader = cluster.leader();
    let others = cluster.others(leader);
    hold_entries(&net, leader, &others);
    let change = json!({"set": {"chain.max_ahead": "16s"}});
    let error = cluster.node(leader).call("raft_configure", &change).expect_err("no quorum has it").rpc();
    assert_eq!((error.code, error.data["kind"].as_str()), (-32035, Some("unknown")), "{error}");
    // It was not taken back, and happens when its entry gets through.
    net.heal();
    wait_for("the change is in force", SOON, || {
        let now = cluster.node(leader).call("raft_settings", &Value::Null)?;
        ensure!(now["settings"]["chain.max_ahead"] == "16s", "{now}");
        Ok(())
    });
    cluster.end();
}

#[test]
fn a_block_that_was_agreed_on_stays_so_under_other_settings() {
    let mut cluster = Cluster::three(Settings::new());
    let leader = cluster.leader();
    let follower = cluster.others(leader)[0];
    let propose = |at: &Cluster, id, block: &Block, way| block.propose(&mut at.node(id).connect(), way, None);
    let block = Block::sized(1, "agreed on", 2_000);
    propose(&cluster, leader, &block, Way::Protobuf).acknowledged();
    let set = json!({"set": {"chain.max_block_bytes": 1_000, "chain.require_fence": true}});
    cluster.node(leader).call("raft_configure", &set).expect("a leader configures");
    cluster.settled();
    for way in [Way::Protobuf, Way::JsonRpc] {
        propose(&cluster, leader, &block, way).acknowledged();
        assert_eq!(
            propose(&cluster, follower, &block, way).refused().code,
            -32030,
            "{way:?}: who leads comes first"
        );
        let refused = propose(&cluster, leader, &Block::new(2, "without a fence"), way);
        assert_eq!(refused.refused().data["param"], "fence", "{way:?}: {refused}");
    }
    // Who leads comes first there too: a follower's own settings may be old ones.
    for params in [
        json!({"set": {"chain.max_ahead": "16s"}, "expectedIndex": 999}),
        json!({"set": {"chain.nonsense": 1}}),
    ] {
        let error = cluster.node(follower).call("raft_configure", &params).expect_err("it follows").rpc();
        assert_eq!(error.code, -32030, "{params}: {error}");
    }
    // The stream counts what has no outcome of its own.
    let counted =
        |reason| cluster.node(leader).counted("blockraft_rpc_rejected_total", &[("reason", reason)]);
    let (malformed, too_large) = (counted("malformed"), counted("body_too_large"));
    let fence = cluster.term_of(leader);
    for (fence, block) in [(None, Block::new(2, "no fence")), (Some(fence), Block::sized(2, "large", 2_000))]
    {
        let mut stream = Stream::open(&cluster.node(leader).api, fence).expect("it answers");
        stream.send(&[block]).expect("it reads");
        let line = stream.next().expect("it answers").expect("a line for each");
        assert_eq!(line.refused().code, -32602, "{line}");
    }
    assert_eq!((counted("malformed") - malformed, counted("body_too_large") - too_large), (1.0, 1.0));
    cluster.end();
}

/// One node that has room for one of these blocks.
fn small() -> (Cluster, NodeId) {
    let mut cluster = Cluster::new(1, settings([("api.max_in_flight_bytes", "64KiB".into())]));
    let node = cluster.start();
    (cluster, node)
}

fn sized(height: u64) -> Block {
    Block::sized(height, "half", 40 << 10)
}

/// A stream on which a part of a block was sent, and the rest of it.
#[track_caller]
fn send_part(cluster: &Cluster, node: NodeId, block: &Block) -> (Stream, Vec<u8>) {
    let mut stream = Stream::open(&cluster.node(node).api, None).expect("it answers");
    let mut framed = Vec::new();
    put_framed(&mut framed, block);
    let rest = framed.split_off(100);
    stream.send_raw(&framed).expect("it reads");
    (stream, rest)
}

#[test]
fn a_part_of_a_block_takes_the_room_of_the_whole() {
    let (cluster, node) = small();
    let propose = |b: &Block| b.propose(&mut cluster.node(node).connect(), Way::Protobuf, None);
    let (mut stream, rest) = send_part(&cluster, node, &sized(1));
    wait_in_flight(&cluster, node, 1);
    let refused = propose(&sized(1));
    assert_eq!(refused.refused().reason(), "overloaded", "{refused}");
    stream.send_raw(&rest).expect("it reads");
    stream.next().expect("it answers").expect("a line for each").acknowledged();
    wait_in_flight(&cluster, node, 0);
    propose(&sized(2)).acknowledged();
    cluster.end();
}

/// That is how a fast producer is slowed down, and no refusal.
#[test]
fn a_stream_that_waits_for_room_counts_as_no_refusal() {
    let (cluster, node) = small();
    let blocks: Vec<Block> = (1..=50).map(sized).collect();
    fill(&cluster.node(node).api, &blocks);
    let counted =
        |outcome| cluster.node(node).counted("blockraft_raft_proposals_total", &[("outcome", outcome)]);
    assert_eq!((counted("committed"), counted("overloaded")), (50.0, 0.0));
    cluster.end();
}

#[test]
fn a_stream_that_falls_silent_inside_a_block_ends_and_gives_its_room_back() {
    let (cluster, node) = small();
    let (mut stream, _rest) = send_part(&cluster, node, &sized(1));
    let line = stream.next().expect("it answers");
    let code = match &line {
        Some(Answer::Refused { error, .. }) => error.as_ref().map(|e| e.code),
        _ => None,
    };
    assert_eq!(code, Some(-32600), "{line:?}");
    assert!(stream.next().expect("it answers").is_none(), "the stream ends with it");
    wait_in_flight(&cluster, node, 0);
    sized(1).propose(&mut cluster.node(node).connect(), Way::Protobuf, None).acknowledged();
    cluster.end();
}
