//! Members of the cluster.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{LogIndex, NodeId};

/// A member as the membership names it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    pub node_id: NodeId,
    /// 1–63 of `a-z0-9-`, unique in the cluster.
    pub name: String,
    /// `host:port`.
    pub peer_addr: String,
    /// `host:port`.
    pub api_addr: String,
}

/// Who belongs to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// Log index of the entry that holds it.
    pub version: LogIndex,
    pub voters: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
    /// Voters and learners.
    pub nodes: BTreeMap<NodeId, Member>,
    /// Two configurations are in force while a change is under way.
    pub joint: bool,
}

/// What a member said of this node: it is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Removed {
    /// Of a membership that does not name this node.
    pub(crate) version: LogIndex,
    pub(crate) told_by: NodeId,
}

/// 1 to 63 of `a-z0-9-`.
pub(crate) fn is_node_name(text: &str) -> bool {
    is_word(text, 63)
}

/// 1 to `bytes_max` of `a-z0-9-`.
pub(crate) fn is_word(text: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
