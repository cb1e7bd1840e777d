//! What a node does about its fitness: whether it stands for election, when it hands over, when it falls silent.
//!
//! The leadership task gives a [`Look`] several times a second and at every change of role, and carries out
//! the [`Action`]s. Pure: no clock, no network.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::leadership::policy::{Check, grade};
use crate::types::proto::{FitnessGrade, LeadershipCause};

/// The longest pause between two hand-overs for unfitness, in first pauses. By eye: five doublings.
const PAUSES_MAX: u32 = 32;

/// `leadership.*`, and the base of the pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) last_resort_after: Duration,
    pub(crate) handover_budget: u64,
    pub(crate) handover_window: Duration,
    /// Between the first and the second hand-over of a window; doubles. `raft.election_timeout`.
    pub(crate) pause: Duration,
}

/// The node at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Look<'a> {
    pub(crate) now: Instant,
    pub(crate) is_leader: bool,
    /// The lease holds: a quorum answers.
    pub(crate) has_quorum: bool,
    /// Why this node should not lead; empty when it is fit.
    pub(crate) unfit: &'a [Check],
    /// As fit as can be told while nobody leads.
    pub(crate) is_fit_to_stand: bool,
    /// It just started with data: an old leader's lease may still hold (safety rule 16).
    pub(crate) is_barred: bool,
    /// For how long no leader was heard; zero while one is.
    pub(crate) leaderless_for: Duration,
    /// Its log's sync is late: raft cannot save a vote then, waits for it, and hears nobody meanwhile. Or its process
    /// stood still.
    pub(crate) is_deaf: bool,
    /// The fittest other voter that answers; `None`: there is none that could take over.
    pub(crate) fittest: Option<FitnessGrade>,
    /// It leads by a transfer that was forced upon it: to be merely unwilling is no reason then.
    pub(crate) is_forced: bool,
    /// A hand-over is under way.
    pub(crate) is_busy: bool,
    /// Its own vote is being taken: a hand-over follows once that is agreed on.
    pub(crate) is_leaving: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Whether the timer of elections may make this node a candidate.
    SetMayStand(bool),
    /// It is not fit, and stands all the same since nobody leads.
    TellLastResort,
    HandOver {
        cause: LeadershipCause,
        accepts: FitnessGrade,
        why: Check,
    },
    /// Whether heartbeats are sent while it leads.
    SetHeartbeats(bool),
}

/// Owned by the leadership task. Invariants: `handed_over` holds the hand-overs of one window, oldest first;
/// `has_tried` only while this node leads and is stuck.
#[derive(Debug)]
pub(crate) struct Keeper {
    config: Config,
    may_stand: Option<bool>,
    is_last_resort: bool,
    /// When it was deaf last.
    deaf_at: Option<Instant>,
    is_silent: bool,
    /// Stuck, it tried to hand over.
    has_tried: bool,
    handed_over: VecDeque<Instant>,
}

impl Keeper {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            may_stand: None,
            is_last_resort: false,
            deaf_at: None,
            is_silent: false,
            has_tried: false,
            handed_over: VecDeque::new(),
        }
    }

    pub(crate) fn step(&mut self, look: &Look<'_>) -> Vec<Action> {
        let mut actions = self.stand(look);
        let is_stuck = look.is_leader && look.unfit.iter().any(|check| check.is_stuck());
        self.has_tried &= is_stuck;
        // One attempt: each costs an election's time, with a leader that holds no fence and lets nobody else lead.
        let hand_over = if self.has_tried { None } else { self.hand_over(look) };
        self.has_tried |= is_stuck && hand_over.is_some();
        let is_trying = look.is_busy || hand_over.is_some();
        actions.extend(hand_over);
        actions.extend(self.silence(is_stuck, look.has_quorum && !is_trying));
        actions
    }

    fn stand(&mut self, look: &Look<'_>) -> Vec<Action> {
        if look.is_deaf {
            self.deaf_at = Some(look.now);
        }
        // Silence that it could not have heard through says nothing of the others.
        let listened_for = self.deaf_at.map_or(Duration::MAX, |at| look.now.saturating_duration_since(at));
        let is_alone = self.config.last_resort_after <= look.leaderless_for.min(listened_for);
        // Who was removed hears no leader for good, and nobody would vote for it.
        let is_member = !look.unfit.contains(&Check::Member);
        let is_last_resort = is_alone && is_member && !look.is_fit_to_stand && !look.is_leader;
        let may = !look.is_barred && (look.is_fit_to_stand || is_last_resort);
        let is_news = is_last_resort && !look.is_barred && !self.is_last_resort;
        self.is_last_resort = is_last_resort && !look.is_barred;
        let mut actions = Vec::new();
        if self.may_stand != Some(may) {
            self.may_stand = Some(may);
            actions.push(Action::SetMayStand(may));
        }
        if is_news {
            actions.push(Action::TellLastResort);
        }
        actions
    }

    fn hand_over(&mut self, look: &Look<'_>) -> Option<Action> {
        let own = grade(look.unfit);
        let is_content = own == FitnessGrade::Fit || (own == FitnessGrade::Unwilling && look.is_forced);
        // A stop hands over by itself, once what is in flight is answered.
        let is_stopping = look.unfit.contains(&Check::Stopping);
        // What is stuck is not agreed on either.
        let comes_anyway = look.is_leaving && !look.unfit.iter().any(|check| check.is_stuck());
        if !look.is_leader || look.is_busy || is_content || is_stopping || comes_anyway {
            return None;
        }
        // Only to somebody better: among the equally unfit it would wander.
        let accepts = match (own, look.fittest?) {
            (_, FitnessGrade::Fit) => FitnessGrade::Fit,
            (FitnessGrade::Unable, FitnessGrade::Unwilling) => FitnessGrade::Unwilling,
            _ => return None,
        };
        if !self.has_budget(look.now) {
            return None;
        }
        self.handed_over.push_back(look.now);
        let cause = match own {
            FitnessGrade::Unwilling => LeadershipCause::Pause,
            _ if look.unfit.contains(&Check::Member) => LeadershipCause::Removed,
            _ => LeadershipCause::Unfit,
        };
        let why = *look.unfit.first().expect("who is not fit has a reason");
        Some(Action::HandOver { cause, accepts, why })
    }

    fn has_budget(&mut self, now: Instant) -> bool {
        let window = self.config.handover_window;
        while self.handed_over.front().is_some_and(|at| window <= now.saturating_duration_since(*at)) {
            self.handed_over.pop_front();
        }
        let Some(last) = self.handed_over.back() else { return 0 < self.config.handover_budget };
        let n = self.handed_over.len();
        let pauses = 1u32.checked_shl(n as u32 - 1).unwrap_or(PAUSES_MAX).min(PAUSES_MAX);
        (n as u64) < self.config.handover_budget
            && self.config.pause * pauses <= now.saturating_duration_since(*last)
    }

    /// A leader whose entries do not get through, though a quorum answers its heartbeats, keeps everybody from
    /// electing another. With nobody to hand over to it falls silent, until it leads no more or they get through.
    fn silence(&mut self, is_stuck: bool, may_begin: bool) -> Option<Action> {
        // Once silent it stays so: without heartbeats the quorum is lost on purpose.
        let silent = is_stuck && (self.is_silent || may_begin);
        (self.is_silent != silent).then(|| {
            self.is_silent = silent;
            Action::SetHeartbeats(!silent)
        })
    }
}

#[cfg(test)]
mod tests;
