//! What the span task is told: once for each batch that was applied, proposal that was answered, call
//! that was served.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::instants::proposal::Traced;
use crate::telemetry::trace::Attribute;
use crate::types::position::LogPos;
use crate::types::trace::Carrier;
use crate::types::{Height, LogIndex, NodeId, Term};

pub(crate) enum Event {
    Applied(Batch),
    Proposed(Arc<Traced>, Proposed),
    Served(Arc<Traced>, Box<Served>),
    Delivered(Vec<Delivered>),
    /// Write what is pending; nothing follows.
    Finish(oneshot::Sender<()>),
}

/// What an entry that carries a block came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockOutcome {
    /// A new block.
    Applied,
    Duplicate,
    /// The label of the reason.
    Refused(&'static str),
}

impl BlockOutcome {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Duplicate => "duplicate",
            Self::Refused(reason) => reason,
        }
    }

    pub(crate) fn is_error(self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

/// One block of a batch that was applied.
#[derive(Debug, Clone)]
pub(crate) struct AppliedBlock {
    pub(crate) pos: LogPos,
    pub(crate) height: Height,
    pub(crate) hash: Bytes,
    /// Header and data.
    pub(crate) bytes: u64,
    pub(crate) outcome: BlockOutcome,
    pub(crate) carrier: Option<Carrier>,
    pub(crate) proposer_id: NodeId,
    pub(crate) proposed_at_ms: u64,
    /// In the state machine.
    pub(crate) took: Duration,
    /// It was committed before this process began.
    pub(crate) is_replay: bool,
}

/// Blocks that were applied together, in log order.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) blocks: Vec<AppliedBlock>,
    /// Of the feed, as the batch was applied.
    pub(crate) subscribers: u64,
    pub(crate) started: Instant,
    pub(crate) applied: Instant,
}

/// How a proposal ended.
#[derive(Debug)]
pub(crate) struct Proposed {
    pub(crate) height: Height,
    pub(crate) received: Instant,
    pub(crate) ended: Instant,
    pub(crate) outcome: &'static str,
    pub(crate) is_error: bool,
    pub(crate) term: Option<Term>,
    pub(crate) index: Option<LogIndex>,
}

/// A call that was answered.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) name: Cow<'static, str>,
    pub(crate) started: Instant,
    pub(crate) ended: Instant,
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) error: Option<Cow<'static, str>>,
    /// A part of another call: not itself what a client sees.
    pub(crate) is_inner: bool,
}

/// One block that was handed to the feed's subscribers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivered {
    pub(crate) pos: LogPos,
    pub(crate) started: Instant,
    pub(crate) ended: Instant,
    /// Those it was for, and those that took it; the others' is dropped.
    pub(crate) subscribers: u64,
    pub(crate) delivered: u64,
}
