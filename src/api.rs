//! HTTP and JSON-RPC on one port: what tools, operators and sequencers see of a node.
//!
//! Two tables hold the contract: [`table::methods`] (JSON-RPC) and [`routes::ROUTES`] (plain HTTP). What is
//! registered, decoded, measured and documented follows from them. Owns sockets and nothing else: every
//! fact is asked of the handles in [`Parts`] when a request wants it.

use std::{net::SocketAddr, sync::Arc, time::Duration, time::Instant};

use bytes::Bytes;
use prometheus::Registry;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::audit;
use crate::consensus;
use crate::instants::Instants;
use crate::leadership;
use crate::proposals;
use crate::store;
use crate::telemetry;
use crate::telemetry::exemplars::Exemplars;
use crate::types::NodeId;
use crate::types::position::LogPos;
use crate::types::settings::ClusterSettings;

pub(crate) mod accept;
pub(crate) mod answers;
pub(crate) mod args;
pub(crate) mod aside;
pub(crate) mod blocks;
pub(crate) mod body;
pub(crate) mod cluster;
pub(crate) mod control;
pub(crate) mod envelope;
pub(crate) mod error;
#[cfg(test)]
mod examples;
pub(crate) mod executors;
pub(crate) mod feed;
pub(crate) mod framing;
pub(crate) mod handlers;
pub(crate) mod hosts;
pub(crate) mod http;

pub(crate) mod leaderships;
pub(crate) mod limit;
pub(crate) mod logging;
pub(crate) mod membership;
pub(crate) mod metrics;
pub(crate) mod moves;
pub(crate) mod once;
pub(crate) mod openrpc;
pub(crate) mod origins;
pub(crate) mod page;
pub(crate) mod probes;
pub(crate) mod records;
pub(crate) mod routes;
pub(crate) mod rpc;
pub(crate) mod sessions;
pub(crate) mod settings;
pub(crate) mod snapshots;
pub(crate) mod socket;
pub(crate) mod sse;
pub(crate) mod status;
pub(crate) mod stream;
pub(crate) mod subscriptions;
pub(crate) mod table;
pub(crate) mod timeline;
pub(crate) mod trace;
pub(crate) mod turns;
pub(crate) mod upgrade;
pub(crate) mod wire;

/// Reads of large answers at once: each may hold some 30 MiB. By eye, for two to eight cores.
const LARGE_READS_MAX: usize = 8;
/// Bytes of JSON-RPC bodies held at once, beside the proposals' own bound. As `api.max_in_flight_bytes`.
const BODY_BYTES_MAX: u64 = 256 << 20;

/// What subscriptions are given to send their last item. With [`accept::DRAIN_FOR`] behind it, below what
/// `node` gives its servers.
const FORWARD_FOR: Duration = Duration::from_millis(150);

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    /// `host:port` that other nodes and clients are told.
    pub(crate) advertise: String,
    /// Bytes; bounds answers too.
    pub(crate) max_body: u64,
    pub(crate) max_batch: usize,
    pub(crate) max_connections: usize,
    /// 0: no bound.
    pub(crate) max_connections_per_address: usize,
    /// Requests per second and address; 0: no limit.
    pub(crate) rate_limit: u32,
    /// Beside localhost, any IP literal, and the hosts of this node and its fellow members.
    pub(crate) allowed_hosts: Vec<String>,
    /// Beside the origin that is this node itself.
    pub(crate) allowed_origins: Vec<String>,
}

/// Who this node is.
#[derive(Debug, Clone)]
pub(crate) struct NodeInfo {
    pub(crate) cluster_id: String,
    pub(crate) node_id: NodeId,
    pub(crate) name: String,
    pub(crate) version: &'static str,
    /// `host:port`; compared with the membership record.
    pub(crate) peer_advertise: String,
}

/// What the API asks and tells of.
pub(crate) struct Parts {
    pub(crate) node: NodeInfo,
    pub(crate) consensus: consensus::handle::Handle,
    pub(crate) leadership: leadership::Handle,
    pub(crate) proposals: proposals::Handle,
    pub(crate) reader: store::Reader,
    pub(crate) feed: crate::feed::Hub,
    pub(crate) audit: audit::Handle,
    pub(crate) changer: consensus::membership::Changer,
    pub(crate) health: store::Health,
    pub(crate) snapshots: store::Snapshots,
    /// When this node snapshots and what it purges.
    pub(crate) compaction: consensus::snapshots::Config,
    /// What this node's own file says; shown where it differs from the log.
    pub(crate) settings_file: ClusterSettings,
    /// How the process before this one ended.
    pub(crate) last_exit: Option<String>,
    pub(crate) started: Instant,
    pub(crate) registry: Registry,
    pub(crate) exemplars: Exemplars,
    pub(crate) instants: Arc<Instants>,
    /// `None` where the log is another program's.
    pub(crate) log: Option<telemetry::log::Handle>,
    /// The API's own metrics, registered in `registry`.
    pub(crate) metrics: metrics::Metrics,
    pub(crate) probes: probes::Probes,
}

