//! The snapshots on disk: a folder each, with a manifest beside the files it names.
//!
//! [`Snapshots`] owns the folder `snapshots`. A snapshot is made in `ID.tmp` and renamed when whole
//! and durable; one that is being read is not deleted. Knows nothing of when one is due.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;

use crate::raft::convert::{log_id_from_proto, members_of, stored_membership_from_proto};
use crate::raft::{SnapshotData, SnapshotMeta, TypeConfig};
use crate::store::files;
use crate::store::metrics::{Metrics, SnapshotMetrics};
use crate::store::rocks;
use crate::store::snapshot::check::Problem;
use crate::store::snapshot::held::Held;
use crate::store::snapshot::incoming::Coming;
use crate::store::snapshot::progress::Progress;
use crate::store::snapshot::shared::Links;
use crate::store::state::install::is_database_file;
use crate::types::member::Members;
use crate::types::{LogIndex, proto::SnapshotManifest};

pub(crate) mod build;
pub(crate) mod check;
pub(crate) mod export;
mod held;
pub(crate) mod incoming;
pub(crate) mod progress;
pub(crate) mod receive;
mod shared;

/// Version of the disk format of the state that this binary writes and reads.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Before the encoded manifest and its CRC.
const MAGIC: [u8; 8] = *b"brsnapm1";
pub(crate) const MANIFEST: &str = "manifest";
/// The folder of the files that a manifest names.
pub(crate) const FILES: &str = "db";
/// Ending of the folder of one that is not finished.
const TMP: &str = "tmp";
/// Ending of the folder of one that is set aside.
const DAMAGED: &str = "damaged";

type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// A snapshot that is whole.
#[derive(Debug, Clone)]
struct Stored {
    manifest: SnapshotManifest,
    pin: Arc<()>,
}

/// A file as the file system tells it from others; SST files never change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct FileKey {
    name: String,
    inode: u64,
    size: u64,
    modified_ns: i64,
}

/// Cheap to clone; all clones show the same folder.
#[derive(Clone)]
pub(crate) struct Snapshots {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    cluster_id: String,
    node_id: u64,
    retain: usize,
    rocks: rocks::Shared,
    metrics: Arc<Metrics>,
    /// Oldest first. Guards the list for look-ups; files are touched outside.
    list: Mutex<Vec<Stored>>,
    /// Received and not installed yet: what it holds is ahead of this node's state.
    pending: Mutex<Option<Stored>>,
    /// Checksums of SST files that were computed before.
    checksums: Mutex<HashMap<FileKey, Bytes>>,
    coming: Mutex<Option<Coming>>,
    links: Mutex<Links>,
    progress: watch::Sender<Progress>,
}

