//! Snapshots as an operator steers them, and that nothing damaged or half done is ever served.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_snapshot_on_demand_… | design 5: joins a build, answers the newest, an id before it is there |
//! | a_damaged_snapshot_is_told_… | design 5: `snapshot_verify` restores and compares |
//! | an_export_is_a_whole_archive | design 6: the tar stream |
//! | the_log_is_purged_… | promise 8: never beyond the snapshot |
//! | a_bit_in_every_file_… | safety 4, 5, 28: equal blocks, or a refusal that says why |
//! | kills_during_snapshots_… | safety 28, 31: build, send, receive and switch, at any moment |
//! | a_follower_that_was_away_… | safety 29: by snapshot, while blocks go on coming |

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::support::{
    bench::number,
    block::Block,
    chance::Chance,
    cluster::Cluster,
    config::settings,
    folder::{BLOCKS, FOLDER, assert_whole, files, flip, state_dir, stopped_node, used, walk},
    node::Node,
    stream::{fill, fill_patiently},
    wait::{LATER, SOON, pause, wait_for},
};

fn call(node: &Node, method: &str, params: &Value) -> Value {
    node.call(method, params).unwrap_or_else(|e| panic!("{method}: {e}"))
}

fn blocks(heights: std::ops::RangeInclusive<u64>, size: usize) -> Vec<Block> {
    heights.map(|h| Block::sized(h, "kept", size)).collect()
}

/// A node alone whose policy never makes a snapshot.
fn lone_node() -> Cluster {
    let never = toml::Value::Integer(1_000_000);
    let mut cluster =
        Cluster::new(1, settings([("snapshot.threshold", never.clone()), ("snapshot.trailing_logs", never)]));
    cluster.start();
    cluster
}

#[test]
fn a_snapshot_on_demand_is_made_once_and_joined() {
    let cluster = lone_node();
    let node = cluster.node(1);
    // Before the first block there is a state: who leads, and the settings.
    let empty = call(node, "snapshot_create", &json!({}));
    assert_eq!(empty["height"], 0);
    fill(&node.api, &blocks(1..=50, 300));
    // Many at once: one build, or two when the second came after the first had begun with less.
    let ids: Vec<Value> = thread::scope(|scope| {
        let calls: Vec<_> =
            (0..8).map(|_| scope.spawn(|| call(node, "snapshot_create", &json!({})))).collect();
        calls.into_iter().map(|c| c.join().expect("it answers")["id"].clone()).collect()
    });
    let created = call(node, "snapshot_create", &json!({}));
    assert_eq!(
        (&created["height"], &created["lastIndex"]),
        (&json!(50), &node.status().expect("it answers")["appliedIndex"])
    );
    assert!(ids.iter().all(|id| *id == created["id"]), "{ids:?}, then {created}");
    assert_eq!(node.counted("blockraft_raft_snapshots_total", &[("op", "build"), ("outcome", "ok")]), 2.0);

    fill(&node.api, &blocks(51..=60, 300));
    let promised = call(node, "snapshot_create", &json!({"wait": false}));
    assert_eq!(promised["building"], true, "{promised}");
    let id = promised["id"].clone();
    wait_for("the promised snapshot is there", SOON, || {
        let list = node.call("snapshot_list", &Value::Null)?["snapshots"].clone();
        ensure!(list[0]["id"] == id && list[0]["height"] == 60, "{list}");
        Ok(())
    });
    // `retain` is 3, and the newest are kept.
    fill(&node.api, &blocks(61..=70, 300));
    call(node, "snapshot_create", &json!({"operationId": "snap-1"}));
    let asked = call(node, "raft_history", &json!({"operationId": "snap-1"}))["events"].clone();
    assert_eq!((&asked[0]["kind"], &asked[0]["cause"]), (&json!("snapshot"), &json!("asked")), "{asked}");
    let list = call(node, "snapshot_list", &Value::Null)["snapshots"].clone();
    let heights: Vec<_> = list.as_array().expect("a list").iter().map(|s| s["height"].clone()).collect();
    assert_eq!(heights, [70, 60, 50]);
    let described = call(node, "snapshot_describe", &json!({"id": list[0]["id"]}));
    assert_eq!((&described["height"], &described["membership"]["voters"]), (&json!(70), &json!([1])));
    assert_eq!(
        described["sizeBytes"].as_u64(),
        described["files"]
            .as_array()
            .map(|files| { files.iter().filter_map(|f| f["sizeBytes"].as_u64()).sum() })
    );
    let events = call(node, "raft_history", &json!({"limit": 100}))["events"].clone();
    let n_asked =
        events.as_array().into_iter().flatten().filter(|e| e["kind"] == "snapshot" && e["cause"] == "asked");
    assert!(4 <= n_asked.count(), "{events}");
    for (method, id) in [("snapshot_describe", "none"), ("snapshot_verify", "../../x")] {
        let error = node.call(method, &json!({"id": id})).expect_err("there is none").rpc();
        assert_eq!((error.code, error.reason()), (-32037, "notFound"));
    }
    cluster.end();
}

