//! What the nodes' metrics say of their feeds of applied blocks.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::client::cluster::Cluster;
use crate::client::endpoint::Endpoint;
use crate::client::http::{Ask, Http};

/// Between two looks: a scrape costs more than a status, and this changes less.
const EVERY: Duration = Duration::from_secs(1);
/// A node that takes longer has no figures this time.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The feed of one node, over all its subscribers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Feed {
    pub(crate) subscribers: u64,
    /// Blocks that wait for the one with the most.
    pub(crate) depth: u64,
    /// Blocks that full buffers cost.
    pub(crate) dropped: u64,
}

/// One for each endpoint of the cluster, in their order; `None` where nothing answers.
pub(crate) type Feeds = Vec<Option<Feed>>;

/// Until cancelled.
pub(crate) async fn run(cluster: Cluster, feeds: mpsc::Sender<Feeds>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let asked = cluster.endpoints().iter().map(|endpoint| scrape(cluster.http(), endpoint));
        if feeds.send(futures::future::join_all(asked).await).await.is_err() {
            return;
        }
    }
}

async fn scrape(http: &Http, endpoint: &Endpoint) -> Option<Feed> {
    let answer = http.ask(endpoint, Ask::get("/metrics"), TIMEOUT).await.ok()?;
    answer.status.is_success().then(|| parse(&String::from_utf8_lossy(&answer.body)))
}

/// Out of Prometheus text.
fn parse(text: &str) -> Feed {
    let mut feed = Feed::default();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("blockraft_raft_apply_") else { continue };
        let Some((series, value)) = rest.rsplit_once(' ') else { continue };
        // A gauge or a counter of ours is a whole number, whatever form it is written in.
        let value = value.parse::<f64>().unwrap_or(0.0) as u64;
        let name = series.split('{').next().unwrap_or(series);
        match name {
            "subscribers" => feed.subscribers += value,
            "queue_depth" => feed.depth = feed.depth.max(value),
            "messages_dropped_total" => feed.dropped += value,
            _ => {}
        }
    }
    feed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subscribers_of_all_labels_count() {
        let text = "# HELP blockraft_raft_apply_subscribers x\n\
                    blockraft_raft_apply_subscribers{subscriber=\"ws\"} 2\n\
                    blockraft_raft_apply_subscribers{subscriber=\"exec\"} 1.0\n\
                    blockraft_raft_apply_queue_depth{subscriber=\"ws\"} 4\n\
                    blockraft_raft_apply_queue_depth{subscriber=\"exec\"} 3\n\
                    blockraft_raft_apply_messages_total{subscriber=\"ws\"} 900\n\
                    blockraft_raft_apply_messages_dropped_total{subscriber=\"ws\",reason=\"full\"} 40\n\
                    blockraft_raft_apply_messages_dropped_total{subscriber=\"ws\",reason=\"closed\"} 1\n\
                    blockraft_raft_applied_index 7\n";
        assert_eq!(parse(text), Feed { subscribers: 3, depth: 4, dropped: 41 });
        assert_eq!(parse("nonsense"), Feed::default());
    }
}
