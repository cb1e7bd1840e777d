//! Files of the data folder that are not RocksDB's: written whole and durably, or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{Advice, Mode, OFlags, fadvise};

/// What a direct write begins at and is a multiple of, in memory and in the file, on every usual disk.
pub(crate) const DIRECT_BYTES: usize = 4_096;

/// Makes a folder, and those above it, that only its owner may enter.
pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// As [`create_dir`], the names durable on return.
pub(crate) fn create_dir_synced(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> =
        path.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    create_dir(path)?;
    missing.into_iter().rev().try_for_each(sync_name)
}

/// Makes the name of a folder durable in the one above it, where that may be read and can be synced: what a disk is mounted
/// under need not.
pub(crate) fn sync_name(path: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    match sync_dir(parent(path)) {
        Err(e) if matches!(e.kind(), InvalidInput | PermissionDenied | ReadOnlyFilesystem | Unsupported) => {
            Ok(())
        }
        synced => synced,
    }
}

/// Makes the entries of a folder durable: creations, renames and removals.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes durable what a process that is gone may have written and not synced, and has what is read next come from the disk.
/// After a sync that failed the page cache holds what the disk does not, and the next sync has nothing to say of it.
pub(crate) fn settle(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    // A hint: not every file system takes it.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    Ok(())
}

/// Makes the content of a file durable.
pub(crate) fn sync_file(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Replaces a file as a whole. Durable on return; after a crash either the old or the new content
/// is there.
pub(crate) fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    let tmp = path.with_extension("tmp");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
        file.write_all(content)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&tmp, path)
    };
    if let Err(error) = write() {
        // A disk that is full has it half: nobody looks at it, and it would be in the way.
        let _ = fs::remove_file(&tmp);
        return Err(error);
    }
    sync_dir(parent(path))
}

/// Bytes of the files in a folder and those below it. One that goes while they are counted counts nothing: RocksDB removes
/// files at any time.
pub(crate) fn folder_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let counted = match entry.metadata() {
            Ok(found) if found.is_dir() => folder_bytes(&entry.path()),
            found => found.map(|found| found.len()),
        };
        bytes += match counted {
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            counted => counted?,
        };
    }
    Ok(bytes)
}

/// The content of a file, `None` when there is none.
pub(crate) fn read_optional(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Removes a folder with everything in it; one that is not there is fine.
pub(crate) fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Whether files of a folder can be written past the page cache: not on every file system. Tried with a file
/// that has no name, so that nothing changes in the folder.
pub(crate) fn takes_direct_writes(dir: &Path) -> bool {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) else { return false };
    File::from(file).write_all_at(Aligned::new(DIRECT_BYTES).as_mut(), 0).is_ok()
}

/// Memory that direct reads and writes take.
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    begin: usize,
}

impl Aligned {
    /// A multiple of [`DIRECT_BYTES`].
    pub(crate) fn new(length: usize) -> Self {
        let bytes = vec![0; length + DIRECT_BYTES];
        let begin = bytes.as_ptr().align_offset(DIRECT_BYTES);
        Self { bytes, begin }
    }

    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        let end = self.begin + self.bytes.len() - DIRECT_BYTES;
        &mut self.bytes[self.begin..end]
    }

    /// Some of its bytes, without a copy.
    pub(crate) fn into_bytes(self, range: Range<usize>) -> Bytes {
        Bytes::from(self.bytes).slice(self.begin + range.start..self.begin + range.end)
    }
}

/// Whether an error says that the disk is full.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_settled_is_read_from_the_disk() {
        use rustix::io::{ReadWriteFlags, preadv2};

        /// Of a file system without a disk below.
        const TMPFS: i64 = 0x0102_1994;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, [7; 8192]).unwrap();
        let is_cached = || {
            let mut read = [0; 4096];
            let file = File::open(&path).unwrap();
            preadv2(&file, &mut [io::IoSliceMut::new(&mut read)], 0, ReadWriteFlags::NOWAIT)
        };
        if rustix::fs::statfs(&path).unwrap().f_type as i64 == TMPFS || is_cached() != Ok(4096) {
            return;
        }
        settle(&path).unwrap();
        assert_eq!(is_cached(), Err(rustix::io::Errno::AGAIN));
        assert_eq!(fs::read(&path).unwrap(), [7; 8192]);
    }

    #[test]
    fn direct_writes_are_tried_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let before = fs::metadata(dir.path()).unwrap().modified().unwrap();
        let is_taken = takes_direct_writes(dir.path());
        assert_eq!(is_taken, takes_direct_writes(dir.path()));
        assert_eq!(fs::metadata(dir.path()).unwrap().modified().unwrap(), before);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(!takes_direct_writes(Path::new("/proc")), "it has no files of ours");
        assert!(!takes_direct_writes(&dir.path().join("missing")));
    }
}
