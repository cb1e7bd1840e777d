//! Snapshots: built, received, installed, and never half.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use openraft::storage::{RaftLogStorage, RaftStateMachine};

use crate::raft::{SnapshotData, log_id_of};
use crate::store::snapshot::incoming::Stage;
use crate::store::snapshot::receive::ReceiveError;
use crate::store::snapshot::{last_index, meta_of};
use crate::store::state::db;
use crate::store::tests::support::{
    append, apply, blank, blocks, build_snapshot, close, commit, copy_dir, folder, membership, open, pos,
    refusal,
};
use crate::store::{Opened, Snapshots};
use crate::types::proto::SnapshotFile;

/// Sends a snapshot in chunks; `damage` may change one.
pub(super) fn send(
    from: &SnapshotData,
    to: &Snapshots,
    damage: impl Fn(&str, u64, &mut Vec<u8>),
) -> Result<SnapshotData, ReceiveError> {
    let mut receiving = to.receive(from.manifest.clone())?;
    for file in &from.manifest.files {
        let content = fs::read(from.dir.join(&file.name)).unwrap();
        let start = receiving.have(&file.name) as usize;
        for (i, chunk) in content[start..].chunks(1000).enumerate() {
            let offset = (start + i * 1000) as u64;
            let mut chunk = chunk.to_vec();
            damage(&file.name, offset, &mut chunk);
            receiving.write_chunk(&file.name, offset, &chunk)?;
        }
    }
    receiving.finish()
}

pub(super) async fn install(opened: &mut Opened, data: SnapshotData) {
    let meta = meta_of(&data.manifest).unwrap();
    opened.machine.install_snapshot(&meta, data).await.unwrap();
}

/// A store with blocks 1 to `last`.
pub(super) async fn filled(dir: &Path, last: u64) -> Opened {
    let mut opened = open(dir);
    commit(&mut opened, vec![membership(1, 0, &[1, 2, 3])]).await;
    commit(&mut opened, blocks(1, 1..=last, 300)).await;
    opened
}

