//! The sending side of log replication: appends on their way to one node, answers in order.
//!
//! [`Answers`] is polled by openraft and does everything itself: it asks for the next request only
//! while the window has room, since the lease clock starts at that moment (safety rules 23 and 24),
//! dials when there is something to send, and puts what goes wrong among the answers.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use tokio::time::Sleep;
use tokio_stream::wrappers::WatchStream;

use crate::peer::{
    Replicated,
    client::{AppendResult, unreachable_node},
    convert::{self, OutgoingAppend},
    dial::{self, DialError},
    flow::Again,
    hello::{Connection, wire_reason},
    link::error_reason,
    metrics::{PeerMetrics, Reason, Rpc},
    network::{Shared, decode},
    wire::{Frame, WireError},
};
use crate::raft::{LogId, TypeConfig, pos_of};
use crate::types::{
    NodeId,
    proto::{self, FrameKind, Purpose},
};

/// Entries that come in closer succession than this are sure to be followed by more.
const DENSE: Duration = Duration::from_millis(2);
/// So long a commit index waits for entries to travel with, while these are dense: of the four
/// messages that a block costs at one writer two carry nothing else. The timer's resolution.
const COMMIT_WAITS: Duration = Duration::from_millis(1);

/// A connection for log data, kept by its client between streams.
pub(super) struct LogConnection {
    connection: Connection,
    /// Those it was dialled with.
    addrs: Vec<String>,
    /// Moves on, or ends, when the link to the node found it dead, moved or removed.
    generation: WatchStream<u64>,
    next_id: u64,
}

/// What a client keeps between two streams.
#[derive(Default)]
pub(super) struct Home {
    log: Option<LogConnection>,
    /// The last thing heard was an acknowledgement. Until then one request is sent at a time: a node
    /// that refuses, or a network that breaks, costs one and not a window at each try.
    is_proven: bool,
}

/// Why a stream ended before its input did.
#[derive(Debug, thiserror::Error)]
enum AppendError {
    #[error("{0}")]
    Dial(#[from] DialError),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("refused: {}", .0.reason)]
    Refused(proto::Error),
    #[error("the node was found dead, or has another address")]
    GivenUp,
}

impl AppendError {
    fn label(&self) -> Reason {
        match self {
            Self::Dial(e) => e.label(),
            Self::Wire(e) => wire_reason(e),
            Self::TimedOut(_) => Reason::Timeout,
            Self::Refused(error) => error_reason(error),
            Self::GivenUp => Reason::Closed,
        }
    }
}

impl AppendError {
    fn again(&self) -> Again {
        match self {
            Self::Dial(_) | Self::GivenUp => Again::Unreachable,
            Self::Wire(_) => Again::Broken,
            Self::TimedOut(_) | Self::Refused(_) => Again::InVain,
        }
    }
}

/// One request on its way.
struct Pending {
    id: u64,
    prev: Option<LogId>,
    last: Option<LogId>,
    n_entries: usize,
    bytes: usize,
    sent: Instant,
}

enum Stage {
    Running,
    Ended,
}

/// The answers to a stream of appends, in the order of the requests. Ends as soon as the input has
/// ended and all is answered, or after the first error. Dropped with answers outstanding it drops
/// the connection, which would otherwise deliver them to the next stream.
pub(super) struct Answers<'a, S> {
    shared: Arc<Shared>,
    target: NodeId,
    metrics: Arc<PeerMetrics>,
    /// The client's. The connection is taken while the stream runs, put back when nothing is
    /// outstanding.
    home: &'a mut Home,
    log: Option<LogConnection>,
    input: S,
    input_ended: bool,
    /// Polled from the input and not sent: there is no connection, or it is too large for what is
    /// left of the window.
    held: Option<OutgoingAppend>,
    dialling: Option<BoxFuture<'static, Result<LogConnection, DialError>>>,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    /// The next request is taken to be as large as the largest so far.
    largest_bytes: usize,
    /// When the oldest pending one was sent, or the newest answer came.
    moved_at: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    /// When entries were last queued, and whether others had been [`DENSE`] before.
    entries_at: Option<Instant>,
    is_dense: bool,
    /// Runs while the held request waits for entries to travel with.
    commit_timer: Option<Pin<Box<Sleep>>>,
    is_commit_waiting: bool,
    stage: Stage,
}

