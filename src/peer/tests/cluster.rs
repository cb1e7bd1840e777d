//! Real raft on memory, over real sockets.

use crate::peer::tests::support::{eventually, found, nodes};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_elect_and_replicate_in_order() {
    let nodes = nodes(3).await;
    let leader = found(&nodes).await;
    for i in 0..200u32 {
        nodes[leader].write(i.to_be_bytes().to_vec()).await;
    }
    eventually("all have applied all", || nodes.iter().all(|n| n.machine.state().payloads.len() == 200)).await;
    for node in &nodes {
        let payloads = node.machine.state().payloads;
        assert!(payloads.iter().enumerate().all(|(i, p)| p[..] == (i as u32).to_be_bytes()));
    }
    for node in nodes {
        node.stop().await;
    }
}
