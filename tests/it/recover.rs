//! The worst day: quorum lost for good, and a cluster that begins anew from an export.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_cluster_comes_back_from_the_one_folder_… | safety 10: no fence twice, no second cluster of the same id |
//! | a_folder_of_a_node_that_was_removed_… | safety 10, 21d: what the lost ones said of it counts no more |
//! | a_recover_that_was_cut_short_… | design 10: a folder that says so, and can be repeated |
//! | a_state_ahead_of_its_log_… | a machine that died between an installed snapshot and the purge of the log |
//! | a_state_that_cannot_be_read_… | safety 10: what a start would make of the folder is what is recovered |
//! | what_cannot_be_recovered_… | exit codes of design 10; a plan around a folder that is whole, or misspelt |

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::support::{
    block::Block,
    cluster::Cluster,
    config::{Settings, settings},
    folder::{FOLDER, copy_dir, listing},
    node::binary,
    stream::fill_patiently,
    wait::{SOON, wait_for},
};

pub(crate) const BLOCKS: u64 = 150;
const PLAN: &[&str] = &["recover", "--plan"];
const APPLY: &[&str] = &["recover", "--yes", "--apply"];
/// What `recover` adds to the term (safety rule 10).
const TERM_STEP: u64 = 1_000_000;

pub(crate) fn run(args: &[&str], dirs: &[&Path]) -> Output {
    let mut command = binary();
    command.args(args);
    for dir in dirs {
        command.arg(dir);
    }
    command.output().expect("the binary runs")
}

pub(crate) fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// It succeeds; what it said.
#[track_caller]
pub(crate) fn done(args: &[&str], dirs: &[&Path]) -> String {
    let out = run(args, dirs);
    assert!(out.status.success(), "{args:?}: {}", said(&out));
    said(&out)
}

/// It fails with nothing done, and says all of these; what else it said.
#[track_caller]
pub(crate) fn refused(args: &[&str], dirs: &[&Path], words: &[&str]) -> String {
    let out = run(args, dirs);
    assert_eq!(out.status.code(), Some(1), "{args:?}: {}", said(&out));
    for word in words {
        assert!(said(&out).contains(word), "{word:?} is not in {}", said(&out));
    }
    said(&out)
}

/// With snapshots and purges on the way.
pub(crate) fn compacting() -> Settings {
    settings([
        ("snapshot.threshold", toml::Value::Integer(50)),
        ("snapshot.trailing_logs", toml::Value::Integer(10)),
    ])
}

pub(crate) fn kept(heights: std::ops::RangeInclusive<u64>) -> Vec<Block> {
    heights.map(|h| Block::sized(h, "kept", 500)).collect()
}

/// The blocks of a node are those that [`kept`] makes.
#[track_caller]
pub(crate) fn assert_blocks(cluster: &Cluster, id: u64, last: u64) {
    let rows = wait_for("the blocks are read", SOON, || {
        let rows = cluster.node(id).range(1, last)?;
        ensure!(rows.len() as u64 == last, "{} of {last} blocks", rows.len());
        Ok(rows)
    });
    for (block, row) in kept(1..=last).iter().zip(&rows) {
        block.assert_json(&row["block"]);
    }
}

/// Three nodes with blocks, all stopped, of which two lost their folders for good: they are moved away.
fn two_of_three_lost() -> (Cluster, u64, Vec<(u64, PathBuf)>) {
    let mut cluster = Cluster::three(compacting());
    let leader = cluster.leader();
    fill_patiently(&mut cluster, &kept(1..=BLOCKS));
    cluster.settled();
    let term = cluster.node(leader).status().expect("it answers")["term"].as_u64().expect("a term");
    cluster.nodes.iter_mut().for_each(|n| n.kill_at_once());
    cluster.nodes.iter_mut().for_each(|n| n.kill());
    let lost = [1, 2].map(|id| {
        let dir = cluster.node(id).data_dir.clone();
        let away = dir.with_extension("lost");
        fs::rename(&dir, &away).expect("writable");
        (id, away)
    });
    cluster.allow_deaths();
    cluster.allow_strangers();
    (cluster, term, lost.to_vec())
}

