//! What this node was asked to do, and what became of its leadership, membership and life.
//!
//! [`history`] are events for people; [`chain`] is the hash-chained record of control operations. Both are a
//! [`journal`] in the node's own records: written off the caller's path, kept in memory while the disk is
//! full, in no snapshot and in no state hash. Works without a quorum. Knows nothing of HTTP or raft.

pub(crate) mod chain;
pub(crate) mod history;
pub(crate) mod journal;
pub(crate) mod metrics;

use std::{io, time::Duration, time::SystemTime};

use prometheus::Registry;

use crate::store;
use crate::types::NodeId;

/// Cheap to clone; all clones are one record.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) history: history::History,
    pub(crate) chain: chain::Chain,
}

/// Why the record could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("the record of this node cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("the metrics of the record cannot be registered: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl Handle {
    /// Reads where both sequences end. Blocking, short. `actions` are what may be asked of this node, for
    /// the labels of the metric.
    pub(crate) fn open(
        local: store::Local,
        health: store::Health,
        node_id: NodeId,
        actions: &[&'static str],
        registry: &Registry,
    ) -> Result<Self, OpenError> {
        let metrics = metrics::Metrics::register(registry, actions)?;
        Ok(Self {
            history: history::History::open(local.clone())?,
            chain: chain::Chain::open(local, health, node_id, metrics)?,
        })
    }

    /// Writes what is recorded, until it is dropped.
    pub(crate) async fn run(self) {
        tokio::join!(self.history.run(), self.chain.run());
    }

    /// Returns when everything recorded so far is durable; `false` when that took too long.
    pub(crate) async fn flush(&self, within: Duration) -> bool {
        let both = async { tokio::join!(self.history.flush(), self.chain.flush()) };
        tokio::time::timeout(within, both).await.is_ok()
    }
}

/// Unix milliseconds.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
