//! Blocks on their way into raft: admission, order, joining, deadlines.
//!
//! One [`task`] owns the order of what is in flight; it takes proposals from a queue, asks
//! [`order`] what follows for each, and hands blocks to raft in height order. Answers come straight
//! from apply. Knows nothing of HTTP, RocksDB or openraft's types.

pub(crate) mod handle;
pub(crate) mod metrics;
pub(crate) mod order;
pub(crate) mod task;

use std::{sync::Arc, time::Duration};

use crate::machine::apply::View;
use crate::types::{NodeId, block::Block, error::Accepted};

/// Settings of this part.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) node_id: NodeId,
    /// After it the outcome is unknown, unless the call says another.
    pub(crate) propose_timeout: Duration,
    pub(crate) in_flight_max: usize,
    pub(crate) in_flight_bytes_max: u64,
    /// Heights above the next one that wait for their predecessors.
    pub(crate) reorder_window: u64,
    pub(crate) reorder_wait: Duration,
}

/// The applied state, as the proposer needs it; supplied by `node`.
pub(crate) trait Chain: Send + Sync + 'static {
    fn view(&self) -> Arc<View>;
    /// The place of the same block, when it was applied before and is kept.
    fn find_same(&self, block: &Block) -> Option<Accepted>;
    /// Whether another block stands at that height: `None` where the history does not tell.
    fn holds(&self, height: u64) -> Option<bool>;
}

pub(crate) type Handle = handle::Handle;
pub(crate) type Lane = handle::Lane;
pub(crate) type Permit = handle::Permit;
pub(crate) type Proposal = handle::Proposal;
pub(crate) type Underway = handle::Underway;
