//! What must hold over many changes of leader, and over many callers that go away.
//!
//! | test | attacks |
//! | --- | --- |
//! | what_the_cluster_committed_never_falls_… | safety 12, observability: no node's view of it goes back |
//! | callers_that_go_away_… | safety 21a: each membership method, left at each moment |
//!
//! `make changes` asks for a thousand changes and a hundred callers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::support::{
    NodeId,
    bench::number,
    block::Way,
    cluster::Cluster,
    config::{Settings, long_history},
    exposition::Scrape,
    http::Connection,
    members::{add, assert_uniform, send_and_leave, start_joiner},
    rpc::call_on,
    wait::{SOON, pause, wait_for},
    writer::{History, Writer},
};

/// A thread that looks at a node again and again until it is told to end.
struct Watcher<T> {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Watcher<T> {
    fn start(look: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        Self { is_over, thread: thread::spawn(move || look(&over)) }
    }

    fn end(self) -> T {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("it panicked")
    }
}

fn status(conn: &mut Connection) -> Value {
    call_on(conn, "raft_status", &Value::Null).unwrap_or_else(|e| panic!("it answers: {e}"))
}

/// What a node says the cluster committed, by its status and by its gauge in turn; each time it fell, and how often it looked.
fn watch_committed(api: &str, is_over: &AtomicBool) -> (Vec<(u64, u64)>, usize) {
    let (mut last, mut falls, mut n) = (0, Vec::new(), 0);
    let mut conn = Connection::open(api).expect("it listens");
    while !is_over.load(Ordering::Relaxed) {
        let now = match n % 2 {
            0 => status(&mut conn)["clusterCommittedIndex"].as_u64(),
            _ => {
                let scraped = conn.request("GET", "/metrics", &[], b"").expect("it answers");
                let gauge = Scrape::parse(&scraped.text()).get("blockraft_raft_cluster_committed_index", &[]);
                gauge.map(|v| v as u64)
            }
        };
        let now = now.expect("it is always told");
        if now < last {
            falls.push((last, now));
        }
        last = now;
        n += 1;
        pause(Duration::from_millis(2));
    }
    (falls, n)
}

#[test]
fn what_the_cluster_committed_never_falls_over_changes_of_leader() {
    let n_changes = number("BLOCKRAFT_CHANGES", 30);
    let mut cluster = Cluster::three(long_history());
    let history = Arc::new(History::default());
    let writer = Writer::start("a", Way::Protobuf, cluster.endpoints(), history.clone());
    let watchers: Vec<_> = cluster
        .endpoints()
        .into_iter()
        .map(|(_, api)| Watcher::start(move |is_over| watch_committed(&api, is_over)))
        .collect();
    for n in 0..n_changes {
        let from = cluster.leader();
        let term = cluster.term_of(from);
        let to = cluster.others(from)[n as usize % 2];
        // Refused at times: the target is not as far as the leader yet.
        let moved = cluster.node(from).call("raft_transferLeader", &json!({"to": to}));
        if moved.is_ok() {
            cluster.leader_above(term);
            history.wait_for_more(1);
        }
    }
    for watcher in watchers {
        let (falls, n) = watcher.end();
        assert!(falls.is_empty(), "it fell: {falls:?}");
        assert!(n_changes as usize <= n, "{n} looks are too few for {n_changes} changes");
    }
    let leader = cluster.leader();
    let term = cluster.term_of(leader);
    assert!(n_changes / 2 < term, "only {term} terms");
    drop(writer);
    cluster.settled();
    cluster.end();
}

/// The longest time in which a node's membership was joint.
fn watch_joint(api: &str, is_over: &AtomicBool) -> Duration {
    let mut conn = Connection::open(api).expect("it listens");
    let (mut since, mut longest) = (None, Duration::ZERO);
    while !is_over.load(Ordering::Relaxed) {
        let is_joint = status(&mut conn)["membership"]["joint"] == true;
        match (is_joint, since) {
            (true, None) => since = Some(Instant::now()),
            (true, Some(since)) => longest = longest.max(Instant::now().duration_since(since)),
            (false, _) => since = None,
        }
        pause(Duration::from_millis(5));
    }
    longest
}

/// A method that means something for the node where it stands, by turns.
fn next_call(cluster: &Cluster, membership: &Value, id: NodeId, round: u64) -> (&'static str, Value) {
    let has = |kind: &str| membership[kind].as_array().is_some_and(|ids| ids.contains(&json!(id)));
    let by_id = json!({"nodeId": id});
    let rename = json!({"nodeId": id, "name": format!("round-{round}")});
    match (has("voters"), has("learners"), round % 3) {
        (true, _, 0) | (_, true, 0) => ("raft_updateMember", rename),
        (true, ..) => ("raft_demote", by_id),
        (_, true, 1) => ("raft_promote", by_id),
        (_, true, _) => ("raft_removeMember", by_id),
        _ => ("raft_addLearner", add(cluster.node(id))),
    }
}

#[test]
fn callers_that_go_away_from_each_membership_method_leave_nothing_joint() {
    let rounds = number("BLOCKRAFT_LEAVERS", 24);
    let mut cluster = Cluster::three(Settings::new());
    // It is removed, and its process goes on.
    cluster.allow_strangers();
    let joiner = start_joiner(&mut cluster);
    let leader = cluster.leader_among(&[1, 2, 3], 0);
    let api = cluster.node(leader).api.clone();
    let watcher = Watcher::start(move |is_over| watch_joint(&api, is_over));
    let mut membership = cluster.node(leader).status().expect("it answers")["membership"].clone();
    let mut methods = std::collections::BTreeSet::new();
    for round in 0..rounds {
        let (method, params) = next_call(&cluster, &membership, joiner, round);
        methods.insert(method);
        // From before it is read to after it is over, and not in step with the methods.
        let moment = Duration::from_micros(round * 7919 % 12_000);
        send_and_leave(cluster.node(leader), method, &params, moment);
        // What was begun ends by itself: the leader says so before anybody asks for more.
        membership = wait_for("the leader's membership is not joint", SOON, || {
            let membership = cluster.node(leader).status()?["membership"].clone();
            ensure!(membership["joint"] == false, "{membership}");
            Ok(membership)
        });
    }
    let longest = watcher.end();
    if 100 <= rounds {
        assert!(longest < Duration::from_secs(1), "joint for {longest:?}");
        assert_eq!(methods.len(), 5, "{methods:?}");
    }
    // The next call is taken, and is the only thing that happens.
    let other = cluster.others(leader).into_iter().find(|id| *id != joiner).expect("three founded it");
    wait_for("the next change is taken", SOON, || {
        let params = json!({"nodeId": other, "name": "free"});
        Ok(cluster.node(leader).call("raft_updateMember", &params)?)
    });
    let is_voter = membership["voters"].as_array().is_some_and(|v| v.contains(&json!(joiner)));
    if !is_voter {
        cluster.node_mut(joiner).stop(SOON);
    }
    assert_uniform(&mut cluster);
    cluster.end();
}
