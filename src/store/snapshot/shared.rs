//! Tables of a snapshot on its way in that are here already: linked, not sent again.
//!
//! Most of a sender's next snapshot are the tables of its last one. Without this a follower that is away for a
//! while gets the whole history once more for each snapshot, and with large blocks the log is purged sooner
//! than that takes, for ever.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::store::snapshot::check::{self, Problem};
use crate::store::snapshot::{FileKey, Snapshots};
use crate::types::proto::{SnapshotFile, SnapshotManifest};

/// A table that this process compared with its checksum is not read again for so long, unless it was written
/// to. By eye: several installs in a row of a history of 10 GiB, each of which would read all of it.
const CHECKED_FOR: Duration = Duration::from_secs(600);

/// What is known of tables that are linked.
#[derive(Default)]
pub(super) struct Links {
    /// When each table of the snapshot that came last was compared with its checksum.
    checked: HashMap<FileKey, Instant>,
    /// Size and checksum of those that turned out damaged here: they are sent.
    unfit: HashSet<(u64, Bytes)>,
}

/// The ids of the snapshots that tables of one on its way in are linked from, by name.
pub(super) type Origins = BTreeMap<String, String>;

fn is_table(file: &SnapshotFile) -> bool {
    file.name.ends_with(".sst")
}

impl Snapshots {
    /// Links the tables that a snapshot here has of one that is to be received: of the same size and checksum,
    /// whatever their names. What cannot be linked is sent. Blocking.
    pub(super) fn link_shared(&self, manifest: &SnapshotManifest, to: &Path) -> Origins {
        // Held meanwhile: none of them is deleted.
        let mut here: Vec<_> = self.stored().iter().map(|s| self.data(s)).collect();
        here.extend(self.pending().as_ref().map(|s| self.data(s)));
        let unfit = self.links().unfit.clone();
        let mut by_content = HashMap::new();
        for data in &here {
            for file in data.manifest.files.iter().filter(|f| is_table(f)) {
                by_content.insert((file.size_bytes, &file.checksum), (data, &file.name));
            }
        }
        let mut origins = Origins::new();
        for file in manifest.files.iter().filter(|f| is_table(f)) {
            let Some((data, name)) = by_content.get(&(file.size_bytes, &file.checksum)) else { continue };
            let is_fit = !unfit.contains(&(file.size_bytes, file.checksum.clone()));
            if is_fit && is_linked(&data.dir.join(name), &to.join(&file.name), file.size_bytes) {
                origins.insert(file.name.clone(), data.manifest.id.clone());
            }
        }
        origins
    }

    /// Those of the linked tables that are not what the manifest says; `is_trusting` leaves out those that were read
    /// lately. Blocking.
    pub(super) fn damaged_links(
        &self,
        dir: &Path,
        manifest: &SnapshotManifest,
        origins: &Origins,
        is_trusting: bool,
    ) -> Vec<Problem> {
        let checked = if is_trusting { self.links().checked.clone() } else { HashMap::new() };
        let is_known = |file: &SnapshotFile| {
            key_of(dir, file).and_then(|key| checked.get(&key)).is_some_and(|at| at.elapsed() < CHECKED_FOR)
        };
        let linked = manifest.files.iter().filter(|f| origins.contains_key(&f.name));
        linked.filter(|f| !is_known(f)).filter_map(|f| check::file(dir, f)).collect()
    }

    /// All tables of a snapshot were compared with their checksums, or are trusted still.
    pub(super) fn tables_checked(&self, dir: &Path, manifest: &SnapshotManifest) {
        let mut links = self.links();
        let before = std::mem::take(&mut links.checked);
        let keys = manifest.files.iter().filter(|f| is_table(f)).filter_map(|f| key_of(dir, f));
        links.checked = keys
            .map(|key| {
                let trusted = before.get(&key).filter(|at| at.elapsed() < CHECKED_FOR);
                let at = trusted.copied().unwrap_or_else(Instant::now);
                (key, at)
            })
            .collect();
    }

    /// A damaged table is not linked again, and leaves room for the one that is sent.
    pub(super) fn unlink(&self, dir: &Path, file: &SnapshotFile) {
        self.links().unfit.insert((file.size_bytes, file.checksum.clone()));
        if let Err(error) = fs::remove_file(dir.join(&file.name)) {
            tracing::warn!(%error, file = file.name, "a damaged table stays where a snapshot comes in");
        }
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.inner.links.lock().unwrap_or_else(|p| p.into_inner())
    }
}

fn key_of(dir: &Path, file: &SnapshotFile) -> Option<FileKey> {
    Some(FileKey::of(&file.name, &fs::metadata(dir.join(&file.name)).ok()?))
}

/// Whether the target is, or now becomes, another name of the source. A part of it that was sent gives way,
/// the whole does not.
fn is_linked(source: &Path, target: &Path, size: u64) -> bool {
    // Nothing is ever written behind the end of what is linked.
    let Some(from) = fs::metadata(source).ok().filter(|m| m.len() == size) else { return false };
    match fs::metadata(target) {
        Ok(there) if (there.dev(), there.ino()) == (from.dev(), from.ino()) => return true,
        Ok(there) if there.len() == size => return false,
        Ok(_) if fs::remove_file(target).is_err() => return false,
        Ok(_) | Err(_) => {}
    }
    match fs::hard_link(source, target) {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, path = %source.display(), "a table that is here is sent all the same");
            false
        }
    }
}
