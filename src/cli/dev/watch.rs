//! Looks at every node again and again.

use std::time::Duration;

use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::client::{cluster::Cluster, wire::Status};

/// How often, and how long an answer may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    every: Duration,
    timeout: Duration,
}

/// On this machine: a change is seen before a person notices that it took a while, and a node that takes longer hangs.
pub(crate) const HERE: Pace = Pace { every: Duration::from_millis(250), timeout: Duration::from_millis(500) };
/// Of nodes elsewhere, which do other things than being watched.
pub(crate) const ELSEWHERE: Pace = Pace { every: Duration::from_secs(1), timeout: Duration::from_secs(2) };

/// What each endpoint of the cluster says, in their order; `None` where none does.
pub(crate) type Look = Vec<Option<Status>>;

/// Until cancelled.
pub(crate) async fn run(cluster: Cluster, pace: Pace, looks: mpsc::Sender<Look>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(pace.every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        let end = Instant::now() + pace.timeout;
        let asked = cluster.endpoints().iter().map(|e| cluster.status_at(e, end));
        let look = futures::future::join_all(asked).await.into_iter().map(Result::ok).collect();
        if looks.send(look).await.is_err() {
            return;
        }
    }
}