#[test]
fn a_damaged_snapshot_is_told_by_file() {
    let cluster = lone_node();
    let node = cluster.node(1);
    fill(&node.api, &blocks(1..=200, 1_000));
    let id = call(node, "snapshot_create", &json!({}))["id"].clone();
    let verify = || call(node, "snapshot_verify", &json!({"id": id}));
    assert_eq!(verify(), json!({"ok": true, "problems": []}));
    let dir = node.data_dir.join("snapshots").join(id.as_str().expect("text"));
    let damaged = files(&dir.join("db"), ".sst").remove(0);
    flip(&damaged, 700);
    let verdict = verify();
    let name = damaged.file_name().expect("it has one").to_string_lossy().into_owned();
    assert_eq!((&verdict["ok"], &verdict["problems"][0]["file"]), (&json!(false), &json!(name)), "{verdict}");
    assert_eq!(
        node.counted("blockraft_raft_snapshots_total", &[("op", "verify"), ("outcome", "corrupt")]),
        1.0
    );
    // Nothing of the scratch folder is left, and the node is as it was.
    let left: Vec<PathBuf> = fs::read_dir(node.data_dir.join("snapshots"))
        .expect("readable")
        .map(|e| e.expect("readable").path())
        .filter(|p| p.extension().is_some())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    fill(&node.api, &blocks(201..=210, 1_000));
    cluster.end();
}

#[test]
fn an_export_is_a_whole_archive() {
    let cluster = lone_node();
    let node = cluster.node(1);
    fill(&node.api, &blocks(1..=300, 2_000));
    let id = call(node, "snapshot_create", &json!({}))["id"].as_str().expect("text").to_owned();
    let answer = node.get(&format!("/v1/snapshots/{id}"), &[]).expect("it answers");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/x-tar"));
    let dir = tempfile::tempdir().expect("writable");
    let tar = dir.path().join("s.tar");
    fs::write(&tar, &answer.body).expect("writable");
    // By another program than ours.
    let out = Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(dir.path()).output();
    let out = out.expect("tar is there");
    assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    let kept = node.data_dir.join("snapshots").join(&id);
    for path in walk(&kept) {
        let below = path.strip_prefix(&kept).expect("below");
        let unpacked = dir.path().join(&id).join(below);
        assert_eq!(
            fs::read(&unpacked).expect("it is there"),
            fs::read(&path).expect("readable"),
            "{below:?}"
        );
    }
    for (path, status) in
        [("/v1/snapshots/none", 404), ("/v1/snapshots/..", 404), ("/v1/snapshots/%2e%2e%2fx", 404)]
    {
        assert_eq!(node.get(path, &[]).expect("it answers").status, status, "{path}");
    }
    cluster.end();
}

#[test]
fn the_log_is_purged_on_demand_and_never_beyond_the_snapshot() {
    let cluster = lone_node();
    let node = cluster.node(1);
    assert_eq!(call(node, "snapshot_purgeLog", &json!({}))["purgedIndex"], 0);
    fill(&node.api, &blocks(1..=100, 200));
    let last = call(node, "snapshot_create", &json!({}))["lastIndex"].as_u64().expect("an index");
    fill(&node.api, &blocks(101..=120, 200));
    assert_eq!(call(node, "snapshot_purgeLog", &json!({"uptoIndex": last - 30}))["purgedIndex"], last - 30);
    assert_eq!(
        call(node, "snapshot_purgeLog", &json!({"uptoIndex": 5}))["purgedIndex"],
        last - 30,
        "not back"
    );
    assert_eq!(call(node, "snapshot_purgeLog", &json!({"uptoIndex": last + 1_000}))["purgedIndex"], last);
    let status = call(node, "snapshot_status", &Value::Null);
    assert_eq!((&status["purgedIndex"], &status["logEntries"]), (&json!(last), &json!(20)), "{status}");
    assert_eq!(node.range(1, 120).expect("it answers").len(), 120, "blocks are not entries");
    cluster.end();
}

