//! The client of `ctl`, `dev` and `bench`: JSON-RPC and plain HTTP to the nodes of one cluster.
//!
//! [`cluster::Cluster`] knows the endpoints and finds the node a call belongs to; [`producer::Producer`]
//! proposes blocks over the ordered stream and obeys the fence. Knows nothing of the server's code.

pub(crate) mod cluster;
pub(crate) mod endpoint;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod frame;
pub(crate) mod http;
pub(crate) mod producer;
pub(crate) mod rpc;
pub(crate) mod stream;
pub(crate) mod subscription;
pub(crate) mod wire;
