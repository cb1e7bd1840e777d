//! Whether the nodes agree on the state: hashes at every index divisible by 500, compared.
//!
//! The leader hears the others' newest hashes with the answers to its heartbeats. Each hash covers
//! the one before it, so that nodes which agree at an index agreed at all earlier ones. Pure: no
//! clock, no network.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::types::{LogIndex, NodeId};

pub(crate) type Hash = [u8; 32];
/// The hash of the state at an index.
pub(crate) type Mark = (LogIndex, Hash);

/// Marks remembered of each node. By eye: at 5 000 entries/s those of six seconds.
pub(crate) const MARKS_MAX: usize = 64;

/// What the nodes said of their states at one index at which not all of them agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Evidence {
    pub(crate) index: LogIndex,
    pub(crate) hashes: BTreeMap<NodeId, Hash>,
    /// Those that are missing were waited for in vain.
    pub(crate) is_last_word: bool,
}

/// What follows from the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A voter that has not said anything yet may decide.
    Open,
    /// Most voters hold this state; those who hold another are wrong.
    Majority(Hash),
    NoMajority,
}

/// The newest marks of the other nodes.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    by_node: BTreeMap<NodeId, VecDeque<Mark>>,
}

impl Marks {
    /// A node told its newest mark; whether it is news.
    pub(crate) fn note(&mut self, node_id: NodeId, mark: Mark) -> bool {
        let marks = self.by_node.entry(node_id).or_default();
        match marks.back() {
            Some(last) if *last == mark => return false,
            // Another life of the node, or another state: what was said before is void.
            Some((index, _)) if mark.0 <= *index => marks.clear(),
            _ => {}
        }
        if marks.len() == MARKS_MAX {
            marks.pop_front();
        }
        marks.push_back(mark);
        true
    }

    /// Forgets all but the members.
    pub(crate) fn keep(&mut self, members: impl Fn(NodeId) -> bool) {
        self.by_node.retain(|id, _| members(*id));
    }

    /// Whether somebody told a mark that this node has not come to: it is compared once it has.
    pub(crate) fn is_ahead_of(&self, own: &[Mark]) -> bool {
        let newest = own.iter().map(|(index, _)| *index).max();
        self.by_node.values().filter_map(|marks| marks.back()).any(|(index, _)| newest < Some(*index))
    }

    /// The newest index at which somebody is known to differ from this node, and what is known of
    /// that index. `own`: this node's marks, oldest first.
    pub(crate) fn dispute(&self, own_id: NodeId, own: &[Mark]) -> Option<Evidence> {
        let mut agreed = BTreeMap::new();
        let mut at: Option<Mark> = None;
        for (id, marks) in &self.by_node {
            let own_at = |index| own.iter().find(|(i, _)| *i == index).map(|(_, hash)| *hash);
            let newest = marks.iter().rev().find_map(|(i, hash)| own_at(*i).map(|own| (*i, own, *hash)));
            match newest {
                Some((index, own, theirs)) if own == theirs => drop(agreed.insert(*id, index)),
                Some((index, own, _)) => at = at.max(Some((index, own))),
                None => {}
            }
        }
        let (index, own_hash) = at?;
        let mut hashes = BTreeMap::from([(own_id, own_hash)]);
        for (id, marks) in &self.by_node {
            let said = marks.iter().find(|(i, _)| *i == index).map(|(_, hash)| *hash);
            let implied = agreed.get(id).filter(|later| index <= **later).map(|_| own_hash);
            if let Some(hash) = said.or(implied) {
                hashes.insert(*id, hash);
            }
        }
        Some(Evidence { index, hashes, is_last_word: false })
    }
}

/// What follows, with these voters.
pub(crate) fn judge(evidence: &Evidence, voters: &BTreeSet<NodeId>) -> Verdict {
    let mut counts: BTreeMap<Hash, usize> = BTreeMap::new();
    for (_, hash) in evidence.hashes.iter().filter(|(id, _)| voters.contains(id)) {
        *counts.entry(*hash).or_default() += 1;
    }
    let majority = voters.len() / 2 + 1;
    let most = counts.iter().max_by_key(|(_, n)| **n).map(|(hash, n)| (*hash, *n));
    let (hash, n) = most.unwrap_or_default();
    let missing = voters.iter().filter(|id| !evidence.hashes.contains_key(id)).count();
    if majority <= n {
        Verdict::Majority(hash)
    } else if majority <= n + missing && !evidence.is_last_word {
        Verdict::Open
    } else {
        Verdict::NoMajority
    }
}

