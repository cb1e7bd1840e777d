//! Whether a snapshot is what its manifest says: its files, and the state in them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;

use crate::raft::{convert::stored_membership_to_proto, storage_error};
use crate::store::files;
use crate::store::rocks;
use crate::store::state::db::{Family, StateDb, StateError};
use crate::store::state::install::link_files;
use crate::types::proto::{self, SnapshotFile, SnapshotManifest};

/// Read at once while a checksum is computed.
const READ_BYTES: usize = 256 << 10;

/// What is wrong with a file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) file: String,
    pub(crate) what: String,
}

/// Compares every file that a manifest names with its size and checksum.
pub(crate) fn files(dir: &Path, manifest: &SnapshotManifest) -> Vec<Problem> {
    manifest.files.iter().filter_map(|f| file(dir, f)).collect()
}

/// Compares one file with its size and checksum.
pub(crate) fn file(dir: &Path, file: &SnapshotFile) -> Option<Problem> {
    let what = match checksum(&dir.join(&file.name)) {
        Ok((size, _)) if size != file.size_bytes => format!("has {size} bytes, not {}", file.size_bytes),
        Ok((_, sum)) if sum != file.checksum => "its checksum differs".to_owned(),
        Ok(_) => return None,
        Err(e) => e.to_string(),
    };
    Some(Problem { file: file.name.clone(), what })
}

/// Size and blake3 of a file.
pub(crate) fn checksum(path: &Path) -> io::Result<(u64, Bytes)> {
    let mut file = File::open(path)?;
    let (mut hasher, mut buf, mut size) = (blake3::Hasher::new(), vec![0; READ_BYTES], 0);
    loop {
        let n = file.read(&mut buf)?;
        if n == 0 {
            return Ok((size, Bytes::copy_from_slice(hasher.finalize().as_bytes())));
        }
        hasher.update(&buf[..n]);
        size += n as u64;
    }
}

/// Whether the files hold the state that the manifest names; `Err` says what they hold instead.
/// Reads in place and changes nothing.
pub(crate) fn content(dir: &Path, manifest: &SnapshotManifest, rocks: &rocks::Shared) -> Result<(), String> {
    let db = StateDb::open_read_only(dir, rocks).map_err(|e| e.to_string())?;
    compare(&db, manifest)
}

/// Restores a snapshot into a folder of its own, as an install would, reads every block back and
/// compares what it holds with the manifest. The folder is gone on return. Blocking; takes as long
/// as the history is large.
pub(crate) fn restore(
    dir: &Path,
    scratch: &Path,
    manifest: &SnapshotManifest,
    rocks: &rocks::Shared,
) -> io::Result<Result<(), String>> {
    files::remove_dir(scratch)?;
    let restored = || {
        link_files(dir, scratch)?;
        let looked = || -> Result<Result<(), String>, StateError> {
            let db = StateDb::open(scratch, rocks)?;
            db.load()?;
            read_all(&db)?;
            Ok(compare(&db, manifest))
        };
        match looked() {
            Ok(compared) => Ok(compared),
            // Of a disk that is full, or that does not answer: it says nothing of the snapshot.
            Err(StateError::Rocks(error)) if error.kind() == rocksdb::ErrorKind::IOError => {
                Err(storage_error(error))
            }
            Err(error) => Ok(Err(error.to_string())),
        }
    };
    let result = restored();
    // Links would keep the tables of a snapshot that is deleted meanwhile.
    let removed = files::remove_dir(scratch);
    result.and_then(|compared| removed.map(|()| compared))
}

fn compare(db: &StateDb, manifest: &SnapshotManifest) -> Result<(), String> {
    let (record, membership) = (db.record(), db.membership());
    let record = record.map_err(|e| e.to_string())?.ok_or("it is empty")?;
    let membership = membership.map_err(|e| e.to_string())?;
    let found = Some(proto::LogId { term: record.applied_term, index: record.applied_index });
    let is_same = found == manifest.last_log_id
        && record.state_hash == manifest.state_hash
        && Some(stored_membership_to_proto(&membership)) == manifest.membership;
    if is_same { Ok(()) } else { Err(format!("it holds {found:?}, or another state than its manifest says")) }
}

/// Reads every row of every family: RocksDB compares the checksum of each part it reads.
pub(crate) fn read_all(db: &StateDb) -> Result<u64, StateError> {
    let mut n = 0;
    for family in [Family::Blocks, Family::Rows, Family::Meta] {
        for item in db.from(family, &[]) {
            item?;
            n += 1;
        }
    }
    Ok(n)
}
