//! The transport as openraft sees it, and what its parts share.
//!
//! [`Network`] keeps a link to every node that has an address, and makes openraft's clients.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use openraft::RaftNetworkFactory;
use prost::Message;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::consensus::Handover;
#[cfg(test)]
use crate::peer::LinkState;
use crate::peer::{
    Addresses, Asker, Config, Identity, Incarnation, Incarnations, Notices, SnapshotStore,
    client::{Client, Traffic},
    dial::Lookups,
    keeper::Task,
    link::Link,
    metrics::{Metrics, PeerMetrics, Rpc},
    said::Said,
    wire::{Frame, WireError},
};
use crate::raft::{NodeRecord, StoredMembership, TypeConfig, pos_of};
use crate::telemetry::ticks;
use crate::types::address::host;
use crate::types::{LogIndex, NodeId, Term, position::LogPos, proto::FrameKind};

/// How often the list of peers is compared with their addresses. By eye.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The transport. Cheap to clone; every clone is the same transport.
#[derive(Clone)]
pub(crate) struct Network {
    shared: Arc<Shared>,
}

/// This node's candidacies, counted from the votes it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Elections {
    /// Rounds of pre-votes.
    pub(crate) pre_vote_rounds: u64,
    /// Terms in which votes were asked for.
    pub(crate) started: u64,
}

/// What raft knows of the membership, from one look.
pub(super) struct Memberships {
    pub(super) applied: Arc<StoredMembership>,
    pub(super) newest: Arc<StoredMembership>,
}

type MembershipLook = Box<dyn Fn() -> Memberships + Send + Sync>;

/// What the parts of the transport have in common.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) identity: Identity,
    pub(super) incarnations: Arc<dyn Incarnations>,
    pub(super) notices: Arc<dyn Notices>,
    pub(super) snapshots: Arc<dyn SnapshotStore>,
    pub(super) metrics: Metrics,
    pub(super) said: Said,
    pub(super) lookups: Lookups,
    addresses: Addresses,
    /// Where nodes that dialled this one say that they are reached. Guards a look-up per dial.
    announced: Mutex<BTreeMap<NodeId, String>>,
    /// Random, of this process.
    pub(super) process: u64,
    /// Of each peer the process that was admitted last. Guards a look-up per handshake.
    processes: Mutex<BTreeMap<NodeId, u64>>,
    /// Set once raft is there.
    membership: OnceLock<MembershipLook>,
    /// Guards the look-up of a link; links are made and removed by [`Network::run`] alone.
    links: Mutex<BTreeMap<NodeId, Link>>,
    pub(super) handover: Mutex<Option<Handover>>,
    candidacy: Mutex<Candidacy>,
    elections_tx: watch::Sender<Elections>,
    /// That of `identity`, or the one that was adopted since.
    epoch: AtomicU64,
}

