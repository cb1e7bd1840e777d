//! What is wrong with the disk, and since when.
//!
//! Written by the store's threads and its state machine, read by leadership, the peer server and
//! node. A fatal state never goes away: the node stops serving at once and exits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::types::LogIndex;

/// Why this process cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fatal {
    /// A sync that failed says nothing of what is on disk: it is never tried again.
    #[error("a sync failed, what is on disk is unknown: {what}")]
    SyncFailed { what: String },
    #[error("the database {db} cannot be written: {what}")]
    WriteFailed { db: &'static str, what: String },
    /// The next start rebuilds it from a snapshot and the log.
    #[error("the state is damaged and is rebuilt at the next start: {what}")]
    StateDamaged { what: String },
    #[error(
        "upgrade needed: entry {index} is a command of kind {kind}, version {version}, which this binary does not know"
    )]
    UpgradeNeeded { kind: u8, version: u8, index: LogIndex },
    #[error("{what}")]
    Damaged { what: String },
    #[error("asked to cut the log behind {after:?}, below the committed index {committed}")]
    TruncateBelowCommitted { after: Option<LogIndex>, committed: LogIndex },
}

impl Fatal {
    /// 4: a restart will not help; 1: it may.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::SyncFailed { .. } | Self::WriteFailed { .. } | Self::StateDamaged { .. } => 1,
            Self::UpgradeNeeded { .. } | Self::Damaged { .. } | Self::TruncateBelowCommitted { .. } => 4,
        }
    }
}

/// Which of the two databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Database {
    Log,
    State,
}

impl Database {
    /// The value of the label `db`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::State => "state",
        }
    }
}

/// The state of the disk at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct HealthView {
    pub(crate) fatal: Option<Fatal>,
    /// Less than `store.min_free` is left, or a write met a full disk.
    pub(crate) is_full: bool,
    pub(crate) free_bytes: u64,
    is_low: bool,
    /// One bit per database whose last write met a full disk.
    blocked: u8,
}

/// Cheap to clone; all clones show the same.
#[derive(Clone)]
pub(crate) struct Health {
    inner: Arc<Inner>,
}

struct Inner {
    view: watch::Sender<HealthView>,
    /// Microseconds after `base` at which the sync in progress began, plus one; 0: none.
    sync_since: AtomicU64,
    base: Instant,
}

impl Health {
    pub(crate) fn new() -> Self {
        let (view, _) = watch::channel(HealthView::default());
        Self { inner: Arc::new(Inner { view, sync_since: AtomicU64::new(0), base: Instant::now() }) }
    }

    pub(crate) fn get(&self) -> HealthView {
        self.inner.view.borrow().clone()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.inner.view.borrow().is_full
    }

    pub(crate) fn is_fatal(&self) -> bool {
        self.inner.view.borrow().fatal.is_some()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<HealthView> {
        self.inner.view.subscribe()
    }

    /// Age of the sync in progress; a hung disk shows nowhere else.
    pub(crate) fn sync_in_progress(&self) -> Option<Duration> {
        match self.inner.sync_since.load(Ordering::Relaxed) {
            0 => None,
            since => Some(self.inner.base.elapsed().saturating_sub(Duration::from_micros(since - 1))),
        }
    }

    /// The first fatal state stays; later ones follow from it.
    pub(crate) fn set_fatal(&self, fatal: Fatal) {
        let is_first = self.inner.view.send_if_modified(|view| {
            let is_first = view.fatal.is_none();
            if is_first {
                view.fatal = Some(fatal.clone());
            }
            is_first
        });
        if is_first {
            tracing::error!(error = %fatal, exit_code = fatal.exit_code(), "the store cannot go on");
        }
    }

    /// What the disk has left, and whether that is too little.
    pub(super) fn set_space(&self, free_bytes: u64, is_low: bool) {
        self.update(|view| {
            view.free_bytes = free_bytes;
            view.is_low = is_low;
        });
    }

    /// A write of a database met a full disk, or went through again.
    pub(super) fn set_blocked(&self, database: Database, is_blocked: bool) {
        let bit = 1 << database as u8;
        self.update(|view| match is_blocked {
            true => view.blocked |= bit,
            false => view.blocked &= !bit,
        });
    }

    fn update(&self, change: impl FnOnce(&mut HealthView)) {
        self.inner.view.send_if_modified(|view| {
            change(view);
            let (was_full, free_bytes) = (view.is_full, view.free_bytes);
            view.is_full = view.is_low || view.blocked != 0;
            match (was_full, view.is_full) {
                (false, true) => tracing::warn!(
                    free_bytes,
                    "disk full: proposals and entries are refused until space returns"
                ),
                (true, false) => tracing::info!(free_bytes, "disk space is back"),
                _ => return false,
            }
            true
        });
    }

    pub(super) fn sync_began(&self, at: Instant) {
        let since = at.saturating_duration_since(self.inner.base).as_micros() as u64;
        self.inner.sync_since.store(since + 1, Ordering::Relaxed);
    }

    pub(super) fn sync_ended(&self) {
        self.inner.sync_since.store(0, Ordering::Relaxed);
    }
}
