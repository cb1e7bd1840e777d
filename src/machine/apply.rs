//! Applying commands to the state: accept, recognise, refuse, prune.
//!
//! [`Machine`] is driven by `store`, one entry after the other in log order. What it decides depends
//! on its record and its rows alone, so every node decides the same. [`rules`] holds the rule of
//! acceptance, [`record`] what a state is stored as.

use std::collections::VecDeque;

use bytes::Bytes;
use prost::Message;

use crate::machine::{
    command::{Command, Kind},
    table::Table,
};
use crate::types::{
    Height, LogIndex, NodeId, Term,
    block::{Block, BlockRef},
    error::{Accepted, Refusal},
    position::LogPos,
    proto,
    settings::{ClusterSettings, SettingsInForce},
};

pub(crate) mod record;
pub(crate) mod rules;

pub(crate) use crate::machine::apply::{
    record::{LoadError, settings_to_proto},
    rules::{check_successor, same_block},
};

/// Leaderships the state keeps.
const LEADERSHIPS_MAX: usize = 1_000;
/// Every so many entries the state hash is kept for comparison between nodes.
pub(crate) const HASH_EVERY: LogIndex = 500;
/// What a block costs beside its bytes: two keys and a row, by eye.
const ROW_BYTES: u64 = 160;

/// One entry of the log, as the machine sees it.
pub(crate) enum Applying<'a> {
    /// What a new leader appends to commit its predecessors' entries.
    Blank,
    /// A change of membership: the CRC and the length of its encoding enter the hash.
    Membership {
        crc: u32,
        length: u32,
    },
    Command(&'a Command),
}

/// What became of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A blank or a membership.
    Nothing,
    /// A block: new, or recognised as a duplicate.
    Accepted(Accepted),
    /// The proposal was appended in another term than its fence names.
    Fenced {
        fence: u64,
        term: Term,
        head: Option<BlockRef>,
    },
    Refused {
        refusal: Refusal,
        head: Option<BlockRef>,
        oldest_height: Option<Height>,
    },
    Led,
    Configured(SettingsInForce),
    /// The settings had been changed meanwhile.
    SettingsMoved(SettingsInForce),
    /// Of a known kind and version, and still not decodable, or a block that is not well-formed. Only a
    /// faulty proposer makes such an entry, and it is the same on every node.
    Undecodable,
}

/// A leadership that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leadership {
    pub(crate) pos: LogPos,
    pub(crate) node_id: NodeId,
    pub(crate) cause: proto::LeadershipCause,
    pub(crate) operation_id: String,
    pub(crate) started_at_ms: u64,
}

/// What the machine knows after a batch, for those who read without a table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct View {
    pub(crate) applied: LogPos,
    pub(crate) head: Option<BlockRef>,
    pub(crate) head_pos: LogPos,
    /// Lowest height that is kept.
    pub(crate) oldest_height: Option<Height>,
    /// Blocks below it were forgotten: nobody can tell what stood there.
    pub(crate) has_pruned: bool,
    /// Blocks kept, and what `state.history_bytes` counts of them.
    pub(crate) history_blocks: u64,
    pub(crate) history_bytes: u64,
    pub(crate) settings: SettingsInForce,
    pub(crate) leadership: Option<Leadership>,
    pub(crate) state_hash: [u8; 32],
    /// The newest state hash whose index is divisible by [`HASH_EVERY`].
    pub(crate) hash_mark: Option<(LogIndex, [u8; 32])>,
}

/// The replicated state but for its rows.
///
/// Invariant: `window` lists exactly the kept blocks, heights rising, the head last; the counts of the
/// view are its length and the sum of its bytes. `terms` rise.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    view: View,
    /// Height and stored bytes of every kept block.
    window: VecDeque<(Height, u64)>,
    /// Terms of the kept leaderships, oldest first.
    terms: VecDeque<Term>,
}

