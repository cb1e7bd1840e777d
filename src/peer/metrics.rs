//! What the transport counts, by peer.
//!
//! Series of a known peer exist, at zero, from when it is known; those of a removed one go. Whoever
//! is no known peer counts as `unknown`, so that a stranger makes no series.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

use crate::peer::flow::{Again, Flow};
use crate::peer::wire::uncounted;
use crate::telemetry::buckets;
use crate::types::NodeId;

/// Label of everybody who is no known peer.
const UNKNOWN: &str = "unknown";

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($variant:ident => $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(crate) enum $name { $($variant,)* }

        impl $name {
            pub(super) const ALL: &[Self] = &[$(Self::$variant,)*];

            pub(super) fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }
    };
}

labels! {
    /// What is asked of another node, and the handshake before.
    Rpc {
        Hello => "hello",
        Append => "append",
        Heartbeat => "heartbeat",
        Vote => "vote",
        PreVote => "pre_vote",
        Transfer => "transfer",
        Snapshot => "snapshot",
        Status => "status",
        ReadIndex => "read_index",
        Founding => "founding",
        Timeline => "timeline",
        Ping => "ping",
        TakeOver => "take_over",
        Handover => "handover",
    }
}

labels! {
    /// Why it failed.
    Reason {
        // Could not be sent, or no answer came.
        NoAddress => "no_address",
        Connect => "connect",
        Closed => "closed",
        Timeout => "timeout",
        // Frames that are none.
        Malformed => "malformed",
        Corrupt => "corrupt",
        // The other side said no.
        Refused => "refused",
        Busy => "busy",
        NotMember => "not_member",
        // Handshakes.
        ClusterId => "cluster_id",
        ClusterEpoch => "cluster_epoch",
        NodeId => "node_id",
        Incarnation => "incarnation",
        Position => "position",
        Storage => "storage",
    }
}

impl Rpc {
    /// The label set is closed: what cannot happen has no series.
    fn reasons(self) -> &'static [Reason] {
        match self {
            Self::Hello => Reason::ALL,
            Self::Append | Self::Heartbeat | Self::Snapshot => &[
                Reason::NoAddress,
                Reason::Connect,
                Reason::Closed,
                Reason::Timeout,
                Reason::Malformed,
                Reason::Corrupt,
                Reason::Refused,
                Reason::Busy,
                Reason::Storage,
            ],
            Self::Vote | Self::PreVote => &[
                Reason::NoAddress,
                Reason::Connect,
                Reason::Closed,
                Reason::Timeout,
                Reason::Malformed,
                Reason::Refused,
                Reason::Busy,
                Reason::NotMember,
            ],
            Self::Transfer
            | Self::Status
            | Self::ReadIndex
            | Self::Founding
            | Self::Timeline
            | Self::Ping
            | Self::TakeOver
            | Self::Handover => &[
                Reason::NoAddress,
                Reason::Connect,
                Reason::Closed,
                Reason::Timeout,
                Reason::Malformed,
                Reason::Refused,
                Reason::Busy,
            ],
        }
    }
}

labels! {
    /// Which way a vote went.
    Direction {
        Sent => "sent",
        Received => "received",
    }
}

