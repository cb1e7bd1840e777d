//! Nodes for tests: with and without raft behind them.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use openraft::{Raft, async_runtime::watch::WatchReceiver};
use prometheus::Registry;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::consensus::{
    Answers, BoxFuture, Declined, Fitness, FoundingState, Handover, HandoverAsk, HandoverRefusal,
};
use crate::machine::{Command, command::Kind};
use crate::peer::{
    Addresses, Config, HashMark, Identity, Incarnation, Incarnations, Network, Notices, Receiving,
    SendOutcome, SnapshotStore,
    network::Shared,
    tests::memory::{MemLog, MemMachine},
};
use crate::raft::{NodeRecord, SnapshotData, TypeConfig};
use crate::types::{LogIndex, NodeId, Term, position::LogPos, proto, proto::FitnessGrade};

pub(super) const CLUSTER: &str = "test";

/// Everything waits at most so long: far above what it takes.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn config() -> Config {
    Config::new(Duration::from_millis(50), Duration::from_millis(350), Duration::from_millis(200))
}

pub(super) fn identity(node_id: NodeId) -> Identity {
    Identity { cluster_id: CLUSTER.into(), epoch: 1, node_id, incarnation: [node_id as u8; 16] }
}

/// Waits for a condition, with a reason.
pub(super) async fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

pub(super) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// Incarnations in memory.
#[derive(Default)]
pub(super) struct MemIncarnations {
    pub(super) known: Mutex<BTreeMap<NodeId, Incarnation>>,
    pub(super) is_broken: AtomicBool,
}

impl Incarnations for MemIncarnations {
    fn known(&self, node_id: NodeId) -> Option<Incarnation> {
        self.known.lock().unwrap().get(&node_id).copied()
    }

    fn remember(&self, node_id: NodeId, incarnation: Incarnation) -> io::Result<()> {
        if self.is_broken.load(Ordering::SeqCst) {
            return Err(io::Error::other("no room"));
        }
        self.known.lock().unwrap().insert(node_id, incarnation);
        Ok(())
    }
}

/// Notes what it is told.
pub(super) struct MemNotices {
    pub(super) floors: Mutex<BTreeMap<NodeId, LogPos>>,
    pub(super) own_last: Mutex<Option<LogPos>>,
    pub(super) may_store: AtomicBool,
    pub(super) not_member: Mutex<Option<(NodeId, LogIndex)>>,
    pub(super) commands: Mutex<BTreeMap<NodeId, Vec<(u8, u8)>>>,
    pub(super) handovers: Mutex<Vec<Handover>>,
    pub(super) marks: Mutex<BTreeMap<NodeId, HashMark>>,
    pub(super) own_mark: Mutex<Option<HashMark>>,
    pub(super) n_replicated: AtomicU64,
    pub(super) fitness: Mutex<BTreeMap<NodeId, Fitness>>,
}

impl Default for MemNotices {
    fn default() -> Self {
        Self {
            floors: Mutex::default(),
            own_last: Mutex::default(),
            may_store: AtomicBool::new(true),
            not_member: Mutex::default(),
            commands: Mutex::default(),
            handovers: Mutex::default(),
            marks: Mutex::default(),
            own_mark: Mutex::default(),
            n_replicated: AtomicU64::new(0),
            fitness: Mutex::default(),
        }
    }
}

impl Notices for MemNotices {
    fn own_last(&self) -> Option<LogPos> {
        *self.own_last.lock().unwrap()
    }
    fn floor(&self, node_id: NodeId) -> Option<LogPos> {
        self.floors.lock().unwrap().get(&node_id).copied()
    }
    fn may_store(&self) -> bool {
        self.may_store.load(Ordering::SeqCst)
    }
    fn not_member(&self, told_by: NodeId, version: LogIndex) {
        *self.not_member.lock().unwrap() = Some((told_by, version));
    }
    fn commands_known(&self, node_id: NodeId, commands: &[(u8, u8)]) {
        self.commands.lock().unwrap().insert(node_id, commands.to_vec());
    }
    fn hash_mark(&self) -> Option<HashMark> {
        *self.own_mark.lock().unwrap()
    }
    fn peer_hash_mark(&self, node_id: NodeId, mark: HashMark) {
        self.marks.lock().unwrap().insert(node_id, mark);
    }
    fn handed_over(&self, handover: &Handover, is_target: bool) {
        if is_target {
            self.handovers.lock().unwrap().push(handover.clone());
        }
    }
    fn peer_fitness(&self, node_id: NodeId, fitness: Fitness) {
        self.fitness.lock().unwrap().insert(node_id, fitness);
    }
    fn replicated(&self, _node_id: NodeId, replicated: crate::peer::Replicated) {
        self.n_replicated.fetch_add(replicated.n_entries as u64, Ordering::SeqCst);
    }
}

