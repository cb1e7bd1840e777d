//! Who leads: by what the endpoints say, and by what the leader says of itself.

use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use serde_json::Value;
use tokio::time::Instant;

use crate::client::cluster::{Cluster, ClusterError, Target, halfway};
use crate::client::endpoint::Endpoint;
use crate::client::rpc::{CallError, Reply};
use crate::client::wire::Leader;
use crate::types::NodeId;

/// The next endpoint is asked when the one before it has not answered by then: some round trips on a wide network.
const STAGGER: Duration = Duration::from_millis(150);
/// For a leader with a younger fence, once one is ready. By eye: a round trip of a near network, and less than an
/// election takes.
const READY_LINGER: Duration = Duration::from_millis(20);

/// A leader that may produce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReadyLeader {
    pub(crate) endpoint: Endpoint,
    pub(crate) node_id: NodeId,
    pub(crate) fence: u64,
}

/// One that is not ready does not count where another one is known: it may be cut off, and not know it.
pub(super) fn is_known(leader: &Leader) -> bool {
    leader.leader_id.is_some() && !is_unready(leader)
}

fn is_unready(leader: &Leader) -> bool {
    leader.is_self && leader.ready == Some(false)
}

impl Cluster {
    /// The leader that may produce at this moment: it says itself that it is ready, and gives its fence.
    /// Asks all given endpoints, and those that they name; waits for none of them once one is ready.
    pub(crate) async fn ready_leader(&self, end: Instant) -> Option<ReadyLeader> {
        let mut known = self.endpoints.clone();
        let mut asked: FuturesUnordered<_> = known.iter().map(|e| self.ask_leader(e.clone(), end)).collect();
        let mut found: Option<ReadyLeader> = None;
        let mut wait_until = end;
        while let Ok(Some(answer)) = tokio::time::timeout_at(wait_until, asked.next()).await {
            let Ok((endpoint, leader)) = answer else { continue };
            match ready(&endpoint, &leader) {
                // Two may think so while one of them is cut off: the younger term is the one that counts.
                Some(ready) => {
                    wait_until = wait_until.min(Instant::now() + READY_LINGER);
                    if found.as_ref().is_none_or(|f| f.fence < ready.fence) {
                        found = Some(ready);
                    }
                }
                None => {
                    let named = leader.leader_api.and_then(|a| a.parse::<Endpoint>().ok());
                    if let Some(named) = named.filter(|n| !known.contains(n)) {
                        asked.push(self.ask_leader(named.clone(), end));
                        known.push(named);
                    }
                }
            }
        }
        found
    }

    /// What the leader says of itself; where it cannot be asked, what another one knows of it.
    pub(crate) async fn leader(&self, params: &Value) -> Result<Reply, ClusterError> {
        const METHOD: &str = "raft_leader";
        let end = Instant::now() + self.timeout;
        let half = halfway(end);
        if let Ok(leader) = self.find(Target::Leader, half).await
            && let Ok(reply) = self.call_at(&leader, METHOD, params, half).await
        {
            return Ok(reply);
        }
        let mut search = self.search(halfway(end), is_known).await;
        let endpoint = match search.leaderless.pop() {
            Some(leaderless) if search.found.is_none() && search.unready.is_none() => leaderless,
            _ => search.any()?,
        };
        self.call_at(&endpoint, METHOD, params, end).await.map_err(ClusterError::Look)
    }

    /// Asks the endpoints whom they take for the leader, in the order given, until one's answer is enough.
    pub(super) async fn search(&self, until: Instant, is_enough: fn(&Leader) -> bool) -> Search {
        let left = until.saturating_duration_since(Instant::now());
        // However little time there is, each of them is asked within it.
        let stagger = STAGGER.min(left / (self.endpoints.len() as u32 + 1));
        let mut asked = FuturesUnordered::new();
        let mut next = self.endpoints.iter();
        let mut search = Search { hint: self.hint, ..Default::default() };
        loop {
            if let Some(endpoint) = next.next() {
                asked.push(self.ask_leader(endpoint.clone(), until));
            }
            let is_last = next.len() == 0;
            let answer = match is_last {
                // None takes longer than `until`.
                true => asked.next().await,
                false => tokio::time::timeout(stagger, asked.next()).await.unwrap_or_default(),
            };
            match answer {
                Some(Ok((endpoint, leader))) if is_enough(&leader) => {
                    search.found = Some((endpoint, leader));
                    return search;
                }
                Some(Ok((endpoint, leader))) if is_unready(&leader) => {
                    search.unready.get_or_insert((endpoint, leader));
                }
                Some(Ok((endpoint, _))) => search.leaderless.push(endpoint),
                Some(Err(e)) => {
                    search.tried.push(e.to_string());
                    if e.rpc().is_some() && search.faulty.is_none() {
                        search.faulty = Some(e);
                    }
                }
                None if is_last => return search,
                None => {}
            }
        }
    }
}

/// What the endpoints said when they were asked whom they take for the leader.
#[derive(Default)]
pub(super) struct Search {
    /// The first answer that was enough.
    found: Option<(Endpoint, Leader)>,
    /// Leads, and is not ready.
    unready: Option<(Endpoint, Leader)>,
    /// Those that answered, and not enough.
    leaderless: Vec<Endpoint>,
    /// The first one that answered with an error of its own.
    faulty: Option<CallError>,
    /// Why the others did not answer, in words.
    tried: Vec<String>,
    hint: &'static str,
}

impl Search {
    pub(super) fn any(self) -> Result<Endpoint, ClusterError> {
        match (self.found.or(self.unready), self.faulty) {
            (Some((endpoint, _)), _) => Ok(endpoint),
            // It answers, so it is there; whatever else is wrong the call itself will tell.
            (None, Some(CallError::Rpc { endpoint, .. })) => Ok(endpoint),
            (None, Some(CallError::Http(_) | CallError::Garbled { .. }) | None) => {
                Err(ClusterError::NobodyAnswers { tried: self.tried, hint: self.hint })
            }
        }
    }

    pub(super) fn leader(self) -> Result<(Endpoint, Leader), ClusterError> {
        match (self.found.or(self.unready), self.faulty) {
            (Some(found), _) => Ok(found),
            (None, _) if !self.leaderless.is_empty() => {
                Err(ClusterError::NoLeader { asked: self.leaderless, silent: self.tried })
            }
            (None, Some(faulty)) => Err(ClusterError::Look(faulty)),
            (None, None) => Err(ClusterError::NobodyAnswers { tried: self.tried, hint: self.hint }),
        }
    }
}

fn ready(endpoint: &Endpoint, leader: &Leader) -> Option<ReadyLeader> {
    if !leader.is_self || leader.ready != Some(true) {
        return None;
    }
    Some(ReadyLeader { endpoint: endpoint.clone(), node_id: leader.leader_id?, fence: leader.fence? })
}
