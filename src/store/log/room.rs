//! Room for the write-ahead log within its file's size.
//!
//! RocksDB reserves blocks ahead and keeps the size as it is, so that each synced write makes the file
//! longer and `fdatasync` has to write the inode behind the data: two writes, one after the other.
//! A file that is already as long as its reservation takes one. The zeros behind the last record are
//! what a log reader takes for its end; a proper close cuts them off.
//!
//! Looked after by the thread that writes the log: no other makes a new file of it.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};

use crate::store::disk::free_bytes;
use crate::store::log::wal::wals;
use crate::store::rocks::WAL_RESERVED_BYTES;

/// How often the newest file is looked for. By eye: a few syncs at full speed pay twice.
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(crate) struct Room {
    dir: PathBuf,
    /// So much stays free beside it: near its end a disk keeps what is left for what must be written.
    keep_free: u64,
    looked: Option<Instant>,
    newest: Option<Newest>,
}

struct Newest {
    number: u64,
    file: File,
    /// As this process made it; a longer file was outgrown.
    length: Option<u64>,
}

impl Room {
    /// `min_free`: below it the node takes nothing any more.
    pub(crate) fn new(dir: PathBuf, min_free: u64) -> Self {
        Self { dir, keep_free: min_free.saturating_add(WAL_RESERVED_BYTES), looked: None, newest: None }
    }

    /// Makes the newest file as long as what is reserved for it. What fails costs speed alone.
    pub(crate) fn look(&mut self) {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        let Some((number, path)) = wals(&self.dir).ok().and_then(|mut wals| wals.pop()) else { return };
        if self.newest.as_ref().is_none_or(|n| n.number != number) {
            // Not truncated: RocksDB writes it.
            self.newest = OpenOptions::new().write(true).open(path).ok().map(|file| Newest {
                number,
                file,
                length: None,
            });
        }
        if let Some(newest) = &mut self.newest {
            let has_space = || {
                free_bytes(&self.dir)
                    .is_ok_and(|free| self.keep_free.saturating_add(WAL_RESERVED_BYTES) <= free)
            };
            newest.extend(has_space);
        }
    }
}

impl Newest {
    fn extend(&mut self, has_space: impl Fn() -> bool) {
        let Ok(length) = self.file.metadata().map(|m| m.len()) else { return };
        if self.length == Some(length) {
            return;
        }
        // Never `set_len`, which would cut what is written meanwhile.
        let wanted = length + WAL_RESERVED_BYTES;
        let is_made = has_space() && fallocate(&self.file, FallocateFlags::empty(), 0, wanted).is_ok();
        // Not made: a disk that is nearly full, or a file system that cannot.
        self.length = Some(if is_made { wanted } else { length });
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_newest_file_gets_room_once_and_again_when_it_is_outgrown() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("000004.log"), b"older").unwrap();
        let path = folder.path().join("000010.log");
        fs::write(&path, b"record").unwrap();
        let mut room = Room::new(folder.path().to_owned(), 0);
        let length = || fs::metadata(&path).unwrap().len();

        room.look();
        assert_eq!(length(), 6 + WAL_RESERVED_BYTES);
        assert_eq!(fs::metadata(folder.path().join("000004.log")).unwrap().len(), 5);
        assert!(fs::read(&path).unwrap().starts_with(b"record\0"));

        let grown = length() + 1;
        OpenOptions::new().write(true).open(&path).unwrap().set_len(grown).unwrap();
        room.looked = None;
        room.look();
        assert_eq!(length(), grown + WAL_RESERVED_BYTES);
    }

    #[test]
    fn a_disk_that_is_nearly_full_is_not_filled_with_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("000010.log");
        fs::write(&path, b"record").unwrap();
        Room::new(folder.path().to_owned(), u64::MAX).look();
        assert_eq!(fs::metadata(&path).unwrap().len(), 6);
    }
}
