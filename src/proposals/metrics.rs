//! Counters and times of proposals.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use crate::telemetry::buckets;
use crate::types::error::{Accepted, ProposeError, Refusal};

/// How a proposal ended. The labels are a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Committed,
    Duplicate,
    NotLeader,
    NoLeader,
    NotReady,
    Fenced,
    Conflict,
    Stale,
    Gap,
    BadParent,
    BadTimestamp,
    Overloaded,
    Unavailable,
    Storage,
    Timeout,
    Unknown,
}

impl Ended {
    const ALL: [(Self, &'static str); 16] = [
        (Self::Committed, "committed"),
        (Self::Duplicate, "duplicate"),
        (Self::NotLeader, "not_leader"),
        (Self::NoLeader, "no_leader"),
        (Self::NotReady, "not_ready"),
        (Self::Fenced, "fenced"),
        (Self::Conflict, "conflict"),
        (Self::Stale, "stale"),
        (Self::Gap, "gap"),
        (Self::BadParent, "bad_parent"),
        (Self::BadTimestamp, "bad_timestamp"),
        (Self::Overloaded, "overloaded"),
        (Self::Unavailable, "unavailable"),
        (Self::Storage, "storage"),
        (Self::Timeout, "timeout"),
        (Self::Unknown, "unknown"),
    ];

    pub(crate) fn labels() -> [&'static str; Self::ALL.len()] {
        Self::ALL.map(|(_, label)| label)
    }

    pub(crate) fn label(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(ended, _)| *ended == self)
            .map(|(_, label)| *label)
            .expect("every outcome is listed")
    }

    /// `None` for what is no proposal at all: a malformed block is counted where it is parsed.
    pub(crate) fn of(result: &Result<Accepted, ProposeError>) -> Option<Self> {
        Some(match result {
            Ok(accepted) if accepted.duplicate => Self::Duplicate,
            Ok(_) => Self::Committed,
            Err(error) => match error {
                ProposeError::Malformed(_) | ProposeError::FenceRequired | ProposeError::TooLarge { .. } => {
                    return None;
                }
                ProposeError::NotLeader { .. } => Self::NotLeader,
                ProposeError::NoLeader { .. } => Self::NoLeader,
                ProposeError::Fenced { .. } => Self::Fenced,
                ProposeError::Refused { refusal, .. } => match refusal {
                    Refusal::Conflict => Self::Conflict,
                    Refusal::Stale => Self::Stale,
                    Refusal::Gap => Self::Gap,
                    Refusal::BadParent => Self::BadParent,
                    Refusal::BadTimestamp => Self::BadTimestamp,
                },
                ProposeError::Overloaded { .. } => Self::Overloaded,
                ProposeError::Timeout { .. } => Self::Timeout,
                ProposeError::LeadershipLost { .. } => Self::Unknown,
                ProposeError::Storage => Self::Storage,
                ProposeError::ShuttingDown | ProposeError::Paused => Self::Unavailable,
                ProposeError::NotReady => Self::NotReady,
            },
        })
    }
}

/// Handles looked up once: a lookup by label costs more than the count.
pub(crate) struct Metrics {
    ended: [(IntCounter, Histogram); Ended::ALL.len()],
    pub(crate) in_flight: IntGauge,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let total = IntCounterVec::new(
            Opts::new(
                "blockraft_raft_proposals_total",
                "Proposals by outcome; timeout and unknown may have happened.",
            ),
            &["outcome"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "blockraft_raft_proposal_seconds",
                "Time from a proposal's arrival to its answer.",
            )
            .buckets(buckets::stage()),
            &["outcome"],
        )?;
        let in_flight =
            IntGauge::new("blockraft_raft_proposals_in_flight", "Proposals admitted and not yet answered.")?;
        registry.register(Box::new(total.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        let ended = Ended::ALL
            .map(|(_, label)| (total.with_label_values(&[label]), seconds.with_label_values(&[label])));
        Ok(Self { ended, in_flight })
    }

    pub(crate) fn ended(&self, result: &Result<Accepted, ProposeError>, took: Duration) {
        if let Some(ended) = Ended::of(result) {
            let at = Ended::ALL.iter().position(|(e, _)| *e == ended).expect("every outcome is listed");
            let (total, seconds) = &self.ended[at];
            total.inc();
            seconds.observe(took.as_secs_f64());
        }
    }
}
