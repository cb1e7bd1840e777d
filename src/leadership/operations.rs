//! Metrics of hand-overs and of the executor beside this node.

use std::{sync::Mutex, time::Duration, time::Instant};

use prometheus::{
    Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::leadership::executor::Verdict;
use crate::leadership::handle::Handle;
use crate::leadership::record::word;
use crate::telemetry::buckets;
use crate::types::proto::LeadershipCause;

/// Why this node gave leadership away; a transfer that was asked for is counted apart.
const REASONS: [LeadershipCause; 5] = [
    LeadershipCause::Resign,
    LeadershipCause::Shutdown,
    LeadershipCause::Pause,
    LeadershipCause::Unfit,
    LeadershipCause::Removed,
];

/// Counted by the operations themselves. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Operations {
    handover_seconds: HistogramVec,
    transfers: IntCounterVec,
    resignations: IntCounterVec,
    last_resorts: IntCounter,
    verdicts: IntCounterVec,
}

impl Operations {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let handover_seconds = HistogramVec::new(
            HistogramOpts::new(
                "blockraft_raft_handover_seconds",
                "Time from the request for a hand-over to its end, by outcome.",
            )
            .buckets(buckets::stage()),
            &["outcome"],
        )?;
        let transfers = IntCounterVec::new(
            Opts::new("blockraft_raft_transfers_total", "Transfers asked of this leader, by outcome."),
            &["outcome"],
        )?;
        let resignations = IntCounterVec::new(
            Opts::new(
                "blockraft_raft_resignations_total",
                "Hand-overs of this leader that were no transfer to be asked for, by reason.",
            ),
            &["reason"],
        )?;
        let last_resorts = IntCounter::new(
            "blockraft_raft_last_resorts_total",
            "Times this node stood for election although it was not fit, since nobody led.",
        )?;
        let verdicts = IntCounterVec::new(
            Opts::new("blockraft_executor_verdicts_total", "Reports of the executor, by verdict."),
            &["verdict"],
        )?;
        for outcome in ["transferred", "other_leads", "timed_out", "refused"] {
            let _ = transfers.with_label_values(&[outcome]);
            let _ = handover_seconds.with_label_values(&[outcome]);
        }
        for reason in REASONS {
            let _ = resignations.with_label_values(&[word(reason)]);
        }
        for verdict in Verdict::LABELS {
            let _ = verdicts.with_label_values(&[verdict]);
        }
        registry.register(Box::new(handover_seconds.clone()))?;
        registry.register(Box::new(transfers.clone()))?;
        registry.register(Box::new(resignations.clone()))?;
        registry.register(Box::new(last_resorts.clone()))?;
        registry.register(Box::new(verdicts.clone()))?;
        Ok(Self { handover_seconds, transfers, resignations, last_resorts, verdicts })
    }

    /// A hand-over came to an end, or its time was over.
    pub(super) fn ended(&self, cause: LeadershipCause, outcome: &'static str, took: Duration, is_told: bool) {
        self.handover_seconds.with_label_values(&[outcome]).observe(took.as_secs_f64());
        match cause {
            LeadershipCause::Transfer => self.transfers.with_label_values(&[outcome]).inc(),
            cause if is_told && REASONS.contains(&cause) => {
                self.resignations.with_label_values(&[word(cause)]).inc();
            }
            // It did not happen, and nobody asked for it.
            _ => {}
        }
    }

    pub(super) fn last_resort(&self) {
        self.last_resorts.inc();
    }

    pub(super) fn verdict(&self, label: &'static str) {
        self.verdicts.with_label_values(&[label]).inc();
    }
}

/// The gauges of the executor, from one look per scrape. The lock keeps two scrapes from mixing their values.
pub(crate) struct ExecutorCollector {
    handle: Handle,
    descs: Vec<Desc>,
    gauges: Mutex<Gauges>,
}

struct Gauges {
    reported: IntGauge,
    lag: IntGauge,
    age: Gauge,
    max_lag: IntGauge,
}

impl Gauges {
    fn all(&self) -> [&dyn Collector; 4] {
        [&self.reported, &self.lag, &self.age, &self.max_lag]
    }
}

impl ExecutorCollector {
    pub(crate) fn register(handle: Handle, registry: &Registry) -> prometheus::Result<()> {
        let gauges = Gauges {
            reported: IntGauge::new(
                "blockraft_executor_reported",
                "The executor beside this node has reported since the node started.",
            )?,
            lag: IntGauge::new(
                "blockraft_executor_lag_blocks",
                "Blocks the executor was behind the head applied when its newest report came.",
            )?,
            age: Gauge::new(
                "blockraft_executor_report_age_seconds",
                "Age of the executor's newest report; 0: there is none.",
            )?,
            max_lag: IntGauge::new(
                "blockraft_executor_max_lag_blocks",
                "The setting executor.max_lag, exported so that rules scale with it.",
            )?,
        };
        gauges.max_lag.set(signed(handle.config().executor.max_lag));
        let descs = gauges.all().into_iter().flat_map(|c| c.desc().into_iter().cloned()).collect();
        registry.register(Box::new(Self { handle, descs, gauges: Mutex::new(gauges) }))
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Collector for ExecutorCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let last = self.handle.memory().executor.last(Instant::now()).map(|(r, age)| (r.lag, age));
        let gauges = self.gauges.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        gauges.reported.set(i64::from(last.is_some()));
        gauges.lag.set(last.map_or(0, |(lag, _)| signed(lag)));
        gauges.age.set(last.map_or(0.0, |(_, age)| age.as_secs_f64()));
        gauges.all().into_iter().flat_map(Collector::collect).collect()
    }
}