#[test]
fn a_cluster_comes_back_from_the_one_folder_that_is_left() {
    let (mut cluster, term, lost) = two_of_three_lost();
    let dir = cluster.node(3).data_dir.clone();

    // The documented commands, docs/recovery.md: look, then act.
    let before = listing(&dir);
    let plan = done(PLAN, &[&dir]);
    assert_eq!(listing(&dir), before, "the plan changes nothing");
    let block = format!("block {BLOCKS}");
    for word in ["most advanced", "node 3", &block, "voters 1, 2", "--apply"] {
        assert!(plan.contains(word), "{word:?} is not in {plan}");
    }
    let asked = run(&["recover", "--apply"], &[&dir]);
    assert_eq!(asked.status.code(), Some(2), "nobody to ask: {}", said(&asked));
    assert_eq!(listing(&dir).len(), before.len(), "asking changes nothing");
    done(APPLY, &[&dir]);

    cluster.node_mut(3).start();
    assert_eq!(cluster.leader(), 3);
    let status = cluster.node(3).status().expect("it answers");
    assert!(term + TERM_STEP < status["term"].as_u64().expect("a term"), "term was {term}: {status}");
    assert_eq!(status["membership"]["voters"], json!([3]));
    assert_blocks(&cluster, 3, BLOCKS);
    fill_patiently(&mut cluster, &kept(BLOCKS + 1..=BLOCKS + 20));
    wait_for("the recover is recorded, once", SOON, || {
        let records = cluster.node(3).call("audit_list", &json!({"limit": 1000}))?["records"].clone();
        let of_recover = |r: &&Value| r["method"] == "recover";
        let outcomes: Vec<_> = records.as_array().into_iter().flatten().filter(of_recover).collect();
        ensure!(outcomes.len() == 2 && outcomes[1]["outcome"] == "ok", "{records}");
        ensure!(outcomes[1]["params"]["voters"] == json!([1, 2, 3]), "{records}");
        let events = cluster.node(3).call("raft_history", &json!({"limit": 1000}))?["events"].clone();
        let is_told = |e: &Value| e["cause"] == "recovered" && e["detail"]["keep"] == json!([3]);
        ensure!(events.as_array().is_some_and(|e| e.iter().any(is_told)), "{events}");
        Ok(())
    });

    // The lost nodes come back with their old folders: refused by both sides, whoever dials. Together they are
    // a quorum of the old cluster, and may elect; never with node 3, and never under a fence it gave out.
    for (id, away) in &lost {
        fs::rename(away, &cluster.node(*id).data_dir).expect("writable");
    }
    cluster.node_mut(1).start();
    cluster.node(1).wait_line(&["epoch", "recovered without the other"]);
    let of_lost = wait_for("node 1 answers", SOON, || cluster.node(1).status());
    assert!(of_lost["leaderId"].is_null() && of_lost["ready"] == false, "alone: {of_lost}");
    assert_eq!(cluster.height(3), BLOCKS + 20);
    cluster.node_mut(1).kill();
    assert_eq!(cluster.leader(), 3);

    // The documented way back for it: an empty folder, no founding list, added and promoted.
    cluster.node_mut(1).wipe();
    cluster.node_mut(1).settings.insert("cluster.peers".into(), toml::Value::Array(vec![]));
    cluster.write_configs();
    cluster.node_mut(1).start();
    wait_for("node 1 listens", SOON, || cluster.node(1).get("/livez", &[]));
    let (peer, api) = (cluster.node(1).peer.clone(), cluster.node(1).api.clone());
    let endpoint = cluster.node(3).api.clone();
    let ctl = |args: &[&str]| {
        let flags = ["ctl", "--yes", "--timeout", "20s", "--endpoints", &endpoint, "members"];
        done(&[&flags[..], args].concat(), &[]);
    };
    ctl(&["add", "1", &peer, "--api", &api, "--wait"]);
    ctl(&["promote", "1"]);
    cluster.leader();
    let voters = cluster.node(3).status().expect("it answers")["membership"]["voters"].clone();
    assert_eq!(voters, json!([1, 3]));
    assert_blocks(&cluster, 1, BLOCKS + 20);

    // Stopped and started as any other node.
    cluster.node_mut(1).stop(SOON);
    cluster.node_mut(3).stop(SOON);
    cluster.node_mut(1).start();
    cluster.node_mut(3).start();
    cluster.leader();
    assert_blocks(&cluster, 3, BLOCKS + 20);
}