/// Flips a bit in each of some files in turn, at its beginning, in its middle and at its end, and starts the
/// node. Either all blocks are there, or it refuses and says why.
fn a_bit_in_each(targets: impl Fn(&Path) -> Vec<PathBuf>, before_start: impl Fn(&Path)) {
    let mut cluster = stopped_node(true);
    cluster.node_mut(1).start();
    cluster.leader();
    cluster.node_mut(1).stop(SOON);
    let data_dir = cluster.node(1).data_dir.clone();
    let whole: Vec<(PathBuf, Vec<u8>)> =
        walk(&data_dir).into_iter().map(|path| (path.clone(), fs::read(path).expect("readable"))).collect();
    let places = targets(&data_dir).into_iter().flat_map(|target| {
        let used = used(&fs::read(&target).expect("readable"));
        let places: BTreeSet<usize> = [0, used / 2, used.saturating_sub(1)].into();
        places.into_iter().map(move |at| (target.clone(), at)).collect::<Vec<_>>()
    });
    let places: Vec<(PathBuf, usize)> = places.collect();
    assert!(8 <= places.len(), "{places:?}");
    for (target, at) in places {
        let case = format!("byte {at} of {}", target.display());
        flip(&target, at);
        before_start(&data_dir);
        let said_before = cluster.node(1).lines().len();
        cluster.node_mut(1).start();
        let ended = wait_for(&format!("the node ends or leads: {case}"), SOON, || {
            if let Some(exit) = cluster.node_mut(1).exit() {
                return Ok(Some(exit.code()));
            }
            ensure!(cluster.node(1).status()?["ready"] == true, "neither");
            Ok(None)
        });
        match ended {
            // It says which file, or at least which folder.
            Some(code) => {
                assert_eq!(code, Some(FOLDER), "{case}");
                let said = cluster.node(1).lines().split_off(said_before);
                let words = ["a restart will not help", &data_dir.to_string_lossy()];
                assert!(said.iter().any(|line| line.names(&words)), "{case}: {said:#?}");
            }
            None => {
                let rows = cluster.node(1).range(1, BLOCKS).expect("it answers");
                assert_eq!(rows.len() as u64, BLOCKS, "{case}");
                for (height, row) in (1..).zip(&rows) {
                    assert_eq!(
                        row["block"]["hash"],
                        Block::sized(height, "kept", 1_000).hash_hex(),
                        "{case}"
                    );
                }
            }
        }
        cluster.node_mut(1).kill();
        fs::remove_dir_all(&data_dir).expect("writable");
        for (path, bytes) in &whole {
            fs::create_dir_all(path.parent().expect("it has one")).expect("writable");
            fs::write(path, bytes).expect("writable");
        }
    }
    assert_whole(&mut cluster);
}

/// But locks and RocksDB's own info logs, in which nobody reads.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let is_read = |p: &PathBuf| {
        let name = p.file_name().expect("it has one").to_string_lossy().into_owned();
        name != "LOCK" && !name.starts_with("LOG") && 0 < p.metadata().map_or(0, |m| m.len())
    };
    walk(dir).into_iter().filter(is_read).collect()
}

#[test]
fn a_bit_in_every_file_of_the_log() {
    a_bit_in_each(|dir| files_below(&dir.join("log")), |_| {});
}

#[test]
fn a_bit_in_every_file_beside_the_log() {
    // Who the folder is, how far the log is, which state is in force.
    a_bit_in_each(|dir| ["IDENTITY", "WATERMARK", "STATE"].map(|name| dir.join(name)).into(), |_| {});
}

#[test]
fn a_bit_in_every_file_of_a_snapshot() {
    let newest = |dir: &Path| {
        let of = |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).ok();
        let entries = fs::read_dir(dir.join("snapshots")).expect("readable");
        files_below(&entries.map(|e| e.expect("readable").path()).max_by_key(of).expect("there is one"))
    };
    // The state is gone, so that everything rests on the snapshots.
    a_bit_in_each(newest, |dir| fs::remove_dir_all(state_dir(dir)).expect("it was there"));
}

