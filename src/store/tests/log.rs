//! The log over restarts, and what may not happen before what.

use std::time::Duration;

use openraft::storage::{RaftLogReader, RaftLogStorage};

use crate::raft::log_id_of;
use crate::store::health::Fatal;
use crate::store::log::open::log_dir;
use crate::store::log::payloads::Payloads;
use crate::store::log::queue::GROUP_BYTES;
use crate::store::log::read;
use crate::store::tests::support::{
    append, apply, blank, block, blocks, build_snapshot, close, folder, membership, open, pos, proposed,
    submit, vote,
};

#[tokio::test]
async fn a_restart_keeps_everything() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    let mut log = opened.log.clone();
    log.save_vote(&vote(3, true)).await.unwrap();
    let entries = vec![blank(3, 0), membership(3, 1, &[1, 2, 3]), proposed(3, 2, block(5, 100)), blank(3, 3)];
    append(&mut log, entries.clone()).await;
    // A log that begins behind index 0 wants a snapshot that reaches it.
    apply(&mut opened.machine, entries[..1].to_vec()).await;
    build_snapshot(&mut opened).await;
    log.purge(log_id_of(pos(3, 0))).await.unwrap();
    log.save_committed(Some(log_id_of(pos(3, 2)))).await.unwrap();
    close(opened);

    let mut opened = open(&dir);
    assert!(opened.had_data);
    let log = &mut opened.log;
    assert_eq!(log.read_vote().await.unwrap(), Some(vote(3, true)));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id_of(pos(3, 2))));
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id_of(pos(3, 0))));
    assert_eq!(state.last_log_id, Some(log_id_of(pos(3, 3))));
    let read = log.try_get_log_entries(0..).await.unwrap();
    assert_eq!(format!("{read:?}"), format!("{:?}", &entries[1..]));
    let stats = log.shared.stats();
    assert_eq!((stats.entries, stats.synced), (3, 3));
    close(opened);
}

#[tokio::test]
async fn entries_are_readable_before_they_are_durable_and_reported_only_after() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    let shared = opened.log.shared.clone();
    shared.queue.hold(true);
    let mut durable = Box::pin(submit(&mut opened.log, blocks(1, 1..=3, 10)).await);
    assert_eq!(opened.log.try_get_log_entries(1..4).await.unwrap().len(), 3);
    assert!(futures::poll!(&mut durable).is_pending());
    assert_eq!(opened.log.shared.stats().synced, 0);
    shared.queue.hold(false);
    durable.await.unwrap().unwrap();
    assert_eq!(opened.log.shared.stats().synced, 3);
    close(opened);
}

#[tokio::test]
async fn a_vote_is_durable_before_any_entry_behind_it() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    let shared = opened.log.shared.clone();
    shared.queue.hold(true);
    // Big enough that the vote and the entries cannot share one group with those before.
    let big = (GROUP_BYTES / 2) as usize;
    let first = submit(&mut opened.log, blocks(1, 1..=3, big)).await;
    let mut voter = opened.log.clone();
    let vote_saved = tokio::spawn(async move { voter.save_vote(&vote(5, true)).await });
    while opened.log.shared.tail().queued_vote.is_none() {
        tokio::task::yield_now().await;
    }
    let last = submit(&mut opened.log, vec![blank(5, 4)]).await;
    shared.queue.hold(false);
    last.await.unwrap().unwrap();
    // The entry of term 5 is durable: so must its vote be, and all before them.
    let db = shared.db().unwrap();
    let stored = db.get(crate::store::log::writer::KEY_VOTE).unwrap();
    assert!(stored.is_some(), "the entry became durable before its vote");
    drop(db);
    first.await.unwrap().unwrap();
    vote_saved.await.unwrap().unwrap();
    close(opened);
}

#[tokio::test]
async fn an_entry_of_a_term_without_its_vote_is_refused() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    opened.log.save_vote(&vote(2, true)).await.unwrap();
    let mut log = opened.log.clone();
    let appended = tokio::spawn(async move { submit(&mut log, vec![blank(3, 0)]).await.await.is_ok() });
    assert!(appended.await.is_err(), "an entry of term 3 went in under the vote of term 2");
    close(opened);
}

