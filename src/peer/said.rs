//! What was said of other nodes, so that a line comes once and not at each retry. Knows no connection.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::peer::{hello::HelloError, network::lock};
use crate::types::NodeId;

/// What a node may be refused for at a time, each on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    Dialled,
    Accepted,
    /// What it sent cannot be right.
    Sent,
    /// A snapshot for it.
    SnapshotSent,
    /// A snapshot of it.
    SnapshotReceived,
}

/// What was said of a node last, so that it is logged once and not at each retry.
#[derive(Default)]
pub(super) struct Said {
    /// Guards a look and a store per handshake; a task would be a queue for that.
    last: Mutex<BTreeMap<(Topic, NodeId), (String, Instant)>>,
}

/// Nodes that are told apart, strangers too. By eye.
const SAID_MAX: usize = 64;
/// One that nothing new was said of for so long gives its place to another: 64 lines of strangers in ten minutes
/// are no flood, and those that come later are not silenced for good.
const SAID_FOR: Duration = Duration::from_secs(600);

impl Said {
    /// Whether this differs from what was said of the node last.
    pub(super) fn is_new(&self, topic: Topic, node_id: NodeId, text: &str) -> bool {
        self.is_new_at(topic, node_id, text, Instant::now())
    }

    fn is_new_at(&self, topic: Topic, node_id: NodeId, text: &str, now: Instant) -> bool {
        let mut last = lock(&self.last);
        let key = (topic, node_id);
        if let Some((said, at)) = last.get_mut(&key) {
            if said == text {
                return false;
            }
            (*said, *at) = (text.to_owned(), now);
            return true;
        }
        if SAID_MAX <= last.len() {
            let oldest = last.iter().min_by_key(|(_, (_, at))| *at).map(|(key, (_, at))| (*key, *at));
            let Some((oldest, _)) = oldest.filter(|(_, at)| SAID_FOR <= now.saturating_duration_since(*at))
            else {
                return false;
            };
            last.remove(&oldest);
        }
        last.insert(key, (text.to_owned(), now));
        true
    }

    /// All is well again; whether it was not.
    pub(super) fn clear(&self, topic: Topic, node_id: NodeId) -> bool {
        lock(&self.last).remove(&(topic, node_id)).is_some()
    }

    /// As [`Said::is_new`], whatever numbers the text has: bytes that are free are others at each try.
    pub(super) fn is_new_kind(&self, topic: Topic, node_id: NodeId, text: &str) -> bool {
        self.is_new(topic, node_id, &text.replace(|c: char| c.is_ascii_digit(), ""))
    }

    /// Both sides admitted each other.
    pub(super) fn admitted(&self, topic: Topic, node_id: NodeId) {
        if self.clear(topic, node_id) {
            tracing::info!(peer_id = node_id as i64, ?topic, "peer is admitted again");
        }
    }

    pub(super) fn refused(&self, topic: Topic, node_id: NodeId, error: &HelloError) {
        if error.is_refusal() && self.is_new(topic, node_id, &error.to_string()) {
            tracing::warn!(peer_id = node_id as i64, ?topic, %error, "peer is refused");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_refusal_is_said_once_and_again_after_all_was_well() {
        let said = Said::default();
        assert!(said.is_new(Topic::Dialled, 2, "epoch 1"));
        assert!(!said.is_new(Topic::Dialled, 2, "epoch 1"));
        assert!(said.is_new(Topic::Accepted, 2, "epoch 1"));
        assert!(said.is_new_kind(Topic::SnapshotSent, 2, "no room: 7 bytes are free"));
        assert!(!said.is_new_kind(Topic::SnapshotSent, 2, "no room: 12 bytes are free"));
        assert!(said.is_new(Topic::Dialled, 2, "epoch 3"));
        assert!(said.clear(Topic::Dialled, 2));
        assert!(!said.clear(Topic::Dialled, 2));
        assert!(said.is_new(Topic::Dialled, 2, "epoch 3"));
    }

    #[test]
    fn strangers_beyond_a_number_are_not_said() {
        let said = Said::default();
        let now = Instant::now();
        let n_new = |ids: std::ops::Range<NodeId>, at| {
            ids.filter(|id| said.is_new_at(Topic::Accepted, *id, "who", at)).count()
        };
        assert_eq!(n_new(0..1000, now), SAID_MAX);
        let later = now + SAID_FOR;
        assert_eq!(n_new(1000..1001, later - Duration::from_secs(1)), 0);
        assert_eq!(n_new(1000..3000, later), SAID_MAX);
        // Of one that has its place nothing is said twice.
        assert_eq!(n_new(1000..1064, later + SAID_FOR), 0);
    }
}
