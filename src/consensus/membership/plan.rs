//! What a change means, from one look at the membership and at who is heard. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::consensus::membership::{Change, ChangeError, Outlook, Reason, Request};
use crate::raft::NodeRecord;
use crate::types::address::host;
use crate::types::member::is_node_name;
use crate::types::{LogIndex, NodeId};

/// Greatest node id.
const NODE_ID_MAX: NodeId = (1 << 53) - 1;

/// The membership as the log has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Now {
    pub(crate) version: LogIndex,
    pub(crate) voters: BTreeSet<NodeId>,
    pub(crate) nodes: BTreeMap<NodeId, NodeRecord>,
    /// Two configurations are in force, or the newest is not committed.
    pub(crate) is_changing: bool,
}

/// What is to be written, once the addressed node said who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) voters: BTreeSet<NodeId>,
    pub(crate) nodes: BTreeMap<NodeId, NodeRecord>,
    pub(crate) outlook: Outlook,
    /// Who must be found there first.
    pub(crate) dial: Option<String>,
}

impl Plan {
    /// Fewer voters are heard of than a quorum needs.
    pub(crate) fn is_risky(&self) -> bool {
        self.outlook.reachable < self.outlook.quorum
    }
}

impl Now {
    fn refused(&self, reason: Reason, why: String) -> ChangeError {
        ChangeError::Refused { reason, why, version: self.version }
    }

    fn known(&self, node_id: NodeId) -> Result<&NodeRecord, ChangeError> {
        self.nodes
            .get(&node_id)
            .ok_or_else(|| self.refused(Reason::NotMember, format!("node {node_id} is not a member")))
    }
}

/// `reachable` are the voters that are heard of, this node included.
pub(crate) fn plan(now: &Now, request: &Request, reachable: &BTreeSet<NodeId>) -> Result<Plan, ChangeError> {
    if now.is_changing {
        return Err(now.refused(Reason::InProgress, "another change of membership is under way".into()));
    }
    if let Some(expected) = request.expected
        && expected != now.version
    {
        let why = format!("the membership has version {}, not {expected}", now.version);
        return Err(now.refused(Reason::VersionMismatch, why));
    }
    let (mut voters, mut nodes, mut dial) = (now.voters.clone(), now.nodes.clone(), None);
    match &request.change {
        Change::AddLearner { node_id, peer_addr, api_addr } => {
            let record = new_record(now, *node_id, peer_addr, api_addr.as_deref())?;
            nodes.insert(*node_id, record);
            dial = Some(peer_addr.clone());
        }
        Change::Promote { node_id } => {
            now.known(*node_id)?;
            if !voters.insert(*node_id) {
                return Err(now.refused(Reason::AlreadyMember, format!("node {node_id} is a voter already")));
            }
        }
        Change::Demote { node_id } => {
            now.known(*node_id)?;
            if !voters.remove(node_id) {
                return Err(now.refused(Reason::NotVoter, format!("node {node_id} is a learner")));
            }
        }
        Change::Remove { node_id } => {
            now.known(*node_id)?;
            voters.remove(node_id);
            nodes.remove(node_id);
        }
        Change::Update { node_id, peer_addr, api_addr, name } => {
            let record = changed_record(now, *node_id, peer_addr, api_addr, name)?;
            dial = Some(&record.peer_addr).filter(|addr| **addr != now.nodes[node_id].peer_addr).cloned();
            nodes.insert(*node_id, record);
        }
    }
    if voters.is_empty() {
        // Not even by force: nobody could ever agree on anything again.
        return Err(now.refused(Reason::QuorumRisk, "it is the only voter".into()));
    }
    let quorum = voters.len() / 2 + 1;
    let outlook = Outlook {
        quorum,
        tolerance: voters.len() - quorum,
        reachable: voters.intersection(reachable).count(),
    };
    Ok(Plan { voters, nodes, outlook, dial })
}

fn new_record(
    now: &Now,
    node_id: NodeId,
    peer_addr: &str,
    api_addr: Option<&str>,
) -> Result<NodeRecord, ChangeError> {
    if !(1..=NODE_ID_MAX).contains(&node_id) {
        return Err(invalid("nodeId", "is not from 1 to 2^53 - 1"));
    }
    check_addr("peerAddr", peer_addr)?;
    api_addr.map_or(Ok(()), |addr| check_addr("apiAddr", addr))?;
    if let Some(record) = now.nodes.get(&node_id) {
        let why = if record.peer_addr == peer_addr {
            format!("node {node_id} is a member already")
        } else {
            // openraft would answer Ok and change nothing (safety rule 21b).
            format!("node {node_id} is a member at {}; raft_updateMember moves it", record.peer_addr)
        };
        return Err(now.refused(Reason::AlreadyMember, why));
    }
    let name = format!("node-{node_id}");
    if let Some((other, _)) = now.nodes.iter().find(|(_, record)| record.name == name) {
        return Err(invalid(
            "nodeId",
            &format!("would be named {name}, as node {other} is: rename that first"),
        ));
    }
    check_addr_is_free(now, node_id, "peerAddr", peer_addr)?;
    api_addr.map_or(Ok(()), |addr| check_addr_is_free(now, node_id, "apiAddr", addr))?;
    Ok(NodeRecord {
        name,
        peer_addr: peer_addr.to_owned(),
        api_addr: api_addr.unwrap_or_default().to_owned(),
        incarnation: None,
    })
}

