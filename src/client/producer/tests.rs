use serde_json::json;

use super::*;
use crate::client::fake::{Chain, Fake, cluster};

const WITHIN: Duration = Duration::from_secs(10);

fn make(salt: u8) -> Make {
    Box::new(move |next| RaftBlockState {
        height: next.height,
        timestamp: next.timestamp,
        hash: Bytes::from(vec![salt, next.height as u8]),
        parent_hash: (!next.parent_hash.is_empty()).then_some(next.parent_hash),
        ..Default::default()
    })
}

/// Steps until so many are acknowledged, or the stream breaks.
async fn run(producer: &mut Producer, out: &mut Vec<Outcome>, n_acked: usize) -> Result<(), Broken> {
    while out.len() < n_acked {
        tokio::time::timeout(WITHIN, producer.step(out)).await.expect("an answer in time")?;
    }
    Ok(())
}

fn heights(chain: &Chain) -> Vec<u64> {
    chain.lock().expect("not poisoned").iter().map(|b| b.height).collect()
}

#[tokio::test]
async fn blocks_follow_the_head_in_order() {
    let chain = Chain::default();
    let node = Fake::start(1, &chain).await;
    node.leads(3);
    let mut producer = Producer::new(cluster(&[&node.endpoint]), make(1));
    let connected = producer.connect(WITHIN).await.expect("a leader");
    assert_eq!((connected.height, connected.leader.fence), (None, 3));
    let mut out = Vec::new();
    for _ in 0..300 {
        producer.offer(Instant::now());
    }
    run(&mut producer, &mut out, 300).await.expect("all taken");
    assert_eq!(heights(&chain), (1..=300).collect::<Vec<_>>());
    assert!(out.iter().all(|o| o.term == 3 && !o.duplicate));
    let parents: Vec<_> = chain.lock().expect("not poisoned").iter().map(|b| b.parent_hash.clone()).collect();
    assert_eq!((parents[0].clone(), parents[1].clone()), (None, Some(Bytes::from_static(&[1, 1]))));

    // Another producer goes on where this one stopped.
    let mut next = Producer::new(cluster(&[&node.endpoint]), make(2));
    assert_eq!(next.connect(WITHIN).await.expect("a leader").height, Some(300));
    next.offer(Instant::now());
    run(&mut next, &mut Vec::new(), 1).await.expect("taken");
    assert_eq!(heights(&chain).last(), Some(&301));
}

