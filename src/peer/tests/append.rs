//! The sending side of replication against a receiver that tests hold in their hands.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::{
    EntryPayload, RaftNetworkFactory,
    network::{NetStreamAppend, RPCOption},
    raft::{AppendEntriesRequest, StreamAppendError},
};
use tokio::{net::TcpListener, sync::mpsc};

use crate::machine::{Command, command::Kind};
use crate::peer::{
    Config,
    client::Client,
    convert,
    hello::{self, Connection},
    tests::support::{Bare, config, eventually, identity, in_time},
};
use crate::raft::{LogId, NodeRecord, TypeConfig, convert::vote_from_proto, log_id_of};
use crate::types::{
    position::LogPos,
    proto::{self, FrameKind},
};

fn log_id(index: u64) -> LogId {
    log_id_of(LogPos { term: 1, index })
}

/// One entry at this index.
fn request(index: u64, bytes: usize) -> AppendEntriesRequest<TypeConfig> {
    let command = Command::new(Kind::Block, Bytes::from(vec![index as u8; bytes]));
    AppendEntriesRequest {
        vote: vote_from_proto(&proto::Vote { term: 1, node_id: 1, committed: true }),
        prev_log_id: Some(log_id(index - 1)),
        entries: vec![openraft::Entry { log_id: log_id(index), payload: EntryPayload::Normal(command) }],
        leader_commit: None,
    }
}

/// Requests that count how many were asked for.
fn counted(
    requests: impl IntoIterator<Item = AppendEntriesRequest<TypeConfig>, IntoIter: Send + 'static>,
) -> (impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let stream = futures::stream::iter(requests).inspect(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    (stream, taken)
}

/// The receiver: connections as they are admitted.
async fn receiver() -> (SocketAddr, mpsc::Receiver<Connection>) {
    let bare = Bare::new(identity(2), config());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tx, rx) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, from)) = listener.accept().await {
            if let Ok(Some(connection)) = hello::welcome(bare.shared(), stream, from).await {
                tx.send(connection).await.unwrap();
            }
        }
    });
    (addr, rx)
}

async fn sender(config: Config, addr: SocketAddr) -> (Bare, Client) {
    let bare = Bare::new(identity(1), config);
    bare.set_address(2, &[addr.to_string()]);
    // A link makes the target a peer; nothing is asked on it.
    tokio::spawn(bare.network.clone().run(tokio_util::sync::CancellationToken::new()));
    eventually("the link is there", || !bare.network.links().is_empty()).await;
    let client = bare.network.clone().new_client(2, &NodeRecord::default()).await;
    (bare, client)
}

fn option() -> RPCOption {
    RPCOption::new(Duration::from_millis(50))
}

/// The log connection; the control connection is left alone.
async fn log_connection(rx: &mut mpsc::Receiver<Connection>) -> Connection {
    loop {
        let connection = in_time("a connection", rx.recv()).await.unwrap();
        if connection.purpose == proto::Purpose::Log {
            return connection;
        }
        // Kept open, silent: pings go unanswered, which is for other tests.
        tokio::spawn(answer_pings(connection));
    }
}

async fn answer_pings(mut connection: Connection) {
    while let Ok(frame) = connection.reader.next().await {
        connection.outbox.put(FrameKind::Pong, frame.id, &proto::Pong::default());
        if connection.outbox.flush().await.is_err() {
            return;
        }
    }
}

async fn receive(connection: &mut Connection) -> (u64, AppendEntriesRequest<TypeConfig>) {
    let frame = in_time("a request", connection.reader.next()).await.unwrap();
    let id = frame.id;
    (id, convert::append_from_proto(frame.decode().unwrap()).unwrap())
}

async fn acknowledge(connection: &mut Connection, id: u64, request: &AppendEntriesRequest<TypeConfig>) {
    let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
    connection.outbox.put(FrameKind::AppendAnswer, id, &convert::append_answer_to_proto(&Ok(last)));
    connection.outbox.flush().await.unwrap();
}

