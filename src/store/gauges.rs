//! Gauges that are read when somebody scrapes: sizes, free space, the sync in progress.

use std::sync::{Arc, Weak};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntGauge, IntGaugeVec, Opts, Registry};
use rocksdb::properties::ESTIMATE_PENDING_COMPACTION_BYTES;

use crate::store::health::Health;
use crate::store::rocks::{Db, LOG_FAMILIES, STATE_FAMILIES};
use crate::store::{files, log, state};

/// Holds the databases weakly: a scrape must not keep one open.
struct Gauges {
    health: Health,
    log: Weak<log::Shared>,
    state: Weak<state::Shared>,
    free: IntGauge,
    min_free: IntGauge,
    bytes: IntGaugeVec,
    pending: IntGaugeVec,
    oldest_wait: Gauge,
    log_bytes: IntGauge,
    log_oldest_age: Gauge,
}

pub(super) fn register(
    registry: &Registry,
    min_free: u64,
    health: &Health,
    log: &Arc<log::Shared>,
    state: &Arc<state::Shared>,
) -> prometheus::Result<()> {
    let gauges = Gauges {
        health: health.clone(),
        log: Arc::downgrade(log),
        state: Arc::downgrade(state),
        free: IntGauge::new(
            "blockraft_store_free_bytes",
            "Bytes that may still be written on the data folder's disk.",
        )?,
        min_free: IntGauge::new(
            "blockraft_store_min_free_bytes",
            "Free bytes below which entries are refused.",
        )?,
        bytes: IntGaugeVec::new(Opts::new("blockraft_store_bytes", "Bytes of a database's files."), &["db"])?,
        pending: IntGaugeVec::new(
            Opts::new("blockraft_store_pending_compaction_bytes", "Bytes that compactions are behind by."),
            &["db"],
        )?,
        oldest_wait: Gauge::new(
            "blockraft_raft_log_sync_oldest_wait_seconds",
            "Age of the log sync in progress; 0: none is.",
        )?,
        log_bytes: IntGauge::new(
            "blockraft_raft_log_bytes",
            "Stored bytes of the entries that are not purged.",
        )?,
        log_oldest_age: Gauge::new(
            "blockraft_raft_log_oldest_age_seconds",
            "Time since the oldest entry that is not purged was proposed, or came here; 0: there is none.",
        )?,
    };
    gauges.min_free.set(min_free as i64);
    registry.register(Box::new(gauges))
}

impl Collector for Gauges {
    fn desc(&self) -> Vec<&Desc> {
        let mut desc = self.free.desc();
        desc.extend(self.min_free.desc());
        desc.extend(self.bytes.desc());
        desc.extend(self.pending.desc());
        desc.extend(self.oldest_wait.desc());
        desc.extend(self.log_bytes.desc());
        desc.extend(self.log_oldest_age.desc());
        desc
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.free.set(self.health.get().free_bytes as i64);
        self.oldest_wait.set(self.health.sync_in_progress().map_or(0.0, |d| d.as_secs_f64()));
        if let Some(log) = self.log.upgrade() {
            self.log_bytes.set(log.stats().bytes as i64);
            self.log_oldest_age.set(log.oldest_age().unwrap_or_default().as_secs_f64());
        }
        let log = self.log.upgrade().and_then(|l| l.db().ok());
        self.set("log", log.as_deref(), &LOG_FAMILIES);
        let state = self.state.upgrade().and_then(|s| s.published());
        self.set("state", state.as_ref().map(|p| p.db.db()), &STATE_FAMILIES);
        let mut families = self.free.collect();
        families.extend(self.min_free.collect());
        families.extend(self.bytes.collect());
        families.extend(self.pending.collect());
        families.extend(self.oldest_wait.collect());
        families.extend(self.log_bytes.collect());
        families.extend(self.log_oldest_age.collect());
        families
    }
}

impl Gauges {
    fn set(&self, label: &str, db: Option<&Db>, families: &[&str]) {
        let (mut bytes, mut pending) = (0, 0);
        if let Some(db) = db {
            bytes = files::folder_bytes(db.path()).unwrap_or(0);
            for family in families.iter().filter_map(|f| db.cf_handle(f)) {
                let value = db.property_int_value_cf(family, ESTIMATE_PENDING_COMPACTION_BYTES);
                pending += value.ok().flatten().unwrap_or(0);
            }
        }
        self.bytes.with_label_values(&[label]).set(bytes as i64);
        self.pending.with_label_values(&[label]).set(pending as i64);
    }
}
