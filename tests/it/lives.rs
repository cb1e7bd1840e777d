//! Nodes that lost what they knew, or know something else than the others.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_wiped_node_comes_back_by_remove_and_add | safety 8: the record's incarnation overrules |
//! | a_folder_put_back_from_an_older_copy… | safety 8: both positions are named |
//! | a_leaders_folder_put_back_… | safety 8: what a leader held itself is known too |
//! | a_leader_that_was_added_again_… | safety 8: the newer membership record overrules |
//! | a_node_ends_that_the_others_contradict | safety 8: what was committed is never taken for something else |

use std::{fs, path::PathBuf, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    NodeId,
    cluster::Cluster,
    config::Settings,
    folder::{FOLDER, copy_dir},
    members::{add, call, one_more_block},
    node::Node,
    wait::{SOON, pause, wait_for},
};

/// The folder of a node that is down, as it was once.
struct Older {
    data: PathBuf,
    copy: PathBuf,
}

impl Older {
    fn of(node: &Node) -> Self {
        let (data, copy) = (node.data_dir.clone(), node.data_dir.with_extension("copy"));
        copy_dir(&data, &copy);
        Self { data, copy }
    }

    /// The node is down again.
    fn put_back(self) {
        fs::remove_dir_all(&self.data).expect("writable");
        fs::rename(&self.copy, &self.data).expect("writable");
    }
}

/// A voter goes, and comes back as one.
#[track_caller]
fn remove_and_add(cluster: &Cluster, leader: NodeId, id: NodeId) {
    call(cluster, leader, "raft_removeMember", json!({"nodeId": id}));
    let mut params = add(cluster.node(id));
    params["wait"] = true.into();
    call(cluster, leader, "raft_addLearner", params);
    call(cluster, leader, "raft_promote", json!({"nodeId": id}));
}

#[test]
fn a_wiped_node_comes_back_by_remove_and_add() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_strangers();
    cluster.allow_deaths();
    let leader = cluster.leader();
    one_more_block(&cluster, leader);
    cluster.settled();
    let wiped = cluster.others(leader)[0];
    cluster.node_mut(wiped).stop(SOON);
    cluster.node_mut(wiped).wipe();
    cluster.node_mut(wiped).start();
    cluster.node(leader).wait_line(&["incarnation", &wiped.to_string()]);
    remove_and_add(&cluster, leader, wiped);
    let leader = cluster.leader();
    one_more_block(&cluster, leader);
    cluster.end();
}

#[test]
fn a_folder_put_back_from_an_older_copy_is_refused() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_strangers();
    cluster.allow_deaths();
    let leader = cluster.leader();
    one_more_block(&cluster, leader);
    cluster.settled();
    let old = cluster.others(leader)[0];
    cluster.node_mut(old).stop(SOON);
    let older = Older::of(cluster.node(old));
    cluster.node_mut(old).start();
    let leader = cluster.leader();
    (0..20).for_each(|_| one_more_block(&cluster, leader));
    cluster.settled();
    // How far each came is written down and told once a second.
    pause(Duration::from_secs(3));
    cluster.node_mut(old).stop(SOON);
    older.put_back();
    cluster.node_mut(old).start();
    let said = cluster.node(leader).wait_line(&["it had acknowledged index"]);
    assert!(said.text.contains(&format!("node {old} ends at index")), "{}", said.text);
    cluster.node(old).wait_line(&["it had acknowledged index"]);
    // Whoever leads next knows it too.
    let other = cluster.others(leader).into_iter().find(|id| *id != old).expect("a third");
    cluster.node(other).wait_line(&["it had acknowledged index"]);
    assert_eq!(cluster.node(old).status().expect("it answers")["leaderId"], Value::Null);
    // The only way back.
    remove_and_add(&cluster, leader, old);
    cluster.leader();
    cluster.end();
}

#[test]
fn a_leaders_folder_put_back_from_an_older_copy_is_refused_too() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_strangers();
    cluster.allow_deaths();
    let old = cluster.leader();
    one_more_block(&cluster, old);
    cluster.settled();
    cluster.node_mut(old).kill();
    let older = Older::of(cluster.node(old));
    let other = cluster.leader();
    cluster.node_mut(old).start();
    cluster.settled();
    wait_for("it leads again", SOON, || {
        cluster.node(other).call("raft_transferLeader", &json!({"to": old}))?;
        Ok(())
    });
    assert_eq!(cluster.leader(), old);
    (0..20).for_each(|_| one_more_block(&cluster, old));
    cluster.settled();
    // What it holds itself it tells once a second, as what the others hold.
    pause(Duration::from_secs(3));
    cluster.node_mut(old).kill();
    older.put_back();
    let other = cluster.leader();
    cluster.node_mut(old).start();
    let said = cluster.node(other).wait_line(&["it had acknowledged index"]);
    assert!(said.text.contains(&format!("node {old} ends at index")), "{}", said.text);
    cluster.node_mut(old).kill();
    cluster.end();
}

#[test]
fn a_node_ends_that_the_others_contradict() {
    // What no quorum can undo: a node that acknowledged a block forgets it, and leads with one that was away.
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_strangers();
    cluster.allow_deaths();
    let leader = cluster.leader();
    let [away, old] = cluster.others(leader)[..] else { panic!("two others") };
    one_more_block(&cluster, leader);
    cluster.settled();
    cluster.node_mut(old).kill();
    let older = Older::of(cluster.node(old));
    cluster.node_mut(old).start();
    cluster.settled();
    cluster.node_mut(away).kill();
    let leader = cluster.leader();
    (0..3).for_each(|_| one_more_block(&cluster, leader));
    cluster.settled();
    [leader, old].into_iter().for_each(|id| cluster.node_mut(id).kill());
    older.put_back();
    [away, old].into_iter().for_each(|id| cluster.node_mut(id).start());
    let other = cluster.leader();
    (0..3).for_each(|_| one_more_block(&cluster, other));
    cluster.node_mut(leader).assert_refuses(FOLDER, &["leads with another entry", "older copy"]);
    for part in ["the store cannot go on", "the node cannot go on"] {
        cluster.allow(part);
    }
    cluster.end();
}

#[test]
fn a_leader_that_was_added_again_is_known_to_who_was_away() {
    let mut cluster = Cluster::new(5, Settings::new());
    cluster.start();
    cluster.allow_strangers();
    cluster.allow_deaths();
    let leader = cluster.leader();
    let [wiped, away, ..] = cluster.others(leader)[..] else { panic!("four others") };
    one_more_block(&cluster, leader);
    cluster.settled();
    cluster.node_mut(away).kill();
    cluster.node_mut(wiped).stop(SOON);
    cluster.node_mut(wiped).wipe();
    cluster.node_mut(wiped).start();
    cluster.node(leader).wait_line(&["incarnation", &wiped.to_string()]);
    remove_and_add(&cluster, leader, wiped);
    wait_for("the node that came back leads", SOON, || {
        cluster.node(leader).call("raft_transferLeader", &json!({"to": wiped}))?;
        Ok(())
    });
    assert_eq!(cluster.leader(), wiped);
    // Its log has no record of the leader's new life, and only the leader can send it.
    cluster.node_mut(away).start();
    cluster.settled();
    one_more_block(&cluster, wiped);
    cluster.end();
}
