//! When to snapshot and what to purge: ours, not openraft's (safety rules 29 and 30).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::watch;

use crate::consensus::{BoxFuture, Status, core::Stopped, handle::Handle, status};
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

/// Bytes of log that the purge is held back at most, beside `grace_entries` (safety rule 29).
const GRACE_BYTES: u64 = 256 << 20;

/// What compaction asks of the store.
pub(crate) trait Compacted: Send + Sync + 'static {
    /// Bytes in the log behind an index.
    fn log_bytes_after(&self, index: LogIndex) -> u64;
    /// Flushes the state while applies go on, so that the checkpoint itself takes milliseconds.
    fn flush_ahead(&self) -> BoxFuture<'_, ()>;
    /// Number of the log's last durable operation.
    fn log_moves(&self) -> watch::Receiver<u64>;
    /// Completes once more than `n` builds ended in this process, whatever came of them.
    fn built(&self, n: u64) -> BoxFuture<'_, Built>;
}

/// What became of builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Built {
    /// Builds that ended in this process.
    pub(crate) n_ended: u64,
    /// Last index that the newest snapshot holds; 0: there is none.
    pub(crate) newest: LogIndex,
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

/// The index the log may be purged up to; 0: nothing. `bytes_after` says how much of the log lies
/// behind an index.
fn purge_upto(
    config: &Config,
    at: &Positions,
    slowest_catching_up: Option<LogIndex>,
    bytes_after: impl Fn(LogIndex) -> u64,
) -> LogIndex {
    let upto = at.snapshot.saturating_sub(config.trailing_logs);
    let held = match slowest_catching_up {
        Some(matched) => {
            let by_entries = at.last.saturating_sub(config.grace_entries);
            let from = matched.max(by_entries).min(upto);
            first_within(from, upto, |index| bytes_after(index) <= GRACE_BYTES)
        }
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

/// The first index of a range that is within a bound; its end when none is. Once one is within, all
/// behind it are.
fn first_within(mut from: LogIndex, upto: LogIndex, is_within: impl Fn(LogIndex) -> bool) -> LogIndex {
    let mut end = upto;
    while from < end {
        let middle = from + (end - from) / 2;
        if is_within(middle) { end = middle } else { from = middle + 1 }
    }
    end
}

/// The one build that may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Build {
    /// Asked of raft, and not over. One that raft declined never ends: it is given up then.
    Runs {
        give_up: Instant,
    },
    /// Over; raft declines another until it has taken this index over.
    Ended(LogIndex),
    Idle,
}

/// Snapshots and purges until raft stops. The one task that asks raft for either by itself.
pub(crate) async fn run(raft: Handle, config: Config, store: Arc<dyn Compacted>) -> Result<(), Stopped> {
    let mut news = raft.watch();
    let (mut moves, mut changes) = (store.log_moves(), raft.role_changes());
    let mut last_start: Option<Instant> = None;
    let mut build = Build::Idle;
    // One may have been built before raft began.
    let mut n_ended = store.built(0).now_or_never().unwrap_or_default().n_ended;
    // Somebody asked for one: neither the threshold nor `min_interval` counts (safety rule 30).
    let mut is_wanted = false;
    let patience = status::heard_for(raft.config().heartbeat_timeout).max(config.min_interval) * 4;
    loop {
        moves.mark_unchanged();
        let metrics = news.borrow_and_update().clone();
        if let Err(fatal) = &metrics.running_state {
            return Err(fatal.clone().into());
        }
        let status = raft.status_of(&metrics);
        let at = status.positions;
        let slowest = slowest_catching_up(&status);
        let upto = purge_upto(&config, &at, slowest, |index| store.log_bytes_after(index));
        if upto != 0 {
            raft.core().purge_log(upto).await?;
        }
        if let Build::Ended(upto) = build
            && upto <= at.snapshot
        {
            build = Build::Idle;
        }
        if matches!(build, Build::Runs { give_up } if give_up <= Instant::now()) {
            build = Build::Idle;
        }
        let mut start_at = None;
        if build == Build::Idle && (is_wanted || is_due(&config, &at, store.log_bytes_after(at.snapshot))) {
            let earliest = last_start.map(|start| start + config.min_interval);
            match earliest.filter(|earliest| !is_wanted && Instant::now() < *earliest) {
                Some(earliest) => start_at = Some(earliest),
                None => {
                    last_start = Some(Instant::now());
                    build = Build::Runs { give_up: Instant::now() + patience };
                    is_wanted = false;
                    store.flush_ahead().await;
                    raft.core().trigger_snapshot().await?;
                }
            }
        }
        // Raft's metrics change several times a block: nothing can be due before this.
        tokio::time::sleep(not_before(&config, &at, store.log_bytes_after(at.snapshot))).await;
        let until = match build {
            Build::Runs { give_up } => give_up,
            Build::Ended(_) | Build::Idle => start_at.unwrap_or_else(|| Instant::now() + patience),
        };
        // Raft's metrics change with each tick as well. Where all that the log holds is applied and nothing waits
        // to be purged, only what is written to the log can make anything due.
        let is_settled =
            build == Build::Idle && upto == 0 && slowest.is_none() && store.log_bytes_after(at.applied) == 0;
        tokio::select! {
            changed = news.changed(), if !is_settled => {
                if changed.is_err() {
                    return Err(Stopped("its metrics ended".into()));
                }
            }
            // The log goes after this task.
            Ok(()) = moves.changed() => {}
            changed = changes.next() => changed?,
            built = store.built(n_ended) => {
                n_ended = built.n_ended;
                build = Build::Ended(built.newest);
            }
            // Whoever asks while one runs gets that one.
            () = raft.snapshot_asked() => is_wanted = !matches!(build, Build::Runs { .. }),
            () = tokio::time::sleep_until(until.into()) => {
                if let Build::Ended(_) = build {
                    build = Build::Idle;
                }
            }
        }
    }
}

/// What the slowest follower holds that receives a snapshot, or was sent one and is not at its end yet.
fn slowest_catching_up(status: &Status) -> Option<LogIndex> {
    let catching_up = status.peers.iter().flatten().filter_map(|p| {
        let is_alive = p.ack_age.is_some_and(|age| age < CATCHING_UP_WITHIN);
        let matched = p.matched.unwrap_or(0);
        (is_alive && matched < status.positions.snapshot).then_some(matched)
    });
    catching_up.min()
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
        let upto = |at: &Positions, slowest| purge_upto(&config(), at, slowest, |_| 0);
        assert_eq!(upto(&at, None), 4_800);
        assert_eq!(upto(&at, Some(4_600)), 4_600);
        assert_eq!(upto(&at, Some(3)), 4_400);
        assert_eq!(upto(&at, Some(4_990)), 4_800);
        assert_eq!(upto(&Positions { purged: 4_800, ..at }, None), 0);
    }

    #[test]
    fn the_purge_waits_for_a_bounded_number_of_bytes_too() {
        let at = Positions { snapshot: 5_000, last: 5_400, ..Positions::default() };
        let upto =
            |entry_bytes| purge_upto(&config(), &at, Some(4_500), |index| (5_400 - index) * entry_bytes);
        // Everything from 4 500 on is within the bound; then as much as is; then nothing but what trails.
        assert_eq!(upto(GRACE_BYTES / 900), 4_500);
        assert_eq!(upto(GRACE_BYTES / 700), 4_700);
        assert_eq!(upto(GRACE_BYTES), 4_800);
    }
}
