//! A cluster on loopback, and what its nodes agree on.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use crate::support::{
    NodeId,
    config::{Founder, Settings},
    logs::Line,
    net::Net,
    node::Node,
    wait::{LATER, SOON, wait_for},
};

pub(crate) const CLUSTER_ID: &str = "test-cluster";
/// Starts with other ports before the test fails: a port may be taken between the look and the bind.
const STARTS_MAX: usize = 3;
/// What a healthy node may say at WARN on a slow or busy machine, with the reason.
const ALLOWED_ANYWHERE: &[&str] = &[
    // The interval must exceed round trip and sync; a busy disk of a test machine is slower at times.
    "heartbeat_interval",
    // As above: half a second for one sync.
    "begins before its record is durable",
];

/// What only a node that was killed may say, when it is started again.
const ALLOWED_OF_KILLED: &str = "the last record of the log is torn";

/// The ready leader, the fence it holds, and the others that run.
#[derive(Debug, Clone)]
pub(crate) struct Roles {
    pub(crate) leader: NodeId,
    pub(crate) fence: u64,
    pub(crate) others: Vec<NodeId>,
}

/// Nodes 1 to n. Dropped, all are killed; after a panic the end of each log is shown.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) settings: Settings,
    /// Parts of the messages at WARN and ERROR that this test brings about.
    allowed: Vec<String>,
    /// Removed with the cluster.
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// Configured and not started.
    pub(crate) fn new(n: u64, settings: Settings) -> Self {
        let dir = tempfile::Builder::new().prefix("blockraft-test-").tempdir().expect("writable");
        let nodes = (1..=n).map(|id| Node::new(id, dir.path())).collect();
        let cluster = Self { nodes, settings, allowed: Vec::new(), _dir: dir };
        cluster.write_configs();
        cluster
    }

    /// Three nodes that have a ready leader.
    pub(crate) fn three(settings: Settings) -> Self {
        let mut cluster = Self::new(3, settings);
        cluster.start();
        cluster
    }

    /// So many nodes with a ready leader, and the network between them. Every node is prepared before it starts.
    #[track_caller]
    pub(crate) fn behind(n: u64, settings: Settings, prepare: impl Fn(&mut Node)) -> (Self, Net) {
        let (mut cluster, net) = (Self::new(n, settings), Net::new());
        cluster.nodes.iter_mut().for_each(prepare);
        for node in &mut cluster.nodes {
            node.advertise = Some(net.before(node.id, &node.peer));
        }
        cluster.write_configs();
        // A proxy knows one address of its node: a port that is taken ends the test.
        cluster.nodes.iter_mut().for_each(Node::start);
        cluster.leader();
        (cluster, net)
    }

    pub(crate) fn write_configs(&self) {
        let founders = self.founders();
        for node in &self.nodes {
            node.write_config(CLUSTER_ID, &founders, &self.settings);
        }
    }

    pub(crate) fn founders(&self) -> Vec<Founder> {
        self.nodes.iter().map(Node::founder).collect()
    }

    /// A part of a message at WARN or ERROR that this test brings about.
    pub(crate) fn allow(&mut self, part: &str) {
        self.allowed.push(part.to_owned());
    }

    /// What the others say of a node that was killed, stopped or stands still, and it of itself.
    pub(crate) fn allow_deaths(&mut self) {
        for part in ["peer does not answer", "snapshot was not sent", "stopping "] {
            self.allow(part);
        }
    }

    /// What is said of somebody who is no member.
    pub(crate) fn allow_strangers(&mut self) {
        for part in ["peer sent what cannot be right", "peer is refused"] {
            self.allow(part);
        }
    }

    /// Starts all for the first time and waits for a leader.
    #[track_caller]
    pub(crate) fn start(&mut self) -> NodeId {
        for _ in 0..STARTS_MAX {
            self.nodes.iter_mut().for_each(Node::start);
            if !self.lost_a_port() {
                return self.leader();
            }
            self.nodes.iter_mut().for_each(Node::begin_anew);
            self.write_configs();
        }
        panic!("ports were taken {STARTS_MAX} times");
    }

    /// Whether a node ended because somebody else has its port.
    fn lost_a_port(&mut self) -> bool {
        wait_for("every node answers or ends", SOON, || {
            for node in &mut self.nodes {
                if node.exit().is_some() {
                    let is_taken =
                        node.lines().iter().any(|l| l.text.to_lowercase().contains("address already in use"));
                    let last = node.lines().last().map_or(String::new(), |l| l.text.clone());
                    ensure!(is_taken, "node {} ended: {last}", node.id);
                    return Ok(true);
                }
                node.get("/livez", &[])?;
            }
            Ok(false)
        })
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize - 1]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    pub(crate) fn running(&mut self) -> Vec<NodeId> {
        self.nodes.iter_mut().filter_map(|n| n.is_running().then_some(n.id)).collect()
    }

    /// The running nodes but one.
    pub(crate) fn others(&mut self, id: NodeId) -> Vec<NodeId> {
        self.running().into_iter().filter(|other| *other != id).collect()
    }

    pub(crate) fn endpoints(&self) -> Vec<(NodeId, String)> {
        self.nodes.iter().map(|n| (n.id, n.api.clone())).collect()
    }

    /// Who leads, and who does not.
    #[track_caller]
    pub(crate) fn roles(&mut self) -> Roles {
        let leader = self.leader();
        Roles { leader, fence: self.term_of(leader), others: self.others(leader) }
    }

    #[track_caller]
    pub(crate) fn term_of(&self, id: NodeId) -> u64 {
        self.node(id).status().expect("it answers")["term"].as_u64().expect("a term")
    }

    /// Waits until one of these nodes leads with its fence in a later term, whatever the others say.
    #[track_caller]
    pub(crate) fn leader_among(&self, ids: &[NodeId], above: u64) -> NodeId {
        wait_for("one of them leads", SOON, || {
            for id in ids {
                // One that stands still, or was killed, is no reason to give up.
                let Ok(s) = self.node(*id).status() else { continue };
                if s["ready"] == true && Some(above) < s["term"].as_u64() {
                    return Ok(*id);
                }
            }
            bail!("none is ready above term {above}")
        })
    }

    /// The one ready leader that all running nodes name.
    #[track_caller]
    pub(crate) fn leader(&mut self) -> NodeId {
        self.leader_above(0)
    }

    /// As [`Cluster::leader`], in a term above one.
    #[track_caller]
    pub(crate) fn leader_above(&mut self, term: u64) -> NodeId {
        wait_for("the running nodes agree on one ready leader", SOON, || {
            self.assert_nobody_ended();
            let ids = self.running();
            let mut ready = BTreeSet::new();
            let mut named = BTreeSet::new();
            for id in ids {
                let s = self.node(id).status()?;
                named.insert((s["leaderId"].as_u64(), s["term"].as_u64()));
                if s["ready"] == true {
                    ready.insert(id);
                    assert!(s["role"] == "leader" && s["fence"] == s["term"], "ready without leading: {s}");
                }
            }
            ensure!(named.len() == 1, "they name {named:?}");
            let (leader, at) = named.into_iter().next().expect("one is there");
            ensure!(ready == leader.into_iter().collect(), "leader {leader:?}, ready {ready:?}");
            match (leader, at) {
                (Some(leader), Some(at)) if term < at => Ok(leader),
                other => bail!("leader and term are {other:?}"),
            }
        })
    }

    /// A node that ended by itself is never right: panics with what it said last.
    #[track_caller]
    fn assert_nobody_ended(&mut self) {
        for node in &mut self.nodes {
            if let Some(exit) = node.exit() {
                let said: Vec<_> = node.lines().into_iter().rev().take(3).map(|l| l.text).collect();
                panic!("node {} ended with {exit}: {said:#?}", node.id);
            }
        }
    }

    /// Waits until all running nodes hold the same log and head; their statuses.
    #[track_caller]
    pub(crate) fn settled(&mut self) -> Vec<Value> {
        self.settled_within(SOON)
    }

    #[track_caller]
    pub(crate) fn settled_within(&mut self, within: Duration) -> Vec<Value> {
        let statuses = wait_for("the running nodes settle on one log and head", within, || {
            self.assert_nobody_ended();
            let ids = self.running();
            let statuses: Vec<Value> =
                ids.iter().map(|id| self.node(*id).status()).collect::<anyhow::Result<_>>()?;
            let key = |s: &Value| {
                json!([s["lastLogIndex"], s["appliedIndex"], s["head"]["height"], s["head"]["hash"]])
            };
            let keys: BTreeSet<String> = statuses.iter().map(|s| key(s).to_string()).collect();
            ensure!(keys.len() == 1, "last, applied, head: {keys:?}");
            Ok(statuses)
        });
        statuses.iter().for_each(assert_positions);
        statuses
    }

    /// The snapshot of a leader that holds all it has, and nothing else does: its log is purged up to there.
    #[track_caller]
    pub(crate) fn compact(&mut self, leader: NodeId) -> Value {
        assert_eq!(self.leader(), leader, "patient timings keep it");
        let made = self.node(leader).call("snapshot_create", &json!({})).expect("it answers");
        let purged = self.node(leader).call("snapshot_purgeLog", &json!({})).expect("it answers");
        assert_eq!(purged["purgedIndex"], made["lastIndex"]);
        made
    }

    /// The running nodes hold one state: its hash at one index, out of a snapshot of each. Nobody may propose
    /// meanwhile.
    #[track_caller]
    pub(crate) fn assert_equal_states(&mut self) -> String {
        wait_for("every node tells the hash of its state at one index", LATER, || {
            let mut told = BTreeSet::new();
            for id in self.running() {
                let made = self.node(id).call("snapshot_create", &json!({}))?;
                let described = self.node(id).call("snapshot_describe", &json!({"id": made["id"]}))?;
                told.insert((described["lastIndex"].as_u64(), described["stateHash"].to_string()));
            }
            let indexes: BTreeSet<_> = told.iter().map(|(index, _)| index).collect();
            ensure!(indexes.len() == 1, "they are at {indexes:?}");
            let hashes: Vec<_> = told.into_iter().map(|(_, hash)| hash).collect();
            // No wait makes two states one.
            assert!(hashes.len() == 1, "different states at one index: {hashes:?}");
            Ok(hashes[0].clone())
        })
    }

    /// The head's height that a node holds.
    #[track_caller]
    pub(crate) fn height(&self, id: NodeId) -> u64 {
        let status = self.node(id).status().expect("the node answers");
        status["head"]["height"].as_u64().unwrap_or(0)
    }

    /// The end of a story: the nodes still agree, and said nothing alarming that was not expected.
    #[track_caller]
    pub(crate) fn end(mut self) {
        self.settled();
        self.assert_quiet();
    }

    /// No WARN, ERROR or panic in any log but those a test allows.
    #[track_caller]
    pub(crate) fn assert_quiet(&self) {
        for node in &self.nodes {
            let of_killed = node.was_killed.then_some(ALLOWED_OF_KILLED);
            let parts: Vec<&str> = self
                .allowed
                .iter()
                .map(String::as_str)
                .chain(ALLOWED_ANYWHERE.iter().copied())
                .chain(of_killed)
                .collect();
            let is_expected = |line: &Line| parts.iter().any(|part| line.message.contains(part));
            let alarming: Vec<_> = node
                .lines()
                .into_iter()
                .filter(|l| l.is_alarming() && !is_expected(l))
                .map(|l| l.text)
                .collect();
            assert!(alarming.is_empty(), "node {} said: {alarming:#?}", node.id);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let mut said = String::new();
        for node in &self.nodes {
            said += &format!("--- node {} (api {}, peer {}):\n", node.id, node.api, node.peer);
            let lines = node.lines();
            for line in lines.iter().skip(lines.len().saturating_sub(15)) {
                said += &line.text;
                said.push('\n');
            }
        }
        #[expect(clippy::print_stderr, reason = "what the nodes said belongs to a failed test's output")]
        {
            eprintln!("{said}");
        }
    }
}

/// Promise 8 on one `raft_status`: purged <= snapshot <= applied <= committed <= last.
#[track_caller]
pub(crate) fn assert_positions(status: &Value) {
    let names = ["purgedIndex", "snapshotIndex", "appliedIndex", "committedIndex", "lastLogIndex"];
    let positions: Vec<u64> = names.iter().map(|n| status[n].as_u64().unwrap_or(0)).collect();
    assert!(positions.is_sorted(), "promise 8: {names:?} are {positions:?} on node {}", status["nodeId"]);
}
