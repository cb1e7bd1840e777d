//! What the built binary promises, attacked from outside.
//!
//! One binary, so that everything links once. [`support`] starts clusters, drives and judges them;
//! every other module is a part of the contract. The library is not linked: what these tests see is
//! what a user sees.

mod api;
mod api_stream;
mod audit;
mod cluster;
mod contract;
mod feed;
mod inspect;
mod metrics;
mod page;
mod peer_port;
mod recover;
mod recovery;
mod refusals;
mod stop;
mod support;
mod tidy;
mod traces;
