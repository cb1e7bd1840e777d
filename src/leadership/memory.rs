//! What a node remembers for its leadership beside raft's metrics. Small facts, each held for a few stores.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant, SystemTime},
};

use crate::consensus::{Fitness, Handover, Role, Status};
use crate::leadership::elections::Why;
use crate::leadership::executor::Executor;
use crate::leadership::metrics::LagMax;
use crate::leadership::once::LEADERSHIPS_LOOKED_AT;
use crate::leadership::policy::{Check, Intent};
use crate::leadership::stall::Stall;
use crate::types::{LogIndex, NodeId, Term};

/// Commit indexes are remembered this far back, for *caught up* (design 11).
const COMMITTED_AGO: Duration = Duration::from_secs(1);
/// A leadership that begins so soon after a hand-over was announced came by it.
/// By eye: a transfer takes milliseconds; an election begins a heartbeat_timeout later.
pub(super) const HANDOVER_WITHIN: Duration = Duration::from_secs(1);
/// One that was announced so long ago has become a leadership, or nothing: the longest a call waits for it.
const HEARD_OF_WITHIN: Duration = Duration::from_secs(30);
/// Wall clock and monotonic clock part by no more than this between two looks unless one of them jumped. By
/// eye: far above what a clock is slewed by, and below every lease.
const JUMP_MIN: Duration = Duration::from_millis(50);

pub(super) struct Memory {
    pub(super) intent: Intent,
    pub(super) is_paused: bool,
    pub(super) executor: Executor,
    /// Since when each failing check fails.
    pub(super) failing: BTreeMap<Check, Instant>,
    /// Commit index of the cluster by time, oldest first.
    committed: VecDeque<(Instant, LogIndex)>,
    /// Caught up when a leader was last heard.
    was_caught_up: bool,
    /// The hand-over that was announced last, and whether this node was asked to take over.
    announced: Option<(Instant, Handover, bool)>,
    pub(super) lag: LagMax,
    pub(super) given_up_term: Option<Term>,
    pub(super) fenced_term: Option<Term>,
    /// The term this node leads in, and since when it is known.
    led: Option<(Term, Instant)>,
    pub(super) stall: Stall,
    /// What other nodes said of themselves last, to this leader.
    pub(super) peers: BTreeMap<NodeId, Fitness>,
    clocks: Clocks,
    /// The clock jumped while this node led in that term.
    pub(super) unsure_term: Option<Term>,
    /// Operation of the hand-over under way.
    pub(super) handover: Option<String>,
    /// This leader's own vote is being taken, and a hand-over follows.
    pub(super) is_leaving: bool,
    /// The hand-over that was heard of last, and when.
    heard_of: Option<(Instant, Handover)>,
    /// Leaderships that were applied by this process, oldest first, and when.
    applied: VecDeque<(Term, Instant)>,
    /// Of the candidacy that began last, until the leadership that came of it is recorded.
    pub(super) candidacy: Option<Why>,
    /// Why this node stands, where that is not its timer.
    stands: Option<(Instant, &'static str)>,
    /// The term in which it leads by a transfer that was forced upon it.
    pub(super) forced_term: Option<Term>,
}

impl Memory {
    pub(super) fn new(executor: Executor, is_paused: bool) -> Self {
        Self {
            intent: Intent::Lead,
            is_paused,
            executor,
            failing: BTreeMap::new(),
            committed: VecDeque::new(),
            was_caught_up: false,
            announced: None,
            lag: LagMax::default(),
            given_up_term: None,
            fenced_term: None,
            led: None,
            stall: Stall::default(),
            peers: BTreeMap::new(),
            clocks: Clocks::default(),
            unsure_term: None,
            handover: None,
            is_leaving: false,
            heard_of: None,
            applied: VecDeque::new(),
            candidacy: None,
            stands: None,
            forced_term: None,
        }
    }

    /// Greatest commit index of the cluster known a second ago.
    pub(super) fn committed_ago(&self, now: Instant) -> LogIndex {
        match self.committed.front() {
            Some((at, index)) if COMMITTED_AGO <= now.saturating_duration_since(*at) => *index,
            // Nothing is that old yet: what is known now is asked for, or everybody would be caught up at first.
            _ => self.committed.back().map_or(0, |(_, index)| *index),
        }
    }

