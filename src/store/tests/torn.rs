//! A write that a kill or a power loss cut short is dropped, and nothing else is.

use std::fs;
use std::path::{Path, PathBuf};

use crate::raft::Entry;
use crate::store::codec::Edge;
use crate::store::log::open::log_dir;
use crate::store::log::wal;
use crate::store::rocks::{self, Recovery};
use crate::store::tests::support::{
    append, blocks, close, copy_dir, folder, newest_wal, open, refusal, untell, vote,
};
use openraft::storage::RaftLogStorage;

/// Of a record: each block of RocksDB's log holds one.
const PIECE: usize = 32 << 10;
const PAGE: usize = 4096;

/// Entries 5 to 304, which are one record of four pieces: payloads that are larger do not lie in it.
fn record() -> Vec<Entry> {
    blocks(1, 5..=304, 300)
}

/// A folder as a kill leaves it: they are in the log, and nobody was told of them.
struct Killed {
    guard: tempfile::TempDir,
    dir: PathBuf,
    /// What the log held before them, and with them.
    old_end: usize,
    content: Vec<u8>,
    /// Entry 4: nobody was told of what lies behind.
    told: Option<Edge>,
}

fn end_of(content: &[u8]) -> usize {
    content.iter().rposition(|b| *b != 0).unwrap() + 1
}

impl Killed {
    async fn new() -> Self {
        let (guard, origin) = folder();
        let mut opened = open(&origin);
        opened.log.save_vote(&vote(1, true)).await.unwrap();
        append(&mut opened.log, blocks(1, 1..=3, 200)).await;
        append(&mut opened.log, blocks(1, 4..=4, 60_000)).await;
        let told = opened.log.shared.tail().last();
        let old_end = end_of(&fs::read(newest_wal(&origin)).unwrap());
        append(&mut opened.log, record()).await;
        let dir = guard.path().join("killed");
        copy_dir(&origin, &dir);
        close(opened);
        let content = fs::read(newest_wal(&dir)).unwrap();
        untell(&dir, told);
        Self { guard, dir, old_end, content, told }
    }

    fn copy(&self, name: &str) -> PathBuf {
        let dir = self.guard.path().join(name);
        copy_dir(&self.dir, &dir);
        dir
    }

    /// A copy whose record ends with a whole piece.
    fn at_a_piece(&self, name: &str) -> (PathBuf, usize) {
        let cut = (self.old_end / PIECE + 2) * PIECE;
        assert!(cut < end_of(&self.content));
        (self.copy(name), cut)
    }
}

fn tear(dir: &Path, missing: std::ops::Range<usize>) {
    let mut content = fs::read(newest_wal(dir)).unwrap();
    content[missing].fill(0);
    fs::write(newest_wal(dir), content).unwrap();
}

#[track_caller]
fn assert_ends_at(dir: &Path, index: u64, what: &str) {
    let opened = open(dir);
    assert_eq!(opened.log.shared.stats().last.map(|p| p.index), Some(index), "{what}");
    close(opened);
}

#[tokio::test]
async fn a_record_of_which_pieces_are_missing_is_dropped_when_nobody_was_told_of_it() {
    let killed = Killed::new().await;
    // At a piece's end, and around it: RocksDB has another complaint for each.
    let pages = killed.old_end / PAGE + 1..end_of(&killed.content) / PAGE + 1;
    let cuts: Vec<usize> =
        pages.filter(|page| matches!(page % 8, 0 | 1 | 7)).map(|page| page * PAGE).collect();
    assert!(6 < cuts.len(), "{cuts:?}");
    // A kill ends a write between pages; a power loss keeps any of them.
    for (cut, is_kill) in cuts.iter().flat_map(|cut| [(*cut, true), (*cut, false)]) {
        let what = format!("cut at {cut}, a kill: {is_kill}");
        let dir = killed.copy(&what);
        tear(&dir, if is_kill { cut..killed.content.len() } else { killed.old_end..cut });
        let mut opened = open(&dir);
        assert_eq!(opened.log.shared.stats().last.map(|p| p.index), Some(4), "{what}");
        append(&mut opened.log, blocks(1, 5..=6, 200)).await;
        close(opened);
        assert_ends_at(&dir, 6, &what);
    }
}

#[tokio::test]
async fn a_recovery_that_was_cut_short_is_repeated() {
    let killed = Killed::new().await;
    let (mut dir, cut) = killed.at_a_piece("torn");
    tear(&dir, cut..killed.content.len());
    let rocks = rocks::Shared::new().unwrap();
    for round in 0..3 {
        // Killed before the flush: RocksDB has written a batch without changes behind the torn log.
        let db = rocks.open_log(&log_dir(&dir), false, Recovery::PointInTime).unwrap();
        let again = killed.guard.path().join(format!("again-{round}"));
        copy_dir(&dir, &again);
        drop(db);
        let newer = fs::read(newest_wal(&again)).unwrap();
        assert!(newer.iter().any(|b| *b != 0), "there is nothing behind the torn log");
        dir = again;
    }
    assert_ends_at(&dir, 4, "three recoveries were cut short");
}

#[tokio::test]
async fn a_torn_end_that_was_dropped_is_no_damage_before_the_next_one() {
    let killed = Killed::new().await;
    let (dir, cut) = killed.at_a_piece("torn");
    // Without zeros behind it RocksDB drops it without a word, and leaves the file where it is.
    fs::OpenOptions::new().write(true).open(newest_wal(&dir)).unwrap().set_len(cut as u64).unwrap();
    let mut opened = open(&dir);
    assert_eq!(opened.log.shared.stats().last.map(|p| p.index), Some(4));
    append(&mut opened.log, record()).await;
    let again = killed.guard.path().join("again");
    copy_dir(&dir, &again);
    close(opened);
    assert!(1 < wal::wals(&log_dir(&again)).unwrap().len(), "the torn log is gone");
    untell(&again, killed.told);
    let length = fs::read(newest_wal(&again)).unwrap().len();
    tear(&again, 2 * PIECE..length);
    assert_ends_at(&again, 4, "the second one is torn too");

    // What was lost in the first log is no torn end: the second does not go on where that ends.
    let damaged = killed.guard.path().join("damaged");
    copy_dir(&dir, &damaged);
    let first = wal::wals(&log_dir(&damaged)).unwrap().remove(0).1;
    fs::OpenOptions::new().write(true).open(first).unwrap().set_len(killed.old_end as u64 - 10).unwrap();
    assert_eq!(refusal(&damaged).exit_code(), 4);
}
