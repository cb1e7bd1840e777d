//! What the feed counts: drops, and how they were repaired.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::feed::Channel;
use crate::types::LogIndex;

/// Label of a group of subscribers: a channel, or a name that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

impl Label {
    pub(super) fn index(self) -> usize {
        self.0
    }
}

/// All labels in their order: the channels, then the watched names.
fn labels(watched: &[String]) -> Vec<String> {
    Channel::ALL.iter().map(|c| c.label().to_owned()).chain(watched.iter().cloned()).collect()
}

/// The counters of one label.
struct Cell {
    delivered: IntCounter,
    full: IntCounter,
    closed: IntCounter,
    replayed: IntCounter,
    gaps: IntCounter,
}

pub(super) struct Metrics {
    watched: Vec<String>,
    cells: Vec<Cell>,
}

impl Metrics {
    /// Every series exists from the start.
    pub(super) fn new(watched: &[String], registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let delivered = counter(
            "blockraft_raft_apply_messages_total",
            "Applied blocks handed over to subscribers, replayed ones too.",
            &["subscriber"],
        )?;
        let dropped = counter(
            "blockraft_raft_apply_messages_dropped_total",
            "Applied blocks that were not handed over as they were applied.",
            &["subscriber", "reason"],
        )?;
        let replayed = counter(
            "blockraft_raft_apply_messages_replayed_total",
            "Applied blocks handed over to subscribers out of the store.",
            &["subscriber"],
        )?;
        let gaps = counter(
            "blockraft_raft_apply_gaps_total",
            "Gaps in what subscribers were handed over, each told to its subscriber.",
            &["subscriber"],
        )?;
        let cell = |label: String| Cell {
            delivered: delivered.with_label_values(&[&label]),
            full: dropped.with_label_values(&[label.as_str(), "full"]),
            closed: dropped.with_label_values(&[label.as_str(), "closed"]),
            replayed: replayed.with_label_values(&[&label]),
            gaps: gaps.with_label_values(&[&label]),
        };
        Ok(Self { watched: watched.to_owned(), cells: labels(watched).into_iter().map(cell).collect() })
    }

    pub(super) fn n_labels(&self) -> usize {
        self.cells.len()
    }

    pub(super) fn label(&self, channel: Channel, name: Option<&str>) -> Label {
        let watched = name.and_then(|name| self.watched.iter().position(|w| w == name));
        let of_channel = Channel::ALL.iter().position(|c| *c == channel).expect("all channels are listed");
        Label(watched.map_or(of_channel, |at| Channel::ALL.len() + at))
    }

    pub(super) fn delivered(&self, label: Label) {
        self.cells[label.0].delivered.inc();
    }

    pub(super) fn replayed(&self, label: Label) {
        self.cells[label.0].delivered.inc();
        self.cells[label.0].replayed.inc();
    }

    pub(super) fn dropped(&self, label: Label, n: u64) {
        self.cells[label.0].full.inc_by(n);
    }

    pub(super) fn closed(&self, label: Label, n: u64) {
        self.cells[label.0].closed.inc_by(n);
    }

    pub(super) fn gap(&self, label: Label) {
        self.cells[label.0].gaps.inc();
    }
}

/// The subscribers of one label, seen through the worst of them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Worst {
    n: i64,
    depth: i64,
    /// Of the one with that depth.
    capacity: i64,
    gap: i64,
}

impl Worst {
    pub(super) fn add(&mut self, depth: usize, capacity: usize, gap: LogIndex) {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let (depth, capacity) = (signed(depth as u64), signed(capacity as u64));
        // Of two that are as deep the one that is fuller.
        if self.n == 0 || self.depth < depth || (self.depth == depth && capacity < self.capacity) {
            (self.depth, self.capacity) = (depth, capacity);
        }
        self.n += 1;
        self.gap = self.gap.max(signed(gap));
    }
}

/// Reads the queues when it is scraped.
pub(super) struct Queues<F> {
    labels: Vec<String>,
    worst: F,
    gauges: [IntGaugeVec; 4],
}

impl<F: Fn() -> Vec<Worst> + Send + Sync + 'static> Queues<F> {
    /// `worst` answers for each label.
    pub(super) fn register(registry: &Registry, watched: &[String], worst: F) -> prometheus::Result<()> {
        let gauge = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["subscriber"]);
        let gauges = [
            gauge("blockraft_raft_apply_subscribers", "Subscribers of applied blocks.")?,
            gauge("blockraft_raft_apply_queue_depth", "Blocks that wait for the subscriber with the most.")?,
            gauge(
                "blockraft_raft_apply_queue_capacity",
                "Blocks that may wait for the subscriber with the most.",
            )?,
            gauge(
                "blockraft_raft_apply_subscriber_gap_entries",
                "Entries between what was applied and what the subscriber with the largest unrepaired gap has.",
            )?,
        ];
        registry.register(Box::new(Self { labels: labels(watched), worst, gauges }))
    }
}

impl<F: Fn() -> Vec<Worst> + Send + Sync + 'static> Collector for Queues<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges.iter().flat_map(|g| g.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        for (label, worst) in self.labels.iter().zip((self.worst)()) {
            let values = [worst.n, worst.depth, worst.capacity, worst.gap];
            for (gauge, value) in self.gauges.iter().zip(values) {
                gauge.with_label_values(&[label]).set(value);
            }
        }
        self.gauges.iter().flat_map(Collector::collect).collect()
    }
}
