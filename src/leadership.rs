//! This node's role, lease and fence: whether the producer beside it may act.
//!
//! [`policy`] decides, from one look at raft, the applied state and the clock; [`handle::Handle`]
//! asks it at every read, so nothing is ever cached. [`task`] makes a won election into a
//! leadership, and gives it up on request. Knows nothing of HTTP, RocksDB or openraft.

pub(crate) mod ages;
pub(crate) mod elections;
pub(crate) mod executor;
pub(crate) mod handle;
pub(crate) mod handover;
pub(crate) mod hint;
pub(crate) mod keeper;
pub(crate) mod leave;
mod memory;
pub(crate) mod metrics;
pub(crate) mod numbers;
pub(crate) mod once;
pub(crate) mod operations;
mod pause;
pub(crate) mod policy;
pub(crate) mod record;
mod stall;
pub(crate) mod target;
pub(crate) mod task;

pub(crate) type Handle = handle::Handle;
