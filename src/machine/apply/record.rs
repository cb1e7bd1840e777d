//! What a state is stored as beside its rows: one record, written with every batch.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use prost::Message;

use crate::machine::apply::{Leadership, Machine, View};
use crate::types::{
    Height, Term,
    block::BlockRef,
    position::LogPos,
    proto,
    settings::{ClusterSettings, Continuity, SettingsInForce, Timestamps},
};

/// Why a stored state cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("the record of the machine does not decode: {0}")]
    Record(#[from] prost::DecodeError),
    #[error("the record of the machine has a state hash of {0} bytes")]
    Hash(usize),
    #[error("{rows} blocks are kept, the record of the machine says {recorded}")]
    Rows { rows: u64, recorded: u64 },
    #[error("the kept blocks have {rows} bytes, the record of the machine says {recorded}")]
    Bytes { rows: u64, recorded: u64 },
    #[error("the last kept block has height {rows:?}, the head in the record of the machine is {recorded:?}")]
    Head { rows: Option<Height>, recorded: Option<Height> },
}

impl Machine {
    /// The machine of a stored state: its record, its kept blocks (height, stored bytes) and the
    /// terms of its leaderships, both rising. Without a record: the empty machine.
    pub(crate) fn load(
        record: Option<&[u8]>,
        blocks: impl Iterator<Item = (Height, u64)>,
        terms: impl Iterator<Item = Term>,
    ) -> Result<Self, LoadError> {
        let window: VecDeque<_> = blocks.collect();
        let Some(record) = record else {
            return match window.len() as u64 {
                0 => Ok(Self::default()),
                rows => Err(LoadError::Rows { rows, recorded: 0 }),
            };
        };
        let r = proto::MachineRecord::decode(record)?;
        check_rows(&window, &r)?;
        let view = View {
            applied: LogPos { term: r.applied_term, index: r.applied_index },
            head: r.head.map(|h| BlockRef { height: h.height, hash: h.hash, timestamp: h.timestamp }),
            head_pos: LogPos { term: r.head_term, index: r.head_index },
            oldest_height: window.front().map(|(h, _)| *h),
            has_pruned: r.has_pruned,
            history_blocks: r.history_blocks,
            history_bytes: r.history_bytes,
            settings: SettingsInForce {
                settings: r.settings.map(|s| settings_from_proto(&s)).unwrap_or_default(),
                index: r.settings_index,
            },
            leadership: r.leadership.map(|l| leadership_from_proto(&l)),
            state_hash: hash_from(&r.state_hash)?,
            hash_mark: match r.hash_mark_index {
                0 => None,
                index => Some((index, hash_from(&r.hash_mark)?)),
            },
        };
        Ok(Self { view, window, terms: terms.collect() })
    }

    /// The record that [`Machine::load`] takes back; written with every batch.
    pub(crate) fn record(&self) -> Vec<u8> {
        let v = &self.view;
        proto::MachineRecord {
            applied_term: v.applied.term,
            applied_index: v.applied.index,
            head: v.head.as_ref().map(|h| proto::HeadRecord {
                height: h.height,
                hash: h.hash.clone(),
                timestamp: h.timestamp,
            }),
            head_term: v.head_pos.term,
            head_index: v.head_pos.index,
            has_pruned: v.has_pruned,
            history_blocks: v.history_blocks,
            history_bytes: v.history_bytes,
            settings: Some(settings_to_proto(&v.settings.settings)),
            settings_index: v.settings.index,
            leadership: v.leadership.as_ref().map(leadership_to_proto),
            state_hash: Bytes::copy_from_slice(&v.state_hash),
            hash_mark_index: v.hash_mark.map_or(0, |(i, _)| i),
            hash_mark: v.hash_mark.map(|(_, h)| Bytes::copy_from_slice(&h)).unwrap_or_default(),
        }
        .encode_to_vec()
    }
}

/// The rows and the record come from one atomic batch, so they agree, or the state is damaged.
fn check_rows(window: &VecDeque<(Height, u64)>, r: &proto::MachineRecord) -> Result<(), LoadError> {
    let rows = window.len() as u64;
    if rows != r.history_blocks {
        return Err(LoadError::Rows { rows, recorded: r.history_blocks });
    }
    let bytes = window.iter().map(|(_, bytes)| bytes).sum();
    if bytes != r.history_bytes {
        return Err(LoadError::Bytes { rows: bytes, recorded: r.history_bytes });
    }
    let (last, head) = (window.back().map(|(h, _)| *h), r.head.as_ref().map(|h| h.height));
    if last != head {
        return Err(LoadError::Head { rows: last, recorded: head });
    }
    Ok(())
}

fn hash_from(bytes: &Bytes) -> Result<[u8; 32], LoadError> {
    bytes.as_ref().try_into().map_err(|_| LoadError::Hash(bytes.len()))
}

/// Whether every choice in the settings is one this binary has.
pub(crate) fn is_known(s: &proto::ClusterSettings) -> bool {
    proto::Continuity::try_from(s.continuity).is_ok() && proto::Timestamps::try_from(s.timestamps).is_ok()
}

pub(crate) fn leadership_from_proto(l: &proto::LeadershipRow) -> Leadership {
    Leadership {
        pos: LogPos { term: l.term, index: l.index },
        node_id: l.node_id,
        cause: l.cause(),
        operation_id: l.operation_id.clone(),
        started_at_ms: l.started_at_ms,
    }
}

pub(crate) fn leadership_to_proto(l: &Leadership) -> proto::LeadershipRow {
    proto::LeadershipRow {
        term: l.pos.term,
        index: l.pos.index,
        node_id: l.node_id,
        cause: l.cause.into(),
        operation_id: l.operation_id.clone(),
        started_at_ms: l.started_at_ms,
    }
}

pub(crate) fn settings_to_proto(s: &ClusterSettings) -> proto::ClusterSettings {
    proto::ClusterSettings {
        continuity: match s.continuity {
            Continuity::Strict => proto::Continuity::Strict,
            Continuity::Monotonic => proto::Continuity::Monotonic,
        }
        .into(),
        timestamps: match s.timestamps {
            Timestamps::Strict => proto::Timestamps::Strict,
            Timestamps::Nondecreasing => proto::Timestamps::Nondecreasing,
        }
        .into(),
        require_fence: s.require_fence,
        max_block_bytes: s.max_block_bytes,
        max_ahead_ms: to_ms(s.max_ahead),
        first_height: s.first_height,
        block_interval_ms: to_ms(s.block_interval),
        history_blocks: s.history_blocks,
        history_bytes: s.history_bytes,
    }
}

pub(crate) fn settings_from_proto(s: &proto::ClusterSettings) -> ClusterSettings {
    ClusterSettings {
        continuity: match s.continuity() {
            proto::Continuity::Strict => Continuity::Strict,
            proto::Continuity::Monotonic => Continuity::Monotonic,
        },
        timestamps: match s.timestamps() {
            proto::Timestamps::Strict => Timestamps::Strict,
            proto::Timestamps::Nondecreasing => Timestamps::Nondecreasing,
        },
        require_fence: s.require_fence,
        max_block_bytes: s.max_block_bytes,
        max_ahead: Duration::from_millis(s.max_ahead_ms),
        first_height: s.first_height,
        block_interval: Duration::from_millis(s.block_interval_ms),
        history_blocks: s.history_blocks.max(1),
        history_bytes: s.history_bytes,
    }
}

/// Whole milliseconds; what does not fit is as good as for ever.
fn to_ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
