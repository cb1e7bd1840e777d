//! The demo producer: a steady rate of blocks under the fence of whoever leads.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::cli::blocks::Maker;
use crate::client::cluster::Cluster;
use crate::client::producer::{ConnectError, Outlook, Producer};
use crate::types::{Height, NodeId, Term};

/// Blocks that may wait for their answer; a demo needs no more to keep any rate it takes.
const IN_FLIGHT_MAX: usize = 256;
/// One attempt to find a leader; then the next one, so that stopping is quick.
const CONNECT: Duration = Duration::from_secs(1);
/// How long a stop waits for answers: far above what a block takes.
const DRAIN: Duration = Duration::from_millis(500);

/// What became of it, for the view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// A stream was opened.
    Connected { node_id: NodeId, fence: u64, n_again: usize },
    /// Blocks were acknowledged, the last one at this height.
    Acked { count: u64, height: Height, term: Term },
    /// The stream ended.
    Broken { why: String },
    /// Another producer's block stands where one of ours was to be.
    Contested { why: String, n_dropped: usize },
    /// The cluster takes no such blocks.
    Unfit { why: String, n_dropped: usize },
    /// Must never happen.
    Lost { why: String },
}

/// Produces until cancelled, then reads the answers that are still due.
pub(crate) async fn run(
    cluster: Cluster,
    rate: u32,
    size: usize,
    news: mpsc::Sender<News>,
    stop: CancellationToken,
) {
    let maker = Maker::new(size, true);
    let mut producer = Producer::new(cluster, Box::new(move |next| maker.block(next)));
    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
    // After a failover the demo goes on at its rate; it does not make up for what was missed.
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut outcomes = Vec::new();
    while !stop.is_cancelled() {
        if !producer.is_connected() {
            tokio::select! {
                connected = producer.connect(CONNECT) => match connected {
                    Ok(c) => {
                        let told = News::Connected { node_id: c.leader.node_id, fence: c.leader.fence, n_again: c.n_again };
                        tell(&news, told).await;
                    }
                    Err(ConnectError::NoReadyLeader(_)) => {}
                    Err(e @ ConnectError::BlockLost { .. }) => {
                        tell(&news, News::Lost { why: e.to_string() }).await;
                        tokio::time::sleep(CONNECT).await;
                    }
                },
                () = stop.cancelled() => {}
            }
            continue;
        }
        let has_room = producer.in_flight() < IN_FLIGHT_MAX;
        let stepped = tokio::select! {
            stepped = producer.step(&mut outcomes) => stepped,
            _ = tick.tick(), if has_room => {
                producer.offer(Instant::now());
                Ok(())
            }
            () = stop.cancelled() => Ok(()),
        };
        if let Some(last) = outcomes.last() {
            let told = News::Acked { count: outcomes.len() as u64, height: last.height, term: last.term };
            tell(&news, told).await;
            outcomes.clear();
        }
        match stepped {
            Ok(()) => {}
            Err(b) => {
                let told = match b.outlook {
                    Outlook::Again => News::Broken { why: b.why },
                    Outlook::Contested => News::Contested { why: b.why, n_dropped: b.n_dropped },
                    Outlook::Unfit => News::Unfit { why: b.why, n_dropped: b.n_dropped },
                };
                tell(&news, told).await;
                if b.outlook != Outlook::Again {
                    // Two producers on one chain would else only take turns, and settings seldom change.
                    tokio::time::sleep(CONNECT).await;
                }
            }
        }
    }
    drain(producer, &news).await;
}

async fn drain(mut producer: Producer, news: &mpsc::Sender<News>) {
    let end = Instant::now() + DRAIN;
    let mut outcomes = Vec::new();
    while producer.is_connected() && 0 < producer.in_flight() {
        match tokio::time::timeout_at(end, producer.step(&mut outcomes)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => break,
        }
    }
    if let Some(last) = outcomes.last() {
        tell(news, News::Acked { count: outcomes.len() as u64, height: last.height, term: last.term }).await;
    }
    producer.close(end.saturating_duration_since(Instant::now())).await;
}

async fn tell(news: &mpsc::Sender<News>, told: News) {
    // Nobody listens once dev has stopped.
    let _ = news.send(told).await;
}
