//! Snapshots over a network that breaks, and what a receiver does with a bad one.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;

use crate::peer::{
    SendOutcome,
    dial::dial,
    install::PROGRESS_EVERY,
    snapshot::CHUNK_BYTES,
    tests::{
        memory::file_of,
        proxy::{Mode, Proxy},
        support::{Bare, CLUSTER, Node, config, eventually, found, identity, in_time, introduce, nodes},
    },
};
use crate::types::proto::{self, ErrorCode, FrameKind, Purpose};

/// Two nodes with this much state whose log does not reach back, and a third that joins.
async fn needs_snapshot(n_mib: usize) -> (Vec<Node>, usize) {
    let mut nodes = nodes(2).await;
    let leader = found(&nodes).await;
    for i in 0..n_mib {
        nodes[leader].write(vec![i as u8; 1 << 20]).await;
    }
    nodes[leader].raft.trigger().snapshot().await.unwrap();
    let last = nodes[leader].machine.state().applied.unwrap().index();
    let raft = nodes[leader].raft.clone();
    in_time(
        "a snapshot",
        raft.wait(None).metrics(|m| m.snapshot.map(|id| id.index()) >= Some(last), "built"),
    )
    .await
    .unwrap();
    nodes[leader].raft.trigger().purge_log(last).await.unwrap();
    in_time("a purge", raft.wait(None).metrics(|m| m.purged.map(|id| id.index()) >= Some(last), "purged"))
        .await
        .unwrap();
    nodes.push(Node::start(3, config()).await);
    introduce(&nodes);
    (nodes, leader)
}