#[tokio::test]
async fn a_snapshot_holds_what_was_applied_and_the_newest_are_kept() {
    let (_guard, dir) = folder();
    let mut opened = filled(&dir, 100).await;
    let data = build_snapshot(&mut opened).await;
    let view = opened.reader.view();
    assert_eq!(last_index(&data.manifest), Some(100));
    assert_eq!((data.manifest.height, &data.manifest.state_hash[..]), (100, &view.state_hash[..]));
    assert_eq!(opened.snapshots.verify(&data.manifest.id).unwrap(), Some(vec![]));
    // Nothing new: the same one again.
    assert_eq!(build_snapshot(&mut opened).await.manifest.id, data.manifest.id);
    let pinned = data.clone();
    drop(data);
    for i in 101..=105 {
        commit(&mut opened, blocks(1, i..=i, 300)).await;
        build_snapshot(&mut opened).await;
    }
    // Three are retained; the first one, which is being read, is there all the same.
    let kept: Vec<_> = opened.snapshots.list().iter().map(|m| last_index(m).unwrap()).collect();
    assert_eq!(kept, [105, 104, 103]);
    assert!(pinned.dir.join("CURRENT").is_file());
    let gone = pinned.dir.clone();
    drop(pinned);
    // Let go of, it goes at once, and not with the next one.
    tokio::time::timeout(Duration::from_secs(60), async {
        while gone.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("a snapshot stays that nobody reads");
    commit(&mut opened, blocks(1, 106..=106, 300)).await;
    build_snapshot(&mut opened).await;
    let kept: Vec<_> = opened.snapshots.list().iter().map(|m| last_index(m).unwrap()).collect();
    assert_eq!(kept, [106, 105, 104]);
    close(opened);
    let opened = open(&dir);
    assert_eq!(opened.snapshots.list().len(), 3);
    close(opened);
}

#[tokio::test]
async fn a_received_snapshot_becomes_the_state_and_survives_a_restart() {
    let (_a, from) = folder();
    let (_b, to) = folder();
    let mut sender = filled(&from, 200).await;
    let data = build_snapshot(&mut sender).await;
    let mut receiver = filled(&to, 10).await;
    let old = receiver.machine.shared.published().unwrap();
    let received = send(&data, &receiver.snapshots, |_, _, _| {}).unwrap();
    assert!(received.manifest.received);
    // Being there is not being installed.
    assert_eq!(receiver.reader.view().applied, pos(1, 10));
    assert_eq!(receiver.snapshots.newest(), None);
    install(&mut receiver, received).await;
    // Who reads on in the old state reads the old state.
    assert_eq!(old.view.applied, pos(1, 10));
    assert!(old.db.bytes(db::Family::Rows, &db::height_key(10)).unwrap().is_some());
    drop(old);
    receiver.log.purge(log_id_of(pos(1, 200))).await.unwrap();
    assert_eq!(receiver.reader.view().state_hash, sender.reader.view().state_hash);
    assert_eq!(receiver.reader.block(150).unwrap(), sender.reader.block(150).unwrap());
    commit(&mut receiver, blocks(1, 201..=210, 300)).await;
    close(receiver);
    let receiver = open(&to);
    assert_eq!(receiver.reader.view().applied, pos(1, 210));
    let folders = fs::read_dir(&to)
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("state"));
    assert_eq!(folders.count(), 1, "the old state's folder is gone");
    close(receiver);
    close(sender);
}

#[tokio::test]
async fn a_corrupt_chunk_is_found_and_nothing_of_it_is_kept() {
    let (_a, from) = folder();
    let (_b, to) = folder();
    let mut sender = filled(&from, 200).await;
    let data = build_snapshot(&mut sender).await;
    let receiver = filled(&to, 10).await;
    let result = send(&data, &receiver.snapshots, |name, offset, chunk| {
        if name.ends_with(".sst") && offset == 1000 {
            chunk[7] ^= 1;
        }
    });
    assert!(
        matches!(&result, Err(ReceiveError::Corrupt { file, .. }) if file.ends_with(".sst")),
        "{result:?}"
    );
    assert_eq!(receiver.snapshots.newest(), None);
    assert!(send(&data, &receiver.snapshots, |_, _, _| {}).is_ok());
    close(receiver);
    close(sender);
}

#[tokio::test]
async fn a_transfer_goes_on_where_it_stopped() {
    let (_a, from) = folder();
    let (_b, to) = folder();
    let mut sender = filled(&from, 200).await;
    let data = build_snapshot(&mut sender).await;
    let receiver = open(&to);
    let file = data.manifest.files.iter().max_by_key(|f| f.size_bytes).unwrap();
    let content = fs::read(data.dir.join(&file.name)).unwrap();
    let mut first = receiver.snapshots.receive(data.manifest.clone()).unwrap();
    first.write_chunk(&file.name, 0, &content[..1500]).unwrap();
    let early = first.write_chunk(&file.name, 1600, &content[1600..1700]);
    assert!(matches!(early, Err(ReceiveError::Offset { offset: 1600, have: 1500, .. })), "{early:?}");
    drop(first);
    let again = receiver.snapshots.receive(data.manifest.clone()).unwrap();
    assert_eq!(again.have(&file.name), 1500);
    drop(again);
    assert!(send(&data, &receiver.snapshots, |_, _, _| {}).is_ok());
    close(receiver);
    close(sender);
}

/// The folders among the snapshots that are not finished.
fn unfinished(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("snapshots")).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".tmp")).collect()
}

/// Begins to receive a snapshot and breaks off before its last byte; how many are there.
fn break_off(data: &SnapshotData, to: &Snapshots) -> u64 {
    let mut receiving = to.receive(data.manifest.clone()).unwrap();
    for file in &data.manifest.files {
        let content = fs::read(data.dir.join(&file.name)).unwrap();
        let n = if file.name.ends_with(".sst") { content.len() } else { content.len().saturating_sub(1) };
        receiving.write_chunk(&file.name, 0, &content[..n]).unwrap();
    }
    to.incoming().unwrap().received_bytes
}