#[test]
fn kept_nodes_come_back_with_empty_folders() {
    let (mut cluster, _, _) = two_of_three_lost();
    let dir = cluster.node(3).data_dir.clone();
    refused(&["recover", "--keep", "9,3", "--yes", "--apply"], &[&dir], &["node 9", "no member"]);
    refused(&["recover", "--keep", "1,2", "--yes", "--apply"], &[&dir], &[]);
    done(&["recover", "--keep", "1,2,3", "--yes", "--apply"], &[&dir]);
    // What is wiped must not found a cluster of its own: it waits for the others.
    for id in [1, 2] {
        cluster.node_mut(id).settings.insert("cluster.peers".into(), toml::Value::Array(vec![]));
    }
    cluster.write_configs();
    cluster.nodes.iter_mut().for_each(|n| n.start());
    cluster.leader();
    fill_patiently(&mut cluster, &kept(BLOCKS + 1..=BLOCKS + 20));
    cluster.settled();
    for id in 1..=3 {
        assert_blocks(&cluster, id, BLOCKS + 20);
    }
    // And they stay members of the recovered cluster over a restart.
    for id in 1..=3 {
        cluster.node_mut(id).stop(SOON);
    }
    cluster.nodes.iter_mut().for_each(|n| n.start());
    cluster.leader();
    cluster.end();
}

/// It was removed, the others were lost, and its folder is what is left: who told it that it is no member is of the
/// cluster that is left behind.
#[test]
fn a_folder_of_a_node_that_was_removed_is_recovered_too() {
    let mut cluster = Cluster::three(compacting());
    cluster.allow_deaths();
    cluster.allow_strangers();
    fill_patiently(&mut cluster, &kept(1..=BLOCKS));
    let leader = cluster.leader();
    let removed = cluster.others(leader)[0];
    let answer =
        cluster.node(leader).call("raft_removeMember", &json!({"nodeId": removed})).expect("removed");
    wait_for("it is told", SOON, || {
        let status = cluster.node(removed).status()?;
        ensure!(status["blockers"].to_string().contains("\"member\""), "{}", status["blockers"]);
        Ok(())
    });
    for id in [removed, leader, 6 - removed - leader] {
        cluster.node_mut(id).stop(SOON);
    }
    let dir = cluster.node(removed).data_dir.clone();
    let out = run(PLAN, &[&dir]);
    let version = answer["version"].as_u64().expect("a version");
    let told = format!("Node {removed} was removed from the cluster by entry {version}");
    assert!(said(&out).contains(&told), "{}", said(&out));
    done(APPLY, &[&dir]);
    cluster.node_mut(removed).start();
    assert_eq!(cluster.leader(), removed);
    assert_blocks(&cluster, removed, BLOCKS);
}