impl Shared {
    /// The cluster's epoch, as far as this node knows.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Release);
    }

    pub(super) fn addresses_of(&self, node_id: NodeId) -> Vec<String> {
        let mut known = self.addresses.load().get(&node_id).cloned().unwrap_or_default();
        let announced = lock(&self.announced).get(&node_id).cloned();
        known.extend(announced.filter(|addr| !known.contains(addr)));
        known
    }

    /// A node that was admitted says where it is reached; one that moved is found again by it.
    pub(super) fn announced(&self, node_id: NodeId, addr: &str) {
        let is_peer = self.addresses.load().contains_key(&node_id);
        if is_peer && host(addr).is_some_and(|host| !host.is_unspecified()) {
            lock(&self.announced).insert(node_id, addr.to_owned());
        }
    }

    /// This process of a node was admitted before, so what it acknowledged since is in the folder it has open.
    pub(super) fn was_admitted(&self, node_id: NodeId, process: u64) -> bool {
        process != 0 && lock(&self.processes).get(&node_id) == Some(&process)
    }

    pub(super) fn admitted(&self, node_id: NodeId, process: u64) {
        if self.addresses.load().contains_key(&node_id) {
            lock(&self.processes).insert(node_id, process);
        }
    }

    fn peer_ids(&self) -> Vec<NodeId> {
        let own = self.identity.node_id;
        self.addresses.load().keys().copied().filter(|node_id| *node_id != own).collect()
    }

    pub(super) fn metrics_of(&self, node_id: NodeId) -> Arc<PeerMetrics> {
        let is_peer = || node_id != self.identity.node_id && self.addresses.load().contains_key(&node_id);
        self.metrics.of(node_id, is_peer)
    }

    pub(super) fn link(&self, node_id: NodeId) -> Option<Link> {
        lock(&self.links).get(&node_id).cloned()
    }

    pub(super) fn set_membership(&self, look: impl Fn() -> Memberships + Send + Sync + 'static) {
        // A second server of the same raft looks at the same membership.
        let _ = self.membership.set(Box::new(look));
    }

    /// What the newest membership in the log says.
    pub(super) fn recorded_incarnation(&self, node_id: NodeId) -> Option<Incarnation> {
        let look = self.membership.get()?();
        look.newest.membership().get_node(&node_id)?.incarnation
    }

    /// The applied membership's version, when neither it nor a newer one names the node.
    pub(super) fn not_member(&self, node_id: NodeId) -> Option<LogIndex> {
        self.membership_without(node_id).map(|version| version.index)
    }

    /// As [`Shared::not_member`]; with the term of its entry.
    pub(super) fn membership_without(&self, node_id: NodeId) -> Option<LogPos> {
        let look = self.membership.get()?();
        let version = look.applied.log_id().as_ref().map(pos_of)?;
        let names = |stored: &StoredMembership| stored.membership().get_node(&node_id).is_some();
        // One that is not applied may be truncated: it removes nobody yet, but may add already.
        (!names(&look.applied) && !names(&look.newest)).then_some(version)
    }

    /// Entry of the newest membership, and whether it records this life of this node.
    pub(super) fn newest_membership(&self) -> (LogPos, bool) {
        let Some(look) = self.membership.get().map(|look| look()) else { return Default::default() };
        let version = look.newest.log_id().as_ref().map(pos_of).unwrap_or_default();
        let own = look.newest.membership().get_node(&self.identity.node_id).and_then(|own| own.incarnation);
        (version, own == Some(self.identity.incarnation))
    }

    /// A stranger is not kept durably: only who is a member, or will be, or adds this node.
    pub(super) fn may_remember(&self, node_id: NodeId) -> bool {
        self.addresses.load().contains_key(&node_id) || self.not_member(node_id).is_none()
    }

    pub(super) fn count_candidacy(&self, target: NodeId, term: Term, rpc: Rpc) {
        let counted = lock(&self.candidacy).on_asked(target, term, rpc);
        self.elections_tx.send_if_modified(|old| std::mem::replace(old, counted) != counted);
    }
}

impl Network {
    /// Dials nobody before [`Network::run`].
    pub(crate) fn new(
        config: Config,
        identity: Identity,
        addresses: Addresses,
        incarnations: Arc<dyn Incarnations>,
        notices: Arc<dyn Notices>,
        snapshots: Arc<dyn SnapshotStore>,
        registry: &prometheus::Registry,
    ) -> prometheus::Result<Self> {
        let (elections_tx, _) = watch::channel(Elections::default());
        let epoch = AtomicU64::new(identity.epoch);
        let shared = Arc::new(Shared {
            config,
            identity,
            epoch,
            incarnations,
            notices,
            snapshots,
            metrics: Metrics::new(registry)?,
            said: Said::default(),
            lookups: Lookups::default(),
            addresses,
            announced: Mutex::default(),
            process: rand::random(),
            processes: Mutex::default(),
            membership: OnceLock::new(),
            links: Mutex::default(),
            handover: Mutex::default(),
            candidacy: Mutex::default(),
            elections_tx,
        });
        shared.metrics.keep(&shared.peer_ids());
        Ok(Self { shared })
    }

