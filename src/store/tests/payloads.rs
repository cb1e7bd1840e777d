//! Payloads that lie in files of their own: where, how long, and what is said when one is not whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use openraft::storage::{RaftLogReader, RaftLogStorage};

use crate::raft::log_id_of;
use crate::store::codec;
use crate::store::log::open::log_dir;
use crate::store::log::payloads::{PAYLOAD_BYTES_MIN, WRITE_BYTES_MIN, payload_dir};
use crate::store::rocks::{Recovery, Shared};
use crate::store::tests::support::{
    append, apply, blank, block, blocks, build_snapshot, close, folder, open, pos, proposed, vote,
};

/// Names and lengths of the files.
fn files(dir: &Path) -> BTreeMap<String, u64> {
    let Ok(entries) = fs::read_dir(payload_dir(dir)) else { return BTreeMap::new() };
    let entries = entries.map(|e| e.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().len())).collect()
}

#[tokio::test]
async fn they_are_read_back_over_restarts_and_small_writes_have_no_file() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    // Alone, neither a small payload nor one below what is written at once has a place.
    let mut entries = blocks(1, 1..=3, 100);
    entries.push(proposed(1, 4, block(4, WRITE_BYTES_MIN - 1_000)));
    for entry in &entries {
        append(&mut opened.log, vec![entry.clone()]).await;
    }
    assert_eq!(files(&dir), BTreeMap::new());
    // Together they have, each of another length, and those that are small lie beside their frames as before.
    for start in [5, 105] {
        let batch: Vec<_> = (start..start + 100)
            .map(|i| {
                proposed(1, i, block(i, if i % 3 == 0 { 50 } else { PAYLOAD_BYTES_MIN + 37 * i as usize }))
            })
            .collect();
        append(&mut opened.log, batch.clone()).await;
        entries.extend(batch);
    }
    let large = proposed(1, 205, block(205, 20 << 20));
    append(&mut opened.log, vec![large.clone()]).await;
    entries.push(large);
    for _ in 0..2 {
        assert_eq!(files(&dir).len(), 1, "{:?}", files(&dir));
        close(opened);
        opened = open(&dir);
        let read = opened.log.try_get_log_entries(0..).await.unwrap();
        assert_eq!(format!("{read:?}"), format!("{entries:?}"));
        let next = entries.len() as u64 + 1;
        // Behind what is there, never over it.
        let more = blocks(1, next..=next + 20, 10_000);
        append(&mut opened.log, more.clone()).await;
        entries.extend(more);
    }
    let tables: u64 = fs::read_dir(log_dir(&dir))
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.path().extension().is_some_and(|e| e == "sst" || e == "blob"))
        .map(|e| e.metadata().unwrap().len())
        .sum();
    assert!(tables < 200_000, "{tables} bytes of payload went into tables");
    close(opened);
}

#[tokio::test]
async fn a_file_is_filled_again_once_all_its_entries_are_purged() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    let batch = |from: u64| blocks(1, from..=from + 3, 4 << 20);
    let mut next = 1;
    // Eight rounds of 80 MiB, of which no more than the last 40 are kept.
    for round in 0..8 {
        for _ in 0..5 {
            let entries = batch(next);
            append(&mut opened.log, entries.clone()).await;
            apply(&mut opened.machine, entries).await;
            next += 4;
        }
        build_snapshot(&mut opened).await;
        opened.log.purge(log_id_of(pos(1, next - 11))).await.unwrap();
        opened.log.shared.await_written().await;
        let files = files(&dir);
        assert!(files.len() <= 3, "round {round}: {files:?}");
        assert!(files.values().all(|length| *length <= 80 << 20), "{files:?}");
    }
    let kept: Vec<_> = (next - 10..next).map(|i| proposed(1, i, block(i, 4 << 20))).collect();
    for _ in 0..2 {
        let read = opened.log.try_get_log_entries(0..).await.unwrap();
        assert_eq!(read.len(), kept.len());
        for (read, kept) in read.iter().zip(&kept) {
            assert_eq!(read.log_id, kept.log_id);
            assert!(codec::encode(read, codec::NO_LINK) == codec::encode(kept, codec::NO_LINK));
        }
        close(opened);
        opened = open(&dir);
    }
    close(opened);
}

#[tokio::test]
async fn what_is_appended_where_the_log_was_cut_is_what_is_read() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    append(&mut opened.log, blocks(1, 1..=10, 100 << 10)).await;
    opened.log.truncate_after(Some(log_id_of(pos(1, 5)))).await.unwrap();
    opened.log.save_vote(&vote(2, true)).await.unwrap();
    let again: Vec<_> = (6..=8).map(|i| proposed(2, i, block(90 + i, 120 << 10))).collect();
    append(&mut opened.log, again.clone()).await;
    let expected = [blocks(1, 1..=5, 100 << 10), again].concat();
    for _ in 0..2 {
        close(opened);
        opened = open(&dir);
        let read = opened.log.try_get_log_entries(0..).await.unwrap();
        assert_eq!(format!("{read:?}"), format!("{expected:?}"));
    }
    close(opened);
}

#[tokio::test]
async fn a_log_of_an_earlier_format_is_read_and_becomes_one_of_this() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    append(&mut opened.log, vec![blank(1, 1)]).await;
    let edge = opened.log.shared.tail().last().unwrap();
    close(opened);
    assert_eq!(files(&dir), BTreeMap::new());
    // As earlier versions wrote it: the payload is the value.
    let large = proposed(1, 2, block(2, 300 << 10));
    let (frame, payload) = codec::encode(&large, edge.link);
    let db = Shared::new().unwrap().open_log(&log_dir(&dir), false, Recovery::ShortTail).unwrap();
    db.put(frame.to_key(), payload).unwrap();
    drop(db);
    let identity = dir.join("IDENTITY");
    let text = fs::read_to_string(&identity).unwrap();
    assert!(text.contains("format_version = 2\n"), "{text}");
    let body = text.replace("format_version = 2", "format_version = 1");
    let body = &body[..body.find("checksum").unwrap()];
    fs::write(&identity, format!("{body}checksum = {:08x}\n", crc32fast::hash(body.as_bytes()))).unwrap();

    let mut opened = open(&dir);
    assert_eq!(fs::read_to_string(&identity).unwrap(), text);
    append(&mut opened.log, vec![proposed(1, 3, block(3, 300 << 10))]).await;
    close(opened);
    let mut opened = open(&dir);
    let read = opened.log.try_get_log_entries(2..).await.unwrap();
    assert_eq!(format!("{:?}", read[0]), format!("{large:?}"));
    assert_eq!(read.len(), 2);
    close(opened);
}

#[tokio::test]
async fn what_is_purged_while_it_is_read_is_no_damage() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    append(&mut opened.log, blocks(1, 1..=10, 4 << 20)).await;
    // As if another payload lay there by now.
    let file = payload_dir(&dir).join("000001.payloads");
    let mut content = fs::read(&file).unwrap();
    content[1_000] ^= 1;
    fs::write(&file, content).unwrap();
    let mut log = opened.log.clone();
    let mut reading = Box::pin(log.try_get_log_entries(1..6));
    assert!(futures::poll!(&mut reading).is_pending(), "the first of them left memory");
    opened.log.purge(log_id_of(pos(1, 3))).await.unwrap();
    let read = reading.await.unwrap();
    assert_eq!(read.iter().map(|e| e.log_id.index).collect::<Vec<_>>(), [4, 5]);
    assert!(!opened.health.is_fatal(), "{:?}", opened.health.get().fatal);
    close(opened);
}
