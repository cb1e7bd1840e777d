use serde_json::json;

use super::*;
use crate::client::fake::{Chain, Fake, cluster, cluster_within, dead};

/// Short enough for a test that waits for half of it, and long enough for a node that answers.
const HASTE: Duration = Duration::from_secs(2);

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

/// A JSON-RPC server of another kind.
async fn foreign(chain: &Chain) -> Fake {
    let fake = Fake::start(0, chain).await;
    let not_found = json!({"code": -32601, "message": "the method does not exist"});
    fake.set(|s| {
        let methods = ["raft_leader", "raft_members", "raft_status", "x"];
        s.errors.extend(methods.map(|method| (method, not_found.clone())));
    });
    fake
}

#[tokio::test]
async fn who_knows_no_leader_does_not_end_the_search_for_it() {
    let chain = Chain::default();
    let (wiped, other) = (Fake::start(3, &chain).await, foreign(&chain).await);
    let (a, b) = (Fake::start(1, &chain).await, Fake::start(2, &chain).await);
    b.leads(3);
    a.follows(&b);
    for first in [&wiped, &other] {
        let c = cluster(&[&first.endpoint, &a.endpoint]);
        assert_eq!(answered_by(&c, Target::Leader, "x").await.expect("an answer"), 2);
        assert_eq!(first.called("x"), 0);
    }
    let c = cluster(&[&other.endpoint, &a.endpoint]);
    assert_eq!(answered_by(&c, Target::Any, "x").await.expect("an answer"), 1);
    // All are named when none knows one, and whoever could not be asked.
    let c = cluster(&[&wiped.endpoint, &other.endpoint]);
    let e = answered_by(&c, Target::Leader, "x").await.expect_err("nobody leads");
    let told = format!("no leader is known to {}; could not ask {}: the", wiped.endpoint, other.endpoint);
    assert!(e.to_string().starts_with(&told), "{e}");
    let e = answered_by(&cluster(&[&other.endpoint]), Target::Leader, "x").await.expect_err("foreign");
    assert!(e.to_string().contains("-32601"), "{e}");
}

