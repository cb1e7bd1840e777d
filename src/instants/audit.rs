//! One log line for each applied block, for who has no tracing stack.

use std::time::{Duration, Instant};

use crate::instants::event::AppliedBlock;
use crate::instants::tree::{Scene, hex};
use crate::types::trace::TraceId;

const EVERY: Duration = Duration::from_secs(1);
/// Lines in [`EVERY`].
const LINES_MAX: u64 = 100;

/// Whether anybody reads the lines.
pub(super) fn is_read() -> bool {
    tracing::enabled!(target: "blockraft::audit", tracing::Level::DEBUG)
}

/// Bounds the lines, and says with the next one how many were left out.
#[derive(Debug)]
pub(super) struct Audit {
    since: Instant,
    lines: u64,
    suppressed: u64,
}

impl Audit {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, lines: 0, suppressed: 0 }
    }

    /// How many lines were left out before this one; `None`: so is this one.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if EVERY <= now.saturating_duration_since(self.since) {
            (self.since, self.lines) = (now, 0);
        }
        if self.lines == LINES_MAX {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.suppressed))
    }

    pub(super) fn applied(
        &mut self,
        scene: &Scene<'_>,
        block: &AppliedBlock,
        trace_id: &TraceId,
        now: Instant,
    ) {
        let Some(suppressed) = self.admit(now) else { return };
        tracing::debug!(
            target: "blockraft::audit",
            trace_id = hex(trace_id),
            raft.term = block.pos.term,
            raft.index = block.pos.index,
            raft.node.id = scene.node_id,
            raft.role = scene.role,
            raft.replay = block.is_replay,
            block.height = block.height,
            block.hash = hex(&block.hash),
            block.bytes = block.bytes,
            outcome = block.outcome.label(),
            suppressed,
            "block applied"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_a_hundred_lines_a_second_and_the_next_one_counts_the_rest() {
        let start = Instant::now();
        let mut audit = Audit::new(start);
        let admitted: Vec<_> = (0..130).filter_map(|_| audit.admit(start)).collect();
        assert_eq!(admitted, [0; 100]);
        assert_eq!(audit.admit(start + EVERY), Some(30));
        assert_eq!(audit.admit(start + EVERY), Some(0));
    }
}
