//! Role, positions, lags and peers for Prometheus: one collector over one status per scrape.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use prometheus::{
    Counter, Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::consensus::{Role, Status};
use crate::leadership::ages::{Ages, oldest};
use crate::leadership::handle::{Handle, Leadership};
use crate::types::{LogIndex, position::Positions, proto::LeadershipCause};

/// The highest apply lag is kept over this long, in slots of [`LAG_SLOT`].
const LAG_SLOTS: usize = 6;
const LAG_SLOT: Duration = Duration::from_secs(10);

const ROLES: [(Role, &str); 5] = [
    (Role::Leader, "leader"),
    (Role::Follower, "follower"),
    (Role::Candidate, "candidate"),
    (Role::Learner, "learner"),
    (Role::Stopped, "stopped"),
];

/// What rules scale with; set once.
#[derive(Debug, Clone)]
pub(crate) struct ExportedSettings {
    pub(crate) snapshot_threshold: u64,
    pub(crate) trailing_logs: u64,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) heartbeat_timeout: Duration,
    pub(crate) election_timeout: Duration,
    pub(crate) leader_lease_timeout: Duration,
}

/// Counts that a scrape could miss; moved by the leadership task.
#[derive(Clone)]
pub(crate) struct Counters {
    pub(super) leader_changes: IntCounterVec,
    pub(super) terms_advanced: IntCounter,
    pub(super) leaderless_seconds: Counter,
}

/// Label of a leader change: what was asked for is told from what happened.
pub(super) fn reason(cause: LeadershipCause) -> &'static str {
    match cause {
        LeadershipCause::Election | LeadershipCause::Lease => "election",
        LeadershipCause::Transfer => "transfer",
        LeadershipCause::Resign
        | LeadershipCause::Shutdown
        | LeadershipCause::Pause
        | LeadershipCause::Removed => "resign",
        LeadershipCause::Unfit => "unfit",
        LeadershipCause::Restart => "restart",
        LeadershipCause::Unknown => "unknown",
    }
}

impl Counters {
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let leader_changes = IntCounterVec::new(
            Opts::new("blockraft_raft_leader_changes_total", "Leaderships applied on this node, by reason."),
            &["reason"],
        )?;
        for reason in ["election", "transfer", "resign", "unfit", "restart", "unknown"] {
            let _ = leader_changes.with_label_values(&[reason]);
        }
        let terms_advanced =
            IntCounter::new("blockraft_raft_terms_advanced_total", "Terms this node saw go by.")?;
        let leaderless_seconds = Counter::new(
            "blockraft_raft_leaderless_seconds_total",
            "Time during which this node heard no leader.",
        )?;
        registry.register(Box::new(leader_changes.clone()))?;
        registry.register(Box::new(terms_advanced.clone()))?;
        registry.register(Box::new(leaderless_seconds.clone()))?;
        Ok(Self { leader_changes, terms_advanced, leaderless_seconds })
    }
}

/// Highest apply lag of the last minute; fed by the leadership task.
#[derive(Default)]
pub(super) struct LagMax {
    /// Start of each slot and its maximum, oldest first.
    slots: VecDeque<(Instant, u64)>,
}

impl LagMax {
    pub(super) fn observe(&mut self, now: Instant, lag: u64) {
        match self.slots.back_mut() {
            Some((start, max)) if now.saturating_duration_since(*start) < LAG_SLOT => *max = lag.max(*max),
            _ => self.slots.push_back((now, lag)),
        }
        while LAG_SLOTS < self.slots.len() {
            self.slots.pop_front();
        }
    }

    pub(super) fn get(&self, now: Instant) -> u64 {
        let horizon = LAG_SLOT * u32::try_from(LAG_SLOTS).expect("a handful of slots");
        let is_recent = |start: Instant| now.saturating_duration_since(start) < horizon;
        self.slots.iter().filter(|(start, _)| is_recent(*start)).map(|(_, max)| *max).max().unwrap_or(0)
    }
}