async fn add_third(nodes: &[Node], leader: usize) {
    in_time("adding", nodes[leader].raft.add_learner(3, nodes[2].record(), false)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_node_is_brought_up_by_a_snapshot_and_goes_on_by_log() {
    let (nodes, leader) = needs_snapshot(5).await;
    add_third(&nodes, leader).await;
    eventually("the snapshot is installed", || nodes[2].machine.state().payloads.len() == 5).await;
    nodes[leader].write(vec![9]).await;
    eventually("the log goes on", || nodes[2].machine.state().payloads.len() == 6).await;
    let sent = || nodes[leader].bare.snapshots.sent.lock().unwrap().clone();
    eventually("the sender knows", || sent() == [SendOutcome::Ok]).await;
    let labels = [("peer_id", "3"), ("rpc", "snapshot")];
    assert_eq!(nodes[leader].bare.metric("blockraft_peer_rpc_seconds", &labels), Some(1.0));
    let voters: BTreeSet<u64> = nodes.iter().map(|n| n.node_id).collect();
    in_time("promotion", nodes[leader].raft.change_membership(voters, false)).await.unwrap();
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_breaks_is_resumed_where_it_stopped() {
    let (nodes, leader) = needs_snapshot(8).await;
    let proxy = Proxy::start(nodes[2].addr).await;
    proxy.set(Mode::CutAfter(3 << 20));
    nodes[leader].bare.set_address(3, &[proxy.addr.to_string()]);
    add_third(&nodes, leader).await;
    eventually("the snapshot is installed", || nodes[2].machine.state().payloads.len() == 8).await;
    let resumed = nodes[2].bare.snapshots.resumed.lock().unwrap().clone();
    assert_eq!(resumed[0], 0);
    assert!(resumed.iter().skip(1).all(|have| 0 < *have), "{resumed:?}");
    assert!(resumed.windows(2).all(|pair| pair[0] <= pair[1]), "{resumed:?}");
    assert!(2 <= resumed.len());
    // Not much more than the snapshot went over the network.
    assert!(proxy.n_passed() < 11 << 20, "{}", proxy.n_passed());
    let sent = || nodes[leader].bare.snapshots.sent.lock().unwrap().clone();
    eventually("the sender knows", || sent() == [SendOutcome::Ok]).await;
    for node in nodes {
        node.stop().await;
    }
}

/// Someone who offers a snapshot by hand, as node 2 to node 1.
struct Offering {
    node: Node,
    dialler: Bare,
}

impl Offering {
    async fn start() -> Self {
        let node = Node::start(1, config()).await;
        let dialler = Bare::new(identity(2), config());
        dialler.set_address(1, &[node.addr.to_string()]);
        Self { node, dialler }
    }

    async fn offer(&self, manifest: proto::SnapshotManifest) -> crate::peer::hello::Connection {
        let dialled = dial(self.dialler.shared(), 1, Purpose::Snapshot).await;
        let mut connection = dialled.map_err(|e| e.to_string()).unwrap();
        let vote = proto::Vote { term: 1, node_id: 2, committed: true };
        let offer = proto::SnapshotOffer { vote: Some(vote), manifest: Some(manifest) };
        connection.outbox.put(FrameKind::SnapshotOffer, 0, &offer);
        connection.outbox.flush().await.unwrap();
        connection
    }
}

fn manifest(files: Vec<proto::SnapshotFile>) -> proto::SnapshotManifest {
    proto::SnapshotManifest {
        format_version: 1,
        id: "offered".into(),
        cluster_id: CLUSTER.into(),
        last_log_id: Some(proto::LogId { term: 1, index: 5 }),
        membership: Some(proto::StoredMembership {
            log_id: None,
            membership: Some(proto::Membership::default()),
        }),
        files,
        ..Default::default()
    }
}

async fn error_of(connection: &mut crate::peer::hello::Connection) -> proto::Error {
    loop {
        let frame = in_time("an answer", connection.reader.next()).await.unwrap();
        match frame.kind() {
            Some(FrameKind::SnapshotProgress) => {}
            Some(FrameKind::Error) => return frame.decode().unwrap(),
            kind => panic!("{kind:?}"),
        }
    }
}

#[tokio::test]
async fn a_manifest_that_leads_elsewhere_is_refused() {
    let offering = Offering::start().await;
    let file = |name: &str| manifest(vec![file_of(name, b"x")]);
    let foreign = proto::SnapshotManifest { cluster_id: "other".into(), ..file("a") };
    let id = proto::SnapshotManifest { id: "../a".into(), ..file("a") };
    for bad in [file("../a"), file("a/b"), file(""), file(".."), file("a\0"), foreign, id] {
        let mut connection = offering.offer(bad).await;
        assert_eq!(error_of(&mut connection).await.code(), ErrorCode::Malformed);
    }
    assert_eq!(offering.node.bare.snapshots.n_begun.load(Ordering::SeqCst), 0);
    offering.node.stop().await;
}

/// Raft's core asserts it: it would not survive such a snapshot.
#[tokio::test]
async fn a_snapshot_of_a_later_term_than_its_senders_is_refused() {
    let offering = Offering::start().await;
    let later = proto::SnapshotManifest {
        last_log_id: Some(proto::LogId { term: 2, index: 5 }),
        ..manifest(vec![file_of("payloads", b"x")])
    };
    let mut connection = offering.offer(later).await;
    assert_eq!(error_of(&mut connection).await.code(), ErrorCode::Malformed);
    assert_eq!(offering.node.bare.snapshots.n_begun.load(Ordering::SeqCst), 0);
    offering.node.stop().await;
}

#[tokio::test]
async fn a_snapshot_whose_content_differs_is_not_installed() {
    let offering = Offering::start().await;
    let mut connection = offering.offer(manifest(vec![file_of("payloads", b"good")])).await;
    let have = in_time("an answer", connection.reader.next()).await.unwrap();
    assert_eq!(have.kind(), Some(FrameKind::SnapshotHave));
    let data = Bytes::from_static(b"evil");
    let chunk = proto::SnapshotChunk { file: 0, offset: 0, crc: crc32fast::hash(&data), data };
    connection.outbox.put(FrameKind::SnapshotChunk, 0, &chunk);
    connection.outbox.put_empty(FrameKind::SnapshotDone, 0);
    connection.outbox.flush().await.unwrap();
    assert_eq!(error_of(&mut connection).await.code(), ErrorCode::Corrupt);
    assert!(offering.node.machine.state().applied.is_none());
    offering.node.stop().await;
}

#[tokio::test]
async fn a_piece_that_changed_or_does_not_fit_ends_the_transfer() {
    let offering = Offering::start().await;
    let data = Bytes::from_static(b"data");
    let crc = crc32fast::hash(&data);
    let chunk = |file, offset, crc| proto::SnapshotChunk { file, offset, crc, data: data.clone() };
    for bad in [chunk(0, 0, crc + 1), chunk(0, 1, crc), chunk(1, 0, crc), chunk(0, 5, crc)] {
        let mut connection = offering.offer(manifest(vec![file_of("payloads", b"data!")])).await;
        in_time("an answer", connection.reader.next()).await.unwrap();
        connection.outbox.put(FrameKind::SnapshotChunk, 0, &bad);
        connection.outbox.flush().await.unwrap();
        assert!(in_time("the end", connection.reader.next()).await.is_err());
    }
    assert_eq!(offering.node.bare.errors("unknown", "hello", "corrupt"), 0.0);
    offering.node.stop().await;
}

#[tokio::test]
async fn a_newer_transfer_takes_the_turn_of_a_silent_one() {
    let offering = Offering::start().await;
    let file = file_of("payloads", &[0; 2 * CHUNK_BYTES]);
    let mut silent = offering.offer(manifest(vec![file.clone()])).await;
    in_time("an answer", silent.reader.next()).await.unwrap();
    let mut newer = offering.offer(manifest(vec![file])).await;
    let have = tokio::time::timeout(Duration::from_secs(2), newer.reader.next()).await;
    assert_eq!(have.unwrap().unwrap().kind(), Some(FrameKind::SnapshotHave));
    assert_eq!(error_of(&mut silent).await.code(), ErrorCode::Busy);
    offering.node.stop().await;
}

/// Else both would work on the same files.
#[tokio::test]
async fn a_snapshot_that_is_verified_keeps_the_turn_when_its_connection_breaks() {
    let offering = Offering::start().await;
    let snapshots = &offering.node.bare.snapshots;
    let held = Arc::clone(&snapshots.verifying).lock_owned().await;
    // One payload of one byte.
    let data = Bytes::from_static(&[0, 0, 0, 1, 7]);
    let file = file_of("payloads", &data);
    let mut first = offering.offer(manifest(vec![file.clone()])).await;
    in_time("an answer", first.reader.next()).await.unwrap();
    let chunk = proto::SnapshotChunk { file: 0, offset: 0, crc: crc32fast::hash(&data), data };
    first.outbox.put(FrameKind::SnapshotChunk, 0, &chunk);
    first.outbox.put_empty(FrameKind::SnapshotDone, 0);
    first.outbox.flush().await.unwrap();
    eventually("it is being verified", || snapshots.n_verified.load(Ordering::SeqCst) == 1).await;
    drop(first);
    let mut second = offering.offer(manifest(vec![file])).await;
    // Long enough for the node to tell the first of its progress twice, and to find that nobody hears it.
    let early = tokio::time::timeout(PROGRESS_EVERY * 5 / 2, second.reader.next()).await;
    assert!(early.is_err(), "the second began while the first was being verified");
    drop(held);
    let have = in_time("the turn", second.reader.next()).await.unwrap();
    assert_eq!(have.kind(), Some(FrameKind::SnapshotHave));
    // The first was carried to its end, though nobody waited for it any more.
    assert_eq!(snapshots.n_settled.load(Ordering::SeqCst), 1);
    offering.node.stop().await;
}
