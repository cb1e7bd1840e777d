//! blockraft keeps a block sequencer alive: raft agreement on every block, one fenced producer.

pub mod cli;
pub mod node;
pub mod types;

pub(crate) mod api;
pub(crate) mod audit;
pub(crate) mod client;
pub(crate) mod config;
pub(crate) mod consensus;
pub(crate) mod feed;
pub(crate) mod instants;
pub(crate) mod leadership;
pub(crate) mod machine;
pub(crate) mod peer;
pub(crate) mod proposals;
pub(crate) mod raft;
pub(crate) mod store;
pub(crate) mod telemetry;