/// One request, acknowledged: from here on the window is open.
async fn prove(client: &mut Client, rx: &mut mpsc::Receiver<Connection>) -> Connection {
    let (input, _) = counted([request(1, 1)]);
    let mut answers = client.stream_append(input, option()).await.unwrap();
    let receiving = async {
        let mut connection = log_connection(rx).await;
        let (id, request) = receive(&mut connection).await;
        acknowledge(&mut connection, id, &request).await;
        connection
    };
    let (answer, connection) = in_time("an answer", async { tokio::join!(answers.next(), receiving) }).await;
    answer.unwrap().unwrap().unwrap();
    connection
}

#[tokio::test]
async fn answers_come_in_order_and_the_stream_ends_with_the_last() {
    let (addr, mut rx) = receiver().await;
    let (bare, mut client) = sender(config(), addr).await;
    let receiving = tokio::spawn(async move {
        let mut connection = log_connection(&mut rx).await;
        for index in 1..=200 {
            let (id, request) = receive(&mut connection).await;
            assert_eq!(request.entries[0].log_id, log_id(index));
            acknowledge(&mut connection, id, &request).await;
        }
        (connection, rx)
    });
    let (input, _) = counted((1..=200).map(|index| request(index, 100)));
    let answers = client.stream_append(input, option()).await.unwrap();
    let answers: Vec<_> = in_time("all answers", answers.collect()).await;
    let matched: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().unwrap().unwrap()).collect();
    assert_eq!(matched, (1..=200).map(log_id).collect::<Vec<_>>());
    assert_eq!(bare.notices.n_replicated.load(Ordering::SeqCst), 200);
    let (mut connection, mut rx) = receiving.await.unwrap();
    // The next stream uses the same connection.
    let (input, _) = counted([request(201, 100)]);
    let mut answers = client.stream_append(input, option()).await.unwrap();
    let receiving = async {
        let (id, request) = receive(&mut connection).await;
        acknowledge(&mut connection, id, &request).await;
    };
    let (answer, ()) = tokio::join!(answers.next(), receiving);
    assert_eq!(answer.unwrap().unwrap().unwrap(), Some(log_id(201)));
    assert!(answers.next().await.is_none());
    assert!(rx.try_recv().is_err(), "nothing was dialled");
}

/// The commit index alone, behind this entry.
fn commit(index: u64) -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest {
        prev_log_id: Some(log_id(index)),
        entries: Vec::new(),
        leader_commit: Some(log_id(index)),
        ..request(index, 0)
    }
}

#[tokio::test]
async fn a_commit_index_travels_with_the_entries_that_follow_closely_and_alone_behind_the_last() {
    const LAST: u64 = 300;
    let (addr, mut rx) = receiver().await;
    let (_bare, mut client) = sender(config(), addr).await;
    let mut connection = prove(&mut client, &mut rx).await;
    let requests = (2..=LAST).flat_map(|i| {
        let entry = AppendEntriesRequest { leader_commit: Some(log_id(i - 1)), ..request(i, 10) };
        [entry, commit(i)]
    });
    // Never ends: what waits is sent because nothing came.
    let input = futures::stream::iter(requests).chain(futures::stream::pending());
    let receiving = tokio::spawn(async move {
        let (mut entries, mut bare, mut committed) = (Vec::new(), 0, None);
        while committed != Some(log_id(LAST)) {
            let (id, request) = receive(&mut connection).await;
            assert!(committed <= request.leader_commit, "a commit index fell");
            committed = request.leader_commit;
            bare += usize::from(request.entries.is_empty());
            entries.extend(request.entries.iter().map(|e| e.log_id));
            acknowledge(&mut connection, id, &request).await;
        }
        (entries, bare)
    });
    let mut answers = client.stream_append(input, option()).await.unwrap();
    let mut matched = None;
    let received = in_time("the last commit index", async {
        tokio::pin!(receiving);
        loop {
            tokio::select! {
                received = &mut receiving => return received.unwrap(),
                answer = answers.next() => {
                    let answer = answer.unwrap().unwrap().unwrap();
                    assert!(matched <= answer, "an acknowledgement fell");
                    matched = answer;
                }
            }
        }
    })
    .await;
    let (entries, bare) = received;
    assert_eq!(entries, (2..=LAST).map(log_id).collect::<Vec<_>>(), "every entry once and in order");
    assert!((1..LAST as usize - 1).contains(&bare), "{bare} of {} went alone", LAST - 1);
}

