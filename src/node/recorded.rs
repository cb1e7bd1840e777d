//! What goes into this node's record without anybody asking: a recover of its folder, snapshots.

use std::time::Duration;

use crate::audit;
use crate::audit::chain::{Act, Ended, Outcome, RECOVER};
use crate::audit::history::{Event, History, Kind};
use crate::consensus::handle::Handle;
use crate::store::local::RECOVERED;
use crate::store::{Local, Snapshots};

/// How long the record of a recover may take before its note is kept for the next start. By eye: many
/// times a sync.
const RECORDED_WITHIN: Duration = Duration::from_secs(5);

/// Runs until it is dropped.
pub(super) async fn run(audit: audit::Handle, local: Local, raft: Handle, snapshots: Snapshots) {
    record_recover(audit.clone(), local).await;
    record_snapshots(audit.history, raft, snapshots).await;
}

/// The folder was recovered before this start: the record of that is made now, once.
async fn record_recover(audit: audit::Handle, local: Local) {
    let note = match local.get(RECOVERED) {
        Ok(Some(note)) => note,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(%error, "what a recover left cannot be read");
            return;
        }
    };
    let params: serde_json::Value = serde_json::from_slice(&note).unwrap_or_default();
    let number = |name: &str| params[name].as_u64();
    let (term, index) = (number("term").unwrap_or(0), number("lastIndex").map(|last| last + 1));
    let started = audit.chain.started(Act::own(RECOVER, &params), term);
    started.end(&Ended { outcome: Outcome::Ok, reason: None, term, index });
    let mut event = Event { at: number("at"), index, ..Event::new(Kind::Membership, term, "recovered") };
    for name in ["keep", "voters", "epoch"] {
        event = event.with(name, params[name].clone());
    }
    audit.history.record(event);
    // Event twice rather than not at all.
    if audit.flush(RECORDED_WITHIN).await
        && let Err(error) = local.write(vec![(RECOVERED.to_vec(), None)]).await
    {
        tracing::warn!(%error, "the record of a recover is made again at the next start");
    }
}

/// A build that fails is tried again several times a second: one event tells of all that fail alike in a row.
fn is_news(told: Option<&(String, String)>, failed: &(String, String)) -> bool {
    let reason = |(id, why): &(String, String)| why.replace(id.as_str(), "");
    told.is_none_or(|told| reason(told) != reason(failed))
}

/// Snapshots that failed or were received, as events; those asked for are recorded by who asks.
async fn record_snapshots(history: History, raft: Handle, snapshots: Snapshots) {
    let mut progress = snapshots.progress();
    let mut told = progress.borrow().clone();
    while progress.changed().await.is_ok() {
        let now = progress.borrow_and_update().clone();
        let term = raft.status().term;
        if let Some((id, why)) = now.failed.as_ref().filter(|failed| is_news(told.failed.as_ref(), failed)) {
            let event = Event::new(Kind::Snapshot, term, "failed");
            history.record(event.with("id", id.as_str()).with("error", why.as_str()));
        }
        if let Some((id, pos)) = now.received.as_ref().filter(|_| now.received != told.received) {
            let event = Event::new(Kind::Snapshot, term, "received").with("id", id.as_str());
            history.record(Event { index: Some(pos.index), ..event });
        }
        told = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_that_fail_alike_in_a_row_are_one_event() {
        let failed = |id: &str, why: &str| (id.to_owned(), why.replace('@', id));
        let first = failed("1a-1", "@.tmp: no space");
        assert!(is_news(None, &first));
        assert!(!is_news(Some(&first), &failed("1b-1", "@.tmp: no space")));
        assert!(is_news(Some(&first), &failed("1b-1", "@.tmp: read-only")));
    }
}
