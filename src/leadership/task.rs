//! Makes a won election into a leadership, and gives it up on request.

use std::time::{Duration, SystemTime};

use tokio::{sync::oneshot, time::Instant};

use crate::audit::history::History;
use crate::consensus::{Role, core::Stopped};
use crate::leadership::{
    handle::Handle,
    metrics::{Counters, reason},
    policy::Intent,
    record,
};
use crate::machine::{Command, Outcome, apply::settings_to_proto};
use crate::types::{NodeId, Term, proto, settings::ClusterSettings};

/// How often the commit index is remembered and the leader's silence noticed.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// Before a refused first proposal is made again: a leader's first 1–6 ms meet an expired lease
/// (safety rule 20).
const RETRY_AFTER: Duration = Duration::from_millis(2);

/// Watches the role until raft stops. `settings` are this node's own, for the first leader of all.
pub(crate) async fn run(
    handle: Handle,
    settings: ClusterSettings,
    counters: Counters,
    history: History,
) -> Result<(), Stopped> {
    let mut samples = tokio::time::interval(SAMPLE_EVERY);
    samples.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut changes = handle.raft().role_changes();
    let mut led: Option<Term> = None;
    let mut seen: Option<Term> = None;
    let mut counted = handle.reader().view().leadership.as_ref().map_or(0, |l| l.pos.term);
    // What was applied and not recorded before a crash is recorded now.
    let mut recorded = history.last_leadership().await;
    let mut known: Option<(Term, Option<NodeId>)> = None;
    loop {
        let is_sample = tokio::select! {
            _ = samples.tick() => true,
            changed = changes.next() => {
                changed?;
                false
            }
        };
        let status = handle.raft().status();
        if !status.is_running {
            return Err(Stopped("its core ended".into()));
        }
        if is_sample {
            handle.sample(&status);
            if status.is_started && status.leader_id.is_none() {
                counters.leaderless_seconds.inc_by(SAMPLE_EVERY.as_secs_f64());
            }
            recorded = record::leaderships(&handle, &history, recorded);
            counted = count_leaderships(&handle, &counters, counted);
        }
        if status.is_started {
            // Before the first look nothing is known that could have advanced.
            counters.terms_advanced.inc_by(status.term.saturating_sub(seen.unwrap_or(status.term)));
            seen = Some(status.term);
        }
        if status.is_started && known != Some((status.term, status.leader_id)) {
            known = Some((status.term, status.leader_id));
            tracing::info!(term = status.term, leader_id = status.leader_id, "leader changed");
        }
        if status.role == Role::Leader && led != Some(status.term) {
            led = Some(status.term);
            establish(&handle, status.term, &settings).await?;
        }
    }
}

/// Counts every leadership applied since `counted`, also those that came between two looks.
fn count_leaderships(handle: &Handle, counters: &Counters, counted: Term) -> Term {
    let newest = handle.reader().view().leadership.as_ref().map_or(0, |l| l.pos.term);
    if newest <= counted {
        return counted;
    }
    for leadership in handle.reader().leaderships(Some(counted + 1), usize::MAX) {
        counters.leader_changes.with_label_values(&[reason(leadership.cause)]).inc();
    }
    newest
}

/// Proposes this node's leadership of `term`, and the cluster's settings where none stand in the
/// log yet. Returns when both are applied or the term is over.
async fn establish(handle: &Handle, term: Term, settings: &ClusterSettings) -> Result<(), Stopped> {
    let leadership = proto::LeadershipCommand {
        node_id: handle.raft().node_id(),
        cause: handle.cause().into(),
        operation_id: String::new(),
        started_at_ms: unix_ms(),
    };
    if !write_in(handle, term, Command::leadership(&leadership)).await? {
        return Ok(());
    }
    if handle.reader().view().settings.index == 0 {
        let configure =
            proto::ConfigureCommand { settings: Some(settings_to_proto(settings)), expected_index: 0 };
        if !write_in(handle, term, Command::configure(&configure)).await? {
            return Ok(());
        }
    }
    tracing::info!(term, "ready: the fence is published");
    Ok(())
}

/// Writes a command as the leader of `term`; `false` when the term ended first.
async fn write_in(handle: &Handle, term: Term, command: Command) -> Result<bool, Stopped> {
    loop {
        let status = handle.raft().status();
        if status.term != term || status.role != Role::Leader {
            return Ok(false);
        }
        let (done_tx, done_rx) = oneshot::channel();
        handle
            .raft()
            .write(command.clone(), move |result| {
                // The receiver is awaited below; it is gone only when this task is.
                let _ = done_tx.send(result.map(|written| written.outcome));
            })
            .await?;
        match done_rx.await {
            Ok(Ok(Outcome::Led | Outcome::Configured(_) | Outcome::SettingsMoved(_))) => return Ok(true),
            Ok(Ok(outcome)) => unreachable!("a control command came to {outcome:?}"),
            Ok(Err(error)) => {
                tracing::debug!(term, %error, "the first proposal of a leadership is tried again")
            }
            Err(_) => return Ok(false),
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

/// How a resignation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resigned {
    /// This node did not lead.
    NotLeader,
    Transferred {
        to: NodeId,
    },
    /// Another node took over than the one that was asked.
    OtherLeads {
        leader_id: NodeId,
    },
    /// Nobody acknowledged lately with all entries: raft was not told.
    NoTarget,
    /// It may still happen.
    TimedOut,
}

/// Hands leadership to the best placed voter: the fence goes first, then what is in flight is
/// waited for, then the target is chosen, and only then raft is told (safety rule 13).
///
/// `drained` completes when no proposal is in flight.
pub(crate) async fn resign(
    handle: &Handle,
    intent: Intent,
    within: Duration,
    drained: impl Future<Output = ()>,
) -> Result<Resigned, Stopped> {
    let deadline = Instant::now() + within;
    let raft = handle.raft();
    if !raft.is_leader() {
        handle.set_intent(intent);
        return Ok(Resigned::NotLeader);
    }
    handle.set_intent(intent);
    let _ = tokio::time::timeout_at(deadline, drained).await;
    let term = raft.status().term;
    let mut target = None;
    // A follower needs one more heartbeat to show that it holds the last entry.
    while target.is_none() && Instant::now() < deadline && raft.is_leader() {
        target = raft.handover_target();
        if target.is_none() {
            if raft.status().peers.iter().flatten().all(|p| !p.is_reachable) {
                break;
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
    let Some(to) = target else {
        handle.set_intent(Intent::Lead);
        return Ok(if raft.is_leader() { Resigned::NoTarget } else { Resigned::NotLeader });
    };
    tracing::info!(term, to, "handing leadership over");
    raft.core().transfer_leader(to).await?;
    while Instant::now() < deadline {
        let status = raft.status();
        if let Some(leader_id) = status.leader_id.filter(|id| *id != raft.node_id() && term < status.term) {
            handle.set_intent(Intent::Lead);
            return Ok(if leader_id == to {
                Resigned::Transferred { to }
            } else {
                Resigned::OtherLeads { leader_id }
            });
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
    handle.set_intent(Intent::Lead);
    Ok(Resigned::TimedOut)
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
