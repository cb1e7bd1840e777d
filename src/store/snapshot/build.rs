//! Building a snapshot, beside the applies that go on: a checkpoint of what was flushed ahead. One that somebody asked
//! for is to hold all that was applied: its checkpoint flushes, between two applies.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

use bytes::Bytes;
use openraft::storage::RaftSnapshotBuilder;
use rocksdb::checkpoint::Checkpoint;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::machine::apply::View;
use crate::raft::convert::{log_id_to_proto, stored_membership_to_proto};
use crate::raft::{LogId, SnapshotData, SnapshotMeta, TypeConfig, log_id_of, pos_of};
use crate::store::files;
use crate::store::snapshot::progress::Running;
use crate::store::snapshot::{
    FILES, FORMAT_VERSION, FileKey, Snapshot, Snapshots, check, database_files, last_index, meta_of,
};
use crate::store::state::apply::unix_ms;
use crate::store::state::db::{StateDb, StateError};
use crate::telemetry::names;
use crate::types::LogIndex;
use crate::types::position::LogPos;
use crate::types::proto::{SnapshotFile, SnapshotManifest};

/// Sizes of the WAL above which RocksDB flushes for a checkpoint. What it does not flush it takes out of the WAL,
/// which has nothing here: such a checkpoint holds what a crash would leave.
const ALWAYS_FLUSH: u64 = 0;
const NEVER_FLUSH: u64 = u64::MAX;
/// A chain on which nothing is applied for so long gets its snapshot at the next try.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// Why a snapshot was not built. Never reaches openraft, whose core would stop (safety rule 28).
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Rocks(#[from] rocksdb::Error),
    #[error("the checkpoint cannot be read: {0}")]
    State(#[from] StateError),
    #[error("the checkpoint ends at {found:?}, not within {from} to {upto:?}")]
    Position { found: LogPos, from: LogIndex, upto: Option<LogId> },
    #[error("the checkpoint ends at {0:?}, of which raft was not told in time")]
    NotTold(LogPos),
    #[error("nothing was applied yet")]
    Empty,
    #[error("the task was dropped")]
    Dropped,
}

/// What is to become a snapshot.
pub(crate) struct Builder {
    snapshots: Snapshots,
    source: Source,
    /// What was applied when it began.
    applied: Option<LogId>,
    began: Instant,
}

enum Source {
    /// A snapshot at this position exists, and nobody asked for another.
    Existing,
    /// A checkpoint of all that was applied.
    Checkpoint {
        running: Running,
        tmp: PathBuf,
    },
    /// One of what was flushed is to be made.
    Flushed {
        running: Running,
        flushed: Flushed,
    },
    Failed(Running, BuildError),
}

/// A state whose flushed part is news.
struct Flushed {
    db: Arc<StateDb>,
    /// It holds this at least.
    from: LogIndex,
    /// What was applied when the build began.
    upto: Option<LogId>,
    view: watch::Receiver<Arc<View>>,
}

impl Builder {
    /// Nothing is applied until this returns.
    pub(crate) async fn begin(
        snapshots: Snapshots,
        db: Arc<StateDb>,
        applied: Option<LogId>,
        view: watch::Receiver<Arc<View>>,
    ) -> Self {
        let began = Instant::now();
        let newest = snapshots.newest().as_ref().and_then(last_index);
        let is_covered = newest.is_some() && newest == applied.as_ref().map(|id| id.index);
        let Some((running, is_promised)) = snapshots.begin(is_covered) else {
            return Self { snapshots, source: Source::Existing, applied, began };
        };
        snapshots.inner.metrics.snapshots.set_running("build", true);
        let from = db.flushed();
        if !is_promised && newest.unwrap_or(0) < from {
            let flushed = Flushed { db, from, upto: applied, view };
            return Self { snapshots, source: Source::Flushed { running, flushed }, applied, began };
        }
        let task = {
            let (snapshots, id) = (snapshots.clone(), running.id.clone());
            tokio::task::spawn_blocking(move || snapshots.checkpoint(&db, &id, applied, ALWAYS_FLUSH))
        };
        let source = match task.await {
            Ok(Ok(tmp)) => Source::Checkpoint { running, tmp },
            Ok(Err(error)) => Source::Failed(running, error),
            Err(_) => Source::Failed(running, BuildError::Dropped),
        };
        Self { snapshots, source, applied, began }
    }

    /// The snapshot that was built or exists; when building failed, the newest before it.
    async fn finish(&mut self) -> Option<Snapshot> {
        let source = std::mem::replace(&mut self.source, Source::Existing);
        let (snapshots, applied) = (self.snapshots.clone(), self.applied);
        let (running, result) = match source {
            Source::Existing => {
                self.snapshots.had_nothing_to_build();
                return self.snapshots.current();
            }
            Source::Failed(running, error) => (running, Err(error)),
            Source::Checkpoint { running, tmp } => {
                let id = running.id.clone();
                let task = tokio::task::spawn_blocking(move || snapshots.seal(&tmp, &id, applied));
                (running, task.await.unwrap_or(Err(BuildError::Dropped)))
            }
            Source::Flushed { running, flushed } => {
                let id = running.id.clone();
                let task = tokio::task::spawn_blocking(move || snapshots.build_flushed(flushed, &id));
                (running, task.await.unwrap_or(Err(BuildError::Dropped)))
            }
        };
        let metrics = &self.snapshots.inner.metrics;
        metrics.snapshots.set_running("build", false);
        let seconds = self.began.elapsed().as_secs_f64();
        match result {
            Ok(data) => {
                metrics.snapshots.count("build", "ok", seconds);
                let meta = meta_of(&data.manifest).expect("a manifest of our own is whole");
                let pos = meta.last_log_id.as_ref().map(pos_of);
                metrics.snapshots.trace(names::span::SNAPSHOT_BUILD, "ok", self.began, pos);
                running.end(Ok(()));
                Some(Snapshot { meta, snapshot: data })
            }
            Err(error) => {
                metrics.snapshots.count("build", "failed", seconds);
                metrics.snapshots.trace(
                    names::span::SNAPSHOT_BUILD,
                    "failed",
                    self.began,
                    applied.as_ref().map(pos_of),
                );
                metrics.error("state", "snapshot");
                // Tried again and again while the disk is full: said once in a row.
                match self.snapshots.progress().borrow().failed.is_none() {
                    true => {
                        tracing::warn!(%error, "no snapshot was built; the next one is tried when it is due")
                    }
                    false => tracing::debug!(%error, "no snapshot was built, as before"),
                }
                running.end(Err(error.to_string()));
                self.snapshots.current()
            }
        }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        Ok(self.finish().await.unwrap_or_else(|| Snapshot {
            // Openraft ignores one that is not newer than what it knows.
            meta: SnapshotMeta::default(),
            snapshot: SnapshotData {
                manifest: SnapshotManifest::default(),
                dir: PathBuf::new(),
                _pin: Arc::new(()),
            },
        }))
    }
}

impl Snapshots {
    /// Builds a snapshot of a state that nothing is applied to. Blocking.
    pub(crate) fn build_now(&self, db: &StateDb, applied: Option<LogId>) -> Result<SnapshotData, BuildError> {
        let id = self.reserve();
        let (running, _) = self.begin(false).expect("one that must be built");
        let checkpoint = self.checkpoint(db, &id, applied, ALWAYS_FLUSH);
        let built = checkpoint.and_then(|tmp| self.seal(&tmp, &id, applied));
        running.end(built.as_ref().map(drop).map_err(BuildError::to_string));
        built
    }

    /// `flush_above` is the size of the WAL above which RocksDB flushes first.
    fn checkpoint(
        &self,
        db: &StateDb,
        id: &str,
        applied: Option<LogId>,
        flush_above: u64,
    ) -> Result<PathBuf, BuildError> {
        if applied.is_none() {
            return Err(BuildError::Empty);
        }
        let tmp = self.tmp_dir(id);
        files::remove_dir(&tmp)?;
        files::create_dir(&tmp)?;
        let result = Checkpoint::new(db.db())
            .and_then(|c| c.create_checkpoint_with_log_size(tmp.join(FILES), flush_above));
        if let Err(error) = result {
            let _ = files::remove_dir(&tmp);
            return Err(error.into());
        }
        Ok(tmp)
    }

    /// A snapshot of a checkpoint that holds what was applied and nothing else.
    fn seal(&self, tmp: &Path, id: &str, applied: Option<LogId>) -> Result<SnapshotData, BuildError> {
        self.keep_or_remove(tmp, || {
            let (found, manifest) = self.manifest(&tmp.join(FILES), id)?;
            if Some(log_id_of(found)) != applied {
                let from = applied.map_or(0, |id| id.index);
                return Err(BuildError::Position { found, from, upto: applied });
            }
            Ok(manifest)
        })
    }

    /// A snapshot of what was flushed. Blocking, while applies go on.
    fn build_flushed(&self, flushed: Flushed, id: &str) -> Result<SnapshotData, BuildError> {
        let Flushed { db, from, upto, mut view } = flushed;
        let tmp = self.checkpoint(&db, id, upto, NEVER_FLUSH)?;
        drop(db);
        self.keep_or_remove(&tmp, || {
            let (found, manifest) = self.manifest(&tmp.join(FILES), id)?;
            if found.index < from {
                return Err(BuildError::Position { found, from, upto });
            }
            if upto < Some(log_id_of(found)) {
                // RocksDB flushed by itself meanwhile, when a buffer was full. Raft hears of entries in the order in
                // which they were applied, and of a snapshot whenever it is built: what is in it must be told before,
                // which it was once something else has been applied.
                let told = view.wait_for(|view| found.index < view.applied.index);
                let told = Handle::current()
                    .block_on(async { matches!(tokio::time::timeout(TOLD_WITHIN, told).await, Ok(Ok(_))) });
                if !told {
                    return Err(BuildError::NotTold(found));
                }
            }
            Ok(manifest)
        })
    }

    fn keep_or_remove(
        &self,
        tmp: &Path,
        manifest: impl FnOnce() -> Result<SnapshotManifest, BuildError>,
    ) -> Result<SnapshotData, BuildError> {
        let result = manifest().and_then(|manifest| Ok(self.keep_built(tmp, manifest)?));
        if result.is_err() {
            let _ = files::remove_dir(tmp);
        }
        result
    }

    /// Reads what the checkpoint holds out of the checkpoint itself: the last entry, and all else.
    fn manifest(&self, dir: &Path, id: &str) -> Result<(LogPos, SnapshotManifest), BuildError> {
        let db = StateDb::open_read_only(dir, &self.inner.rocks)?;
        let record = db.record()?.ok_or(BuildError::Empty)?;
        let membership = db.membership()?;
        drop(db);
        let found = LogPos { term: record.applied_term, index: record.applied_index };
        let manifest = SnapshotManifest {
            format_version: FORMAT_VERSION,
            id: id.to_owned(),
            cluster_id: self.inner.cluster_id.clone(),
            last_log_id: Some(log_id_to_proto(&log_id_of(found))),
            membership: Some(stored_membership_to_proto(&membership)),
            height: record.head.map_or(0, |h| h.height),
            state_hash: record.state_hash,
            created_at_ms: unix_ms(),
            files: self.checked_files(dir)?,
            received: false,
        };
        Ok((found, manifest))
    }

    /// Sizes and checksums of the files; SST files never change, so theirs are computed once.
    fn checked_files(&self, dir: &Path) -> io::Result<Vec<SnapshotFile>> {
        let known = std::mem::take(&mut *self.checksums());
        let mut kept = HashMap::new();
        let mut files = Vec::new();
        for (name, path) in database_files(dir)? {
            let key = FileKey::of(&name, &fs::metadata(&path)?);
            let size_bytes = key.size;
            let sum = match known.get(&key) {
                Some(sum) if name.ends_with(".sst") => sum.clone(),
                _ => check::checksum(&path)?.1,
            };
            kept.insert(key, sum.clone());
            files.push(SnapshotFile { name, size_bytes, checksum: sum });
        }
        *self.checksums() = kept;
        Ok(files)
    }

    /// The state that was loaded, or is being installed, links to the files of this snapshot: their checksums
    /// need not be computed again, and damage that both share is not taken for the right content.
    pub(super) fn know_checksums(&self, manifest: &SnapshotManifest) {
        let dir = self.inner.dir.join(&manifest.id).join(FILES);
        let mut known = self.checksums();
        for file in manifest.files.iter().filter(|f| f.name.ends_with(".sst")) {
            if let Ok(m) = fs::metadata(dir.join(&file.name)) {
                known.insert(FileKey::of(&file.name, &m), file.checksum.clone());
            }
        }
    }

    fn checksums(&self) -> std::sync::MutexGuard<'_, HashMap<FileKey, Bytes>> {
        self.inner.checksums.lock().unwrap_or_else(|p| p.into_inner())
    }
}

impl FileKey {
    pub(super) fn of(name: &str, m: &fs::Metadata) -> Self {
        let modified_ns = m.mtime() * 1_000_000_000 + m.mtime_nsec();
        Self { name: name.to_owned(), inode: m.ino(), size: m.size(), modified_ns }
    }
}