/// Received snapshots in a folder.
pub(super) struct MemSnapshots {
    pub(super) dir: PathBuf,
    pub(super) sent: Mutex<Vec<SendOutcome>>,
    pub(super) n_begun: AtomicU64,
    /// Bytes each transfer found already there.
    pub(super) resumed: Mutex<Vec<u64>>,
    /// Held: none that is being verified ends.
    pub(super) verifying: Arc<tokio::sync::Mutex<()>>,
    /// Those that began to be verified.
    pub(super) n_verified: Arc<AtomicU64>,
    /// Those that raft was done with.
    pub(super) n_settled: AtomicU64,
}

impl MemSnapshots {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            sent: Mutex::default(),
            n_begun: AtomicU64::new(0),
            resumed: Mutex::default(),
            verifying: Arc::default(),
            n_verified: Arc::default(),
            n_settled: AtomicU64::new(0),
        }
    }
}

impl SnapshotStore for MemSnapshots {
    fn receive(&self, manifest: &proto::SnapshotManifest) -> io::Result<Box<dyn Receiving>> {
        let dir = self.dir.join(format!("{}.tmp", manifest.id));
        std::fs::create_dir_all(&dir)?;
        let (verifying, n_verified) = (Arc::clone(&self.verifying), Arc::clone(&self.n_verified));
        let receiving = MemReceiving { dir, manifest: manifest.clone(), verifying, n_verified };
        self.n_begun.fetch_add(1, Ordering::SeqCst);
        let have = manifest.files.iter().map(|file| receiving.have(&file.name)).sum();
        self.resumed.lock().unwrap().push(have);
        Ok(Box::new(receiving))
    }

    fn settled(&self, _id: &str) {
        self.n_settled.fetch_add(1, Ordering::SeqCst);
    }

    fn sent(&self, outcome: SendOutcome, _took: Duration) {
        self.sent.lock().unwrap().push(outcome);
    }
}

struct MemReceiving {
    dir: PathBuf,
    manifest: proto::SnapshotManifest,
    verifying: Arc<tokio::sync::Mutex<()>>,
    n_verified: Arc<AtomicU64>,
}

impl Receiving for MemReceiving {
    fn have(&self, file: &str) -> u64 {
        std::fs::metadata(self.dir.join(file)).map_or(0, |meta| meta.len())
    }

    fn write_chunk(&mut self, file: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        use std::io::Write;
        assert_eq!(self.have(file), offset, "pieces come in order");
        std::fs::OpenOptions::new().create(true).append(true).open(self.dir.join(file))?.write_all(bytes)
    }

    fn finish(self: Box<Self>) -> io::Result<SnapshotData> {
        self.n_verified.fetch_add(1, Ordering::SeqCst);
        let _verifying = self.verifying.blocking_lock();
        for file in &self.manifest.files {
            let data = std::fs::read(self.dir.join(&file.name))?;
            if blake3::hash(&data).as_bytes()[..] != file.checksum[..] {
                std::fs::remove_dir_all(&self.dir)?;
                return Err(io::Error::new(io::ErrorKind::InvalidData, "checksum differs"));
            }
        }
        let dir = self.dir.with_extension("done");
        std::fs::rename(&self.dir, &dir)?;
        Ok(SnapshotData { manifest: self.manifest, dir, _pin: Arc::new(()) })
    }
}

/// What a node answers; switched by tests.
pub(super) struct MemAnswers {
    pub(super) may_vote: AtomicBool,
    pub(super) may_take_over: AtomicBool,
    pub(super) is_sync_stuck: AtomicBool,
    pub(super) heard: Mutex<Option<(Term, NodeId)>>,
    pub(super) read_index: Mutex<Result<LogIndex, String>>,
}

impl Default for MemAnswers {
    fn default() -> Self {
        Self {
            may_vote: AtomicBool::new(true),
            may_take_over: AtomicBool::new(true),
            is_sync_stuck: AtomicBool::new(false),
            heard: Mutex::default(),
            read_index: Mutex::new(Err("this node does not lead".into())),
        }
    }
}

