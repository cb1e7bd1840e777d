//! The nodes of one cluster, and which of them a call belongs to.
//!
//! Takes the first endpoint that answers, learns the others from it, sends leader calls to the leader
//! and follows `notLeader` once. Never sends a call that changes something to two nodes at a time.

use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use serde_json::Value;
use tokio::time::Instant;

use crate::client::endpoint::Endpoint;
use crate::client::http::{Http, HttpError};
use crate::client::rpc::{self, CallError, Reply};
use crate::client::wire::{Leader, Members, Status};
use crate::types::NodeId;
use crate::types::error::Certainty;

/// The next endpoint is asked when the one before it has not answered by then: some round trips on a wide network.
const STAGGER: Duration = Duration::from_millis(150);

/// What only the leader does.
const LEADER_ONLY: [&str; 8] = [
    "block_propose",
    "raft_addLearner",
    "raft_configure",
    "raft_demote",
    "raft_promote",
    "raft_removeMember",
    "raft_transferLeader",
    "raft_updateMember",
];

pub(crate) fn is_leader_only(method: &str) -> bool {
    LEADER_ONLY.contains(&method)
}

/// Which node a call belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Any one: the first that answers.
    Any,
    Leader,
    Node(NodeId),
}

/// Why a call to the cluster has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error("no endpoint answers: {}", tried.join("; "))]
    NobodyAnswers { tried: Vec<String> },
    #[error("no node {node_id} among {}{}", known.join(", "), and_silent(silent))]
    NoSuchNode { node_id: NodeId, known: Vec<String>, silent: Vec<String> },
    #[error("node {node_id} does not answer: {}", silent.join("; "))]
    NodeSilent { node_id: NodeId, silent: Vec<String> },
    /// Of a member that was added without one.
    #[error("the API address of node {node_id} is unknown: {}{}", set_api(*node_id), and_silent(silent))]
    NoApi { node_id: NodeId, silent: Vec<String> },
    #[error("node {node_id} leads, and its API address is unknown: {}{}", set_api(*node_id), and_silent(silent))]
    LeaderHasNoApi { node_id: NodeId, silent: Vec<String> },
    #[error("no leader is known to {asked}")]
    NoLeader { asked: Endpoint },
    /// Of a question that changes nothing: the call itself was not sent.
    #[error("{0}")]
    Look(CallError),
    #[error("{0}")]
    Call(#[from] CallError),
}

fn set_api(node_id: NodeId) -> String {
    format!("name it in --endpoints, and set it with `ctl members update {node_id} --api HOST:PORT`")
}

fn and_silent(silent: &[String]) -> String {
    if silent.is_empty() { String::new() } else { format!("; could not ask {}", silent.join("; ")) }
}

impl ClusterError {
    pub(crate) fn certainty(&self) -> Certainty {
        match self {
            Self::NobodyAnswers { .. }
            | Self::NoSuchNode { .. }
            | Self::NodeSilent { .. }
            | Self::NoApi { .. }
            | Self::LeaderHasNoApi { .. }
            | Self::NoLeader { .. }
            | Self::Look(_) => Certainty::Refused,
            Self::Call(e) => e.certainty(),
        }
    }

    /// Of a node that was looked for because it leads.
    fn of_leader(self) -> Self {
        match self {
            Self::NoApi { node_id, silent } => Self::LeaderHasNoApi { node_id, silent },
            other => other,
        }
    }
}

/// The endpoints somebody named and a connection pool. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cluster {
    http: Http,
    endpoints: Vec<Endpoint>,
    /// Bound of one call, finding its node included.
    timeout: Duration,
}

impl Cluster {
    /// `endpoints` holds one at least.
    pub(crate) fn new(http: Http, endpoints: Vec<Endpoint>, timeout: Duration) -> Self {
        assert!(!endpoints.is_empty(), "a cluster without endpoints");
        Self { http, endpoints, timeout }
    }

