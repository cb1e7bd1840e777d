//! The transport over real sockets: alone against what a network does, and under real raft.

mod append;
mod cluster;
mod handshake;
mod links;
mod memory;
mod proxy;
mod snapshots;
mod support;
mod wire;
