//! Looks at every node again and again.

use std::time::Duration;

use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::client::{cluster::Cluster, wire::Status};

/// Between two looks: a change is seen before a person notices that it took a while.
const EVERY: Duration = Duration::from_millis(250);
/// A node on this machine that takes longer hangs.
const TIMEOUT: Duration = Duration::from_millis(500);

/// What each endpoint of the cluster says, in their order; `None` where none does.
pub(crate) type Look = Vec<Option<Status>>;

/// Until cancelled.
pub(crate) async fn run(cluster: Cluster, looks: mpsc::Sender<Look>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        let end = Instant::now() + TIMEOUT;
        let asked = cluster.endpoints().iter().map(|e| cluster.status_at(e, end));
        let look = futures::future::join_all(asked).await.into_iter().map(Result::ok).collect();
        if looks.send(look).await.is_err() {
            return;
        }
    }
}
