//! Installing a snapshot: one switch from the old state to the new.
//!
//! The new state is built under a name of its own by hard links and opened there; the rename of one
//! small file makes it the state in force. A crash at any point leaves the one or the other.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use std::{fs, io};

use prost::Message;

use crate::raft::{SnapshotData, SnapshotMeta, pos_of};
use crate::store::OpenError;
use crate::store::files;
use crate::store::health::{Database, Fatal};
use crate::store::rocks;
use crate::store::snapshot::Snapshots;
use crate::store::state::StateMachine;
use crate::store::state::db::{self, Family, Loaded, StateDb, StateError, height_key};
use crate::store::state::prune::Pruner;
use crate::telemetry::names;
use crate::types::Height;
use crate::types::block::BlockRef;
use crate::types::position::LogPos;
use crate::types::proto::BlockRow;

/// How long an install that met a full disk waits before it is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(250);

/// Why a snapshot did not become the state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    State(#[from] StateError),
    #[error("it holds {found:?}, not {expected:?}")]
    Position { found: Option<LogPos>, expected: Option<LogPos> },
    /// Both were committed: a folder was put back from an older copy.
    #[error("its block at height {height} is not the one that was applied here")]
    Contradicted { height: Height },
}

/// The last block of the state that a snapshot is to replace.
pub(crate) struct Head {
    height: Height,
    row: BlockRow,
}

impl Head {
    /// `None` also where it cannot be read: that state is to be replaced anyway.
    fn of(db: &StateDb, head: Option<&BlockRef>) -> Option<Self> {
        let height = head?.height;
        Some(Self { height, row: row_at(db, height).ok()?? })
    }

    /// Whether a newer state went on from it, as far as that still tells.
    fn is_in(&self, db: &StateDb, floor: Height) -> Result<bool, StateError> {
        let is_same = |row: BlockRow| {
            (row.term, row.index, row.hash) == (self.row.term, self.row.index, self.row.hash.clone())
        };
        Ok(self.height < floor || row_at(db, self.height)?.is_none_or(is_same))
    }
}

fn row_at(db: &StateDb, height: Height) -> Result<Option<BlockRow>, StateError> {
    let row = db.bytes(Family::Rows, &height_key(height))?.map(BlockRow::decode);
    row.transpose().map_err(|_| StateError::Record { what: "a row" })
}

impl InstallError {
    pub(crate) fn is_no_space(&self) -> bool {
        match self {
            Self::Io(e) => files::is_no_space(e),
            Self::State(StateError::Rocks(e)) => rocks::is_no_space(e),
            Self::State(_) | Self::Position { .. } | Self::Contradicted { .. } => false,
        }
    }

    /// What a start makes of it: damage is the snapshot's, everything else the disk's.
    pub(crate) fn into_open_error(self, data_dir: &Path) -> OpenError {
        let what = self.to_string();
        match self {
            Self::Io(e) if files::is_no_space(&e) => OpenError::DiskFull { path: data_dir.to_owned(), what },
            Self::Io(e) => OpenError::io(data_dir, e),
            Self::State(StateError::Rocks(e)) => OpenError::rocks(data_dir, &e),
            Self::State(_) | Self::Position { .. } | Self::Contradicted { .. } => {
                OpenError::damage(data_dir, what)
            }
        }
    }
}

impl StateMachine {
    /// Never fails: a full disk is waited for, anything else ends the node.
    pub(super) async fn install(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) {
        let began = Instant::now();
        let expected = meta.last_log_id.as_ref().map(pos_of);
        if expected.map(|p| p.index) <= self.applied.map(|p| p.index) {
            tracing::warn!(?expected, applied = ?self.applied, "a snapshot that holds nothing new is not installed");
            self.snapshots.installed(&snapshot.manifest.id);
            return;
        }
        self.metrics.snapshots.set_running("install", true);
        // Raft cut what contradicts the snapshot: with the new state in force and the old entries still there,
        // a crash would leave a folder that no start accepts.
        self.log.await_written().await;
        let mut is_blocked = false;
        let (db, loaded) = loop {
            let (snapshots, data_dir, rocks) =
                (self.snapshots.clone(), self.data_dir.clone(), self.rocks.clone());
            let data = snapshot.clone();
            let (old, head) = (self.db.clone(), self.machine.view().head.clone());
            let task = tokio::task::spawn_blocking(move || {
                let data = adopt(&snapshots, data)?;
                let head = Head::of(&old, head.as_ref());
                build(&data_dir, &data.dir, &rocks, expected, head)
            });
            let error = match task.await {
                Ok(Ok(built)) => break built,
                Ok(Err(error)) => error,
                Err(_) => return std::future::pending().await,
            };
            self.metrics.error("state", "snapshot");
            if !error.is_no_space() {
                self.metrics.snapshots.count("install", "failed", began.elapsed().as_secs_f64());
                self.metrics.snapshots.trace(names::span::SNAPSHOT_INSTALL, "failed", began, expected);
                let what = format!("snapshot {} cannot be installed: {error}", snapshot.manifest.id);
                let fatal = match error {
                    InstallError::Contradicted { .. } => Fatal::Contradicted { what },
                    _ => Fatal::WriteFailed { db: "state", what },
                };
                return self.stand_still(fatal).await;
            }
            if !is_blocked {
                tracing::warn!(error = %error, "a snapshot cannot be installed: disk full; tried again until space returns");
                self.health.set_blocked(Database::State, true);
                is_blocked = true;
            }
            tokio::time::sleep(FULL_PAUSE).await;
        };
        if is_blocked {
            self.health.set_blocked(Database::State, false);
        }
        self.take_over(db, loaded);
        self.snapshots.installed(&snapshot.manifest.id);
        self.metrics.snapshots.count("install", "ok", began.elapsed().as_secs_f64());
        self.metrics.snapshots.trace(names::span::SNAPSHOT_INSTALL, "ok", began, expected);
        self.metrics.snapshots.set_running("install", false);
    }