struct Gauges {
    term: IntGauge,
    role: IntGaugeVec,
    has_leader: IntGauge,
    is_leader: IntGauge,
    ready: IntGauge,
    paused: IntGauge,
    leader_since: Gauge,
    /// last, committed, cluster committed, applied, snapshot, purged.
    positions: [IntGauge; 6],
    apply_lag: IntGauge,
    apply_lag_max: IntGauge,
    behind: IntGauge,
    oldest_wait: Gauge,
    compaction_lag: IntGauge,
    log_entries: IntGauge,
    members: IntGaugeVec,
    joint: IntGauge,
    fatal: IntGauge,
    settings: Vec<Gauge>,
    // Leader only.
    peer_matched: IntGaugeVec,
    peer_lag: IntGaugeVec,
    peer_lag_seconds: GaugeVec,
    peer_ack_age: GaugeVec,
    quorum_ack_age: Gauge,
    lease_remaining: Gauge,
    tolerance: IntGauge,
}

/// Sets every gauge from one status, then hands the families over. The lock keeps two scrapes from
/// mixing their values; it is held for the copy alone.
pub(crate) struct RaftCollector {
    handle: Handle,
    ages: Arc<dyn Ages>,
    descs: Vec<Desc>,
    gauges: Mutex<Gauges>,
    heartbeat_timeout: Duration,
}

impl RaftCollector {
    pub(crate) fn register(
        handle: Handle,
        ages: Arc<dyn Ages>,
        settings: &ExportedSettings,
        registry: &Registry,
    ) -> prometheus::Result<()> {
        let gauges = Gauges::new(settings)?;
        let heartbeat_timeout = settings.heartbeat_timeout;
        let all = gauges.everywhere().into_iter().chain(gauges.leader_only());
        let descs = all.flat_map(|c| c.desc().into_iter().cloned()).collect();
        let gauges = Mutex::new(gauges);
        registry.register(Box::new(Self { handle, ages, descs, gauges, heartbeat_timeout }))
    }
}

fn gauge(name: &str, help: &str) -> prometheus::Result<IntGauge> {
    IntGauge::new(format!("blockraft_{name}"), help)
}

impl Gauges {
    fn new(settings: &ExportedSettings) -> prometheus::Result<Self> {
        let vec = |name: &str, help: &str, label: &str| {
            IntGaugeVec::new(Opts::new(format!("blockraft_{name}"), help), &[label])
        };
        let float = |name: &str, help: &str| Gauge::new(format!("blockraft_{name}"), help);
        let setting = |name: &str, value: f64| {
            let gauge = float(name, "A setting, exported so that rules scale with it.")?;
            gauge.set(value);
            Ok::<_, prometheus::Error>(gauge)
        };
        Ok(Self {
            term: gauge("raft_term", "Current term; persisted.")?,
            role: vec("raft_role", "Role in raft's own view, also when cut off.", "role")?,
            has_leader: gauge("raft_has_leader", "A leader is heard, by this node's own clock.")?,
            is_leader: gauge("raft_is_leader", "This node leads in raft's own view.")?,
            ready: gauge("raft_ready", "This node leads and holds the fence.")?,
            paused: gauge("raft_paused", "This node was asked not to lead.")?,
            leader_since: float(
                "raft_leader_since_timestamp_seconds",
                "When the current leadership began, by its leader's clock; 0: none is known.",
            )?,
            positions: [
                gauge("raft_last_log_index", "Last entry of this node's log.")?,
                gauge("raft_committed_index", "Last entry this node may apply.")?,
                gauge("raft_cluster_committed_index", "Last entry known to be committed by a quorum.")?,
                gauge("raft_applied_index", "Last entry this node applied.")?,
                gauge("raft_snapshot_index", "Last entry the newest snapshot covers.")?,
                gauge("raft_purged_index", "Last entry deleted from this node's log.")?,
            ],
            apply_lag: gauge("raft_apply_lag_entries", "Entries committed and not yet applied here.")?,
            apply_lag_max: gauge("raft_apply_lag_entries_max", "Highest apply lag of the last 60 s.")?,
            behind: gauge(
                "raft_behind_entries",
                "Entries the cluster committed and this node has not applied.",
            )?,
            oldest_wait: float(
                "raft_apply_oldest_wait_seconds",
                "Age of the oldest entry that is committed and not applied here; 0: there is none.",
            )?,
            compaction_lag: gauge(
                "raft_compaction_lag_entries",
                "Entries applied since the newest snapshot.",
            )?,
            log_entries: gauge("raft_log_entries", "Entries in this node's log.")?,
            members: vec(
                "raft_members",
                "Members of the cluster; 0 on a node that was removed.",
                "suffrage",
            )?,
            joint: gauge("raft_membership_joint", "A change of membership is under way.")?,
            fatal: gauge(
                "raft_fatal",
                "This node is up and stopped serving: its state differs from the others'.",
            )?,
            settings: vec![
                setting("raft_snapshot_threshold_entries", settings.snapshot_threshold as f64)?,
                setting("raft_trailing_logs_entries", settings.trailing_logs as f64)?,
                setting("raft_heartbeat_interval_seconds", settings.heartbeat_interval.as_secs_f64())?,
                setting("raft_heartbeat_timeout_seconds", settings.heartbeat_timeout.as_secs_f64())?,
                setting("raft_election_timeout_seconds", settings.election_timeout.as_secs_f64())?,
                setting("raft_leader_lease_timeout_seconds", settings.leader_lease_timeout.as_secs_f64())?,
                float(
                    "block_expected_interval_seconds",
                    "The cluster's setting chain.block_interval; 0: none is expected.",
                )?,
            ],
            peer_matched: vec("raft_peer_matched_index", "Last entry a peer is known to hold.", "peer_id")?,
            peer_lag: vec(
                "raft_peer_replication_lag_entries",
                "Entries of the leader's log a peer is not known to hold.",
                "peer_id",
            )?,
            peer_lag_seconds: GaugeVec::new(
                Opts::new(
                    "blockraft_raft_peer_replication_lag_seconds",
                    "Age, by the leader's clock, of the oldest entry a peer is not known to hold.",
                ),
                &["peer_id"],
            )?,
            peer_ack_age: GaugeVec::new(
                Opts::new(
                    "blockraft_raft_peer_last_ack_age_seconds",
                    "Time since the newest message a peer acknowledged was sent; before its first answer, since this node won.",
                ),
                &["peer_id"],
            )?,
            quorum_ack_age: float(
                "raft_quorum_ack_age_seconds",
                "Time since the newest message a quorum acknowledged was sent; before the first one, since this node won.",
            )?,
            lease_remaining: float(
                "raft_lease_remaining_seconds",
                "Time this leader may act without asking.",
            )?,
            tolerance: gauge(
                "raft_failure_tolerance",
                "Voters heard of lately beyond a majority; negative: the quorum is lost.",
            )?,
        })
    }

