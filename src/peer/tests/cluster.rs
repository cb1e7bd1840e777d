//! Real raft on memory, over real sockets.

use std::{sync::atomic::Ordering, time::Duration};

use openraft::{
    RaftNetworkFactory,
    network::{NetTransferLeader, RPCOption},
    raft::TransferLeaderRequest,
};

use crate::consensus::{Handover, HandoverAsk, PeerError, Peers};
use crate::peer::tests::{
    proxy::{Mode, Proxy},
    support::{PATIENCE, eventually, found, in_time, leader_of, nodes},
};
use crate::raft::NodeRecord;
use crate::types::proto::{FitnessGrade, LeadershipCause};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_elect_and_replicate_in_order() {
    let nodes = nodes(3).await;
    let leader = found(&nodes).await;
    for i in 0..200u32 {
        nodes[leader].write(i.to_be_bytes().to_vec()).await;
    }
    eventually("all have applied all", || nodes.iter().all(|n| n.machine.state().payloads.len() == 200))
        .await;
    for node in &nodes {
        let payloads = node.machine.state().payloads;
        assert!(payloads.iter().enumerate().all(|(i, p)| p[..] == (i as u32).to_be_bytes()));
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_entries_pass_and_leadership_stays() {
    let nodes = nodes(3).await;
    let leader = found(&nodes).await;
    let term = nodes[leader].term();
    let writes = (0..40u8).map(|i| nodes[leader].write(vec![i; 1 << 20]));
    futures::future::join_all(writes).await;
    nodes[leader].write(vec![9; 20 << 20]).await;
    eventually("all have applied all", || nodes.iter().all(|n| n.machine.state().payloads.len() == 41)).await;
    assert_eq!(nodes[leader].term(), term);
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_takes_over_when_the_leader_is_cut_off() {
    let mut nodes = nodes(3).await;
    let leader = found(&nodes).await;
    nodes[leader].write(vec![1]).await;
    let mut cut = nodes.remove(leader);
    let term = cut.term();
    cut.stop_network().await;
    let next = leader_of(&nodes, term).await;
    nodes[next].write(vec![2]).await;
    assert!(0 < nodes.iter().map(|n| n.bare.network.elections().borrow().started).sum::<u64>());
    cut.raft.shutdown().await.unwrap();
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_transferred_with_its_reason() {
    let nodes = nodes(3).await;
    let leader = found(&nodes).await;
    nodes[leader].write(vec![1]).await;
    let target = (leader + 1) % 3;
    let to = nodes[target].node_id;
    eventually("the target has all", || nodes[target].machine.state().payloads.len() == 1).await;
    let handover = Handover {
        from_term: nodes[leader].term(),
        from_node_id: nodes[leader].node_id,
        cause: LeadershipCause::Transfer,
        operation_id: "op-1".into(),
        accepts: FitnessGrade::Unwilling,
    };
    nodes[leader].bare.network.asker().announce_handover(handover.clone());
    nodes[leader].raft.trigger().transfer_leader(to).await.unwrap();
    assert_eq!(leader_of(&nodes, handover.from_term).await, target);
    assert_eq!(*nodes[target].bare.notices.handovers.lock().unwrap(), [handover]);
    let bystander = (leader + 2) % 3;
    assert!(nodes[bystander].bare.notices.handovers.lock().unwrap().is_empty());
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_may_not_take_over_says_so() {
    let nodes = nodes(2).await;
    let leader = found(&nodes).await;
    nodes[leader].write(vec![1]).await;
    let target = 1 - leader;
    nodes[target].answers.may_take_over.store(false, Ordering::SeqCst);
    let vote = {
        use openraft::async_runtime::watch::WatchReceiver;
        nodes[leader].raft.server_metrics().borrow_watched().vote
    };
    let to = nodes[target].node_id;
    let mut client = nodes[leader].bare.network.clone().new_client(to, &NodeRecord::default()).await;
    let request = TransferLeaderRequest::new(vote, to, None);
    let refused = client.transfer_leader(request, RPCOption::new(Duration::from_secs(5))).await;
    assert!(refused.unwrap_err().to_string().contains("paused"));
    assert!(nodes[target].bare.notices.handovers.lock().unwrap().is_empty());
    assert_eq!(nodes[target].leader(), Some(nodes[leader].node_id));
    // Asked before raft is told, it says the same, and the worst that is accepted decides.
    let asker = nodes[leader].bare.network.asker();
    let mut handover = Handover {
        from_term: nodes[leader].term(),
        from_node_id: nodes[leader].node_id,
        cause: LeadershipCause::Transfer,
        operation_id: String::new(),
        accepts: FitnessGrade::Fit,
    };
    let within = Duration::from_secs(5);
    let refused = asker.would_take_over(to, &handover, within).await;
    assert_eq!(refused, Err(PeerError::Refused("paused".into())));
    handover.accepts = FitnessGrade::Unwilling;
    assert_eq!(asker.would_take_over(to, &handover, within).await, Ok(()));
    // The leader learns of it with the next heartbeats.
    eventually("the leader knows how fit the target is", || {
        let fitness = nodes[leader].bare.notices.fitness.lock().unwrap();
        fitness.get(&to).is_some_and(|f| f.grade == FitnessGrade::Unwilling && f.reason == "paused")
    })
    .await;
    // And a follower that asks to lead is told why not.
    let own = nodes[target].bare.network.asker();
    let ask = HandoverAsk { to, operation_id: "op-9".into(), within };
    let answer = own.ask_handover(nodes[leader].node_id, ask, within).await.unwrap();
    assert_eq!(answer.unwrap_err().message, format!("node {to} for op-9"));
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_behind_a_bad_network_catches_up() {
    let nodes = nodes(3).await;
    let leader = found(&nodes).await;
    let follower = (leader + 1) % 3;
    let proxy = Proxy::start(nodes[follower].addr).await;
    nodes[leader].bare.set_address(nodes[follower].node_id, &[proxy.addr.to_string()]);
    let count = |n: usize| nodes[n].machine.state().payloads.len();
    let mut written = 0;
    for _ in 0..5 {
        for _ in 0..50 {
            nodes[leader].write(vec![7; 1000]).await;
            written += 1;
        }
        proxy.cut();
        for _ in 0..50 {
            nodes[leader].write(vec![7; 1000]).await;
            written += 1;
        }
    }
    eventually("the follower has all", || count(follower) == written).await;
    // A cable that was pulled, and put back.
    proxy.set(Mode::Hold);
    nodes[leader].write(vec![8]).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    nodes[leader].write(vec![8]).await;
    proxy.set(Mode::Forward);
    let healed = std::time::Instant::now();
    eventually("the follower has all", || count(follower) == written + 2).await;
    assert!(healed.elapsed() < Duration::from_secs(2), "{:?}", healed.elapsed());
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_that_changed_on_the_way_is_never_stored() {
    let nodes = nodes(2).await;
    let leader = found(&nodes).await;
    let follower = 1 - leader;
    let proxy = Proxy::start(nodes[follower].addr).await;
    let follower_id = nodes[follower].node_id;
    nodes[leader].bare.set_address(follower_id, &[proxy.addr.to_string()]);
    in_time("a ping", nodes[leader].bare.network.asker().ping(follower_id, PATIENCE)).await.unwrap();
    nodes[leader].write(vec![1; 100]).await;
    // Deep within the payload of what comes next on the log connection.
    proxy.set(Mode::Flip(100_000));
    let write = nodes[leader].write(vec![2; 200_000]);
    let heal = async {
        let label = nodes[leader].node_id.to_string();
        let bare = &nodes[follower].bare;
        eventually("it is noticed", || 1.0 <= bare.errors(&label, "append", "corrupt")).await;
        proxy.set(Mode::Forward);
    };
    in_time("the write passes when the network is good again", async { tokio::join!(write, heal) }).await;
    let payloads = nodes[follower].machine.state().payloads;
    assert!(payloads.iter().all(|p| p.iter().all(|b| *b == p[0])));
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_follower_stores_nothing_and_still_follows() {
    let nodes = nodes(3).await;
    let leader = found(&nodes).await;
    let follower = (leader + 1) % 3;
    nodes[leader].write(vec![1]).await;
    eventually("the follower has it", || nodes[follower].machine.state().payloads.len() == 1).await;
    let term = nodes[leader].term();
    nodes[follower].bare.notices.may_store.store(false, Ordering::SeqCst);
    for _ in 0..20 {
        nodes[leader].write(vec![2]).await;
    }
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(nodes[follower].machine.state().payloads.len(), 1);
    assert_eq!((nodes[follower].term(), nodes[follower].leader()), (term, Some(nodes[leader].node_id)));
    nodes[follower].bare.notices.may_store.store(true, Ordering::SeqCst);
    eventually("the follower has all", || nodes[follower].machine.state().payloads.len() == 21).await;
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_is_told() {
    let nodes = nodes(3).await;
    let leader = found(&nodes).await;
    nodes[leader].write(vec![1]).await;
    let removed = (leader + 1) % 3;
    let left: std::collections::BTreeSet<u64> =
        nodes.iter().map(|n| n.node_id).filter(|id| *id != nodes[removed].node_id).collect();
    in_time("the change", nodes[leader].raft.change_membership(left.clone(), false)).await.unwrap();
    let told = || *nodes[removed].bare.notices.not_member.lock().unwrap();
    eventually("somebody tells it", || told().is_some()).await;
    let (by, version) = told().unwrap();
    assert!(left.contains(&by));
    assert!(0 < version);
    for node in nodes {
        node.stop().await;
    }
}
