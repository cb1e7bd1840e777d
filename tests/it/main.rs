//! What the built binary promises, attacked from outside.
//!
//! One binary, so that everything links once. [`support`] starts clusters, drives and judges them;
//! every other module is a part of the contract. The library is not linked: what these tests see is
//! what a user sees.

mod agreement;
mod api;
mod api_stream;
mod audit;
mod browser;
mod cluster;
mod collectors;
mod contract;
mod disks;
mod fault_table;
mod faults;
mod feed;
mod feed_changes;
mod feed_load;
mod feed_memory;
mod full_disk;
mod hung;
mod inspect;
mod install;
mod interrupted;
mod joint;
mod kills;
mod leadership;
mod limits;
mod lives;
mod many;
mod membership;
mod metrics;
mod moves;
mod observe_cost;
mod page;
mod peer_port;
mod prometheus;
mod proposals;
mod recover;
mod recovery;
mod refusals;
mod restore;
mod safety;
mod snapshots;
mod stop;
mod support;
mod tail;
mod tidy;
mod traces;
mod upgrade;