#[tokio::test]
async fn a_newer_snapshot_takes_over_the_files_it_shares_with_one_that_broke_off() {
    let (_a, from) = folder();
    let (_b, to) = folder();
    let mut sender = filled(&from, 200).await;
    let first = build_snapshot(&mut sender).await;
    let receiver = filled(&to, 10).await;
    let there = break_off(&first, &receiver.snapshots);
    let incoming = receiver.snapshots.incoming().unwrap();
    assert_eq!((incoming.stage, incoming.last), (Stage::Interrupted, pos(1, 200)));
    assert!(0 < there && there < incoming.size_bytes);
    commit(&mut sender, blocks(1, 201..=220, 300)).await;
    let second = build_snapshot(&mut sender).await;
    let shared = |f: &&SnapshotFile| first.manifest.files.contains(f) && f.name.ends_with(".sst");
    let shared: Vec<_> = second.manifest.files.iter().filter(shared).collect();
    assert!(!shared.is_empty(), "the first one's files are still the state's");
    let receiving = receiver.snapshots.receive(second.manifest.clone()).unwrap();
    for file in &shared {
        assert_eq!(receiving.have(&file.name), file.size_bytes);
    }
    drop(receiving);
    assert_eq!(unfinished(&to), [format!("{}.tmp", second.manifest.id)], "nothing else keeps its space");
    assert!(send(&second, &receiver.snapshots, |_, _, _| {}).is_ok());
    assert_eq!(receiver.snapshots.incoming().unwrap().stage, Stage::Installing);
    close(receiver);
    close(sender);
}

#[tokio::test]
async fn what_broke_off_goes_once_this_node_is_as_far_by_itself() {
    let (_a, from) = folder();
    let (_b, to) = folder();
    let mut sender = filled(&from, 50).await;
    let data = build_snapshot(&mut sender).await;
    let mut receiver = filled(&to, 40).await;
    break_off(&data, &receiver.snapshots);
    build_snapshot(&mut receiver).await;
    assert_eq!(unfinished(&to).len(), 1, "40 is not 50");
    commit(&mut receiver, blocks(1, 41..=50, 300)).await;
    build_snapshot(&mut receiver).await;
    assert_eq!((unfinished(&to).len(), receiver.snapshots.incoming()), (0, None));
    close(receiver);
    close(sender);
}

#[tokio::test]
async fn a_received_snapshot_that_raft_does_not_want_goes() {
    let (_a, from) = folder();
    let (_b, to) = folder();
    let mut sender = filled(&from, 50).await;
    let data = build_snapshot(&mut sender).await;
    let receiver = filled(&to, 60).await;
    let id = send(&data, &receiver.snapshots, |_, _, _| {}).unwrap().manifest.id;
    assert!(to.join("snapshots").join(&id).exists());
    receiver.snapshots.settled(&id);
    assert!(!to.join("snapshots").join(&id).exists());
    assert_eq!(receiver.snapshots.incoming(), None);
    close(receiver);
    close(sender);
}

/// Raft cuts the entries that contradict a snapshot and hands the snapshot over at once: a crash between the
/// switch and the cut would leave a state whose log goes on with other entries.
#[tokio::test]
async fn the_switch_waits_until_the_log_is_cut() {
    let (_a, from) = folder();
    let (_b, to) = folder();
    let mut sender = filled(&from, 200).await;
    let data = build_snapshot(&mut sender).await;
    let mut receiver = filled(&to, 10).await;
    append(&mut receiver.log, blocks(1, 11..=300, 300)).await;
    let received = send(&data, &receiver.snapshots, |_, _, _| {}).unwrap();
    let queue = receiver.log.shared.clone();
    queue.queue.hold(true);
    receiver.log.truncate_after(Some(log_id_of(pos(1, 10)))).await.unwrap();
    let state_before = fs::read(to.join("STATE")).unwrap();
    {
        let mut installing = std::pin::pin!(install(&mut receiver, received));
        // Long enough for a switch that does not wait.
        let early = tokio::time::timeout(Duration::from_secs(1), &mut installing).await;
        assert!(early.is_err(), "it switched while the old entries were there");
        assert_eq!(fs::read(to.join("STATE")).unwrap(), state_before);
        queue.queue.hold(false);
        installing.await;
    }
    assert_eq!(receiver.reader.view().applied, pos(1, 200));
    close(receiver);
    close(sender);
}

