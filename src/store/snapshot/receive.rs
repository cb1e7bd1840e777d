//! Receiving a snapshot: chunks into `ID.tmp`, verified and durable before anybody may install it.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::raft::SnapshotData;
use crate::store::files;
use crate::store::snapshot::check::{self, Problem};
use crate::store::snapshot::incoming::Stage;
use crate::store::snapshot::shared::Origins;
use crate::store::snapshot::{FILES, FORMAT_VERSION, Snapshots, meta_of, size_of};
use crate::store::state::install::link_files;
use crate::types::proto::SnapshotManifest;

/// Between two lines that say how far a transfer is. By eye.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Why a snapshot is not received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What is there reads well and may not be on the disk, and the next sync would say nothing of that. Nothing of it is
    /// kept.
    #[error("it cannot be synced: {0}")]
    Unsynced(io::Error),
    /// Nothing of it is kept: the sender begins anew.
    #[error("{file}: {what}")]
    Corrupt { file: String, what: String },
    /// The sender is not to blame, and goes on.
    #[error("{file}, linked from snapshot {id} of this node: {what}; it is to be sent")]
    Linked { file: String, id: String, what: String },
    #[error("the manifest is not usable: {0}")]
    Manifest(String),
    #[error("the manifest names no file {0}")]
    UnknownFile(String),
    #[error("{file}: a chunk at {offset}, {have} bytes are there")]
    Offset { file: String, offset: u64, have: u64 },
}

/// A snapshot that is coming in. Dropped unfinished, its files stay for the next attempt.
pub(crate) struct Receiving {
    snapshots: Snapshots,
    manifest: SnapshotManifest,
    tmp: PathBuf,
    /// Bytes that are there of each file.
    have: BTreeMap<String, u64>,
    /// Where what was linked comes from.
    origins: Origins,
    began: Instant,
    /// When a line last said how far it is; `None`: nothing came yet.
    told: Option<Instant>,
    is_over: bool,
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if !self.is_over {
            self.snapshots.set_stage(&self.manifest.id, Stage::Interrupted);
        }
    }
}

impl Snapshots {
    /// Begins, or goes on where an earlier attempt at the same id stopped. Blocking.
    pub(crate) fn receive(&self, manifest: SnapshotManifest) -> Result<Receiving, ReceiveError> {
        check_manifest(&manifest, &self.inner.cluster_id)?;
        let tmp = self.tmp_dir(&manifest.id);
        let dir = tmp.join(FILES);
        self.take_over(&manifest)?;
        let origins = self.link_shared(&manifest, &dir);
        let mut have = BTreeMap::new();
        for file in &manifest.files {
            let there = fs::metadata(dir.join(&file.name)).map_or(0, |m| m.len());
            have.insert(file.name.clone(), there.min(file.size_bytes));
        }
        let received_bytes = have.values().sum();
        self.receiving(&manifest, received_bytes);
        Ok(Receiving {
            snapshots: self.clone(),
            manifest,
            tmp,
            have,
            origins,
            began: Instant::now(),
            told: None,
            is_over: false,
        })
    }

    /// Takes in the snapshot of another store by hard links.
    pub(crate) fn link_in(&self, foreign: &SnapshotData) -> io::Result<SnapshotData> {
        let id = &foreign.manifest.id;
        if let Some(held) = self.find(id) {
            return Ok(held);
        }
        let tmp = self.tmp_dir(id);
        files::remove_dir(&tmp)?;
        link_files(&foreign.dir, &tmp.join(FILES))?;
        self.keep_received(&tmp, &foreign.manifest)
    }

    /// Keeps a received snapshot that is whole and durable; it counts once it is installed.
    fn keep_received(&self, tmp: &Path, manifest: &SnapshotManifest) -> io::Result<SnapshotData> {
        let stored = self.put_in_place(tmp, SnapshotManifest { received: true, ..manifest.clone() })?;
        let data = self.data(&stored);
        let before = self.pending().replace(stored);
        // One that was never installed is of no use beside a newer one.
        before.iter().filter(|s| Arc::strong_count(&s.pin) == 1).for_each(|s| self.delete(s));
        Ok(data)
    }
}

impl Receiving {
    /// Where the next chunk of a file begins.
    pub(crate) fn have(&self, file: &str) -> u64 {
        self.have.get(file).copied().unwrap_or(0)
    }

    /// Bytes that are still to come.
    pub(crate) fn missing_bytes(&self) -> u64 {
        size_of(&self.manifest) - self.have.values().sum::<u64>()
    }

    /// Nothing of it can be taken in now. What was sent stays for the next attempt; what is linked would keep the
    /// tables of snapshots that are deleted meanwhile, and is linked again then. Blocking.
    pub(crate) fn give_up(mut self) {
        let (id, dir) = (&self.manifest.id, self.tmp.join(FILES));
        for file in self.origins.keys() {
            match fs::remove_file(dir.join(file)) {
                Ok(()) => drop(self.have.insert(file.clone(), 0)),
                Err(error) => tracing::warn!(%error, id, file, "a link to a table of another snapshot stays"),
            }
        }
        self.snapshots.receiving(&self.manifest, self.have.values().sum());
    }

