//! A leader whose own vote was taken hands over (safety rule 14): openraft would go on leading.

use std::time::Duration;

use crate::consensus::core::Stopped;
use crate::leadership::handle::Handle;
use crate::leadership::policy::Intent;
use crate::leadership::task::resign;

/// One attempt. By eye: an election and a half at the defaults.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Attempts before it goes silent, so that the others elect.
const ATTEMPTS: usize = 5;

/// Returns once this node does not lead any more, or nothing more can be done.
pub(crate) async fn hand_over(handle: &Handle) {
    for _ in 0..ATTEMPTS {
        match resign(handle, Intent::HandOver, ATTEMPT, std::future::ready(())).await {
            Ok(how) if !handle.raft().is_leader() => {
                tracing::info!(?how, "left after its vote was taken");
                return;
            }
            Ok(how) => tracing::warn!(?how, "nobody took over from a leader without a vote; tried again"),
            Err(Stopped(_)) => return,
        }
    }
    // A removed leader becomes a learner and falls silent. A demoted one goes on, without a fence.
    if let Err(error) = handle.raft().core().refresh_server_state().await {
        tracing::debug!(%error, "raft has stopped");
    }
}