#[tokio::test]
async fn damage_that_a_snapshot_shares_is_not_blessed_by_the_next_one() {
    let (_guard, dir) = folder();
    let mut opened = filled(&dir, 100).await;
    let data = build_snapshot(&mut opened).await;
    // That of the blocks: a start reads the others.
    let ssts = data.manifest.files.iter().filter(|f| f.name.ends_with(".sst"));
    let sst = ssts.max_by_key(|f| f.size_bytes).unwrap().clone();
    let path = data.dir.join(&sst.name);
    drop(data);
    close(opened);
    // In place and behind the back of its times: the same file as before, to who does not read it.
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 500).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 500).unwrap();
    file.set_modified(modified).unwrap();
    let mut opened = open(&dir);
    commit(&mut opened, blocks(1, 101..=110, 300)).await;
    let next = build_snapshot(&mut opened).await;
    let problems = opened.snapshots.verify(&next.manifest.id).unwrap().unwrap();
    assert!(problems.iter().any(|p| p.file == sst.name), "{problems:?}");
    drop(next);
    close(opened);
}

#[tokio::test]
async fn a_manifest_may_not_lead_out_of_its_folder() {
    let (_a, from) = folder();
    let mut sender = filled(&from, 20).await;
    let data = build_snapshot(&mut sender).await;
    for change in 0..4 {
        let mut manifest = data.manifest.clone();
        match change {
            0 => manifest.files[0].name = "../../IDENTITY".into(),
            1 => manifest.id = "../x".into(),
            2 => manifest.cluster_id = "other".into(),
            _ => manifest.format_version = 2,
        }
        assert!(matches!(sender.snapshots.receive(manifest), Err(ReceiveError::Manifest(_))));
    }
    close(sender);
}

#[tokio::test]
async fn a_switch_that_was_cut_short_leaves_one_state() {
    let (_a, from) = folder();
    let (_b, to) = folder();
    let mut sender = filled(&from, 200).await;
    let data = build_snapshot(&mut sender).await;
    let mut receiver = filled(&to, 10).await;
    let received = send(&data, &receiver.snapshots, |_, _, _| {}).unwrap();
    install(&mut receiver, received).await;
    // Killed between the switch and the purge of the log that openraft asks for next.
    let crashed = to.with_extension("crashed");
    copy_dir(&to, &crashed);
    // And the old state not yet removed, with a half-made one beside it.
    fs::create_dir(crashed.join("state")).unwrap_or_default();
    copy_dir(&crashed.join("snapshots").join(&data.manifest.id).join("db"), &crashed.join("state.99"));
    let mut after = open(&crashed);
    assert_eq!(after.reader.view().applied, pos(1, 200));
    assert_eq!(after.log.shared.stats().last, Some(pos(1, 10)));
    assert!(!crashed.join("state.99").exists() && !crashed.join("state").exists());
    after.log.purge(log_id_of(pos(1, 200))).await.unwrap();
    close(after);
    close(receiver);
    close(sender);
}

#[tokio::test]
async fn a_lost_state_is_rebuilt_from_the_newest_intact_snapshot() {
    let (_guard, dir) = folder();
    let mut opened = filled(&dir, 100).await;
    build_snapshot(&mut opened).await;
    commit(&mut opened, blocks(1, 101..=150, 300)).await;
    let newest = build_snapshot(&mut opened).await;
    commit(&mut opened, blocks(1, 151..=160, 300)).await;
    opened.log.purge(log_id_of(pos(1, 80))).await.unwrap();
    let hash = opened.reader.view().state_hash;
    close(opened);
    fs::remove_dir_all(dir.join("state")).unwrap();
    // The newest is damaged without a change of size: only its checksum tells.
    let sst = newest.manifest.files.iter().find(|f| f.name.ends_with(".sst")).unwrap();
    let path = newest.dir.join(&sst.name);
    let mut content = fs::read(&path).unwrap();
    content[20] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, content).unwrap();
    drop(newest);

    let mut opened = open(&dir);
    assert_eq!(opened.reader.view().applied, pos(1, 100));
    assert_eq!(opened.snapshots.list().len(), 1);
    let replayed = opened.log.clone().try_read(101, 161).await;
    apply(&mut opened.machine, replayed).await;
    assert_eq!(opened.reader.view().state_hash, hash);
    close(opened);
}

