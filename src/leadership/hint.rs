//! Stands for election early when the leader's process is known to be dead.
//!
//! A connection that breaks says little, a machine that then answers "nobody listens" says that the process is
//! gone. Then there is nothing to be patient for but the lease. Safe: a round of pre-votes does nothing while
//! anybody's lease holds, and who comes first by rank is likely to be alone.

use std::time::{Duration, Instant};

use crate::consensus::core::Stopped;
use crate::leadership::handle::Handle;
use crate::types::{NodeId, Term};

/// Between the first candidacies of two voters: a vote takes less. By eye.
const RANK_STEP: Duration = Duration::from_millis(15);
/// Rounds that are tried: another voter may have heard the leader up to a heartbeat later.
const ROUNDS_MAX: u32 = 4;

/// Watches the leader's process until raft stops.
pub(crate) async fn run(handle: Handle) -> Result<(), Stopped> {
    let raft = handle.raft().clone();
    let look_every = raft.config().heartbeat_timeout / 2;
    loop {
        let status = raft.status();
        if !status.is_running {
            return Err(Stopped("its core ended".into()));
        }
        let leader = status.leader_id.filter(|id| *id != raft.node_id());
        let Some(leader_id) = leader else {
            tokio::time::sleep(look_every).await;
            continue;
        };
        // Looked at again and again: the leader, and the link to it, may be others by then.
        let gone = raft.peers().gone(leader_id);
        if tokio::time::timeout(look_every, gone).await.is_ok() {
            stand(&handle, status.term, leader_id).await?;
        }
    }
}

/// The leader of that term is gone. Returns when somebody leads, or it was tried often enough.
async fn stand(handle: &Handle, term: Term, leader_id: NodeId) -> Result<(), Stopped> {
    let raft = handle.raft();
    let status = raft.status();
    let rank =
        status.members.voters.iter().filter(|id| **id != leader_id).position(|id| *id == raft.node_id());
    // A learner elects nobody.
    let Some(rank) = rank else {
        tokio::time::sleep(raft.config().heartbeat_timeout).await;
        return Ok(());
    };
    let n_voters = u32::try_from(status.members.voters.len()).unwrap_or(u32::MAX);
    let wait = first_wait(raft.config().lease(), raft.heard_age(), rank);
    tokio::time::sleep(wait).await;
    for round in 0..ROUNDS_MAX {
        let status = raft.status();
        let is_heard = raft.heard_age().is_some_and(|age| age < raft.config().lease());
        // Heard again: the link to it was not up yet, or it broke alone.
        if status.term != term || is_heard {
            return Ok(());
        }
        if round == 0 {
            tracing::info!(term, leader_id, waited = ?wait, "the leader's process is gone");
        }
        // Its own fitness holds here too (safety rule 14).
        let may_stand = handle.judged(&status, |verdict, _, _| verdict.may_stand);
        if may_stand && handle.barred(Instant::now()).is_none() {
            handle.stand("deadLeader").await?;
        }
        tokio::time::sleep(RANK_STEP * n_voters).await;
    }
    Ok(())
}

/// Until the lease of the leader that was heard so long ago is over, and those before in rank have stood.
fn first_wait(lease: Duration, heard_age: Option<Duration>, rank: usize) -> Duration {
    let rank = u32::try_from(rank).unwrap_or(u32::MAX);
    lease.saturating_sub(heard_age.unwrap_or_default()) + RANK_STEP.saturating_mul(rank + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_stands_before_the_lease_is_over_nor_two_at_once() {
        let ms = Duration::from_millis;
        assert_eq!(first_wait(ms(262), Some(ms(12)), 0), ms(265));
        assert_eq!(first_wait(ms(262), Some(ms(12)), 1), ms(280));
        assert_eq!(first_wait(ms(262), Some(ms(900)), 0), ms(15));
        assert_eq!(first_wait(ms(262), None, 0), ms(277));
    }
}
