//! `watch` on a terminal: the view of `dev`, over nodes that somebody else runs.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::cli::ctl::command::Watch;
use crate::cli::ctl::{Context, plan};
use crate::cli::dev::board::Board;
use crate::cli::dev::feed::{self, Feeds};
use crate::cli::dev::screen::Facts;
use crate::cli::dev::terminal::Screen;
use crate::cli::dev::watch::{self, Look};
use crate::cli::exit::{self, Failure};
use crate::cli::out;
use crate::cli::signals::{Ends, Suspends};
use crate::client::cluster::Cluster;
use crate::client::endpoint::Endpoint;
use crate::client::wire::{Member, Members, Status};
use crate::types::NodeId;

/// Between two screens: quick enough to follow the looks.
const DRAW_EVERY: Duration = Duration::from_millis(500);
/// For the given endpoints to say which nodes they are: the screen stands still meanwhile when one hangs.
const LEARN_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) fn is_wanted(cx: &Context, asked: &Watch) -> bool {
    out::is_terminal() && !asked.lines && asked.from_id.is_none() && !cx.flags.json && !cx.flags.curl
}

/// Until somebody stops it.
pub(crate) async fn run(cx: &Context) -> Result<u8, Failure> {
    let mut known = learn(cx).await?;
    let mut ends = Ends::listen()?;
    let mut suspends = Suspends::listen()?;
    let screen = Screen::open()?;
    loop {
        let watched = tokio::select! {
            watched = follow(cx, known, &screen, &mut suspends) => watched,
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
    let members = cluster.members().await?;
    let end = tokio::time::Instant::now() + LEARN_TIMEOUT;
    let cluster = &cluster;
    let asked =
        cluster.endpoints().iter().map(|e| async move { Some((e, cluster.status_at(e, end).await.ok()?)) });
    let told: Vec<(&Endpoint, Status)> =
        futures::future::join_all(asked).await.into_iter().flatten().collect();
    let newest = told.iter().max_by_key(|(_, s)| (!s.membership.voters.is_empty(), s.membership.version));
    let cluster_id = newest.map_or(String::new(), |(_, s)| s.cluster_id.clone());
    let nodes = apis(&members, &told, &cluster_id);
    if nodes.is_empty() {
        return Err(Failure::failed("no member's API address is known: name them in --endpoints"));
    }
    let mut members: Vec<NodeId> = members.all().map(|m| m.node_id).collect();
    members.sort_unstable();
    Ok(Known { cluster_id, members, nodes })
}

/// Where each member's API is: the given endpoint that says it is that node, since given ones may be the only ones that
/// lead there from here; else as its member record has it.
fn apis(members: &Members, told: &[(&Endpoint, Status)], cluster_id: &str) -> Vec<(NodeId, String)> {
    let given = |node_id| {
        let is_it = |s: &Status| s.node_id == node_id && s.cluster_id == cluster_id;
        told.iter().find(|(_, s)| is_it(s)).map(|(endpoint, _)| endpoint.to_string())
    };
    let advertised = |m: &Member| m.api_addr.clone().filter(|a| a.parse::<Endpoint>().is_ok());
    let mut nodes: Vec<(NodeId, String)> = members
        .all()
        .filter_map(|m| Some((m.node_id, given(m.node_id).or_else(|| advertised(m))?)))
        .collect();
    nodes.sort();
    nodes
}

/// Shows these nodes until others belong to the cluster.
async fn follow(
    cx: &Context,
    known: Known,
    screen: &Screen,
    suspends: &mut Suspends,
) -> Result<Known, Failure> {
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
    draw.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
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
            () = suspends.next() => screen.suspend()?,
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
    fn a_given_endpoint_is_used_for_the_node_that_it_is() {
        let member = |node_id, api: Option<&str>| Member {
            node_id,
            api_addr: api.map(String::from),
            ..Default::default()
        };
        let members = Members {
            voters: vec![member(1, Some("n1.internal:7400")), member(2, Some("n2.internal:7400"))],
            learners: vec![member(3, None), member(4, None)],
            ..Default::default()
        };
        let status = |node_id, cluster_id: &str| Status {
            node_id,
            cluster_id: cluster_id.into(),
            ..Default::default()
        };
        let given: Vec<Endpoint> =
            ["127.0.0.1:9", "127.0.0.1:8", "127.0.0.1:7"].map(|e| e.parse().expect("well-formed")).into();
        let told =
            [(&given[0], status(1, "other")), (&given[1], status(1, "ours")), (&given[2], status(3, "ours"))];
        let nodes = apis(&members, &told, "ours");
        let nodes: Vec<_> = nodes.iter().map(|(id, api)| (*id, api.as_str())).collect();
        assert_eq!(nodes, [(1, "127.0.0.1:8"), (2, "n2.internal:7400"), (3, "127.0.0.1:7")]);
    }

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