    /// Chunks of one file come in order; one that is there already is skipped. Blocking.
    pub(crate) fn write_chunk(&mut self, file: &str, offset: u64, bytes: &[u8]) -> Result<(), ReceiveError> {
        if self.told.is_none_or(|told| TELL_EVERY <= told.elapsed()) {
            self.told = Some(Instant::now());
            tracing::info!(
                id = self.manifest.id,
                received_bytes = self.have.values().sum::<u64>(),
                size_bytes = size_of(&self.manifest),
                "a snapshot is being received"
            );
        }
        let size = self.manifest.files.iter().find(|f| f.name == file).map(|f| f.size_bytes);
        let (Some(size), Some(have)) = (size, self.have.get_mut(file)) else {
            return Err(ReceiveError::UnknownFile(file.to_owned()));
        };
        let end = offset + bytes.len() as u64;
        if end <= *have {
            return Ok(());
        }
        if *have < offset || size < end {
            return Err(ReceiveError::Offset { file: file.to_owned(), offset, have: *have });
        }
        let path = self.tmp.join(FILES).join(file);
        let out = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        out.write_all_at(bytes, offset)?;
        self.snapshots.received_more(&self.manifest.id, end - *have);
        *have = end;
        Ok(())
    }

    /// Verifies every file, makes all of it durable and puts it among the snapshots. Blocking.
    pub(crate) fn finish(mut self) -> Result<SnapshotData, ReceiveError> {
        self.is_over = true;
        let id = &self.manifest.id;
        self.snapshots.set_stage(id, Stage::Verifying);
        let result = self.check_and_keep();
        match &result {
            Ok(_) => self.snapshots.set_stage(id, Stage::Installing),
            Err(ReceiveError::Corrupt { .. } | ReceiveError::Unsynced(_)) => self.snapshots.arrived(id),
            Err(_) => self.snapshots.set_stage(id, Stage::Interrupted),
        }
        let metrics = self.snapshots.metrics();
        match &result {
            Ok(_) => metrics.count("verify", "ok", 0.0),
            Err(ReceiveError::Corrupt { file, what }) => {
                metrics.count("verify", "corrupt", 0.0);
                tracing::warn!(
                    id = self.manifest.id,
                    file,
                    what,
                    "a received snapshot is corrupt and was thrown away"
                );
                let _ = files::remove_dir(&self.tmp);
            }
            Err(error) => {
                metrics.count("verify", "failed", 0.0);
                if matches!(error, ReceiveError::Unsynced(_)) {
                    let _ = files::remove_dir(&self.tmp);
                    // It may be in its place already.
                    if self.snapshots.find(&self.manifest.id).is_none() {
                        let _ = files::remove_dir(&self.snapshots.inner.dir.join(&self.manifest.id));
                    }
                }
                tracing::warn!(id = self.manifest.id, error = %error, "a received snapshot could not be kept");
            }
        }
        result
    }

    fn check_and_keep(&self) -> Result<SnapshotData, ReceiveError> {
        let dir = self.tmp.join(FILES);
        for file in &self.manifest.files {
            // A file of no bytes comes in no chunk.
            if file.size_bytes == 0 {
                fs::write(dir.join(&file.name), [])?;
            }
            let path = dir.join(&file.name);
            if fs::metadata(&path).map_or(0, |m| m.len()) == file.size_bytes {
                files::sync_file(&path).map_err(ReceiveError::Unsynced)?;
            }
        }
        let sent = self.manifest.files.iter().filter(|f| !self.origins.contains_key(&f.name));
        if let Some(Problem { file, what }) = sent.filter_map(|f| check::file(&dir, f)).next() {
            return Err(ReceiveError::Corrupt { file, what });
        }
        self.check_links(&dir, true)?;
        // The files are those that were sent; whether they are the state that the manifest names is
        // looked at too, before anything rests on it.
        if let Err(what) = check::content(&dir, &self.manifest, &self.snapshots.inner.rocks) {
            self.check_links(&dir, false)?;
            return Err(ReceiveError::Corrupt { file: FILES.to_owned(), what });
        }
        self.snapshots.tables_checked(&dir, &self.manifest);
        files::sync_dir(&dir).map_err(ReceiveError::Unsynced)?;
        if let Some(held) = self.snapshots.find(&self.manifest.id) {
            files::remove_dir(&self.tmp)?;
            return Ok(held);
        }
        tracing::info!(id = self.manifest.id, elapsed = ?self.began.elapsed(), "a snapshot was received");
        self.snapshots.keep_received(&self.tmp, &self.manifest).map_err(|e| match files::is_no_space(&e) {
            true => ReceiveError::Io(e),
            false => ReceiveError::Unsynced(e),
        })
    }

    /// Refuses damaged tables of this node's own; what is whole stays for the next attempt.
    fn check_links(&self, dir: &Path, is_trusting: bool) -> Result<(), ReceiveError> {
        let damaged = self.snapshots.damaged_links(dir, &self.manifest, &self.origins, is_trusting);
        for file in self.manifest.files.iter().filter(|f| damaged.iter().any(|p| p.file == f.name)) {
            self.snapshots.unlink(dir, file);
        }
        let Some(Problem { file, what }) = damaged.into_iter().next() else { return Ok(()) };
        let id = self.origins[&file].clone();
        Err(ReceiveError::Linked { file, id, what })
    }
}

/// Names come from another node: they may lead nowhere but into the folder of this snapshot.
pub(crate) fn check_manifest(manifest: &SnapshotManifest, cluster_id: &str) -> Result<(), ReceiveError> {
    let fail = |what: &str| Err(ReceiveError::Manifest(what.to_owned()));
    let is_plain = |name: &str| {
        !name.is_empty()
            && name.len() <= 128
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    if !is_plain(&manifest.id) || manifest.id.contains('.') {
        return fail("its id is no plain name");
    }
    if manifest.files.is_empty() || !manifest.files.iter().all(|f| is_plain(&f.name)) {
        return fail("a file has no plain name");
    }
    if manifest.cluster_id != cluster_id {
        return fail("it is another cluster's");
    }
    if FORMAT_VERSION < manifest.format_version {
        return fail("its format is newer than this binary knows");
    }
    if manifest.last_log_id.is_none() {
        return fail("it holds no entry");
    }
    meta_of(manifest).map(drop).map_err(ReceiveError::Manifest)
}
