//! Three nodes agree, whoever dies.
//!
//! | test | attacks |
//! | --- | --- |
//! | blocks_read_back_equal_on_every_node | promises 1 and 2 with nothing failing |
//! | one_entry_for_the_same_block_and_an_error_for_another | promise 2 |
//! | a_follower_says_who_leads | safety 20: `ForwardToLeader` is a refusal |
//! | a_stopped_follower_catches_up_… | safety 7, 23, 28, 29: from the log, and by snapshot once it is purged |
//! | a_cluster_is_founded_in_any_order | safety 9 |
//! | the_leader_dies_… | promises 1 to 3; safety 1, 2, 11, 16, 18 |
//! | all_nodes_die_… | promise 1; safety 2 to 6, 28, 33 |
//! | a_leader_that_dies_in_a_burst_… | safety 1: no leader restore, so no two contents under one log id |
//! | a_node_killed_while_it_applies_… | safety 3, 28: the state never ahead of the synced log |

use std::{collections::BTreeMap, sync::Arc};

use anyhow::ensure;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    block::{Answer, Block, Way},
    checker,
    cluster::{Cluster, assert_positions},
    config::{Settings, long_history, settings},
    http::Connection,
    stream::{Stream, fill},
    wait::{LATER, SOON, wait_for},
    writer::{Attempt, History, Writer},
};

/// Blocks acknowledged between two kills.
const ACKNOWLEDGED_BETWEEN: usize = 20;
const LEADER_KILLS: usize = 20;
const KILLS_OF_ALL: usize = 10;

fn blocks(from: u64, n: u64, salt: &str) -> Vec<Block> {
    (from..from + n).map(|height| Block::new(height, salt)).collect()
}

#[test]
fn blocks_read_back_equal_on_every_node() {
    let mut cluster = Cluster::three(Settings::new());
    let leader = cluster.leader();
    let mut conn = cluster.node(leader).connect();
    let mut places = Vec::new();
    let mut blocks = blocks(1, 40, "equal");
    for at in 0..blocks.len() {
        if at % 5 == 4 {
            blocks[at].parent_hash = Some(blocks[at - 1].hash.clone());
        }
        let way = if at % 2 == 0 { Way::JsonRpc } else { Way::Protobuf };
        places.push(blocks[at].propose(&mut conn, way, None).acknowledged());
    }
    assert!(places.is_sorted(), "places in the log rise with the heights: {places:?}");
    cluster.settled();
    for node in &cluster.nodes {
        let rows = node.range(1, 40).expect("it answers");
        assert_eq!(rows.len(), 40, "node {}", node.id);
        for ((block, (term, index)), row) in blocks.iter().zip(&places).zip(&rows) {
            block.assert_json(&row["block"]);
            assert_eq!((&row["term"], &row["index"]), (&json!(term), &json!(index)));
            let path = format!("/v1/blocks/{}", block.height);
            let got = node.get(&path, &[]).expect("it answers");
            assert_eq!(got.json().as_ref(), Some(row), "{path} as JSON on node {}", node.id);
            let got = node.get(&path, &[("Accept", "application/x-protobuf")]).expect("it answers");
            assert_eq!(&Block::from_protobuf(&got.body), block, "{path} as protobuf on node {}", node.id);
            assert_eq!(got.header("blockraft-term"), Some(term.to_string().as_str()));
            assert_eq!(got.header("blockraft-index"), Some(index.to_string().as_str()));
        }
        for consistency in ["local", "linearizable"] {
            let head = node.call("block_head", &json!({"consistency": consistency})).expect("it answers");
            assert_eq!(
                head["block"]["hash"],
                blocks[39].hash_hex(),
                "{consistency} head of node {}",
                node.id
            );
        }
    }
    cluster.end();
}

#[test]
fn one_entry_for_the_same_block_and_an_error_for_another() {
    let mut cluster = Cluster::three(Settings::new());
    let leader = cluster.leader();
    let mut conn = cluster.node(leader).connect();
    let first = Block::new(1, "first");
    let place = first.propose(&mut conn, Way::JsonRpc, None).acknowledged();
    let last = cluster.node(leader).status().expect("it answers")["lastLogIndex"].clone();
    let mut again = first.clone();
    (again.da_header, again.da_data) = (7, 7);
    for (block, way) in [(&first, Way::JsonRpc), (&first, Way::Protobuf), (&again, Way::JsonRpc)] {
        match block.propose(&mut conn, way, Some(99)) {
            Answer::Acknowledged { term, index, is_duplicate: true } => assert_eq!((term, index), place),
            other => panic!("the same block again by {way:?}: {other:?}"),
        }
    }
    for way in [Way::JsonRpc, Way::Protobuf] {
        let answer = Block::new(1, "other").propose(&mut conn, way, None);
        let error = answer.refused();
        assert_eq!((error.code, error.reason()), (-32033, "conflict"));
        assert_eq!(error.data["head"]["hash"], first.hash_hex(), "a conflict names the head");
    }
    let after = cluster.node(leader).status().expect("it answers")["lastLogIndex"].clone();
    assert_eq!(after, last, "neither a duplicate nor a conflict is appended");
    cluster.end();
}

