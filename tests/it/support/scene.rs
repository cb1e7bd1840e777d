//! A story under load: nodes behind a network of their own, producers, and the promises at the end.

use std::sync::Arc;

use crate::support::{
    NodeId,
    block::{Answer, Block, Way},
    checker,
    cluster::{Cluster, Roles},
    config::{Settings, long_history},
    net::Net,
    node::Node,
    writer::{History, Writer},
};

/// Above every height that a story reaches.
const LATE_HEIGHT: u64 = 1_000_000_000;

/// Dropped, all of it ends: producers first.
pub(crate) struct Scene {
    writers: Vec<Writer>,
    pub(crate) history: Arc<History>,
    pub(crate) net: Net,
    pub(crate) cluster: Cluster,
}

impl Scene {
    /// So many nodes with a ready leader; what a bad network makes them say is expected.
    #[track_caller]
    pub(crate) fn new(n: u64, more: Settings) -> Self {
        Self::with(n, more, |_| {})
    }

    /// As above; every node is prepared before it starts.
    #[track_caller]
    pub(crate) fn with(n: u64, more: Settings, prepare: impl Fn(&mut Node)) -> Self {
        let mut all = long_history();
        all.extend(more);
        let (mut cluster, net) = Cluster::behind(n, all, prepare);
        cluster.allow_deaths();
        Self { writers: Vec::new(), history: Arc::default(), net, cluster }
    }

    /// As above, with a producer, and some of its blocks acknowledged.
    #[track_caller]
    pub(crate) fn under_load(n: u64, more: Settings) -> Self {
        let mut scene = Self::new(n, more);
        scene.produce("a", Way::Protobuf);
        scene.history.wait_for_more(20);
        scene
    }

    /// One more producer, which asks every node.
    pub(crate) fn produce(&mut self, name: &'static str, way: Way) {
        let endpoints = self.cluster.endpoints();
        self.writers.push(Writer::start(name, way, endpoints, self.history.clone()));
    }

    /// One more producer beside each node, which asks that node alone: none waits for another's.
    pub(crate) fn produce_beside_each(&mut self) {
        for endpoint in self.cluster.endpoints() {
            let writer = Writer::start("beside", Way::Protobuf, vec![endpoint], self.history.clone());
            self.writers.push(writer);
        }
    }

    #[track_caller]
    pub(crate) fn roles(&mut self) -> Roles {
        self.cluster.roles()
    }

    /// A producer that comes late with a fence is refused by these nodes.
    #[track_caller]
    pub(crate) fn assert_refused(&self, on: &[NodeId], fence: u64) {
        for id in on {
            let late = Block::new(LATE_HEIGHT, "late");
            let answer = late.propose(&mut self.cluster.node(*id).connect(), Way::JsonRpc, Some(fence));
            assert!(matches!(answer, Answer::Refused { .. }), "fence {fence} on node {id}: {answer}");
        }
    }

    /// Ends the producers and compares what they were told with what the nodes hold; the next ones begin with a
    /// history of their own.
    #[track_caller]
    pub(crate) fn check(&mut self) -> Arc<History> {
        self.writers.clear();
        let history = std::mem::take(&mut self.history);
        checker::check(&mut self.cluster, &history);
        history
    }

    /// The network is well again, and all promises hold.
    #[track_caller]
    pub(crate) fn end(mut self) {
        self.net.heal();
        self.cluster.leader();
        self.check();
        self.cluster.end();
    }
}
