//! What a snapshot is made of while applies go on.

use std::time::Duration;

use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};

use crate::store::snapshot::last_index;
use crate::store::tests::snapshot::filled;
use crate::store::tests::support::{blocks, build_snapshot, close, commit, folder};

/// A flush while nothing is applied would hold up every proposal that waits.
#[tokio::test]
async fn a_snapshot_is_made_of_what_was_flushed_ahead_and_one_on_demand_of_all() {
    let (_guard, dir) = folder();
    let mut opened = filled(&dir, 100).await;
    opened.reader.flush_ahead().await;
    let at_100 = opened.reader.view();
    commit(&mut opened, blocks(1, 101..=110, 300)).await;
    let data = build_snapshot(&mut opened).await;
    assert_eq!((last_index(&data.manifest), data.manifest.height), (Some(100), 100));
    assert_eq!(data.manifest.state_hash[..], at_100.state_hash[..]);
    assert_eq!(opened.snapshots.verify(&data.manifest.id).unwrap(), Some(vec![]));
    // Nothing that the newest one lacks was flushed: so it is now.
    let data = build_snapshot(&mut opened).await;
    assert_eq!((last_index(&data.manifest), data.manifest.height), (Some(110), 110));
    commit(&mut opened, blocks(1, 111..=120, 300)).await;
    opened.reader.flush_ahead().await;
    commit(&mut opened, blocks(1, 121..=130, 300)).await;
    let id = opened.snapshots.reserve();
    let data = build_snapshot(&mut opened).await;
    assert_eq!((&data.manifest.id, last_index(&data.manifest)), (&id, Some(130)));
    close(opened);
}

/// Raft hears of applied entries and of a snapshot by the same way: the snapshot must not come first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_ran_ahead_waits_until_raft_was_told_of_what_is_in_it() {
    let (_guard, dir) = folder();
    let mut opened = filled(&dir, 100).await;
    opened.reader.flush_ahead().await;
    let mut builder = opened.machine.try_create_snapshot_builder(false).await.expect("always one");
    // As when a buffer is full just then.
    commit(&mut opened, blocks(1, 101..=110, 300)).await;
    opened.reader.flush_ahead().await;
    let mut building = tokio::spawn(async move { builder.build_snapshot().await.expect("never an error") });
    let early = tokio::time::timeout(Duration::from_millis(200), &mut building).await;
    assert!(early.is_err(), "nobody was told of 110 yet");
    commit(&mut opened, blocks(1, 111..=111, 300)).await;
    let data = building.await.unwrap().snapshot;
    assert_eq!((last_index(&data.manifest), data.manifest.height), (Some(110), 110));
    close(opened);
}
