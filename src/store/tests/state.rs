//! Applying, and what a kill leaves of it.

use std::time::Duration;

use openraft::storage::{RaftLogStorage, RaftStateMachine};

use crate::machine::command::{Command, Kind};
use crate::raft::{log_id_of, pos_of};
use crate::store::health::Fatal;
use crate::store::reader::ReadError;
use crate::store::state::db::Family;
use crate::store::tests::support::{
    append, apply, blank, block, blocks, close, command, commit, configured, copy_dir, folder, membership,
    open, pos, proposed, submit,
};
use crate::types::proto::{LeadershipCause, LeadershipCommand};

fn led(term: u64, index: u64) -> crate::raft::Entry {
    let c = LeadershipCommand {
        node_id: 1,
        cause: LeadershipCause::Election.into(),
        operation_id: String::new(),
        started_at_ms: 5,
    };
    command(term, index, Command::leadership(&c))
}

#[tokio::test]
async fn what_was_applied_is_read_and_kept_over_a_restart() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    let mut entries = vec![membership(1, 0, &[1]), led(1, 1)];
    entries.extend(blocks(1, 2..=20, 100));
    // The same block again, in the same batch: recognised by what the batch wrote before.
    entries.push(proposed(1, 21, block(20, 100)));
    commit(&mut opened, entries).await;
    let view = opened.reader.view();
    assert_eq!(view.head.as_ref().map(|h| h.height), Some(20));
    assert_eq!((view.applied, view.history_blocks), (pos(1, 21), 19));
    let stored = opened.reader.block(7).unwrap();
    assert_eq!((stored.block, stored.term, stored.index), (block(7, 100), 1, 7));
    assert!(opened.reader.provenance(7).unwrap().applied_at_ms.is_some());
    assert_eq!(opened.reader.find_same(&block(20, 100)).map(|a| a.index), Some(20));
    assert_eq!(opened.reader.find_same(&block(20, 99)), None);
    assert_eq!(opened.reader.block(21), Err(ReadError::NotFound { oldest: Some(2) }));
    assert_eq!(opened.reader.block(1), Err(ReadError::NotFound { oldest: Some(2) }));
    let hash = view.state_hash;
    close(opened);

    let mut opened = open(&dir);
    assert_eq!(opened.machine.applied_state().await.unwrap().0, Some(log_id_of(pos(1, 21))));
    let view = opened.reader.view();
    assert_eq!((view.state_hash, view.history_blocks), (hash, 19));
    assert_eq!(opened.reader.leaderships(None, 10).len(), 1);
    assert_eq!(opened.reader.provenance(7).unwrap().applied_at_ms, None);
    let (_, stored) = opened.machine.applied_state().await.unwrap();
    assert_eq!(stored.log_id().map(|id| pos_of(&id)), Some(pos(1, 0)));
    close(opened);
}

#[tokio::test]
async fn a_range_ends_at_its_bounds_and_at_the_head() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    assert_eq!(opened.reader.range(1, 10, 1 << 20).unwrap().blocks.len(), 0);
    commit(&mut opened, blocks(1, 1..=10, 1000)).await;
    let page = opened.reader.range(3, 4, 1 << 20).unwrap();
    assert_eq!(page.blocks.iter().map(|b| b.block.height).collect::<Vec<_>>(), [3, 4, 5, 6]);
    assert_eq!(page.next_height, Some(7));
    let page = opened.reader.range(3, 100, 1).unwrap();
    assert_eq!((page.blocks.len(), page.next_height), (1, Some(4)));
    let page = opened.reader.range(9, 100, 1 << 20).unwrap();
    assert_eq!((page.blocks.len(), page.next_height), (2, None));
    assert_eq!(opened.reader.range(11, 100, 1 << 20).unwrap(), Default::default());
    close(opened);
}

