//! Who would take leadership over: looked at by what heartbeats told, and asked.

use std::collections::BTreeSet;

use tokio::time::Instant;

use crate::consensus::{Handover, PeerError};
use crate::leadership::handle::Handle;
use crate::leadership::handover::{Asked, CATCHES_UP_WITHIN, LOOK_EVERY, Refused, leading};
use crate::leadership::target::{Candidate, choose};
use crate::types::proto::FitnessGrade;
use crate::types::{NodeId, Term};

/// Returns once one that could take over, as heartbeats tell, says so itself: what it said with a heartbeat is older
/// than what it says now.
pub(super) async fn willing(handle: &Handle, asked: &Asked, handover: &Handover) -> Result<(), Refused> {
    let raft = handle.raft();
    let mut declined = BTreeSet::new();
    loop {
        let to = match asked.to {
            Some(to) => to,
            None => match choose(&handle.candidates(&leading(handle)?), None, asked.accepts, &declined)? {
                Some(to) => to,
                // Entries are on their way to it.
                None => return Ok(()),
            },
        };
        match raft.peers().would_take_over(to, handover, raft.send_timeout()).await {
            Ok(()) | Err(PeerError::NotYet(_)) => return Ok(()),
            Err(e) if asked.to.is_some() => return Err(refused_by(to, e)),
            Err(_) => declined.insert(to),
        };
    }
}

/// Who would take over now: another than the one that did not, else that one. What was heard of them says nothing
/// any more: a leader whose raft was told sends no heartbeats.
pub(super) async fn ask_around(handle: &Handle, to: NodeId, handover: &Handover) -> NodeId {
    let raft = handle.raft();
    let mut voters = handle.candidates(&raft.status());
    voters.retain(|c| c.is_voter && c.missing == Some(0));
    voters.sort_by_key(|c| (c.node_id == to, c.grade()));
    for voter in voters {
        match raft.peers().would_take_over(voter.node_id, handover, raft.send_timeout()).await {
            Ok(()) => return voter.node_id,
            Err(error) => tracing::debug!(peer_id = voter.node_id, %error, "a voter does not take over"),
        }
    }
    to
}

/// Returns once somebody could take over, as heartbeats tell. A voter that answers and is unable may be one that
/// just started and catches up: it is waited for a moment, so that a rolling restart finds a target.
pub(super) async fn someone(handle: &Handle, asked: &Asked, began: Instant) -> Result<(), Refused> {
    let until = began + CATCHES_UP_WITHIN.min(asked.within / 2);
    loop {
        let candidates = handle.candidates(&leading(handle)?);
        let Err(refused) = choose(&candidates, asked.to, told_grade(asked), &BTreeSet::new()) else {
            return Ok(());
        };
        let may_come = asked.to.is_none() && candidates.iter().any(Candidate::may_catch_up);
        if !may_come || until <= Instant::now() {
            return Err(refused);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The worst fitness, as heartbeats told it, of those who are looked at. One that was named is asked itself.
fn told_grade(asked: &Asked) -> FitnessGrade {
    if asked.to.is_some() { FitnessGrade::Unable } else { asked.accepts }
}

/// A target that holds everything and says that it would take over. `Ok(None)`: this node leads no more.
pub(super) async fn find(
    handle: &Handle,
    term: Term,
    asked: &Asked,
    handover: &Handover,
    until: Instant,
) -> Result<Option<NodeId>, Refused> {
    let raft = handle.raft();
    let mut declined = BTreeSet::new();
    loop {
        let status = raft.status();
        if status.term != term || !raft.is_leader() {
            return Ok(None);
        }
        let candidates = handle.candidates(&status);
        if let Some(to) = choose(&candidates, asked.to, told_grade(asked), &declined)? {
            match raft.peers().would_take_over(to, handover, raft.send_timeout()).await {
                Ok(()) => return Ok(Some(to)),
                // It catches up: asked again below, until its time is over.
                Err(PeerError::NotYet(_)) if Instant::now() < until => {}
                Err(e) if asked.to.is_some() => return Err(refused_by(to, e)),
                Err(e) => {
                    tracing::info!(peer_id = to, error = %e, "a voter declines to take over");
                    declined.insert(to);
                    continue;
                }
            }
        }
        if until <= Instant::now() {
            return Err(match asked.to {
                Some(to) => {
                    let missing = candidates.iter().find(|c| c.node_id == to).and_then(|c| c.missing);
                    let missing = missing.unwrap_or(status.positions.last);
                    Refused::NotCaughtUp(to, format!("it lacks {missing} entries"))
                }
                None => Refused::NoTarget("none holds this leader's last entry".into()),
            });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn refused_by(to: NodeId, error: PeerError) -> Refused {
    match error {
        PeerError::Refused(why) => Refused::NotFit(to, why),
        PeerError::NotYet(why) => Refused::NotCaughtUp(to, why),
        e @ (PeerError::NoAddress(_)
        | PeerError::Nobody { .. }
        | PeerError::Unreachable { .. }
        | PeerError::TimedOut { .. }) => Refused::Unreachable(to, e.to_string()),
    }
}