#[tokio::test]
async fn no_more_requests_are_taken_than_the_window_has_room_for() {
    // Bytes: four of a mebibyte; requests: 64; a single one above every bound still goes.
    for (bytes, n_expected) in [(1_000_000, 4), (100, 64), (5_000_000, 1)] {
        let (addr, mut rx) = receiver().await;
        let (_bare, mut client) = sender(config(), addr).await;
        let mut connection = prove(&mut client, &mut rx).await;
        let (input, taken) = counted((1..=100).map(move |index| request(index, bytes)));
        let mut answers = client.stream_append(input, option()).await.unwrap();
        let receiving = async {
            let mut held = Vec::new();
            for _ in 0..n_expected {
                held.push(receive(&mut connection).await);
            }
            let more = tokio::time::timeout(Duration::from_millis(100), connection.reader.next()).await;
            assert!(more.is_err(), "the window is full");
            assert_eq!(taken.load(Ordering::SeqCst), n_expected);
            // One answer makes room for one request.
            let (id, request) = held.remove(0);
            acknowledge(&mut connection, id, &request).await;
            receive(&mut connection).await;
            assert_eq!(taken.load(Ordering::SeqCst), n_expected + 1);
            // Kept open.
            connection
        };
        let answering = async {
            assert!(answers.next().await.unwrap().is_ok());
            // Polled on, so that the next request is taken.
            assert!(tokio::time::timeout(Duration::from_millis(300), answers.next()).await.is_err());
        };
        in_time("the window", async { tokio::join!(receiving, answering) }).await;
    }
}

#[tokio::test]
async fn after_an_error_one_request_goes_until_it_is_acknowledged() {
    let (addr, mut rx) = receiver().await;
    let (_bare, mut client) = sender(config(), addr).await;
    drop(prove(&mut client, &mut rx).await);
    // Long enough for the end to arrive: the next stream dials.
    tokio::time::sleep(Duration::from_millis(20)).await;
    for refuses in [true, true, false] {
        let (input, taken) = counted((1..=5).map(|index| request(index, 10)));
        let mut answers = client.stream_append(input, option()).await.unwrap();
        let receiving = async {
            let mut connection = log_connection(&mut rx).await;
            let (id, request) = receive(&mut connection).await;
            if refuses {
                let full = crate::peer::wire::error(proto::ErrorCode::Storage, "the disk is full");
                connection.outbox.put(FrameKind::Error, id, &full);
                connection.outbox.flush().await.unwrap();
            } else {
                assert_eq!(taken.load(Ordering::SeqCst), 1);
                acknowledge(&mut connection, id, &request).await;
                for _ in 0..4 {
                    receive(&mut connection).await;
                }
            }
            connection
        };
        let answering = async {
            let answer = answers.next().await.unwrap();
            assert_eq!(answer.is_err(), refuses);
            let _ = tokio::time::timeout(Duration::from_millis(200), answers.next()).await;
        };
        in_time("an answer", async { tokio::join!(receiving, answering) }).await;
    }
}

#[tokio::test]
async fn a_large_request_behind_small_ones_waits_for_its_room() {
    let (addr, mut rx) = receiver().await;
    let (_bare, mut client) = sender(config(), addr).await;
    let mut connection = prove(&mut client, &mut rx).await;
    let sizes = [100, 100, 6_000_000, 100];
    let (input, taken) = counted((1..=4).zip(sizes).map(|(index, bytes)| request(index, bytes)));
    let mut answers = client.stream_append(input, option()).await.unwrap();
    let receiving = async {
        let small = [receive(&mut connection).await, receive(&mut connection).await];
        let more = tokio::time::timeout(Duration::from_millis(100), connection.reader.next()).await;
        assert!(more.is_err(), "it does not fit beside the others");
        assert_eq!(taken.load(Ordering::SeqCst), 3);
        for (id, request) in small {
            acknowledge(&mut connection, id, &request).await;
        }
        for _ in 0..2 {
            let (id, request) = receive(&mut connection).await;
            acknowledge(&mut connection, id, &request).await;
        }
        connection
    };
    let answering = async {
        for index in 1..=4 {
            assert_eq!(answers.next().await.unwrap().unwrap().unwrap(), Some(log_id(index)));
        }
        assert!(answers.next().await.is_none());
    };
    in_time("all answers", async { tokio::join!(receiving, answering) }).await;
}