impl Snapshots {
    /// Reads the folder: removes what was not finished, sets aside what is damaged.
    pub(crate) fn open(
        data_dir: &Path,
        cluster_id: &str,
        node_id: u64,
        retain: usize,
        rocks: rocks::Shared,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let dir = folder_of(data_dir);
        files::create_dir(&dir)?;
        // The log may be purged behind one whose name a killed process had not synced.
        files::sync_dir(&dir)?;
        files::sync_dir(data_dir)?;
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if is_ours(&path) && path.extension().is_some_and(|e| e == TMP) {
                files::remove_dir(&path)?;
            }
        }
        let mut list = Vec::new();
        for (path, read) in read_folder(&dir)? {
            match read {
                Ok(manifest) => list.push(Stored { manifest, pin: Arc::default() }),
                Err(what) => {
                    if let Err(error) = set_aside(&path, &what) {
                        tracing::warn!(%error, path = %path.display(), "a damaged snapshot stays where it is");
                    }
                }
            }
        }
        let inner = Inner {
            dir,
            cluster_id: cluster_id.to_owned(),
            node_id,
            retain: retain.max(1),
            rocks,
            metrics,
            list: Mutex::new(list),
            pending: Mutex::new(None),
            checksums: Mutex::new(HashMap::new()),
            coming: Mutex::new(None),
            links: Mutex::default(),
            progress: watch::Sender::new(Progress::default()),
        };
        let snapshots = Self { inner: Arc::new(inner) };
        if let Some(newest) = snapshots.newest() {
            snapshots.know_checksums(&newest);
        }
        snapshots.show();
        Ok(snapshots)
    }

    pub(crate) fn newest(&self) -> Option<SnapshotManifest> {
        self.stored().last().map(|s| s.manifest.clone())
    }

    /// Last index that the newest one holds; 0: there is none.
    pub(crate) fn newest_index(&self) -> LogIndex {
        self.stored().last().and_then(|s| last_index(&s.manifest)).unwrap_or(0)
    }

    pub(crate) fn retain(&self) -> usize {
        self.inner.retain
    }

    /// Those retained, newest first; not one that goes as soon as nobody reads it.
    pub(crate) fn list(&self) -> Vec<SnapshotManifest> {
        self.stored().iter().rev().take(self.inner.retain).map(|s| s.manifest.clone()).collect()
    }

    pub(crate) fn describe(&self, id: &str) -> Option<SnapshotManifest> {
        self.stored().iter().find(|s| s.manifest.id == id).map(|s| s.manifest.clone())
    }

    /// The newest snapshot, held alive as long as the answer is.
    pub(crate) fn newest_data(&self) -> Option<SnapshotData> {
        self.stored().last().map(|s| self.data(s))
    }

    /// Compares every file with its checksum, then restores the snapshot into a folder of its own and
    /// compares what that holds. `None`: no such snapshot. `Err`: the scratch folder cannot be
    /// written. Blocking; takes as long as the history is large.
    pub(crate) fn verify(&self, id: &str) -> io::Result<Option<Vec<Problem>>> {
        let data = self.stored().iter().find(|s| s.manifest.id == id).map(|s| self.data(s));
        let Some(data) = data else { return Ok(None) };
        let metrics = &self.inner.metrics.snapshots;
        let mut problems = check::files(&data.dir, &data.manifest);
        if problems.is_empty() {
            // Of this call alone: two at once do not meet.
            let name = format!("{id}-verify-{:x}", rand::random::<u64>());
            let restored = check::restore(&data.dir, &self.tmp_dir(&name), &data.manifest, &self.inner.rocks);
            match restored {
                Ok(Ok(())) => {}
                Ok(Err(what)) => problems.push(Problem { file: FILES.to_owned(), what }),
                Err(error) => {
                    metrics.count("verify", "failed", 0.0);
                    return Err(error);
                }
            }
        }
        let outcome = if problems.is_empty() { "ok" } else { "corrupt" };
        metrics.count("verify", outcome, 0.0);
        Ok(Some(problems))
    }

    /// Compares every file with its checksum. `None`: no such snapshot. Blocking.
    pub(crate) fn check_files(&self, id: &str) -> Option<Vec<Problem>> {
        let data = self.stored().iter().find(|s| s.manifest.id == id).map(|s| self.data(s))?;
        Some(check::files(&data.dir, &data.manifest))
    }

    /// Where a file that a manifest names lies.
    pub(crate) fn file_of(&self, id: &str, name: &str) -> PathBuf {
        self.inner.dir.join(id).join(FILES).join(name)
    }

    /// Sets a damaged snapshot aside, so that it is never sent nor installed again.
    pub(crate) fn set_aside(&self, id: &str, what: &str) -> io::Result<()> {
        self.stored().retain(|s| s.manifest.id != id);
        set_aside(&self.inner.dir.join(id), what)?;
        self.show();
        Ok(())
    }

    /// Sends are counted and timed by who sends.
    pub(crate) fn metrics(&self) -> &SnapshotMetrics {
        &self.inner.metrics.snapshots
    }

    /// As openraft wants the newest one.
    pub(crate) fn current(&self) -> Option<Snapshot> {
        let data = self.newest_data()?;
        let meta = meta_of(&data.manifest).ok()?;
        Some(Snapshot { meta, snapshot: data })
    }

    pub(crate) fn holds(&self, dir: &Path) -> bool {
        dir.starts_with(&self.inner.dir)
    }

    /// A snapshot by its id, installed or not.
    fn find(&self, id: &str) -> Option<SnapshotData> {
        let pending = self.pending().as_ref().filter(|s| s.manifest.id == id).map(|s| self.data(s));
        pending.or_else(|| self.stored().iter().find(|s| s.manifest.id == id).map(|s| self.data(s)))
    }

    /// The state is that of a received snapshot: from here on it is one of ours.
    pub(crate) fn installed(&self, id: &str) {
        self.arrived(id);
        let Some(stored) = self.pending().take_if(|s| s.manifest.id == id) else { return };
        let last = stored.manifest.last_log_id.unwrap_or_default();
        let pos = last.into();
        self.know_checksums(&stored.manifest);
        self.add(stored);
        self.inner.progress.send_modify(|p| p.received = Some((id.to_owned(), pos)));
    }

    /// Received and never installed: at the next start nobody knows whether they still fit the log. Then those beyond
    /// what is retained go too.
    pub(crate) fn forget_received_after(&self, applied: Option<LogIndex>) -> io::Result<()> {
        let gone: Vec<Stored> = {
            let mut list = self.stored();
            let is_gone = |s: &Stored| s.manifest.received && applied < last_index(&s.manifest);
            let (gone, kept) = list.drain(..).partition(is_gone);
            *list = kept;
            gone
        };
        for stored in &gone {
            let id = &stored.manifest.id;
            tracing::info!(id, "a snapshot that was received and not installed is dropped");
            files::remove_dir(&self.inner.dir.join(&stored.manifest.id))?;
        }
        if !gone.is_empty() {
            files::sync_dir(&self.inner.dir)?;
        }
        // Behind it: else one that is dropped would take the place of the only one that counts.
        self.prune();
        self.show();
        Ok(())
    }

    fn tmp_dir(&self, id: &str) -> PathBuf {
        self.inner.dir.join(format!("{id}.{TMP}"))
    }

    /// Keeps a snapshot of this node's own state.
    fn keep_built(&self, tmp: &Path, manifest: SnapshotManifest) -> io::Result<SnapshotData> {
        let stored = self.put_in_place(tmp, manifest)?;
        let data = self.data(&stored);
        self.add(stored);
        self.forget_interrupted(&data.manifest);
        Ok(data)
    }

    /// Writes the manifest, makes everything durable and puts the folder in its place.
    fn put_in_place(&self, tmp: &Path, manifest: SnapshotManifest) -> io::Result<Stored> {
        place(&self.inner.dir, tmp, &manifest)?;
        Ok(Stored { manifest, pin: Arc::default() })
    }

    fn add(&self, stored: Stored) {
        {
            let mut list = self.stored();
            list.push(stored);
            list.sort_by_key(|s| last_index(&s.manifest));
        }
        self.prune();
        self.show();
    }

    /// Deletes the oldest ones beyond what is retained, but none that is being read.
    fn prune(&self) {
        let gone: Vec<Stored> = {
            let mut list = self.stored();
            let surplus = list.len().saturating_sub(self.inner.retain);
            let may_go = |(i, s): &(usize, Stored)| *i < surplus && Arc::strong_count(&s.pin) == 1;
            let (gone, kept): (Vec<_>, Vec<_>) = list.drain(..).enumerate().partition(may_go);
            *list = kept.into_iter().map(|(_, s)| s).collect();
            gone.into_iter().map(|(_, s)| s).collect()
        };
        gone.iter().for_each(|s| self.delete(s));
    }

    fn delete(&self, stored: &Stored) {
        let tmp = self.tmp_dir(&stored.manifest.id);
        // Renamed first: one that is half deleted is never taken for whole.
        let result =
            fs::rename(self.inner.dir.join(&stored.manifest.id), &tmp).and_then(|()| files::remove_dir(&tmp));
        if let Err(error) = result {
            tracing::warn!(error = %error, id = stored.manifest.id, "an old snapshot stays until the next start");
        }
    }

    fn show(&self) {
        let metrics = &self.inner.metrics;
        let list = self.stored();
        metrics.snapshots.retained.set(list.len().min(self.inner.retain) as i64);
        let newest = list.last();
        metrics.snapshots.bytes.set(newest.map_or(0, |s| size_of(&s.manifest) as i64));
        metrics.snapshots.last_success.set(newest.map_or(0.0, |s| s.manifest.created_at_ms as f64 / 1e3));
    }

    fn data(&self, stored: &Stored) -> SnapshotData {
        SnapshotData {
            manifest: stored.manifest.clone(),
            dir: self.inner.dir.join(&stored.manifest.id).join(FILES),
            _pin: Arc::new(Held::new(self, stored.pin.clone())),
        }
    }

    fn pending(&self) -> MutexGuard<'_, Option<Stored>> {
        self.inner.pending.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn stored(&self) -> MutexGuard<'_, Vec<Stored>> {
        self.inner.list.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// Bytes of all files of a snapshot.
