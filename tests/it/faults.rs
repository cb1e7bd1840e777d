//! A bad network between three nodes: one leader afterwards, and the promises hold.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_leader_that_is_cut_off_… | safety 11: the fence by the clock; promise 3: a late producer |
//! | a_leader_that_is_not_heard_… | a one-way cut from the leader |
//! | a_leader_that_hears_no_answers_… | safety 12: it falls silent, so that the others elect |
//! | a_follower_that_comes_back_… | pre-vote: the term stays |
//! | one_slow_node_… | a node 99 ms further away, with bursts, costs the others nothing |
//! | a_leader_whose_entries_are_lost_… | design 11: heartbeats pass, large packets do not |
//! | connections_that_break_… | promises 1 to 3 under resets and late frames |

use std::{sync::Arc, time::Duration};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::support::{
    NodeId,
    block::{Answer, Block, Way},
    checker,
    cluster::Cluster,
    config::{Settings, settings},
    net::{self, Net},
    wait::{LATER, SOON, pause, wait_for},
    writer::{History, Writer},
};

fn long_history() -> Settings {
    settings([("state.history_blocks", toml::Value::Integer(10_000_000))])
}

/// Three nodes behind a network; what a bad one makes them say is expected.
fn three(more: Settings) -> (Cluster, Net) {
    let mut all = long_history();
    all.extend(more);
    let (mut cluster, net) = Cluster::three_behind(all);
    cluster.allow_deaths();
    (cluster, net)
}

fn status(cluster: &Cluster, id: NodeId) -> Value {
    cluster.node(id).status().expect("it answers")
}

fn term_of(cluster: &Cluster, id: NodeId) -> u64 {
    status(cluster, id)["term"].as_u64().expect("a term")
}

#[track_caller]
fn more_acknowledged(history: &History, n: usize) {
    let enough = history.n_acknowledged() + n;
    wait_for("blocks are acknowledged", LATER, || {
        ensure!(enough <= history.n_acknowledged(), "{} of {enough}", history.n_acknowledged());
        Ok(())
    });
}

/// Waits until one of these nodes leads with its fence in a later term.
#[track_caller]
fn leader_among(cluster: &Cluster, ids: &[NodeId], above: u64) -> NodeId {
    wait_for("one of them leads", SOON, || {
        for id in ids {
            let s = cluster.node(*id).status()?;
            if s["ready"] == true && Some(above) < s["term"].as_u64() {
                return Ok(*id);
            }
        }
        anyhow::bail!("none is ready above term {above}")
    })
}

/// A block under a fence; refused, or the test fails.
#[track_caller]
fn is_refused(cluster: &Cluster, id: NodeId, fence: u64) {
    let late = Block::new(1_000_000_000, "late");
    let answer = late.propose(&mut cluster.node(id).connect(), Way::JsonRpc, Some(fence));
    assert!(matches!(answer, Answer::Refused { .. }), "a producer that keeps fence {fence}: {answer}");
}

/// The leader, its fence, and the others.
fn roles(cluster: &mut Cluster) -> (NodeId, u64, Vec<NodeId>) {
    let leader = cluster.leader();
    (leader, term_of(cluster, leader), cluster.others(leader))
}

#[test]
fn a_leader_that_is_cut_off_loses_its_fence_and_a_late_producer_is_refused() {
    let (mut cluster, net) = three(Settings::new());
    let history = Arc::new(History::default());
    let writer = Writer::start("a", Way::Protobuf, cluster.endpoints(), history.clone());
    more_acknowledged(&history, 20);
    let (leader, fence, others) = roles(&mut cluster);
    net.isolate(leader, &others);
    wait_for("the cut-off leader withdraws its fence", SOON, || {
        let s = cluster.node(leader).status()?;
        ensure!(s["ready"] == false && s["fence"].is_null() && s["lease"]["valid"] == false, "{s}");
        Ok(())
    });
    let new = leader_among(&cluster, &others, fence);
    // Both are up, and one term has one fence.
    assert_eq!(status(&cluster, leader)["ready"], false);
    is_refused(&cluster, leader, fence);
    is_refused(&cluster, new, fence);
    more_acknowledged(&history, 20);
    net.heal();
    assert_eq!(cluster.leader_above(fence), new, "who comes back follows");
    is_refused(&cluster, leader, fence);
    is_refused(&cluster, new, fence);
    drop(writer);
    checker::check(&mut cluster, &history);
    cluster.end();
}

#[test]
fn a_leader_that_is_not_heard_is_replaced() {
    one_way_cut(|leader, other| (leader, other));
}