impl Machine {
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// Applies one entry. Entries come in log order, each once.
    pub(crate) fn apply(&mut self, table: &mut dyn Table, pos: LogPos, entry: Applying<'_>) -> Outcome {
        let applied = self.view.applied;
        // Not `+ 1`: what founds the cluster has index 0, as a machine that applied nothing.
        assert!(
            (applied.index < pos.index && applied.term <= pos.term) || applied == LogPos::default(),
            "entry {pos:?} applied after {applied:?}"
        );
        let (kind, length, crc) = match &entry {
            Applying::Blank => (0, 0, 0),
            Applying::Membership { crc, length } => (1, *length, *crc),
            Applying::Command(c) => (c.kind.to_u8(), c.payload.len() as u32, c.crc),
        };
        let outcome = match entry {
            Applying::Blank | Applying::Membership { .. } => Outcome::Nothing,
            Applying::Command(command) => {
                assert!(
                    command.is_known(),
                    "entry {pos:?} of an unknown kind {:?} reached apply",
                    command.kind
                );
                match command.kind {
                    Kind::Block => self.apply_block(table, pos, command),
                    Kind::Leadership => self.apply_leadership(table, pos, command),
                    Kind::Configure => self.apply_configure(table, pos, command),
                    Kind::Unknown(_) => unreachable!("checked above"),
                }
            }
        };
        self.view.applied = pos;
        self.fold_hash(pos, kind, length, crc, &outcome);
        outcome
    }

    /// hash(i) = blake3(hash(i − 1), log id, kind, length, payload CRC, outcome).
    fn fold_hash(&mut self, pos: LogPos, kind: u8, length: u32, crc: u32, outcome: &Outcome) {
        let mut buf = [0u8; 32 + 8 + 8 + 1 + 4 + 4 + 1];
        buf[..32].copy_from_slice(&self.view.state_hash);
        buf[32..40].copy_from_slice(&pos.term.to_be_bytes());
        buf[40..48].copy_from_slice(&pos.index.to_be_bytes());
        buf[48] = kind;
        buf[49..53].copy_from_slice(&length.to_be_bytes());
        buf[53..57].copy_from_slice(&crc.to_be_bytes());
        buf[57] = outcome_code(outcome);
        self.view.state_hash = *blake3::hash(&buf).as_bytes();
        if pos.index.is_multiple_of(HASH_EVERY) && pos.index != 0 {
            self.view.hash_mark = Some((pos.index, self.view.state_hash));
        }
    }

    fn apply_block(&mut self, table: &mut dyn Table, pos: LogPos, command: &Command) -> Outcome {
        let Ok(proposal) = proto::BlockCommand::decode(command.payload.clone()) else {
            return Outcome::Undecodable;
        };
        let Ok(block) = proto::RaftBlockState::decode(proposal.block.clone()).map(Block::from) else {
            return Outcome::Undecodable;
        };
        // The proposer refuses such a block. One that got here all the same must not become the head: its
        // successor could not be computed.
        if block.check_well_formed().is_err() {
            return Outcome::Undecodable;
        }
        // A duplicate comes before the fence: what stands is true whoever repeats it.
        if let Some(first) = self.find_same(table, &block) {
            return Outcome::Accepted(first);
        }
        let head = self.view.head.clone();
        if proposal.fence != pos.term {
            return Outcome::Fenced { fence: proposal.fence, term: pos.term, head };
        }
        if let Err((refusal, oldest_height)) = self.check_next(table, &block) {
            return Outcome::Refused { refusal, head, oldest_height };
        }
        let trace_id = rules::carrier_trace_id(&proposal.trace);
        let row = proto::BlockRow {
            hash: block.hash.clone(),
            timestamp: block.timestamp,
            term: pos.term,
            index: pos.index,
            proposer_id: proposal.proposer_id,
            proposed_at_ms: proposal.proposed_at_ms,
            trace_id: trace_id.map(|t| Bytes::copy_from_slice(&t)).unwrap_or_default(),
            header_bytes: block.header.len() as u64,
            data_bytes: block.data.len() as u64,
            stored_bytes: proposal.block.len() as u64 + ROW_BYTES,
        };
        table.put_block(block.height, &row.encode_to_vec(), &proposal.block);
        self.window.push_back((block.height, row.stored_bytes));
        let v = &mut self.view;
        v.history_blocks += 1;
        v.history_bytes += row.stored_bytes;
        v.head = Some(block.to_ref());
        v.head_pos = pos;
        self.prune(table);
        Outcome::Accepted(Accepted {
            height: block.height,
            hash: block.hash,
            term: pos.term,
            index: pos.index,
            duplicate: false,
            trace_id,
        })
    }

    /// The place of the same block, when it was applied before and is kept.
    pub(crate) fn find_same(&self, table: &dyn Table, block: &Block) -> Option<Accepted> {
        if self.view.head.as_ref()?.height < block.height || block.height < self.view.oldest_height? {
            return None;
        }
        rules::same_block(table.row(block.height), || table.block(block.height), block)
    }