pub(crate) fn size_of(manifest: &SnapshotManifest) -> u64 {
    manifest.files.iter().map(|f| f.size_bytes).sum()
}

/// Index of the last entry that a snapshot holds; `None`: it holds none.
pub(crate) fn last_index(manifest: &SnapshotManifest) -> Option<LogIndex> {
    manifest.last_log_id.as_ref().map(|id| id.index)
}

/// What openraft knows of a snapshot; `Err` says what its manifest lacks.
pub(crate) fn meta_of(manifest: &SnapshotManifest) -> Result<SnapshotMeta, String> {
    let membership = manifest.membership.as_ref().ok_or("the membership is missing")?;
    Ok(SnapshotMeta {
        last_log_id: manifest.last_log_id.as_ref().map(log_id_from_proto),
        last_membership: stored_membership_from_proto(membership).map_err(|e| e.to_string())?,
    })
}

/// The members that a snapshot names.
pub(crate) fn members_in(manifest: &SnapshotManifest) -> Members {
    let stored = manifest.membership.as_ref().and_then(|m| stored_membership_from_proto(m).ok());
    members_of(&stored.unwrap_or_default())
}

/// Writes the manifest beside the files in `tmp`, makes everything durable and puts the folder in its
/// place among the snapshots of `dir`.
pub(crate) fn place(dir: &Path, tmp: &Path, manifest: &SnapshotManifest) -> io::Result<PathBuf> {
    write_manifest(&tmp.join(MANIFEST), manifest)?;
    files::sync_dir(tmp)?;
    let placed = dir.join(&manifest.id);
    fs::rename(tmp, &placed)?;
    // Before anything is purged: RocksDB syncs the new folder, not the one it lies in.
    files::sync_dir(dir)?;
    Ok(placed)
}