/// Kills a random node again and again while snapshots are built, sent, received and installed; `rounds`
/// kills. Ends with the same blocks everywhere.
fn kills_during_snapshots(rounds: u64) {
    let mut cluster = Cluster::new(
        3,
        settings([
            ("snapshot.threshold", 30.into()),
            ("snapshot.trailing_logs", 5.into()),
            ("snapshot.grace_entries", 1.into()),
            ("snapshot.min_interval", "1ms".into()),
            // All of it is read at the end.
            ("state.history_blocks", 1_000_000.into()),
        ]),
    );
    cluster.start();
    cluster.allow_deaths();
    for part in
        ["received snapshot", "snapshot was not installed", "received and not installed", "is set aside"]
    {
        cluster.allow(part);
    }
    let mut chance = Chance::new();
    let mut top = 0;
    for round in 0..rounds {
        // One is away until its log is purged: what it then gets is a snapshot.
        let leader = cluster.leader();
        let away = cluster.others(leader)[chance.below(2) as usize];
        cluster.node_mut(away).kill();
        let leader = cluster.leader();
        let n = 60 + chance.below(60);
        fill_patiently(&mut cluster, &blocks(top + 1..=top + n, 400));
        top += n;
        wait_for("the log is purged beyond what the one that is away has", SOON, || {
            let status = cluster.node(leader).status()?;
            ensure!(top - 40 <= status["purgedIndex"].as_u64().unwrap_or(0), "{status}");
            Ok(())
        });
        cluster.node_mut(away).start();
        // Somewhere in its start, in the transfer or in the switch; or the sender, or whoever builds one.
        pause(std::time::Duration::from_micros(chance.below(400_000)));
        let victim = [away, away, leader][chance.below(3) as usize];
        cluster.node_mut(victim).kill();
        cluster.node_mut(victim).start();
        wait_for(&format!("all have block {top} after kill {round} of seed {}", chance.seed), LATER, || {
            for id in 1..=3 {
                let head = cluster.node(id).status()?["head"]["height"].as_u64().unwrap_or(0);
                ensure!(head == top, "node {id} is at {head}");
            }
            Ok(())
        });
    }
    cluster.settled();
    cluster.assert_equal_states();
    for id in 1..=3 {
        let rows = cluster.node(id).range(1, top).expect("it answers");
        assert_eq!(rows.len() as u64, top, "node {id}, seed {}", chance.seed);
        for (block, row) in blocks(1..=top, 400).iter().zip(&rows) {
            block.assert_json(&row["block"]);
        }
    }
    cluster.end();
}

#[test]
fn kills_during_snapshots_leave_equal_states() {
    // `make torture` asks for 200.
    kills_during_snapshots(number("BLOCKRAFT_TORTURE", 10));
}

#[test]
fn a_follower_that_was_away_catches_up_while_blocks_come() {
    // `make catch-up` asks for 50 000.
    let away_for = number("BLOCKRAFT_AWAY", 3_000);
    let mut cluster = Cluster::three(settings([
        ("snapshot.threshold", 200.into()),
        ("snapshot.trailing_logs", 50.into()),
        // As many as come while it catches up, however slow this machine is.
        ("snapshot.grace_entries", toml::Value::Integer(away_for as i64)),
    ]));
    cluster.allow_deaths();
    let leader = cluster.leader();
    let away = cluster.others(leader)[0];
    cluster.node_mut(away).kill();
    fill_patiently(&mut cluster, &blocks(1..=away_for, 500));
    // Nobody is waited for who is down: the log is short.
    wait_for("the log is short again", SOON, || {
        let status = cluster.node(leader).call("snapshot_status", &Value::Null)?;
        ensure!(status["logEntries"].as_u64().context("a number")? < 1_000, "{status}");
        Ok(())
    });
    cluster.node_mut(away).start();
    fill_patiently(&mut cluster, &blocks(away_for + 1..=2 * away_for, 500));
    wait_for("the follower has caught up", LATER, || {
        let status = cluster.node(away).status()?;
        ensure!(status["head"]["height"] == 2 * away_for, "{}", status["head"]);
        Ok(())
    });
    let received =
        cluster.node(away).counted("blockraft_raft_snapshots_total", &[("op", "install"), ("outcome", "ok")]);
    assert!((1.0..=3.0).contains(&received), "{received} snapshots: the purge waits for who is catching up");
    let events = call(cluster.node(away), "raft_history", &json!({"limit": 100}))["events"].clone();
    assert!(events.as_array().is_some_and(|e| e.iter().any(|e| e["cause"] == "received")), "{events}");
    cluster.assert_equal_states();
    cluster.end();
}
