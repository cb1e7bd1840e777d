//! One proposal's trace, from its call to its answer.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::types::trace::{Context, SpanId, TraceId};

/// How a proposal came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// By a call of its own, which has a span.
    Call,
    /// As one of many in a stream, or by a program that embeds the node.
    Other,
}

/// Was decided by the sampler.
const DECIDED: u8 = 1;
/// Spans of it are written.
const RECORDED: u8 = 2;
/// It was answered.
const ENDED: u8 = 4;

/// Ids chosen before anything is known, and what was decided since. Shared by who calls, who proposes
/// and who answers.
#[derive(Debug)]
pub(crate) struct Traced {
    pub(crate) trace_id: TraceId,
    /// Of `block.propose`: what the carrier names.
    pub(crate) span_id: SpanId,
    /// Of the call's span.
    pub(crate) server: Option<SpanId>,
    /// A sampled caller: its trace is continued.
    pub(crate) parent: Option<Context>,
    /// A caller that is linked to instead.
    pub(crate) link: Option<Context>,
    state: AtomicU8,
}

impl Traced {
    pub(crate) fn new(caller: Option<Context>, door: Door) -> Self {
        // A stream's blocks have a trace each, so its caller can only be linked to.
        let parent = caller.filter(|c| c.is_sampled && door == Door::Call);
        let ids: [u8; 32] = rand::random();
        let [t @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = ids;
        let own: TraceId = t;
        let span = |from: usize| -> SpanId { ids[from..from + 8].try_into().expect("eight bytes are there") };
        Self {
            trace_id: parent.map_or(own, |p| p.trace_id),
            span_id: span(16),
            server: (door == Door::Call).then(|| span(24)),
            parent,
            link: caller.filter(|_| parent.is_none()),
            state: AtomicU8::new(0),
        }
    }

    pub(crate) fn is_decided(&self) -> bool {
        self.has(DECIDED)
    }

    pub(crate) fn is_recorded(&self) -> bool {
        self.has(RECORDED)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has(ENDED)
    }

    pub(super) fn decide(&self, is_whole: bool) {
        self.state.fetch_or(if is_whole { DECIDED | RECORDED } else { DECIDED }, Ordering::AcqRel);
    }

    pub(super) fn record(&self) {
        self.state.fetch_or(RECORDED, Ordering::AcqRel);
    }

    /// The answer is told and counted; `false`: it was before, as that of a proposal whose caller gave up.
    pub(crate) fn end(&self) -> bool {
        self.state.fetch_or(ENDED, Ordering::AcqRel) & ENDED == 0
    }

    fn has(&self, bit: u8) -> bool {
        self.state.load(Ordering::Acquire) & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sampled_caller_is_the_parent_of_a_call_and_any_other_a_link() {
        let caller = |is_sampled| Context { trace_id: [7; 16], span_id: [8; 8], is_sampled };
        let called = Traced::new(Some(caller(true)), Door::Call);
        assert_eq!((called.trace_id, called.parent, called.link), ([7; 16], Some(caller(true)), None));
        let unsampled = Traced::new(Some(caller(false)), Door::Call);
        assert_eq!((unsampled.parent, unsampled.link), (None, Some(caller(false))));
        assert_ne!(unsampled.trace_id, [7; 16]);
        let streamed = Traced::new(Some(caller(true)), Door::Other);
        assert_eq!((streamed.server, streamed.parent, streamed.link), (None, None, Some(caller(true))));
        assert_ne!(streamed.trace_id, [7; 16]);
        assert!(called.end() && !called.end() && called.has_ended());
    }
}
