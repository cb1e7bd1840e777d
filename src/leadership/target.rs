//! Whom leadership is handed to: the fittest voter that answers and holds everything. Pure, but for the dry run.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::consensus::{Fitness, Status};
use crate::leadership::handle::Handle;
use crate::leadership::handover::{Refused, leading};
use crate::types::proto::FitnessGrade;
use crate::types::{LogIndex, NodeId};

/// Another member as a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) node_id: NodeId,
    pub(crate) is_voter: bool,
    /// Of the newest acknowledgement, if it is younger than one heartbeat_timeout.
    pub(crate) ack_age: Option<Duration>,
    /// Entries of this leader's that it is not known to hold; `None`: nothing is known.
    pub(crate) missing: Option<LogIndex>,
    /// What it said last; `None`: it is of a version that says nothing, and is taken to be fit.
    pub(crate) fitness: Option<Fitness>,
}

impl Candidate {
    pub(crate) fn grade(&self) -> FitnessGrade {
        match self.fitness.as_ref().map(|f| f.grade) {
            None | Some(FitnessGrade::Unknown) => FitnessGrade::Fit,
            Some(grade) => grade,
        }
    }

    /// Why it cannot take over, whether or not it holds everything yet.
    fn fault(&self, accepts: FitnessGrade) -> Option<Refused> {
        if !self.is_voter {
            return Some(Refused::NotVoter(self.node_id));
        }
        if self.ack_age.is_none() {
            return Some(Refused::Unreachable(self.node_id, "is it running and reachable?".into()));
        }
        if accepts.max(FitnessGrade::Fit) < self.grade() {
            let reason = self.fitness.as_ref().map_or_else(String::new, |f| f.reason.clone());
            return Some(Refused::NotFit(self.node_id, reason));
        }
        None
    }

    /// It answers, and what keeps it from leading may be over in a moment.
    pub(super) fn may_catch_up(&self) -> bool {
        self.is_voter && self.ack_age.is_some() && self.grade() == FitnessGrade::Unable
    }

    fn has_everything(&self) -> bool {
        self.missing == Some(0)
    }
}

/// The best target of now. `Ok(None)`: there is one that lacks entries; it may get them.
///
/// Best is: fittest, then most caught up, then heard of last.
pub(crate) fn choose(
    candidates: &[Candidate],
    to: Option<NodeId>,
    accepts: FitnessGrade,
    declined: &BTreeSet<NodeId>,
) -> Result<Option<NodeId>, Refused> {
    if let Some(to) = to {
        let found = candidates.iter().find(|c| c.node_id == to).ok_or(Refused::NotMember(to))?;
        return match found.fault(accepts) {
            Some(refused) => Err(refused),
            None => Ok(found.has_everything().then_some(to)),
        };
    }
    let able = candidates
        .iter()
        .filter(|c| c.fault(accepts).is_none() && !declined.contains(&c.node_id))
        .min_by_key(|c| (c.grade(), c.missing.unwrap_or(LogIndex::MAX), c.ack_age));
    match able {
        Some(best) => Ok(best.has_everything().then_some(best.node_id)),
        None => Err(Refused::NoTarget(why_none(candidates, accepts, declined))),
    }
}

fn why_none(candidates: &[Candidate], accepts: FitnessGrade, declined: &BTreeSet<NodeId>) -> String {
    let voters = candidates.iter().filter(|c| c.is_voter);
    let faults: Vec<String> = voters
        .filter_map(|c| match c.fault(accepts) {
            Some(refused) => Some(refused.to_string()),
            None if declined.contains(&c.node_id) => Some(format!("node {} declined", c.node_id)),
            None => None,
        })
        .collect();
    if faults.is_empty() { "this is the only voter".into() } else { faults.join("; ") }
}