#[test]
fn a_follower_says_who_leads() {
    let mut cluster = Cluster::three(Settings::new());
    let leader = cluster.leader();
    let api = cluster.node(leader).api.clone();
    for follower in cluster.others(leader) {
        let mut conn = cluster.node(follower).connect();
        for way in [Way::JsonRpc, Way::Protobuf] {
            let answer = Block::new(1, "misled").propose(&mut conn, way, None);
            let error = answer.refused();
            assert_eq!((error.code, error.reason()), (-32030, "notLeader"));
            assert_eq!(error.data["leaderId"], leader);
            assert_eq!(error.data["leaderApi"], api.as_str());
        }
        let headers = [("Content-Type", "application/x-protobuf")];
        let body = Block::new(1, "misled").to_protobuf();
        let response = conn.request("POST", "/v1/blocks", &headers, &body).expect("it answers");
        assert_eq!(response.status, 421);
        assert_eq!(response.header("blockraft-leader"), Some(api.as_str()));
    }
    assert_eq!(cluster.settled()[0]["head"], Value::Null, "nothing was forwarded");
    cluster.end();
}

/// Two thousand blocks without one follower; then it is there again with all of them.
fn catch_up(more: Settings, is_purged: bool) -> Cluster {
    let mut all = long_history();
    all.extend(more);
    let mut cluster = Cluster::three(all);
    cluster.allow_deaths();
    let leader = cluster.leader();
    let api = cluster.node(leader).api.clone();
    let mut places = fill(&api, &blocks(1, 20, "before"));
    let follower = cluster.others(leader)[0];
    let index = |cluster: &Cluster, id, name: &str| {
        cluster.node(id).status().expect("it answers")[name].as_u64().unwrap_or(0)
    };
    let last = index(&cluster, follower, "lastLogIndex");
    cluster.node_mut(follower).stop(SOON);
    let term = cluster.node(leader).status().expect("it answers")["term"].clone();
    places.extend(fill(&api, &blocks(21, 2_000, "without")));
    wait_for("the leader's log begins where it is to", SOON, || {
        let purged = index(&cluster, leader, "purgedIndex");
        ensure!((last < purged) == is_purged, "purged to {purged}, the follower has {last}");
        Ok(())
    });
    cluster.node_mut(follower).start();
    wait_for("the follower catches up", LATER, || {
        let status = cluster.node(follower).status()?;
        ensure!(status["head"]["height"] == 2_020, "head {}", status["head"]["height"]);
        Ok(())
    });
    for status in cluster.settled() {
        assert_eq!(status["term"], term, "catching up costs no election");
    }
    let held = cluster.node(follower).range(1, 2_020).expect("it answers");
    let of = |row: &Value| (row["term"].as_u64().unwrap_or(0), row["index"].as_u64().unwrap_or(0));
    assert_eq!(held.iter().map(of).collect::<Vec<_>>(), places, "every block where it was acknowledged");
    assert_eq!(held, cluster.node(leader).range(1, 2_020).expect("it answers"), "the same blocks");
    cluster
}

#[test]
fn a_stopped_follower_catches_up_from_the_log() {
    let never = toml::Value::Integer(1_000_000);
    catch_up(settings([("snapshot.threshold", never.clone()), ("snapshot.trailing_logs", never)]), false)
        .end();
}

#[test]
fn a_stopped_follower_catches_up_by_snapshot_when_the_log_is_purged() {
    let small = |n| toml::Value::Integer(n);
    catch_up(settings([("snapshot.threshold", small(100)), ("snapshot.trailing_logs", small(10))]), true)
        .end();
}

#[test]
fn a_cluster_is_founded_in_any_order() {
    for order in [[1, 2, 3], [3, 1, 2], [2, 3, 1]] {
        let mut cluster = Cluster::new(3, Settings::new());
        cluster.allow_deaths();
        cluster.node_mut(order[0]).start();
        wait_for("the first node answers", SOON, || cluster.node(order[0]).status());
        // One of three is no majority: it must not found a cluster of its own, also over a restart.
        let status = cluster.node(order[0]).status().expect("it answers");
        assert_eq!((&status["leaderId"], &status["head"]), (&Value::Null, &Value::Null));
        cluster.node_mut(order[0]).kill();
        cluster.node_mut(order[0]).start();
        cluster.node_mut(order[1]).start();
        let leader = cluster.leader();
        let mut conn = cluster.node(leader).connect();
        Block::new(1, "two of three").propose(&mut conn, Way::JsonRpc, None).acknowledged();
        cluster.node_mut(order[2]).start();
        assert_eq!(cluster.settled().len(), 3);
        for id in order {
            let status = cluster.node(id).status().expect("it answers");
            assert_eq!(status["membership"]["voters"], json!([1, 2, 3]), "node {id}");
        }
        cluster.end();
    }
}

