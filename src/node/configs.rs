//! Each part's own settings, out of the node's.

use std::time::Instant;

use crate::api;
use crate::config;
use crate::consensus;
use crate::consensus::snapshots;
use crate::feed;
use crate::leadership;
use crate::leadership::metrics::ExportedSettings;
use crate::peer;
use crate::proposals;
use crate::store;

pub(super) fn identity(identity: &store::Identity) -> peer::Identity {
    peer::Identity {
        cluster_id: identity.cluster_id.clone(),
        epoch: identity.epoch,
        node_id: identity.node_id,
        incarnation: identity.incarnation,
    }
}

pub(super) fn peer_config(settings: &config::Settings) -> peer::Config {
    let raft = &settings.raft;
    let config = peer::Config::new(raft.heartbeat_interval, raft.heartbeat_timeout, raft.send_timeout);
    peer::Config { advertise: settings.peer.advertise.clone(), ..config }
}

pub(super) fn core_config(
    settings: &config::Settings,
    identity: &store::Identity,
) -> consensus::core::Config {
    consensus::core::Config {
        cluster_id: settings.cluster.id.clone(),
        incarnation: identity.incarnation,
        heartbeat_interval: settings.raft.heartbeat_interval,
        heartbeat_timeout: settings.raft.heartbeat_timeout,
    }
}

pub(super) fn exported(settings: &config::Settings) -> ExportedSettings {
    ExportedSettings {
        snapshot_threshold: settings.snapshot.threshold,
        trailing_logs: settings.snapshot.trailing_logs,
        heartbeat_interval: settings.raft.heartbeat_interval,
        heartbeat_timeout: settings.raft.heartbeat_timeout,
        election_timeout: settings.raft.election_timeout,
        leader_lease_timeout: settings.raft.leader_lease_timeout,
    }
}

pub(super) fn leadership_config(
    settings: &config::Settings,
    barred_until: Option<Instant>,
) -> leadership::handle::Config {
    let (raft, executor) = (&settings.raft, &settings.executor);
    leadership::handle::Config {
        lease_timeout: raft.leader_lease_timeout,
        election_timeout: raft.election_timeout,
        resign_timeout: raft.resign_timeout,
        shutdown_timeout: raft.shutdown_timeout,
        stall_after: settings.leadership.stall_after,
        keeper: leadership::keeper::Config {
            last_resort_after: settings.leadership.last_resort_after,
            handover_budget: settings.leadership.handover_budget,
            handover_window: settings.leadership.handover_window,
            pause: raft.election_timeout,
        },
        executor: leadership::executor::Config {
            is_required: executor.required,
            max_lag: executor.max_lag,
            sync_timeout: executor.sync_timeout,
            report_timeout: executor.report_timeout,
        },
        barred_until,
    }
}

pub(super) fn proposals_config(settings: &config::Settings) -> proposals::Config {
    proposals::Config {
        node_id: settings.node.id,
        propose_timeout: settings.api.propose_timeout,
        in_flight_max: usize::try_from(settings.api.max_in_flight).unwrap_or(usize::MAX),
        in_flight_bytes_max: settings.api.max_in_flight_bytes,
        reorder_window: settings.api.reorder_window,
        reorder_wait: settings.api.reorder_wait,
    }
}

pub(super) fn feed_config(settings: &config::Settings) -> feed::Config {
    feed::Config {
        buffer: usize::try_from(settings.feed.buffer).unwrap_or(usize::MAX),
        watched: settings.feed.watched.clone(),
    }
}

pub(super) fn snapshots_config(settings: &config::Settings) -> snapshots::Config {
    snapshots::Config {
        threshold: settings.snapshot.threshold,
        threshold_bytes: settings.snapshot.threshold_bytes,
        trailing_logs: settings.snapshot.trailing_logs,
        min_interval: settings.snapshot.min_interval,
        grace_entries: settings.snapshot.grace_entries,
    }
}

pub(super) fn api_config(settings: &config::Settings) -> api::Config {
    let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let api = &settings.api;
    api::Config {
        listen: api.listen,
        advertise: api.advertise.clone(),
        max_body: api.max_body,
        max_batch: count(api.max_batch),
        max_connections: count(api.max_connections),
        max_connections_per_address: count(api.max_connections_per_address),
        rate_limit: u32::try_from(api.rate_limit).unwrap_or(u32::MAX),
        allowed_hosts: api.allowed_hosts.clone(),
        allowed_origins: api.allowed_origins.clone(),
    }
}
