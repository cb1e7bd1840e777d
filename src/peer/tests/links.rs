//! The control connection: kept up, given up when it is dead, and never for a late answer.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use openraft::{
    Instant as _, RaftNetworkFactory,
    async_runtime::watch::WatchReceiver,
    network::{NetVote, RPCOption},
    raft::VoteRequest,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::consensus::{PeerError, Peers};
use crate::machine::{Command, command::Kind};
use crate::peer::{
    Config, HashMark, LinkState,
    tests::{
        proxy::{Mode, Proxy},
        support::{Bare, Node, config, eventually, found, identity, in_time, nodes, raft_config},
    },
};
use crate::raft::{NodeRecord, TypeConfig, convert::vote_from_proto};
use crate::types::proto;

const WITHIN: Duration = Duration::from_secs(5);

/// A transport that dials node 1 through a proxy.
async fn through_proxy(node: &Node) -> (Bare, Proxy, CancellationToken) {
    let proxy = Proxy::start(node.addr).await;
    let asker = Bare::new(identity(2), config());
    asker.set_address(1, &[proxy.addr.to_string()]);
    let shutdown = CancellationToken::new();
    tokio::spawn(asker.network.clone().run(shutdown.clone()));
    (asker, proxy, shutdown)
}

fn state(asker: &Bare) -> Option<LinkState> {
    asker.network.links().get(&1).copied()
}

async fn connected(asker: &Bare) {
    eventually("the link is up", || state(asker) == Some(LinkState::Connected)).await;
}

fn vote_request(term: u64) -> VoteRequest<TypeConfig> {
    let vote = proto::Vote { term, node_id: 2, committed: false };
    VoteRequest::new(vote_from_proto(&vote), None)
}

#[tokio::test]
async fn questions_are_answered() {
    let node = Node::start(1, config()).await;
    let (asker, _proxy, shutdown) = through_proxy(&node).await;
    connected(&asker).await;
    let peers = asker.network.asker();
    assert_eq!(&peers.status(1, WITHIN).await.unwrap()[..], b"{\"role\":\"follower\"}");
    let refused = peers.read_index(1, WITHIN).await;
    assert_eq!(refused, Err(PeerError::Refused("this node does not lead".into())));
    *node.answers.read_index.lock().unwrap() = Ok(42);
    assert_eq!(peers.read_index(1, WITHIN).await, Ok(42));
    let state = peers.founding(1, WITHIN).await.unwrap();
    assert_eq!((state.list_hash, state.has_data), ([7; 32], false));
    assert_eq!(peers.status(3, WITHIN).await, Err(PeerError::NoAddress(3)));
    assert_eq!(asker.metric("blockraft_peer_connected", &[("peer_id", "1")]), Some(1.0));
    assert_eq!(asker.errors("1", "read_index", "refused"), 1.0);
    let labels = [("peer_id", "1"), ("rpc", "status")];
    assert_eq!(asker.metric("blockraft_peer_rpc_seconds", &labels), Some(1.0));
    shutdown.cancel();
    node.stop().await;
}

#[tokio::test]
async fn a_late_answer_is_dropped_and_not_the_connection() {
    let node = Node::start(1, config()).await;
    let (asker, proxy, shutdown) = through_proxy(&node).await;
    connected(&asker).await;
    let peers = asker.network.asker();
    peers.ping(1, WITHIN).await.unwrap();
    let n_before = proxy.n_accepted();
    proxy.set(Mode::SlowAnswers(Duration::from_millis(120)));
    let late = peers.status(1, Duration::from_millis(40)).await;
    assert!(matches!(late, Err(PeerError::TimedOut { node_id: 1, .. })), "{late:?}");
    proxy.set(Mode::Forward);
    // The next question gets its own answer, not the late one, on the same connection.
    assert!(peers.founding(1, WITHIN).await.is_ok());
    assert_eq!(proxy.n_accepted(), n_before);
    assert_eq!(asker.errors("1", "status", "timeout"), 1.0);
    // How late it was is seen all the same.
    let labels = [("peer_id", "1"), ("rpc", "status")];
    assert_eq!(asker.metric("blockraft_peer_rpc_seconds", &labels), Some(1.0));
    shutdown.cancel();
    node.stop().await;
}