    /// Remembers what a status shows; called several times a second.
    pub(super) fn sample(&mut self, now: Instant, status: &Status) {
        let p = &status.positions;
        self.committed.push_back((now, p.cluster_committed));
        self.lag.observe(now, p.apply_lag());
        // One sample older than the horizon stays: it is what was known a second ago.
        while self.committed.get(1).is_some_and(|(at, _)| COMMITTED_AGO <= now.duration_since(*at)) {
            self.committed.pop_front();
        }
        if status.leader_id.is_some() {
            self.was_caught_up = self.committed_ago(now) <= p.applied;
        }
    }

    /// Was caught up when a leader was last heard, or has applied all it knows to be committed. Terms that
    /// lost candidacies raised do not count, nor does that nobody is heard now.
    pub(super) fn has_applied_enough(&self, status: &Status) -> bool {
        status.is_started
            && (self.was_caught_up || status.positions.cluster_committed <= status.positions.applied)
    }

    /// Since when this node leads in the status's term.
    pub(super) fn led_since(&mut self, now: Instant, status: &Status) -> Option<Instant> {
        if status.role != Role::Leader {
            self.led = None;
            return None;
        }
        let led = self.led.filter(|(term, _)| *term == status.term).unwrap_or_else(|| {
            // What others said to this node when it led before is old by now.
            self.peers.clear();
            (status.term, now)
        });
        self.led = Some(led);
        Some(led.1)
    }

    /// Looks whether the clock jumped since the last look, while this node leads.
    pub(super) fn look_at_clocks(&mut self, now: Instant, wall: SystemTime, status: &Status) {
        if self.clocks.has_jumped(now, wall) && status.role == Role::Leader {
            self.unsure_term = Some(status.term);
        }
    }

    pub(super) fn announced(&mut self, now: Instant, handover: Handover, is_target: bool) {
        self.heard_of = Some((now, handover.clone()));
        self.announced = Some((now, handover, is_target));
    }

    /// A hand-over with that id which may be under way.
    pub(super) fn heard_of(&self, now: Instant, operation_id: &str) -> Option<&Handover> {
        let (at, handover) = self.heard_of.as_ref()?;
        let is_it =
            handover.operation_id == operation_id && now.saturating_duration_since(*at) < HEARD_OF_WITHIN;
        is_it.then_some(handover)
    }

    pub(super) fn applied_leadership(&mut self, now: Instant, term: Term) {
        self.applied.push_back((term, now));
        if LEADERSHIPS_LOOKED_AT < self.applied.len() {
            self.applied.pop_front();
        }
    }

    /// How long ago a leadership was applied, where this process did it.
    pub(super) fn applied_ago(&self, now: Instant, term: Term) -> Option<Duration> {
        let (_, at) = self.applied.iter().rev().find(|(applied, _)| *applied == term)?;
        Some(now.saturating_duration_since(*at))
    }

    /// The hand-over that a leadership which begins now came by.
    pub(super) fn take_announced(&mut self, now: Instant) -> Option<Handover> {
        let (at, handover, _) = self.announced.take()?;
        (now.saturating_duration_since(at) < HANDOVER_WITHIN).then_some(handover)
    }

    /// This node is made to stand for election.
    pub(super) fn stands(&mut self, now: Instant, trigger: &'static str) {
        self.stands = Some((now, trigger));
    }

    /// Why a candidacy that begins now begins, where that is not this node's timer.
    pub(super) fn trigger(&self, now: Instant) -> Option<&'static str> {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < HANDOVER_WITHIN;
        if self.was_asked(now) {
            return Some("transfer");
        }
        self.stands.filter(|(at, _)| is_recent(*at)).map(|(_, trigger)| trigger)
    }

    /// The leader asked this node to take over just now.
    pub(super) fn was_asked(&self, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < HANDOVER_WITHIN;
        self.announced.as_ref().is_some_and(|(at, _, is_target)| *is_target && is_recent(*at))
    }
}

/// The two clocks at the last look.
#[derive(Debug, Default)]
struct Clocks {
    last: Option<(Instant, SystemTime)>,
}

