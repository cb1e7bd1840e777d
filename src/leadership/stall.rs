//! For how long nothing of what a leader accepted was agreed on, whatever the cause (design 11).
//!
//! Two things are told apart, since one of them is this node's own. Where a quorum of the others holds an entry and
//! this node's disk does not, it is counted how long they have waited: others would go on without it. Where the others
//! lack it, somebody else may be slow: it counts from when anything was applied last, or bytes left for enough of them
//! that are not known to have left in vain (`peer/flow.rs`).

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::types::position::Positions;
use crate::types::{LogIndex, NodeId};

/// Looks whose entries this node has not applied. By eye: several times `stall_after`, at ten a second.
const MARKS_MAX: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Stall {
    /// Applied index at the last look, and since when nothing moved while entries wait.
    waits: Option<(LogIndex, Instant)>,
    /// What had left for each other voter at the last look.
    left: BTreeMap<NodeId, u64>,
    /// How far a quorum of the others held the log, and since when; rising.
    held: VecDeque<(LogIndex, Instant)>,
    /// Since when the others wait for this node's own disk.
    is_waited_for: Option<Instant>,
    /// It lasted long enough, and nothing showed since that it is over.
    is_stalled: bool,
}

/// What is seen of one other voter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Other {
    pub(super) node_id: NodeId,
    /// The newest entry it acknowledged.
    pub(super) matched: LogIndex,
    /// Bytes of log data that left for it, in all, but for those that are known to have left in vain.
    pub(super) left: u64,
}

/// One look.
pub(super) struct Seen<'a> {
    pub(super) is_leader: bool,
    pub(super) positions: &'a Positions,
    pub(super) others: &'a [Other],
    /// So many of them make a quorum with this node.
    pub(super) n_needed: usize,
    /// The newest entry on this node's own disk.
    pub(super) synced: LogIndex,
    pub(super) stall_after: Duration,
}

impl Stall {
    pub(super) fn look(&mut self, now: Instant, seen: &Seen<'_>) {
        let p = seen.positions;
        if !seen.is_leader || p.last <= p.applied {
            *self = Self::default();
            return;
        }
        let oldest = p.applied + 1;
        self.look_at_others(now, seen, oldest);
        self.look_at_own_disk(now, seen, oldest);
        let lasts = self.age(now);
        // Between two syncs of a slow disk it is not over.
        self.is_stalled = seen.stall_after <= lasts || (self.is_stalled && seen.stall_after / 2 <= lasts);
    }

    fn look_at_others(&mut self, now: Instant, seen: &Seen<'_>, oldest: LogIndex) {
        let has_moved = |other: &Other| self.left.get(&other.node_id).is_some_and(|n| *n < other.left);
        let n_hold = seen.others.iter().filter(|other| oldest <= other.matched).count();
        let n_moved = seen.others.iter().filter(|other| other.matched < oldest && has_moved(other)).count();
        // A large block takes its time.
        let is_flowing = n_hold < seen.n_needed && seen.n_needed <= n_hold + n_moved;
        self.left = seen.others.iter().map(|other| (other.node_id, other.left)).collect();
        let applied = seen.positions.applied;
        self.waits = match self.waits {
            Some((before, since)) if before == applied && !is_flowing => Some((applied, since)),
            _ => Some((applied, now)),
        };
    }

    fn look_at_own_disk(&mut self, now: Instant, seen: &Seen<'_>, oldest: LogIndex) {
        let mut matched: Vec<LogIndex> = seen.others.iter().map(|other| other.matched).collect();
        matched.sort_unstable_by(|a, b| b.cmp(a));
        // A node that needs nobody keeps nobody waiting.
        let held = seen.n_needed.checked_sub(1).and_then(|nth| matched.get(nth)).copied().unwrap_or(0);
        if self.held.back().is_none_or(|(upto, _)| *upto < held) && self.held.len() < MARKS_MAX {
            self.held.push_back((held, now));
        }
        while self.held.front().is_some_and(|(upto, _)| *upto < oldest) {
            self.held.pop_front();
        }
        self.is_waited_for = self.held.front().map(|(_, since)| *since).filter(|_| seen.synced < oldest);
    }

    fn age(&self, now: Instant) -> Duration {
        let since = |at: Instant| now.saturating_duration_since(at);
        let nothing_moved = self.waits.map_or(Duration::ZERO, |(_, at)| since(at));
        nothing_moved.max(self.is_waited_for.map_or(Duration::ZERO, since))
    }

