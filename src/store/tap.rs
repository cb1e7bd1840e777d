//! A tap of applied blocks: who listens is told of every batch, in log order.
//!
//! The state machine calls a [`Tap`] once a batch is written and can be read, and once a snapshot was
//! installed. Everything up to the place that is told can be read from the store by then.

use bytes::Bytes;
use prost::Message;

use crate::types::block::Block;
use crate::types::feed::TraceContext;
use crate::types::proto::{BlockCommand, RaftBlockState};
use crate::types::{Height, LogIndex, position::LogPos};

/// What is told must never wait for anything: apply waits for it.
pub(crate) trait Tap: Send + Sync {
    /// A batch was applied. `blocks` are those that are new, in log order.
    fn applied(&self, upto: Told, blocks: &[Tapped]);

    /// Those that are told of what is applied at this moment: of the batch that is told next, whoever comes or
    /// goes until then.
    fn subscribers(&self) -> u64;

    /// A snapshot took the place of the state: the entries up to it were not applied one by one.
    fn installed(&self, upto: Told);
}

/// How far the log was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Told {
    /// Of the last entry, whatever it is.
    pub(crate) index: LogIndex,
    /// Of the head; `None` before the first block.
    pub(crate) height: Option<Height>,
}

/// A block of a batch, not decoded yet.
#[derive(Debug, Clone)]
pub(crate) struct Tapped {
    pub(crate) pos: LogPos,
    pub(crate) height: Height,
    /// An encoded `RaftBlockState`.
    pub(crate) block: Bytes,
    /// The encoded `BlockCommand` that brought it.
    pub(crate) command: Bytes,
}

impl Tapped {
    pub(crate) fn decode(&self) -> Block {
        RaftBlockState::decode(self.block.clone()).expect("a block of our own decodes").into()
    }

    pub(crate) fn trace(&self) -> Option<TraceContext> {
        let command = BlockCommand::decode(self.command.clone()).ok()?;
        TraceContext::from_carrier(&command.trace)
    }
}