    fn take_over(&mut self, db: StateDb, loaded: Loaded) {
        let old = std::mem::replace(&mut self.db, Arc::new(db));
        self.machine = loaded.machine;
        self.applied = loaded.applied;
        self.membership = loaded.membership;
        self.floor = loaded.floor;
        self.pruner = Pruner::new(loaded.floor);
        self.shared.recent().clear();
        // Before it can be read: whoever finds something in it knows that it is history.
        self.shared.history_upto.fetch_max(self.told().index, Ordering::AcqRel);
        self.shared.publish(&self.db, Arc::new(self.machine.view().clone()));
        self.show_blocks();
        if let Some(tap) = &self.tap {
            tap.installed(self.told());
        }
        old.doom();
        // Closing a database waits for its threads.
        tokio::task::spawn_blocking(move || drop(old));
    }
}

/// A snapshot that is not ours yet, as another store hands it over, becomes one of ours.
fn adopt(snapshots: &Snapshots, data: SnapshotData) -> io::Result<SnapshotData> {
    match snapshots.holds(&data.dir) {
        true => Ok(data),
        false => snapshots.link_in(&data),
    }
}

/// Builds a state from the files of a snapshot and makes it the one in force. `head` is of the state that it replaces, where
/// there is one.
pub(crate) fn build(
    data_dir: &Path,
    from: &Path,
    rocks: &rocks::Shared,
    expected: Option<LogPos>,
    head: Option<Head>,
) -> Result<(StateDb, Loaded), InstallError> {
    let dir = db::new_dir(data_dir)?;
    let result = build_in(&dir, data_dir, from, rocks, expected, head);
    if result.is_err() {
        let _ = files::remove_dir(&dir);
    }
    let built = result?;
    if let Err(e) = db::switch_to(data_dir, &dir) {
        drop(built);
        // It may be the one in force all the same: renamed, and not synced.
        if db::current_dir(data_dir).is_ok_and(|current| current != dir) {
            let _ = files::remove_dir(&dir);
        }
        return Err(e.into());
    }
    Ok(built)
}

fn build_in(
    dir: &Path,
    data_dir: &Path,
    from: &Path,
    rocks: &rocks::Shared,
    expected: Option<LogPos>,
    head: Option<Head>,
) -> Result<(StateDb, Loaded), InstallError> {
    link_files(from, dir)?;
    files::sync_dir(data_dir)?;
    let db = StateDb::open(dir, rocks)?;
    let loaded = db.load()?;
    if loaded.applied != expected {
        return Err(InstallError::Position { found: loaded.applied, expected });
    }
    if let Some(head) = head
        && !head.is_in(&db, loaded.floor)?
    {
        return Err(InstallError::Contradicted { height: head.height });
    }
    Ok((db, loaded))
}

/// A folder with the files of a database: those that never change as hard links, the others as
/// copies. Durable on return, but for the folder's own name.
pub(crate) fn link_files(from: &Path, to: &Path) -> io::Result<()> {
    files::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let source = entry?.path();
        let Some(name) = source.file_name().and_then(|n| n.to_str()).filter(|n| is_database_file(n)) else {
            continue;
        };
        let target = to.join(name);
        let is_linked = name.ends_with(".sst") && fs::hard_link(&source, &target).is_ok();
        if !is_linked {
            fs::copy(&source, &target)?;
            files::sync_file(&target)?;
        }
    }
    files::sync_dir(to)
}

/// All but RocksDB's own info logs and its lock.
pub(crate) fn is_database_file(name: &str) -> bool {
    !name.starts_with("LOG") && name != "LOCK" && name != "IDENTITY"
}
