//! Files of a snapshot on its way in that are here already: linked, not sent again.
//!
//! Most of a sender's next snapshot are the files of its last one. Without this a follower that is away for a
//! while gets the whole history once more for each snapshot, and with large blocks the log is purged sooner
//! than that takes, for ever.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::store::snapshot::{Snapshots, Stored};
use crate::types::proto::{SnapshotFile, SnapshotManifest};

/// What of a snapshot lies in others, by the name of the file.
#[derive(Default)]
pub(super) struct Shared(BTreeMap<String, Origin>);

struct Origin {
    /// The snapshot that holds it too.
    id: String,
    /// See [`Stored::is_checked`].
    is_checked: bool,
}

impl Shared {
    /// Whether this process compared the file with its checksum before.
    pub(super) fn is_checked(&self, file: &str) -> bool {
        self.0.get(file).is_some_and(|origin| origin.is_checked)
    }

    /// The id of the snapshot that a file was linked from.
    pub(super) fn origin(&self, file: &str) -> Option<&str> {
        self.0.get(file).map(|origin| origin.id.as_str())
    }
}

impl Snapshots {
    /// Links what a snapshot here holds of one that is to be received: the same size and checksum, whatever
    /// its name. What cannot be linked is sent. Blocking.
    pub(super) fn link_shared(&self, manifest: &SnapshotManifest, to: &Path) -> Shared {
        // Held meanwhile: none of them is deleted.
        let mut here: Vec<Stored> = self.stored().clone();
        here.extend(self.pending().clone());
        let mut by_content: HashMap<(u64, &[u8]), (&Stored, &SnapshotFile)> = HashMap::new();
        for stored in &here {
            for file in stored.manifest.files.iter().filter(|f| 0 < f.size_bytes) {
                let content = (file.size_bytes, &file.checksum[..]);
                if stored.is_checked || !by_content.contains_key(&content) {
                    by_content.insert(content, (stored, file));
                }
            }
        }
        let mut shared = Shared::default();
        for file in &manifest.files {
            let Some((stored, same)) = by_content.get(&(file.size_bytes, &file.checksum[..])) else {
                continue;
            };
            let source = self.file_of(&stored.manifest.id, &same.name);
            if is_linked(&source, &to.join(&file.name)) {
                let origin = Origin { id: stored.manifest.id.clone(), is_checked: stored.is_checked };
                shared.0.insert(file.name.clone(), origin);
            }
        }
        shared
    }
}

/// Whether the target is, or now becomes, another name of the source. A part of it that was sent gives way,
/// the whole does not.
fn is_linked(source: &Path, target: &Path) -> bool {
    let Ok(from) = fs::metadata(source) else { return false };
    match fs::metadata(target) {
        Ok(there) if (there.dev(), there.ino()) == (from.dev(), from.ino()) => return true,
        Ok(there) if there.len() == from.len() => return false,
        Ok(_) if fs::remove_file(target).is_err() => return false,
        Ok(_) | Err(_) => {}
    }
    match fs::hard_link(source, target) {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, path = %source.display(), "a file that is here is sent all the same");
            false
        }
    }
}