    fn set(
        &self,
        status: &Status,
        now: &Leadership,
        facts: &Facts,
        leading_for: Option<Duration>,
        ages: &dyn Ages,
        heartbeat_timeout: Duration,
    ) {
        let flag = |gauge: &IntGauge, on: bool| gauge.set(i64::from(on));
        // Until the core has run once its metrics mean nothing, and the zeros stay.
        if !status.is_started {
            return;
        }
        self.term.set(signed(status.term));
        flag(&self.has_leader, status.leader_id.is_some());
        flag(&self.is_leader, status.role == Role::Leader);
        flag(&self.ready, now.ready);
        flag(&self.paused, now.paused);
        flag(&self.fatal, now.has_diverged);
        self.leader_since.set(facts.leader_since_ms as f64 / 1e3);
        let p = &status.positions;
        let values = [p.last, p.committed, p.cluster_committed, p.applied, p.snapshot, p.purged];
        for (gauge, value) in self.positions.iter().zip(values) {
            gauge.set(signed(value));
        }
        self.apply_lag.set(signed(p.apply_lag()));
        self.apply_lag_max.set(signed(facts.apply_lag_max.max(p.apply_lag())));
        self.behind.set(signed(p.behind()));
        let waits = oldest(p.applied, p.committed, |index| ages.since_committed(index));
        self.oldest_wait.set(waits.as_secs_f64());
        self.compaction_lag.set(signed(p.compaction_lag()));
        self.log_entries.set(signed(log_entries(p)));
        // What a removed node's log ends with is in force no more: the entry behind it went to the others alone.
        let members = (!facts.is_removed).then_some(&status.members);
        flag(&self.joint, members.is_some_and(|m| m.joint));
        if let Some(interval) = self.settings.last() {
            interval.set(facts.block_interval.as_secs_f64());
        }
        self.members.with_label_values(&["voter"]).set(members.map_or(0, |m| m.voters.len() as i64));
        self.members.with_label_values(&["learner"]).set(members.map_or(0, |m| m.learners.len() as i64));
        self.set_leader_only(status, now, leading_for, ages, heartbeat_timeout);
    }

