//! What this node keeps on disk: the raft log, the replicated state, snapshots, its own records.
//!
//! [`open`] takes the data folder, checks it and hands out the parts; [`Closer`] gives it back. All
//! blocking calls are in here. Knows nothing of the network, of roles or of HTTP.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prometheus::Registry;

use crate::instants::Instants;
use crate::types::NodeId;

pub(crate) mod codec;
pub(crate) mod disk;
pub(crate) mod exit;
pub(crate) mod files;
pub(crate) mod gauges;
pub(crate) mod health;
pub(crate) mod identity;
pub(crate) mod inspect;
pub(crate) mod local;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod offline;
pub(crate) mod opening;
pub(crate) mod reader;
pub(crate) mod rocks;
pub(crate) mod snapshot;
pub(crate) mod state;
pub(crate) mod tap;
pub(crate) mod watermark;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) type Health = health::Health;
pub(crate) type Identity = identity::Identity;
pub(crate) type Local = local::Local;
pub(crate) type LogStore = log::LogStore;
pub(crate) type ReadError = reader::ReadError;
pub(crate) type Reader = reader::Reader;
pub(crate) type Snapshots = snapshot::Snapshots;
pub(crate) type StateMachine = state::StateMachine;

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    /// Below it entries and proposals are refused.
    pub(crate) min_free: u64,
    /// At least 1.
    pub(crate) snapshot_retain: usize,
}

/// Who the settings say this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) cluster_id: String,
    pub(crate) node_id: NodeId,
}

/// The parts of an open store.
pub(crate) struct Opened {
    pub(crate) log: LogStore,
    pub(crate) machine: StateMachine,
    pub(crate) reader: Reader,
    pub(crate) local: Local,
    pub(crate) snapshots: Snapshots,
    pub(crate) identity: Identity,
    pub(crate) health: Health,
    pub(crate) closer: Closer,
    /// Whether the folder held a vote, an entry or a state before.
    pub(crate) had_data: bool,
    pub(crate) last_exit: exit::LastExit,
}

/// Why a data folder is not opened. Nothing in it was changed that matters.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{} is in use by {by}", path.display())]
    Locked { path: PathBuf, by: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {what}", path.display())]
    DiskFull { path: PathBuf, what: String },
    #[error("{}: {what}; a restart will not help", path.display())]
    Identity { path: PathBuf, what: String },
    #[error("{}: its format {version} is newer than the {known} this binary knows; a restart will not help", path.display())]
    NewerFormat { path: PathBuf, version: u64, known: u32 },
    #[error("{}: {what}; a restart will not help", path.display())]
    Damage { path: PathBuf, what: String },
    #[error("the metrics of the store cannot be registered: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl OpenError {
    /// 4: the folder refuses, a restart will not help; 1: it may.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Locked { .. } | Self::Io { .. } | Self::DiskFull { .. } | Self::Metrics(_) => 1,
            Self::Identity { .. } | Self::NewerFormat { .. } | Self::Damage { .. } => 4,
        }
    }

    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn damage(path: &Path, what: impl std::fmt::Display) -> Self {
        Self::Damage { path: path.to_owned(), what: what.to_string() }
    }

    /// What RocksDB says of a folder: a full disk, something of the operating system, or damage.
    pub(crate) fn rocks(path: &Path, error: &rocksdb::Error) -> Self {
        if rocks::is_no_space(error) {
            return Self::DiskFull { path: path.to_owned(), what: error.to_string() };
        }
        match error.kind() {
            rocksdb::ErrorKind::IOError if !error.as_ref().contains("No such file") => {
                Self::Io { path: path.to_owned(), source: io::Error::other(error.to_string()) }
            }
            _ => Self::Damage { path: path.to_owned(), what: error.to_string() },
        }
    }
}

/// Opens a data folder, or makes it. Blocking. `Err` left the folder as it was, but for what a
/// start that was cut short leaves too.
pub(crate) fn open(
    config: &Config,
    who: &Who,
    registry: &Registry,
    instants: Arc<Instants>,
) -> Result<Opened, OpenError> {
    opening::open(config, who, registry, instants)
}

/// Those who still read or merge let go meanwhile. By eye: a merge that is cancelled ends at its next key.
const CLOSED_WITHIN: Duration = Duration::from_millis(200);

/// Ends the threads of the store and closes its databases. Dropped without [`Closer::close`], it does so on a thread of
/// its own.
pub(crate) struct Closer(Option<Open>);

/// What has to be closed.
struct Open {
    log: Arc<log::Shared>,
    state: Arc<state::Shared>,
    watermark: watermark::Watermark,
    writer: JoinHandle<()>,
    marker: JoinHandle<()>,
    disk: disk::Watcher,
    /// Last: the folder is another's only once everything is closed.
    lock: identity::Lock,
}

impl Closer {
    /// For somebody else: what is left here closes nothing.
    pub(crate) fn take(&mut self) -> Self {
        Self(self.0.take())
    }

    /// Blocking. What is queued is written first. On return both databases are closed, so that the folder can be opened
    /// anew; but for one that somebody reads for longer than [`CLOSED_WITHIN`].
    pub(crate) fn close(mut self) {
        if let Some(open) = self.0.take() {
            open.close();
        }
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        let Some(open) = self.0.take() else { return };
        let closing = std::thread::Builder::new().name("store-close".into()).spawn(move || open.close());
        if let Err(error) = closing {
            tracing::warn!(%error, "the store stays open: no thread can be started");
        }
    }
}

impl Open {
    fn close(self) {
        self.log.queue.close();
        let _ = self.writer.join();
        self.watermark.close();
        let _ = self.marker.join();
        self.disk.stop();
        let mut closing: Vec<_> = self.log.db().iter().map(|db| db.closing()).collect();
        if let Some(published) = self.state.published() {
            if let Err(error) = published.db.flush(published.view.applied.index) {
                // Nothing is lost: the log replays it.
                tracing::warn!(error = %error, "the state was not flushed at close");
            }
            // A merge of small files would hold the database until it is done.
            published.db.db().cancel_all_background_work(false);
            closing.push(published.db.db().closing());
        }
        self.state.close_db();
        self.log.close_db();
        let until = Instant::now() + CLOSED_WITHIN;
        if !closing.iter().all(|db| db.wait(until)) {
            tracing::warn!(
                "the folder is left while it is read: it cannot be opened in this process until that ends"
            );
        }
        drop(self.lock);
    }
}