#[tokio::test]
async fn when_nobody_listens_one_request_is_taken_and_the_error_is_an_answer() {
    let (bare, mut client) = sender(config(), "127.0.0.1:1".parse().unwrap()).await;
    let (input, taken) = counted((1..=10).map(|index| request(index, 10)));
    let mut answers = client.stream_append(input, option()).await.expect("never an error here");
    assert_eq!(taken.load(Ordering::SeqCst), 0);
    assert!(in_time("an answer", answers.next()).await.unwrap().is_err());
    assert_eq!(taken.load(Ordering::SeqCst), 1);
    assert!(answers.next().await.is_none());
    assert_eq!(bare.errors("2", "append", "connect"), 1.0);
}

#[tokio::test]
async fn an_empty_input_is_an_empty_answer_and_dials_nobody() {
    let (addr, mut rx) = receiver().await;
    let (_bare, mut client) = sender(config(), addr).await;
    let (input, _) = counted([]);
    assert!(client.stream_append(input, option()).await.unwrap().next().await.is_none());
    while let Ok(connection) = rx.try_recv() {
        assert_ne!(connection.purpose, proto::Purpose::Log);
    }
}

/// A leader that stood still polls a commit index, and then reads what was answered before.
#[tokio::test]
async fn a_late_answer_does_not_count_for_a_request_of_this_moment() {
    let (addr, mut rx) = receiver().await;
    let (_bare, mut client) = sender(config(), addr).await;
    let mut connection = prove(&mut client, &mut rx).await;
    let commit = AppendEntriesRequest { entries: vec![], ..request(3, 0) };
    let (input, _) = counted([request(2, 10), commit]);
    let mut answers = client.stream_append(input, option()).await.unwrap();
    let late = config().heartbeat_timeout / 3;
    let receiving = async {
        let (first, entry) = receive(&mut connection).await;
        let second = receive(&mut connection).await;
        tokio::time::sleep(late).await;
        acknowledge(&mut connection, first, &entry).await;
        tokio::time::sleep(late).await;
        second
    };
    let (second, commit) = tokio::select! {
        _ = answers.next() => panic!("the first answer would be taken for one to the second request"),
        second = receiving => second,
    };
    acknowledge(&mut connection, second, &commit).await;
    let answer = in_time("the second answer", answers.next()).await.unwrap().unwrap();
    assert_eq!(answer, Ok(Some(log_id(2))));
}

#[tokio::test]
async fn a_missing_answer_times_out() {
    let (addr, mut rx) = receiver().await;
    let config = Config { answer_timeout: Duration::from_millis(150), ..config() };
    let (bare, mut client) = sender(config, addr).await;
    let (input, _) = counted((1..=3).map(|index| request(index, 10)));
    let mut answers = client.stream_append(input, option()).await.unwrap();
    let receiving = async {
        let mut connection = log_connection(&mut rx).await;
        let (id, request) = receive(&mut connection).await;
        acknowledge(&mut connection, id, &request).await;
        // And never the second.
        while connection.reader.next().await.is_ok() {}
    };
    let answering = async {
        assert!(answers.next().await.unwrap().is_ok());
        assert!(answers.next().await.unwrap().is_err());
        assert!(answers.next().await.is_none());
    };
    in_time("the timeout", async { tokio::join!(receiving, answering) }).await;
    assert_eq!(bare.errors("2", "append", "timeout"), 1.0);
}