#[tokio::test]
async fn what_was_committed_is_never_cut() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    append(&mut opened.log, blocks(1, 1..=5, 10)).await;
    opened.log.save_committed(Some(log_id_of(pos(1, 4)))).await.unwrap();
    opened.log.truncate_after(Some(log_id_of(pos(1, 4)))).await.unwrap();
    assert!(opened.log.truncate_after(Some(log_id_of(pos(1, 3)))).await.is_err());
    let fatal = opened.health.get().fatal.expect("the node cannot go on");
    assert!(matches!(fatal, Fatal::TruncateBelowCommitted { after: Some(3), committed: 4 }), "{fatal}");
    assert_eq!(fatal.exit_code(), 4);
    close(opened);
}

#[tokio::test]
async fn a_peers_entry_with_a_wrong_crc_is_not_stored() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    let mut entry = proposed(1, 1, block(1, 10));
    let openraft::EntryPayload::Normal(command) = &mut entry.payload else { panic!("a command") };
    command.crc ^= 1;
    let callback = openraft::storage::IOFlushed::noop();
    assert!(opened.log.append(vec![entry], callback).await.is_err());
    assert_eq!(opened.log.shared.stats().last, None);
    assert!(opened.health.is_fatal());
    close(opened);
}

#[tokio::test]
async fn a_read_takes_about_a_mebibyte_and_at_least_one_entry() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    let log = &mut opened.log;
    // More than the tail keeps, so that the first are read from the database.
    let entries: Vec<_> = (1..=12).map(|i| proposed(1, i, block(i, 2 << 20))).collect();
    append(log, entries).await;
    assert_eq!(log.limited_get_log_entries(1, 13).await.unwrap().len(), 1);
    assert_eq!(log.limited_get_log_entries(12, 13).await.unwrap().len(), 1);
    let all = log.try_get_log_entries(1..13).await.unwrap();
    assert_eq!(all.iter().map(|e| e.log_id.index).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    use futures::TryStreamExt;
    let streamed: Vec<_> = log.entries_stream(3..100).await.try_collect().await.unwrap();
    assert_eq!(streamed.len(), 10);
    close(opened);
}

#[tokio::test]
async fn a_purge_beyond_the_end_begins_a_new_chain() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    append(&mut opened.log, blocks(1, 1..=5, 10)).await;
    opened.log.purge(log_id_of(pos(2, 20))).await.unwrap();
    append(&mut opened.log, vec![blank(2, 21), blank(2, 22)]).await;
    // Nothing but a snapshot may fill the gap: without one the folder would be refused.
    let stats = opened.log.shared.stats();
    assert_eq!((stats.purged, stats.last, stats.entries), (Some(pos(2, 20)), Some(pos(2, 22)), 2));
    close(opened);
}

#[tokio::test]
async fn committed_never_names_an_entry_the_log_lacks() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    append(&mut opened.log, blocks(1, 1..=5, 10)).await;
    opened.log.save_committed(Some(log_id_of(pos(1, 9)))).await.unwrap();
    assert_eq!(opened.log.read_committed().await.unwrap(), Some(log_id_of(pos(1, 5))));
    close(opened);
    let mut opened = open(&dir);
    assert_eq!(opened.log.read_committed().await.unwrap(), Some(log_id_of(pos(1, 5))));
    close(opened);
}

#[tokio::test]
async fn a_merge_drops_what_was_purged() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    let tables = || {
        let files = std::fs::read_dir(log_dir(&dir)).unwrap().map(|e| e.unwrap());
        files.filter(|f| f.path().extension().is_some_and(|e| e == "sst")).collect::<Vec<_>>()
    };
    let db = opened.log.shared.db().unwrap();
    // So many tables are merged at once.
    for start in (1..=64).step_by(2) {
        append(&mut opened.log, blocks(1, start..=start + 1, 20 << 10)).await;
        if start == 63 {
            opened.log.purge(log_id_of(pos(1, 40))).await.unwrap();
            opened.log.shared.await_written().await;
        }
        db.flush().unwrap();
    }
    let kept = 24 * (20 << 10);
    let merged = async {
        let bytes = || tables().iter().map(|f| f.metadata().map_or(0, |m| m.len())).sum::<u64>();
        while tables().len() > 2 || bytes() > kept + (64 << 10) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), merged)
        .await
        .expect("what was purged goes with its tables");
    let stored = read::entries(&db, &Payloads::of(&dir), 0..100, u64::MAX).unwrap();
    assert_eq!(stored.iter().map(|e| e.log_id.index).collect::<Vec<_>>(), (41..=64).collect::<Vec<_>>());
    drop(db);
    close(opened);
}
