//! When to snapshot and what to purge: ours, not openraft's (safety rules 29 and 30).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use openraft::async_runtime::watch::WatchReceiver;

use crate::consensus::{BoxFuture, core::Stopped, handle::Handle, status};
use crate::types::{LogIndex, position::Positions};

/// Settings of compaction.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Entries committed since the newest snapshot that make one due.
    pub(crate) threshold: u64,
    /// The same in bytes of log.
    pub(crate) threshold_bytes: u64,
    /// Entries kept behind the newest snapshot.
    pub(crate) trailing_logs: u64,
    /// Between two starts.
    pub(crate) min_interval: Duration,
    /// Entries the purge is held back for a follower that is just catching up.
    pub(crate) grace_entries: u64,
}

/// A peer that acknowledged so recently is waited for by the purge (safety rule 29).
const CATCHING_UP_WITHIN: Duration = Duration::from_secs(10);

/// What compaction asks of the store.
pub(crate) trait Compacted: Send + Sync + 'static {
    /// Bytes in the log behind an index.
    fn log_bytes_after(&self, index: LogIndex) -> u64;
    /// Flushes the state while applies go on, so that the checkpoint itself takes milliseconds.
    fn flush_ahead(&self) -> BoxFuture<'_, ()>;
}

/// Above what three nodes on one disk take in; by eye, several times the fastest run.
const ENTRIES_PER_SECOND: f64 = 200_000.0;
const BYTES_PER_SECOND: f64 = (2u64 << 30) as f64;
/// The timer's resolution.
const LOOK_MIN: Duration = Duration::from_millis(1);
/// A purge trails by as much.
const LOOK_MAX: Duration = Duration::from_millis(10);

/// Whether a snapshot is due.
fn is_due(config: &Config, at: &Positions, bytes_since: u64) -> bool {
    let since = at.applied.saturating_sub(at.snapshot);
    0 < since && (config.threshold <= since || config.threshold_bytes <= bytes_since)
}

/// The index the log may be purged up to; 0: nothing.
fn purge_upto(config: &Config, at: &Positions, slowest_catching_up: Option<LogIndex>) -> LogIndex {
    let upto = at.snapshot.saturating_sub(config.trailing_logs);
    let held = match slowest_catching_up {
        Some(matched) => upto.min(matched.max(at.last.saturating_sub(config.grace_entries))),
        None => upto,
    };
    if at.purged < held { held } else { 0 }
}

/// How long at least until a snapshot can be due, at rates that no node reaches.
fn not_before(config: &Config, at: &Positions, bytes_since: u64) -> Duration {
    let entries = config.threshold.saturating_sub(at.applied.saturating_sub(at.snapshot));
    let bytes = config.threshold_bytes.saturating_sub(bytes_since);
    let soonest = (entries as f64 / ENTRIES_PER_SECOND).min(bytes as f64 / BYTES_PER_SECOND);
    Duration::from_secs_f64(soonest).clamp(LOOK_MIN, LOOK_MAX)
}

/// Snapshots and purges until raft stops.
pub(crate) async fn run(raft: Handle, config: Config, store: Arc<dyn Compacted>) -> Result<(), Stopped> {
    let mut watch = raft.watch();
    let mut last_start: Option<Instant> = None;
    // Index the last build was asked at: the next one waits until it is over.
    let mut asked_at: Option<LogIndex> = None;
    loop {
        let metrics = watch.borrow_and_update().clone();
        if let Err(fatal) = &metrics.running_state {
            return Err(fatal.clone().into());
        }
        let status = raft.status_of(&metrics);
        let at = status.positions;
        if asked_at.is_some_and(|asked| asked <= at.snapshot) {
            asked_at = None;
        }
        let slowest = status.peers.iter().flatten().filter_map(|p| {
            let is_catching_up = p.ack_age.is_some_and(|age| age < CATCHING_UP_WITHIN);
            (is_catching_up && p.matched.unwrap_or(0) < at.snapshot).then(|| p.matched.unwrap_or(0))
        });
        let upto = purge_upto(&config, &at, slowest.min());
        if upto != 0 {
            raft.core().purge_log(upto).await?;
        }
        let wait_left = last_start
            .map(|start| config.min_interval.saturating_sub(start.elapsed()))
            .filter(|left| !left.is_zero());
        if is_due(&config, &at, store.log_bytes_after(at.snapshot)) && asked_at.is_none() {
            match wait_left {
                Some(left) => {
                    tokio::time::sleep(left).await;
                    continue;
                }
                None => {
                    last_start = Some(Instant::now());
                    asked_at = Some(at.applied);
                    store.flush_ahead().await;
                    raft.core().trigger_snapshot().await?;
                }
            }
        }
        // Raft's metrics change several times a block: nothing can be due before this.
        tokio::time::sleep(not_before(&config, &at, store.log_bytes_after(at.snapshot))).await;
        // A build that failed never shows in the metrics: ask again after a while.
        let patience = status::heard_for(raft.config().heartbeat_timeout).max(config.min_interval) * 4;
        match tokio::time::timeout(patience, watch.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Stopped("its metrics ended".into())),
            Err(_) => asked_at = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            threshold: 500,
            threshold_bytes: 1 << 20,
            trailing_logs: 200,
            min_interval: Duration::from_millis(200),
            grace_entries: 1_000,
        }
    }

    #[test]
    fn a_snapshot_is_due_by_entries_or_by_bytes_and_never_without_news() {
        let at = |snapshot, applied| Positions { snapshot, applied, ..Positions::default() };
        assert!(!is_due(&config(), &at(100, 599), 0));
        assert!(is_due(&config(), &at(100, 600), 0));
        assert!(is_due(&config(), &at(100, 101), 1 << 20));
        assert!(!is_due(&config(), &at(100, 100), 1 << 20));
    }

    #[test]
    fn nothing_is_looked_at_more_often_than_something_can_be_due() {
        let at = |applied| Positions { applied, ..Positions::default() };
        let wide = Config { threshold: 10_000, threshold_bytes: 64 << 20, ..config() };
        assert_eq!(not_before(&wide, &at(0), 0), LOOK_MAX);
        assert_eq!(not_before(&wide, &at(9_000), 0), Duration::from_millis(5));
        assert_eq!(not_before(&wide, &at(10_001), 0), LOOK_MIN);
        assert_eq!(not_before(&wide, &at(0), 64 << 20), LOOK_MIN);
    }

    #[test]
    fn the_purge_trails_the_snapshot_and_waits_a_bounded_time_for_a_follower() {
        let at = Positions { snapshot: 5_000, last: 5_400, ..Positions::default() };
        assert_eq!(purge_upto(&config(), &at, None), 4_800);
        assert_eq!(purge_upto(&config(), &at, Some(4_600)), 4_600);
        assert_eq!(purge_upto(&config(), &at, Some(3)), 4_400);
        assert_eq!(purge_upto(&config(), &Positions { purged: 4_800, ..at }, None), 0);
    }
}
