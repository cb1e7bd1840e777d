//! The snapshot that comes in: how far it is, and what of it serves the next one.
//!
//! At most one. What was received of one whose transfer broke off stays on the disk until it is gone on
//! with, until another one takes over the files that both name, or until it is of no use any more.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Arc, MutexGuard};

use crate::store::files;
use crate::store::snapshot::{FILES, Snapshots, Stored, last_index, size_of};
use crate::types::position::LogPos;
use crate::types::proto::{SnapshotFile, SnapshotManifest};

/// Where a snapshot stands on its way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Receiving,
    /// The transfer broke off; the next one goes on with it.
    Interrupted,
    Verifying,
    /// Whole and durable: raft is to switch to it.
    Installing,
}

/// What is told of the snapshot that comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Incoming {
    pub(crate) id: String,
    /// The last entry in it.
    pub(crate) last: LogPos,
    pub(crate) stage: Stage,
    pub(crate) received_bytes: u64,
    pub(crate) size_bytes: u64,
}

/// Guarded by a lock: a piece is noted where it was written, and read when somebody asks.
pub(super) struct Coming {
    manifest: SnapshotManifest,
    stage: Stage,
    received_bytes: u64,
}

impl Snapshots {
    /// The snapshot that is on its way in.
    pub(crate) fn incoming(&self) -> Option<Incoming> {
        let coming = self.coming();
        let Coming { manifest, stage, received_bytes } = coming.as_ref()?;
        let last = manifest.last_log_id.unwrap_or_default();
        Some(Incoming {
            id: manifest.id.clone(),
            last: last.into(),
            stage: *stage,
            received_bytes: *received_bytes,
            size_bytes: size_of(manifest),
        })
    }

    /// Makes the folder of a snapshot that is to be received. What was received of another one before
    /// goes; files that both name are moved over, whole or in part. Blocking.
    pub(super) fn take_over(&self, manifest: &SnapshotManifest) -> io::Result<()> {
        let to = self.tmp_dir(&manifest.id).join(FILES);
        files::create_dir(&to)?;
        let former = self.coming().take_if(|c| c.manifest.id != manifest.id);
        let Some(former) = former else { return Ok(()) };
        let tmp = self.tmp_dir(&former.manifest.id);
        let named: BTreeMap<&str, &SnapshotFile> =
            former.manifest.files.iter().map(|f| (f.name.as_str(), f)).collect();
        for file in manifest.files.iter().filter(|f| named.get(f.name.as_str()) == Some(f)) {
            // One that is not there yet has nothing to move; whatever is moved is verified in the end.
            let _ = fs::rename(tmp.join(FILES).join(&file.name), to.join(&file.name));
        }
        files::remove_dir(&tmp)
    }

    /// A transfer begins, or goes on, with so many bytes that are there.
    pub(super) fn receiving(&self, manifest: &SnapshotManifest, received_bytes: u64) {
        let manifest = manifest.clone();
        *self.coming() = Some(Coming { manifest, stage: Stage::Receiving, received_bytes });
        self.show_incoming();
    }

    pub(super) fn received_more(&self, id: &str, bytes: u64) {
        if let Some(coming) = self.coming().as_mut().filter(|c| c.manifest.id == id) {
            coming.received_bytes += bytes;
        }
        self.show_incoming();
    }

    pub(super) fn set_stage(&self, id: &str, stage: Stage) {
        if let Some(coming) = self.coming().as_mut().filter(|c| c.manifest.id == id) {
            coming.stage = stage;
        }
        self.show_incoming();
    }

    /// It became the state, or was thrown away.
    pub(super) fn arrived(&self, id: &str) {
        self.coming().take_if(|c| c.manifest.id == id);
        self.show_incoming();
    }

    /// Raft was done with a received snapshot, whatever it did with it: one that it did not want goes.
    pub(crate) fn settled(&self, id: &str) {
        let is_alone = |s: &mut Stored| s.manifest.id == id && Arc::strong_count(&s.pin) == 1;
        let unwanted = self.pending().take_if(is_alone);
        if let Some(stored) = unwanted {
            tracing::info!(id, "a snapshot that was received and not wanted any more is dropped");
            self.delete(&stored);
        }
        self.arrived(id);
    }

    /// This node has a snapshot of its own up to here: what broke off before that is of no use.
    pub(super) fn forget_interrupted(&self, newest: &SnapshotManifest) {
        let is_older =
            |c: &mut Coming| c.stage == Stage::Interrupted && last_index(&c.manifest) <= last_index(newest);
        let Some(gone) = self.coming().take_if(is_older) else { return };
        if let Err(error) = files::remove_dir(&self.tmp_dir(&gone.manifest.id)) {
            tracing::warn!(%error, id = gone.manifest.id, "a part of a snapshot stays until the next start");
        }
        self.show_incoming();
    }

    fn show_incoming(&self) {
        let coming = self.coming();
        let metrics = &self.inner.metrics.snapshots;
        let (received, size) = coming.as_ref().map_or((0, 0), |c| (c.received_bytes, size_of(&c.manifest)));
        metrics.incoming_received_bytes.set(received as i64);
        metrics.incoming_bytes.set(size as i64);
    }

    fn coming(&self) -> MutexGuard<'_, Option<Coming>> {
        self.inner.coming.lock().unwrap_or_else(|p| p.into_inner())
    }
}
