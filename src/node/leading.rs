//! Building the leadership of a node.

use std::sync::Arc;
use std::time::Instant;

use prometheus::Registry;
use tokio::sync::mpsc;

use crate::audit;
use crate::config;
use crate::consensus;
use crate::instants::Instants;
use crate::leadership;
use crate::leadership::handover::Request;
use crate::leadership::operations::{ExecutorCollector, Operations};
use crate::node::{StartError, configs};
use crate::store;

/// What the leadership reads and writes on disk.
pub(super) struct Stored {
    pub(super) reader: store::Reader,
    pub(super) local: store::Local,
    pub(super) health: store::Health,
}

/// The handle, and the requests for its task. `votes_from`: until then the node neither votes nor stands.
pub(super) fn build(
    settings: &config::Settings,
    votes_from: Option<Instant>,
    raft: &consensus::handle::Handle,
    stored: Stored,
    audit: &audit::Handle,
    instants: &Arc<Instants>,
    registry: &Registry,
) -> Result<(leadership::Handle, mpsc::Receiver<Request>), StartError> {
    let failed = |what: String| StartError { exit_code: 1, message: what };
    let metrics_failed = |e: prometheus::Error| failed(format!("a metric cannot be registered: {e}"));
    let parts = leadership::handle::Parts {
        raft: raft.clone(),
        reader: stored.reader,
        local: stored.local,
        health: stored.health,
        operations: Operations::register(registry).map_err(metrics_failed)?,
        history: audit.history.clone(),
        chain: audit.chain.clone(),
        tracer: instants.tracer().clone(),
    };
    let (handle, requests) = leadership::Handle::new(configs::leadership_config(settings, votes_from), parts)
        .map_err(|e| failed(format!("this node's records cannot be read: {e}")))?;
    ExecutorCollector::register(handle.clone(), registry).map_err(metrics_failed)?;
    Ok((handle, requests))
}
