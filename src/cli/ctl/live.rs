//! `watch` on a terminal: the view of `dev`, over nodes that somebody else runs.

use std::time::{Duration, Instant};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use crate::cli::ctl::command::Watch;
use crate::cli::ctl::{Context, plan};
use crate::cli::dev::board::Board;
use crate::cli::dev::feed::{self, Feeds};
use crate::cli::dev::screen::{Facts, Screen};
use crate::cli::dev::watch::{self, Look};
use crate::cli::exit::{self, Failure};
use crate::cli::out;
use crate::client::cluster::{Cluster, ClusterError, Target};
use crate::client::endpoint::Endpoint;
use crate::client::wire::{Members, Status};
use crate::types::NodeId;

/// Between two screens: quick enough to follow the looks.
const DRAW_EVERY: Duration = Duration::from_millis(500);

pub(crate) fn is_wanted(cx: &Context, asked: &Watch) -> bool {
    out::is_terminal() && !asked.lines && asked.from_id.is_none() && !cx.flags.json && !cx.flags.curl
}

/// Until somebody stops it.
pub(crate) async fn run(cx: &Context) -> Result<u8, Failure> {
    let mut known = learn(cx).await?;
    let no_signal = |e: std::io::Error| Failure::failed(format!("cannot listen for signals: {e}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signal)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signal)?;
    let screen = Screen::open()?;
    loop {
        let watched = tokio::select! {
            watched = follow(cx, known, &screen) => watched,
            _ = interrupt.recv() => return Ok(exit::DONE),
            _ = terminate.recv() => return Ok(exit::DONE),
        };
        known = watched?;
    }
}

/// Who belongs to the cluster, and where each one's API is.
struct Known {
    cluster_id: String,
    nodes: Vec<(NodeId, String)>,
}

async fn learn(cx: &Context) -> Result<Known, Failure> {
    let cluster = cx.cluster(plan::PATIENCE);
    let failed = |e: ClusterError| Failure::failed(e.to_string());
    let unreadable = |e: serde_json::Error| Failure::failed(format!("the answer cannot be read: {e}"));
    let no_params = serde_json::Value::Null;
    let status = cluster.call(Target::Any, "raft_status", &no_params).await.map_err(failed)?;
    let status: Status = serde_json::from_str(status.raw.get()).map_err(unreadable)?;
    let members = cluster.call(Target::Any, "raft_members", &no_params).await.map_err(failed)?;
    let members: Members = serde_json::from_str(members.raw.get()).map_err(unreadable)?;
    let mut nodes: Vec<(NodeId, String)> = members
        .all()
        .filter(|m| m.api_addr.parse::<Endpoint>().is_ok())
        .map(|m| (m.node_id, m.api_addr.clone()))
        .collect();
    nodes.sort();
    if nodes.is_empty() {
        return Err(Failure::failed("no member has an API address"));
    }
    Ok(Known { cluster_id: status.cluster_id, nodes })
}

/// Shows these nodes until others belong to the cluster.
async fn follow(cx: &Context, known: Known, screen: &Screen) -> Result<Known, Failure> {
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let apis: Vec<String> = known.nodes.iter().map(|(_, api)| api.clone()).collect();
    let endpoints = apis.iter().map(|a| a.parse().expect("looked at when it was learned")).collect();
    let asking = cx.cluster(plan::PATIENCE);
    let cluster = Cluster::new(asking.http().clone(), endpoints, asking.timeout());
    let (looks_tx, mut looks) = mpsc::channel::<Look>(1);
    let (feeds_tx, mut feeds) = mpsc::channel::<Feeds>(1);
    tokio::spawn(watch::run(cluster.clone(), watch::ELSEWHERE, looks_tx, stop.clone()));
    tokio::spawn(feed::run(cluster, feeds_tx, stop.clone()));
    let ids: Vec<NodeId> = known.nodes.iter().map(|(id, _)| *id).collect();
    let facts = Facts { cluster_id: known.cluster_id, apis, demo: None };
    let mut board = Board::new(known.nodes);
    let mut draw = tokio::time::interval(DRAW_EVERY);
    loop {
        tokio::select! {
            Some(look) = looks.recv() => {
                let members = members_of(&look);
                board.look(look);
                board.see_head(Instant::now());
                if members.is_some_and(|m| m != ids)
                    && let Ok(other) = learn(cx).await
                    && other.nodes.iter().map(|(id, _)| *id).ne(ids.iter().copied())
                {
                    return Ok(other);
                }
            }
            Some(feeds) = feeds.recv() => board.feeds(feeds),
            _ = draw.tick() => screen.draw(&facts, &board)?,
        }
    }
}

/// By the newest membership that any node tells.
fn members_of(look: &Look) -> Option<Vec<NodeId>> {
    let newest = look.iter().flatten().max_by_key(|s| (s.membership.version, s.term))?;
    let mut ids = [&newest.membership.voters[..], &newest.membership.learners[..]].concat();
    ids.sort_unstable();
    Some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::wire::Membership;

    #[test]
    fn the_newest_membership_counts() {
        let status = |version, voters: &[NodeId], learners: &[NodeId]| {
            let membership =
                Membership { version, voters: voters.into(), learners: learners.into(), joint: false };
            Some(Status { membership, ..Default::default() })
        };
        let look = vec![status(3, &[1, 2], &[]), None, status(9, &[1, 3], &[2])];
        assert_eq!(members_of(&look), Some(vec![1, 2, 3]));
        assert_eq!(members_of(&vec![None]), None);
    }
}