    /// The acceptance rule, in the order conflict or stale, gap, parent, timestamp.
    fn check_next(&self, table: &dyn Table, block: &Block) -> Result<(), (Refusal, Option<Height>)> {
        let settings = &self.view.settings.settings;
        let Some(head) = &self.view.head else {
            return Ok(());
        };
        if block.height <= head.height {
            return Err(match self.view.oldest_height {
                // Below the chain's very first block a height is merely stale.
                Some(oldest) if block.height < oldest && self.view.has_pruned => {
                    (Refusal::Stale, Some(oldest))
                }
                _ if table.row(block.height).is_some() => (Refusal::Conflict, None),
                _ => (Refusal::Stale, None),
            });
        }
        rules::check_successor(settings, head, block).map_err(|r| (r, None))
    }

    /// Forgets what exceeds the history: part of apply, so every node forgets the same.
    fn prune(&mut self, table: &mut dyn Table) {
        let ClusterSettings { history_blocks, history_bytes, .. } = self.view.settings.settings;
        let mut gone = Vec::new();
        // The head stays whatever it weighs.
        while 1 < self.window.len()
            && (history_blocks < self.view.history_blocks || history_bytes < self.view.history_bytes)
        {
            let (height, bytes) = self.window.pop_front().expect("more than one is kept");
            self.view.history_blocks -= 1;
            self.view.history_bytes -= bytes;
            gone.push(height);
        }
        self.view.oldest_height = self.window.front().map(|(h, _)| *h);
        if let (Some(floor), false) = (self.view.oldest_height, gone.is_empty()) {
            self.view.has_pruned = true;
            table.prune(floor, &gone);
        }
    }

    fn apply_leadership(&mut self, table: &mut dyn Table, pos: LogPos, command: &Command) -> Outcome {
        let Ok(c) = proto::LeadershipCommand::decode(command.payload.clone()) else {
            return Outcome::Undecodable;
        };
        let row = proto::LeadershipRow {
            term: pos.term,
            index: pos.index,
            node_id: c.node_id,
            cause: c.cause,
            operation_id: c.operation_id,
            started_at_ms: c.started_at_ms,
        };
        // A leader repeats its first proposal when it did not learn what became of it.
        if self.terms.back() == Some(&pos.term) {
            return Outcome::Led;
        }
        self.terms.push_back(pos.term);
        let forget = (LEADERSHIPS_MAX < self.terms.len()).then(|| self.terms.pop_front()).flatten();
        table.put_leadership(pos.term, &row.encode_to_vec(), forget);
        self.view.leadership = Some(record::leadership_from_proto(&row));
        Outcome::Led
    }

    fn apply_configure(&mut self, table: &mut dyn Table, pos: LogPos, command: &Command) -> Outcome {
        let Ok(c) = proto::ConfigureCommand::decode(command.payload.clone()) else {
            return Outcome::Undecodable;
        };
        // A value this binary does not know must not pass for the default: the outcome stands in the state
        // hash, the value does not, so nodes that read it differently would differ unseen.
        let Some(settings) = c.settings.filter(record::is_known) else {
            return Outcome::Undecodable;
        };
        if c.expected_index != 0 && c.expected_index != self.view.settings.index {
            return Outcome::SettingsMoved(self.view.settings.clone());
        }
        self.view.settings =
            SettingsInForce { settings: record::settings_from_proto(&settings), index: pos.index };
        // A shorter history holds at once.
        self.prune(table);
        Outcome::Configured(self.view.settings.clone())
    }
}

/// One byte of the state hash per outcome; the numbers are part of the disk format.
fn outcome_code(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Nothing => 0,
        Outcome::Accepted(a) if !a.duplicate => 1,
        Outcome::Accepted(_) => 2,
        Outcome::Fenced { .. } => 3,
        Outcome::Refused { refusal: Refusal::Conflict, .. } => 4,
        Outcome::Refused { refusal: Refusal::Stale, .. } => 5,
        Outcome::Refused { refusal: Refusal::Gap, .. } => 6,
        Outcome::Refused { refusal: Refusal::BadParent, .. } => 7,
        Outcome::Refused { refusal: Refusal::BadTimestamp, .. } => 8,
        Outcome::Led => 9,
        Outcome::Configured(_) => 10,
        Outcome::SettingsMoved(_) => 11,
        Outcome::Undecodable => 12,
    }
}
