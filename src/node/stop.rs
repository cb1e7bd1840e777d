//! The way out: withdraw, drain, resign, flush, close; each step bounded (design 11).

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::config;
use crate::leadership::handover::{Asked, By};
use crate::leadership::policy::Intent;
use crate::leadership::task::operation_id;
use crate::node::build::{Running, SERVERS_WITHIN};
use crate::node::observe;
use crate::types::proto::{FitnessGrade, LeadershipCause};

/// The spans of what ended last are built so long. By eye: five times what the task gathers for.
const WRITTEN_WITHIN: Duration = Duration::from_millis(100);
/// What is recorded but not durable. By eye: many syncs.
const RECORDED_WITHIN: Duration = Duration::from_millis(200);
/// And exported, while the store closes (design 11).
const EXPORTED_WITHIN: Duration = Duration::from_millis(500);

/// What a stop may take beside its two waits (design 11).
const REST_WITHIN: Duration = Duration::from_secs(1);

/// What a stop takes at most, unless the disk hangs.
pub(super) fn within(settings: &config::Settings) -> Duration {
    settings.raft.shutdown_timeout + settings.raft.resign_timeout + REST_WITHIN
}

/// Stops a node. Durable on return: every acknowledged block is on this disk.
pub(super) async fn stop(mut running: Running) {
    let raft = &running.settings.raft;
    let started = Instant::now();
    let raft_shutdown = raft.shutdown_timeout;
    // One deadline for both waits: for the answers, and for what this node appended.
    let drain_until = started + raft.shutdown_timeout;
    let led_to = running.raft.is_leader().then(|| running.raft.status().positions.last);
    // First of all nothing new is taken: the next leader must never find a second producer.
    running.leadership.set_intent(Intent::Stop);
    if timeout_at(drain_until, running.proposals.drained()).await.is_err() {
        tracing::warn!(in_flight = running.proposals.in_flight(), "stopping with proposals unanswered");
    }
    let asked = Asked {
        to: None,
        within: raft.resign_timeout,
        // Who merely would rather not takes over at once; left alone it would wait for a last resort.
        accepts: FitnessGrade::Unwilling,
        cause: LeadershipCause::Shutdown,
        operation_id: operation_id(),
        reason: None,
        by: By::Node,
        intent: Intent::Stop,
    };
    match timeout(raft.resign_timeout, running.leadership.hand_over(asked)).await {
        Ok(Ok(done)) => tracing::info!(to = done.to, outcome = ?done.outcome, "resigned"),
        Ok(Err(refused)) => tracing::info!(%refused, "stopping without a hand-over"),
        Err(_) => tracing::warn!("stopping though a hand-over is under way"),
    }
    if let Some(last) = led_to {
        let poll = (raft.shutdown_timeout / 4).min(Duration::from_millis(50));
        while running.raft.status().positions.applied < last && Instant::now() < drain_until {
            sleep(poll).await;
        }
        let applied = running.raft.status().positions.applied;
        if applied < last {
            tracing::warn!(applied, last, "stopping before everything this leader appended is applied");
        }
    }
    // Before the ports close: every subscriber is told that this is the end.
    running.feed.stop();
    running.serving.cancel();
    running.servers.drain(SERVERS_WITHIN).await;
    // A store that failed may never let its last apply return.
    if timeout(raft_shutdown, running.raft.core().shutdown()).await.is_err() {
        tracing::warn!("raft did not stop in time");
    }
    observe::record_stop(&running.audit, &running.raft, started.elapsed());
    if !running.audit.flush(RECORDED_WITHIN).await {
        tracing::warn!("stopping with records unwritten: the disk is full or hangs");
    }
    running.instants.finish(WRITTEN_WITHIN).await;
    running.tasks.stop().await;
    let tracer = running.instants.tracer().clone();
    let exported = tokio::task::spawn_blocking(move || tracer.shut_down(EXPORTED_WITHIN));
    let (_, exported) = tokio::join!(running.close(), exported);
    if exported.is_err() {
        tracing::error!("the exporter of traces panicked");
    }
    tracing::info!(took_ms = started.elapsed().as_millis() as u64, "stopped");
}
