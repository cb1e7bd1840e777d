//! The nodes of one cluster, and which of them a call belongs to.
//!
//! Takes the first endpoint that answers, learns the others from it, sends leader calls to the leader
//! and follows `notLeader` once. Never sends a call that changes something to two nodes at a time.

use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use serde_json::Value;
use tokio::time::Instant;

use crate::client::endpoint::Endpoint;
use crate::client::http::Http;
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
    #[error("no node {node_id} among {}", known.join(", "))]
    NoSuchNode { node_id: NodeId, known: Vec<String> },
    #[error("no leader is known to {asked}")]
    NoLeader { asked: Endpoint },
    #[error("{0}")]
    Call(#[from] CallError),
}

impl ClusterError {
    pub(crate) fn certainty(&self) -> Certainty {
        match self {
            Self::NobodyAnswers { .. } | Self::NoSuchNode { .. } | Self::NoLeader { .. } => {
                Certainty::Refused
            }
            Self::Call(e) => e.certainty(),
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
        let Ok(second) = self.locate(leader_id, leader_api, end).await else { return Err(refused.into()) };
        Ok(self.call_at(&second, method, params, end).await?)
    }

    /// One call to one node, until `end`.
    pub(crate) async fn call_at(
        &self,
        endpoint: &Endpoint,
        method: &str,
        params: &Value,
        end: Instant,
    ) -> Result<Reply, CallError> {
        let within = end.saturating_duration_since(Instant::now());
        rpc::call(&self.http, endpoint, method, params, within).await
    }

    /// Where the target's API is.
    pub(crate) async fn find(&self, target: Target, end: Instant) -> Result<Endpoint, ClusterError> {
        match target {
            Target::Any => Ok(self.first_answer(end).await?.0),
            Target::Leader => {
                let (asked, leader) = self.first_answer(end).await?;
                if leader.is_self {
                    return Ok(asked);
                }
                let Some(leader_id) = leader.leader_id else { return Err(ClusterError::NoLeader { asked }) };
                let api = leader.leader_api.and_then(|a| a.parse().ok());
                self.locate(leader_id, api, end).await
            }
            Target::Node(node_id) => self.locate(node_id, None, end).await,
        }
    }

    /// The first endpoint, in the order given, that answers at all, and whom it takes for the leader.
    async fn first_answer(&self, end: Instant) -> Result<(Endpoint, Leader), ClusterError> {
        let mut asked = FuturesUnordered::new();
        let mut next = self.endpoints.iter();
        let mut tried = Vec::new();
        loop {
            if let Some(endpoint) = next.next() {
                asked.push(self.ask_leader(endpoint, end));
            }
            let wait = if next.len() == 0 { end } else { end.min(Instant::now() + STAGGER) };
            match tokio::time::timeout_at(wait, asked.next()).await {
                Ok(Some(Ok(found))) => return Ok(found),
                Ok(Some(Err(e))) => tried.push(e.to_string()),
                Ok(None) if next.len() == 0 => return Err(ClusterError::NobodyAnswers { tried }),
                Err(_) if end <= Instant::now() => {
                    if tried.is_empty() {
                        tried.push(format!("nothing within {:?}", self.timeout));
                    }
                    return Err(ClusterError::NobodyAnswers { tried });
                }
                Ok(None) | Err(_) => {}
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
        if let Some(hint) = hint
            && self.is_node(&hint, node_id, end).await
        {
            return Ok(hint);
        }
        let mut known = Vec::new();
        let mut answered = None;
        let mut tried = Vec::new();
        let mut asked: FuturesUnordered<_> =
            self.endpoints.iter().map(|e| async move { (e, self.status_at(e, end).await) }).collect();
        while let Some((endpoint, status)) = asked.next().await {
            match status {
                Ok(status) if status.node_id == node_id => return Ok(endpoint.clone()),
                Ok(status) => {
                    known.push(format!("{} ({endpoint})", status.node_id));
                    answered = Some(endpoint);
                }
                Err(e) => tried.push(e.to_string()),
            }
        }
        let Some(asked) = answered else { return Err(ClusterError::NobodyAnswers { tried }) };
        let members: Members = self.call_at(asked, "raft_members", &Value::Null, end).await?.parse()?;
        let member = members.all().find(|m| m.node_id == node_id);
        if let Some(api) = member.and_then(|m| m.api_addr.parse().ok()) {
            return Ok(api);
        }
        known.sort();
        Err(ClusterError::NoSuchNode { node_id, known })
    }

    async fn is_node(&self, endpoint: &Endpoint, node_id: NodeId, end: Instant) -> bool {
        self.status_at(endpoint, end).await.is_ok_and(|s| s.node_id == node_id)
    }

    pub(crate) async fn status_at(&self, endpoint: &Endpoint, end: Instant) -> Result<Status, CallError> {
        self.call_at(endpoint, "raft_status", &Value::Null, end).await?.parse()
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
mod tests {
    use serde_json::json;

    use super::*;
    use crate::client::fake::{Chain, Fake, cluster, dead};

    async fn answered_by(c: &Cluster, target: Target, method: &str) -> Result<u64, ClusterError> {
        Ok(c.call(target, method, &Value::Null).await?.value()["answeredBy"].as_u64().expect("a node"))
    }

    #[tokio::test]
    async fn the_first_endpoint_that_answers_is_asked() {
        let (chain, gone) = (Chain::default(), dead());
        let (a, b) = (Fake::start(1, &chain).await, Fake::start(2, &chain).await);
        let c = cluster(&[&gone, &a.endpoint, &b.endpoint]);
        assert_eq!(answered_by(&c, Target::Any, "x").await.expect("an answer"), 1);
        assert_eq!((a.called("x"), b.called("x")), (1, 0));
    }

    #[tokio::test]
    async fn nobody_answers_is_a_refusal_that_names_all() {
        let gone = dead();
        let e = answered_by(&cluster(&[&gone]), Target::Any, "x").await.expect_err("nobody");
        assert_eq!(e.certainty(), Certainty::Refused);
        assert!(e.to_string().contains(gone.as_str()), "{e}");
    }

    #[tokio::test]
    async fn a_leader_call_goes_to_the_leader_alone() {
        let chain = Chain::default();
        let (a, b) = (Fake::start(1, &chain).await, Fake::start(2, &chain).await);
        b.leads(3);
        a.follows(&b);
        // The leader is learned from a follower.
        let c = cluster(&[&a.endpoint]);
        assert_eq!(answered_by(&c, Target::Leader, "raft_promote").await.expect("an answer"), 2);
        assert_eq!((a.called("raft_promote"), b.called("raft_promote")), (0, 1));
    }

    #[tokio::test]
    async fn the_leaders_advertised_address_need_not_lead_there() {
        let chain = Chain::default();
        let (a, b) = (Fake::start(1, &chain).await, Fake::start(2, &chain).await);
        b.leads(3);
        a.follows(&b);
        a.set(|s| s.leader_api = Some(dead().to_string()));
        let c = cluster(&[&a.endpoint, &b.endpoint]);
        assert_eq!(answered_by(&c, Target::Leader, "x").await.expect("an answer"), 2);
    }

    #[tokio::test]
    async fn not_leader_is_followed_once() {
        let chain = Chain::default();
        let (a, b) = (Fake::start(1, &chain).await, Fake::start(2, &chain).await);
        a.leads(3);
        let moved = json!({"code": -32030, "message": "m", "data": {"kind": "refused", "reason": "notLeader",
            "leaderId": 2, "leaderApi": b.endpoint.to_string()}});
        a.set(|s| s.errors.push(("x", moved.clone())));
        let c = cluster(&[&a.endpoint]);
        assert_eq!(answered_by(&c, Target::Leader, "x").await.expect("an answer"), 2);
        b.set(|s| s.errors.push(("x", moved)));
        let e = answered_by(&c, Target::Leader, "x").await.expect_err("refused twice");
        assert_eq!((e.certainty(), a.called("x"), b.called("x")), (Certainty::Refused, 2, 2));
    }

    #[tokio::test]
    async fn without_a_leader_nothing_is_sent() {
        let a = Fake::start(1, &Chain::default()).await;
        let e = answered_by(&cluster(&[&a.endpoint]), Target::Leader, "x").await.expect_err("no leader");
        assert!(matches!(e, ClusterError::NoLeader { .. }), "{e}");
        assert_eq!(a.called("x"), 0);
    }

    #[tokio::test]
    async fn a_node_is_found_by_its_id() {
        let chain = Chain::default();
        let (a, b) = (Fake::start(1, &chain).await, Fake::start(2, &chain).await);
        let c = cluster(&[&a.endpoint, &b.endpoint]);
        assert_eq!(answered_by(&c, Target::Node(2), "x").await.expect("an answer"), 2);
        let end = Instant::now() + c.timeout();
        assert_eq!(c.find(Target::Node(9), end).await.expect("a member").as_str(), "n9:7400");
        let e = c.find(Target::Node(5), end).await.expect_err("nobody");
        assert!(matches!(e, ClusterError::NoSuchNode { node_id: 5, .. }), "{e}");
    }

    #[tokio::test]
    async fn of_two_leaders_the_younger_fence_counts() {
        let chain = Chain::default();
        let (a, b) = (Fake::start(1, &chain).await, Fake::start(2, &chain).await);
        let c = cluster(&[&a.endpoint, &b.endpoint]);
        let end = Instant::now() + c.timeout();
        assert_eq!(c.ready_leader(end).await, None);
        a.leads(7);
        b.leads(8);
        assert_eq!(c.ready_leader(end).await.map(|l| (l.node_id, l.fence)), Some((2, 8)));
    }
}
