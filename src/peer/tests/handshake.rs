//! Who is admitted and who is not, on both sides, and what a stranger costs.

use std::{net::SocketAddr, sync::Arc, sync::atomic::Ordering, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::consensus::Peers;
use crate::peer::{
    Config, Identity,
    dial::{DialError, dial},
    hello::{self, HelloError},
    tests::support::{Bare, Node, config, eventually, identity, in_time},
};
use crate::types::{
    position::LogPos,
    proto::{Purpose, RefusalCode},
};

/// A node that welcomes without raft, and its address.
async fn welcoming(identity: Identity) -> (Arc<Bare>, SocketAddr) {
    let bare = Arc::new(Bare::new(identity, quick()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let answerer = Arc::clone(&bare);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, from)) = listener.accept().await {
            if let Ok(Some(connection)) = hello::welcome(answerer.shared(), stream, from).await {
                kept.push(connection);
            }
        }
    });
    (bare, addr)
}

fn quick() -> Config {
    Config {
        hello_timeout: Duration::from_millis(300),
        stall_timeout: Duration::from_millis(200),
        ..config()
    }
}

/// What the dialler is told.
async fn dial_code(dialler: &Bare, addr: SocketAddr) -> Result<(), (bool, RefusalCode)> {
    dialler.set_address(2, &[addr.to_string()]);
    match in_time("a dial", dial(dialler.shared(), 2, Purpose::Control)).await {
        Ok(connection) => {
            assert_eq!(connection.peer_id, 2);
            Ok(())
        }
        Err(DialError::Hello { error: HelloError::Here(refused), .. }) => Err((true, refused.code)),
        Err(DialError::Hello { error: HelloError::There(refused), .. }) => Err((false, refused.code)),
        Err(e) => panic!("neither admitted nor refused: {e}"),
    }
}

#[tokio::test]
async fn the_same_cluster_is_admitted_and_remembered_on_both_sides() {
    let (answerer, addr) = welcoming(identity(2)).await;
    let dialler = Bare::new(identity(1), quick());
    // The answerer keeps whoever it may belong to.
    answerer.set_address(1, &["127.0.0.1:1".into()]);
    dial_code(&dialler, addr).await.unwrap();
    assert_eq!(dialler.incarnations.known.lock().unwrap().get(&2), Some(&[2; 16]));
    assert_eq!(answerer.incarnations.known.lock().unwrap().get(&1), Some(&[1; 16]));
    let known = vec![(16, 1), (17, 1), (18, 1)];
    assert_eq!(dialler.notices.commands.lock().unwrap().get(&2), Some(&known));
    assert_eq!(answerer.notices.commands.lock().unwrap().get(&1), Some(&known));
}

