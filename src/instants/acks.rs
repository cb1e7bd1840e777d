//! When each other node acknowledged which entries of this leader.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::types::{LogIndex, NodeId, position::LogPos};

/// Appends remembered of each node. By eye: seconds at one entry each.
const APPENDS_MAX: usize = 8_192;

/// One append that was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    first: LogIndex,
    last: LogPos,
    pub(crate) sent: Instant,
    pub(crate) acknowledged: Instant,
}

/// Invariant: of each node, ranges that rise and do not overlap.
#[derive(Default)]
pub(crate) struct Acks {
    /// Guards a push for each append; the tasks that push are two to six.
    peers: Mutex<BTreeMap<NodeId, VecDeque<Ack>>>,
}

impl Acks {
    pub(crate) fn push(
        &self,
        node_id: NodeId,
        last: LogPos,
        n_entries: usize,
        sent: Instant,
        acknowledged: Instant,
    ) {
        let first = (last.index + 1).saturating_sub(n_entries as u64);
        let mut peers = self.lock();
        let acks = peers.entry(node_id).or_default();
        // Sent again, or another leader's: what came last is true.
        while acks.back().is_some_and(|ack| first <= ack.last.index) {
            acks.pop_back();
        }
        if acks.len() == APPENDS_MAX {
            acks.pop_front();
        }
        acks.push_back(Ack { first, last, sent, acknowledged });
    }

    /// The append that brought an entry to a node.
    pub(crate) fn get(&self, node_id: NodeId, pos: LogPos) -> Option<Ack> {
        let peers = self.lock();
        find(peers.get(&node_id)?, pos)
    }

    /// All nodes that acknowledged an entry.
    pub(crate) fn all(&self, pos: LogPos) -> Vec<(NodeId, Ack)> {
        let peers = self.lock();
        peers.iter().filter_map(|(id, acks)| Some((*id, find(acks, pos)?))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, VecDeque<Ack>>> {
        // A panic while it was held leaves whole entries behind: still fine to use.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(acks: &VecDeque<Ack>, pos: LogPos) -> Option<Ack> {
    let at = acks.partition_point(|ack| ack.last.index < pos.index);
    let ack = acks.get(at)?;
    (ack.first <= pos.index && pos.term <= ack.last.term).then_some(*ack)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_found_in_the_append_that_carried_it() {
        let acks = Acks::default();
        let now = Instant::now();
        let pos = |term, index| LogPos { term, index };
        acks.push(2, pos(1, 5), 5, now, now);
        acks.push(2, pos(1, 7), 2, now, now);
        acks.push(3, pos(1, 7), 7, now, now);
        assert_eq!(acks.get(2, pos(1, 6)).map(|a| (a.first, a.last.index)), Some((6, 7)));
        assert_eq!(acks.get(2, pos(1, 8)), None);
        assert_eq!(acks.all(pos(1, 3)).len(), 2);
        // Another term's leader wrote over it.
        acks.push(2, pos(3, 6), 1, now, now);
        assert_eq!(acks.get(2, pos(1, 7)), None);
        assert!(acks.get(2, pos(3, 6)).is_some() && acks.get(2, pos(1, 4)).is_some());
        assert_eq!(acks.get(2, pos(4, 6)), None, "an entry newer than the append");
    }
}