#[tokio::test]
async fn a_purged_log_without_a_snapshot_gets_one_or_is_refused() {
    let (_guard, dir) = folder();
    let mut opened = filled(&dir, 100).await;
    build_snapshot(&mut opened).await;
    opened.log.purge(log_id_of(pos(1, 80))).await.unwrap();
    close(opened);
    fs::remove_dir_all(dir.join("snapshots")).unwrap();
    let opened = open(&dir);
    assert_eq!(opened.snapshots.newest().as_ref().and_then(last_index), Some(100));
    close(opened);
    fs::remove_dir_all(dir.join("snapshots")).unwrap();
    fs::remove_dir_all(dir.join("state")).unwrap();
    let error = refusal(&dir);
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("80"), "{error}");
}

#[tokio::test]
async fn a_failed_build_answers_the_newest_snapshot_and_no_error() {
    let (_guard, dir) = folder();
    let mut opened = filled(&dir, 100).await;
    let before = build_snapshot(&mut opened).await;
    commit(&mut opened, blocks(1, 101..=110, 300)).await;
    // A file where the folder should be: nothing can be made in it.
    let folder = dir.join("snapshots");
    let aside = dir.join("aside");
    fs::rename(&folder, &aside).unwrap();
    fs::write(&folder, b"").unwrap();
    assert_eq!(build_snapshot(&mut opened).await.manifest.id, before.manifest.id);
    fs::remove_file(&folder).unwrap();
    fs::rename(&aside, &folder).unwrap();
    assert_eq!(last_index(&build_snapshot(&mut opened).await.manifest), Some(110));
    close(opened);
}

#[tokio::test]
async fn unfinished_ones_go_at_start_and_damaged_ones_are_set_aside() {
    let (_guard, dir) = folder();
    let mut opened = filled(&dir, 50).await;
    let data = build_snapshot(&mut opened).await;
    commit(&mut opened, vec![blank(1, 51)]).await;
    close(opened);
    let snapshots = dir.join("snapshots");
    let foreign = ["x.tmp", "keep-monday", "lost+found", "keep.damaged"].map(|name| snapshots.join(name));
    foreign.iter().for_each(|path| fs::create_dir(path).unwrap());
    let export = snapshots.join("1f-chain.tar");
    fs::write(&export, b"somebody's").unwrap();
    let [begun, before] = ["1f-1.tmp", "1f-1.damaged"].map(|name| snapshots.join(name));
    fs::create_dir(&begun).unwrap();
    fs::create_dir(&before).unwrap();
    let largest = data.manifest.files.iter().max_by_key(|f| f.size_bytes).unwrap();
    let path = data.dir.join(&largest.name);
    let content = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, &content[..content.len() - 1]).unwrap();
    let opened = open(&dir);
    assert!(!begun.exists() && !before.exists());
    // What no node made is left alone.
    assert!(foreign.iter().chain([&export]).all(|path| path.exists()));
    assert!(snapshots.join(format!("{}.damaged", data.manifest.id)).exists());
    assert_eq!(opened.snapshots.newest(), None);
    close(opened);
}

#[tokio::test]
async fn a_received_snapshot_that_was_not_installed_is_gone_after_a_restart() {
    let (_a, from) = folder();
    let (_b, to) = folder();
    let mut sender = filled(&from, 200).await;
    let data = build_snapshot(&mut sender).await;
    let receiver = filled(&to, 10).await;
    drop(send(&data, &receiver.snapshots, |_, _, _| {}).unwrap());
    close(receiver);
    let receiver = open(&to);
    assert_eq!(receiver.snapshots.newest(), None);
    assert_eq!(receiver.reader.view().applied, pos(1, 10));
    assert!(!to.join("snapshots").join(&data.manifest.id).exists());
    close(receiver);
    close(sender);
}

#[tokio::test]
async fn a_manifest_of_another_state_is_corrupt() {
    let (_a, from) = folder();
    let (_b, to) = folder();
    let mut sender = filled(&from, 20).await;
    let mut data = build_snapshot(&mut sender).await;
    data.manifest.last_log_id = Some(crate::types::proto::LogId { term: 1, index: 21 });
    let receiver = open(&to);
    let result = send(&data, &receiver.snapshots, |_, _, _| {});
    assert!(matches!(result, Err(ReceiveError::Corrupt { .. })), "{result:?}");
    close(receiver);
    close(sender);
}
