//! The settings of a node: read from a file, the environment and flags, checked, and typed.
//!
//! [`keys`] is the one table of all settings; [`layers`] says what was given and where, [`rules`] what
//! holds between settings, [`warnings`] what is allowed and unwise. All problems are told at once.
//! Knows nothing of the parts that the settings are for.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use crate::config::layers::{Source, Sources};
use crate::config::values::Values;
use crate::telemetry::log::Config as LogConfig;
use crate::telemetry::trace::Config as TraceConfig;
use crate::types::NodeId;
use crate::types::member::Member;
use crate::types::setting::Problem;
use crate::types::settings::ClusterSettings;

pub(crate) mod address;
pub(crate) mod keys;
pub(crate) mod layers;
mod rules;
pub(crate) mod show;
mod values;
pub(crate) mod warnings;

#[cfg(test)]
mod tests;

/// Every setting of a node, each within its rule.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) cluster: Cluster,
    pub(crate) node: Node,
    pub(crate) peer: Peer,
    pub(crate) api: Api,
    pub(crate) metrics: Metrics,
    pub(crate) raft: Raft,
    pub(crate) leadership: Leadership,
    pub(crate) snapshot: Snapshot,
    /// `chain` and `state`: what this node's file says; the values in the log hold.
    pub(crate) settings: ClusterSettings,
    pub(crate) store: Store,
    pub(crate) feed: Feed,
    pub(crate) executor: Executor,
    pub(crate) telemetry: Telemetry,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cluster {
    pub(crate) id: String,
    /// The founding members, in the order given.
    pub(crate) peers: Vec<Member>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) listen: SocketAddr,
    /// `host:port`.
    pub(crate) advertise: String,
    pub(crate) insecure: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Api {
    pub(crate) listen: SocketAddr,
    /// `host:port`.
    pub(crate) advertise: String,
    pub(crate) insecure: bool,
    pub(crate) propose_timeout: Duration,
    pub(crate) max_in_flight: u64,
    pub(crate) max_in_flight_bytes: u64,
    pub(crate) reorder_window: u64,
    pub(crate) reorder_wait: Duration,
    pub(crate) max_body: u64,
    pub(crate) max_batch: u64,
    pub(crate) max_connections: u64,
    /// 0: no bound.
    pub(crate) max_connections_per_address: u64,
    /// Requests a second from one address; 0: off.
    pub(crate) rate_limit: u64,
    /// Beside localhost, any IP address, and the API hosts of this node and the members.
    pub(crate) allowed_hosts: Vec<String>,
    pub(crate) allowed_origins: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metrics {
    pub(crate) listen: Option<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Raft {
    pub(crate) heartbeat_interval: Duration,
    pub(crate) heartbeat_timeout: Duration,
    pub(crate) election_timeout: Duration,
    pub(crate) leader_lease_timeout: Duration,
    pub(crate) send_timeout: Duration,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) resign_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leadership {
    pub(crate) stall_after: Duration,
    pub(crate) last_resort_after: Duration,
    pub(crate) handover_budget: u64,
    pub(crate) handover_window: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) threshold: u64,
    pub(crate) trailing_logs: u64,
    pub(crate) retain: u64,
    pub(crate) grace_entries: u64,
    pub(crate) threshold_bytes: u64,
    pub(crate) min_interval: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Store {
    pub(crate) min_free: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Feed {
    pub(crate) buffer: u64,
    pub(crate) watched: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Executor {
    pub(crate) required: bool,
    pub(crate) max_lag: u64,
    pub(crate) sync_timeout: Duration,
    pub(crate) report_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Telemetry {
    pub(crate) log: LogConfig,
    pub(crate) traces: TraceConfig,
}

/// Settings, and where each of them comes from.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) settings: Settings,
    values: Values,
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub(crate) problem: Problem,
    /// `None`: nowhere, or the problem's key says where.
    pub(crate) source: Option<Source>,
}

impl Complaint {
    fn at(key: impl Into<String>, value: Option<String>, rule: impl Into<String>, source: Source) -> Self {
        Self { problem: Problem::new(key, value, rule), source: Some(source) }
    }

    fn of(what: impl Into<String>, rule: impl Into<String>) -> Self {
        Self { problem: Problem::new(what, None, rule), source: None }
    }
}

/// All that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Complaints(pub(crate) Vec<Complaint>);

impl fmt::Display for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("1 problem in the settings:")?,
            n => write!(f, "{n} problems in the settings:")?,
        }
        for Complaint { problem, source } in &self.0 {
            write!(f, "\n  {}", problem.key)?;
            if let Some(value) = &problem.value {
                write!(f, " = {value}")?;
            }
            write!(f, "\n      {}", problem.rule)?;
            if let Some(source) = source {
                write!(f, "\n      from {source}")?;
            }
        }
        Ok(())
    }
}

/// Reads and checks the settings. An error has all that is wrong.
pub(crate) fn load(sources: &Sources) -> Result<Loaded, Complaints> {
    let (values, mut complaints) = Values::read(sources);
    complaints.extend(rules::check(&values));
    if complaints.is_empty() {
        Ok(Loaded { settings: values.to_settings(), values })
    } else {
        Err(Complaints(complaints))
    }
}