    /// At least `stall_after` until it is over.
    pub(super) fn lasts(&self, now: Instant, stall_after: Duration) -> Duration {
        if self.is_stalled { self.age(now).max(stall_after) } else { self.age(now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const STALL_AFTER: Duration = Duration::from_secs(5);

    /// What the looks are at: seconds, the applied index, and of each other voter what it holds and what left for it.
    struct Case {
        start: Instant,
        stall: Stall,
        n_needed: usize,
    }

    impl Case {
        fn new(n_needed: usize) -> Self {
            Self { start: Instant::now(), stall: Stall::default(), n_needed }
        }

        fn look(
            &mut self,
            secs: u32,
            is_leader: bool,
            applied: LogIndex,
            synced: LogIndex,
            others: &[(LogIndex, u64)],
        ) {
            let others: Vec<Other> = others
                .iter()
                .zip(2..)
                .map(|((matched, left), node_id)| Other { node_id, matched: *matched, left: *left })
                .collect();
            let positions = Positions { applied, committed: applied, last: 9, ..Default::default() };
            let (n_needed, stall_after) = (self.n_needed, STALL_AFTER);
            let seen =
                Seen { is_leader, positions: &positions, others: &others, n_needed, synced, stall_after };
            self.stall.look(self.start + secs * SECOND, &seen);
        }

        fn lasts(&self, secs: u32) -> u64 {
            self.stall.lasts(self.start + secs * SECOND, STALL_AFTER).as_secs()
        }
    }

    #[test]
    fn nothing_is_stalled_while_entries_or_new_bytes_move() {
        let mut three = Case::new(1);
        three.look(0, true, 5, 9, &[(5, 10), (5, 10)]);
        three.look(1, true, 5, 9, &[(5, 10), (5, 10)]);
        assert_eq!(three.lasts(1), 1);
        // Bytes of it still leave for a quorum.
        three.look(2, true, 5, 9, &[(5, 11), (5, 10)]);
        assert_eq!(three.lasts(2), 0);
        // Something is applied.
        three.look(3, true, 5, 9, &[(5, 11), (5, 10)]);
        three.look(4, true, 6, 9, &[(6, 11), (5, 10)]);
        assert_eq!(three.lasts(5), 1);
        // Nothing waits, or somebody else leads.
        three.look(6, true, 9, 9, &[(9, 11), (9, 10)]);
        assert_eq!(three.lasts(9), 0);
        three.look(9, false, 5, 9, &[]);
        assert_eq!(three.lasts(20), 0);
        // Of five nodes one more follower is no quorum.
        let mut five = Case::new(2);
        five.look(0, true, 5, 9, &[(5, 10), (5, 10), (5, 1), (5, 1)]);
        five.look(1, true, 5, 9, &[(5, 11), (5, 10), (5, 1), (5, 1)]);
        assert_eq!(five.lasts(1), 1);
        five.look(2, true, 5, 9, &[(9, 11), (5, 11), (5, 1), (5, 1)]);
        assert_eq!(five.lasts(2), 0);
    }

    #[test]
    fn bytes_of_newer_entries_do_not_count_for_the_oldest() {
        let mut three = Case::new(1);
        for secs in 0..6 {
            three.look(secs, true, 5, 5, &[(6, 10 + u64::from(secs)), (5, 10)]);
        }
        assert_eq!(three.lasts(5), 5);
    }

    #[test]
    fn a_disk_that_the_others_wait_for_is_stalled_between_its_syncs_too() {
        let mut three = Case::new(1);
        // Each of its syncs takes three seconds, and brings the entries of three seconds ago.
        let mut lasted = Vec::new();
        for secs in 0..12u64 {
            let (held, done) = (secs / 3 + 1, (secs / 3).saturating_sub(1));
            three.look(secs as u32, true, done, done, &[(held, 1), (held, 1)]);
            lasted.push(three.lasts(secs as u32));
        }
        assert!(lasted.iter().all(|secs| *secs <= 6), "{lasted:?}");
        let first = lasted.iter().position(|secs| 5 <= *secs).expect("it is stalled");
        assert!(lasted[first..].iter().all(|secs| 5 <= *secs), "{lasted:?}");
        // It keeps up again.
        three.look(12, true, 7, 8, &[(9, 1), (9, 1)]);
        assert_eq!(three.lasts(12), 0);
    }

    #[test]
    fn a_disk_that_nobody_waits_for_counts_by_what_is_applied() {
        // The others are as slow, or there are none.
        for (n_needed, others) in [(1, vec![(0, 1), (0, 1)]), (0, vec![])] {
            let mut case = Case::new(n_needed);
            for secs in 0..12u64 {
                case.look(secs as u32, true, secs / 3, secs / 3, &others);
                assert!(case.lasts(secs as u32) < 3, "{n_needed} after {secs} s");
            }
        }
    }
}