impl Answers for MemAnswers {
    fn status(&self) -> BoxFuture<'_, Bytes> {
        Box::pin(async { Bytes::from_static(b"{\"role\":\"follower\"}") })
    }
    fn read_index(&self) -> BoxFuture<'_, Result<LogIndex, String>> {
        Box::pin(async { self.read_index.lock().unwrap().clone() })
    }
    fn founding(&self) -> FoundingState {
        FoundingState { list_hash: [7; 32], has_data: false }
    }
    fn timeline(&self, pos: LogPos) -> Bytes {
        Bytes::from(format!("{{\"index\":{}}}", pos.index))
    }
    fn may_take_over(&self, _term: Term, accepts: FitnessGrade) -> Result<(), Declined> {
        match self.may_take_over.load(Ordering::SeqCst) || accepts == FitnessGrade::Unwilling {
            true => Ok(()),
            false => Err(Declined::Unfit("paused".into())),
        }
    }
    fn fitness(&self) -> Fitness {
        match self.may_take_over.load(Ordering::SeqCst) {
            true => Fitness { grade: FitnessGrade::Fit, reason: String::new() },
            false => Fitness { grade: FitnessGrade::Unwilling, reason: "paused".into() },
        }
    }
    fn hand_over(&self, ask: HandoverAsk) -> BoxFuture<'_, Result<Term, HandoverRefusal>> {
        let refusal = HandoverRefusal {
            reason: "notVoter".into(),
            message: format!("node {} for {}", ask.to, ask.operation_id),
        };
        Box::pin(async { Err(refusal) })
    }
    fn may_vote(&self) -> bool {
        self.may_vote.load(Ordering::SeqCst)
    }
    fn is_sync_stuck(&self) -> bool {
        self.is_sync_stuck.load(Ordering::SeqCst)
    }
    fn leader_heard(&self, term: Term, leader_id: NodeId) {
        *self.heard.lock().unwrap() = Some((term, leader_id));
    }
}

/// A transport without raft.
pub(super) struct Bare {
    pub(super) network: Network,
    pub(super) addresses: Addresses,
    pub(super) incarnations: Arc<MemIncarnations>,
    pub(super) notices: Arc<MemNotices>,
    pub(super) snapshots: Arc<MemSnapshots>,
    pub(super) registry: Registry,
    pub(super) dir: tempfile::TempDir,
}

impl Bare {
    pub(super) fn new(identity: Identity, config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let addresses = Addresses::new(ArcSwap::default());
        let incarnations = Arc::new(MemIncarnations::default());
        let notices = Arc::new(MemNotices::default());
        let snapshots = Arc::new(MemSnapshots::new(dir.path().join("received")));
        let registry = Registry::new();
        let network = Network::new(
            config,
            identity,
            Arc::clone(&addresses),
            incarnations.clone(),
            notices.clone(),
            snapshots.clone(),
            &registry,
        )
        .unwrap();
        Self { network, addresses, incarnations, notices, snapshots, registry, dir }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        self.network.shared()
    }

    pub(super) fn set_address(&self, node_id: NodeId, addrs: &[String]) {
        let mut map = BTreeMap::clone(&self.addresses.load());
        map.insert(node_id, addrs.to_vec());
        self.addresses.store(Arc::new(map));
    }

    /// The value of the one series whose labels contain all of these.
    pub(super) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name)?;
        let metric = family.get_metric().iter().find(|metric| {
            labels.iter().all(|(name, value)| {
                metric.get_label().iter().any(|label| label.name() == *name && label.value() == *value)
            })
        })?;
        let counter = metric.get_counter().get_value();
        let gauge = metric.get_gauge().get_value();
        let count = metric.get_histogram().get_sample_count() as f64;
        Some(counter + gauge + count)
    }

    pub(super) fn errors(&self, peer_id: &str, rpc: &str, reason: &str) -> f64 {
        let labels = [("peer_id", peer_id), ("rpc", rpc), ("reason", reason)];
        self.metric("blockraft_peer_rpc_errors_total", &labels).unwrap_or(-1.0)
    }
}

