//! The feed of applied blocks: what a subscriber asks for, and the items it is given.

use std::fmt;

use crate::types::{Height, LogIndex, Term, block::Block, trace::Carrier};

/// Where a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartAt {
    /// With the next block that is applied.
    #[default]
    Live,
    /// With the first block at or above a height.
    Height(Height),
    /// With the first block at or behind a place in the log.
    Index(LogIndex),
}

/// What becomes of a subscriber whose buffer is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFull {
    /// What it missed is told as a gap, and read for it from the store.
    #[default]
    Drop,
    /// Its subscription ends.
    Close,
}

/// One item of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedItem {
    Applied(Applied),
    Gap(Gap),
    CaughtUp(CaughtUp),
    /// The last item.
    End(End),
}

/// A block that was applied on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub term: Term,
    pub index: LogIndex,
    pub block: Block,
    /// Read from the store, not handed over as it was applied.
    pub replayed: bool,
    /// The trace that the block belongs to.
    pub trace: Option<TraceContext>,
}

/// Entries whose blocks were not handed over as they were applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    pub from_index: LogIndex,
    /// Inclusive.
    pub to_index: LogIndex,
    /// Blocks that a full buffer cost. 0 where entries came by snapshot, or were forgotten before
    /// they were asked for.
    pub dropped: u64,
    pub repair: Repair,
}

/// What follows a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Its blocks, out of the store.
    Replay,
    /// The oldest block that is kept: those of the gap are forgotten.
    Pruned { oldest_height: Height },
}

/// What follows is handed over as it is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaughtUp {
    /// `None` before the first block.
    pub height: Option<Height>,
    pub index: LogIndex,
}

/// Nothing follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub reason: EndReason,
    /// A subscription that begins one behind it misses nothing. `None` when nothing was handed over
    /// and the beginning was given by height.
    pub last_index: Option<LogIndex>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    ShuttingDown,
    /// The buffer was full, and [`OnFull::Close`] was asked for.
    Slow,
    /// The store could not be read.
    Storage,
}

/// Why there is no subscription.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    #[error("buffer is not from 1 to {BUFFER_MAX}")]
    Buffer,
    /// The beginning lies below the kept history.
    #[error("the beginning lies below the kept history")]
    Pruned { oldest_height: Height },
    #[error("there are too many subscribers")]
    TooMany,
    #[error("the store cannot be read")]
    Storage,
    #[error("the node is stopping")]
    ShuttingDown,
}

/// Largest buffer, in blocks.
pub const BUFFER_MAX: usize = 10_000;

/// A place in a trace, as W3C's `traceparent` gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    pub flags: u8,
}

impl TraceContext {
    /// Out of a carrier of version 1: version, trace id, span id, flags.
    pub(crate) fn from_carrier(carrier: &[u8]) -> Option<Self> {
        let carrier = Carrier::from_bytes(carrier)?;
        let (trace_id, span_id) = (carrier.trace_id, carrier.span_id);
        Some(Self { trace_id, span_id, flags: carrier.is_sampled.into() })
    }

    /// Of a block of the history: its span is forgotten, and stands for itself by half of its trace's
    /// id. So whoever goes on from it is in the right trace.
    pub(crate) fn of_trace(trace_id: [u8; 16]) -> Option<Self> {
        let (first, second) = trace_id.split_at(8);
        let half = if first == [0; 8] { second } else { first };
        let span_id = half.try_into().expect("half of sixteen");
        let context = Self { trace_id, span_id, flags: 1 };
        context.is_valid().then_some(context)
    }

    fn is_valid(&self) -> bool {
        self.trace_id != [0; 16] && self.span_id != [0; 8]
    }
}

/// As W3C's `traceparent` writes it.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id.iter().try_for_each(|b| write!(f, "{b:02x}"))?;
        f.write_str("-")?;
        self.span_id.iter().try_for_each(|b| write!(f, "{b:02x}"))?;
        // Only W3C's own flag: the others are the carrier's.
        write!(f, "-{:02x}", self.flags & 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_carrier_becomes_a_traceparent() {
        let mut carrier = vec![1];
        carrier.extend([0xab; 16]);
        carrier.extend([0xcd; 8]);
        carrier.push(3);
        let context = TraceContext::from_carrier(&carrier).unwrap();
        assert_eq!(context.to_string(), format!("00-{}-{}-01", "ab".repeat(16), "cd".repeat(8)));
        let mut other = carrier.clone();
        other[0] = 2;
        for bad in [&other[..], &carrier[..25], &[&carrier[..], &[0]].concat(), &[], &[1; 1]] {
            assert_eq!(TraceContext::from_carrier(bad), None, "{bad:?}");
        }
        carrier[17..25].fill(0);
        assert_eq!(TraceContext::from_carrier(&carrier), None);
    }

    #[test]
    fn a_trace_without_its_span_is_gone_on_from_all_the_same() {
        let mut trace_id = [0; 16];
        assert_eq!(TraceContext::of_trace(trace_id), None);
        trace_id[15] = 7;
        let text = TraceContext::of_trace(trace_id).unwrap().to_string();
        assert_eq!(text, "00-00000000000000000000000000000007-0000000000000007-01");
    }
}
