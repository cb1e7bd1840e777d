//! A new cluster from an export of another.
//!
//! | test | attacks |
//! | --- | --- |
//! | an_export_is_restored_into_another_cluster | design 10, safety 10: equal blocks, another cluster |
//! | an_export_that_is_not_whole_… | safety 28: verified before anything rests on it |

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use serde_json::json;

use crate::recover::{BLOCKS, assert_blocks, compacting, done, kept, refused, run, said};
use crate::support::{
    cluster::{CLUSTER_ID, Cluster},
    config::Settings,
    folder::{FOLDER, listing},
    stream::fill_patiently,
    wait::{SOON, wait_for},
};

const RESTORE: &[&str] = &["snapshot", "restore", "--config"];

/// An export of a stopped cluster's last state, and the cluster's last term.
fn export(dir: &Path) -> (PathBuf, u64) {
    let mut old = Cluster::three(compacting());
    let leader = old.leader();
    fill_patiently(&mut old, &kept(1..=BLOCKS));
    // One that is being built already is joined, and may hold less.
    wait_for("a snapshot has all blocks", SOON, || {
        let created = old.node(leader).call("snapshot_create", &json!({}))?;
        ensure!(created["height"] == BLOCKS, "{created}");
        Ok(())
    });
    let term = old.node(leader).status().expect("it answers")["term"].as_u64().expect("a term");
    let tar = dir.join("chain.tar");
    let node = leader.to_string();
    let api = old.node(leader).api.clone();
    done(&["ctl", "--endpoints", &api, "--node", &node, "snapshot", "export", "-o"], &[&tar]);
    old.end();
    (tar, term)
}

#[test]
fn an_export_is_restored_into_another_cluster() {
    let dir = tempfile::tempdir().expect("writable");
    let (tar, term) = export(dir.path());
    // The same id is refused: two clusters of one name would meet.
    let mut new = Cluster::new(3, compacting());
    refused(RESTORE, &[&new.node(1).config, &tar], &[CLUSTER_ID]);
    assert_eq!(listing(&new.node(1).data_dir).len(), 2, "but for its lock the folder is empty");

    // Two of three are given the export; the third gets its data from them.
    for node in &mut new.nodes {
        node.settings.insert("cluster.id".into(), "restored".into());
    }
    new.write_configs();
    for id in [1, 2] {
        let config = new.node(id).config.clone();
        done(RESTORE, &[&config, &tar]);
        // Not empty any more.
        refused(RESTORE, &[&config, &tar], &[]);
        done(&["inspect", "--verify"], &[&new.node(id).data_dir.clone()]);
    }
    for id in [1, 2] {
        new.node_mut(id).start();
    }
    let leader = new.leader();
    let status = new.node(leader).status().expect("it answers");
    assert!(term < status["term"].as_u64().expect("a term"), "the old term was {term}: {status}");
    assert_eq!(status["membership"]["voters"], json!([1, 2, 3]));
    assert_eq!(status["clusterId"], "restored");
    new.node_mut(3).start();
    new.allow_strangers();
    fill_patiently(&mut new, &kept(BLOCKS + 1..=BLOCKS + 30));
    new.settled();
    for id in 1..=3 {
        assert_blocks(&new, id, BLOCKS + 30);
    }
    new.end();
}

#[test]
fn an_export_that_is_not_whole_is_not_restored() {
    let dir = tempfile::tempdir().expect("writable");
    let (tar, _) = export(dir.path());
    let whole = fs::read(&tar).expect("readable");
    let mut node = Cluster::new(1, Settings::new());
    node.node_mut(1).settings.insert("cluster.id".into(), "restored".into());
    node.write_configs();
    let config = node.node(1).config.to_string_lossy().into_owned();
    let restore = |bytes: &[u8]| {
        fs::write(&tar, bytes).expect("writable");
        run(&["snapshot", "restore", "--config", &config, &tar.to_string_lossy()], &[])
    };
    // Cut off anywhere, at a boundary of blocks too; a flipped bit in every part.
    let mut damaged: Vec<Vec<u8>> =
        [0, 512, 700, whole.len() / 2 / 512 * 512, whole.len() - 1024].map(|n| whole[..n].to_vec()).into();
    for at in [3, 600, whole.len() / 3, whole.len() / 2] {
        let mut bytes = whole.clone();
        // Padding between two files is nobody's: the next byte that is something.
        let at = (at..).find(|at| bytes[*at] != 0).expect("there is one");
        bytes[at] ^= 0x10;
        damaged.push(bytes);
    }
    for bytes in &damaged {
        let out = restore(bytes);
        assert_eq!(out.status.code(), Some(1), "{}", said(&out));
        assert!(said(&out).contains("not usable"), "{}", said(&out));
        assert_eq!(listing(&node.node(1).data_dir).len(), 2, "but for its lock the folder is empty");
    }
    // What a killed attempt leaves is refused by a start, and is no obstacle to the next.
    fs::write(node.node(1).data_dir.join("UNFINISHED"), "command = restore\n").expect("writable");
    fs::create_dir_all(node.node(1).data_dir.join("snapshots/restore.tmp/db")).expect("writable");
    node.allow("the node does not start");
    node.node_mut(1).assert_refuses(FOLDER, &["UNFINISHED", "restore", "repeat"]);
    let out = restore(&whole);
    assert!(out.status.success(), "{}", said(&out));
    node.node_mut(1).start();
    node.leader();
    assert_blocks(&node, 1, BLOCKS);
    node.end();
}
