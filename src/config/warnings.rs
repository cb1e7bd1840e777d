//! What is allowed and unwise, on this machine: told by `check` and at start, never refused.

use std::{fs, time::Duration};

use crate::config::{Loaded, Settings, rules};
use crate::types::quantity::{format_duration, format_size};
use crate::types::settings::ClusterSettings;

/// Memory beside what settings bound: write buffers 64, cache 16, log tail 16, peers 16, process 40.
const MEMORY_BASE: u64 = (64 + 16 + 16 + 16 + 40) << 20;
/// Bytes a connection holds while it does little, by eye.
const MEMORY_PER_CONNECTION: u64 = 64 << 10;
/// Files beside connections: two databases, peers, snapshots on their way.
const FILES_BASE: u64 = 1024;
/// What the shipped unit and compose file give a node before they kill it.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// A stop takes this longer than its two settings together.
const STOP_EXTRA: Duration = Duration::from_secs(1);

/// What the machine allows this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Limits {
    /// Of the container; `None`: no limit is known.
    pub(crate) memory: Option<u64>,
    /// The hard limit, to which the soft one is raised.
    pub(crate) files: Option<u64>,
}

impl Limits {
    pub(crate) fn of_this_process() -> Self {
        // Version 2 of cgroups, then version 1, as a container sees them.
        let memory = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
            .iter()
            .find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
            // Version 1 says "no limit" by a number near 2^63.
            .filter(|bytes| *bytes < 1 << 60);
        let files = fs::read_to_string("/proc/self/limits").ok().and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
            line.split_whitespace().nth(1)?.parse().ok()
        });
        Self { memory, files }
    }
}

/// All warnings, a sentence each.
pub(crate) fn find(loaded: &Loaded, limits: Limits) -> Vec<String> {
    let settings = &loaded.settings;
    let mut found = Vec::new();
    warn_of_limits(settings, limits, &mut found);
    warn_of_cluster(settings, &mut found);
    warn_of_times(settings, &mut found);
    let differing = ClusterSettings::default().differing(&settings.settings);
    if !differing.is_empty() {
        found.push(format!(
            "{} differ from the default: of the cluster, so only the first leader's file counts; later changes go by \
             raft_configure",
            differing.join(", "),
        ));
    }
    found
}

fn warn_of_limits(settings: &Settings, limits: Limits, found: &mut Vec<String>) {
    let block = settings.settings.max_block_bytes;
    // A block in flight is there as request and as entry; a queue of the feed shares its blocks with the log.
    let bound = MEMORY_BASE
        .saturating_add(settings.api.max_in_flight_bytes)
        .saturating_add(settings.api.max_body.saturating_mul(2))
        .saturating_add(settings.api.max_connections.saturating_mul(MEMORY_PER_CONNECTION));
    if let Some(limit) = limits.memory.filter(|limit| *limit < bound) {
        found.push(format!(
            "the settings allow about {} MiB of memory, the container has {} MiB: lower api.max_in_flight_bytes ({}), \
             api.max_body or api.max_connections, or raise the limit",
            bound >> 20,
            limit >> 20,
            format_size(settings.api.max_in_flight_bytes),
        ));
    }
    let files = settings.api.max_connections.saturating_add(FILES_BASE);
    if let Some(limit) = limits.files.filter(|limit| *limit < files) {
        found.push(format!(
            "at most {limit} files may be open, api.max_connections = {} needs about {files}: raise the limit \
             (LimitNOFILE, ulimit -n)",
            settings.api.max_connections,
        ));
    }
    if settings.api.max_in_flight_bytes < block {
        found.push(format!(
            "api.max_in_flight_bytes ({}) is below chain.max_block_bytes ({}): the greatest blocks are never admitted \
             beside another",
            format_size(settings.api.max_in_flight_bytes),
            format_size(block),
        ));
    }
}

fn warn_of_cluster(settings: &Settings, found: &mut Vec<String>) {
    let peers = &settings.cluster.peers;
    if !peers.is_empty() {
        let others = peers.iter().filter(|m| m.node_id != settings.node.id).count();
        let own = peers.iter().find(|m| m.node_id == settings.node.id);
        let n = others + usize::from(own.is_some());
        if n % 2 == 0 {
            found.push(format!("cluster.peers names {n} nodes: one fewer would survive as many failures"));
        }
        if let Some(own) = own {
            for (key, told, mine) in [
                ("peer.advertise", &own.peer_addr, &settings.peer.advertise),
                ("api.advertise", &own.api_addr, &settings.api.advertise),
                ("node.name", &own.name, &settings.node.name),
            ] {
                if told != mine {
                    found.push(format!("cluster.peers says {told} for this node, {key} is {mine}"));
                }
            }
        }
    }
}

fn warn_of_times(settings: &Settings, found: &mut Vec<String>) {
    let raft = &settings.raft;
    if !rules::lease_spans_heartbeats(raft.leader_lease_timeout, raft.heartbeat_interval) {
        found.push(format!(
            "raft.leader_lease_timeout ({}) is below 2 × raft.heartbeat_interval ({}): one late heartbeat ends the lease",
            format_duration(raft.leader_lease_timeout),
            format_duration(raft.heartbeat_interval),
        ));
    }
    let stop = raft.shutdown_timeout + raft.resign_timeout + STOP_EXTRA;
    if STOP_LIMIT < stop {
        found.push(format!(
            "a stop may take {} (raft.shutdown_timeout + raft.resign_timeout + 1s); the shipped unit and compose file \
             kill after {}",
            format_duration(stop),
            format_duration(STOP_LIMIT),
        ));
    }
}