/// Waits until the producers got so many more acknowledgements.
fn wait_for_load(history: &History, more: usize) {
    let enough = history.n_acknowledged() + more;
    wait_for("blocks are acknowledged", SOON, || {
        let n = history.n_acknowledged();
        ensure!(enough <= n, "{n} of {enough}");
        Ok(())
    });
}

fn two_writers(cluster: &Cluster, history: &Arc<History>) -> [Writer; 2] {
    [("json", Way::JsonRpc), ("protobuf", Way::Protobuf)]
        .map(|(name, way)| Writer::start(name, way, cluster.endpoints(), history.clone()))
}

#[test]
fn the_leader_dies_twenty_times_under_load() {
    let mut cluster = Cluster::three(long_history());
    cluster.allow_deaths();
    let history = Arc::new(History::default());
    let writers = two_writers(&cluster, &history);
    for round in 0..LEADER_KILLS {
        wait_for_load(&history, ACKNOWLEDGED_BETWEEN);
        let old = cluster.leader();
        let term = cluster.node(old).status().expect("it answers")["term"].as_u64().expect("a term");
        cluster.node_mut(old).kill();
        // Every other time it is back at once, within the patience of the others: it must not lead on in
        // its old term (safety 1), nor vote twice (safety 2, 16).
        let is_back_at_once = round % 2 == 0;
        if is_back_at_once {
            cluster.node_mut(old).start();
        }
        let new = cluster.leader_above(term);
        if !is_back_at_once {
            assert_ne!(new, old, "round {round}");
            cluster.node_mut(old).start();
            cluster.leader_above(term);
        }
    }
    wait_for_load(&history, ACKNOWLEDGED_BETWEEN);
    drop(writers);
    let heights = checker::check(&mut cluster, &history);
    assert!(LEADER_KILLS * ACKNOWLEDGED_BETWEEN <= heights, "only {heights} blocks");
    cluster.end();
}

#[test]
fn all_nodes_die_at_once_ten_times_under_load() {
    // A low threshold, so that kills meet snapshots and purges too.
    let mut all = long_history();
    all.insert("snapshot.threshold".into(), toml::Value::Integer(50));
    all.insert("snapshot.trailing_logs".into(), toml::Value::Integer(10));
    let mut cluster = Cluster::three(all);
    cluster.allow_deaths();
    let history = Arc::new(History::default());
    let writers = two_writers(&cluster, &history);
    for _ in 0..KILLS_OF_ALL {
        wait_for_load(&history, ACKNOWLEDGED_BETWEEN);
        let leader = cluster.leader();
        let term = cluster.node(leader).status().expect("it answers")["term"].as_u64().expect("a term");
        cluster.nodes.iter_mut().for_each(crate::support::node::Node::kill_at_once);
        for node in &mut cluster.nodes {
            node.kill();
            node.start();
        }
        // A restarted node never resumes its leadership: another term, also for the same node.
        cluster.leader_above(term);
    }
    wait_for_load(&history, ACKNOWLEDGED_BETWEEN);
    drop(writers);
    checker::check(&mut cluster, &history);
    cluster.end();
}

/// Sends blocks without waiting, and takes what is answered until the connection dies.
fn burst(addr: &str, fence: u64, blocks: &[Block]) -> Option<Stream> {
    let mut stream = Stream::open(addr, Some(fence)).ok()?;
    // A node that is killed meanwhile takes only the first of them.
    let _ = stream.send(blocks);
    Some(stream)
}

