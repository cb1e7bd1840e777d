//! The decision whether this node is ready, and if not why. Pure: no clock, no network.

use std::time::Duration;

use crate::consensus::membership::standing::Removed;
use crate::consensus::{Role, Status};
use crate::machine::apply::View;
use crate::types::{LogIndex, NodeId};

/// Everything the decision rests on.
pub(crate) struct Inputs<'a> {
    pub(crate) node_id: NodeId,
    pub(crate) status: &'a Status,
    pub(crate) view: &'a View,
    /// `raft.leader_lease_timeout`.
    pub(crate) lease_timeout: Duration,
    pub(crate) is_disk_full: bool,
    pub(crate) is_store_failed: bool,
    /// The state differs from the others'.
    pub(crate) has_diverged: bool,
    pub(crate) intent: Intent,
    /// Other members say that this node is none.
    pub(crate) removed: Option<Removed>,
    /// Greatest commit index of the cluster known one second ago.
    pub(crate) committed_a_second_ago: LogIndex,
}

/// What this node is about to do with its leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Intent {
    /// Lead when elected.
    #[default]
    Lead,
    /// The fence is withdrawn and the hand-over under way.
    HandOver,
    /// The process is on its way out.
    Stop,
}

/// A reason why this node is not ready. The names are a closed set that alerts and tools rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Check {
    Raft,
    Stopping,
    Storage,
    Leader,
    CaughtUp,
    Role,
    Lease,
    Leadership,
    Settings,
    Handover,
    Member,
}

impl Check {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raft => "raft",
            Self::Stopping => "stopping",
            Self::Storage => "storage",
            Self::Leader => "leader",
            Self::CaughtUp => "caughtUp",
            Self::Role => "role",
            Self::Lease => "lease",
            Self::Leadership => "leadership",
            Self::Settings => "settings",
            Self::Handover => "handover",
            Self::Member => "member",
        }
    }
}

/// What the inputs mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The term, when and only when this node may produce.
    pub(crate) fence: Option<u64>,
    pub(crate) lease_remaining: Duration,
    pub(crate) is_caught_up: bool,
    /// Why there is no fence; empty when there is one.
    pub(crate) failing: Vec<Check>,
}

pub(crate) fn judge(i: &Inputs<'_>) -> Verdict {
    let s = i.status;
    let leads = s.role == Role::Leader;
    let lease_remaining = match (leads, s.quorum_ack_age) {
        (true, Some(age)) => i.lease_timeout.saturating_sub(age),
        _ => Duration::ZERO,
    };
    let is_caught_up = s.is_started
        && s.leader_id.is_some()
        && s.committed_term == s.term
        && i.committed_a_second_ago <= s.positions.applied;
    // The term is the fence once this node's own leadership of it is applied: the state machine
    // then refuses every other (promise 3).
    let has_own_leadership =
        i.view.leadership.as_ref().is_some_and(|l| l.pos.term == s.term && l.node_id == i.node_id);
    let mut failing = Vec::new();
    let mut check = |holds: bool, check: Check| {
        if !holds {
            failing.push(check);
        }
    };
    check(s.is_started && s.is_running, Check::Raft);
    check(i.intent != Intent::Stop, Check::Stopping);
    // A leader whose vote was taken leads on until somebody took over, and holds no fence.
    let voters = &s.members.voters;
    let has_vote = voters.is_empty() || voters.contains(&i.node_id);
    check(i.removed.is_none() && (has_vote || !leads), Check::Member);
    check(!i.is_disk_full && !i.is_store_failed && !i.has_diverged, Check::Storage);
    if leads {
        check(!lease_remaining.is_zero(), Check::Lease);
        check(has_own_leadership, Check::Leadership);
        check(i.view.settings.index != 0, Check::Settings);
        check(i.intent != Intent::HandOver, Check::Handover);
    } else {
        check(s.leader_id.is_some(), Check::Leader);
        check(is_caught_up, Check::CaughtUp);
        check(false, Check::Role);
    }
    let fence = failing.is_empty().then_some(s.term);
    Verdict { fence, lease_remaining, is_caught_up, failing }
}

