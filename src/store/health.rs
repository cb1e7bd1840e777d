//! What is wrong with the disk, and since when.
//!
//! Written by the store's threads and its state machine, read by leadership, the peer server and
//! node. A fatal state never goes away: the node stops serving at once and exits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    #[error("what is stored cannot be read: {what}")]
    ReadFailed { what: String },
    /// The next start rebuilds it from a snapshot and the log.
    #[error("the state is damaged and is rebuilt at the next start: {what}")]
    StateDamaged { what: String },
    #[error(
        "upgrade needed: entry {index} is a command of kind {kind}, version {version}, which this binary does not know"
    )]
    UpgradeNeeded { kind: u8, version: u8, index: LogIndex },
    #[error("{what}")]
    Damaged { what: String },
    /// The history of the others is not this node's.
    #[error("{what}")]
    Contradicted { what: String },
    #[error("asked to cut the log behind {after:?}, below the committed index {committed}")]
    TruncateBelowCommitted { after: Option<LogIndex>, committed: LogIndex },
}

impl Fatal {
    /// 4: a restart will not help; 1: it may.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::SyncFailed { .. }
            | Self::WriteFailed { .. }
            | Self::ReadFailed { .. }
            | Self::StateDamaged { .. } => 1,
            Self::UpgradeNeeded { .. }
            | Self::Damaged { .. }
            | Self::Contradicted { .. }
            | Self::TruncateBelowCommitted { .. } => 4,
        }
    }
}

/// Which of the two databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Database {
    Log,
    State,
}

/// The state of the disk at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct HealthView {
    pub(crate) fatal: Option<Fatal>,
    /// Less than `store.min_free` is left, or a write met a full disk.
    pub(crate) is_full: bool,
    pub(crate) free_bytes: u64,
    /// Why this node stopped serving and stays up: its state differs from the others'.
    pub(crate) diverged: Option<String>,
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
    /// Less than `store.min_free` is left.
    is_low: AtomicBool,
    /// Whether the last write of a database met a full disk.
    is_blocked: [AtomicBool; 2],
}

impl Health {
    pub(crate) fn new() -> Self {
        let (view, _) = watch::channel(HealthView::default());
        let inner = Inner {
            view,
            sync_since: AtomicU64::new(0),
            base: Instant::now(),
            is_low: AtomicBool::new(false),
            is_blocked: Default::default(),
        };
        Self { inner: Arc::new(inner) }
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

    /// The state differs from the others'. Never taken back: a restart looks again.
    pub(crate) fn set_diverged(&self, what: String) {
        self.inner.view.send_modify(|view| {
            view.diverged.get_or_insert(what);
        });
    }

    /// What the disk has left, and whether that is too little.
    pub(super) fn set_space(&self, free_bytes: u64, is_low: bool) {
        self.inner.is_low.store(is_low, Ordering::Relaxed);
        self.look(Some(free_bytes));
    }

    /// A write of a database met a full disk, or went through again.
    pub(super) fn set_blocked(&self, database: Database, is_blocked: bool) {
        self.inner.is_blocked[database as usize].store(is_blocked, Ordering::Relaxed);
        self.look(None);
    }

    /// Tells the watchers when the disk became full or has space again.
    fn look(&self, free_bytes: Option<u64>) {
        self.inner.view.send_if_modified(|view| {
            let was_full = view.is_full;
            view.free_bytes = free_bytes.unwrap_or(view.free_bytes);
            // Read in here, so that of two looks the later one decides.
            let is_blocked = self.inner.is_blocked.iter().any(|b| b.load(Ordering::Relaxed));
            view.is_full = is_blocked || self.inner.is_low.load(Ordering::Relaxed);
            let free_bytes = view.free_bytes;
            match (was_full, view.is_full) {
                (false, true) => {
                    tracing::warn!(
                        free_bytes,
                        "disk full: proposals and entries are refused until space returns"
                    );
                }
                (true, false) => tracing::info!(free_bytes, "disk space is back"),
                (false, false) | (true, true) => {}
            }
            was_full != view.is_full
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
