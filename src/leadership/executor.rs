//! What the block executor beside this node said of itself, and what follows from it.
//!
//! A report is judged when it arrives, against the head applied then; from then on only its age changes.
//! [`verdict`] compares the executor's block with the agreed ones. Pure: no clock, no disk.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::types::Height;
use crate::types::block::BlockRef;

/// `executor.*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Config {
    /// Whether a node whose executor never reported is unfit.
    pub(crate) is_required: bool,
    /// Blocks it may be behind.
    pub(crate) max_lag: u64,
    /// How long it may be ill before a leader hands over.
    pub(crate) sync_timeout: Duration,
    /// Silence beyond it is illness.
    pub(crate) report_timeout: Duration,
}

/// How an executor's block stands to the agreed ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the head.
    InSync,
    /// It is ours, and so many blocks follow.
    Behind { by: u64 },
    /// Its height is above the head.
    Ahead { by: u64, head: Option<BlockRef> },
    /// As above, and its block at the head's height is the head: go on.
    AheadOfStaleState { by: u64, head: BlockRef },
    /// Another block than ours stands at this height.
    Forked { height_differs: Height },
    /// The height lies before the kept history.
    Unknown { oldest_height: Option<Height> },
}

impl Verdict {
    pub(crate) const LABELS: [&str; 6] =
        ["in_sync", "behind", "ahead", "ahead_of_stale_state", "forked", "unknown"];

    /// As metrics name it.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::InSync => "in_sync",
            Self::Behind { .. } => "behind",
            Self::Ahead { .. } => "ahead",
            Self::AheadOfStaleState { .. } => "ahead_of_stale_state",
            Self::Forked { .. } => "forked",
            Self::Unknown { .. } => "unknown",
        }
    }
}

/// Where an executor stands, as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// 0 with an empty hash: before any block.
    pub(crate) height: Height,
    pub(crate) hash: Bytes,
    /// Its own hash at our head's height, where it is ahead.
    pub(crate) hash_at_head: Option<Bytes>,
}

/// What is kept of the agreed chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) head: Option<BlockRef>,
    pub(crate) oldest_height: Option<Height>,
    /// Blocks below the oldest one were forgotten.
    pub(crate) has_pruned: bool,
}

/// The agreed block at a height.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum At {
    Hash(Bytes),
    /// None was agreed on there.
    Nothing,
    /// It lies before the kept history.
    Forgotten,
}

/// Compares a claim with the agreed chain. `at` is asked for heights up to the head's.
pub(crate) fn verdict<E>(
    claim: &Claim,
    kept: &Kept,
    at: impl Fn(Height) -> Result<At, E>,
) -> Result<Verdict, E> {
    let is_empty = claim.height == 0 && claim.hash.is_empty();
    let Some(head) = &kept.head else {
        return Ok(match is_empty {
            true => Verdict::InSync,
            false => Verdict::Ahead { by: claim.height, head: None },
        });
    };
    if head.height < claim.height {
        let by = claim.height - head.height;
        return Ok(match &claim.hash_at_head {
            None => Verdict::Ahead { by, head: Some(head.clone()) },
            Some(hash) if *hash == head.hash => Verdict::AheadOfStaleState { by, head: head.clone() },
            Some(_) => Verdict::Forked { height_differs: head.height },
        });
    }
    let by = head.height - claim.height;
    if is_empty {
        // Everything is still to come, if everything is still there.
        return Ok(match kept.has_pruned {
            true => Verdict::Unknown { oldest_height: kept.oldest_height },
            false => Verdict::Behind { by },
        });
    }
    Ok(match at(claim.height)? {
        At::Hash(hash) if hash != claim.hash => Verdict::Forked { height_differs: claim.height },
        At::Hash(_) if by == 0 => Verdict::InSync,
        At::Hash(_) => Verdict::Behind { by },
        // Below the very first block nothing was ever agreed on, and between two nothing stands.
        At::Nothing if kept.oldest_height.is_some_and(|oldest| claim.height < oldest) => {
            Verdict::Unknown { oldest_height: kept.oldest_height }
        }
        At::Nothing => Verdict::Forked { height_differs: claim.height },
        At::Forgotten => Verdict::Unknown { oldest_height: kept.oldest_height },
    })
}