/// Safety rule 12: its heartbeats would keep the others from electing for ever.
#[test]
fn a_leader_that_hears_no_answers_falls_silent_and_is_replaced() {
    one_way_cut(|leader, other| (other, leader));
}

/// Cuts the given way between the leader and each other node: another leads, and no promise breaks.
#[track_caller]
fn one_way_cut(way: impl Fn(NodeId, NodeId) -> (NodeId, NodeId)) {
    let (mut cluster, net) = three(Settings::new());
    let history = Arc::new(History::default());
    let writer = Writer::start("a", Way::Protobuf, cluster.endpoints(), history.clone());
    more_acknowledged(&history, 20);
    let (leader, fence, others) = roles(&mut cluster);
    for other in &others {
        let (from, to) = way(leader, *other);
        net.set(from, to, net::Way { is_cut: true, ..net::Way::default() });
    }
    let new = leader_among(&cluster, &others, fence);
    is_refused(&cluster, leader, fence);
    is_refused(&cluster, new, fence);
    more_acknowledged(&history, 20);
    net.heal();
    cluster.leader_above(fence);
    drop(writer);
    checker::check(&mut cluster, &history);
    cluster.end();
}

#[test]
fn a_follower_that_comes_back_does_not_raise_the_term() {
    let (mut cluster, net) = three(Settings::new());
    let (leader, term, others) = roles(&mut cluster);
    let away = others[0];
    net.isolate(away, &[leader, others[1]]);
    wait_for("it hears nobody", SOON, || {
        let s = cluster.node(away).status()?;
        ensure!(s["leaderId"].is_null(), "it names {}", s["leaderId"]);
        Ok(())
    });
    // Long enough for several rounds of pre-votes.
    pause(Duration::from_secs(2));
    assert_eq!(term_of(&cluster, away), term, "alone it raises no term");
    net.heal();
    assert_eq!(cluster.leader(), leader);
    assert_eq!(term_of(&cluster, leader), term);
    cluster.end();
}

#[test]
fn one_slow_node_costs_the_others_no_leadership() {
    let (mut cluster, net) = three(Settings::new());
    let (leader, term, others) = roles(&mut cluster);
    let slow = others[0];
    let way = net::Way {
        delay: Duration::from_millis(99),
        burst: Some((12, Duration::from_millis(350))),
        ..net::Way::default()
    };
    for other in [leader, others[1]] {
        net.set(slow, other, way);
        net.set(other, slow, way);
    }
    let history = Arc::new(History::default());
    let writer = Writer::start("a", Way::Protobuf, cluster.endpoints(), history.clone());
    more_acknowledged(&history, 300);
    pause(Duration::from_secs(3));
    more_acknowledged(&history, 100);
    let now = status(&cluster, leader);
    assert_eq!((&now["term"], &now["ready"]), (&json!(term), &json!(true)), "{now}");
    net.heal();
    drop(writer);
    checker::check(&mut cluster, &history);
    cluster.end();
}

#[test]
fn a_leader_whose_entries_are_lost_is_replaced() {
    let (mut cluster, net) = three(settings([("leadership.stall_after", "1s".into())]));
    for said in
        ["this leader is not fit", "heartbeats of a leader", "proposals are unanswered", "raft ends no"]
    {
        cluster.allow(said);
    }
    let history = Arc::new(History::default());
    let writer = Writer::start("a", Way::Protobuf, cluster.endpoints(), history.clone());
    more_acknowledged(&history, 20);
    let (leader, fence, others) = roles(&mut cluster);
    for other in &others {
        net.set(leader, *other, net::Way { is_log_cut: true, ..net::Way::default() });
    }
    let new = leader_among(&cluster, &others, fence);
    is_refused(&cluster, new, fence);
    more_acknowledged(&history, 20);
    net.heal();
    cluster.leader_above(fence);
    drop(writer);
    checker::check(&mut cluster, &history);
    cluster.end();
}

#[test]
fn connections_that_break_and_frames_that_are_late_break_no_promise() {
    let (mut cluster, net) = three(Settings::new());
    let history = Arc::new(History::default());
    let writers = [("a", Way::Protobuf), ("b", Way::JsonRpc)]
        .map(|(name, way)| Writer::start(name, way, cluster.endpoints(), history.clone()));
    // About one piece of five is late by less than a follower's patience.
    let late = net::Way { burst: Some((5, Duration::from_millis(60))), ..net::Way::default() };
    for (from, to) in [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)] {
        net.set(from, to, late);
    }
    for n in 0..12 {
        more_acknowledged(&history, 5);
        net.reset(1 + n % 3);
    }
    net.heal();
    more_acknowledged(&history, 20);
    drop(writers);
    checker::check(&mut cluster, &history);
    cluster.end();
}
