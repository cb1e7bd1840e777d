//! Nodes that must not start, or must not be let in: each is refused with a message that says what and
//! where, and the cluster goes on.
//!
//! | test | attacks |
//! | --- | --- |
//! | another_cluster_id_… | design 4: `IDENTITY` against the config, and at connect in both directions |
//! | a_second_node_with_a_taken_id_is_refused | safety 8: incarnation |
//! | a_wiped_node_is_refused… | safety 8: it may have voted |
//! | different_founding_lists_never_form_a_cluster | safety 9 |
//! | an_unspecified_advertise_address_is_refused | design 10, exit 2 |
//! | a_second_process_on_the_same_folder_is_refused | design 4: our own lock first, exit 1 |
//! | the_exit_code_says_it_… | design 4 and 10: exit 4, which keeps a supervisor from starting it again |
//! | a_cluster_for_a_moment_… | design 10, exit 2, before a node is started |

use std::{fs, process::Stdio, time::Duration};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::support::{
    block::{Block, Way},
    cluster::{CLUSTER_ID, Cluster},
    config::{Founder, Settings, settings},
    exposition::Scrape,
    folder::listing,
    node::{Node, binary},
    stream::fill,
    wait::{SOON, pause, wait_for},
};

/// Exit codes of design 10.
const REFUSED: i32 = 1;
const USAGE: i32 = 2;
const FOLDER: i32 = 4;

/// One more block is agreed on by the nodes that run.
#[track_caller]
fn goes_on(cluster: &mut Cluster) {
    let leader = cluster.leader();
    let height = cluster.height(leader) + 1;
    let mut conn = cluster.node(leader).connect();
    Block::new(height, "goes on").propose(&mut conn, Way::JsonRpc, None).acknowledged();
    cluster.settled();
}

/// A stranger has no leader, holds nothing, and is no member.
#[track_caller]
fn assert_outside(cluster: &Cluster, stranger: &Node) {
    let status = stranger.status().expect("it answers");
    assert_eq!(status["leaderId"], Value::Null, "it follows somebody: {status}");
    assert_eq!(status["head"], Value::Null, "it was given blocks: {status}");
    assert_eq!(status["ready"], false);
    let response = stranger.get("/readyz", &[]).expect("it answers");
    assert_eq!(response.status, 503, "/readyz of a stranger: {}", response.text());
    for node in &cluster.nodes {
        let members = node.status().expect("it answers")["membership"].clone();
        assert_eq!((&members["voters"], &members["learners"]), (&json!([1, 2, 3]), &json!([])));
    }
}

#[test]
fn another_cluster_id_in_the_config_of_a_folder_is_refused() {
    let mut cluster = Cluster::new(1, Settings::new());
    cluster.start();
    fill(&cluster.node(1).api.clone(), &[Block::new(1, "mine")]);
    cluster.node_mut(1).stop(SOON);
    let founders = cluster.founders();
    cluster.node(1).write_config("another-cluster", &founders, &Settings::new());
    let folder = cluster.node(1).data_dir.to_string_lossy().into_owned();
    cluster.node_mut(1).assert_refuses(FOLDER, &[&folder, CLUSTER_ID, "another-cluster"]);
    // The same with another node's id.
    let mut other = Node::new(1, &cluster.node(1).data_dir.with_extension("other"));
    fs::create_dir_all(other.config.parent().expect("it has one")).expect("writable");
    other.id = 9;
    other.data_dir.clone_from(&cluster.node(1).data_dir);
    other.write_config(CLUSTER_ID, &founders, &Settings::new());
    other.assert_refuses(FOLDER, &[&folder, "9", "1"]);
    // Nothing was touched: with the right config it goes on.
    cluster.write_configs();
    cluster.node_mut(1).start();
    cluster.leader();
    assert_eq!(cluster.height(1), 1);
}

#[test]
fn another_cluster_id_is_refused_at_connect() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_strangers();
    let dir = tempfile::tempdir().expect("writable");
    let mut stranger = Node::new(4, dir.path());
    let mut founders = cluster.founders();
    founders.push(stranger.founder());
    stranger.write_config("another-cluster", &founders, &Settings::new());
    stranger.start();
    // Both sides say why, and name both clusters.
    stranger.wait_line(&[CLUSTER_ID, "another-cluster"]);
    goes_on(&mut cluster);
    assert_outside(&cluster, &stranger);
    cluster.end();
}