#[test]
fn a_recover_that_was_cut_short_says_so_and_is_repeated() {
    let (mut cluster, _, _) = two_of_three_lost();
    let dir = cluster.node(3).data_dir.clone();
    let whole: Vec<(PathBuf, Vec<u8>)> = listing(&dir)
        .iter()
        .filter(|l| l.path().is_file())
        .map(|l| (l.path().to_owned(), fs::read(l.path()).expect("readable")))
        .collect();
    let put_back = || {
        let _ = fs::remove_dir_all(&dir);
        for (path, bytes) in &whole {
            fs::create_dir_all(path.parent().expect("it has one")).expect("writable");
            fs::write(path, bytes).expect("writable");
        }
    };
    // The marker of a run that was killed, and each of the two files that it changes in either state.
    done(APPLY, &[&dir]);
    let identity = fs::read(dir.join("IDENTITY")).expect("readable");
    let recovered: Vec<(PathBuf, Vec<u8>)> = listing(&dir.join("log"))
        .iter()
        .map(|l| l.path().to_owned())
        .chain([dir.join("WATERMARK")])
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), fs::read(&path).expect("readable")))
        .collect();
    let text = String::from_utf8(identity.clone()).expect("text");
    let epoch = text.lines().find_map(|l| l.strip_prefix("epoch = ")).expect("an epoch").to_owned();
    let inspect = run(&["inspect", "--json"], &[&dir]);
    let report: Value = serde_json::from_slice(&inspect.stdout).expect("JSON");
    let (term, last) = (&report["log"]["lastTerm"], report["log"]["lastIndex"].as_u64().expect("an index"));
    put_back();
    let inspect = run(&["inspect", "--json"], &[&dir]);
    let report: Value = serde_json::from_slice(&inspect.stdout).expect("JSON");
    let base_term = &report["log"]["lastTerm"];
    let marker = |base: u64| {
        format!(
            "command = recover\nepoch = {epoch}\nterm = {term}\nbase_term = {base_term}\nbase_index = {base}\npurged = false\nkeep = 3\n"
        )
    };
    // It was decided by an entry that is there no more: nothing of the log is thrown away.
    put_back();
    fs::write(dir.join("UNFINISHED"), marker(last)).expect("writable");
    let out = run(APPLY, &[&dir]);
    assert_eq!(out.status.code(), Some(FOLDER), "{}", said(&out));
    assert!(said(&out).contains("a recover was begun behind"), "{}", said(&out));
    let inspect = run(&["inspect", "--json"], &[&dir]);
    let left: Value = serde_json::from_slice(&inspect.stdout).expect("JSON");
    for field in ["entries", "lastIndex", "purgedIndex"] {
        assert_eq!(left["log"][field], report["log"][field], "{field}");
    }
    for (has_identity, has_log) in [(false, false), (true, false), (true, true)] {
        put_back();
        fs::write(dir.join("UNFINISHED"), marker(last - 1)).expect("writable");
        if has_identity {
            fs::write(dir.join("IDENTITY"), &identity).expect("writable");
        }
        if has_log {
            fs::remove_dir_all(dir.join("log")).expect("writable");
            fs::create_dir(dir.join("log")).expect("writable");
            // Much that was written at once lies in a folder of its own.
            for (path, bytes) in &recovered {
                fs::create_dir_all(path.parent().expect("it has one")).expect("writable");
                fs::write(path, bytes).expect("writable");
            }
        }
        cluster.node_mut(3).assert_refuses(FOLDER, &["UNFINISHED", "recover", "repeat"]);
        let out = run(&["inspect"], &[&dir]);
        assert_eq!(out.status.code(), Some(FOLDER), "{}", said(&out));
        // Another choice halfway, then the first one, with the epoch that was chosen then.
        refused(&["recover", "--keep", "1,3", "--yes", "--apply"], &[&dir], &[]);
        let text = done(APPLY, &[&dir]);
        assert!(text.contains(&epoch), "{text}");
        cluster.node_mut(3).start();
        assert_eq!(cluster.leader(), 3);
        assert_blocks(&cluster, 3, BLOCKS);
        cluster.node_mut(3).kill();
    }
}

#[test]
fn what_cannot_be_recovered_is_refused() {
    let (mut cluster, _, lost) = two_of_three_lost();
    let dir = cluster.node(3).data_dir.clone();
    // With a second folder there is a quorum: nothing to recover.
    refused(PLAN, &[&dir, &lost[0].1], &["nothing is lost"]);
    // One that lost its log.
    let copy = dir.with_extension("copy");
    fs::create_dir(&copy).expect("writable");
    fs::copy(dir.join("IDENTITY"), copy.join("IDENTITY")).expect("writable");
    refused(PLAN, &[&copy], &["nothing of it can be saved"]);
    // A folder that a node uses, one that is not there, one without a past.
    cluster.node_mut(3).start();
    wait_for("node 3 answers", SOON, || cluster.node(3).status());
    let (gone, empty) = (dir.with_extension("gone"), dir.with_extension("empty"));
    fs::create_dir(&empty).expect("writable");
    refused(APPLY, &[&dir], &["in use by"]);
    refused(APPLY, &[&gone], &[]);
    // Nor is there a plan without them, as if they were lost.
    for (wrong, word) in [(&dir, "stop the node"), (&gone, "check the path"), (&empty, "check the path")] {
        let text = refused(PLAN, &[&lost[0].1, wrong], &[word, &wrong.to_string_lossy()]);
        assert!(!text.contains("--apply"), "{text}");
    }
    cluster.node_mut(3).kill();
    assert!(!gone.exists());
    // A damaged one says which file.
    fs::remove_file(dir.join("WATERMARK")).expect("it was there");
    let out = run(APPLY, &[&dir]);
    assert_eq!(out.status.code(), Some(FOLDER), "{}", said(&out));
    assert!(said(&out).contains("WATERMARK"), "{}", said(&out));
}