impl Clocks {
    /// Whether wall time went another way than monotonic time: a clock that was set, or a machine that slept.
    fn has_jumped(&mut self, now: Instant, wall: SystemTime) -> bool {
        let Some((then, wall_then)) = self.last.replace((now, wall)) else { return false };
        let passed = now.saturating_duration_since(then);
        match wall.duration_since(wall_then) {
            Ok(wall_passed) => JUMP_MIN <= wall_passed.abs_diff(passed),
            Err(back) => JUMP_MIN <= back.duration() + passed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leadership::executor;
    use crate::types::position::Positions;
    use crate::types::proto::{FitnessGrade, LeadershipCause};

    fn memory() -> Memory {
        let config = executor::Config {
            is_required: false,
            max_lag: 1,
            sync_timeout: Duration::from_secs(1),
            report_timeout: Duration::from_secs(3),
        };
        Memory::new(Executor::new(config, Instant::now()), false)
    }

    fn status(role: Role, applied: LogIndex, committed: LogIndex, last: LogIndex) -> Status {
        let positions =
            Positions { applied, committed, cluster_committed: committed, last, ..Default::default() };
        Status {
            role,
            term: 3,
            leader_id: Some(1),
            positions,
            committed_term: 3,
            members: Default::default(),
            quorum_ack_age: None,
            peers: None,
            is_started: true,
            is_running: true,
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_was_caught_up_when_the_leader_was_last_heard_may_stand() {
        let start = Instant::now();
        let mut m = memory();
        m.sample(start, &status(Role::Follower, 90, 100, 100));
        m.sample(start + SECOND, &status(Role::Follower, 100, 120, 120));
        assert!(m.has_applied_enough(&status(Role::Follower, 100, 120, 120)));
        // The leader dies; nothing is heard any more, and a candidacy raises the term.
        let alone = Status { leader_id: None, term: 9, ..status(Role::Candidate, 100, 120, 120) };
        m.sample(start + 20 * SECOND, &alone);
        assert!(m.has_applied_enough(&alone));
    }

    #[test]
    fn who_was_far_behind_may_not_stand_until_it_has_applied_what_it_knows_of() {
        let start = Instant::now();
        let mut m = memory();
        m.sample(start, &status(Role::Follower, 10, 166_315, 166_315));
        m.sample(start + SECOND, &status(Role::Follower, 20, 166_320, 166_320));
        let alone = |applied| Status { leader_id: None, ..status(Role::Follower, applied, 166_320, 166_320) };
        m.sample(start + 2 * SECOND, &alone(30));
        assert!(!m.has_applied_enough(&alone(30)));
        assert!(m.has_applied_enough(&alone(166_320)));
        // After a restart of all nodes nobody was heard: what the own log says is what counts.
        let fresh = memory();
        assert!(fresh.has_applied_enough(&alone(166_320)));
        assert!(!fresh.has_applied_enough(&alone(5)));
    }

    /// Safety rule 17.
    #[test]
    fn a_jump_of_the_clock_makes_a_leader_unsure() {
        let (start, wall) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_000));
        let leader = status(Role::Leader, 9, 9, 9);
        let mut m = memory();
        m.look_at_clocks(start, wall, &leader);
        m.look_at_clocks(start + SECOND, wall + SECOND + Duration::from_millis(3), &leader);
        assert_eq!(m.unsure_term, None);
        // The machine slept: monotonic time stood still.
        m.look_at_clocks(start + SECOND, wall + 20 * SECOND, &leader);
        assert_eq!(m.unsure_term, Some(3));
        m.unsure_term = None;
        m.look_at_clocks(start + 2 * SECOND, wall, &leader);
        assert_eq!(m.unsure_term, Some(3), "set back");
        m.unsure_term = None;
        m.look_at_clocks(start + 3 * SECOND, wall + 90 * SECOND, &status(Role::Follower, 9, 9, 9));
        assert_eq!(m.unsure_term, None, "only who leads has anything to be unsure of");
    }

    #[test]
    fn a_leadership_soon_after_an_announcement_came_by_it() {
        let now = Instant::now();
        let handover = Handover {
            from_term: 3,
            from_node_id: 2,
            cause: LeadershipCause::Resign,
            operation_id: "op".into(),
            accepts: FitnessGrade::Fit,
        };
        let mut m = memory();
        m.announced(now, handover.clone(), true);
        assert!(m.was_asked(now));
        assert!(!m.was_asked(now + HANDOVER_WITHIN));
        assert_eq!(m.take_announced(now), Some(handover.clone()));
        assert_eq!(m.take_announced(now), None, "one leadership");
        m.announced(now, handover, false);
        assert!(!m.was_asked(now));
        assert_eq!(m.take_announced(now + HANDOVER_WITHIN), None);
    }
}
