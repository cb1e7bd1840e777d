//! A producer that obeys the fence: proposes blocks over the ordered stream of the ready leader.
//!
//! When a stream ends, it finds the leader anew and proposes every unanswered block again, the same
//! bytes at the same height: that is safe, and the only way to learn what became of an unknown one.
//! Driven by its owner through [`Producer::offer`] and [`Producer::step`]; runs no task of its own.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use crate::client::cluster::{Cluster, ReadyLeader};
use crate::client::frame;
use crate::client::rpc::RpcError;
use crate::client::stream::{Line, Ready, Stream, StreamError};
use crate::client::wire::{Head, Status};
use crate::types::proto::RaftBlockState;
use crate::types::{Height, Term};

/// Bytes of one chunk of the request, about: enough for hundreds of small blocks in one write.
const PIECE_BYTES: usize = 64 << 10;
/// Between two looks for a leader: what failover is probed with, and what a hand-over that takes a few
/// milliseconds is worth.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// One look at all endpoints: a node that takes longer is as good as absent.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// What the next block is made of.
pub(crate) struct Next {
    pub(crate) height: Height,
    /// Nanoseconds since the epoch.
    pub(crate) timestamp: u64,
    /// Empty before the first block.
    pub(crate) parent_hash: Bytes,
}

/// Makes blocks.
pub(crate) type Make = Box<dyn FnMut(Next) -> RaftBlockState + Send>;

/// A block that was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// When it was to be sent.
    pub(crate) due: Instant,
    pub(crate) height: Height,
    pub(crate) term: Term,
    pub(crate) duplicate: bool,
}

/// A stream that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connected {
    pub(crate) leader: ReadyLeader,
    /// The leader's head.
    pub(crate) height: Option<Height>,
    /// Unanswered blocks that are proposed again.
    pub(crate) n_again: usize,
}

/// Why there is no stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no leader was ready within {0:?}")]
    NoReadyLeader(Duration),
    /// Must never happen.
    #[error("block {acked} was acknowledged, but the leader's head is {head}")]
    BlockLost { acked: Height, head: Height },
}

/// Why a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    /// In words.
    pub(crate) why: String,
    /// The refusal's reason, or `disconnected`.
    pub(crate) reason: String,
    /// Another producer's block stands where one of ours was to be: ours are dropped, the next one follows
    /// the leader's head.
    pub(crate) is_contested: bool,
    /// Blocks that were dropped for it.
    pub(crate) n_dropped: usize,
}

struct Flying {
    due: Instant,
    block: RaftBlockState,
}

/// The newest block, ours or the chain's.
#[derive(Clone)]
struct Last {
    height: Height,
    timestamp: u64,
    hash: Bytes,
}

/// Owned by whoever drives it. Invariant: heights in `flying` follow each other, and the last one is `last`.
pub(crate) struct Producer {
    cluster: Cluster,
    make: Make,
    stream: Option<Stream>,
    /// Made and not answered, oldest first.
    flying: VecDeque<Flying>,
    /// The blocks of `flying` that the stream has not taken yet.
    outbox: BytesMut,
    last: Option<Last>,
    /// The highest acknowledged height.
    acked: Option<Height>,
}

