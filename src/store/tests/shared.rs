//! Files that a snapshot on its way in shares with one that is here.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::raft::SnapshotData;
use crate::store::Opened;
use crate::store::snapshot::receive::ReceiveError;
use crate::store::tests::snapshot::{filled, install, send};
use crate::store::tests::support::{blocks, build_snapshot, close, commit, folder, open};
use crate::types::proto::SnapshotFile;

/// A sender with two snapshots, and a receiver that installed the first.
async fn behind_by_one(from: &Path, to: &Path) -> (Opened, Opened, SnapshotData) {
    let mut sender = filled(from, 200).await;
    let first = build_snapshot(&mut sender).await;
    let mut receiver = filled(to, 10).await;
    let received = send(&first, &receiver.snapshots, |_, _, _| {}).unwrap();
    install(&mut receiver, received).await;
    commit(&mut sender, blocks(1, 201..=220, 300)).await;
    let second = build_snapshot(&mut sender).await;
    (sender, receiver, second)
}

/// Of a snapshot, the files that another one has too, but empty ones.
fn shared(second: &SnapshotData, receiver: &Opened) -> Vec<SnapshotFile> {
    let newest = receiver.snapshots.newest().expect("one was installed");
    let is_shared = |f: &&SnapshotFile| 0 < f.size_bytes && newest.files.contains(f);
    let shared: Vec<_> = second.manifest.files.iter().filter(is_shared).cloned().collect();
    assert!(shared.iter().any(|f| f.name.ends_with(".sst")), "the first one's files are still the state's");
    shared
}

#[tokio::test]
async fn what_is_here_of_a_snapshot_is_not_sent_again() {
    let (_a, from) = folder();
    let (_b, to) = folder();
    let (sender, mut receiver, second) = behind_by_one(&from, &to).await;
    let shared = shared(&second, &receiver);
    let first_id = receiver.snapshots.newest().unwrap().id;
    let receiving = receiver.snapshots.receive(second.manifest.clone()).unwrap();
    let there: u64 = shared.iter().map(|f| f.size_bytes).sum();
    let size: u64 = second.manifest.files.iter().map(|f| f.size_bytes).sum();
    assert_eq!(receiving.missing_bytes(), size - there);
    // It breaks off, and is gone on with.
    drop(receiving);
    let received = send(&second, &receiver.snapshots, |name, _, _| {
        assert!(shared.iter().all(|f| f.name != name), "{name} is sent again");
    })
    .unwrap();
    for file in &shared {
        let inode = |path| fs::metadata(path).unwrap().ino();
        let old = receiver.snapshots.file_of(&first_id, &file.name);
        assert_eq!(inode(received.dir.join(&file.name)), inode(old), "{} lies there twice", file.name);
    }
    install(&mut receiver, received).await;
    assert_eq!(receiver.reader.view().state_hash, sender.reader.view().state_hash);
    assert_eq!(receiver.reader.block(150).unwrap(), sender.reader.block(150).unwrap());
    assert_eq!(receiver.snapshots.verify(&second.manifest.id).unwrap(), Some(vec![]));
    close(receiver);
    close(sender);
}

#[tokio::test]
async fn a_part_that_was_sent_gives_way_to_the_whole_that_is_here() {
    let (_a, from) = folder();
    let (_b, to) = folder();
    let (_c, elsewhere) = folder();
    let (sender, receiver, second) = behind_by_one(&from, &to).await;
    let file = shared(&second, &receiver).into_iter().find(|f| f.name.ends_with(".sst")).unwrap();
    // As a process left it that did not know of links.
    let tmp = to.join("snapshots").join(format!("{}.tmp", second.manifest.id)).join("db");
    fs::create_dir_all(&tmp).unwrap();
    fs::write(tmp.join(&file.name), b"the beginning").unwrap();
    let receiving = receiver.snapshots.receive(second.manifest.clone()).unwrap();
    assert_eq!(receiving.have(&file.name), file.size_bytes);
    drop(receiving);
    assert!(send(&second, &receiver.snapshots, |_, _, _| {}).is_ok());
    // Who has nothing of it is sent all of it.
    let other = open(&elsewhere);
    assert_eq!(other.snapshots.receive(second.manifest.clone()).unwrap().have(&file.name), 0);
    close(other);
    close(receiver);
    close(sender);
}

#[tokio::test]
async fn damage_of_what_is_here_is_found_and_costs_one_more_transfer() {
    let (_a, from) = folder();
    let (_b, to) = folder();
    let (sender, receiver, second) = behind_by_one(&from, &to).await;
    let file = shared(&second, &receiver).into_iter().find(|f| f.name.ends_with(".sst")).unwrap();
    let first_id = receiver.snapshots.newest().unwrap().id;
    // Of what lies there since before this process nothing is taken for granted.
    close(receiver);
    let path = to.join("snapshots").join(&first_id).join("db").join(&file.name);
    let mut content = fs::read(&path).unwrap();
    content[10] ^= 1;
    // A copy: the state has the file by another name.
    fs::remove_file(&path).unwrap();
    fs::write(&path, content).unwrap();
    let mut receiver = open(&to);
    let refused = send(&second, &receiver.snapshots, |_, _, _| {});
    assert!(matches!(&refused, Err(ReceiveError::Corrupt { file: f, .. }) if *f == file.name), "{refused:?}");
    assert_eq!(
        receiver.snapshots.newest(),
        None,
        "the damaged one is never linked from, sent or installed again"
    );
    let received = send(&second, &receiver.snapshots, |_, _, _| {}).unwrap();
    install(&mut receiver, received).await;
    assert_eq!(receiver.reader.view().state_hash, sender.reader.view().state_hash);
    close(receiver);
    close(sender);
}