#[test]
fn a_second_node_with_a_taken_id_is_refused() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_strangers();
    goes_on(&mut cluster);
    // A copy of node 2's config on another machine: other addresses, an own folder, the same id.
    let dir = tempfile::tempdir().expect("writable");
    let mut second = Node::new(2, dir.path());
    second.write_config(CLUSTER_ID, &cluster.founders(), &Settings::new());
    second.start();
    second.wait_line(&["incarnation"]);
    goes_on(&mut cluster);
    assert_outside(&cluster, &second);
    let leader = cluster.leader();
    let members = cluster.node(leader).call("raft_members", &Value::Null).expect("it answers");
    let two = members["voters"].as_array().and_then(|v| v.iter().find(|m| m["nodeId"] == 2));
    assert_eq!(two.map(|m| &m["peerAddr"]), Some(&json!(cluster.node(2).peer)), "its address stays");
    cluster.end();
}

#[test]
fn a_wiped_node_is_refused_and_counts_for_nothing() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_strangers();
    goes_on(&mut cluster);
    let leader = cluster.leader();
    let [wiped, other] = cluster.others(leader)[..] else { panic!("two others") };
    cluster.node_mut(wiped).stop(SOON);
    cluster.node_mut(wiped).wipe();
    cluster.node_mut(wiped).start();
    cluster.node(wiped).wait_line(&["incarnation"]);
    // Each of the two refuses it on every connection, for as long as it runs.
    wait_for("they refused it ten times", SOON, || {
        let text = cluster.node(wiped).get("/metrics", &[])?.text();
        let n =
            Scrape::parse(&text).get("blockraft_peer_rpc_errors_total", &[("rpc", "hello")]).unwrap_or(0.0);
        ensure!(10.0 <= n, "{n} times");
        Ok(())
    });
    let lines = cluster.node(wiped).lines();
    let n_said = lines.iter().filter(|line| line.message.contains("peer is refused")).count();
    assert!(n_said <= 4, "{n_said} lines: one for each of the two and the side that dialled");
    assert!(!lines.iter().any(|line| line.message.contains("admitted again")), "nobody admitted it");
    // The two that are left go on, and it is given nothing.
    let mut conn = cluster.node(leader).connect();
    Block::new(2, "without it").propose(&mut conn, Way::JsonRpc, None).acknowledged();
    let status = cluster.node(wiped).status().expect("it answers");
    assert_eq!((&status["leaderId"], &status["head"]), (&Value::Null, &Value::Null));
    // With the other one gone no majority is left: the wiped one must neither vote nor acknowledge.
    cluster.node_mut(other).stop(SOON);
    wait_for("the leader withdraws its fence", SOON, || {
        let status = cluster.node(leader).status()?;
        ensure!(status["ready"] == false, "ready");
        Ok(())
    });
    let mut conn = cluster.node(leader).connect();
    Block::new(3, "no quorum").propose(&mut conn, Way::JsonRpc, None).refused();
    cluster.node_mut(wiped).stop(SOON);
    cluster.node_mut(other).start();
    goes_on(&mut cluster);
    assert_eq!(cluster.settled()[0]["head"]["height"], 3);
}

#[test]
fn different_founding_lists_never_form_a_cluster() {
    let mut cluster = Cluster::new(3, Settings::new());
    let all = cluster.founders();
    let spare = Founder { id: 4, peer: "127.0.0.1:1".into(), api: "127.0.0.1:2".into() };
    // Every two of them share a majority of names, no two the same list.
    let lists: [Vec<Founder>; 3] = [
        all.clone(),
        vec![all[0].clone(), all[1].clone(), all[2].clone(), spare],
        vec![all[1].clone(), all[2].clone()],
    ];
    for (node, list) in cluster.nodes.iter().zip(&lists) {
        node.write_config(CLUSTER_ID, list, &Settings::new());
    }
    cluster.nodes.iter_mut().for_each(Node::start);
    for node in &cluster.nodes {
        node.wait_line(&["founding", "differ"]);
        let status = node.status().expect("it answers");
        assert_eq!(status["leaderId"], Value::Null, "node {}: {status}", node.id);
        assert_eq!(status["membership"]["voters"], json!([]), "node {}: {status}", node.id);
        let response = node.get("/readyz", &[]).expect("it answers");
        assert_eq!(response.status, 503);
    }
    // Nothing was written that stands in the way once the lists are the same.
    cluster.nodes.iter_mut().for_each(Node::kill);
    cluster.write_configs();
    cluster.nodes.iter_mut().for_each(Node::start);
    cluster.allow("founding list");
    goes_on(&mut cluster);
    cluster.end();
}

