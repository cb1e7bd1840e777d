//! The decision whether this node is ready, how fit it is, and if not why. Pure: no clock, no network.
//!
//! *Ready* is about a leader: it holds the fence. *Fit* is about a node: it may lead (design 11). A node that is
//! merely paused is unwilling; one with any other fault is unable.

use std::time::{Duration, Instant};

use crate::consensus::{Role, Status};
use crate::leadership::executor::{Ill, Illness};
use crate::machine::apply::View;
use crate::types::member::Removed;
use crate::types::proto::FitnessGrade;
use crate::types::{LogIndex, NodeId, Term};

/// Everything the decision rests on.
pub(crate) struct Inputs<'a> {
    pub(crate) node_id: NodeId,
    pub(crate) now: Instant,
    pub(crate) status: &'a Status,
    pub(crate) view: &'a View,
    /// `raft.leader_lease_timeout`.
    pub(crate) lease_timeout: Duration,
    /// `leadership.stall_after`.
    pub(crate) stall_after: Duration,
    /// `executor.sync_timeout`.
    pub(crate) sync_timeout: Duration,
    pub(crate) is_disk_full: bool,
    pub(crate) is_store_failed: bool,
    /// The state differs from the others'.
    pub(crate) has_diverged: bool,
    pub(crate) intent: Intent,
    /// Other members say that this node is none.
    pub(crate) removed: Option<Removed>,
    /// The newest membership in this node's log names this life of it, or none (safety rule 8).
    pub(crate) is_itself: bool,
    /// Greatest commit index of the cluster known one second ago.
    pub(crate) committed_a_second_ago: LogIndex,
    /// Was caught up when a leader was last heard, or has applied all it knows to be committed.
    pub(crate) has_applied_enough: bool,
    pub(crate) is_paused: bool,
    pub(crate) executor: Option<&'a Ill>,
    /// Age of the log's sync in progress.
    pub(crate) sync_in_progress: Option<Duration>,
    /// How long nothing that this leader accepted was applied, and no bytes of it left.
    pub(crate) stalled_for: Duration,
    /// The clock jumped, and no quorum confirmed this leader since (safety rule 17).
    pub(crate) is_clock_unsure: bool,
    /// The last term in which raft was told to hand over: it takes no more entries in it.
    pub(crate) given_up_term: Option<Term>,
    /// The last term in which this node held the fence.
    pub(crate) fenced_term: Option<Term>,
    /// Since when this node leads.
    pub(crate) led_since: Option<Instant>,
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

/// A reason why this node is not ready, or not fit. The names are a closed set that alerts and tools rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Check {
    Raft,
    Stopping,
    Storage,
    /// The log's sync hangs.
    Sync,
    /// What this leader accepted does not get through.
    Stalled,
    Leader,
    CaughtUp,
    Executor,
    Role,
    Lease,
    Clock,
    Leadership,
    Settings,
    Handover,
    Paused,
    Member,
}

impl Check {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raft => "raft",
            Self::Stopping => "stopping",
            Self::Storage => "storage",
            Self::Sync => "sync",
            Self::Stalled => "stalled",
            Self::Leader => "leader",
            Self::CaughtUp => "caughtUp",
            Self::Executor => "executor",
            Self::Role => "role",
            Self::Lease => "lease",
            Self::Clock => "clock",
            Self::Leadership => "leadership",
            Self::Settings => "settings",
            Self::Handover => "handover",
            Self::Paused => "paused",
            Self::Member => "member",
        }
    }

    /// What this leader accepted stays where it is, whatever it waits for.
    pub(crate) fn is_stuck(self) -> bool {
        matches!(self, Self::Sync | Self::Stalled)
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
    /// Why this node should not lead; empty when it is fit.
    pub(crate) unfit: Vec<Check>,
    /// Whether it may stand for election: as fit as can be told while nobody leads.
    pub(crate) may_stand: bool,
}

impl Verdict {
    pub(crate) fn grade(&self) -> FitnessGrade {
        grade(&self.unfit)
    }
}

/// Unwilling may lead with its fence when nobody fit is there; unable never holds one.
pub(crate) fn grade(unfit: &[Check]) -> FitnessGrade {
    match unfit {
        [] => FitnessGrade::Fit,
        [Check::Paused] => FitnessGrade::Unwilling,
        _ => FitnessGrade::Unable,
    }
}