fn changed_record(
    now: &Now,
    node_id: NodeId,
    peer_addr: &Option<String>,
    api_addr: &Option<String>,
    name: &Option<String>,
) -> Result<NodeRecord, ChangeError> {
    let mut record = now.known(node_id)?.clone();
    if peer_addr.is_none() && api_addr.is_none() && name.is_none() {
        return Err(invalid("peerAddr", "or apiAddr or name must be given"));
    }
    if let Some(addr) = peer_addr {
        check_addr("peerAddr", addr)?;
        check_addr_is_free(now, node_id, "peerAddr", addr)?;
        record.peer_addr.clone_from(addr);
    }
    if let Some(addr) = api_addr {
        check_addr("apiAddr", addr)?;
        check_addr_is_free(now, node_id, "apiAddr", addr)?;
        record.api_addr.clone_from(addr);
    }
    if let Some(name) = name {
        if !is_node_name(name) {
            return Err(invalid("name", "is not 1 to 63 of a-z, 0-9 and -"));
        }
        if let Some((other, _)) = now.nodes.iter().find(|(id, r)| **id != node_id && r.name == *name) {
            return Err(invalid("name", &format!("is that of node {other}")));
        }
        record.name.clone_from(name);
    }
    Ok(record)
}

fn invalid(param: &'static str, what: &str) -> ChangeError {
    ChangeError::Invalid { param, what: what.to_owned() }
}

fn check_addr(param: &'static str, addr: &str) -> Result<(), ChangeError> {
    match host(addr) {
        None => Err(invalid(param, "is not host:port, IPv6 in brackets, no scheme")),
        Some(host) if host.is_unspecified() => {
            Err(invalid(param, "is an unspecified address: nobody can reach it"))
        }
        Some(_) => Ok(()),
    }
}