#[test]
fn one_node_with_another_founding_list_stays_outside_until_it_is_mended() {
    let mut cluster = Cluster::new(3, Settings::new());
    let mut list = cluster.founders();
    list[0].peer = "127.0.0.1:1".into();
    cluster.node(3).write_config(CLUSTER_ID, &list, &Settings::new());
    cluster.nodes.iter_mut().for_each(Node::start);
    // The two that agree are a majority of their list and found the cluster; the third is a member of it
    // by their list, and as one without data it may follow.
    wait_for("two found the cluster", SOON, || {
        for id in [1, 2] {
            let status = cluster.node(id).status()?;
            ensure!(!status["leaderId"].is_null(), "node {id} has no leader");
            assert_eq!(status["membership"]["voters"], json!([1, 2, 3]));
        }
        Ok(())
    });
    cluster.node_mut(3).kill();
    cluster.write_configs();
    cluster.node_mut(3).start();
    cluster.allow("founding list");
    goes_on(&mut cluster);
    assert_eq!(cluster.settled().len(), 3);
}

#[test]
fn an_unspecified_advertise_address_is_refused() {
    for (what, listen, insecure) in
        [("peer.advertise", "peer.listen", "peer.insecure"), ("api.advertise", "api.listen", "api.insecure")]
    {
        for address in ["0.0.0.0:17501", "[::]:17501"] {
            let mut cluster = Cluster::new(1, Settings::new());
            // Given, and left out where the listen address stands in for it.
            cluster.settings = settings([(what, address.into())]);
            cluster.write_configs();
            cluster.node_mut(1).assert_refuses(USAGE, &[what, address]);
            cluster.settings = settings([(insecure, true.into())]);
            cluster.node_mut(1).settings = settings([(listen, address.into())]);
            cluster.write_configs();
            cluster.node_mut(1).assert_refuses(USAGE, &[what, address]);
            assert!(!cluster.node(1).data_dir.exists(), "a refused config makes no folder");
        }
    }
}

/// What supervisors go by: `RestartPreventExitStatus=2 4`.
#[test]
fn the_exit_code_says_it_where_nothing_can_be_written() {
    let mut cluster = Cluster::new(1, Settings::new());
    cluster.start();
    cluster.node_mut(1).stop(SOON);
    let node = cluster.node(1);
    let identity = node.data_dir.join("IDENTITY");
    let whole = fs::read(&identity).expect("it reads");
    fs::write(&identity, b"").expect("it writes");
    for full in [false, true] {
        let mut command = binary();
        command.args(["node", "--config"]).arg(&node.config).stdin(Stdio::null());
        if full {
            let nowhere = || fs::OpenOptions::new().write(true).open("/dev/full").expect("it opens");
            command.stdout(nowhere()).stderr(nowhere());
        } else {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        let status = command.status().expect("it runs");
        assert_eq!(status.code(), Some(FOLDER), "/dev/full: {full}");
    }
    fs::write(&identity, whole).expect("it writes");
    cluster.node_mut(1).start();
    cluster.leader();
    cluster.end();
}

#[test]
fn a_second_process_on_the_same_folder_is_refused() {
    let mut cluster = Cluster::new(1, Settings::new());
    cluster.start();
    fill(&cluster.node(1).api.clone(), &[Block::new(1, "one")]);
    let dir = tempfile::tempdir().expect("writable");
    let mut second = Node::new(1, dir.path());
    second.data_dir.clone_from(&cluster.node(1).data_dir);
    second.write_config(CLUSTER_ID, &cluster.founders(), &Settings::new());
    let folder = second.data_dir.to_string_lossy().into_owned();
    // What the block leaves to write is written.
    let before = wait_for("nothing is written any more", SOON, || {
        let now = listing(&second.data_dir);
        pause(Duration::from_millis(300));
        ensure!(listing(&second.data_dir) == now, "something still is");
        Ok(now)
    });
    // Whose it is: a person must find the other process.
    second.assert_refuses(REFUSED, &[&folder]);
    assert_eq!(listing(&second.data_dir), before, "names, sizes and times");
    let from = Block::new(2, "two");
    fill(&cluster.node(1).api.clone(), &[from]);
    // The folder is whole: what was written meanwhile is there after a kill.
    cluster.node_mut(1).kill();
    cluster.node_mut(1).start();
    cluster.leader();
    assert_eq!(cluster.height(1), 2);
    cluster.end();
}

/// `dev` and `bench --nodes` say what a node would, and start none.
#[test]
fn a_cluster_for_a_moment_with_settings_that_do_not_fit_is_refused() {
    let set = ["--set", "raft.heartbeat_timeout=60ms", "--set", "raft.heartbeats=10ms"];
    for command in [&["dev"][..], &["bench", "--nodes", "3", "--json"]] {
        let output = binary().args(command).args(set).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(USAGE), "{command:?}: {said}");
        assert!(output.stdout.is_empty(), "{command:?}: {}", String::from_utf8_lossy(&output.stdout));
        for what in ["raft.heartbeat_timeout", "raft.heartbeat_interval", "raft.heartbeats"] {
            assert!(said.contains(what), "{command:?} does not name {what}: {said}");
        }
    }
}
