//! Whether this node was told that it is no member (safety rule 21d).
//!
//! The entry that removes a node is not sent to it: it learns of it from other members, by the version of a
//! membership that does not name it. Kept durably by `node`; forgotten when a newer membership names it.

use std::sync::Mutex;

use crate::types::NodeId;
use crate::types::member::{Members, Removed};

/// What this node knows of being no member.
///
/// A lock, held for a copy: it is asked at every look at the leadership.
#[derive(Debug, Default)]
pub(crate) struct Standing(Mutex<Option<Removed>>);

impl Standing {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Removed>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn get(&self) -> Option<Removed> {
        *self.lock()
    }

    pub(crate) fn restore(&self, removed: Option<Removed>) {
        *self.lock() = removed;
    }

    /// A member says that this node is in no membership up to a version. Returns whether that is news.
    /// `own` is the newest membership in this node's log.
    pub(crate) fn on_told(&self, removed: Removed, own: &Members, node_id: NodeId) -> bool {
        // A member that lags behind does not know yet that this node was added again.
        if names(own, node_id) && removed.version <= own.version {
            return false;
        }
        let mut known = self.lock();
        let is_news = known.is_none_or(|known| known.version < removed.version);
        if is_news {
            *known = Some(removed);
        }
        is_news
    }

    /// The newest membership in this node's log. Returns whether it takes back what was told.
    pub(crate) fn on_membership(&self, own: &Members, node_id: NodeId) -> bool {
        let mut known = self.lock();
        let is_back = known.is_some_and(|known| known.version < own.version) && names(own, node_id);
        if is_back {
            *known = None;
        }
        is_back
    }
}

fn names(members: &Members, node_id: NodeId) -> bool {
    members.nodes.contains_key(&node_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::LogIndex;
    use crate::types::member::Member;

    fn own(version: LogIndex, ids: &[NodeId]) -> Members {
        let nodes = ids.iter().map(|id| (*id, Member::default())).collect();
        Members { version, nodes, ..Members::default() }
    }

    fn told(version: LogIndex) -> Removed {
        Removed { version, told_by: 2 }
    }

    #[test]
    fn a_removal_is_news_once_and_taken_back_by_a_newer_membership() {
        let standing = Standing::default();
        let before = own(5, &[1, 2, 3]);
        assert!(standing.on_told(told(9), &before, 3));
        assert!(!standing.on_told(told(9), &before, 3));
        assert!(standing.on_told(told(11), &before, 3));
        assert_eq!(standing.get(), Some(told(11)));
        // The old membership still names it.
        assert!(!standing.on_membership(&before, 3));
        assert!(!standing.on_membership(&own(12, &[1, 2]), 3));
        assert!(standing.on_membership(&own(12, &[1, 2, 3]), 3));
        assert_eq!(standing.get(), None);
    }

    #[test]
    fn a_member_that_lags_behind_tells_nothing_new() {
        let standing = Standing::default();
        assert!(!standing.on_told(told(9), &own(12, &[1, 2, 3]), 3));
        assert_eq!(standing.get(), None);
    }

    #[test]
    fn a_node_that_nobody_added_yet_is_told_too() {
        let standing = Standing::default();
        assert!(standing.on_told(told(1), &Members::default(), 4));
        assert!(standing.on_membership(&own(7, &[1, 2, 3, 4]), 4));
    }
}