    fn set_leader_only(
        &self,
        status: &Status,
        now: &Leadership,
        leading_for: Option<Duration>,
        ages: &dyn Ages,
        heartbeat_timeout: Duration,
    ) {
        self.peer_matched.reset();
        self.peer_lag.reset();
        self.peer_lag_seconds.reset();
        self.peer_ack_age.reset();
        let Some(peers) = &status.peers else { return };
        // Who has not answered yet is silent since this node won: a peer that was away before it did is seen too.
        let silent = |age: Option<Duration>| age.or(leading_for).unwrap_or_default().as_secs_f64();
        for peer in peers {
            let id = peer.node_id.to_string();
            if let Some(matched) = peer.matched {
                self.peer_matched.with_label_values(&[&id]).set(signed(matched));
                self.peer_lag.with_label_values(&[&id]).set(signed(peer.lag));
                let lag = oldest(matched, status.positions.last, |index| ages.since_appended(index));
                self.peer_lag_seconds.with_label_values(&[&id]).set(lag.as_secs_f64());
            }
            self.peer_ack_age.with_label_values(&[&id]).set(silent(peer.ack_age));
        }
        self.quorum_ack_age.set(silent(status.quorum_ack_age));
        self.lease_remaining.set(now.lease_remaining.as_secs_f64());
        let voters = &status.members.voters;
        let heard = peers
            .iter()
            .filter(|p| voters.contains(&p.node_id))
            .filter(|p| p.ack_age.is_some_and(|age| age < heartbeat_timeout * 2))
            .count()
            + 1;
        self.tolerance.set(heard as i64 - (voters.len() / 2 + 1) as i64);
    }

    fn collect(&self, role: Role, leads: bool) -> Vec<MetricFamily> {
        for (each, label) in ROLES {
            self.role.with_label_values(&[label]).set(i64::from(each == role));
        }
        let leader_only = if leads { self.leader_only() } else { Vec::new() };
        let families = self.everywhere().into_iter().chain(leader_only).flat_map(Collector::collect);
        // A family without a series yet is not there.
        families.filter(|f| !f.get_metric().is_empty()).collect()
    }

    fn everywhere(&self) -> Vec<&dyn Collector> {
        let mut all: Vec<&dyn Collector> = vec![
            &self.term,
            &self.role,
            &self.has_leader,
            &self.is_leader,
            &self.ready,
            &self.paused,
            &self.leader_since,
            &self.apply_lag,
            &self.apply_lag_max,
            &self.behind,
            &self.oldest_wait,
            &self.compaction_lag,
            &self.log_entries,
            &self.members,
            &self.joint,
            &self.fatal,
        ];
        all.extend(self.positions.iter().map(|g| g as &dyn Collector));
        all.extend(self.settings.iter().map(|g| g as &dyn Collector));
        all
    }

    /// Families that come and go with the leadership.
    fn leader_only(&self) -> Vec<&dyn Collector> {
        vec![
            &self.peer_matched,
            &self.peer_lag,
            &self.peer_lag_seconds,
            &self.peer_ack_age,
            &self.quorum_ack_age,
            &self.lease_remaining,
            &self.tolerance,
        ]
    }
}

/// What the collector needs beside the status.
pub(super) struct Facts {
    pub(super) leader_since_ms: u64,
    pub(super) apply_lag_max: u64,
    pub(super) block_interval: Duration,
    /// This node was told that it is no member.
    pub(super) is_removed: bool,
}

/// Entries of the log: last − purged, counting the founding entry at index 0 while it is there.
fn log_entries(p: &Positions) -> LogIndex {
    p.last.saturating_sub(p.purged)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Collector for RaftCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let status = self.handle.raft().status();
        let now = self.handle.of(&status);
        let facts = self.handle.facts();
        let gauges = self.gauges.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let leading_for = self.handle.raft().leading_for(status.term);
        gauges.set(&status, &now, &facts, leading_for, &*self.ages, self.heartbeat_timeout);
        gauges.collect(status.role, status.role == Role::Leader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_lag_is_kept_for_a_minute() {
        let mut max = LagMax::default();
        let start = Instant::now();
        max.observe(start, 3);
        max.observe(start + Duration::from_secs(1), 9);
        max.observe(start + Duration::from_secs(15), 2);
        assert_eq!(max.get(start + Duration::from_secs(20)), 9);
        assert_eq!(max.get(start + Duration::from_secs(61)), 2);
        assert_eq!(max.get(start + Duration::from_secs(90)), 0);
    }
}
