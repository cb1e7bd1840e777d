//! The control connection to one node: heartbeats, votes, questions.
//!
//! [`Link`] is the handle to it; a [`Task`] owns the connection, keeps it up and dials again when it
//! breaks. An answer belongs to a question by its id: one that comes too late is dropped, and not
//! the connection. A ping tells a dead connection from a slow disk.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::peer::{
    keeper::{Ends, Task},
    metrics::{PeerMetrics, Reason, Rpc},
    network::Shared,
    wire::Frame,
};
use crate::types::{
    NodeId,
    proto::{self, ErrorCode, FrameKind},
};

/// Questions that wait for the connection. By eye: heartbeats of a few timeouts and some votes.
const QUEUE_MAX: usize = 256;

/// What is known of the way to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkState {
    Connected,
    /// Its machine answers and says that nothing listens: the process is gone.
    Gone,
    /// One of the two sides does not admit the other.
    Refused,
    Unreachable,
}

/// Why a question has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum CallError {
    #[error("no address is known")]
    NoAddress,
    #[error("not reachable: {why}")]
    Unreachable { why: String, reason: Reason },
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("refused: {}", .0.reason)]
    Refused(proto::Error),
}

impl CallError {
    fn label(&self) -> Reason {
        match self {
            Self::NoAddress => Reason::NoAddress,
            Self::Unreachable { reason, .. } => *reason,
            Self::TimedOut(_) => Reason::Timeout,
            Self::Refused(error) => error_reason(error),
        }
    }
}

pub(super) fn error_reason(error: &proto::Error) -> Reason {
    match error.code() {
        ErrorCode::Busy => Reason::Busy,
        ErrorCode::NotMember => Reason::NotMember,
        ErrorCode::Malformed | ErrorCode::Unsupported => Reason::Malformed,
        ErrorCode::Corrupt => Reason::Corrupt,
        ErrorCode::Storage => Reason::Storage,
        ErrorCode::Stopped | ErrorCode::Refused | ErrorCode::Unknown => Reason::Refused,
    }
}

pub(super) type Answer = Result<Frame, CallError>;

/// One question on its way.
pub(super) struct Call {
    pub(super) rpc: Rpc,
    pub(super) kind: FrameKind,
    pub(super) payload: Bytes,
    pub(super) answer_tx: oneshot::Sender<Answer>,
}

/// Asks one node. Cheap to clone.
#[derive(Clone)]
pub(super) struct Link {
    call_tx: mpsc::Sender<Call>,
    state_rx: watch::Receiver<LinkState>,
    /// Moves on whenever connections to the node are to be given up: it was found dead, or has
    /// another address.
    generation_rx: watch::Receiver<u64>,
    metrics: Arc<PeerMetrics>,
    /// Ends the task when the node is no peer any more.
    pub(super) cancel: CancellationToken,
}

impl Link {
    pub(super) fn new(shared: &Arc<Shared>, node_id: NodeId) -> (Self, Task) {
        let (call_tx, call_rx) = mpsc::channel(QUEUE_MAX);
        let (state_tx, state_rx) = watch::channel(LinkState::Unreachable);
        let (generation_tx, generation_rx) = watch::channel(0);
        let metrics = shared.metrics_of(node_id);
        let cancel = CancellationToken::new();
        let ends = Ends { call_rx, state_tx, generation_tx, cancel: cancel.clone() };
        let task = Task::new(Arc::clone(shared), node_id, Arc::clone(&metrics), ends);
        (Self { call_tx, state_rx, generation_rx, metrics, cancel }, task)
    }

    /// Dropping the future forgets the question; it may have been asked all the same.
    pub(super) async fn call(&self, rpc: Rpc, kind: FrameKind, payload: Bytes, within: Duration) -> Answer {
        let (answer_tx, answer_rx) = oneshot::channel();
        let call = Call { rpc, kind, payload, answer_tx };
        let asked = async {
            self.call_tx.try_send(call).map_err(|_| CallError::Unreachable {
                why: "too many questions wait for the connection".into(),
                reason: Reason::Busy,
            })?;
            answer_rx.await.unwrap_or_else(|_| Err(closed("the connection broke")))
        };
        // Counts a question that its asker gave up too.
        let mut unanswered = Unanswered { rpc, metrics: &self.metrics, is_open: true };
        let answer = tokio::time::timeout(within, asked).await.unwrap_or(Err(CallError::TimedOut(within)));
        unanswered.is_open = false;
        if let Err(e) = &answer {
            self.metrics.failed(rpc, e.label());
        }
        answer
    }

    pub(super) fn watch_state(&self) -> watch::Receiver<LinkState> {
        self.state_rx.clone()
    }

    pub(super) fn generation(&self) -> watch::Receiver<u64> {
        let mut generation = self.generation_rx.clone();
        generation.mark_unchanged();
        generation
    }
}

struct Unanswered<'a> {
    rpc: Rpc,
    metrics: &'a PeerMetrics,
    is_open: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if self.is_open {
            self.metrics.failed(self.rpc, Reason::Timeout);
        }
    }
}

pub(super) fn closed(why: impl Into<String>) -> CallError {
    CallError::Unreachable { why: why.into(), reason: Reason::Closed }
}
