//! The nodes of one cluster, and which of them a call belongs to.
//!
//! Takes the first endpoint that answers, learns the members from all that do, sends leader calls to the
//! leader and follows `notLeader` once. Never sends a call that changes something to two nodes at a time.

mod leader;

use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use serde_json::Value;
use tokio::time::Instant;

pub(crate) use crate::client::cluster::leader::ReadyLeader;
use crate::client::endpoint::Endpoint;
use crate::client::http::{Http, HttpError};
use crate::client::rpc::{self, CallError, Reply};
use crate::client::wire::{Leader, Members, Status};
use crate::types::NodeId;
use crate::types::error::Certainty;

/// For the other endpoints, once one has told who belongs to the cluster: one that hangs is not waited for. By eye:
/// some round trips on a wide network.
const MEMBERS_LINGER: Duration = Duration::from_millis(500);

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
    /// Any one that knows the newest membership: for what a node says of all the others.
    Informed,
    Leader,
    Node(NodeId),
}

/// Why a call to the cluster has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error("no endpoint answers: {}{hint}", tried.join("; "))]
    NobodyAnswers { tried: Vec<String>, hint: &'static str },
    #[error("no node {node_id} among {}{}", known.join(", "), and_silent(silent))]
    NoSuchNode { node_id: NodeId, known: Vec<String>, silent: Vec<String> },
    #[error("node {node_id} does not answer: {}", silent.join("; "))]
    NodeSilent { node_id: NodeId, silent: Vec<String> },
    /// Of a member that was added without one.
    #[error("the API address of node {node_id} is unknown: {}{}", set_api(*node_id), and_silent(silent))]
    NoApi { node_id: NodeId, silent: Vec<String> },
    #[error("node {node_id} leads, and its API address is unknown: {}{}", set_api(*node_id), and_silent(silent))]
    LeaderHasNoApi { node_id: NodeId, silent: Vec<String> },
    #[error("no leader is known to {}{}", list(asked), and_silent(silent))]
    NoLeader { asked: Vec<Endpoint>, silent: Vec<String> },
    /// Of a question that changes nothing: the call itself was not sent.
    #[error("{0}")]
    Look(CallError),
    #[error("{0}")]
    Call(#[from] CallError),
}

fn set_api(node_id: NodeId) -> String {
    format!("name it in --endpoints, and set it with `ctl members update {node_id} --api HOST:PORT`")
}

fn list(endpoints: &[Endpoint]) -> String {
    endpoints.iter().map(Endpoint::as_str).collect::<Vec<_>>().join(", ")
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
    /// What is added where no endpoint answers.
    hint: &'static str,
}

impl Cluster {
    /// `endpoints` holds one at least.
    pub(crate) fn new(http: Http, endpoints: Vec<Endpoint>, timeout: Duration) -> Self {
        assert!(!endpoints.is_empty(), "a cluster without endpoints");
        Self { http, endpoints, timeout, hint: "" }
    }

    pub(crate) fn with_hint(self, hint: &'static str) -> Self {
        Self { hint, ..self }
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

    /// The newest membership that any endpoint knows.
    pub(crate) async fn members(&self) -> Result<Members, ClusterError> {
        let endpoints: Vec<&Endpoint> = self.endpoints.iter().collect();
        Ok(self.newest_members(&endpoints, Instant::now() + self.timeout).await?.1)
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
            Target::Any => self.search(halfway(end), |_| true).await.any(),
            Target::Informed => {
                let endpoints: Vec<&Endpoint> = self.endpoints.iter().collect();
                match self.newest_members(&endpoints, halfway(end)).await {
                    Ok((endpoint, _)) => Ok(endpoint),
                    // It answers, so it is there; what is wrong the call itself will tell.
                    Err(ClusterError::Look(CallError::Rpc { endpoint, .. })) => Ok(endpoint),
                    Err(e) => Err(e),
                }
            }
            Target::Leader => {
                let (asked, leader) = self.search(halfway(end), leader::is_known).await.leader()?;
                let Some(leader_id) = leader.leader_id.filter(|_| !leader.is_self) else { return Ok(asked) };
                let api = leader.leader_api.and_then(|a| a.parse().ok());
                self.locate(leader_id, api, end).await.map_err(ClusterError::of_leader)
            }
            Target::Node(node_id) => self.locate(node_id, None, end).await,
        }
    }

    /// Of these endpoints: the newest membership that one knows, and which one. One that was wiped knows none, one
    /// that was cut off or removed an older one.
    async fn newest_members(
        &self,
        endpoints: &[&Endpoint],
        until: Instant,
    ) -> Result<(Endpoint, Members), ClusterError> {
        let mut asked: FuturesUnordered<_> = endpoints
            .iter()
            .map(|e| async move {
                let reply = self.call_at(e, "raft_members", &Value::Null, until).await?;
                reply.parse::<Members>().map(|members| (reply.endpoint, members))
            })
            .collect();
        let key = |members: &Members| (members.all().next().is_some(), members.version);
        let (mut wait_until, mut tried, mut wrong) = (until, Vec::new(), None);
        let mut newest: Option<(Endpoint, Members)> = None;
        while let Ok(Some(answer)) = tokio::time::timeout_at(wait_until, asked.next()).await {
            match answer {
                Ok((endpoint, members)) => {
                    if members.all().next().is_some() {
                        wait_until = wait_until.min(Instant::now() + MEMBERS_LINGER);
                    }
                    if newest.as_ref().is_none_or(|(_, known)| key(known) < key(&members)) {
                        newest = Some((endpoint, members));
                    }
                }
                Err(e) => {
                    tried.push(e.to_string());
                    if !matches!(e, CallError::Http(_)) && wrong.is_none() {
                        wrong = Some(e);
                    }
                }
            }
        }
        match (newest, wrong) {
            (Some(newest), _) => Ok(newest),
            (None, Some(wrong)) => Err(ClusterError::Look(wrong)),
            (None, None) => Err(ClusterError::NobodyAnswers { tried, hint: self.hint }),
        }
    }

    async fn ask_leader(&self, endpoint: Endpoint, end: Instant) -> Result<(Endpoint, Leader), CallError> {
        let leader = self.call_at(&endpoint, "raft_leader", &Value::Null, end).await?.parse()?;
        Ok((endpoint, leader))
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
        let mut answered = Vec::new();
        let mut asked: FuturesUnordered<_> =
            self.endpoints.iter().map(|e| async move { (e, self.status_at(e, until).await) }).collect();
        while let Some((endpoint, status)) = asked.next().await {
            match status {
                Ok(status) if status.node_id == node_id => return Ok(endpoint.clone()),
                Ok(status) => {
                    known.push(format!("{} ({endpoint})", status.node_id));
                    answered.push(endpoint);
                }
                Err(e) => {
                    if let ClusterError::Look(CallError::Http(_)) = e {
                        hung.push(endpoint);
                    }
                    tried.push(e.to_string());
                }
            }
        }
        if answered.is_empty() {
            return Err(ClusterError::NobodyAnswers { tried, hint: self.hint });
        }
        let (_, members) = self.newest_members(&answered, halfway(end)).await?;
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
}

/// What looks for a node may take no longer than that of the time until `end`.
fn halfway(end: Instant) -> Instant {
    let now = Instant::now();
    now + end.saturating_duration_since(now) / 2
}

#[cfg(test)]
mod tests;
