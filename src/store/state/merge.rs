//! Merging the small files of blocks.
//!
//! Every snapshot flushes what came since the last one into files of its own. Keys of blocks only rise, so
//! RocksDB's compaction moves these files down as they are and never merges them: a long history would lie in
//! as many files as there were snapshots, and each checkpoint links them all. Off the apply path.

use std::sync::Arc;

use rocksdb::{BottommostLevelCompaction, CompactOptions, LiveFile};

use crate::store::state::db::{Family, StateDb};

/// A smaller file is worth merging. By eye: a file of a snapshot every 500 blocks is as large at 8 KiB a block, and at
/// larger ones history is bounded by bytes.
const SMALL_BYTES: usize = 4 << 20;
/// So many neighbours are merged, or fewer that are a whole file together.
const FILES_MAX: usize = 64;
/// What RocksDB makes of them: its `target_file_size_base`.
const MERGED_BYTES: usize = 64 << 20;

/// Merges what there is, on a blocking thread, one merge of a state at a time. A store that is closed cancels it.
pub(crate) fn start(db: Arc<StateDb>) {
    tokio::task::spawn_blocking(move || {
        let Ok(_merging) = db.merging.try_lock() else { return };
        // A file that is moved or dropped meanwhile is RocksDB's to sort out; the list is all that can fail.
        if let Err(error) = merge_small_files(&db) {
            tracing::debug!(%error, "small files stay for now");
        }
    });
}

/// One merge in each family that has enough small files. Blocking.
fn merge_small_files(db: &StateDb) -> Result<(), rocksdb::Error> {
    let files = db.db().live_files()?;
    for family in [Family::Blocks, Family::Rows] {
        let of_family = files.iter().filter(|f| f.column_family_name == family.name());
        if let Some((first, last)) = first_run(of_family) {
            let mut options = CompactOptions::default();
            options.set_exclusive_manual_compaction(false);
            // They lie in the last level already.
            options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
            // A range that ends before what is in memory flushes nothing.
            db.db().compact_range_cf_opt(db.family(family), Some(first), Some(last), &options);
        }
    }
    Ok(())
}

/// First and last key of the lowest small neighbours that are worth it. The first level is left to RocksDB,
/// which moves its files soon.
fn first_run<'a>(files: impl Iterator<Item = &'a LiveFile>) -> Option<(&'a [u8], &'a [u8])> {
    let mut sorted: Vec<_> = files
        .filter(|f| 0 < f.level)
        .filter_map(|f| Some((f.start_key.as_deref()?, f.end_key.as_deref()?, f.size)))
        .collect();
    sorted.sort_unstable();
    let (mut first, mut n, mut bytes) = (None, 0, 0);
    for (start, end, size) in sorted {
        if SMALL_BYTES <= size {
            (first, n, bytes) = (None, 0, 0);
            continue;
        }
        let from = *first.get_or_insert(start);
        n += 1;
        bytes += size;
        if FILES_MAX <= n || MERGED_BYTES <= bytes {
            return Some((from, end));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(key: u8, size: usize, level: i32) -> LiveFile {
        LiveFile {
            column_family_name: "blocks".into(),
            name: String::new(),
            size,
            level,
            start_key: Some(vec![key, 0]),
            end_key: Some(vec![key, 9]),
            num_entries: 1,
            num_deletions: 0,
        }
    }

    fn run(files: &[LiveFile]) -> Option<(u8, u8)> {
        first_run(files.iter()).map(|(first, last)| (first[0], last[0]))
    }

    #[test]
    fn many_neighbours_are_merged_and_few_are_not() {
        let mut files: Vec<_> = (0..63).rev().map(|key| file(key, 1 << 10, 6)).collect();
        assert_eq!(run(&files), None);
        files.push(file(90, 1 << 10, 0));
        assert_eq!(run(&files), None, "the first level is not looked at");
        files.push(file(80, 1 << 10, 6));
        assert_eq!(run(&files), Some((0, 80)));
    }

    #[test]
    fn a_whole_files_worth_is_enough_and_no_more_is_taken() {
        let files: Vec<_> = (0..40).map(|key| file(key, SMALL_BYTES - 1, 6)).collect();
        assert_eq!(run(&files[..16]), None);
        assert_eq!(run(&files), Some((0, 16)));
    }

    #[test]
    fn a_large_file_between_them_ends_a_run() {
        let mut files: Vec<_> = (0..100).map(|key| file(key, 1 << 10, 6)).collect();
        files[50] = file(50, SMALL_BYTES, 6);
        assert_eq!(run(&files), None);
        files.extend((100..115).map(|key| file(key, 1 << 10, 6)));
        assert_eq!(run(&files), Some((51, 114)));
    }
}