impl Producer {
    pub(crate) fn new(cluster: Cluster, make: Make) -> Self {
        Self {
            cluster,
            make,
            stream: None,
            flying: VecDeque::new(),
            outbox: BytesMut::new(),
            last: None,
            acked: None,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.flying.len()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Finds the ready leader, opens a stream under its fence, and proposes again what was not answered.
    /// Cancel-safe.
    pub(crate) async fn connect(&mut self, within: Duration) -> Result<Connected, ConnectError> {
        let end = Instant::now() + within;
        loop {
            let look = end.min(Instant::now() + LOOK_TIMEOUT);
            if let Some((leader, stream, status)) = Self::open(&self.cluster, look).await {
                let n_again = self.follow(status.head.as_ref())?;
                self.stream = Some(stream);
                return Ok(Connected { leader, height: status.height(), n_again });
            }
            if end <= Instant::now() {
                return Err(ConnectError::NoReadyLeader(within));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn open(cluster: &Cluster, end: Instant) -> Option<(ReadyLeader, Stream, Status)> {
        let leader = cluster.ready_leader(end).await?;
        // After the leader was ready: its head then holds every block acknowledged before.
        let status = cluster.status_at(&leader.endpoint, end).await.ok()?;
        let within = end.saturating_duration_since(Instant::now());
        let token = cluster.http().token();
        let stream = Stream::open(&leader.endpoint, Some(leader.fence), token, within).await.ok()?;
        Some((leader, stream, status))
    }

    /// Goes on behind the leader's head, or with the unanswered blocks.
    fn follow(&mut self, head: Option<&Head>) -> Result<usize, ConnectError> {
        let height = head.map_or(0, |h| h.height);
        if let Some(acked) = self.acked
            && height < acked
        {
            return Err(ConnectError::BlockLost { acked, head: height });
        }
        self.outbox.clear();
        if self.flying.is_empty() {
            self.last = head.map(|h| Last {
                height: h.height,
                timestamp: h.timestamp,
                hash: crate::client::wire::bytes(&h.hash).unwrap_or_default(),
            });
        }
        for flying in &self.flying {
            frame::put_block(&flying.block, &mut self.outbox);
        }
        Ok(self.flying.len())
    }

    /// Makes the next block and puts it behind the others. `due` is when it was to be sent.
    pub(crate) fn offer(&mut self, due: Instant) {
        let last = self.last.as_ref();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let next = Next {
            height: last.map_or(1, |l| l.height + 1),
            timestamp: last.map_or(now, |l| now.max(l.timestamp + 1)),
            parent_hash: last.map(|l| l.hash.clone()).unwrap_or_default(),
        };
        let block = (self.make)(next);
        self.last = Some(Last { height: block.height, timestamp: block.timestamp, hash: block.hash.clone() });
        frame::put_block(&block, &mut self.outbox);
        self.flying.push_back(Flying { due, block });
    }

    /// Sends what is due, or takes answers into `out`; returns after either. Waits while there is neither.
    /// Cancel-safe. After an error, [`Self::connect`] goes on.
    pub(crate) async fn step(&mut self, out: &mut Vec<Outcome>) -> Result<(), Broken> {
        let Some(stream) = &mut self.stream else {
            return Err(broken("not connected".into(), "disconnected"));
        };
        let ready = match stream.ready(!self.outbox.is_empty()).await {
            Ok(ready) => ready,
            Err(e) => return Err(self.lost(&e)),
        };
        match ready {
            Ready::Room(room) => {
                room.send(self.outbox.split_to(self.outbox.len().min(PIECE_BYTES)).freeze());
                Ok(())
            }
            Ready::Over => {
                self.stream = None;
                Err(broken("the node ended the stream".into(), "disconnected"))
            }
            Ready::Line(line) => {
                self.answered(line, out)?;
                while let Some(stream) = &mut self.stream {
                    match stream.take_line() {
                        Ok(Some(line)) => self.answered(line, out)?,
                        Ok(None) => break,
                        Err(e) => return Err(self.lost(&e)),
                    }
                }
                Ok(())
            }
        }
    }

    fn answered(&mut self, line: Line, out: &mut Vec<Outcome>) -> Result<(), Broken> {
        let acked = match line {
            Line::Acked(acked) => acked,
            Line::Error(error) => return Err(self.refused(&error)),
        };
        let expected = self.flying.front().map(|f| f.block.height);
        let flying = match self.flying.pop_front() {
            Some(flying) if flying.block.height == acked.height => flying,
            other => {
                if let Some(flying) = other {
                    self.flying.push_front(flying);
                }
                self.stream = None;
                let why = format!("an answer for height {}, expected {expected:?}", acked.height);
                return Err(broken(why, "disconnected"));
            }
        };
        self.acked = Some(acked.height);
        out.push(Outcome {
            due: flying.due,
            height: acked.height,
            term: acked.term,
            duplicate: acked.duplicate,
        });
        Ok(())
    }

    fn lost(&mut self, error: &StreamError) -> Broken {
        match error {
            StreamError::Refused { error, .. } => self.refused(error),
            StreamError::Http(_) | StreamError::Garbled { .. } => {
                self.stream = None;
                broken(error.to_string(), "disconnected")
            }
        }
    }

    fn refused(&mut self, error: &RpcError) -> Broken {
        self.stream = None;
        let mut broken = broken(error.to_string(), &error.reason());
        // The same block would meet the same answer for ever. Anything else passes: a new leader, room.
        let is_final = ["conflict", "stale", "badParent", "badTimestamp"].iter().any(|r| error.is(r));
        if is_final || error.code == INVALID_PARAMS {
            broken.is_contested = true;
            broken.n_dropped = self.flying.len();
            self.flying.clear();
            self.outbox.clear();
        }
        broken
    }

    /// Ends the stream properly. What is still unanswered stays unknown.
    pub(crate) async fn close(mut self, within: Duration) {
        let Some(mut stream) = self.stream.take() else { return };
        stream.finish();
        let rest = async { while let Ok(Some(_)) = stream.next_line().await {} };
        // A node that does not end its answer loses the connection.
        let _ = tokio::time::timeout(within, rest).await;
    }
}

const INVALID_PARAMS: i64 = -32602;

fn broken(why: String, reason: &str) -> Broken {
    Broken { why, reason: reason.into(), is_contested: false, n_dropped: 0 }
}

#[cfg(test)]
mod tests {
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
        let parents: Vec<_> =
            chain.lock().expect("not poisoned").iter().map(|b| b.parent_hash.clone()).collect();
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
        assert_eq!((broken.reason.as_str(), broken.is_contested), ("disconnected", false));
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
        assert_eq!((broken.reason.as_str(), broken.is_contested, broken.n_dropped), ("conflict", true, 3));
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
        assert_eq!((broken.reason.as_str(), broken.is_contested, producer.in_flight()), ("fenced", false, 1));
        node.set(|s| s.refuse_stream = None);
        assert_eq!(producer.connect(WITHIN).await.expect("a leader").n_again, 1);
        run(&mut producer, &mut Vec::new(), 1).await.expect("taken");
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
}