#[tokio::test]
async fn the_members_are_those_of_the_newest_membership() {
    let chain = Chain::default();
    let (wiped, other) = (Fake::start(3, &chain).await, foreign(&chain).await);
    let (old, new) = (Fake::start(1, &chain).await, Fake::start(2, &chain).await);
    wiped.set(|s| s.members = Some(json!({"version": 0, "voters": [], "learners": []})));
    old.set(|s| s.members = Some(json!({"version": 0, "voters": [{"nodeId": 1}]})));
    new.set(|s| s.members = Some(json!({"version": 7, "voters": [{"nodeId": 1}, {"nodeId": 2}]})));
    let c = cluster(&[&wiped.endpoint, &other.endpoint, &old.endpoint, &new.endpoint]);
    assert_eq!(c.members().await.expect("known").all().count(), 2);
    assert_eq!(answered_by(&c, Target::Informed, "y").await.expect("an answer"), 2);
    let c = cluster(&[&wiped.endpoint, &old.endpoint]);
    assert_eq!(answered_by(&c, Target::Informed, "y").await.expect("an answer"), 1);
    // One that hangs is not waited for, and nobody need know a membership.
    other.set(|s| s.hangs = true);
    let c = cluster_within(HASTE, &[&other.endpoint, &old.endpoint]);
    let start = Instant::now();
    assert_eq!(c.members().await.expect("known").all().count(), 1);
    assert!(start.elapsed() < HASTE / 2);
    assert_eq!(answered_by(&cluster(&[&wiped.endpoint]), Target::Informed, "y").await.expect("an answer"), 3);
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

#[tokio::test]
async fn a_leader_that_is_cut_off_does_not_hide_the_new_one() {
    let chain = Chain::default();
    let (old, new) = (Fake::start(1, &chain).await, Fake::start(2, &chain).await);
    old.set(|s| s.leader_id = Some(1));
    new.leads(8);
    let c = cluster(&[&old.endpoint, &new.endpoint]);
    assert_eq!(answered_by(&c, Target::Leader, "x").await.expect("an answer"), 2);
    // One that is alone with it leads, ready or not.
    assert_eq!(answered_by(&cluster(&[&old.endpoint]), Target::Leader, "x").await.expect("an answer"), 1);
    assert_eq!(
        cluster(&[&old.endpoint]).leader(&Value::Null).await.expect("an answer").value()["isSelf"],
        true
    );
}

#[tokio::test]
async fn the_leader_is_asked_for_itself_and_another_where_it_hangs() {
    let chain = Chain::default();
    let (wiped, a, b) =
        (Fake::start(3, &chain).await, Fake::start(1, &chain).await, Fake::start(2, &chain).await);
    b.leads(7);
    a.follows(&b);
    let c = cluster_within(HASTE, &[&wiped.endpoint, &a.endpoint]);
    let told = async |c: &Cluster| c.leader(&Value::Null).await.expect("an answer").value();
    let of_itself = told(&c).await;
    assert_eq!((&of_itself["isSelf"], &of_itself["fence"]), (&json!(true), &json!(7)));
    b.set(|s| s.hangs = true);
    let of_another = told(&c).await;
    assert_eq!((&of_another["isSelf"], &of_another["leaderId"]), (&json!(false), &json!(2)));
    // Nobody leads: so it is told, as before.
    assert_eq!(told(&cluster(&[&wiped.endpoint])).await["leaderId"], Value::Null);
}

#[tokio::test]
async fn a_hint_is_added_where_nobody_answers() {
    let c = cluster(&[&dead()]).with_hint("; look there");
    for target in [Target::Any, Target::Informed, Target::Leader, Target::Node(1)] {
        let e = answered_by(&c, target, "x").await.expect_err("nobody");
        assert!(e.to_string().ends_with("; look there"), "{target:?}: {e}");
    }
}

#[tokio::test]
async fn a_ready_leader_is_told_while_another_endpoint_hangs() {
    let chain = Chain::default();
    let (hung, a, b) =
        (Fake::start(1, &chain).await, Fake::start(2, &chain).await, Fake::start(3, &chain).await);
    hung.set(|s| s.hangs = true);
    a.leads(7);
    let start = Instant::now();
    let look = start + HASTE;
    let c = cluster(&[&hung.endpoint, &a.endpoint]);
    assert_eq!(c.ready_leader(look).await.map(|l| l.node_id), Some(2));
    // Also one that a follower names.
    b.follows(&a);
    let c = cluster(&[&hung.endpoint, &b.endpoint]);
    assert_eq!(c.ready_leader(look).await.map(|l| l.node_id), Some(2));
    assert!(start.elapsed() < HASTE / 2, "nobody waits for the one that hangs");
}

/// A member that was added without an API address.
fn without_api(node_id: u64) -> Option<Value> {
    Some(json!({"version": 1, "voters": [{"nodeId": 1, "apiAddr": "n1:7400"}],
        "learners": [{"nodeId": node_id, "name": "x", "peerAddr": "p:1", "apiAddr": null}]}))
}

#[tokio::test]
async fn a_member_without_an_api_address_is_said_to_have_none() {
    let a = Fake::start(1, &Chain::default()).await;
    a.set(|s| s.members = without_api(4));
    let c = cluster(&[&a.endpoint]);
    assert_eq!(c.members().await.expect("an answer").all().count(), 2);
    let e = answered_by(&c, Target::Node(4), "x").await.expect_err("nobody knows where it is");
    assert_eq!(e.certainty(), Certainty::Refused);
    assert!(e.to_string().contains("members update 4 --api"), "{e}");
}

#[tokio::test]
async fn a_leader_without_an_api_address_is_found_among_the_endpoints_alone() {
    let chain = Chain::default();
    let (a, b) = (Fake::start(1, &chain).await, Fake::start(4, &chain).await);
    b.leads(3);
    a.set(|s| {
        s.leader_id = Some(4);
        s.leader_api = None;
        s.members = without_api(4);
    });
    let both = cluster(&[&a.endpoint, &b.endpoint]);
    assert_eq!(answered_by(&both, Target::Leader, "raft_updateMember").await.expect("an answer"), 4);
    let e = answered_by(&cluster(&[&a.endpoint]), Target::Leader, "x").await.expect_err("not found");
    assert_eq!((e.certainty(), a.called("x")), (Certainty::Refused, 0));
    assert!(matches!(e, ClusterError::LeaderHasNoApi { node_id: 4, .. }), "{e}");
    // And no better when it is learned from the refusal of one that led before.
    a.leads(2);
    let moved = json!({"code": -32030, "message": "m", "data": {"kind": "refused", "reason": "notLeader",
        "leaderId": 4, "leaderApi": null}});
    a.set(|s| s.errors.push(("x", moved)));
    let e = answered_by(&cluster(&[&a.endpoint]), Target::Leader, "x").await.expect_err("not found");
    assert!(matches!(e, ClusterError::LeaderHasNoApi { node_id: 4, .. }), "{e}");
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_on_the_way_is_a_refusal() {
    let a = Fake::start(1, &Chain::default()).await;
    a.set(|s| s.members = Some(json!({"voters": 7})));
    let c = cluster(&[&a.endpoint]);
    let e = answered_by(&c, Target::Node(4), "raft_pause").await.expect_err("not understood");
    assert_eq!((e.certainty(), a.called("raft_pause")), (Certainty::Refused, 0));
    assert_eq!(c.members().await.expect_err("not understood").certainty(), Certainty::Refused);
}

#[tokio::test]
async fn an_endpoint_that_hangs_does_not_take_the_time_of_the_others() {
    let chain = Chain::default();
    let (a, b) = (Fake::start(1, &chain).await, Fake::start(2, &chain).await);
    a.set(|s| s.hangs = true);
    b.set(|s| s.members = Some(json!({"voters": [{"nodeId": 1, "apiAddr": a.endpoint.to_string()}]})));
    let c = cluster_within(HASTE, &[&a.endpoint, &b.endpoint]);
    let start = Instant::now();
    assert_eq!(answered_by(&c, Target::Node(2), "x").await.expect("an answer"), 2);
    assert!(start.elapsed() < HASTE / 2, "nobody waits for the one that hangs");
    // The one that hangs is named, and nothing that changes anything is sent to it.
    let e = answered_by(&c, Target::Node(1), "raft_pause").await.expect_err("it hangs");
    assert!(matches!(e, ClusterError::NodeSilent { node_id: 1, .. }), "{e}");
    assert!(e.to_string().contains(a.endpoint.as_str()) && !e.to_string().contains("0ns"), "{e}");
    assert_eq!((e.certainty(), a.called("raft_pause")), (Certainty::Refused, 0));
    // One that nobody has heard of is looked for, and the silent one named beside those that are known.
    let e = answered_by(&c, Target::Node(5), "x").await.expect_err("nobody");
    assert!(
        matches!(&e, ClusterError::NoSuchNode { known, silent, .. } if known.len() == 1 && silent.len() == 1)
    );
}

#[tokio::test]
async fn nothing_is_sent_when_no_time_is_left() {
    let a = Fake::start(1, &Chain::default()).await;
    let c = cluster(&[&a.endpoint]);
    let e = c.call_at(&a.endpoint, "x", &Value::Null, Instant::now()).await.expect_err("too late");
    assert_eq!((e.certainty(), a.called("x")), (Certainty::Refused, 0));
}