    pub(crate) fn http(&self) -> &Http {
        &self.http
    }

    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Finds the node, calls it, and asks once more where it says that another one leads.
    pub(crate) async fn call(
        &self,
        target: Target,
        method: &str,
        params: &Value,
    ) -> Result<Reply, ClusterError> {
        let end = Instant::now() + self.timeout;
        let first = self.find(target, end).await?;
        let refused = match self.call_at(&first, method, params, end).await {
            Err(e) if target != Target::Leader || e.rpc().is_none() => return Err(e.into()),
            Err(e) => e,
            Ok(reply) => return Ok(reply),
        };
        let Some((leader_id, leader_api)) = refused.rpc().and_then(rpc::RpcError::leader) else {
            return Err(refused.into());
        };
        match self.locate(leader_id, leader_api, end).await.map_err(ClusterError::of_leader) {
            Ok(second) => Ok(self.call_at(&second, method, params, end).await?),
            Err(e @ ClusterError::LeaderHasNoApi { .. }) => Err(e),
            Err(_) => Err(refused.into()),
        }
    }

    /// A call without params that changes nothing: no failure of it is unknown.
    pub(crate) async fn read(&self, target: Target, method: &str) -> Result<Reply, ClusterError> {
        self.call(target, method, &Value::Null).await.map_err(|e| match e {
            ClusterError::Call(e) => ClusterError::Look(e),
            e => e,
        })
    }

    /// As the first endpoint that answers knows them.
    pub(crate) async fn members(&self) -> Result<Members, ClusterError> {
        self.read(Target::Any, "raft_members").await?.parse().map_err(ClusterError::Look)
    }

    /// One call to one node, until `end`; nothing is sent once that is over.
    pub(crate) async fn call_at(
        &self,
        endpoint: &Endpoint,
        method: &str,
        params: &Value,
        end: Instant,
    ) -> Result<Reply, CallError> {
        let within = end.saturating_duration_since(Instant::now());
        if within.is_zero() {
            let why = "no time was left to ask it".into();
            return Err(HttpError::NotSent { endpoint: endpoint.clone(), why }.into());
        }
        rpc::call(&self.http, endpoint, method, params, within).await
    }

    /// Where the target's API is. Leaves some of the time until `end` for the call itself.
    pub(crate) async fn find(&self, target: Target, end: Instant) -> Result<Endpoint, ClusterError> {
        match target {
            Target::Any => Ok(self.first_answer(halfway(end)).await?.0),
            Target::Leader => {
                let (asked, leader) = self.first_answer(halfway(end)).await?;
                if leader.is_self {
                    return Ok(asked);
                }
                let Some(leader_id) = leader.leader_id else { return Err(ClusterError::NoLeader { asked }) };
                let api = leader.leader_api.and_then(|a| a.parse().ok());
                self.locate(leader_id, api, end).await.map_err(ClusterError::of_leader)
            }
            Target::Node(node_id) => self.locate(node_id, None, end).await,
        }
    }

    /// The first endpoint, in the order given, that answers at all, and whom it takes for the leader.
    async fn first_answer(&self, until: Instant) -> Result<(Endpoint, Leader), ClusterError> {
        let left = until.saturating_duration_since(Instant::now());
        // However little time there is, each of them is asked within it.
        let stagger = STAGGER.min(left / (self.endpoints.len() as u32 + 1));
        let mut asked = FuturesUnordered::new();
        let mut next = self.endpoints.iter();
        let mut tried = Vec::new();
        loop {
            if let Some(endpoint) = next.next() {
                asked.push(self.ask_leader(endpoint, until));
            }
            let is_last = next.len() == 0;
            let answer = match is_last {
                // None takes longer than `until`.
                true => asked.next().await,
                false => tokio::time::timeout(stagger, asked.next()).await.unwrap_or_default(),
            };
            match answer {
                Some(Ok(found)) => return Ok(found),
                Some(Err(e)) => tried.push(e.to_string()),
                None if is_last => return Err(ClusterError::NobodyAnswers { tried }),
                None => {}
            }
        }
    }

    async fn ask_leader(&self, endpoint: &Endpoint, end: Instant) -> Result<(Endpoint, Leader), CallError> {
        let leader = match self.call_at(endpoint, "raft_leader", &Value::Null, end).await {
            Ok(reply) => reply.parse()?,
            // It answers, so it is there; whatever else is wrong the call itself will tell.
            Err(CallError::Rpc { .. }) => Leader::default(),
            Err(e) => return Err(e),
        };
        Ok((endpoint.clone(), leader))
    }

