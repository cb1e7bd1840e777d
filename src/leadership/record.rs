//! Leaderships for the history of this node: each that was applied, in order (safety rule 18).

use crate::audit::history::{Event, History, Kind};
use crate::leadership::handle::Handle;
use crate::types::{Term, proto::LeadershipCause};

/// Records every leadership applied since `recorded`; returns the term of the newest.
pub(super) fn leaderships(handle: &Handle, history: &History, recorded: Term) -> Term {
    let newest = handle.reader().view().leadership.as_ref().map_or(0, |l| l.pos.term);
    if newest <= recorded {
        return recorded;
    }
    for leadership in handle.reader().leaderships(Some(recorded + 1), usize::MAX) {
        let mut event = Event::new(Kind::Leadership, leadership.pos.term, word(leadership.cause));
        // Only this node knows, and only while it runs, why it stood.
        let is_own = leadership.node_id == handle.raft().node_id() && leadership.pos.term == newest;
        let why = if is_own { handle.memory().candidacy.take() } else { None };
        if let Some(why) = why {
            event = why.tell(event);
        }
        history.record(Event {
            // By the leader's clock; an old command has no time.
            at: (leadership.started_at_ms != 0).then_some(leadership.started_at_ms),
            index: Some(leadership.pos.index),
            leader_id: Some(leadership.node_id),
            operation_id: Some(leadership.operation_id).filter(|id| !id.is_empty()),
            ..event
        });
    }
    newest
}

/// Why a leadership began, as tools are told.
pub(crate) fn word(cause: LeadershipCause) -> &'static str {
    match cause {
        LeadershipCause::Unknown => "unknown",
        LeadershipCause::Election => "election",
        LeadershipCause::Transfer => "transfer",
        LeadershipCause::Resign => "resign",
        LeadershipCause::Shutdown => "shutdown",
        LeadershipCause::Pause => "pause",
        LeadershipCause::Unfit => "unfit",
        LeadershipCause::Lease => "lease",
        LeadershipCause::Removed => "removed",
        LeadershipCause::Restart => "restart",
    }
}