/// Whether the log's disk hangs: a sync has been running for `leadership.stall_after`.
pub(crate) fn is_stuck(sync_in_progress: Option<Duration>, stall_after: Duration) -> bool {
    sync_in_progress.is_some_and(|age| stall_after <= age)
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
    let is_sync_stuck = is_stuck(i.sync_in_progress, i.stall_after);
    let is_stalled = leads && i.stall_after <= i.stalled_for;
    let is_member = i.removed.is_none() && i.is_itself;
    // A leader whose vote was taken leads on until somebody took over, and holds no fence.
    let has_vote = s.members.voters.is_empty() || s.members.voters.contains(&i.node_id);
    let mut failing = Vec::new();
    let mut check = |holds: bool, check: Check| {
        if !holds {
            failing.push(check);
        }
    };
    check(s.is_started && s.is_running, Check::Raft);
    check(i.intent != Intent::Stop, Check::Stopping);
    check(!i.is_disk_full && !i.is_store_failed && !i.has_diverged, Check::Storage);
    check(!is_sync_stuck, Check::Sync);
    check(is_member && (has_vote || !leads), Check::Member);
    if leads {
        check(!is_stalled, Check::Stalled);
        check(!withholds_fence(i), Check::Executor);
        check(!lease_remaining.is_zero(), Check::Lease);
        check(!i.is_clock_unsure, Check::Clock);
        check(has_own_leadership, Check::Leadership);
        check(i.view.settings.index != 0, Check::Settings);
        check(i.intent != Intent::HandOver && i.given_up_term != Some(s.term), Check::Handover);
    } else {
        check(s.leader_id.is_some(), Check::Leader);
        check(is_caught_up, Check::CaughtUp);
        check(i.executor.is_none(), Check::Executor);
        check(false, Check::Role);
        check(!i.is_paused, Check::Paused);
    }
    let fence = failing.is_empty().then_some(s.term);
    let mut unfit = Vec::new();
    let mut fault = |is_there: bool, check: Check| {
        if is_there {
            unfit.push(check);
        }
    };
    fault(i.intent == Intent::Stop || !s.is_running, Check::Stopping);
    fault(i.is_disk_full || i.is_store_failed || i.has_diverged, Check::Storage);
    fault(is_sync_stuck, Check::Sync);
    fault(!is_member || (leads && !has_vote), Check::Member);
    fault(is_stalled, Check::Stalled);
    fault(if leads { outlasts(i) } else { i.executor.is_some() }, Check::Executor);
    fault(i.is_paused, Check::Paused);
    let may_stand = unfit.is_empty() && i.has_applied_enough;
    // By its position alone: right after a change of leader nobody has seen a commit of the new term yet.
    if !leads && (!s.is_started || s.positions.applied < i.committed_a_second_ago) {
        unfit.push(Check::CaughtUp);
    }
    Verdict { fence, lease_remaining, is_caught_up, failing, unfit, may_stand }
}

/// Whether the executor keeps a leader from holding the fence: at once before it first held it in this term,
/// after `executor.sync_timeout` once it did, and at once when it holds another chain.
fn withholds_fence(i: &Inputs<'_>) -> bool {
    i.executor.is_some() && (i.fenced_term != Some(i.status.term) || outlasts(i))
}

/// Whether the executor was ill so long that a leader hands over: counted from when it began to lead.
fn outlasts(i: &Inputs<'_>) -> bool {
    let Some(ill) = i.executor else { return false };
    let since = i.led_since.map_or(ill.since, |led| led.max(ill.since));
    matches!(ill.what, Illness::Forked(_)) || i.sync_timeout <= i.now.saturating_duration_since(since)
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
        Check::Sync => format!(
            "the log's sync has been running for {} ms (leadership.stall_after); the disk hangs",
            i.sync_in_progress.unwrap_or_default().as_millis()
        ),
        Check::Stalled => format!(
            "nothing was committed and applied for {} ms though entries wait (leadership.stall_after); \
             look at the disks and at the network between the nodes",
            i.stalled_for.as_millis()
        ),
        Check::Leader if s.is_started && s.members.nodes.is_empty() => {
            "no leader is heard, and this node knows no membership: it waits for the cluster's first nodes or \
             to be added, unless the others refuse it (`peer is refused` in its log)"
                .into()
        }
        Check::Leader => {
            "no leader is heard: is a majority of the voters up and reachable on its peer port?".into()
        }
        Check::CaughtUp => caught_up_hint(s),
        Check::Executor => match i.executor {
            Some(ill) => ill.what.to_string(),
            None => "the executor is well".into(),
        },
        Check::Role => match s.leader_id {
            Some(leader) => format!("this node follows; node {leader} leads"),
            None => "this node does not lead".into(),
        },
        Check::Lease => {
            "no quorum acknowledged this leader within raft.leader_lease_timeout; is a majority reachable?"
                .into()
        }
        Check::Clock => "the clock jumped; a quorum is asked whether this node still leads".into(),
        Check::Leadership => "elected; its leadership command is not applied yet".into(),
        Check::Settings => "the first leader has not put the cluster's settings into the log yet".into(),
        Check::Member => match i.removed {
            Some(removed) if s.members.nodes.is_empty() => format!(
                "this node knows no membership, and node {} says that it is in none up to version {}: add it \
                 with `raft_addLearner` on the leader, or stop it",
                removed.told_by, removed.version
            ),
            Some(removed) => format!(
                "node {} says that this node is in no membership up to version {}: add it with \
                 `raft_addLearner` on the leader, or stop it",
                removed.told_by, removed.version
            ),
            None if !i.is_itself => {
                "the membership names another life of this node, whose data is lost; wait for newer entries, \
                 or remove it and add it again"
                    .into()
            }
            None => "this leader has no vote any more; it hands over".into(),
        },
        Check::Handover => "leadership is being handed over".into(),
        Check::Paused => {
            "this node was asked not to lead while another can; `raft_resume` takes that back".into()
        }
    }
}

fn caught_up_hint(s: &Status) -> String {
    let (applied, committed) = (s.positions.applied, s.positions.cluster_committed);
    match s.leader_id {
        None if applied < committed => {
            format!(
                "applied {applied} of at least {committed} committed entries; no leader is heard to send the rest"
            )
        }
        None => format!("no leader is heard, so what is missing behind entry {applied} is not known"),
        Some(leader) if committed <= applied && s.committed_term != s.term => {
            format!("nothing that node {leader} committed in term {} has come yet; wait", s.term)
        }
        Some(_) => format!(
            "applied {applied} of {committed} entries the cluster committed; wait, or look at this node's disk \
             and network"
        ),
    }
}

#[cfg(test)]
mod tests;