#[test]
fn a_state_ahead_of_its_log_counts_and_is_recovered() {
    recover_ahead_of_the_log(|_| ()).end();
}

#[test]
fn a_state_that_cannot_be_read_counts_as_the_snapshot_that_it_is_rebuilt_from() {
    let mut cluster = recover_ahead_of_the_log(|dir| {
        let name = fs::read_to_string(dir.join("STATE")).expect("a snapshot was installed");
        fs::remove_file(dir.join(name.trim()).join("CURRENT")).expect("it is there");
    });
    cluster.allow("the state is rebuilt");
    cluster.end();
}

/// `harm` is done to the folder before it is recovered.
#[track_caller]
fn recover_ahead_of_the_log(harm: impl Fn(&Path)) -> Cluster {
    let mut cluster = Cluster::three(compacting());
    let leader = cluster.leader();
    let [ahead, other] = cluster.others(leader)[..] else { panic!("two others") };
    fill_patiently(&mut cluster, &kept(1..=20));
    cluster.settled();
    let dir = cluster.node(ahead).data_dir.clone();
    let old = dir.with_extension("old");
    cluster.node_mut(ahead).kill();
    copy_dir(&dir, &old);
    fill_patiently(&mut cluster, &kept(21..=60));
    // Longer than that log, shorter than the state.
    cluster.node_mut(other).kill();
    let shorter = dir.with_extension("shorter");
    copy_dir(&cluster.node(other).data_dir.clone(), &shorter);
    cluster.node_mut(other).start();
    fill_patiently(&mut cluster, &kept(61..=BLOCKS));
    cluster.node_mut(ahead).start();
    cluster.settled();
    // What is in its state reaches no further than its newest snapshot; who asks while one is built gets that one.
    wait_for("a snapshot holds all that was applied", SOON, || {
        let made = cluster.node(ahead).call("snapshot_create", &json!({}))?;
        let applied = cluster.node(ahead).status()?["appliedIndex"].clone();
        ensure!(made["lastIndex"] == applied, "{} of {applied}", made["lastIndex"]);
        Ok(())
    });
    cluster.nodes.iter_mut().for_each(|n| n.kill_at_once());
    cluster.nodes.iter_mut().for_each(|n| n.kill());
    cluster.allow_deaths();
    cluster.allow_strangers();
    // The snapshot's state with the log of before: what is left when the purge was not durable.
    fs::remove_dir_all(dir.join("log")).expect("writable");
    copy_dir(&old.join("log"), &dir.join("log"));
    fs::copy(old.join("WATERMARK"), dir.join("WATERMARK")).expect("writable");
    harm(&dir);

    let plan = run(PLAN, &[&shorter, &dir]);
    let first = said(&plan).lines().nth(1).unwrap_or_default().to_owned();
    assert!(first.starts_with(&format!("{} ", dir.display())), "the most advanced first: {}", said(&plan));
    done(APPLY, &[&dir]);
    cluster.node_mut(ahead).start();
    assert_eq!(cluster.leader(), ahead);
    let height = cluster.height(ahead);
    assert!(60 < height, "the state held more than the other folder: {height}");
    assert_blocks(&cluster, ahead, height);
    fill_patiently(&mut cluster, &kept(height + 1..=height + 20));
    assert_eq!(cluster.height(ahead), height + 20);
    cluster
}