fn check_addr_is_free(
    now: &Now,
    node_id: NodeId,
    param: &'static str,
    addr: &str,
) -> Result<(), ChangeError> {
    // Neither as another's peer address nor as its API: callers would be sent to a node that does not lead.
    let is_its = |record: &NodeRecord| record.peer_addr == addr || record.api_addr == addr;
    match now.nodes.iter().find(|(id, record)| **id != node_id && is_its(record)) {
        None => Ok(()),
        Some((other, _)) => {
            let why = format!("{param} {addr} is that of node {other}");
            Err(now.refused(Reason::Unreachable, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(voters: &[NodeId], learners: &[NodeId]) -> Now {
        let record = |id: &NodeId| NodeRecord {
            name: format!("node-{id}"),
            peer_addr: format!("n{id}:7500"),
            api_addr: format!("n{id}:7400"),
            incarnation: None,
        };
        Now {
            version: 9,
            voters: voters.iter().copied().collect(),
            nodes: voters.iter().chain(learners).map(|id| (*id, record(id))).collect(),
            is_changing: false,
        }
    }

    fn of(change: Change) -> Request {
        Request { change, expected: None, force: false }
    }

    fn ids(of: &[NodeId]) -> BTreeSet<NodeId> {
        of.iter().copied().collect()
    }

    #[track_caller]
    fn reason(result: Result<Plan, ChangeError>) -> Reason {
        match result {
            Err(ChangeError::Refused { reason, version: 9, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn add(node_id: NodeId, addr: &str) -> Change {
        Change::AddLearner { node_id, peer_addr: addr.into(), api_addr: None }
    }

    fn update(node_id: NodeId, addr: Option<&str>, name: Option<&str>) -> Change {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Change::Update { node_id, peer_addr: own(addr), api_addr: None, name: own(name) }
    }

    fn api_at(node_id: NodeId, addr: &str) -> Change {
        Change::Update { node_id, peer_addr: None, api_addr: Some(addr.into()), name: None }
    }

    #[test]
    fn each_change_and_what_is_left_behind_it() {
        let three = now(&[1, 2, 3], &[4]);
        let all = ids(&[1, 2, 3, 4, 5]);
        let of = |change| plan(&three, &of(change), &all).unwrap();
        let added = of(add(5, "n5:7500"));
        assert_eq!((added.voters, added.dial.as_deref()), (ids(&[1, 2, 3]), Some("n5:7500")));
        assert_eq!(added.nodes[&5].name, "node-5");
        let promoted = of(Change::Promote { node_id: 4 });
        assert_eq!(promoted.voters, ids(&[1, 2, 3, 4]));
        assert_eq!(promoted.outlook, Outlook { quorum: 3, tolerance: 1, reachable: 4 });
        let demoted = of(Change::Demote { node_id: 2 });
        assert_eq!((demoted.voters, demoted.nodes.len()), (ids(&[1, 3]), 4));
        assert_eq!(demoted.outlook, Outlook { quorum: 2, tolerance: 0, reachable: 2 });
        let removed = of(Change::Remove { node_id: 4 });
        assert_eq!((removed.voters, removed.nodes.len(), removed.dial), (ids(&[1, 2, 3]), 3, None));
        let moved = of(update(2, Some("m:1"), None));
        assert_eq!((moved.nodes[&2].peer_addr.as_str(), moved.dial.as_deref()), ("m:1", Some("m:1")));
        let named = of(update(2, Some("n2:7500"), Some("other")));
        assert_eq!((named.nodes[&2].name.as_str(), named.dial), ("other", None));
        assert_eq!(of(api_at(2, "n2:7400")).nodes[&2].api_addr, "n2:7400");
    }

    #[test]
    fn what_does_not_fit_the_membership_is_refused_with_its_reason() {
        let (three, all) = (now(&[1, 2, 3], &[4]), ids(&[1, 2, 3]));
        let of = |change| plan(&three, &of(change), &all);
        for (change, expected) in [
            (Change::Promote { node_id: 9 }, Reason::NotMember),
            (Change::Promote { node_id: 2 }, Reason::AlreadyMember),
            (Change::Demote { node_id: 4 }, Reason::NotVoter),
            (Change::Demote { node_id: 9 }, Reason::NotMember),
            (Change::Remove { node_id: 9 }, Reason::NotMember),
            (update(9, None, Some("x")), Reason::NotMember),
            (add(4, "n4:7500"), Reason::AlreadyMember),
            (add(4, "elsewhere:1"), Reason::AlreadyMember),
            (add(5, "n2:7500"), Reason::Unreachable),
            (update(2, Some("n1:7500"), None), Reason::Unreachable),
            (update(2, Some("n1:7400"), None), Reason::Unreachable),
            (api_at(2, "n1:7400"), Reason::Unreachable),
            (api_at(2, "n3:7500"), Reason::Unreachable),
            (
                Change::AddLearner {
                    node_id: 5,
                    peer_addr: "n5:7500".into(),
                    api_addr: Some("n1:7400".into()),
                },
                Reason::Unreachable,
            ),
        ] {
            assert_eq!(reason(of(change.clone())), expected, "{change:?}");
        }
        for (change, wrong) in [
            (add(0, "n5:1"), "nodeId"),
            (add(1 << 53, "n5:1"), "nodeId"),
            (add(5, "n5"), "peerAddr"),
            (add(5, "0.0.0.0:7500"), "peerAddr"),
            (update(2, Some("http://n2:1"), None), "peerAddr"),
            (update(2, None, Some("Node")), "name"),
            (update(2, None, Some("node-1")), "name"),
            (update(2, None, None), "peerAddr"),
        ] {
            match of(change.clone()) {
                Err(ChangeError::Invalid { param, .. }) => assert_eq!(param, wrong, "{change:?}"),
                other => panic!("{change:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_outdated_version_and_a_change_under_way_come_before_all_else() {
        let (three, all) = (now(&[1, 2, 3], &[]), ids(&[1, 2, 3]));
        let request = Request { expected: Some(8), ..of(Change::Remove { node_id: 9 }) };
        assert_eq!(reason(plan(&three, &request, &all)), Reason::VersionMismatch);
        let changing = Now { is_changing: true, ..three };
        assert_eq!(reason(plan(&changing, &request, &all)), Reason::InProgress);
    }

    #[test]
    fn a_quorum_is_counted_among_those_that_are_heard() {
        let three = now(&[1, 2, 3], &[4]);
        let risky =
            |change, reachable: &[NodeId]| plan(&three, &of(change), &ids(reachable)).unwrap().is_risky();
        // One of three is down: taking a live one away leaves one of two.
        assert!(risky(Change::Remove { node_id: 2 }, &[1, 2]));
        assert!(risky(Change::Demote { node_id: 2 }, &[1, 2]));
        assert!(!risky(Change::Remove { node_id: 3 }, &[1, 2]));
        // The leader itself goes: the others must be able to go on.
        assert!(!risky(Change::Remove { node_id: 1 }, &[1, 2, 3]));
        assert!(risky(Change::Remove { node_id: 1 }, &[1, 2]));
        assert!(risky(Change::Promote { node_id: 4 }, &[1, 2]));
        assert!(!risky(Change::Promote { node_id: 4 }, &[1, 2, 4]));
        let one = now(&[1], &[4]);
        assert_eq!(reason(plan(&one, &of(Change::Demote { node_id: 1 }), &ids(&[1]))), Reason::QuorumRisk);
    }
}
