//! `watch` on a terminal: the view of `dev`, over nodes that somebody else runs.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::cli::ctl::command::Watch;
use crate::cli::ctl::{Context, plan};
use crate::cli::dev::board::Board;
use crate::cli::dev::feed::{self, Feeds};
use crate::cli::dev::screen::{Facts, Screen};
use crate::cli::dev::watch::{self, Look};
use crate::cli::exit::{self, Failure};
use crate::cli::out;
use crate::cli::signals::Ends;
use crate::client::cluster::{Cluster, ClusterError, Target};
use crate::client::endpoint::Endpoint;
use crate::client::wire::{Member, Status};
use crate::types::NodeId;

/// Between two screens: quick enough to follow the looks.
const DRAW_EVERY: Duration = Duration::from_millis(500);

pub(crate) fn is_wanted(cx: &Context, asked: &Watch) -> bool {
    out::is_terminal() && !asked.lines && asked.from_id.is_none() && !cx.flags.json && !cx.flags.curl
}

/// Until somebody stops it.
pub(crate) async fn run(cx: &Context) -> Result<u8, Failure> {
    let mut known = learn(cx).await?;
    let mut ends = Ends::listen()?;
    let screen = Screen::open()?;
    loop {
        let watched = tokio::select! {
            watched = follow(cx, known, &screen) => watched,
            () = ends.next() => return Ok(exit::DONE),
        };
        known = watched?;
    }
}

/// Who belongs to the cluster, and where each one's API is.
struct Known {
    cluster_id: String,
    members: Vec<NodeId>,
    /// Those whose API is found.
    nodes: Vec<(NodeId, String)>,
}

async fn learn(cx: &Context) -> Result<Known, Failure> {
    let cluster = cx.cluster(plan::PATIENCE);
    let status = cluster.read(Target::Any, "raft_status").await?;
    let status: Status = status.parse().map_err(ClusterError::Look)?;
    let known = cluster.members().await?;
    let mut members: Vec<NodeId> = known.all().map(|m| m.node_id).collect();
    members.sort_unstable();
    let found = futures::future::join_all(known.all().map(|m| api_of(&cluster, m))).await;
    let mut nodes: Vec<(NodeId, String)> = found.into_iter().flatten().collect();
    nodes.sort();
    if nodes.is_empty() {
        return Err(Failure::failed("no member's API address is known: name them in --endpoints"));
    }
    Ok(Known { cluster_id: status.cluster_id, members, nodes })
}

/// As its member record has it, or the given endpoint that says it is that node.
async fn api_of(cluster: &Cluster, member: &Member) -> Option<(NodeId, String)> {
    if let Some(api) = member.api_addr.as_ref().filter(|a| a.parse::<Endpoint>().is_ok()) {
        return Some((member.node_id, api.clone()));
    }
    let end = tokio::time::Instant::now() + cluster.timeout();
    let found = cluster.find(Target::Node(member.node_id), end).await.ok()?;
    Some((member.node_id, found.to_string()))
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
    let facts = Facts { cluster_id: known.cluster_id, apis, demo: None };
    let mut board = Board::new(known.nodes);
    let mut draw = tokio::time::interval(DRAW_EVERY);
    loop {
        tokio::select! {
            Some(look) = looks.recv() => {
                let members = members_of(&look);
                board.look(look);
                board.see_head(Instant::now());
                if members.is_some_and(|m| m != known.members)
                    && let Ok(other) = learn(cx).await
                    && other.members != known.members
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
