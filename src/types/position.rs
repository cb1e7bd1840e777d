//! Places in the log, and the distances between them.

use crate::types::{LogIndex, Term, proto};

/// A place in the log and the term of the leader that put it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogPos {
    pub term: Term,
    pub index: LogIndex,
}

impl From<proto::LogId> for LogPos {
    fn from(id: proto::LogId) -> Self {
        Self { term: id.term, index: id.index }
    }
}

impl From<LogPos> for proto::LogId {
    fn from(pos: LogPos) -> Self {
        Self { term: pos.term, index: pos.index }
    }
}

/// Where one node stands. Invariant: `purged <= snapshot <= applied <= committed <= last`.
///
/// 0 stands for "none" everywhere: index 0 is the entry that founds the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Positions {
    pub purged: LogIndex,
    pub snapshot: LogIndex,
    pub applied: LogIndex,
    /// Locally committed: what this node may apply.
    pub committed: LogIndex,
    /// The greatest commit index of the cluster that this process has seen; never falls.
    pub cluster_committed: LogIndex,
    pub last: LogIndex,
}

impl Positions {
    /// Entries committed here and not yet applied here.
    pub fn apply_lag(&self) -> u64 {
        self.committed.saturating_sub(self.applied)
    }

    /// Entries a restart would replay.
    pub fn compaction_lag(&self) -> u64 {
        self.applied.saturating_sub(self.snapshot)
    }

    /// Entries the cluster committed and this node has not applied.
    pub fn behind(&self) -> u64 {
        self.cluster_committed.saturating_sub(self.applied)
    }
}
