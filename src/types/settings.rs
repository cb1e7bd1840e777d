//! Settings of the cluster: everything that decides how a block is applied. They stand in the log.

use std::time::Duration;

use crate::types::{Height, LogIndex};

pub(crate) mod keys;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Continuity {
    /// Each height is the head's plus one.
    #[default]
    Strict,
    /// Gaps are allowed.
    Monotonic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Timestamps {
    #[default]
    Strict,
    /// A block may carry the timestamp of its predecessor.
    Nondecreasing,
}

/// Everything under `chain` and `state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSettings {
    pub continuity: Continuity,
    pub timestamps: Timestamps,
    pub require_fence: bool,
    /// Bound of header and data together.
    pub max_block_bytes: u64,
    /// How far ahead of the leader's clock a block may be; zero: any.
    pub max_ahead: Duration,
    pub first_height: Option<Height>,
    /// Expected time between blocks; zero: none expected.
    pub block_interval: Duration,
    /// At least 1.
    pub history_blocks: u64,
    pub history_bytes: u64,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            continuity: Continuity::Strict,
            timestamps: Timestamps::Strict,
            require_fence: false,
            max_block_bytes: 15 << 20,
            max_ahead: Duration::from_secs(15),
            first_height: None,
            block_interval: Duration::ZERO,
            history_blocks: 10_000,
            history_bytes: 8 << 30,
        }
    }
}

/// The settings in force and the entry that set them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SettingsInForce {
    pub settings: ClusterSettings,
    /// 0: none was applied yet.
    pub index: LogIndex,
}
