//! Whose a data folder is.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::store::exit::{self, Cause};
use crate::store::identity::Identity;
use crate::store::tests::support::{close, folder, open, open_as, refusal, who};
use crate::store::{OpenError, Who};

#[tokio::test]
async fn a_folder_is_made_for_its_owner_alone_and_keeps_its_incarnation() {
    let (_guard, dir) = folder();
    let opened = open(&dir);
    assert!(!opened.had_data);
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    let identity = opened.identity.clone();
    assert_eq!((identity.node_id, identity.epoch), (1, 0));
    close(opened);
    let opened = open(&dir);
    assert_eq!(opened.identity, identity);
    close(opened);
}

#[tokio::test]
async fn a_second_process_is_told_whose_the_folder_is() {
    let (_guard, dir) = folder();
    let opened = open(&dir);
    let error = refusal(&dir);
    assert_eq!(error.exit_code(), 1);
    let text = error.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())) && text.contains("node 1"), "{text}");
    close(opened);
    close(open(&dir));
}

#[tokio::test]
async fn another_cluster_or_node_is_refused_and_every_difference_named() {
    let (_guard, dir) = folder();
    close(open(&dir));
    let other = Who { cluster_id: "d".into(), node_id: 2 };
    let Err(error) = open_as(&dir, &other) else { panic!("opened as another") };
    assert_eq!(error.exit_code(), 4);
    let text = error.to_string();
    for part in ["IDENTITY", "cluster.id", "\"d\"", "\"c\"", "node.id is 2", "node 1"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    close(open(&dir));
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let (_guard, dir) = folder();
    close(open(&dir));
    let path = dir.join("IDENTITY");
    let text = fs::read_to_string(&path).unwrap().replace("format_version = 2", "format_version = 3");
    fs::write(&path, text).unwrap();
    let error = refusal(&dir);
    assert!(matches!(error, OpenError::NewerFormat { version: 3, known: 2, .. }), "{error}");
    assert_eq!(error.exit_code(), 4);
}

#[tokio::test]
async fn an_identity_that_was_changed_by_hand_is_refused() {
    let (_guard, dir) = folder();
    close(open(&dir));
    let path = dir.join("IDENTITY");
    let text = fs::read_to_string(&path).unwrap().replace("epoch = 0", "epoch = 1");
    fs::write(&path, text).unwrap();
    assert_eq!(refusal(&dir).exit_code(), 4);
}

#[tokio::test]
async fn an_epoch_is_written_as_a_whole() {
    let (_guard, dir) = folder();
    close(open(&dir));
    let mut identity = Identity::read(&dir).unwrap().unwrap();
    identity.epoch = u64::MAX;
    identity.write(&dir).unwrap();
    let opened = open(&dir);
    assert_eq!(opened.identity.epoch, u64::MAX);
    close(opened);
}

#[tokio::test]
async fn the_end_before_is_told_and_starts_are_counted() {
    let (_guard, dir) = folder();
    let who = who();
    for (n, expected) in [(1, Cause::First), (2, Cause::Killed), (3, Cause::Fatal), (4, Cause::Clean)] {
        let opened = open_as(&dir, &who).expect("the folder is fine");
        assert_eq!(opened.last_exit.cause, expected);
        if expected == Cause::Fatal {
            assert_eq!(opened.last_exit.text, "disk gone");
        }
        let local = opened.local.clone();
        // Whatever is queued behind the count is durable only after it.
        local.write(vec![(b"x".to_vec(), None)]).await.unwrap();
        assert_eq!(local.starts().unwrap(), n);
        close(opened);
        match n {
            2 => exit::record(&dir, Cause::Fatal, "disk gone").unwrap(),
            3 => exit::record(&dir, Cause::Clean, "").unwrap(),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_start_that_was_cut_short_is_gone_on_with() {
    use crate::store::rocks::{Recovery, Shared};
    let (_guard, dir) = folder();
    for stage in 0..4 {
        // As after a kill before each step of making the folder.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("log")).unwrap();
        match stage {
            0 => {}
            1 => drop(
                rocksdb::DB::open(
                    &{
                        let mut o = rocksdb::Options::default();
                        o.create_if_missing(true);
                        o
                    },
                    dir.join("log"),
                )
                .unwrap(),
            ),
            2 => {
                drop(Shared::new().unwrap().open_log(&dir.join("log"), true, Recovery::ShortTail).unwrap());
                fs::write(dir.join("WATERMARK"), [0; 100]).unwrap();
            }
            _ => {
                close(open(&dir));
                fs::remove_file(dir.join("IDENTITY")).unwrap();
            }
        }
        let opened = open(&dir);
        assert!(!opened.had_data);
        close(opened);
        close(open(&dir));
    }
}