#[tokio::test]
async fn another_cluster_epoch_or_node_is_refused_and_counted() {
    let own = identity(1);
    let others = [
        (Identity { cluster_id: "other".into(), ..identity(2) }, RefusalCode::ClusterId, "cluster_id"),
        (Identity { epoch: 2, ..identity(2) }, RefusalCode::ClusterEpoch, "cluster_epoch"),
        (identity(3), RefusalCode::NodeId, "node_id"),
        (identity(1), RefusalCode::NodeId, "node_id"),
    ];
    for (other, code, reason) in others {
        let (answerer, addr) = welcoming(other).await;
        let dialler = Bare::new(own.clone(), quick());
        dialler.set_address(2, &[addr.to_string()]);
        dialler.shared().metrics.keep(&[2]);
        answerer.shared().metrics.keep(&[1]);
        assert_eq!(dial_code(&dialler, addr).await, Err((false, code)));
        assert_eq!(dialler.errors("2", "hello", reason), 1.0);
        assert_eq!(answerer.errors("1", "hello", reason), 1.0);
        assert!(dialler.incarnations.known.lock().unwrap().is_empty());
        assert!(answerer.incarnations.known.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn another_incarnation_is_refused_by_whoever_remembers() {
    // The answerer remembers another one of the dialler.
    let (answerer, addr) = welcoming(identity(2)).await;
    answerer.incarnations.known.lock().unwrap().insert(1, [9; 16]);
    let dialler = Bare::new(identity(1), quick());
    assert_eq!(dial_code(&dialler, addr).await, Err((false, RefusalCode::Incarnation)));
    // The dialler remembers another one of the answerer.
    let (answerer, addr) = welcoming(identity(2)).await;
    answerer.shared().metrics.keep(&[1]);
    let dialler = Bare::new(identity(1), quick());
    dialler.incarnations.known.lock().unwrap().insert(2, [9; 16]);
    assert_eq!(dial_code(&dialler, addr).await, Err((true, RefusalCode::Incarnation)));
    assert_eq!(dialler.incarnations.known.lock().unwrap().get(&2), Some(&[9; 16]));
}

#[tokio::test]
async fn a_dialler_that_refuses_says_why() {
    for purpose in [Purpose::Log, Purpose::Control, Purpose::Snapshot] {
        let node = Node::start(1, quick()).await;
        node.bare.set_address(2, &["127.0.0.1:1".into()]);
        let dialler = Bare::new(identity(2), quick());
        dialler.incarnations.known.lock().unwrap().insert(1, [9; 16]);
        dialler.set_address(1, &[node.addr.to_string()]);
        assert!(dial(dialler.shared(), 1, purpose).await.is_err());
        let counted = || node.bare.errors("2", "hello", "incarnation") == 1.0;
        eventually("the other side counts it too", counted).await;
        node.stop().await;
    }
}

#[tokio::test]
async fn an_incarnation_that_cannot_be_stored_is_not_admitted() {
    let (_answerer, addr) = welcoming(identity(2)).await;
    let dialler = Bare::new(identity(1), quick());
    dialler.incarnations.is_broken.store(true, Ordering::SeqCst);
    assert_eq!(dial_code(&dialler, addr).await, Err((true, RefusalCode::Storage)));
}

#[tokio::test]
async fn a_folder_from_an_older_copy_is_refused() {
    let (answerer, addr) = welcoming(identity(2)).await;
    let dialler = Bare::new(identity(1), quick());
    answerer.notices.floors.lock().unwrap().insert(1, LogPos { term: 4, index: 100 });
    *dialler.notices.own_last.lock().unwrap() = Some(LogPos { term: 4, index: 99 });
    assert_eq!(dial_code(&dialler, addr).await, Err((false, RefusalCode::Position)));
    // A later term counts more than a higher index.
    *dialler.notices.own_last.lock().unwrap() = Some(LogPos { term: 5, index: 98 });
    dial_code(&dialler, addr).await.unwrap();
}

/// Resets and lost packets hold one connection up while another one goes on.
#[tokio::test]
async fn a_hello_that_comes_late_is_no_older_copy() {
    let (answerer, addr) = welcoming(identity(2)).await;
    answerer.set_address(1, &["127.0.0.1:1".into()]);
    let dialler = Bare::new(identity(1), quick());
    *dialler.notices.own_last.lock().unwrap() = Some(LogPos { term: 4, index: 99 });
    dial_code(&dialler, addr).await.unwrap();
    // What it acknowledged after it wrote its next Hello comes first.
    answerer.notices.floors.lock().unwrap().insert(1, LogPos { term: 4, index: 100 });
    dial_code(&dialler, addr).await.unwrap();
    // Another process may have another folder.
    let restarted = Bare::new(identity(1), quick());
    *restarted.notices.own_last.lock().unwrap() = Some(LogPos { term: 4, index: 99 });
    assert_eq!(dial_code(&restarted, addr).await, Err((false, RefusalCode::Position)));
    dial_code(&dialler, addr).await.unwrap();
}

#[tokio::test]
async fn every_address_is_tried_until_one_is_the_node() {
    let (_wrong, wrong_addr) = welcoming(identity(3)).await;
    let (_right, right_addr) = welcoming(identity(2)).await;
    let dialler = Bare::new(identity(1), quick());
    let names = ["no-such-host.invalid:1".to_owned(), "127.0.0.1:1".into(), wrong_addr.to_string()];
    dialler.set_address(2, &names);
    // The one that is there and says no explains more than those where nobody is.
    let Err(e) = in_time("a dial", dial(dialler.shared(), 2, Purpose::Log)).await else {
        panic!("nobody there is node 2");
    };
    assert!(e.is_refusal(), "{e}");
    let by_name = format!("localhost:{}", right_addr.port());
    dialler.set_address(2, &[names[1].clone(), names[2].clone(), by_name]);
    in_time("a dial", dial(dialler.shared(), 2, Purpose::Log)).await.map_err(|e| e.to_string()).unwrap();
}

#[tokio::test]
async fn a_probe_tells_who_it_is_and_leaves_no_trace() {
    let (answerer, addr) = welcoming(Identity { cluster_id: "other".into(), epoch: 7, ..identity(2) }).await;
    let asker = Bare::new(identity(1), quick());
    let probed = asker.network.asker().probe(&addr.to_string(), Duration::from_secs(5)).await.unwrap();
    assert_eq!((probed.cluster_id.as_str(), probed.is_of_epoch, probed.node_id), ("other", false, 2));
    assert_eq!(probed.incarnation, [2; 16]);
    assert_eq!(probed.known_commands, [(16, 1), (17, 1), (18, 1)]);
    assert!(answerer.incarnations.known.lock().unwrap().is_empty());
    assert!(asker.incarnations.known.lock().unwrap().is_empty());
}

/// Connects to a real peer port and says this; returns when the other side has closed.
async fn say_and_wait(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset is as good as an end.
    let _ = in_time("the port closes a stranger", stream.read_to_end(&mut answer)).await;
    answer
}

#[tokio::test]
async fn strangers_are_closed_in_time_and_counted() {
    let node = Node::start(1, quick()).await;
    let errors = |reason: &str| node.bare.errors("unknown", "hello", reason);
    // Silence, half a frame, a frame above the bound, garbage, HTTP, a frame that is no Hello.
    assert!(say_and_wait(node.addr, b"").await.is_empty());
    assert_eq!(errors("timeout"), 1.0);
    assert!(say_and_wait(node.addr, &[0, 0, 0, 100, 1, 1, 0]).await.is_empty());
    assert_eq!(errors("timeout"), 2.0);
    say_and_wait(node.addr, &[0, 1, 0, 0, 1, 1]).await;
    assert_eq!(errors("malformed"), 1.0);
    say_and_wait(node.addr, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(errors("malformed"), 2.0);
    let refusal = say_and_wait(node.addr, &[0, 0, 0, 10, 1, 4, 0, 0, 0, 0, 0, 0, 0, 1]).await;
    assert_eq!(refusal[5], 2, "a Refusal says why");
    assert_eq!(errors("malformed"), 3.0);
    let refusal = say_and_wait(node.addr, &[0, 0, 0, 10, 9, 1, 0, 0, 0, 0, 0, 0, 0, 1]).await;
    assert_eq!(refusal[5], 2, "a Refusal says why");
    // Gone before it said anything.
    drop(TcpStream::connect(node.addr).await.unwrap());
    eventually("a connection that ends at once is counted", || errors("closed") == 1.0).await;
    node.stop().await;
}

#[tokio::test]
async fn strangers_do_not_keep_a_peer_out() {
    let config = Config { hello_timeout: Duration::from_secs(60), ..quick() };
    let node = Node::start(1, config).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(node.addr).await.unwrap());
    }
    let dialler = Bare::new(identity(2), quick());
    dialler.set_address(1, &[node.addr.to_string()]);
    let dialled = in_time("a dial", dial(dialler.shared(), 1, Purpose::Control)).await;
    dialled.map_err(|e| e.to_string()).unwrap();
    // The oldest strangers made room.
    let mut byte = [0; 1];
    assert_eq!(in_time("the first is closed", silent[0].read(&mut byte)).await.unwrap_or(0), 0);
    node.stop().await;
}

#[tokio::test]
async fn admitted_connections_are_bounded() {
    let node = Node::start(1, Config { connections_max: 2, ..quick() }).await;
    let mut open = Vec::new();
    for node_id in 2..=4 {
        let dialler = Bare::new(identity(node_id), quick());
        dialler.set_address(1, &[node.addr.to_string()]);
        let dialled = dial(dialler.shared(), 1, Purpose::Control).await;
        open.push(dialled.map_err(|e| e.to_string()).unwrap());
    }
    assert!(in_time("the third is closed", open[2].reader.next()).await.is_err());
    node.stop().await;
}

#[tokio::test]
async fn a_newer_connection_of_the_same_kind_ends_the_oldest() {
    let node = Node::start(1, quick()).await;
    let dialler = Bare::new(identity(2), quick());
    dialler.set_address(1, &[node.addr.to_string()]);
    let mut connections = Vec::new();
    for _ in 0..5 {
        let connection = dial(dialler.shared(), 1, Purpose::Log).await.map_err(|e| e.to_string()).unwrap();
        connections.push(connection);
    }
    assert!(in_time("the oldest is closed", connections[0].reader.next()).await.is_err());
    let open = tokio::time::timeout(Duration::from_millis(100), connections[1].reader.next()).await;
    assert!(open.is_err(), "the others stay");
    node.stop().await;
}