/// The families. Owned by [`crate::peer::Network`].
pub(super) struct Metrics {
    rpc_seconds: HistogramVec,
    rpc_errors: IntCounterVec,
    bytes: IntCounterVec,
    connected: IntGaugeVec,
    clock_offset: GaugeVec,
    votes: IntCounterVec,
    unknown: Arc<PeerMetrics>,
    /// Guards the creation and removal of a peer's series; never held while anything else is done.
    peers: Mutex<BTreeMap<NodeId, Arc<PeerMetrics>>>,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let rpc_seconds = HistogramVec::new(
            HistogramOpts::new("blockraft_peer_rpc_seconds", "Time from asking another node to its answer.")
                .buckets(buckets::stage()),
            &["peer_id", "rpc"],
        )?;
        let rpc_errors = IntCounterVec::new(
            Opts::new("blockraft_peer_rpc_errors_total", "Failed exchanges with another node."),
            &["peer_id", "rpc", "reason"],
        )?;
        let bytes = IntCounterVec::new(
            Opts::new("blockraft_peer_bytes_total", "Bytes exchanged with another node."),
            &["peer_id", "direction"],
        )?;
        let connected = IntGaugeVec::new(
            Opts::new(
                "blockraft_peer_connected",
                "Whether this node's control connection to the other node is up.",
            ),
            &["peer_id"],
        )?;
        let clock_offset = GaugeVec::new(
            Opts::new(
                "blockraft_peer_clock_offset_seconds",
                "The other node's clock minus this one's, from round trips; 0 while there is no connection.",
            ),
            &["peer_id"],
        )?;
        let votes = IntCounterVec::new(
            Opts::new(
                "blockraft_raft_votes_total",
                "Votes this node asked for and was answered (sent), or answered (received).",
            ),
            &["direction", "kind", "granted"],
        )?;
        registry.register(Box::new(rpc_seconds.clone()))?;
        registry.register(Box::new(rpc_errors.clone()))?;
        registry.register(Box::new(bytes.clone()))?;
        registry.register(Box::new(connected.clone()))?;
        registry.register(Box::new(clock_offset.clone()))?;
        registry.register(Box::new(votes.clone()))?;
        for direction in Direction::ALL {
            for kind in [Rpc::Vote, Rpc::PreVote] {
                for granted in ["true", "false"] {
                    let _ = votes.with_label_values(&[direction.label(), kind.label(), granted]);
                }
            }
        }
        let unknown = Arc::new(PeerMetrics {
            rpc_seconds: BTreeMap::new(),
            rpc_errors: errors_of(&rpc_errors, UNKNOWN, &[Rpc::Hello]),
            sent_bytes: bytes.with_label_values(&[UNKNOWN, "sent"]),
            received_bytes: bytes.with_label_values(&[UNKNOWN, "received"]),
            log_bytes: uncounted(),
            log_flow: Flow::default(),
            connected: None,
            clock_offset: None,
        });
        Ok(Self {
            rpc_seconds,
            rpc_errors,
            bytes,
            connected,
            clock_offset,
            votes,
            unknown,
            peers: Mutex::default(),
        })
    }

    /// Makes the peers' series, and removes those of everybody else.
    pub(super) fn keep(&self, node_ids: &[NodeId]) {
        let mut peers = self.lock();
        for node_id in node_ids {
            peers.entry(*node_id).or_insert_with(|| Arc::new(self.peer_metrics(*node_id)));
        }
        peers.retain(|node_id, _| {
            let is_kept = node_ids.contains(node_id);
            if !is_kept {
                self.remove(*node_id);
            }
            is_kept
        });
    }

    /// Those of a known peer, else of everybody unknown. `is_known` says so of one that
    /// [`Metrics::keep`] has not seen yet.
    pub(super) fn of(&self, node_id: NodeId, is_known: impl FnOnce() -> bool) -> Arc<PeerMetrics> {
        let mut peers = self.lock();
        if let Some(metrics) = peers.get(&node_id) {
            return Arc::clone(metrics);
        }
        if !is_known() {
            return Arc::clone(&self.unknown);
        }
        let metrics = Arc::new(self.peer_metrics(node_id));
        peers.insert(node_id, Arc::clone(&metrics));
        metrics
    }

    /// `kind` is [`Rpc::Vote`] or [`Rpc::PreVote`].
    pub(super) fn vote(&self, direction: Direction, kind: Rpc, is_granted: bool) {
        let granted = if is_granted { "true" } else { "false" };
        self.votes.with_label_values(&[direction.label(), kind.label(), granted]).inc();
    }

    fn peer_metrics(&self, node_id: NodeId) -> PeerMetrics {
        let id = node_id.to_string();
        PeerMetrics {
            rpc_seconds: Rpc::ALL
                .iter()
                .map(|rpc| (*rpc, self.rpc_seconds.with_label_values(&[&id, rpc.label()])))
                .collect(),
            rpc_errors: errors_of(&self.rpc_errors, &id, Rpc::ALL),
            sent_bytes: self.bytes.with_label_values(&[id.as_str(), "sent"]),
            received_bytes: self.bytes.with_label_values(&[id.as_str(), "received"]),
            log_bytes: uncounted(),
            log_flow: Flow::default(),
            connected: Some(self.connected.with_label_values(&[&id])),
            clock_offset: Some(self.clock_offset.with_label_values(&[&id])),
        }
    }

    /// A series that is not there is as good as removed.
    fn remove(&self, node_id: NodeId) {
        let id = node_id.to_string();
        for rpc in Rpc::ALL {
            let _ = self.rpc_seconds.remove_label_values(&[&id, rpc.label()]);
            for reason in rpc.reasons() {
                let _ = self.rpc_errors.remove_label_values(&[&id, rpc.label(), reason.label()]);
            }
        }
        for direction in Direction::ALL {
            let _ = self.bytes.remove_label_values(&[id.as_str(), direction.label()]);
        }
        let _ = self.connected.remove_label_values(&[&id]);
        let _ = self.clock_offset.remove_label_values(&[&id]);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<PeerMetrics>>> {
        // A panic while the map was held leaves whole entries behind: still fine to use.
        self.peers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// One peer's series, looked up once.
pub(super) struct PeerMetrics {
    rpc_seconds: BTreeMap<Rpc, Histogram>,
    rpc_errors: BTreeMap<(Rpc, Reason), IntCounter>,
    sent_bytes: IntCounter,
    received_bytes: IntCounter,
    /// What of the sent bytes went over connections for log data; shown nowhere.
    log_bytes: IntCounter,
    log_flow: Flow,
    connected: Option<IntGauge>,
    clock_offset: Option<Gauge>,
}

impl PeerMetrics {
    pub(super) fn answered(&self, rpc: Rpc, took: Duration) {
        if let Some(histogram) = self.rpc_seconds.get(&rpc) {
            histogram.observe(took.as_secs_f64());
        }
    }

    /// A reason that the RPC does not have counts as refused, which every RPC has.
    pub(super) fn failed(&self, rpc: Rpc, reason: Reason) {
        let counter = self.rpc_errors.get(&(rpc, reason));
        if let Some(counter) = counter.or_else(|| self.rpc_errors.get(&(rpc, Reason::Refused))) {
            counter.inc();
        }
    }

    pub(super) fn sent_bytes(&self) -> IntCounter {
        self.sent_bytes.clone()
    }

    pub(super) fn received_bytes(&self) -> IntCounter {
        self.received_bytes.clone()
    }

    pub(super) fn log_sent_bytes(&self) -> IntCounter {
        self.log_bytes.clone()
    }

    /// Those that are not known to have left in vain.
    pub(super) fn log_bytes_counted(&self) -> u64 {
        self.log_flow.counted(self.log_bytes.get())
    }

    pub(super) fn log_acknowledged(&self) {
        self.log_flow.acknowledged(self.log_bytes.get());
    }

    /// What was sent and not acknowledged is sent again.
    pub(super) fn log_sends_again(&self, why: Again) {
        self.log_flow.sends_again(self.log_bytes.get(), why);
    }

    pub(super) fn set_connected(&self, is_connected: bool) {
        if let Some(gauge) = &self.connected {
            gauge.set(i64::from(is_connected));
        }
        if !is_connected {
            // What was measured before says nothing of a clock that nobody sees.
            self.set_clock_offset(0.0);
        }
    }

    /// `None` before the first round trip of a connection.
    pub(super) fn clock_offset(&self) -> Option<f64> {
        self.clock_offset.as_ref().map(Gauge::get).filter(|seconds| *seconds != 0.0)
    }

    pub(super) fn set_clock_offset(&self, seconds: f64) {
        if let Some(gauge) = &self.clock_offset {
            gauge.set(seconds);
        }
    }
}

fn errors_of(family: &IntCounterVec, id: &str, rpcs: &[Rpc]) -> BTreeMap<(Rpc, Reason), IntCounter> {
    let mut counters = BTreeMap::new();
    for rpc in rpcs {
        for reason in rpc.reasons() {
            let counter = family.with_label_values(&[id, rpc.label(), reason.label()]);
            counters.insert((*rpc, *reason), counter);
        }
    }
    counters
}
