//! Ids of leaderships on this node: from 1, in the order of their terms, without a hole.
//!
//! The leaderships themselves are replicated, the newest 1 000 of them kept; their ids are this node's own. Only
//! the newest id is stored: the others follow from how many leaderships stand behind it.

use std::io;

use bytes::Bytes;

use crate::leadership::handle::Handle;
use crate::machine::apply::Leadership;
use crate::store;
use crate::types::position::LogPos;
use crate::types::{LogIndex, Term};

/// A leadership as it was applied.
pub(crate) type Led = Leadership;

/// Key of the newest id and its term, each 8 bytes.
const NEWEST: &[u8] = b"leadership/number";

/// Invariant: `newest_id` is the id of the leadership of `newest_term`; 0 and 0 before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Numbers {
    newest_id: u64,
    newest_term: Term,
}

impl Numbers {
    /// What was written last: lost writes are made good by counting again, which comes to the same.
    pub(super) fn load(local: &store::Local) -> io::Result<Self> {
        let stored = local.get(NEWEST)?;
        Ok(stored.and_then(|bytes| Self::decode(&bytes)).unwrap_or_default())
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (id, term) = bytes.split_at_checked(8)?;
        Some(Self {
            newest_id: u64::from_be_bytes(id.try_into().ok()?),
            newest_term: u64::from_be_bytes(term.try_into().ok()?),
        })
    }

    fn encode(self) -> Bytes {
        Bytes::from([self.newest_id.to_be_bytes(), self.newest_term.to_be_bytes()].concat())
    }

    pub(super) fn newest(&self) -> u64 {
        self.newest_id
    }

    pub(super) fn newest_term(&self) -> Term {
        self.newest_term
    }

    /// Gives the next id to a leadership of a later term.
    fn count(&mut self, term: Term) {
        assert!(self.newest_term < term, "term {term} counted after term {}", self.newest_term);
        self.newest_id += 1;
        self.newest_term = term;
    }

    /// Ids for the kept leaderships, oldest first, as far as they have one.
    fn of(&self, kept: Vec<Leadership>) -> Vec<(u64, Leadership)> {
        let known: Vec<Leadership> =
            kept.into_iter().take_while(|l| l.pos.term <= self.newest_term).collect();
        let n = known.len() as u64;
        let numbered = known.into_iter().enumerate();
        // More are kept than were ever counted here: those of before this node's first count.
        numbered
            .filter_map(|(at, l)| Some(((self.newest_id + at as u64 + 1).checked_sub(n)?, l)))
            .filter(|(id, _)| *id != 0)
            .collect()
    }
}

/// Whether a leadership is a change that this process saw: neither older than the first leader it heard, nor come
/// with a state that was loaded or installed. `history_upto`: the last entry of that.
pub(super) fn is_change(pos: LogPos, first_led: Option<Term>, history_upto: LogIndex) -> bool {
    first_led.is_some_and(|first| first <= pos.term) && history_upto < pos.index
}

/// Why no leaderships are given from an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("leaderships before id {oldest} are not kept")]
pub(crate) struct Forgotten {
    pub(crate) oldest: u64,
}

impl Handle {
    /// Counts every leadership applied since the last count, also those that came between two looks; they
    /// are handed to `each`, oldest first.
    pub(super) fn count_leaderships(&self, mut each: impl FnMut(u64, &Leadership)) {
        let newest = self.reader().view().leadership.as_ref().map_or(0, |l| l.pos.term);
        let counted = *self.numbers();
        if newest <= counted.newest_term() {
            return;
        }
        let mut numbers = counted;
        for leadership in self.reader().leaderships(Some(counted.newest_term() + 1), usize::MAX) {
            numbers.count(leadership.pos.term);
            each(numbers.newest_id, &leadership);
        }
        *self.numbers() = numbers;
        self.local().write_later(vec![(NEWEST.to_vec(), Some(numbers.encode()))]);
        self.newest().send_replace(numbers.newest_id);
    }

    /// Leaderships from an id on, oldest first; without one the newest alone. Blocking, short.
    pub(crate) fn leaderships(&self, from: Option<u64>) -> Result<Vec<(u64, Leadership)>, Forgotten> {
        let numbers = *self.numbers();
        let numbered = numbers.of(self.reader().leaderships(Some(0), usize::MAX));
        let oldest = numbered.first().map_or(1, |(id, _)| *id);
        match from {
            Some(from) if from < oldest => Err(Forgotten { oldest }),
            Some(from) => Ok(numbered.into_iter().skip_while(|(id, _)| *id < from).collect()),
            None => Ok(numbered.into_iter().next_back().into_iter().collect()),
        }
    }

    /// Changes with every leadership: the id of the newest one.
    pub(crate) fn watch_leaderships(&self) -> tokio::sync::watch::Receiver<u64> {
        self.newest().subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::proto::LeadershipCause;

    fn led(term: Term) -> Leadership {
        Leadership {
            pos: LogPos { term, index: 10 * term },
            node_id: 1,
            cause: LeadershipCause::Election,
            operation_id: String::new(),
            started_at_ms: 0,
        }
    }

    fn ids(numbers: &Numbers, terms: &[Term]) -> Vec<(u64, Term)> {
        let kept = terms.iter().map(|t| led(*t)).collect();
        numbers.of(kept).into_iter().map(|(id, l)| (id, l.pos.term)).collect()
    }

    #[test]
    fn ids_have_no_holes_though_terms_do() {
        let mut numbers = Numbers::default();
        [1, 4, 5, 9].into_iter().for_each(|term| numbers.count(term));
        assert_eq!(ids(&numbers, &[1, 4, 5, 9]), [(1, 1), (2, 4), (3, 5), (4, 9)]);
        // Old ones are forgotten, and one is not counted yet: the others keep their ids.
        assert_eq!(ids(&numbers, &[5, 9, 12]), [(3, 5), (4, 9)]);
        assert_eq!(Numbers::decode(&numbers.encode()), Some(numbers));
    }

    #[test]
    fn what_a_node_that_joins_or_catches_up_learns_of_is_no_change() {
        let pos = |term, index| LogPos { term, index };
        assert!(!is_change(pos(3, 30), None, 0), "replayed before anybody was heard");
        assert!(!is_change(pos(3, 30), Some(4), 0), "older than the first leader that was heard");
        assert!(is_change(pos(4, 40), Some(4), 0));
        assert!(!is_change(pos(6, 60), Some(4), 60), "it came in a snapshot");
        assert!(is_change(pos(7, 61), Some(4), 60));
    }

    #[test]
    fn a_count_that_was_lost_comes_to_the_same_again() {
        let mut numbers = Numbers::default();
        [1, 4].into_iter().for_each(|term| numbers.count(term));
        let stored = numbers;
        [5, 9].into_iter().for_each(|term| numbers.count(term));
        let before = ids(&numbers, &[1, 4, 5, 9]);
        let mut again = stored;
        [5, 9].into_iter().for_each(|term| again.count(term));
        assert_eq!(ids(&again, &[1, 4, 5, 9]), before);
    }
}
