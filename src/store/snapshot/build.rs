//! Building a snapshot: a checkpoint between two applies, everything else beside them.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use std::{fs, io};

use bytes::Bytes;
use openraft::storage::RaftSnapshotBuilder;
use rocksdb::checkpoint::Checkpoint;

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
use crate::types::position::LogPos;
use crate::types::proto::{SnapshotFile, SnapshotManifest};

/// Why a snapshot was not built. Never reaches openraft, whose core would stop (safety rule 28).
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Rocks(#[from] rocksdb::Error),
    #[error("the checkpoint cannot be read: {0}")]
    State(#[from] StateError),
    #[error("the checkpoint holds {found:?}, not {expected:?}")]
    Position { found: Option<LogId>, expected: Option<LogId> },
    #[error("nothing was applied yet")]
    Empty,
    #[error("the task was dropped")]
    Dropped,
}

/// A checkpoint that is to become a snapshot.
pub(crate) struct Builder {
    snapshots: Snapshots,
    source: Source,
    began: Instant,
}

enum Source {
    /// A snapshot at this position exists, and nobody asked for another.
    Existing,
    Checkpoint {
        running: Running,
        tmp: PathBuf,
        expected: Option<LogId>,
    },
    Failed(Running, BuildError),
}

impl Builder {
    /// Makes the checkpoint; nothing is applied until this returns.
    pub(crate) async fn begin(snapshots: Snapshots, db: Arc<StateDb>, applied: Option<LogId>) -> Self {
        let began = Instant::now();
        let newest = snapshots.newest().as_ref().and_then(last_index);
        let is_covered = newest.is_some() && newest == applied.as_ref().map(|id| id.index);
        let Some(running) = snapshots.begin(is_covered) else {
            return Self { snapshots, source: Source::Existing, began };
        };
        snapshots.inner.metrics.snapshots.set_running("build", true);
        let task = {
            let (snapshots, id) = (snapshots.clone(), running.id.clone());
            tokio::task::spawn_blocking(move || snapshots.checkpoint(&db, &id, applied))
        };
        let source = match task.await {
            Ok(Ok(tmp)) => Source::Checkpoint { running, tmp, expected: applied },
            Ok(Err(error)) => Source::Failed(running, error),
            Err(_) => Source::Failed(running, BuildError::Dropped),
        };
        Self { snapshots, source, began }
    }

    /// The snapshot that was built or exists; when building failed, the newest before it.
    async fn finish(&mut self) -> Option<Snapshot> {
        let source = std::mem::replace(&mut self.source, Source::Existing);
        let pos = match &source {
            Source::Checkpoint { expected, .. } => expected.as_ref().map(pos_of),
            Source::Existing | Source::Failed(..) => None,
        };
        let (running, result) = match source {
            Source::Existing => {
                self.snapshots.had_nothing_to_build();
                return self.snapshots.current();
            }
            Source::Failed(running, error) => (running, Err(error)),
            Source::Checkpoint { running, tmp, expected } => {
                let (snapshots, id) = (self.snapshots.clone(), running.id.clone());
                let task = tokio::task::spawn_blocking(move || snapshots.seal(&tmp, &id, expected));
                (running, task.await.unwrap_or(Err(BuildError::Dropped)))
            }
        };
        let metrics = &self.snapshots.inner.metrics;
        metrics.snapshots.set_running("build", false);
        let seconds = self.began.elapsed().as_secs_f64();
        match result {
            Ok(data) => {
                metrics.snapshots.count("build", "ok", seconds);
                metrics.snapshots.trace(names::span::SNAPSHOT_BUILD, "ok", self.began, pos);
                let meta = meta_of(&data.manifest).expect("a manifest of our own is whole");
                running.end(Ok(()));
                Some(Snapshot { meta, snapshot: data })
            }
            Err(error) => {
                metrics.snapshots.count("build", "failed", seconds);
                metrics.snapshots.trace(names::span::SNAPSHOT_BUILD, "failed", self.began, pos);
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
        let running = self.begin(false).expect("one that must be built");
        let built = self.checkpoint(db, &id, applied).and_then(|tmp| self.seal(&tmp, &id, applied));
        running.end(built.as_ref().map(drop).map_err(BuildError::to_string));
        built
    }

    fn checkpoint(&self, db: &StateDb, id: &str, applied: Option<LogId>) -> Result<PathBuf, BuildError> {
        if applied.is_none() {
            return Err(BuildError::Empty);
        }
        let tmp = self.tmp_dir(id);
        files::remove_dir(&tmp)?;
        files::create_dir(&tmp)?;
        let result = Checkpoint::new(db.db()).and_then(|c| c.create_checkpoint(tmp.join(FILES)));
        if let Err(error) = result {
            let _ = files::remove_dir(&tmp);
            return Err(error.into());
        }
        Ok(tmp)
    }

    fn seal(&self, tmp: &Path, id: &str, expected: Option<LogId>) -> Result<SnapshotData, BuildError> {
        let result = self
            .manifest(&tmp.join(FILES), id, expected)
            .and_then(|manifest| Ok(self.keep_built(tmp, manifest)?));
        if result.is_err() {
            let _ = files::remove_dir(tmp);
        }
        result
    }

    /// Reads what the checkpoint holds out of the checkpoint itself.
    fn manifest(
        &self,
        dir: &Path,
        id: &str,
        expected: Option<LogId>,
    ) -> Result<SnapshotManifest, BuildError> {
        let db = StateDb::open_read_only(dir, &self.inner.rocks)?;
        let record = db.record()?.ok_or(BuildError::Empty)?;
        let membership = db.membership()?;
        drop(db);
        let found = Some(log_id_of(LogPos { term: record.applied_term, index: record.applied_index }));
        if found != expected {
            return Err(BuildError::Position { found, expected });
        }
        Ok(SnapshotManifest {
            format_version: FORMAT_VERSION,
            id: id.to_owned(),
            cluster_id: self.inner.cluster_id.clone(),
            last_log_id: found.as_ref().map(log_id_to_proto),
            membership: Some(stored_membership_to_proto(&membership)),
            height: record.head.map_or(0, |h| h.height),
            state_hash: record.state_hash,
            created_at_ms: unix_ms(),
            files: self.checked_files(dir)?,
            received: false,
        })
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
    fn of(name: &str, m: &fs::Metadata) -> Self {
        let modified_ns = m.mtime() * 1_000_000_000 + m.mtime_nsec();
        Self { name: name.to_owned(), inode: m.ino(), size: m.size(), modified_ns }
    }
}
