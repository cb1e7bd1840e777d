//! Clusters of the built binary on loopback, a producer, and a checker of the promises.
//!
//! A node dies with the test that started it, also when that is killed. Every wait has a deadline and a
//! reason; nothing here waits for time alone.

pub(crate) mod account;
pub(crate) mod bench;
pub(crate) mod block;
pub(crate) mod chance;
pub(crate) mod checker;
pub(crate) mod cluster;
pub(crate) mod config;
pub(crate) mod disk;
pub(crate) mod exposition;
pub(crate) mod feed;
pub(crate) mod folder;
pub(crate) mod http;
pub(crate) mod inspect;
pub(crate) mod logs;
pub(crate) mod members;
pub(crate) mod net;
pub(crate) mod node;
pub(crate) mod otlp;
pub(crate) mod ports;
pub(crate) mod rpc;
pub(crate) mod scene;
pub(crate) mod small_disk;
pub(crate) mod stream;
pub(crate) mod wait;
pub(crate) mod watch;
pub(crate) mod writer;

/// A node's number.
pub(crate) type NodeId = u64;
