//! A cluster for one run: started before it, gone after it.

use std::{collections::BTreeMap, time::Duration};

use rustix::process::Signal;
use tokio::sync::mpsc;

use crate::cli::dev::child::{self, Ended, Launch, Process};
use crate::cli::dev::folder::Folder;
use crate::cli::dev::ports::{self, Addresses};
use crate::cli::exit::Failure;
use crate::client::endpoint::Endpoint;
use crate::types::NodeId;

/// A node's own bound of a stop at the defaults is 5 s; then it is killed.
const STOP_MAX: Duration = Duration::from_secs(7);
/// Ports to try from: below the range that connections take theirs from, away from those of `dev`.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// Running nodes in a temporary folder. Dropping it ends them too, less gently.
pub(crate) struct Own {
    launches: BTreeMap<NodeId, Launch>,
    processes: BTreeMap<NodeId, Process>,
    /// Told when one of them ends.
    tell_end: mpsc::UnboundedSender<Ended>,
    ended: mpsc::UnboundedReceiver<Ended>,
    endpoints: Vec<Endpoint>,
    // After the processes: they use it.
    _folder: Folder,
}

impl Own {
    pub(crate) fn start(n_nodes: u16, set: &[String]) -> Result<Self, Failure> {
        let folder = Folder::open(None, Some(n_nodes))?;
        let addresses = free_addresses(n_nodes)?;
        let wrong = |e: std::io::Error| Failure::failed(format!("a cluster cannot be started: {e}"));
        folder.write_configs(&addresses).map_err(wrong)?;
        let launches = child::launches(&folder, set)?;
        let (tell_end, ended) = mpsc::unbounded_channel();
        let mut processes = BTreeMap::new();
        for (node_id, launch) in &launches {
            processes.insert(*node_id, child::start(launch, tell_end.clone()).map_err(wrong)?);
        }
        let endpoint = |a: &Addresses| a.api.to_string().parse().expect("an address of ours is well-formed");
        let endpoints = addresses.iter().map(endpoint).collect();
        Ok(Self { launches, processes, tell_end, ended, endpoints, _folder: folder })
    }

    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The endpoint of a node.
    pub(crate) fn endpoint(&self, node_id: NodeId) -> &Endpoint {
        &self.endpoints[node_id as usize - 1]
    }

    pub(crate) fn signal(&self, node_id: NodeId, signal: Signal) {
        if let Some(process) = self.processes.get(&node_id) {
            process.signal(signal);
        }
    }

    /// The next node that ends, and how. Safe to drop.
    pub(crate) async fn ended(&mut self) -> Ended {
        let ended = self.ended.recv().await.expect("a sender is held here");
        self.processes.remove(&ended.node_id);
        ended
    }

    /// Starts a node again that has ended.
    pub(crate) fn restart(&mut self, node_id: NodeId) -> Result<(), Failure> {
        let launch = &self.launches[&node_id];
        let process = child::start(launch, self.tell_end.clone())
            .map_err(|e| Failure::failed(format!("node {node_id} does not start again: {e}")))?;
        self.processes.insert(node_id, process);
        Ok(())
    }

    /// Gracefully; completing `hurry` kills those that still run. The folder is removed.
    pub(crate) async fn stop(mut self, hurry: impl Future<Output = ()>) {
        let processes = std::mem::take(&mut self.processes);
        child::stop_all(processes, &mut self.ended, STOP_MAX, hurry).await;
    }
}

fn free_addresses(n_nodes: u16) -> Result<Vec<Addresses>, Failure> {
    // By eye: on a machine where so many tries fail, more would too.
    const TRIES: usize = 50;
    let mut last = Failure::failed("no free ports");
    for _ in 0..TRIES {
        let addresses = ports::addresses(rand::random_range(PORTS), n_nodes)?;
        match ports::check_free(&addresses) {
            Ok(()) => return Ok(addresses),
            Err(taken) => last = taken,
        }
    }
    Err(last)
}
