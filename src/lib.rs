//! blockraft keeps a block sequencer alive: raft agreement on every block, one fenced producer.

pub mod types;

pub(crate) mod consensus;
pub(crate) mod instants;
pub(crate) mod machine;
pub(crate) mod raft;
pub(crate) mod store;
pub(crate) mod telemetry;