/// Safety rule 3: openraft applies what was submitted, the store what its own log has synced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_applied_before_the_own_sync() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    commit(&mut opened, blocks(1, 1..=5, 10)).await;
    let shared = opened.log.shared.clone();
    shared.queue.hold(true);
    let entries = blocks(1, 6..=10, 10);
    let durable = submit(&mut opened.log, entries.clone()).await;
    opened.log.save_committed(Some(log_id_of(pos(1, 10)))).await.unwrap();
    {
        let mut applying = Box::pin(apply(&mut opened.machine, entries));
        for _ in 0..100 {
            assert!(futures::poll!(&mut applying).is_pending(), "applied ahead of the log");
            tokio::task::yield_now().await;
        }
        assert_eq!(opened.reader.view().applied, pos(1, 5));

        // Killed here: the state holds nothing that the log lacks.
        opened.reader.flush_ahead().await;
        let crashed = dir.with_extension("crashed");
        copy_dir(&dir, &crashed);
        let after = open(&crashed);
        assert_eq!(after.log.shared.stats().last, Some(pos(1, 5)));
        assert_eq!(after.reader.view().applied, pos(1, 5));
        close(after);

        shared.queue.hold(false);
        durable.await.unwrap().unwrap();
        applying.await;
    }
    assert_eq!(opened.reader.view().applied, pos(1, 10));
    close(opened);
}

#[tokio::test]
async fn a_kill_loses_of_the_state_only_what_the_log_replays() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    commit(&mut opened, blocks(1, 1..=50, 10)).await;
    opened.reader.flush_ahead().await;
    commit(&mut opened, blocks(1, 51..=80, 10)).await;
    let expected = opened.reader.view();
    let crashed = dir.with_extension("crashed");
    copy_dir(&dir, &crashed);
    let mut after = open(&crashed);
    let applied = after.reader.view().applied;
    assert_eq!(applied, pos(1, 50));
    let replayed = after.log.clone().try_read(51, 81).await;
    apply(&mut after.machine, replayed).await;
    assert_eq!(after.reader.view().state_hash, expected.state_hash);
    close(after);
    close(opened);
}

