//! The vocabulary: blocks, members, positions, the fence.
//!
//! Plain values that every other module may use. Knows nothing of raft, disks or sockets.

/// The protobuf contract, generated from `api/proto`.
#[allow(missing_docs, unreachable_pub, clippy::doc_markdown, clippy::derive_partial_eq_without_eq)]
pub(crate) mod proto {
    include!(concat!(env!("OUT_DIR"), "/blockraft.v1.rs"));
}

pub(crate) mod address;
pub mod block;
pub mod error;
pub mod feed;
pub mod member;
pub mod position;
pub(crate) mod quantity;
pub(crate) mod setting;
pub mod settings;
pub(crate) mod trace;

/// A node's number, 1 to 2^53 − 1.
pub type NodeId = u64;
/// An election number.
pub type Term = u64;
/// A place in the log.
pub type LogIndex = u64;
/// A block's height, at most [`block::HEIGHT_MAX`].
pub type Height = u64;