#[tokio::test]
async fn a_stream_given_up_with_answers_outstanding_takes_its_connection_along() {
    let (addr, mut rx) = receiver().await;
    let (_bare, mut client) = sender(config(), addr).await;
    let mut connection = prove(&mut client, &mut rx).await;
    let (input, _) = counted((1..=2).map(|index| request(index, 10)));
    let mut answers = client.stream_append(input, option()).await.unwrap();
    let receiving = async {
        let (id, request) = receive(&mut connection).await;
        receive(&mut connection).await;
        acknowledge(&mut connection, id, &request).await;
        connection
    };
    let (answer, mut connection) = tokio::join!(answers.next(), receiving);
    assert!(answer.unwrap().is_ok());
    drop(answers);
    assert!(in_time("the connection is closed", connection.reader.next()).await.is_err());
    // The next stream gets its own answers on another one.
    let (input, _) = counted([request(7, 10)]);
    let mut answers = client.stream_append(input, option()).await.unwrap();
    let receiving = async {
        let mut connection = log_connection(&mut rx).await;
        let (id, request) = receive(&mut connection).await;
        acknowledge(&mut connection, id, &request).await;
        connection
    };
    let (answer, _connection) = tokio::join!(answers.next(), receiving);
    assert_eq!(answer.unwrap().unwrap().unwrap(), Some(log_id(7)));
}

#[tokio::test]
async fn a_connection_that_died_between_two_streams_costs_no_error() {
    let (addr, mut rx) = receiver().await;
    let (_bare, mut client) = sender(config(), addr).await;
    for index in 1..=3 {
        let (input, _) = counted([request(index, 10)]);
        let mut answers = client.stream_append(input, option()).await.unwrap();
        let receiving = async {
            let mut connection = log_connection(&mut rx).await;
            let (id, request) = receive(&mut connection).await;
            acknowledge(&mut connection, id, &request).await;
        };
        // The receiver's end is dropped here.
        let (answer, ()) = in_time("an answer", async { tokio::join!(answers.next(), receiving) }).await;
        assert_eq!(answer.unwrap().unwrap().unwrap(), Some(log_id(index)));
        assert!(answers.next().await.is_none());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn conflicts_and_higher_votes_are_answers() {
    let (addr, mut rx) = receiver().await;
    let (_bare, mut client) = sender(config(), addr).await;
    let higher = vote_from_proto(&proto::Vote { term: 9, node_id: 3, committed: false });
    let outcomes = [Err(StreamAppendError::Conflict(log_id(4))), Err(StreamAppendError::HigherVote(higher))];
    let mut kept = None;
    for outcome in outcomes {
        let (input, _) = counted([request(5, 10)]);
        let mut answers = client.stream_append(input, option()).await.unwrap();
        let told = outcome.clone();
        let receiving = async {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => log_connection(&mut rx).await,
            };
            let (id, _) = receive(&mut connection).await;
            connection.outbox.put(FrameKind::AppendAnswer, id, &convert::append_answer_to_proto(&told));
            connection.outbox.flush().await.unwrap();
            connection
        };
        let (answer, connection) =
            in_time("an answer", async { tokio::join!(answers.next(), receiving) }).await;
        assert_eq!(answer.unwrap().unwrap(), outcome);
        kept = Some(connection);
    }
}

#[tokio::test]
async fn answers_that_were_not_asked_for_end_the_connection() {
    let (addr, mut rx) = receiver().await;
    let (bare, mut client) = sender(config(), addr).await;
    // A wrong id, and more than was sent.
    for (add_id, matched) in [(1, log_id(5)), (0, log_id(6))] {
        let (input, _) = counted([request(5, 10)]);
        let mut answers = client.stream_append(input, option()).await.unwrap();
        let receiving = async {
            let mut connection = log_connection(&mut rx).await;
            let (id, _) = receive(&mut connection).await;
            let answer = convert::append_answer_to_proto(&Ok(Some(matched)));
            connection.outbox.put(FrameKind::AppendAnswer, id + add_id, &answer);
            connection.outbox.flush().await.unwrap();
            connection
        };
        let (answer, _connection) =
            in_time("an answer", async { tokio::join!(answers.next(), receiving) }).await;
        assert!(answer.unwrap().is_err());
    }
    assert_eq!(bare.errors("2", "append", "malformed"), 2.0);
}