fn write_manifest(path: &Path, manifest: &SnapshotManifest) -> io::Result<()> {
    let body = manifest.encode_to_vec();
    let mut content = MAGIC.to_vec();
    content.extend_from_slice(&crc32fast::hash(&body).to_be_bytes());
    content.extend_from_slice(&body);
    files::write_atomic(path, &content)
}

pub(crate) fn read_manifest(dir: &Path) -> Result<SnapshotManifest, String> {
    let content = fs::read(dir.join(MANIFEST)).map_err(|e| format!("its manifest cannot be read: {e}"))?;
    decode_manifest(&content)
}

pub(crate) fn decode_manifest(content: &[u8]) -> Result<SnapshotManifest, String> {
    let body = content
        .strip_prefix(&MAGIC)
        .and_then(|rest| rest.split_at_checked(4))
        .filter(|(crc, body)| crc32fast::hash(body).to_be_bytes() == *crc)
        .map(|(_, body)| body)
        .ok_or("its manifest is damaged")?;
    let manifest =
        SnapshotManifest::decode(body).map_err(|e| format!("its manifest does not decode: {e}"))?;
    meta_of(&manifest)?;
    Ok(manifest)
}

/// Where the snapshots of a data folder lie.
pub(crate) fn folder_of(data_dir: &Path) -> PathBuf {
    data_dir.join("snapshots")
}

/// Whether it is a folder that a node made among its snapshots: named `hex-number`, and what is done with it behind
/// that. Whatever else lies there is somebody else's.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let begun = name.split_once('-').is_some_and(|(at, node_id)| {
        !at.is_empty()
            && at.bytes().all(|b| b.is_ascii_hexdigit())
            && node_id.starts_with(|c: char| c.is_ascii_digit())
    });
    begun && path.is_dir()
}

/// The snapshots in a folder, oldest first, and those that cannot be used with the reason, last.
/// Changes nothing.
pub(crate) fn read_folder(dir: &Path) -> io::Result<Vec<(PathBuf, Result<SnapshotManifest, String>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if is_ours(&path) && path.extension().is_none_or(|e| e != TMP && e != DAMAGED) {
            let read = read_whole(&path);
            found.push((path, read));
        }
    }
    found.sort_by_key(|(path, read)| match read {
        Ok(manifest) => (false, last_index(manifest), path.clone()),
        Err(_) => (true, None, path.clone()),
    });
    Ok(found)
}

/// The manifest of a snapshot whose files are all there in full length. Checksums are not looked at:
/// reading everything would hold up the start.
fn read_whole(dir: &Path) -> Result<SnapshotManifest, String> {
    let manifest = read_manifest(dir)?;
    if Some(manifest.id.as_str()) != dir.file_name().and_then(|n| n.to_str()) {
        return Err(format!("its manifest names {}", manifest.id));
    }
    if FORMAT_VERSION < manifest.format_version {
        return Err(format!("its format is {}, this binary knows {FORMAT_VERSION}", manifest.format_version));
    }
    for file in &manifest.files {
        match fs::metadata(dir.join(FILES).join(&file.name)) {
            Ok(m) if m.len() == file.size_bytes => {}
            Ok(m) => return Err(format!("{} has {} bytes, not {}", file.name, m.len(), file.size_bytes)),
            Err(e) => return Err(format!("{}: {e}", file.name)),
        }
    }
    Ok(manifest)
}

fn set_aside(path: &Path, what: &str) -> io::Result<()> {
    // The newest damaged one tells enough; each pins the space of its files.
    for entry in fs::read_dir(files::parent(path))? {
        let other = entry?.path();
        if is_ours(&other)
            && other.extension().is_some_and(|e| e == DAMAGED)
            && let Err(error) = files::remove_dir(&other)
        {
            tracing::warn!(%error, path = %other.display(), "a snapshot that was set aside before stays");
        }
    }
    let aside = path.with_extension(DAMAGED);
    tracing::warn!(what, path = %aside.display(), "a damaged snapshot is set aside");
    fs::rename(path, aside)
}

/// The files of a folder that belong to the database, sorted.
fn database_files(dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(|n| is_database_file(n)) {
            files.push((name.to_owned(), path.clone()));
        }
    }
    files.sort();
    Ok(files)
}
