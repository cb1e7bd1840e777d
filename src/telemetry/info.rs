//! Who this is, and what its clock says.

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::{
    IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::telemetry::family;

/// Registers `blockraft_build_info` and `blockraft_node_info`, both 1: the only series with the
/// identity of node and cluster.
pub(crate) fn register_info(
    registry: &Registry,
    cluster_id: &str,
    node_id: u64,
    node_name: &str,
    version: &str,
    revision: &str,
) -> Result<(), prometheus::Error> {
    let node_id = node_id.to_string();
    for (name, help, labels, values) in [
        (
            "blockraft_build_info",
            "The build that runs; always 1.",
            &["version", "revision"][..],
            &[version, revision][..],
        ),
        (
            "blockraft_node_info",
            "The node that is scraped; always 1.",
            &["cluster_id", "node_id", "node_name"][..],
            &[cluster_id, node_id.as_str(), node_name][..],
        ),
    ] {
        let info = IntGaugeVec::new(Opts::new(name, help), labels)?;
        info.with_label_values(values).set(1);
        registry.register(Box::new(info))?;
    }
    Ok(())
}

/// Registers `blockraft_node_clock_timestamp_seconds`, read at each scrape.
pub(crate) fn register_clock(registry: &Registry) -> Result<(), prometheus::Error> {
    let help = "This node's clock, in seconds since the epoch.";
    registry.register(Box::new(Clock(Desc::new(CLOCK.to_owned(), help.to_owned(), vec![], HashMap::new())?)))
}

const CLOCK: &str = "blockraft_node_clock_timestamp_seconds";

struct Clock(Desc);

impl Collector for Clock {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // A clock before 1970 is shown as 0, which every rule finds wrong.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        vec![family::gauge(CLOCK, &self.0.help, now.as_secs_f64())]
    }
}
