//! A change of membership whose leader dies between its two entries: the next one finishes it.
//!
//! | test | attacks |
//! | --- | --- |
//! | what_a_dead_leader_left_is_finished | safety 21a: joint on every node that is left, and nobody to change it |
//!
//! Made certain, not likely: what followers answer about log data is held back, so the first entry is on every node,
//! the leader learns of none, and the second is not written. Heartbeats are answered, so it leads on until it is killed.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};

use crate::support::{
    NodeId,
    cluster::Roles,
    config::Settings,
    members::{assert_uniform, send_and_leave},
    net::Way,
    scene::Scene,
    wait::{SOON, wait_for},
};

/// The call is read; its outcome nobody waits for.
const READ_WITHIN: Duration = Duration::from_millis(50);

fn contains(membership: &Value, suffrage: &str, id: NodeId) -> bool {
    membership[suffrage].as_array().is_some_and(|ids| ids.contains(&json!(id)))
}

#[test]
fn what_a_dead_leader_left_is_finished() {
    // Of five, so that a quorum of both halves outlives the leader.
    let mut scene = Scene::new(5, Settings::new());
    scene.cluster.settled();
    // Whose vote is taken may be the one that takes over, and hands over in turn.
    scene.cluster.allow("this leader is not fit");
    let changed = scene.roles().others[0];
    // A removal that is cut short leaves a learner: it is asked for again.
    for (method, becomes) in
        [("raft_demote", "learners"), ("raft_promote", "voters"), ("raft_removeMember", "learners")]
    {
        // The node that is changed follows, so the leader may be killed.
        let Roles { leader, fence, others } = match scene.roles() {
            roles if roles.leader != changed => roles,
            roles => {
                let params = json!({"to": roles.others[0]});
                scene.cluster.node(changed).call("raft_transferLeader", &params).expect("it is fit");
                scene.cluster.leader_above(roles.fence);
                scene.roles()
            }
        };
        scene.cluster.settled();
        let before = assert_uniform(&mut scene.cluster);
        scene.net.set_all(&others, &[leader], Way::LOG_CUT);
        let params = json!({"nodeId": changed});
        send_and_leave(scene.cluster.node(leader), method, &params, READ_WITHIN);
        wait_for("every follower's membership is joint", SOON, || {
            for id in &others {
                let membership = scene.cluster.node(*id).status()?["membership"].clone();
                ensure!(membership["joint"] == true, "{method}: node {id} has {membership}");
            }
            Ok(())
        });
        let said = scene.cluster.nodes.iter().map(|node| node.lines().len()).collect::<Vec<_>>();
        scene.cluster.node_mut(leader).kill();
        let new = scene.cluster.leader_among(&others, fence);
        let after = assert_uniform(&mut scene.cluster);
        assert!(before["version"].as_u64() < after["version"].as_u64(), "{before}, {after}");
        assert!(contains(&after, becomes, changed), "{method}: {after}");
        let finishes = |id: &NodeId| {
            let lines = scene.cluster.node(*id).lines();
            lines[said[*id as usize - 1]..].iter().any(|l| l.names(&["finishing a change of membership"]))
        };
        assert!(others.iter().any(finishes), "node {new} leads, and nobody finished anything");
        scene.net.heal();
        scene.cluster.node_mut(leader).start();
        scene.cluster.leader();
        scene.cluster.settled();
    }
    scene.cluster.end();
}