    /// The endpoint of a node: the hint when something answers there, else the given endpoint that says it is
    /// that node, else the address in the membership. Given endpoints may be the only ones that lead there
    /// from here, when the nodes know each other by names of their own network.
    async fn locate(
        &self,
        node_id: NodeId,
        hint: Option<Endpoint>,
        end: Instant,
    ) -> Result<Endpoint, ClusterError> {
        let until = halfway(end);
        if let Some(hint) = hint
            && self.is_node(&hint, node_id, halfway(until)).await
        {
            return Ok(hint);
        }
        let (mut known, mut tried, mut hung) = (Vec::new(), Vec::new(), Vec::new());
        let mut answered = None;
        let mut asked: FuturesUnordered<_> =
            self.endpoints.iter().map(|e| async move { (e, self.status_at(e, until).await) }).collect();
        while let Some((endpoint, status)) = asked.next().await {
            match status {
                Ok(status) if status.node_id == node_id => return Ok(endpoint.clone()),
                Ok(status) => {
                    known.push(format!("{} ({endpoint})", status.node_id));
                    answered = Some(endpoint);
                }
                Err(e) => {
                    if let ClusterError::Look(CallError::Http(_)) = e {
                        hung.push(endpoint);
                    }
                    tried.push(e.to_string());
                }
            }
        }
        let Some(asked) = answered else { return Err(ClusterError::NobodyAnswers { tried }) };
        let answer = self.call_at(asked, "raft_members", &Value::Null, halfway(end)).await;
        let members = answer.and_then(|a| a.parse::<Members>()).map_err(ClusterError::Look)?;
        let member = members.all().find(|m| m.node_id == node_id);
        let Some(member) = member else {
            known.sort();
            return Err(ClusterError::NoSuchNode { node_id, known, silent: tried });
        };
        match member.api_addr.as_ref().and_then(|api| api.parse().ok()) {
            Some(api) if hung.contains(&&api) => Err(ClusterError::NodeSilent { node_id, silent: tried }),
            Some(api) => Ok(api),
            None => Err(ClusterError::NoApi { node_id, silent: tried }),
        }
    }

    async fn is_node(&self, endpoint: &Endpoint, node_id: NodeId, end: Instant) -> bool {
        self.status_at(endpoint, end).await.is_ok_and(|s| s.node_id == node_id)
    }

    pub(crate) async fn status_at(&self, endpoint: &Endpoint, end: Instant) -> Result<Status, ClusterError> {
        let answer = self.call_at(endpoint, "raft_status", &Value::Null, end).await;
        answer.and_then(|a| a.parse()).map_err(ClusterError::Look)
    }

    /// The leader that may produce at this moment: it says itself that it is ready, and gives its fence.
    /// Asks all given endpoints, and the one that they name.
    pub(crate) async fn ready_leader(&self, end: Instant) -> Option<ReadyLeader> {
        let mut asked: FuturesUnordered<_> =
            self.endpoints.iter().map(|e| async move { self.ask_leader(e, end).await }).collect();
        let mut found: Option<ReadyLeader> = None;
        let mut named = Vec::new();
        while let Some(answer) = asked.next().await {
            let Ok((endpoint, leader)) = answer else { continue };
            match ready(&endpoint, &leader) {
                // Two may think so while one of them is cut off: the younger term is the one that counts.
                Some(ready) if found.as_ref().is_none_or(|f| f.fence < ready.fence) => found = Some(ready),
                Some(_) => {}
                None => named.extend(leader.leader_api.and_then(|a| a.parse::<Endpoint>().ok())),
            }
        }
        if found.is_some() {
            return found;
        }
        named.retain(|n| !self.endpoints.contains(n));
        let outside = named.first()?;
        let (endpoint, leader) = self.ask_leader(outside, end).await.ok()?;
        ready(&endpoint, &leader)
    }
}

/// What looks for a node may take no longer than that of the time until `end`.
fn halfway(end: Instant) -> Instant {
    let now = Instant::now();
    now + end.saturating_duration_since(now) / 2
}

/// A leader that may produce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReadyLeader {
    pub(crate) endpoint: Endpoint,
    pub(crate) node_id: NodeId,
    pub(crate) fence: u64,
}

fn ready(endpoint: &Endpoint, leader: &Leader) -> Option<ReadyLeader> {
    if !leader.is_self || leader.ready != Some(true) {
        return None;
    }
    Some(ReadyLeader { endpoint: endpoint.clone(), node_id: leader.leader_id?, fence: leader.fence? })
}

#[cfg(test)]
mod tests;