#[tokio::test]
async fn unanswered_blocks_are_proposed_again_to_the_next_leader() {
    let chain = Chain::default();
    let (a, b) = (Fake::start(1, &chain).await, Fake::start(2, &chain).await);
    a.leads(3);
    b.follows(&a);
    // Takes ten, answers five of them, breaks.
    a.set(|s| s.cut_after = Some(10));
    let mut producer = Producer::new(cluster(&[&a.endpoint, &b.endpoint]), make(1));
    producer.connect(WITHIN).await.expect("a leader");
    (0..20).for_each(|_| producer.offer(Instant::now()));
    let mut out = Vec::new();
    let broken = run(&mut producer, &mut out, 20).await.expect_err("broken");
    assert_eq!((broken.reason.as_str(), broken.outlook), ("disconnected", Outlook::Again));
    assert!(!producer.is_connected());
    let answered = out.len();
    assert!(answered <= 5, "{answered}");

    b.leads(4);
    a.follows(&b);
    let connected = producer.connect(WITHIN).await.expect("a leader");
    assert_eq!((connected.leader.node_id, connected.n_again), (2, 20 - answered));
    run(&mut producer, &mut out, 20).await.expect("all taken");
    assert_eq!(heights(&chain), (1..=20).collect::<Vec<_>>());
    assert_eq!(out.iter().map(|o| o.height).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    assert_eq!(out.iter().filter(|o| o.duplicate).count(), 10 - answered);
    assert_eq!(producer.in_flight(), 0);
}

#[tokio::test]
async fn a_leader_that_hangs_is_left_for_the_next_one() {
    let chain = Chain::default();
    let (a, b) = (Fake::start(1, &chain).await, Fake::start(2, &chain).await);
    a.leads(3);
    b.follows(&a);
    a.set(|s| s.mute_after = Some(5));
    let mut producer = Producer::new(cluster(&[&a.endpoint, &b.endpoint]), make(1));
    producer.silence_max = Duration::from_millis(300);
    producer.connect(WITHIN).await.expect("a leader");
    let mut out = Vec::new();
    // More and more of them, as of a producer with a rate: none of them counts as a sign of life.
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let begin = Instant::now();
    let broken = loop {
        assert!(begin.elapsed() < WITHIN, "it waits for ever");
        tokio::select! {
            stepped = producer.step(&mut out) => if let Err(broken) = stepped { break broken },
            _ = tick.tick() => producer.offer(Instant::now()),
        }
    };
    assert_eq!((broken.reason.as_str(), broken.outlook, out.len()), ("timeout", Outlook::Again, 5));
    assert!(broken.why.contains(a.endpoint.as_str()), "{}", broken.why);
    let n_again = producer.in_flight();
    a.set(|s| s.hangs = true);
    b.leads(4);
    let connected = producer.connect(WITHIN).await.expect("a leader");
    assert_eq!((connected.leader.node_id, connected.n_again), (2, n_again));
    run(&mut producer, &mut out, 5 + n_again).await.expect("all taken");
    // Nothing in flight is no silence.
    let quiet = tokio::time::timeout(Duration::from_millis(600), producer.step(&mut out)).await;
    assert!(quiet.is_err() && producer.is_connected());
}

#[tokio::test]
async fn a_leader_is_reached_while_another_endpoint_hangs() {
    let chain = Chain::default();
    let (hung, node) = (Fake::start(1, &chain).await, Fake::start(2, &chain).await);
    hung.set(|s| s.hangs = true);
    node.leads(3);
    let mut producer = Producer::new(cluster(&[&hung.endpoint, &node.endpoint]), make(1));
    assert_eq!(producer.connect(Duration::from_secs(2)).await.map(|c| c.leader.node_id), Ok(2));
}

#[tokio::test]
async fn another_producers_block_drops_ours() {
    let chain = Chain::default();
    let node = Fake::start(1, &chain).await;
    node.leads(3);
    let mut ours = Producer::new(cluster(&[&node.endpoint]), make(1));
    let mut theirs = Producer::new(cluster(&[&node.endpoint]), make(2));
    ours.connect(WITHIN).await.expect("a leader");
    theirs.connect(WITHIN).await.expect("a leader");
    theirs.offer(Instant::now());
    run(&mut theirs, &mut Vec::new(), 1).await.expect("taken");
    (0..3).for_each(|_| ours.offer(Instant::now()));
    let broken = run(&mut ours, &mut Vec::new(), 3).await.expect_err("refused");
    assert_eq!(
        (broken.reason.as_str(), broken.outlook, broken.n_dropped),
        ("conflict", Outlook::Contested, 3)
    );
    assert_eq!(ours.connect(WITHIN).await.expect("a leader").n_again, 0);
    ours.offer(Instant::now());
    run(&mut ours, &mut Vec::new(), 1).await.expect("taken");
    assert_eq!(heights(&chain), [1, 2]);
}

#[tokio::test]
async fn a_refused_stream_says_why_and_keeps_the_blocks() {
    let chain = Chain::default();
    let node = Fake::start(1, &chain).await;
    node.leads(3);
    let error = json!({"code": -32032, "message": "m", "data": {"kind": "refused", "reason": "fenced"}});
    node.set(|s| s.refuse_stream = Some((409, error)));
    let mut producer = Producer::new(cluster(&[&node.endpoint]), make(1));
    producer.connect(WITHIN).await.expect("a leader");
    producer.offer(Instant::now());
    let broken = run(&mut producer, &mut Vec::new(), 1).await.expect_err("refused");
    assert_eq!((broken.reason.as_str(), broken.outlook, producer.in_flight()), ("fenced", Outlook::Again, 1));
    node.set(|s| s.refuse_stream = None);
    assert_eq!(producer.connect(WITHIN).await.expect("a leader").n_again, 1);
    run(&mut producer, &mut Vec::new(), 1).await.expect("taken");
}

#[tokio::test]
async fn a_block_that_no_leader_takes_is_not_another_producers() {
    let chain = Chain::default();
    let node = Fake::start(1, &chain).await;
    node.leads(3);
    let too_large =
        json!({"code": -32602, "message": "m", "data": {"kind": "refused", "reason": "tooLarge"}});
    let no_body = json!({"code": -32007, "message": "m"});
    for (status, error) in [(400, too_large), (413, no_body)] {
        node.set(|s| s.refuse_stream = Some((status, error)));
        let mut producer = Producer::new(cluster(&[&node.endpoint]), make(1));
        producer.connect(WITHIN).await.expect("a leader");
        producer.offer(Instant::now());
        let broken = run(&mut producer, &mut Vec::new(), 1).await.expect_err("refused");
        assert_eq!((broken.outlook, broken.n_dropped, producer.in_flight()), (Outlook::Unfit, 1, 0));
    }
}

#[tokio::test]
async fn an_acknowledged_block_that_is_gone_is_noticed() {
    let chain = Chain::default();
    let node = Fake::start(1, &chain).await;
    node.leads(3);
    let mut producer = Producer::new(cluster(&[&node.endpoint]), make(1));
    producer.connect(WITHIN).await.expect("a leader");
    (0..3).for_each(|_| producer.offer(Instant::now()));
    run(&mut producer, &mut Vec::new(), 3).await.expect("taken");
    chain.lock().expect("not poisoned").pop();
    let lost = producer.connect(WITHIN).await.expect_err("a block is gone");
    assert_eq!(lost, ConnectError::BlockLost { acked: 3, head: 2 });
}

#[tokio::test]
async fn without_a_leader_it_gives_up_in_time() {
    let node = Fake::start(1, &Chain::default()).await;
    let mut producer = Producer::new(cluster(&[&node.endpoint]), make(1));
    let within = Duration::from_millis(60);
    assert_eq!(producer.connect(within).await, Err(ConnectError::NoReadyLeader(within)));
}
