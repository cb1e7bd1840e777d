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
/// Of each step behind it, which asks the leader alone: whatever the look has left is not enough for them.
const STEP_TIMEOUT: Duration = LOOK_TIMEOUT;
/// A leader that has a whole block so long and says nothing hangs. By eye: above the default of
/// `api.propose_timeout`, after which a node that works has answered.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(5);

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
    pub(crate) outlook: Outlook,
    /// Blocks that were dropped for it.
    pub(crate) n_dropped: usize,
}

/// What becomes of the blocks that were in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// They are proposed again.
    Again,
    /// Another producer's block stands where one of ours was to be: ours are dropped, the next one follows
    /// the leader's head.
    Contested,
    /// The cluster takes no such block, whoever leads: they are dropped.
    Unfit,
}

impl Outlook {
    /// Of a refusal. What is none of these passes: a new leader, room.
    pub(crate) fn of(error: &RpcError) -> Self {
        if CONTESTED.iter().any(|r| error.is(r)) {
            Self::Contested
        } else if UNFIT.contains(&error.code) || error.is("tooLarge") {
            Self::Unfit
        } else {
            Self::Again
        }
    }
}

struct Flying {
    due: Instant,
    block: RaftBlockState,
    /// Bytes of the stream up to its end.
    end: u64,
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
    /// Bytes of this stream that were made, and that it has taken.
    made: u64,
    sent: u64,
    /// When the oldest block of `flying` last got on: made, sent in part, or the one before it answered.
    moved: Instant,
    silence_max: Duration,
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
            made: 0,
            sent: 0,
            moved: Instant::now(),
            silence_max: SILENCE_MAX,
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
        let status = cluster.status_at(&leader.endpoint, Instant::now() + STEP_TIMEOUT).await.ok()?;
        let token = cluster.http().token();
        let stream = Stream::open(&leader.endpoint, Some(leader.fence), token, STEP_TIMEOUT).await.ok()?;
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
        (self.made, self.sent, self.moved) = (0, 0, Instant::now());
        if self.flying.is_empty() {
            self.last = head.map(|h| Last {
                height: h.height,
                timestamp: h.timestamp,
                hash: crate::client::wire::bytes(&h.hash).unwrap_or_default(),
            });
        }
        for flying in &mut self.flying {
            frame::put_block(&flying.block, &mut self.outbox);
            self.made = self.outbox.len() as u64;
            flying.end = self.made;
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
        let before = self.outbox.len();
        frame::put_block(&block, &mut self.outbox);
        self.made += (self.outbox.len() - before) as u64;
        if self.flying.is_empty() {
            self.moved = Instant::now();
        }
        self.flying.push_back(Flying { due, block, end: self.made });
    }

    /// Sends what is due, or takes answers into `out`; returns after either. Waits while there is neither.
    /// Cancel-safe. After an error, [`Self::connect`] goes on.
    pub(crate) async fn step(&mut self, out: &mut Vec<Outcome>) -> Result<(), Broken> {
        let Some(stream) = &mut self.stream else {
            return Err(broken("not connected".into(), "disconnected"));
        };
        let ready = stream.ready(!self.outbox.is_empty());
        let ready = match self.flying.is_empty() {
            true => ready.await,
            false => match tokio::time::timeout_at(self.moved + self.silence_max, ready).await {
                Ok(ready) => ready,
                Err(_) => return Err(self.silent()),
            },
        };
        let ready = match ready {
            Ok(ready) => ready,
            Err(e) => return Err(self.lost(&e)),
        };
        match ready {
            Ready::Room(room) => {
                let piece = self.outbox.split_to(self.outbox.len().min(PIECE_BYTES)).freeze();
                // What follows the oldest block goes into the buffers of a node that hangs, too.
                if self.flying.front().is_some_and(|oldest| self.sent < oldest.end) {
                    self.moved = Instant::now();
                }
                self.sent += piece.len() as u64;
                room.send(piece);
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
        self.moved = Instant::now();
        out.push(Outcome {
            due: flying.due,
            height: acked.height,
            term: acked.term,
            duplicate: acked.duplicate,
        });
        Ok(())
    }

    /// What became of the blocks in flight is unknown.
    fn silent(&mut self) -> Broken {
        let endpoint = self.stream.take().map_or(String::new(), |s| format!("{}: ", s.endpoint()));
        broken(format!("{endpoint}no answer to a block within {:?}", self.silence_max), "timeout")
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
        // The same block would meet the same answer for ever.
        broken.outlook = Outlook::of(error);
        if broken.outlook != Outlook::Again {
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

/// Reasons of a chain that went on without this producer.
const CONTESTED: [&str; 4] = ["conflict", "stale", "badParent", "badTimestamp"];
/// Malformed or too large, and a body over the node's limit.
const UNFIT: [i64; 5] = [-32_602, -32_601, -32_600, -32_700, -32_007];

fn broken(why: String, reason: &str) -> Broken {
    Broken { why, reason: reason.into(), outlook: Outlook::Again, n_dropped: 0 }
}

#[cfg(test)]
mod tests;