/// One API: its parts, its bounds and what it remembers between requests.
pub(crate) struct Api {
    pub(crate) config: Config,
    pub(crate) parts: Arc<Parts>,
    pub(crate) hosts: hosts::Hosts,
    pub(crate) limiter: limit::Limiter,
    pub(crate) seen: cluster::Seen,
    pub(crate) head: handlers::HeadCache,
    pub(crate) once: once::Once,
    pub(crate) documents: openrpc::Documents,
    pub(crate) large_reads: Arc<Semaphore>,
    /// A snapshot's check.
    pub(crate) verifying: Arc<Semaphore>,
    pub(crate) exports: Arc<Semaphore>,
    /// In units of [`body::BUDGET_UNIT`].
    pub(crate) body_budget: Arc<Semaphore>,
    /// Proposals, streams and steering calls that outlive the connection they came by.
    pub(crate) tasks: TaskTracker,
    /// Subscriptions over WebSocket.
    pub(crate) forwarders: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl Api {
    pub(crate) fn new(config: Config, parts: Arc<Parts>, stop: CancellationToken) -> Self {
        let budget = BODY_BYTES_MAX.max(config.max_body.saturating_mul(2)) / body::BUDGET_UNIT;
        Self {
            hosts: hosts::Hosts::new(&config),
            limiter: limit::Limiter::new(config.rate_limit),
            seen: cluster::Seen::default(),
            head: handlers::HeadCache::default(),
            once: once::Once::default(),
            documents: openrpc::Documents::new(),
            large_reads: Arc::new(Semaphore::new(LARGE_READS_MAX)),
            verifying: Arc::new(Semaphore::new(1)),
            exports: Arc::new(Semaphore::new(snapshots::EXPORTS_MAX)),
            body_budget: Arc::new(Semaphore::new(budget as usize)),
            tasks: TaskTracker::new(),
            forwarders: TaskTracker::new(),
            config,
            parts,
            stop,
        }
    }
}

impl Api {
    /// Why this node answers nothing about blocks, though it is up: its state differs from the others'.
    pub(crate) fn stopped_serving(&self) -> Option<error::Fault> {
        self.parts.health.get().diverged.map(error::Fault::storage)
    }
}

/// The `raft_status` of this node, as JSON; also what other nodes are answered.
pub(crate) fn status_json(parts: &Parts) -> Bytes {
    let status = status::of(parts);
    serde_json::to_vec(&status).expect("a status has string keys and finite numbers").into()
}

/// When an entry reached each stage on this node, as JSON; empty: it is not remembered. Also what other
/// nodes are answered.
pub(crate) fn timeline_json(parts: &Parts, pos: LogPos) -> Bytes {
    let Some(own) = timeline::own(parts, pos) else { return Bytes::new() };
    serde_json::to_vec(&own).expect("stages have string keys and finite numbers").into()
}

/// Serves the API until `stop`, then lets open requests end for a moment.
pub(crate) async fn serve(listener: TcpListener, config: Config, parts: Arc<Parts>, stop: CancellationToken) {
    let bounds =
        accept::Bounds { total: config.max_connections, per_address: config.max_connections_per_address };
    let api = Arc::new(Api::new(config, parts.clone(), stop.clone()));
    let front = Arc::new(http::Front::new(api.clone()));
    let watching = tokio::spawn(probes::watch(parts.clone(), stop.clone()));
    let open = parts.metrics.connections.clone();
    let sessions = async {
        stop.cancelled().await;
        // The feed has ended by then: each subscriber is told before its session goes, unless it stands still.
        api.forwarders.close();
        let _ = tokio::time::timeout(FORWARD_FOR, api.forwarders.wait()).await;
        front.end_sessions();
        api.tasks.close();
        // What is not over by then goes down with the process: its outcome is unknown to its client.
        let _ = tokio::time::timeout(accept::DRAIN_FOR, api.tasks.wait()).await;
    };
    tokio::join!(accept::run(listener, bounds, front.clone(), open, stop.clone()), sessions);
    watching.abort();
}

/// Serves `/metrics` and the probes alone, until `stop`.
pub(crate) async fn serve_metrics(listener: TcpListener, parts: Arc<Parts>, stop: CancellationToken) {
    let open = parts.metrics.connections.clone();
    let front = Arc::new(probes::Front::new(parts));
    accept::run(listener, accept::Bounds::for_metrics(), front, open, stop).await;
}
