//! A leader whose own vote was taken hands over (safety rule 14): openraft would go on leading.

use std::time::Duration;

use crate::leadership::handle::Handle;
use crate::leadership::handover::{Asked, By, Outcome};
use crate::leadership::policy::Intent;
use crate::types::proto::{FitnessGrade, LeadershipCause};

/// One attempt. By eye: an election and a half at the defaults.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Attempts before it falls silent, so that the others elect.
const ATTEMPTS: usize = 5;
/// Between two attempts: nobody was fit just now.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Returns once this node does not lead any more, or nothing more can be done.
pub(crate) async fn hand_over(handle: &Handle, operation_id: String) {
    for _ in 0..ATTEMPTS {
        let asked = Asked {
            to: None,
            within: ATTEMPT,
            // Whoever it is has a vote, which this node has not.
            accepts: FitnessGrade::Unwilling,
            cause: LeadershipCause::Removed,
            operation_id: operation_id.clone(),
            reason: Some("its own vote was taken".into()),
            by: By::Node,
            intent: Intent::Lead,
        };
        let outcome = handle.hand_over(asked).await;
        if !handle.raft().is_leader() {
            return;
        }
        // Who was removed is sent nothing any more, the new term neither: it asked, and asks nobody to take over twice.
        let is_removed = handle.raft().removal().get().is_some();
        if outcome.is_ok_and(|done| done.outcome != Outcome::TimedOut || is_removed) {
            break;
        }
        tracing::info!("no successor of a leader without a vote is known yet");
        tokio::time::sleep(RETRY_AFTER).await;
    }
    // A removed leader becomes a learner and falls silent. A demoted one goes on, without a fence.
    if let Err(error) = handle.raft().core().refresh_server_state().await {
        tracing::debug!(%error, "raft has stopped");
    }
}
