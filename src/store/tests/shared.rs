//! Tables that a snapshot on its way in shares with one that is here.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::raft::SnapshotData;
use crate::store::Opened;
use crate::store::snapshot::incoming::Stage;
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

/// Of a snapshot, the tables that another one has too.
fn shared(second: &SnapshotData, receiver: &Opened) -> Vec<SnapshotFile> {
    let newest = receiver.snapshots.newest().expect("one was installed");
    let is_shared = |f: &&SnapshotFile| f.name.ends_with(".sst") && newest.files.contains(f);
    let shared: Vec<_> = second.manifest.files.iter().filter(is_shared).cloned().collect();
    assert!(!shared.is_empty(), "the first one's files are still the state's");
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
    let file = shared(&second, &receiver).remove(0);
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

/// Flips a byte in place: whatever other names the file has are damaged with it.
fn damage(path: &Path, at: u64, is_told: bool) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    if !is_told {
        file.set_modified(modified).unwrap();
    }
}

/// The first attempt finds damage of this node's own, the second has everything.
async fn assert_sent_at_the_second_attempt(receiver: &mut Opened, second: &SnapshotData, damaged: &[String]) {
    let refused = send(second, &receiver.snapshots, |_, _, _| {});
    assert!(
        matches!(&refused, Err(ReceiveError::Linked { file, .. }) if damaged.contains(file)),
        "{refused:?}"
    );
    // The sender is not told that its snapshot is corrupt, and what is whole stays.
    assert_eq!(receiver.snapshots.incoming().unwrap().stage, Stage::Interrupted);
    let receiving = receiver.snapshots.receive(second.manifest.clone()).unwrap();
    for file in &second.manifest.files {
        let expected = if damaged.contains(&file.name) { 0 } else { file.size_bytes };
        assert_eq!(receiving.have(&file.name), expected, "{}", file.name);
    }
    drop(receiving);
    let received = send(second, &receiver.snapshots, |_, _, _| {}).unwrap();
    install(receiver, received).await;
    assert_eq!(receiver.snapshots.verify(&second.manifest.id).unwrap(), Some(vec![]));
}

#[tokio::test]
async fn damage_of_what_is_here_is_found_and_sent() {
    for is_reopened in [false, true] {
        let (_a, from) = folder();
        let (_b, to) = folder();
        let (sender, mut receiver, second) = behind_by_one(&from, &to).await;
        let file = shared(&second, &receiver).remove(0);
        let first_id = receiver.snapshots.newest().unwrap().id;
        let path = receiver.snapshots.file_of(&first_id, &file.name);
        if is_reopened {
            close(receiver);
            // A copy: a state that shares the damage would be rebuilt.
            let content = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            fs::write(&path, content).unwrap();
            // One that was there when the process began is read, whatever its times say.
            damage(&path, 10, false);
            receiver = open(&to);
        } else {
            damage(&path, 10, true);
        }
        assert_sent_at_the_second_attempt(&mut receiver, &second, &[file.name]).await;
        assert_eq!(receiver.reader.view().state_hash, sender.reader.view().state_hash);
        close(receiver);
        close(sender);
    }
}

#[tokio::test]
async fn what_was_compared_lately_is_compared_again_when_the_state_in_it_is_wrong() {
    let (_a, from) = folder();
    let (_b, to) = folder();
    let (sender, mut receiver, second) = behind_by_one(&from, &to).await;
    let shared = shared(&second, &receiver);
    let first_id = receiver.snapshots.newest().unwrap().id;
    for file in &shared {
        // Where a table ends, so that it does not even open.
        damage(&receiver.snapshots.file_of(&first_id, &file.name), file.size_bytes - 2, false);
    }
    let names: Vec<_> = shared.into_iter().map(|f| f.name).collect();
    assert_sent_at_the_second_attempt(&mut receiver, &second, &names).await;
    close(receiver);
    close(sender);
}

#[tokio::test]
async fn a_table_that_became_shorter_is_not_linked() {
    let (_a, from) = folder();
    let (_b, to) = folder();
    let (sender, receiver, second) = behind_by_one(&from, &to).await;
    let file = shared(&second, &receiver).remove(0);
    let path = receiver.snapshots.file_of(&receiver.snapshots.newest().unwrap().id, &file.name);
    let short = file.size_bytes - 7;
    fs::File::options().write(true).open(&path).unwrap().set_len(short).unwrap();
    let received = send(&second, &receiver.snapshots, |_, _, _| {}).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), short, "what came was written into it");
    drop(received);
    close(receiver);
    close(sender);
}

#[tokio::test]
async fn what_finds_no_room_keeps_no_table_of_another_snapshot() {
    let (_a, from) = folder();
    let (_b, to) = folder();
    let (sender, receiver, second) = behind_by_one(&from, &to).await;
    let shared = shared(&second, &receiver);
    let sent = second.manifest.files.iter().find(|f| !shared.contains(f) && 0 < f.size_bytes).unwrap();
    let mut receiving = receiver.snapshots.receive(second.manifest.clone()).unwrap();
    receiving.write_chunk(&sent.name, 0, b"!").unwrap();
    receiving.give_up();
    let first_id = receiver.snapshots.newest().unwrap().id;
    let links = |file: &SnapshotFile| {
        let path = receiver.snapshots.file_of(&first_id, &file.name);
        fs::metadata(path).unwrap().nlink()
    };
    let tmp = to.join("snapshots").join(format!("{}.tmp", second.manifest.id)).join("db");
    let left: Vec<_> = fs::read_dir(&tmp).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [sent.name.as_str()], "what was sent stays, and nothing else");
    let incoming = receiver.snapshots.incoming().unwrap();
    assert_eq!((incoming.stage, incoming.received_bytes), (Stage::Interrupted, 1));
    let before: Vec<u64> = shared.iter().map(links).collect();
    let receiving = receiver.snapshots.receive(second.manifest.clone()).unwrap();
    assert_eq!(receiving.have(&sent.name), 1);
    let linked: Vec<u64> = shared.iter().map(|file| links(file) - 1).collect();
    assert_eq!(linked, before, "there is room: all are linked again");
    drop(receiving);
    close(receiver);
    close(sender);
}