/// What an operator is told about a failing check: what it means and what to do.
pub(crate) fn hint(check: Check, i: &Inputs<'_>) -> String {
    let s = i.status;
    match check {
        Check::Raft if s.is_running => "raft is starting; wait".into(),
        Check::Raft => "raft has stopped; see the log, the process is about to exit".into(),
        Check::Stopping => "the process is stopping".into(),
        Check::Storage if i.is_store_failed => {
            "the log cannot be synced; the process is about to exit".into()
        }
        Check::Storage if i.has_diverged => {
            "the state of this node differs from the others': stop it, wipe its folder and add it again"
                .into()
        }
        Check::Storage => "free space in data_dir is below store.min_free; free some".into(),
        Check::Leader => {
            "no leader is heard: is a majority of the voters up and reachable on its peer port?".into()
        }
        Check::CaughtUp => format!(
            "applied {} of {} entries the cluster committed; wait, or look at this node's disk and network",
            s.positions.applied, s.positions.cluster_committed
        ),
        Check::Role => match s.leader_id {
            Some(leader) => format!("this node follows; node {leader} leads"),
            None => "this node does not lead".into(),
        },
        Check::Lease => {
            "no quorum acknowledged this leader within raft.leader_lease_timeout; is a majority reachable?"
                .into()
        }
        Check::Leadership => "elected; its leadership command is not applied yet".into(),
        Check::Settings => "the first leader has not put the cluster's settings into the log yet".into(),
        Check::Member => match i.removed {
            Some(removed) => format!(
                "node {} says that this node is in no membership up to version {}: add it with \
                 `raft_addLearner` on the leader, or stop it",
                removed.told_by, removed.version
            ),
            None => "this leader has no vote any more; it hands over".into(),
        },
        Check::Handover => "leadership is being handed over".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::apply::Leadership;
    use crate::types::{position::LogPos, proto::LeadershipCause};

    const NODE: NodeId = 1;

    fn status(role: Role) -> Status {
        Status {
            role,
            term: 7,
            leader_id: Some(if role == Role::Leader { NODE } else { 2 }),
            positions: Default::default(),
            committed_term: 7,
            members: Default::default(),
            quorum_ack_age: (role == Role::Leader).then_some(Duration::from_millis(20)),
            peers: None,
            is_started: true,
            is_running: true,
        }
    }

    fn view(term: u64, node_id: NodeId, settings_index: LogIndex) -> View {
        let mut view = View {
            leadership: Some(Leadership {
                pos: LogPos { term, index: 3 },
                node_id,
                cause: LeadershipCause::Election,
                operation_id: String::new(),
                started_at_ms: 0,
            }),
            ..View::default()
        };
        view.settings.index = settings_index;
        view
    }

    fn inputs<'a>(status: &'a Status, view: &'a View) -> Inputs<'a> {
        Inputs {
            node_id: NODE,
            status,
            view,
            lease_timeout: Duration::from_millis(175),
            is_disk_full: false,
            is_store_failed: false,
            has_diverged: false,
            intent: Intent::Lead,
            removed: None,
            committed_a_second_ago: 0,
        }
    }

    #[test]
    fn a_leader_that_applied_its_own_leadership_holds_the_fence() {
        let (s, v) = (status(Role::Leader), view(7, NODE, 4));
        let verdict = judge(&inputs(&s, &v));
        assert_eq!(verdict.fence, Some(7));
        assert_eq!(verdict.lease_remaining, Duration::from_millis(155));
        assert!(verdict.failing.is_empty());
    }

    #[test]
    fn each_missing_thing_withholds_the_fence_and_is_named() {
        let good = view(7, NODE, 4);
        let s = status(Role::Leader);
        let failing = |s: &Status, v: &View, change: &dyn Fn(&mut Inputs<'_>)| {
            let mut i = inputs(s, v);
            change(&mut i);
            let verdict = judge(&i);
            assert_eq!(verdict.fence, None);
            for check in &verdict.failing {
                assert!(!hint(*check, &i).is_empty());
            }
            verdict.failing
        };
        // A leadership of an earlier term, or another node's in this one, is not this node's.
        assert_eq!(failing(&s, &view(6, NODE, 4), &|_| ()), [Check::Leadership]);
        assert_eq!(failing(&s, &view(7, 2, 4), &|_| ()), [Check::Leadership]);
        assert_eq!(failing(&s, &view(7, NODE, 0), &|_| ()), [Check::Settings]);
        assert_eq!(failing(&s, &good, &|i| i.intent = Intent::HandOver), [Check::Handover]);
        assert_eq!(failing(&s, &good, &|i| i.intent = Intent::Stop), [Check::Stopping]);
        let told = Removed { version: 9, told_by: 2 };
        assert_eq!(failing(&s, &good, &|i| i.removed = Some(told)), [Check::Member]);
        let mut without_vote = s.clone();
        without_vote.members.voters = [2, 3].into();
        assert_eq!(failing(&without_vote, &good, &|_| ()), [Check::Member]);
        assert_eq!(failing(&s, &good, &|i| i.is_disk_full = true), [Check::Storage]);
        assert_eq!(failing(&s, &good, &|i| i.has_diverged = true), [Check::Storage]);
        // Safety rule 11: openraft goes on saying Leader; the clock says that the quorum is gone.
        let cut = Status { quorum_ack_age: Some(Duration::from_millis(175)), ..s.clone() };
        assert_eq!(failing(&cut, &good, &|_| ()), [Check::Lease]);
        let never = Status { quorum_ack_age: None, ..s.clone() };
        assert_eq!(failing(&never, &good, &|_| ()), [Check::Lease]);
        assert_eq!(failing(&status(Role::Follower), &good, &|_| ()), [Check::Role]);
    }

    #[test]
    fn caught_up_needs_a_leader_a_commit_of_its_term_and_an_applied_index_of_a_second_ago() {
        let (s, v) = (status(Role::Follower), view(7, 2, 4));
        assert!(judge(&inputs(&s, &v)).is_caught_up);
        assert!(!judge(&inputs(&Status { leader_id: None, ..s.clone() }, &v)).is_caught_up);
        assert!(!judge(&inputs(&Status { committed_term: 6, ..s.clone() }, &v)).is_caught_up);
        assert!(!judge(&Inputs { committed_a_second_ago: 1, ..inputs(&s, &v) }).is_caught_up);
        assert!(!judge(&inputs(&Status { is_started: false, ..s.clone() }, &v)).is_caught_up);
    }
}
