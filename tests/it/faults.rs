//! A bad network between three nodes: one leader afterwards, and the promises hold.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_leader_that_is_cut_off_… | safety 11: the fence by the clock; safety 19: it confirms nothing; promise 3: a late producer |
//! | a_leader_that_is_not_heard_… | a one-way cut from the leader |
//! | a_leader_that_hears_no_answers_… | safety 12: it falls silent, so that the others elect |
//! | a_follower_that_comes_back_… | safety 22: pre-vote, the term stays |
//! | one_slow_node_… | a node 99 ms further away, with bursts, costs the others nothing |
//! | a_leader_whose_entries_are_lost_… | design 11: heartbeats pass, large packets do not |
//! | connections_that_break_… | promises 1 to 3 under resets and late frames |
//!
//! How long each costs: [`crate::fault_table`].

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;

use crate::support::{
    NodeId,
    block::Way,
    cluster::Roles,
    config::Settings,
    net,
    scene::Scene,
    wait::{SOON, pause, wait_for},
};

/// Said of a leader that cannot do its work, and by it.
pub(crate) const UNABLE: [&str; 4] =
    ["this leader is not fit", "heartbeats of a leader", "proposals are unanswered", "raft ends no"];

#[test]
fn a_leader_that_is_cut_off_loses_its_fence_and_a_late_producer_is_refused() {
    let mut scene = Scene::under_load(3, Settings::new());
    let Roles { leader, fence, others } = scene.roles();
    scene.net.part(&[leader], &others);
    wait_for("the cut-off leader withdraws its fence", SOON, || {
        let s = scene.cluster.node(leader).status()?;
        ensure!(s["ready"] == false && s["fence"].is_null() && s["lease"]["valid"] == false, "{s}");
        Ok(())
    });
    let new = scene.cluster.leader_among(&others, fence);
    // Both are up, and one term has one fence.
    assert_eq!(scene.cluster.node(leader).status().expect("it answers")["ready"], false);
    scene.assert_refused(&[leader, new], fence);
    // Nor does it confirm what it cannot know (safety 19): raft itself still calls it the leader.
    let verified = |id: NodeId| {
        let params = json!({"verify": true});
        scene.cluster.node(id).call("raft_leader", &params).expect("it answers")["verified"].clone()
    };
    let read =
        |id: NodeId| scene.cluster.node(id).call("block_head", &json!({"consistency": "linearizable"}));
    assert_eq!((verified(leader), verified(new)), (json!(false), json!(true)));
    assert!(read(leader).expect_err("it may be outdated").rpc().is_refusal());
    let head = read(new).expect("a quorum confirms it");
    assert!(head["block"]["height"].is_u64(), "{head}");
    scene.history.wait_for_more(20);
    scene.net.heal();
    assert_eq!(scene.cluster.leader_above(fence), new, "who comes back follows");
    scene.assert_refused(&[leader, new], fence);
    scene.end();
}

#[test]
fn a_leader_that_is_not_heard_is_replaced() {
    one_way_cut(|scene, leader, others| scene.net.set_all(&[leader], others, net::Way::CUT));
}

/// Safety rule 12: its heartbeats would keep the others from electing for ever.
#[test]
fn a_leader_that_hears_no_answers_falls_silent_and_is_replaced() {
    one_way_cut(|scene, leader, others| scene.net.set_all(others, &[leader], net::Way::CUT));
}

/// Cuts one way between the leader and the others: another leads, and no promise breaks.
#[track_caller]
fn one_way_cut(cut: impl Fn(&Scene, NodeId, &[NodeId])) {
    let mut scene = Scene::under_load(3, Settings::new());
    let Roles { leader, fence, others } = scene.roles();
    cut(&scene, leader, &others);
    let new = scene.cluster.leader_among(&others, fence);
    scene.assert_refused(&[leader, new], fence);
    scene.history.wait_for_more(20);
    scene.net.heal();
    scene.cluster.leader_above(fence);
    scene.end();
}

#[test]
fn a_follower_that_comes_back_does_not_raise_the_term() {
    let mut scene = Scene::new(3, Settings::new());
    let Roles { leader, fence, others } = scene.roles();
    let away = others[0];
    scene.net.part(&[away], &[leader, others[1]]);
    wait_for("it hears nobody", SOON, || {
        let s = scene.cluster.node(away).status()?;
        ensure!(s["leaderId"].is_null(), "it names {}", s["leaderId"]);
        Ok(())
    });
    // Long enough for several rounds of pre-votes.
    pause(Duration::from_secs(2));
    assert_eq!(scene.cluster.term_of(away), fence, "alone it raises no term");
    scene.net.heal();
    assert_eq!(scene.cluster.leader(), leader);
    assert_eq!(scene.cluster.term_of(leader), fence);
    scene.cluster.end();
}

#[test]
fn one_slow_node_costs_the_others_no_leadership() {
    let mut scene = Scene::new(3, Settings::new());
    let Roles { leader, fence, others } = scene.roles();
    let (slow, near) = ([others[0]], [leader, others[1]]);
    let way = net::Way::late(12, 200, 500).delayed(99);
    scene.net.set_all(&slow, &near, way);
    scene.net.set_all(&near, &slow, way);
    scene.produce("a", Way::Protobuf);
    scene.history.wait_for_more(300);
    pause(Duration::from_secs(3));
    scene.history.wait_for_more(100);
    let now = scene.cluster.node(leader).status().expect("it answers");
    assert_eq!((&now["term"], &now["ready"]), (&json!(fence), &json!(true)), "{now}");
    scene.end();
}

#[test]
fn a_leader_whose_entries_are_lost_is_replaced() {
    // By default it is longer than one attempt to send them, and the same bytes are sent again with each.
    let mut scene = Scene::under_load(3, Settings::new());
    UNABLE.iter().for_each(|said| scene.cluster.allow(said));
    let Roles { leader, fence, others } = scene.roles();
    scene.net.set_all(&[leader], &others, net::Way::LOG_CUT);
    let new = scene.cluster.leader_among(&others, fence);
    scene.assert_refused(&[new], fence);
    scene.history.wait_for_more(20);
    scene.net.heal();
    scene.cluster.leader_above(fence);
    scene.end();
}

#[test]
fn connections_that_break_and_frames_that_are_late_break_no_promise() {
    let mut scene = Scene::under_load(3, Settings::new());
    scene.produce("b", Way::JsonRpc);
    // About one piece of five is late by less than a follower's patience.
    scene.net.set_all(&[1, 2, 3], &[1, 2, 3], net::Way::late(5, 60, 60));
    for n in 0..12 {
        scene.history.wait_for_more(5);
        scene.net.reset(1 + n % 3);
    }
    scene.net.heal();
    scene.history.wait_for_more(20);
    scene.end();
}