/// What a dry run says: whom it would choose, without doing anything.
pub(crate) fn preview(
    handle: &Handle,
    to: Option<NodeId>,
    accepts: FitnessGrade,
) -> Result<(NodeId, Status), Refused> {
    let status = leading(handle)?;
    if to == Some(handle.raft().node_id()) {
        return Ok((handle.raft().node_id(), status));
    }
    let candidates = handle.candidates(&status);
    let chosen = choose(&candidates, to, accepts, &BTreeSet::new())?;
    match chosen.or(to) {
        Some(to) => Ok((to, status)),
        None => {
            // Entries are on their way to it.
            let best = candidates
                .iter()
                .filter(|c| c.fault(accepts).is_none())
                .min_by_key(|c| (c.grade(), c.missing.unwrap_or(LogIndex::MAX)));
            best.map(|c| (c.node_id, status)).ok_or(Refused::NoTarget("none holds every entry".into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(node_id: NodeId) -> Candidate {
        Candidate {
            node_id,
            is_voter: true,
            ack_age: Some(Duration::from_millis(10 * node_id)),
            missing: Some(0),
            fitness: Some(Fitness { grade: FitnessGrade::Fit, reason: String::new() }),
        }
    }

    fn with_grade(node_id: NodeId, grade: FitnessGrade) -> Candidate {
        let fitness = Fitness { grade, reason: "paused".into() };
        Candidate { fitness: Some(fitness), ..candidate(node_id) }
    }

    fn chosen(candidates: &[Candidate], to: Option<NodeId>) -> Result<Option<NodeId>, &'static str> {
        choose(candidates, to, FitnessGrade::Fit, &BTreeSet::new()).map_err(|refused| refused.reason())
    }

    #[test]
    fn the_fittest_then_the_most_caught_up_then_the_last_heard_of() {
        assert_eq!(chosen(&[candidate(3), candidate(2)], None), Ok(Some(2)));
        let behind = Candidate { missing: Some(4), ..candidate(2) };
        assert_eq!(chosen(&[behind.clone(), candidate(3)], None), Ok(Some(3)));
        // It may still get them.
        assert_eq!(chosen(std::slice::from_ref(&behind), None), Ok(None));
        assert_eq!(chosen(&[behind], Some(2)), Ok(None));
        let unwilling = with_grade(2, FitnessGrade::Unwilling);
        assert_eq!(chosen(&[unwilling.clone(), candidate(3)], None), Ok(Some(3)));
        let any = |accepts| choose(std::slice::from_ref(&unwilling), None, accepts, &BTreeSet::new());
        assert_eq!(any(FitnessGrade::Unwilling), Ok(Some(2)));
        let fitter = choose(
            &[unwilling, Candidate { missing: Some(9), ..candidate(3) }],
            None,
            FitnessGrade::Unable,
            &BTreeSet::new(),
        );
        assert_eq!(fitter, Ok(None), "the fit one is waited for");
        // Nothing is known of an older version: it is taken to be fit.
        assert_eq!(chosen(&[Candidate { fitness: None, ..candidate(2) }], None), Ok(Some(2)));
    }

    /// Safety rule 13: to a learner, a stranger and a dead node raft would answer Ok, and refuse every write.
    #[test]
    fn who_cannot_take_over_is_refused_with_the_reason() {
        let learner = Candidate { is_voter: false, ..candidate(2) };
        let dead = Candidate { ack_age: None, ..candidate(3) };
        let paused = with_grade(4, FitnessGrade::Unwilling);
        let all = [learner, dead, paused];
        assert_eq!(chosen(&all, Some(77)), Err("notMember"));
        assert_eq!(chosen(&all, Some(2)), Err("notVoter"));
        assert_eq!(chosen(&all, Some(3)), Err("unreachable"));
        assert_eq!(chosen(&all, Some(4)), Err("notFit"));
        assert_eq!(chosen(&all, None), Err("noTarget"));
        assert_eq!(chosen(&[], None), Err("noTarget"));
        // By force a paused one is made to; a dead one is not.
        let forced = |to| choose(&all, Some(to), FitnessGrade::Unable, &BTreeSet::new());
        assert_eq!(forced(4), Ok(Some(4)));
        assert_eq!(forced(3).map_err(|r| r.reason()), Err("unreachable"));
    }

    #[test]
    fn who_declined_is_not_asked_again() {
        let all = [candidate(2), candidate(3)];
        let without = |ids: &[NodeId]| {
            let declined = ids.iter().copied().collect();
            choose(&all, None, FitnessGrade::Fit, &declined)
        };
        assert_eq!(without(&[2]), Ok(Some(3)));
        let refused = without(&[2, 3]).expect_err("nobody is left");
        assert_eq!(refused.to_string(), "no other voter can take over: node 2 declined; node 3 declined");
    }
}