impl<'a, S> Answers<'a, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    pub(super) fn new(shared: Arc<Shared>, target: NodeId, home: &'a mut Home, input: S) -> Self {
        let addrs = shared.addresses_of(target);
        // One to an address the node no longer has is of no use.
        let log = home.log.take().filter(|log| log.addrs == addrs);
        Self {
            metrics: shared.metrics_of(target),
            shared,
            target,
            home,
            log,
            input,
            input_ended: false,
            held: None,
            dialling: None,
            pending: VecDeque::new(),
            pending_bytes: 0,
            largest_bytes: 0,
            moved_at: Instant::now(),
            timer: None,
            entries_at: None,
            is_dense: false,
            commit_timer: None,
            is_commit_waiting: false,
            stage: Stage::Running,
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        let config = &self.shared.config;
        self.pending.is_empty()
            || (self.home.is_proven
                && self.pending.len() < config.window_requests_max
                && self.pending_bytes + bytes <= config.window_bytes_max)
    }

    /// Takes what the input has while there is room, and queues it.
    fn take_requests(&mut self, cx: &mut Context<'_>) {
        loop {
            let is_waiting = self.log.is_some() && self.is_held_waiting(cx);
            if self.log.is_some()
                && !is_waiting
                && let Some(held) = self.held.take()
            {
                if !self.has_room(held.bytes()) {
                    self.held = Some(held);
                    return;
                }
                self.queue(held);
            }
            if (self.held.is_some() && !is_waiting) || self.input_ended || !self.has_room(self.largest_bytes)
            {
                return;
            }
            match self.input.poll_next_unpin(cx) {
                Poll::Ready(Some(request)) => {
                    let append = OutgoingAppend::new(request, self.shared.config.frame_bytes_max);
                    // openraft sends the rest again in another stream.
                    self.input_ended = append.is_cut;
                    self.is_commit_waiting = false;
                    // What waited goes with it: it begins where that ended, and openraft takes an
                    // acknowledgement for all requests up to the entry it names.
                    if let Some(waited) = self.held.replace(append)
                        && waited.last != self.held.as_ref().and_then(|held| held.prev)
                    {
                        self.queue(waited);
                    }
                }
                Poll::Ready(None) => self.input_ended = true,
                Poll::Pending => return,
            }
        }
    }

    /// Whether the held request is a commit index alone that better waits for entries.
    fn is_held_waiting(&mut self, cx: &mut Context<'_>) -> bool {
        let is_bare = self.held.as_ref().is_some_and(|held| held.n_entries() == 0);
        let is_dense = self.is_dense && self.entries_at.is_some_and(|at| at.elapsed() < DENSE);
        if !is_bare || !is_dense || self.input_ended {
            self.is_commit_waiting = false;
            return false;
        }
        let timer = self.commit_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(COMMIT_WAITS)));
        if !self.is_commit_waiting {
            self.is_commit_waiting = true;
            timer.as_mut().reset(tokio::time::Instant::now() + COMMIT_WAITS);
        }
        timer.as_mut().poll(cx).is_pending()
    }

    fn queue(&mut self, append: OutgoingAppend) {
        if 0 < append.n_entries() {
            let now = Instant::now();
            self.is_dense = self.entries_at.is_some_and(|at| now.duration_since(at) < DENSE);
            self.entries_at = Some(now);
        }
        let log = self.log.as_mut().expect("only called with a connection");
        if self.pending.is_empty() {
            self.moved_at = Instant::now();
        }
        let pending = Pending {
            id: log.next_id,
            prev: append.prev,
            last: append.last,
            n_entries: append.n_entries(),
            bytes: append.bytes(),
            sent: Instant::now(),
        };
        log.next_id += 1;
        self.pending_bytes += pending.bytes;
        self.largest_bytes = self.largest_bytes.max(pending.bytes);
        append.put(pending.id, &mut log.connection.outbox);
        self.pending.push_back(pending);
    }

    fn poll_connection(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AppendError>> {
        let (shared, target) = (&self.shared, self.target);
        let dialling = self.dialling.get_or_insert_with(|| {
            let shared = Arc::clone(shared);
            Box::pin(async move { LogConnection::dial(&shared, target).await })
        });
        let Poll::Ready(dialled) = dialling.as_mut().poll(cx) else {
            return Poll::Pending;
        };
        self.dialling = None;
        self.log = Some(dialled?);
        Poll::Ready(Ok(()))
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<AppendOutcome>, AppendError>> {
        let Some(log) = &mut self.log else {
            return Poll::Ready(Ok(None));
        };
        if let Poll::Ready(Err(e)) = log.connection.outbox.poll_flush(cx) {
            return Poll::Ready(Err(e.into()));
        }
        loop {
            let Some(log) = &mut self.log else {
                return Poll::Ready(Ok(None));
            };
            match log.connection.reader.poll_next(cx) {
                Poll::Ready(Ok(frame)) => match self.on_frame(frame) {
                    Ok(None) => {}
                    outcome => return Poll::Ready(outcome),
                },
                // Closed while nothing was asked: the next request dials anew.
                Poll::Ready(Err(_)) if self.pending.is_empty() => {
                    self.log = None;
                    return Poll::Ready(Ok(None));
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e.into())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// `None`: it says nothing that openraft may be told.
    fn on_frame(&mut self, frame: Frame) -> Result<Option<AppendOutcome>, AppendError> {
        if frame.kind() == Some(FrameKind::Error) {
            return Err(AppendError::Refused(frame.decode()?));
        }
        let Some(pending) = self.pending.pop_front() else {
            return Err(WireError::Malformed(format!("answer {} to nothing", frame.id)).into());
        };
        if pending.id != frame.id {
            let reason = format!("answer {} in the place of {}", frame.id, pending.id);
            return Err(WireError::Malformed(reason).into());
        }
        self.pending_bytes -= pending.bytes;
        self.moved_at = Instant::now();
        let answer: proto::AppendAnswer = decode(frame, FrameKind::AppendAnswer)?;
        let outcome = convert::append_answer_from_proto(&answer)?;
        self.metrics.answered(Rpc::Append, pending.sent.elapsed());
        check_range(&pending, &outcome)?;
        self.home.is_proven = true;
        if let Ok(Some(last)) = &outcome
            && 0 < pending.n_entries
        {
            self.metrics.log_acknowledged();
            let replicated = Replicated {
                last: pos_of(last),
                n_entries: pending.n_entries,
                sent: pending.sent,
                acknowledged: self.moved_at,
            };
            self.shared.notices.replicated(self.target, replicated);
        }
        Ok(Some(outcome).filter(|_| !self.would_extend_lease(&pending)))
    }

    /// openraft takes an acknowledgement for all requests up to the entry it names, and counts its lease from when
    /// the newest of them was polled: a late answer to an old request would count for one of this moment, which a
    /// leader that stood still polls before it reads. So where such a request follows, its own answer is waited
    /// for. An answer this young may pass: a lease that is longer by its age still ends before anybody else
    /// stands, since it is at most half of `heartbeat_timeout` (safety rules 11, 17 and 24).
    fn would_extend_lease(&self, answered: &Pending) -> bool {
        let is_late = self.shared.config.heartbeat_timeout / 4 <= answered.sent.elapsed();
        let is_covered = |last: Option<LogId>| last <= answered.last;
        is_late
            && (self.pending.iter().any(|p| is_covered(p.last))
                || self.held.as_ref().is_some_and(|held| is_covered(held.last)))
    }

    /// Looks whether an idle connection is still there before a request is given to it.
    fn drop_dead(&mut self, cx: &mut Context<'_>) {
        if let Some(log) = &mut self.log
            && self.pending.is_empty()
            && (log.is_given_up() || log.connection.reader.poll_next(cx).is_ready())
        {
            self.log = None;
        }
    }

    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<AppendError> {
        if let Some(log) = &mut self.log
            && log.generation.poll_next_unpin(cx).is_ready()
        {
            self.log = None;
            if !self.pending.is_empty() {
                return Poll::Ready(AppendError::GivenUp);
            }
        }
        if self.pending.is_empty() {
            return Poll::Pending;
        }
        let after = self.shared.config.answer_timeout;
        let deadline = tokio::time::Instant::from_std(self.moved_at + after);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        // Moving the timer only when it fires keeps a busy stream from touching it.
        while timer.as_mut().poll(cx).is_ready() {
            if deadline <= tokio::time::Instant::now() {
                return Poll::Ready(AppendError::TimedOut(after));
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<AppendOutcome>, AppendError>> {
        self.drop_dead(cx);
        loop {
            self.take_requests(cx);
            if self.log.is_none() && self.held.is_some() {
                match self.poll_connection(cx) {
                    Poll::Ready(Ok(())) => continue,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            if self.input_ended && self.pending.is_empty() && self.held.is_none() {
                return Poll::Ready(Ok(None));
            }
            match self.poll_answer(cx) {
                Poll::Ready(Ok(Some(outcome))) => return Poll::Ready(Ok(Some(outcome))),
                // Without a connection, and with nothing to send.
                Poll::Ready(Ok(None)) => break,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => break,
            }
        }
        self.poll_patience(cx).map(Err)
    }
}

/// What became of one append.
type AppendOutcome = StreamAppendResult<TypeConfig>;

/// openraft trusts what it is told: an answer beyond what was sent must never reach it.
fn check_range(pending: &Pending, outcome: &AppendOutcome) -> Result<(), WireError> {
    if let Ok(matched) = outcome
        && *matched != pending.last
    {
        return Err(WireError::Malformed(format!("{matched:?} matches, {:?} was sent", pending.last)));
    }
    if let Err(StreamAppendError::Conflict(at)) = outcome
        && Some(*at) != pending.prev
    {
        return Err(WireError::Malformed(format!("conflict at {at}, {:?} was sent", pending.prev)));
    }
    Ok(())
}

impl<S> Stream for Answers<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    type Item = AppendResult;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<AppendResult>> {
        let this = self.get_mut();
        if matches!(this.stage, Stage::Ended) {
            return Poll::Ready(None);
        }
        match this.poll_step(cx) {
            Poll::Ready(Ok(Some(outcome))) => Poll::Ready(Some(Ok(outcome))),
            Poll::Ready(Ok(None)) => {
                this.stage = Stage::Ended;
                Poll::Ready(None)
            }
            Poll::Ready(Err(e)) => {
                this.stage = Stage::Ended;
                this.log = None;
                this.home.is_proven = false;
                this.metrics.log_sends_again(e.again());
                this.metrics.failed(Rpc::Append, e.label());
                Poll::Ready(Some(Err(unreachable_node(&e))))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S> Drop for Answers<'_, S> {
    fn drop(&mut self) {
        if self.pending.is_empty() {
            self.home.log = self.log.take();
        } else {
            self.metrics.log_sends_again(Again::Broken);
        }
    }
}

impl LogConnection {
    async fn dial(shared: &Shared, target: NodeId) -> Result<Self, DialError> {
        let addrs = shared.addresses_of(target);
        let connection = dial::dial(shared, target, Purpose::Log).await?;
        // A node without a link is no peer: its connection ends with the first look.
        let generation = match shared.link(target) {
            Some(link) => link.generation(),
            None => tokio::sync::watch::channel(0).1,
        };
        Ok(Self { connection, addrs, generation: WatchStream::from_changes(generation), next_id: 1 })
    }

    fn is_given_up(&mut self) -> bool {
        self.generation.next().now_or_never().is_some()
    }
}
