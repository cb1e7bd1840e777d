//! What the span task is told of a batch that was applied.

use std::time::{Duration, Instant};

use prost::Message;

use crate::instants::event::{AppliedBlock, Batch, BlockOutcome};
use crate::machine::Outcome;
use crate::machine::command::{Command, Kind};
use crate::raft::{Entry, pos_of};
use crate::types::error::Refusal;
use crate::types::proto::{BlockCommand, BlockRow, RaftBlockState};
use crate::types::{Height, LogIndex, position::LogPos};

/// One batch, as apply leaves it.
pub(super) struct Told<'a> {
    pub(super) entries: &'a [Entry],
    /// One for each entry, and how long each took.
    pub(super) outcomes: &'a [Outcome],
    pub(super) took: &'a [Duration],
    /// Of the blocks that are new, in log order.
    pub(super) rows: &'a [(Height, BlockRow)],
    pub(super) replay_upto: LogIndex,
    pub(super) subscribers: u64,
    pub(super) started: Instant,
    pub(super) applied: Instant,
}

impl Told<'_> {
    /// The entries that carry blocks, applied or not.
    pub(super) fn batch(self) -> Batch {
        let mut rows = self.rows.iter().peekable();
        let mut blocks = Vec::with_capacity(self.rows.len());
        let all = self.entries.iter().zip(self.outcomes).zip(self.took);
        for ((entry, outcome), took) in all {
            let openraft::EntryPayload::Normal(command) = &entry.payload else { continue };
            if command.kind != Kind::Block {
                continue;
            }
            let pos = pos_of(&entry.log_id);
            let row = rows.next_if(|(_, row)| row.index == pos.index);
            let block = match row {
                Some((height, row)) => of_row(pos, *height, row, command),
                None => of_command(pos, command, outcome),
            };
            blocks.push(AppliedBlock { took: *took, is_replay: pos.index <= self.replay_upto, ..block });
        }
        Batch { blocks, subscribers: self.subscribers, started: self.started, applied: self.applied }
    }
}

fn of_row(pos: LogPos, height: Height, row: &BlockRow, command: &Command) -> AppliedBlock {
    AppliedBlock {
        pos,
        height,
        hash: row.hash.clone(),
        bytes: row.header_bytes + row.data_bytes,
        outcome: BlockOutcome::Applied,
        carrier: command.carrier(),
        proposer_id: row.proposer_id,
        proposed_at_ms: row.proposed_at_ms,
        took: Duration::ZERO,
        is_replay: false,
    }
}

/// One that left no row. What does not decode is shown as far as it does.
fn of_command(pos: LogPos, command: &Command, outcome: &Outcome) -> AppliedBlock {
    let proposal = BlockCommand::decode(command.payload.clone()).unwrap_or_default();
    let block = RaftBlockState::decode(proposal.block).unwrap_or_default();
    AppliedBlock {
        pos,
        height: block.height,
        hash: block.hash,
        bytes: (block.header.len() + block.data.len()) as u64,
        outcome: outcome_of(outcome),
        carrier: command.carrier(),
        proposer_id: proposal.proposer_id,
        proposed_at_ms: proposal.proposed_at_ms,
        took: Duration::ZERO,
        is_replay: false,
    }
}

fn outcome_of(outcome: &Outcome) -> BlockOutcome {
    match outcome {
        Outcome::Accepted(a) if a.duplicate => BlockOutcome::Duplicate,
        Outcome::Accepted(_) => BlockOutcome::Applied,
        Outcome::Fenced { .. } => BlockOutcome::Refused("fenced"),
        Outcome::Refused { refusal, .. } => BlockOutcome::Refused(match refusal {
            Refusal::Conflict => "conflict",
            Refusal::Stale => "stale",
            Refusal::Gap => "gap",
            Refusal::BadParent => "bad_parent",
            Refusal::BadTimestamp => "bad_timestamp",
        }),
        Outcome::Undecodable => BlockOutcome::Refused("undecodable"),
        Outcome::Nothing | Outcome::Led | Outcome::Configured(_) | Outcome::SettingsMoved(_) => {
            unreachable!("a block came to {outcome:?}")
        }
    }
}
