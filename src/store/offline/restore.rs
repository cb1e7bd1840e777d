//! `snapshot restore`: the folder of a new cluster, out of an export of another (safety rule 10).
//!
//! Every node of the new cluster may be given the same export: what is written follows from the
//! export and the list of members alone, the epoch too, so that folders made from different ones
//! refuse each other.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::raft::{Membership, NodeRecord};
use crate::store::codec::NO_LINK;
use crate::store::identity::Lock;
use crate::store::log::open as log_open;
use crate::store::offline::{OfflineError, Rewrite, UNFINISHED, UNFINISHED_TMP, Unfinished, give_to_owner};
use crate::store::snapshot::export::{Entry, read_tar};
use crate::store::snapshot::receive::check_manifest;
use crate::store::snapshot::{self, FILES, MANIFEST, check};
use crate::store::state::install;
use crate::store::{Identity, OpenError, Who, exit, files, rocks};
use crate::types::proto::{SnapshotFile, SnapshotManifest};
use crate::types::{NodeId, position::LogPos};

/// Largest manifest that is read. By eye: a hundred times what one has.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;
/// The lock of a folder, which stays.
const LOCK: &str = "LOCK";

/// What was made.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Restored {
    pub(crate) identity: Identity,
    /// Of the export.
    pub(crate) manifest: SnapshotManifest,
}

/// Makes the folder. It must be empty, or hold what an attempt that was cut short left. Durable on
/// return. Blocking.
pub(crate) fn restore(
    export: &Path,
    data_dir: &Path,
    who: &Who,
    members: &BTreeMap<NodeId, NodeRecord>,
    list_hash: [u8; 32],
) -> Result<Restored, OfflineError> {
    let mut archive = io::BufReader::new(fs::File::open(export).map_err(OfflineError::io(export))?);
    check_empty(data_dir)?;
    let lock = Lock::take(data_dir, who)?;
    check_empty(data_dir)?;
    Unfinished::Restore.write(data_dir)?;
    remove_leftovers(data_dir).map_err(OfflineError::io(data_dir))?;
    let made = Making { data_dir, who, members, list_hash }.make(&mut archive);
    if made.is_err() {
        // Nothing happened: the folder is as empty as it was. What is left all the same is told by UNFINISHED.
        if remove_leftovers(data_dir).is_ok() {
            let _ = Unfinished::remove(data_dir);
        }
    }
    let restored = made?;
    give_to_owner(data_dir)?;
    Unfinished::remove(data_dir)?;
    drop(lock);
    Ok(restored)
}

/// Whether there is nothing in it but what an earlier attempt left.
fn check_empty(data_dir: &Path) -> Result<(), OfflineError> {
    if !data_dir.exists() || matches!(Unfinished::read(data_dir)?, Some(Unfinished::Restore)) {
        return Ok(());
    }
    for entry in fs::read_dir(data_dir).map_err(OfflineError::io(data_dir))? {
        let name = entry.map_err(OfflineError::io(data_dir))?.file_name();
        // An empty mount point has the one, and it holds nothing of anybody's; a restore that was killed as it began
        // has the other.
        if name != LOCK && name != "lost+found" && name != UNFINISHED_TMP {
            let what = format!(
                "{} is not empty ({} is in it): an export is restored into an empty folder",
                data_dir.display(),
                name.to_string_lossy()
            );
            return Err(OfflineError::Refused(what));
        }
    }
    Ok(())
}