#[tokio::test]
async fn a_state_that_holds_what_the_log_lost_is_refused() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    commit(&mut opened, blocks(1, 1..=5, 10)).await;
    // The log never held it, as if it had been cut back by hand.
    apply(&mut opened.machine, blocks(1, 6..=7, 10)).await;
    close(opened);
    let error = crate::store::tests::support::refusal(&dir);
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("the log lost entries"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_command_stops_the_node_before_it_is_applied() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    let mut unknown = Command::new(Kind::Unknown(99), bytes::Bytes::from_static(b"?"));
    unknown.version = 1;
    let entries = vec![proposed(1, 1, block(1, 10)), command(1, 2, unknown), proposed(1, 3, block(2, 10))];
    append(&mut opened.log, entries.clone()).await;
    let health = opened.health.clone();
    let mut watch = health.watch();
    let mut applying = Box::pin(apply(&mut opened.machine, entries));
    tokio::select! {
        () = &mut applying => panic!("it was applied"),
        seen = watch.wait_for(|v| v.fatal.is_some()) => drop(seen.unwrap()),
    }
    let fatal = health.get().fatal.unwrap();
    assert_eq!(fatal, Fatal::UpgradeNeeded { kind: 99, version: 1, index: 2 });
    assert_eq!(fatal.exit_code(), 4);
    drop(applying);
    assert_eq!(opened.reader.view().applied, pos(1, 1));
    close(opened);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgotten_blocks_are_not_read_and_their_files_go() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    commit(&mut opened, vec![blank(1, 0), configured(1, 1, 100)]).await;
    for start in (2..4000).step_by(50) {
        commit(&mut opened, blocks(1, start..=start + 49, 2000)).await;
        // Small files, so that whole ones lie below the floor.
        opened.reader.flush_ahead().await;
    }
    let view = opened.reader.view();
    let oldest = view.oldest_height.unwrap();
    assert_eq!((view.history_blocks, oldest), (100, view.head.as_ref().unwrap().height - 99));
    assert_eq!(opened.reader.block(oldest - 1), Err(ReadError::Pruned { oldest: Some(oldest) }));
    assert_eq!(opened.reader.range(oldest - 1, 10, 1 << 20), Err(ReadError::Pruned { oldest: Some(oldest) }));
    assert!(opened.reader.block(oldest).is_ok());
    let published = opened.machine.shared.published().unwrap();
    // Whole files are dropped below the first level only.
    let (db, floor) = (published.db.clone(), oldest);
    tokio::task::spawn_blocking(move || {
        for family in [Family::Blocks, Family::Rows] {
            db.db().compact_range_cf(db.family(family), None::<&[u8]>, None::<&[u8]>);
        }
        crate::store::state::prune::drop_files(&db, floor).unwrap();
    })
    .await
    .unwrap();
    let bytes: u64 = published.db.db().live_files().unwrap().iter().map(|f| f.size as u64).sum();
    assert!(bytes < 4_000_000, "{bytes} bytes for 100 blocks of 2 000");
    drop(published);
    close(opened);
    let opened = open(&dir);
    let again = opened.reader.view();
    assert_eq!((again.oldest_height, again.history_blocks), (Some(oldest), 100));
    close(opened);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_history_does_not_lie_in_as_many_files_as_there_were_snapshots() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    commit(&mut opened, vec![blank(1, 0), configured(1, 1, 100_000)]).await;
    for start in (2..2000).step_by(10) {
        commit(&mut opened, blocks(1, start..=start + 9, 200)).await;
        opened.reader.flush_ahead().await;
    }
    let published = opened.machine.shared.published().unwrap();
    let files = || published.db.db().live_files().unwrap();
    let n_of = |name| files().iter().filter(|f| f.column_family_name == name).count();
    // Each flush begins a merge, unless one runs.
    let merged = async {
        while 100 < n_of("blocks") || 100 < n_of("rows") {
            opened.reader.flush_ahead().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), merged).await.expect("200 files of each are merged");
    let view = opened.reader.view();
    let head = view.head.as_ref().unwrap().height;
    assert_eq!((view.oldest_height, view.history_blocks), (Some(2), head - 1));
    for height in 2..=head {
        assert!(opened.reader.block(height).is_ok(), "{height}");
    }
    // The last flush may have begun another merge.
    drop(published);
    close(opened);
    let opened = open(&dir);
    assert_eq!(opened.reader.view().history_blocks, head - 1);
    close(opened);
}

#[tokio::test]
async fn a_folder_can_be_opened_anew_though_somebody_read_when_it_was_closed() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    commit(&mut opened, blocks(1, 1..=2, 10)).await;
    let (published, log) = (opened.machine.shared.published(), opened.log.shared.db());
    let reading = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop((published, log));
    });
    tokio::task::spawn_blocking(move || close(opened)).await.unwrap();
    let opened = open(&dir);
    assert_eq!(opened.reader.view().applied, pos(1, 2));
    close(opened);
    reading.await.unwrap();
}

#[tokio::test]
async fn a_damaged_state_is_rebuilt_from_the_log() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    commit(&mut opened, blocks(1, 1..=20, 10)).await;
    close(opened);
    std::fs::remove_file(dir.join("state").join("CURRENT")).unwrap();
    let mut opened = open(&dir);
    assert_eq!(opened.machine.applied_state().await.unwrap().0, None);
    assert_eq!(opened.log.read_committed().await.unwrap(), Some(log_id_of(pos(1, 20))));
    let replayed = opened.log.clone().try_read(1, 21).await;
    apply(&mut opened.machine, replayed).await;
    assert_eq!(opened.reader.view().head.as_ref().map(|h| h.height), Some(20));
    close(opened);
    let opened = open(&dir);
    assert_eq!(opened.reader.view().applied, pos(1, 20));
    close(opened);
}
