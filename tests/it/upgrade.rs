//! A member that knows fewer commands than the others: nothing is appended that would stop it.
//!
//! | test | attacks |
//! | --- | --- |
//! | what_a_member_does_not_know_is_not_appended | design 3: `upgradeNeeded`, also of a dead member and for a new leader |
//! | a_node_that_knows_less_is_not_added | design 5: the probe of `raft_addLearner` |
//!
//! An older node is played on the wire: the network changes what a node says in its first frame.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::support::{
    NodeId,
    cluster::{Cluster, Roles},
    config::Settings,
    members::{add, assert_refused, call, start_joiner},
    scene::Scene,
    wait::{SOON, wait_for},
};

/// `block` and `leadership` of version 1, as each kind × 256 + version; without `configure`.
const OLDER: [u16; 2] = [16 << 8 | 1, 17 << 8 | 1];

/// What comes of changing a setting on a leader.
fn configure(cluster: &Cluster, leader: NodeId, interval: &str) -> Result<Value, String> {
    let params = json!({"set": {"chain.block_interval": interval}});
    cluster.node(leader).call("raft_configure", &params).map_err(|e| {
        let error = e.rpc();
        assert!(error.is_refusal() && error.code == -32036, "{error}");
        format!("{}: {}", error.reason(), error.message)
    })
}

#[track_caller]
fn wait_until_refused(cluster: &Cluster, leader: NodeId, older: NodeId) {
    wait_for("the leader knows what the older one knows", SOON, || {
        let refused = configure(cluster, leader, "1s").err().context("it went through")?;
        let names = refused.starts_with("upgradeNeeded") && refused.contains(&format!("node {older} "));
        ensure!(names, "{refused}");
        Ok(())
    });
}

#[test]
fn what_a_member_does_not_know_is_not_appended() {
    let mut scene = Scene::new(3, Settings::new());
    let Roles { leader, fence, others } = scene.roles();
    let [older, other] = others[..] else { panic!("three nodes") };
    configure(&scene.cluster, leader, "2s").expect("all know it");
    scene.net.claim(older, Some(&OLDER));
    wait_until_refused(&scene.cluster, leader, older);
    // Another leader was told too, though it never led before.
    let moved = call(&scene.cluster, leader, "raft_transferLeader", json!({"to": other}));
    assert_eq!(moved["outcome"], "transferred", "{moved}");
    assert_eq!(scene.cluster.leader_above(fence), other);
    wait_until_refused(&scene.cluster, other, older);
    // Dead it is a member still.
    scene.cluster.settled();
    scene.cluster.node_mut(older).kill();
    wait_until_refused(&scene.cluster, other, older);
    // Also after a restart of everybody who is left: it is kept.
    for id in [leader, other] {
        scene.cluster.node_mut(id).stop(SOON);
    }
    for id in [leader, other] {
        scene.cluster.node_mut(id).start();
    }
    let now = scene.cluster.leader();
    wait_until_refused(&scene.cluster, now, older);
    // Upgraded.
    scene.net.claim(older, None);
    scene.cluster.node_mut(older).start();
    let now = scene.cluster.leader();
    wait_for("the upgraded node has said what it knows", SOON, || {
        configure(&scene.cluster, now, "3s").map_err(anyhow::Error::msg)
    });
    scene.cluster.end();
}

#[test]
fn a_node_that_knows_less_is_not_added() {
    let mut scene = Scene::new(3, Settings::new());
    let leader = scene.cluster.leader();
    let id = start_joiner(&mut scene.cluster);
    let behind = scene.net.before(id, &scene.cluster.node(id).peer);
    let mut joiner = add(scene.cluster.node(id));
    joiner["peerAddr"] = behind.into();
    scene.net.claim(id, Some(&OLDER));
    assert_refused(&scene.cluster, leader, "raft_addLearner", joiner.clone(), "upgradeNeeded");
    scene.net.claim(id, None);
    joiner["wait"] = true.into();
    call(&scene.cluster, leader, "raft_addLearner", joiner);
    scene.cluster.end();
}