#[test]
fn a_leader_that_dies_in_a_burst_never_writes_another_entry_under_an_old_id() {
    let mut cluster = Cluster::three(long_history());
    cluster.allow_deaths();
    let history = History::default();
    for round in 0..6 {
        let leader = cluster.leader();
        let status = cluster.node(leader).status().expect("it answers");
        let (fence, height) = (status["fence"].as_u64().expect("ready"), cluster.height(leader));
        let api = cluster.node(leader).api.clone();
        let sent = blocks(height + 1, 300, &format!("burst {round}"));
        let mut stream = burst(&api, fence, &sent).expect("it was up");
        // Killed after the first answer: followers hold entries that this node's own disk may lack.
        let first = stream.next();
        cluster.node_mut(leader).kill();
        cluster.node_mut(leader).start();
        let mut answers: Vec<Answer> = first.ok().flatten().into_iter().collect();
        while let Ok(Some(answer)) = stream.next() {
            answers.push(answer);
        }
        let answers = answers.into_iter().chain(std::iter::repeat(Answer::Unknown("killed".into())));
        for (block, answer) in sent.iter().zip(answers) {
            let (height, hash) = (block.height, block.hash_hex());
            history.add(Attempt { height, hash, node: leader, fence, answer });
        }
        // Whoever leads now writes something else at the next heights.
        let new = cluster.leader_above(fence);
        let next = cluster.height(new) + 1;
        fill(&cluster.node(new).api.clone(), &blocks(next, 5, &format!("after {round}")));
    }
    checker::check(&mut cluster, &history);
    assert_one_content_per_index(&mut cluster);
    cluster.end();
}

/// Safety 1: under one log index all nodes hold the same block.
fn assert_one_content_per_index(cluster: &mut Cluster) {
    let mut contents: BTreeMap<u64, Value> = BTreeMap::new();
    for id in cluster.running() {
        let top = cluster.height(id);
        for row in cluster.node(id).range(1, top).expect("it answers") {
            let index = row["index"].as_u64().expect("a block has an index");
            let content = json!([row["term"], row["block"]["height"], row["block"]["hash"]]);
            let first = contents.entry(index).or_insert_with(|| content.clone());
            assert_eq!(*first, content, "two contents under index {index}");
        }
    }
}

#[test]
fn a_node_killed_while_it_applies_starts_again_with_its_state_behind_its_log() {
    // One node alone: nobody can give it back what it lost. Few entries are kept, so that every restart
    // stands on a snapshot and the log behind it.
    let mut all = long_history();
    all.insert("snapshot.threshold".into(), toml::Value::Integer(20));
    all.insert("snapshot.trailing_logs".into(), toml::Value::Integer(1));
    let mut cluster = Cluster::new(1, all);
    cluster.start();
    let history = History::default();
    for round in 0..10 {
        let status = cluster.node(1).status().expect("it answers");
        let (fence, height) = (status["fence"].as_u64().expect("ready"), cluster.height(1));
        let sent = blocks(height + 1, 400, &format!("round {round}"));
        let api = cluster.node(1).api.clone();
        let mut stream = burst(&api, fence, &sent).expect("it was up");
        // Another number of answers each time, so that the kill meets other moments.
        let mut answers: Vec<Answer> = Vec::new();
        for _ in 0..=round * 7 {
            answers.extend(stream.next().ok().flatten());
        }
        cluster.node_mut(1).kill();
        while let Ok(Some(answer)) = stream.next() {
            answers.push(answer);
        }
        let answers = answers.into_iter().chain(std::iter::repeat(Answer::Unknown("killed".into())));
        for (block, answer) in sent.iter().zip(answers) {
            history.add(Attempt { height: block.height, hash: block.hash_hex(), node: 1, fence, answer });
        }
        cluster.node_mut(1).start();
        cluster.leader_above(fence);
        assert_positions(&cluster.node(1).status().expect("it answers"));
    }
    checker::check(&mut cluster, &history);
    cluster.end();
}

#[test]
fn a_leader_cut_off_from_the_others_stops_being_one() {
    // Both followers stand still, as behind a broken switch: safety 11, 12 and 17. The leader's own view
    // must change though raft's does not.
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    let old = cluster.leader();
    let others = cluster.others(old);
    let term = cluster.node(old).status().expect("it answers")["term"].as_u64().expect("a term");
    others.iter().for_each(|id| cluster.node(*id).signal(Signal::STOP));
    wait_for("the leader withdraws its fence", SOON, || {
        let status = cluster.node(old).status()?;
        ensure!(status["ready"] == false && status["fence"].is_null(), "fence {}", status["fence"]);
        Ok(())
    });
    let mut conn = Connection::open(&cluster.node(old).api).expect("it answers");
    // Refused, not unknown: with the fence withdrawn nothing more is appended.
    Block::new(1, "alone").propose(&mut conn, Way::JsonRpc, Some(term)).refused();
    others.iter().for_each(|id| cluster.node(*id).signal(Signal::CONT));
    let new = cluster.leader();
    let mut conn = cluster.node(new).connect();
    Block::new(1, "together").propose(&mut conn, Way::JsonRpc, None).acknowledged();
    let head = cluster.settled()[0]["head"]["hash"].clone();
    assert_eq!(head, Block::new(1, "together").hash_hex(), "what was refused is not there");
    cluster.end();
}