/// A node with raft on memory.
pub(super) struct Node {
    pub(super) node_id: NodeId,
    pub(super) bare: Bare,
    pub(super) raft: Raft<TypeConfig, MemMachine>,
    pub(super) log: MemLog,
    pub(super) machine: MemMachine,
    pub(super) answers: Arc<MemAnswers>,
    pub(super) addr: SocketAddr,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

pub(super) fn raft_config() -> Arc<openraft::Config> {
    let config = openraft::Config {
        cluster_name: CLUSTER.into(),
        election_timeout_min: 87,
        election_timeout_max: 262,
        heartbeat_interval: 50,
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        broadcast_submitted_on_append: Some(true),
        quorum_loss_probe_interval: Some(524),
        backoff: "10ms 20ms 40ms ..200ms".into(),
        ..openraft::Config::default()
    };
    Arc::new(config.validate().unwrap())
}

impl Node {
    pub(super) async fn start(node_id: NodeId, config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let bare = Bare::new(identity(node_id), config);
        let log = MemLog::default();
        let machine = MemMachine::new(bare.dir.path().join("snapshots"), CLUSTER);
        let raft = Raft::build(node_id, raft_config(), bare.network.clone(), log.clone(), machine.clone())
            .await
            .unwrap();
        let answers = Arc::new(MemAnswers::default());
        let shutdown = CancellationToken::new();
        let serving = bare.network.serve(listener, raft.clone(), answers.clone(), shutdown.clone());
        let linking = bare.network.clone().run(shutdown.clone());
        raft.run();
        let tasks = vec![tokio::spawn(serving), tokio::spawn(linking)];
        Self { node_id, bare, raft, log, machine, answers, addr, shutdown, tasks }
    }

    pub(super) fn record(&self) -> NodeRecord {
        NodeRecord { peer_addr: self.addr.to_string(), ..NodeRecord::default() }
    }

    pub(super) fn leader(&self) -> Option<NodeId> {
        self.raft.server_metrics().borrow_watched().current_leader
    }

    pub(super) fn term(&self) -> Term {
        self.raft.server_metrics().borrow_watched().vote.leader_id.term
    }

    pub(super) async fn write(&self, payload: impl Into<Bytes>) {
        let command = Command::new(Kind::Block, payload.into());
        let written = async {
            // Right after an election openraft refuses with an expired lease.
            while let Err(e) = self.raft.client_write(command.clone()).await {
                assert!(format!("{e:?}").contains("LeaseExpired"), "{e}");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        in_time("a write is committed", written).await;
    }

    /// Its port is closed and nobody is dialled; raft goes on and hears nothing.
    pub(super) async fn stop_network(&mut self) {
        self.shutdown.cancel();
        for task in self.tasks.drain(..) {
            in_time("the transport stops", task).await.unwrap();
        }
    }

    pub(super) async fn stop(mut self) {
        self.raft.shutdown().await.unwrap();
        self.stop_network().await;
    }
}

/// Nodes 1 to n that know each other's addresses.
pub(super) async fn nodes(n: NodeId) -> Vec<Node> {
    let mut nodes = Vec::new();
    for node_id in 1..=n {
        nodes.push(Node::start(node_id, config()).await);
    }
    introduce(&nodes);
    nodes
}

pub(super) fn introduce(nodes: &[Node]) {
    let all: BTreeMap<NodeId, Vec<String>> =
        nodes.iter().map(|node| (node.node_id, vec![node.addr.to_string()])).collect();
    for node in nodes {
        node.bare.addresses.store(Arc::new(all.clone()));
    }
}

/// Founds a cluster of all nodes and waits until one leads.
pub(super) async fn found(nodes: &[Node]) -> usize {
    let members: BTreeMap<NodeId, NodeRecord> =
        nodes.iter().map(|node| (node.node_id, node.record())).collect();
    nodes[0].raft.initialize(members).await.unwrap();
    leader_of(nodes, 0).await
}

/// The place of the node that all of these follow, in a term above this one.
pub(super) async fn leader_of(nodes: &[Node], above: Term) -> usize {
    let mut leader = 0;
    eventually("all nodes follow one leader", || {
        let Some(node_id) = nodes[0].leader() else {
            return false;
        };
        leader = node_id as usize;
        nodes.iter().all(|node| node.leader() == Some(node_id) && above < node.term())
            && nodes.iter().any(|node| node.node_id == node_id && node.raft.is_leader())
    })
    .await;
    nodes.iter().position(|node| node.node_id == leader as NodeId).unwrap()
}