fn remove_leftovers(data_dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(data_dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == LOCK || name == UNFINISHED || name == "lost+found" {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => files::remove_dir(&entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

struct Making<'a> {
    data_dir: &'a Path,
    who: &'a Who,
    members: &'a BTreeMap<NodeId, NodeRecord>,
    list_hash: [u8; 32],
}

impl Making<'_> {
    fn make(&self, archive: &mut impl Read) -> Result<Restored, OfflineError> {
        let io = OfflineError::io(self.data_dir);
        let snapshots = snapshot::folder_of(self.data_dir);
        let tmp = snapshots.join("restore.tmp");
        files::create_dir(&tmp.join(FILES)).map_err(&io)?;
        let export = Unpacked::read(archive, &tmp)?;
        files::sync_dir(&tmp.join(FILES)).map_err(&io)?;
        self.check(&export, &tmp)?;
        let rocks = rocks::Shared::new().map_err(|e| OpenError::rocks(self.data_dir, &e))?;
        check::content(&tmp.join(FILES), &export, &rocks).map_err(OfflineError::Export)?;
        let last = export.last_log_id.unwrap_or_default();
        let base = LogPos::from(last);

        // The snapshot first, since the log will begin behind it.
        let own =
            SnapshotManifest { cluster_id: self.who.cluster_id.clone(), received: false, ..export.clone() };
        let placed = snapshot::place(&snapshots, &tmp, &own).map_err(&io)?;
        let (state, _) = install::build(self.data_dir, &placed.join(FILES), &rocks, Some(base), None)?;
        drop(state);
        log_open::create(self.data_dir, &rocks)?;
        let log = log_open::open(self.data_dir, &rocks)?;
        let voters = self.members.keys().copied().collect();
        let membership = Membership::new(vec![voters], self.members.clone())
            .map_err(|e| OfflineError::Refused(format!("cluster.peers is no valid membership: {e}")))?;
        let rewrite = Rewrite {
            node_id: self.who.node_id,
            term: base.term + 1,
            base,
            base_link: NO_LINK,
            is_purged: true,
            membership: &membership,
            forget: &[],
            note: None,
        };
        let opened = log.db;
        drop(log.slots);
        rewrite.write(self.data_dir, &opened)?;
        drop(opened);
        // No process ran in it: none was killed.
        exit::record(self.data_dir, exit::Cause::First, "the folder was restored from an export")
            .map_err(&io)?;
        files::sync_dir(self.data_dir).map_err(&io)?;
        let identity = Identity { epoch: self.epoch(&export), ..Identity::new(self.who) };
        identity.write(self.data_dir).map_err(&io)?;
        Ok(Restored { identity, manifest: export })
    }

    fn check(&self, export: &SnapshotManifest, tmp: &Path) -> Result<(), OfflineError> {
        if export.cluster_id == self.who.cluster_id {
            return Err(OfflineError::Refused(format!(
                "the export is of cluster {:?}, which cluster.id names too: a restored cluster is a new one and needs an id of its own",
                export.cluster_id
            )));
        }
        match check::files(&tmp.join(FILES), export).into_iter().next() {
            Some(problem) => Err(OfflineError::Export(format!("{}: {}", problem.file, problem.what))),
            None => Ok(()),
        }
    }

    /// Of the export and the members, so that those that were given the same belong together.
    fn epoch(&self, export: &SnapshotManifest) -> u64 {
        let last = export.last_log_id.unwrap_or_default();
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"blockraft restore");
        hasher.update(&export.state_hash);
        hasher.update(&last.term.to_be_bytes());
        hasher.update(&last.index.to_be_bytes());
        hasher.update(&self.list_hash);
        let hash = hasher.finalize();
        u64::from_be_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes")).max(1)
    }
}

/// Takes the archive apart into a folder.
struct Unpacked<'a> {
    tmp: &'a Path,
    /// Known once the first file was read.
    manifest: Option<SnapshotManifest>,
}

impl<'a> Unpacked<'a> {
    fn read<R: Read>(archive: &mut R, tmp: &'a Path) -> Result<SnapshotManifest, OfflineError> {
        let mut unpacked = Unpacked { tmp, manifest: None };
        read_tar(archive, |entry| unpacked.take(entry)).map_err(|e| OfflineError::Export(e.to_string()))?;
        unpacked.manifest.ok_or_else(|| OfflineError::Export("it holds no manifest".into()))
    }

    fn take<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> io::Result<()> {
        let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let path = PathBuf::from(&entry.name);
        let file_name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        let Some(manifest) = &self.manifest else {
            if file_name != MANIFEST {
                return Err(bad(format!("it begins with {}, not with a manifest", entry.name)));
            }
            if MANIFEST_BYTES_MAX < entry.size_bytes {
                return Err(bad(format!("its manifest has {} bytes", entry.size_bytes)));
            }
            let mut content = Vec::new();
            entry.content.read_to_end(&mut content)?;
            let manifest = snapshot::decode_manifest(&content).map_err(&bad)?;
            // Of whatever cluster: the caller looks at that.
            check_manifest(&manifest, &manifest.cluster_id).map_err(|e| bad(e.to_string()))?;
            self.manifest = Some(manifest);
            return Ok(());
        };
        let is_same = |f: &&SnapshotFile| entry.name == format!("{}/{FILES}/{}", manifest.id, f.name);
        let Some(file) = manifest.files.iter().find(is_same) else {
            return Err(bad(format!("its manifest names no file {}", entry.name)));
        };
        let target = self.tmp.join(FILES).join(&file.name);
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target)?;
        io::copy(&mut entry.content, &mut out)?;
        out.sync_all()
    }
}