#[tokio::test]
async fn a_dead_connection_is_found_and_replaced() {
    let node = Node::start(1, config()).await;
    let (asker, proxy, shutdown) = through_proxy(&node).await;
    connected(&asker).await;
    proxy.set(Mode::Hold);
    // Nothing closes it: only unanswered pings tell.
    eventually("silence is noticed", || state(&asker) != Some(LinkState::Connected)).await;
    assert_eq!(asker.metric("blockraft_peer_connected", &[("peer_id", "1")]), Some(0.0));
    assert!(1.0 <= asker.errors("1", "ping", "timeout"));
    proxy.set(Mode::Forward);
    connected(&asker).await;
    shutdown.cancel();
    node.stop().await;
}

#[tokio::test]
async fn a_stopped_process_is_told_from_a_silent_one_and_dialled_again() {
    let mut node = Node::start(1, config()).await;
    let asker = Bare::new(identity(2), config());
    asker.set_address(1, &[node.addr.to_string()]);
    let shutdown = CancellationToken::new();
    tokio::spawn(asker.network.clone().run(shutdown.clone()));
    connected(&asker).await;
    node.stop_network().await;
    eventually("nobody listens", || state(&asker) == Some(LinkState::Gone)).await;
    let failed = asker.network.asker().status(1, WITHIN).await;
    assert!(matches!(failed, Err(PeerError::Unreachable { node_id: 1, .. })), "{failed:?}");
    let listener = TcpListener::bind(node.addr).await.unwrap();
    let serving =
        node.bare.network.serve(listener, node.raft.clone(), node.answers.clone(), CancellationToken::new());
    tokio::spawn(serving);
    // A question asked while it is away waits for the next dial, which is soon.
    in_time("it answers again", async { while asker.network.asker().status(1, WITHIN).await.is_err() {} })
        .await;
    shutdown.cancel();
    node.raft.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_new_address_is_used_and_the_old_connection_dropped() {
    let node = Node::start(1, config()).await;
    let (asker, old, shutdown) = through_proxy(&node).await;
    connected(&asker).await;
    let new = Proxy::start(node.addr).await;
    asker.set_address(1, &[new.addr.to_string()]);
    // A ping proves the address in force, not the one the connection was dialled with.
    asker.network.asker().ping(1, WITHIN).await.unwrap();
    assert_eq!(new.n_accepted(), 1);
    let before = old.n_passed();
    asker.network.asker().ping(1, WITHIN).await.unwrap();
    assert_eq!(old.n_passed(), before);
    shutdown.cancel();
    node.stop().await;
}

#[tokio::test]
async fn the_series_of_a_peer_exist_from_the_start_and_go_with_it() {
    let asker = Bare::new(identity(2), config());
    asker.set_address(1, &["127.0.0.1:1".into()]);
    asker.set_address(3, &["127.0.0.1:1".into()]);
    let shutdown = CancellationToken::new();
    tokio::spawn(asker.network.clone().run(shutdown.clone()));
    let families = [
        "blockraft_peer_rpc_seconds",
        "blockraft_peer_rpc_errors_total",
        "blockraft_peer_bytes_total",
        "blockraft_peer_connected",
        "blockraft_peer_clock_offset_seconds",
    ];
    let has = |node_id: &str| families.map(|family| asker.metric(family, &[("peer_id", node_id)]).is_some());
    eventually("both are known", || has("1") == [true; 5] && has("3") == [true; 5]).await;
    let votes = [("direction", "received"), ("kind", "pre_vote"), ("granted", "true")];
    assert_eq!(asker.metric("blockraft_raft_votes_total", &votes), Some(0.0));
    let mut addresses = (**asker.addresses.load()).clone();
    addresses.remove(&3);
    asker.addresses.store(addresses.into());
    eventually("the removed one is forgotten", || has("3") == [false; 5]).await;
    assert_eq!(has("1"), [true; 5]);
    shutdown.cancel();
}

#[tokio::test]
async fn votes_are_asked_counted_and_refused_where_a_node_may_not_vote() {
    let node = Node::start(1, config()).await;
    let (asker, _proxy, shutdown) = through_proxy(&node).await;
    connected(&asker).await;
    let mut client = asker.network.clone().new_client(1, &NodeRecord::default()).await;
    let option = || RPCOption::new(WITHIN);
    node.answers.may_vote.store(false, Ordering::SeqCst);
    let refused = client.vote(vote_request(1), option()).await.unwrap();
    assert!(!refused.vote_granted);
    assert_ne!(refused.vote, vote_request(1).vote, "openraft takes an equal vote for a grant");
    assert!(!client.pre_vote(vote_request(1), option()).await.unwrap().vote_granted);
    assert_eq!(node.term(), 0, "raft was not asked");
    node.answers.may_vote.store(true, Ordering::SeqCst);
    assert!(client.pre_vote(vote_request(1), option()).await.unwrap().vote_granted);
    assert_eq!(node.term(), 0, "a pre-vote changes nothing");
    assert!(client.vote(vote_request(1), option()).await.unwrap().vote_granted);
    let count = |bare: &Bare, direction: &str, kind: &str, granted: &str| {
        let labels = [("direction", direction), ("kind", kind), ("granted", granted)];
        bare.metric("blockraft_raft_votes_total", &labels).unwrap()
    };
    for kind in ["vote", "pre_vote"] {
        for granted in ["true", "false"] {
            assert_eq!(count(&asker, "sent", kind, granted), 1.0);
            assert_eq!(count(&node.bare, "received", kind, granted), 1.0);
        }
    }
    let elections = *asker.network.elections().borrow();
    assert_eq!((elections.started, elections.pre_vote_rounds), (1, 2));
    shutdown.cancel();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vote_is_answered_while_the_disk_hangs() {
    let nodes = nodes(3).await;
    let leader = found(&nodes).await;
    let follower = (leader + 1) % 3;
    nodes[leader].write(vec![1; 10]).await;
    let asker = Bare::new(identity(nodes[leader].node_id), config());
    let target = nodes[follower].node_id;
    asker.set_address(target, &[nodes[follower].addr.to_string()]);
    let shutdown = CancellationToken::new();
    tokio::spawn(asker.network.clone().run(shutdown.clone()));
    eventually("the link is up", || asker.network.links().get(&target) == Some(&LinkState::Connected)).await;
    nodes[follower].log.hang();
    // The others are a quorum; the follower's answer to this waits for its disk.
    nodes[leader].write(vec![2; 10]).await;
    let vote = proto::Vote { term: 1, node_id: nodes[leader].node_id, committed: false };
    let mut client = asker.network.clone().new_client(target, &NodeRecord::default()).await;
    let request = VoteRequest::new(vote_from_proto(&vote), None);
    let answer = client.pre_vote(request, RPCOption::new(Duration::from_millis(87))).await;
    assert!(!answer.unwrap().vote_granted, "its leader is alive");
    asker.network.asker().ping(target, Duration::from_millis(87)).await.unwrap();
    nodes[follower].log.recover();
    shutdown.cancel();
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_keeps_its_lease_while_the_others_sync_and_not_while_their_disks_hang() {
    let nodes = nodes(3).await;
    let leader = &nodes[found(&nodes).await];
    leader.write(vec![1; 10]).await;
    let followers: Vec<&Node> = nodes.iter().filter(|node| node.node_id != leader.node_id).collect();
    followers.iter().for_each(|follower| follower.log.hang());
    let (raft, command) = (leader.raft.clone(), Command::new(Kind::Block, vec![2; 10].into()));
    let writing = tokio::spawn(async move { raft.client_write(command).await });
    let last = |node: &Node| node.raft.data_metrics().borrow_watched().last_log.map(|id| id.index);
    eventually("all took the entry", || {
        let wanted = last(leader);
        followers.iter().all(|follower| last(follower) == wanted)
    })
    .await;
    let unheard_for =
        || leader.raft.data_metrics().borrow_watched().last_quorum_acked.unwrap().into_inner().elapsed();
    let (taken, lease) = (Instant::now(), Duration::from_millis(raft_config().election_timeout_max));
    eventually("heartbeats are acknowledged for two leases", || unheard_for() + 2 * lease < taken.elapsed())
        .await;
    assert!(!writing.is_finished(), "an entry that is on one disk is not agreed on");
    let is_heard =
        |node: &&Node| *node.answers.heard.lock().unwrap() == Some((leader.term(), leader.node_id));
    assert!(followers.iter().all(is_heard));

    followers.iter().for_each(|follower| follower.answers.is_sync_stuck.store(true, Ordering::SeqCst));
    eventually("the lease is over", || lease < unheard_for()).await;
    followers.iter().for_each(|follower| follower.log.recover());
    in_time("the entry is agreed on", writing).await.unwrap().unwrap();
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_tell_the_clock_the_leader_and_the_state_hash() {
    let nodes = nodes(2).await;
    let leader = found(&nodes).await;
    let follower = 1 - leader;
    let (leader_id, follower_id) = (nodes[leader].node_id, nodes[follower].node_id);
    let mark = HashMark { index: 500, hash: [5; 32] };
    *nodes[follower].bare.notices.own_mark.lock().unwrap() = Some(mark);
    eventually("the leader learns the hash", || {
        nodes[leader].bare.notices.marks.lock().unwrap().get(&follower_id) == Some(&mark)
    })
    .await;
    let term = nodes[leader].term();
    assert_eq!(*nodes[follower].answers.heard.lock().unwrap(), Some((term, leader_id)));
    let label = follower_id.to_string();
    let labels = [("peer_id", label.as_str())];
    let offset = nodes[leader].bare.metric("blockraft_peer_clock_offset_seconds", &labels).unwrap();
    assert!(offset.abs() < 0.5, "one machine has one clock: {offset}");
    let labels = [("peer_id", label.as_str()), ("rpc", "heartbeat")];
    assert!(0.0 < nodes[leader].bare.metric("blockraft_peer_rpc_seconds", &labels).unwrap());
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn an_unknown_kind_is_refused_and_changes_nothing() {
    use crate::peer::{dial::dial, wire::VERSION};
    use crate::types::proto::{FrameKind, Purpose};
    let node = Node::start(1, Config { ..config() }).await;
    let dialler = Bare::new(identity(2), config());
    dialler.set_address(1, &[node.addr.to_string()]);
    let mut connection =
        dial(dialler.shared(), 1, Purpose::Control).await.map_err(|e| e.to_string()).unwrap();
    assert_eq!(VERSION, 1);
    for kind in [FrameKind::SnapshotDone, FrameKind::Unknown] {
        connection.outbox.put_empty(kind, 5);
        connection.outbox.flush().await.unwrap();
        let answer = in_time("an answer", connection.reader.next()).await.unwrap();
        assert_eq!((answer.kind(), answer.id), (Some(FrameKind::Error), 5));
        let error: proto::Error = answer.decode().unwrap();
        assert_eq!(error.code(), proto::ErrorCode::Unsupported);
    }
    connection.outbox.put(FrameKind::Ping, 6, &proto::Ping { sent_at_ns: 1 });
    connection.outbox.flush().await.unwrap();
    assert_eq!(connection.reader.next().await.unwrap().kind(), Some(FrameKind::Pong));
    node.stop().await;
}