/// One report, judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) height: Height,
    pub(crate) is_healthy: bool,
    /// Whether it produces blocks, where it says so.
    pub(crate) is_active: Option<bool>,
    pub(crate) reason: Option<String>,
    pub(crate) verdict: Verdict,
    /// Blocks behind the head applied when it came.
    pub(crate) lag: u64,
}

/// What is wrong with an executor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Illness {
    /// It has to report, and never did.
    Missing,
    /// Nothing was heard of it for so long.
    Silent(Duration),
    Unhealthy(Option<String>),
    Lagging(u64),
    Forked(Height),
    /// So far behind that nobody knows its block.
    Unknown,
}

/// What it has been for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ill {
    pub(crate) what: Illness,
    pub(crate) since: Instant,
}

/// Owned by [`crate::leadership::Handle`].
#[derive(Debug)]
pub(crate) struct Executor {
    config: Config,
    started: Instant,
    last: Option<(Instant, Report)>,
    /// Since when each report was bad.
    bad_since: Option<Instant>,
}

impl Executor {
    pub(crate) fn new(config: Config, started: Instant) -> Self {
        Self { config, started, last: None, bad_since: None }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn report(&mut self, now: Instant, report: Report) {
        let is_bad = self.fault(&report).is_some();
        // A report that ends a silence does not make what it says of itself older.
        self.bad_since = is_bad.then(|| self.bad_since.unwrap_or(now));
        self.last = Some((now, report));
    }

    /// The newest report and its age.
    pub(crate) fn last(&self, now: Instant) -> Option<(&Report, Duration)> {
        self.last.as_ref().map(|(at, report)| (report, now.saturating_duration_since(*at)))
    }

    fn fault(&self, report: &Report) -> Option<Illness> {
        match &report.verdict {
            Verdict::Forked { height_differs } => Some(Illness::Forked(*height_differs)),
            Verdict::Unknown { .. } => Some(Illness::Unknown),
            _ if !report.is_healthy => Some(Illness::Unhealthy(report.reason.clone())),
            _ if self.config.max_lag < report.lag => Some(Illness::Lagging(report.lag)),
            _ => None,
        }
    }

    /// What is wrong with it now, and since when.
    pub(crate) fn ill(&self, now: Instant) -> Option<Ill> {
        let Some((at, report)) = &self.last else {
            return self.config.is_required.then_some(Ill { what: Illness::Missing, since: self.started });
        };
        // What it said last is worse than its silence: a fork does not heal by waiting.
        if let Some(what @ Illness::Forked(_)) = self.fault(report) {
            return Some(Ill { what, since: self.bad_since.unwrap_or(*at) });
        }
        let silence = now.saturating_duration_since(*at);
        if self.config.report_timeout < silence {
            let since = self.bad_since.unwrap_or(*at + self.config.report_timeout);
            return Some(Ill { what: Illness::Silent(silence), since });
        }
        let what = self.fault(report)?;
        Some(Ill { what, since: self.bad_since.unwrap_or(*at) })
    }
}

/// For people.
impl std::fmt::Display for Illness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str(
                "executor.required is set and the executor never reported; start it, or let it call executor_report",
            ),
            Self::Silent(silence) => write!(
                f,
                "the executor has not reported for {} ms (executor.report_timeout); is it running?",
                silence.as_millis()
            ),
            Self::Unhealthy(Some(reason)) => write!(f, "the executor says that it is not healthy: {reason}"),
            Self::Unhealthy(None) => f.write_str("the executor says that it is not healthy"),
            Self::Lagging(lag) => write!(
                f,
                "the executor is {lag} blocks behind the head (executor.max_lag); it catches up with block_range"
            ),
            Self::Forked(height) => write!(
                f,
                "the executor holds another block at height {height}; roll it back before that height"
            ),
            Self::Unknown => f.write_str(
                "the executor's block lies before the kept history; restore it from a newer state",
            ),
        }
    }
}

#[cfg(test)]
mod tests;