/// Whether a node that holds this hash at the index must stop serving.
pub(crate) fn is_wrong(own: &Hash, verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Open => false,
        Verdict::Majority(hash) => own != hash,
        Verdict::NoMajority => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Hash = [1; 32];
    const B: Hash = [2; 32];
    const C: Hash = [3; 32];

    fn voters(n: u64) -> BTreeSet<NodeId> {
        (1..=n).collect()
    }

    fn evidence(hashes: &[(NodeId, Hash)]) -> Evidence {
        Evidence { index: 500, hashes: hashes.iter().copied().collect(), is_last_word: false }
    }

    #[test]
    fn the_minority_is_wrong_and_without_a_majority_all_are() {
        let two_to_one = evidence(&[(1, A), (2, A), (3, B)]);
        assert_eq!(judge(&two_to_one, &voters(3)), Verdict::Majority(A));
        assert!(is_wrong(&B, &Verdict::Majority(A)) && !is_wrong(&A, &Verdict::Majority(A)));
        // The leader itself may be the one that is wrong.
        assert_eq!(judge(&evidence(&[(1, A), (2, B), (3, B)]), &voters(3)), Verdict::Majority(B));
        assert_eq!(judge(&evidence(&[(1, A), (2, B), (3, C)]), &voters(3)), Verdict::NoMajority);
        assert!(is_wrong(&A, &Verdict::NoMajority));
        // A learner is judged and does not judge.
        let learner = evidence(&[(1, A), (2, A), (3, A), (9, B)]);
        assert_eq!(judge(&learner, &voters(3)), Verdict::Majority(A));
    }

    #[test]
    fn a_voter_that_is_missing_is_waited_for_until_the_last_word() {
        let mut one_to_one = evidence(&[(1, A), (2, B)]);
        assert_eq!(judge(&one_to_one, &voters(3)), Verdict::Open);
        one_to_one.is_last_word = true;
        assert_eq!(judge(&one_to_one, &voters(3)), Verdict::NoMajority);
        // Two voters that differ: nobody is missing and nobody can decide.
        assert_eq!(judge(&evidence(&[(1, A), (2, B)]), &voters(2)), Verdict::NoMajority);
        assert_eq!(judge(&evidence(&[(1, A), (2, A), (3, B)]), &voters(5)), Verdict::Open);
    }

    #[test]
    fn only_a_difference_at_the_newest_common_index_is_a_dispute() {
        let own = [(500, A), (1000, B), (1500, C)];
        let mut marks = Marks::default();
        assert!(marks.note(2, (500, A)));
        assert!(!marks.note(2, (500, A)));
        assert_eq!(marks.dispute(1, &own), None);
        // One that this node has not reached, or has forgotten, says nothing.
        assert!(!marks.is_ahead_of(&own));
        marks.note(3, (2000, A));
        assert_eq!(marks.dispute(1, &own), None);
        assert!(marks.is_ahead_of(&own) && marks.is_ahead_of(&[]));
        marks.note(2, (1000, A));
        let found = marks.dispute(1, &own).expect("they differ");
        assert_eq!((found.index, found.hashes), (1000, BTreeMap::from([(1, B), (2, A)])));
        // Node 3 agrees later on, so it did there too.
        marks.note(3, (1500, C));
        let found = marks.dispute(1, &own).expect("they differ");
        assert_eq!(found.hashes, BTreeMap::from([(1, B), (2, A), (3, B)]));
        // Mended: what it says now counts.
        marks.note(2, (1500, C));
        assert_eq!(marks.dispute(1, &own), None);
        marks.note(2, (1000, A));
        assert!(marks.dispute(1, &own).is_some(), "another life of the node");
        marks.keep(|id| id != 2);
        assert_eq!(marks.dispute(1, &own), None);
    }
}