    /// Keeps a link to every node that has an address, until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        let mut looks = ticks::every(LOOK_EVERY);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(ended) = tasks.join_next() => if let Err(e) = ended {
                    tracing::error!(error = %e, "link to a peer failed");
                },
                _ = looks.tick() => for task in self.update_links() {
                    tasks.spawn(task.run());
                },
            }
        }
        for (_, link) in std::mem::take(&mut *lock(&self.shared.links)) {
            link.cancel.cancel();
        }
        while tasks.join_next().await.is_some() {}
    }

    /// The tasks of those who are new.
    fn update_links(&self) -> Vec<Task> {
        let peer_ids = self.shared.peer_ids();
        let mut links = lock(&self.shared.links);
        if links.keys().eq(&peer_ids) {
            return Vec::new();
        }
        self.shared.metrics.keep(&peer_ids);
        lock(&self.shared.announced).retain(|node_id, _| peer_ids.contains(node_id));
        lock(&self.shared.processes).retain(|node_id, _| peer_ids.contains(node_id));
        links.retain(|node_id, link| {
            let is_kept = peer_ids.contains(node_id);
            if !is_kept {
                link.cancel.cancel();
            }
            is_kept
        });
        let mut tasks = Vec::new();
        for node_id in peer_ids {
            links.entry(node_id).or_insert_with(|| {
                let (link, task) = Link::new(&self.shared, node_id);
                tasks.push(task);
                link
            });
        }
        tasks
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Questions to other nodes.
    pub(crate) fn asker(&self) -> Asker {
        Asker::new(Arc::clone(&self.shared))
    }

    /// The way to each known node, from one look.
    #[cfg(test)]
    pub(super) fn links(&self) -> BTreeMap<NodeId, LinkState> {
        lock(&self.shared.links)
            .iter()
            .map(|(node_id, link)| (*node_id, *link.watch_state().borrow()))
            .collect()
    }

    /// Counts what no metric of openraft's tells.
    pub(crate) fn elections(&self) -> watch::Receiver<Elections> {
        self.shared.elections_tx.subscribe()
    }

    fn client(&self, target: NodeId, traffic: Traffic) -> Client {
        Client::new(Arc::clone(&self.shared), target, traffic)
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, _node: &NodeRecord) -> Client {
        self.client(target, Traffic::Log)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, _node: &NodeRecord) -> Client {
        self.client(target, Traffic::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, _node: &NodeRecord) -> Client {
        self.client(target, Traffic::Log)
    }
}

/// Which votes were asked for, so that a round counts once and not once a voter.
#[derive(Debug, Default)]
struct Candidacy {
    counted: Elections,
    vote_term: Term,
    pre_vote_term: Term,
    /// Asked in the running round of pre-votes.
    pre_voters: BTreeSet<NodeId>,
}

impl Candidacy {
    fn on_asked(&mut self, target: NodeId, term: Term, rpc: Rpc) -> Elections {
        if rpc == Rpc::Vote {
            if self.vote_term < term {
                self.vote_term = term;
                self.counted.started += 1;
            }
            return self.counted;
        }
        // Each voter is asked once a round, and a lost round is repeated in the same term.
        let is_new = self.pre_vote_term != term || self.pre_voters.contains(&target);
        if is_new {
            self.pre_vote_term = term;
            self.pre_voters.clear();
            self.counted.pre_vote_rounds += 1;
        }
        self.pre_voters.insert(target);
        self.counted
    }
}

pub(super) fn decode<M: Message + Default>(frame: Frame, expected: FrameKind) -> Result<M, WireError> {
    if frame.kind() != Some(expected) {
        return Err(WireError::Malformed(format!("answer of kind {}, not {expected:?}", frame.kind)));
    }
    frame.decode()
}

/// A panic while a lock was held leaves whole values behind: still fine to use.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
