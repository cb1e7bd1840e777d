//! Disks that fill: the node refuses, says so, and goes on by itself once there is space.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_full_disk_kills_… | safety 28: entries, then a snapshot that comes in |
//! | a_disk_that_fills_during_a_build_… | safety 28: no checkpoint, no manifest; the next build is fine |
//! | a_disk_that_fills_during_an_install_… | safety 28: in the middle of a transfer, which goes on from there |
//! | a_leader_whose_followers_are_full_… | design 11: what waits longer than `stall_after` costs the fence, whatever the cause |
//! | killed_on_a_full_disk_… | design 4: with 2 MiB it opens, whatever it did when there was no room |

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use crate::faults::UNABLE;
use crate::support::{
    NodeId,
    block::{Answer, Block, Way},
    cluster::{CLUSTER_ID, Cluster},
    config::{Settings, patient, settings},
    net::{Net, Snapshots},
    node::Node,
    rpc,
    small_disk::{SmallDisk, give_back},
    stream::{Stream, fill, fill_patiently},
    wait::{LATER, SOON, pause, wait_for},
};

/// Of node 3's file system: what the databases reserve, and a little more.
const DISK_MIB: u64 = 160;

/// What an operator finds to delete.
const A_LITTLE: u64 = 2 << 20;

fn blocks(heights: std::ops::RangeInclusive<u64>, size: usize) -> Vec<Block> {
    heights.map(|h| Block::sized(h, "kept", size)).collect()
}

/// Most small, some so large that the log has files for them.
fn mixed(heights: std::ops::RangeInclusive<u64>) -> Vec<Block> {
    let size = |h: u64| if h.is_multiple_of(10) { 150_000 } else { 2_000 };
    heights.map(|h| Block::sized(h, "kept", size(h))).collect()
}

/// What is said of a disk that is full, by its node and by who sends it something.
fn allow_full(cluster: &mut Cluster) {
    cluster.allow_deaths();
    for part in [
        "disk full",
        "disk space",
        "no snapshot was built",
        "snapshot was not",
        "could not be kept",
        "not flushed ahead",
        "ballast",
        "cannot be written",
        "No space",
        "clock",
        "peer sent",
    ] {
        cluster.allow(part);
    }
}

fn not_led_by_3(cluster: &mut Cluster) -> u64 {
    wait_for("another than node 3 leads", LATER, || {
        let leader = cluster.leader();
        if leader == 3 {
            cluster.node_mut(3).stop(SOON);
            cluster.node_mut(3).start();
            bail!("node 3 leads");
        }
        Ok(leader)
    })
}

/// No snapshot is made by itself, and all of the log may go.
fn on_demand() -> Settings {
    let never = toml::Value::Integer(1_000_000);
    let mut all = settings([
        ("snapshot.threshold", never),
        ("snapshot.threshold_bytes", "1GiB".into()),
        ("store.min_free", "1MiB".into()),
    ]);
    all.extend(patient());
    all
}

fn wait_full(cluster: &mut Cluster) {
    wait_for("node 3 says that its disk is full", SOON, || {
        let status = cluster.node(3).status()?;
        ensure!(status["blockers"].to_string().contains("storage"), "{}", status["blockers"]);
        Ok(())
    });
}

#[test]
fn a_full_disk_kills_nobody() {
    let mut cluster = Cluster::new(
        3,
        settings([
            ("snapshot.threshold", 100.into()),
            ("snapshot.trailing_logs", 10.into()),
            ("snapshot.grace_entries", 1.into()),
            ("store.min_free", "1MiB".into()),
        ]),
    );
    let small = cluster.node(3).data_dir.clone();
    let Some(disk) = SmallDisk::mount(&small, DISK_MIB) else { return };
    cluster.start();
    allow_full(&mut cluster);
    // Node 3 follows: else there would be no progress to look at.
    not_led_by_3(&mut cluster);
    fill_patiently(&mut cluster, &mixed(1..=300));
    cluster.settled();
    // Full while snapshots are due: it refuses entries, and stays up.
    let began = Instant::now();
    let filler = disk.fill(256 << 10);
    fill_patiently(&mut cluster, &mixed(301..=900));
    wait_for("node 3 says that its disk is full", SOON, || {
        let status = cluster.node(3).status()?;
        ensure!(status["blockers"].to_string().contains("storage"), "{}", status["blockers"]);
        Ok(())
    });
    // What it lacks is purged: with space it gets a snapshot, and while it installs the disk fills again.
    fs::remove_file(&filler).expect("it was there");
    let filler = disk.fill(3 << 20);
    fill_patiently(&mut cluster, &mixed(901..=1_500));
    assert!(cluster.node_mut(3).is_running(), "a full disk kills nobody");
    fs::remove_file(&filler).expect("it was there");
    wait_for("node 3 catches up by itself", LATER, || {
        ensure!(cluster.node_mut(3).is_running(), "it ended");
        let status = cluster.node(3).status()?;
        ensure!(status["head"]["height"] == 1_500, "{}", status["head"]);
        Ok(())
    });
    for db in ["log", "state"] {
        let waited = cluster.node(3).counted("blockraft_store_write_stall_seconds_total", &[("db", db)]);
        assert!(waited <= began.elapsed().as_secs_f64(), "writes of {db} waited for {waited} s");
    }
    let rows = cluster.node(3).range(1, 1_500).expect("it answers");
    for (block, row) in mixed(1..=1_500).iter().zip(&rows) {
        block.assert_json(&row["block"]);
    }
    cluster.assert_equal_states();
    cluster.end();
}

#[test]
fn a_disk_that_fills_during_a_build_costs_that_snapshot_alone() {
    let mut cluster = Cluster::new(3, on_demand());
    let Some(disk) = SmallDisk::mount(&cluster.node(3).data_dir.clone(), DISK_MIB) else { return };
    cluster.start();
    allow_full(&mut cluster);
    not_led_by_3(&mut cluster);
    fill_patiently(&mut cluster, &blocks(1..=200, 10_000));
    cluster.settled();
    let filler = disk.fill(0);
    let refused = cluster.node(3).call("snapshot_create", &json!({})).expect_err("there is no room").rpc();
    assert_eq!((refused.code, refused.reason()), (-32038, "storage"), "{refused}");
    let status = cluster.node(3).call("snapshot_status", &Value::Null).expect("it answers");
    assert!(status["lastError"].is_string() && status["building"] == false, "{status}");
    wait_full(&mut cluster);
    // The others go on, and what is there can be read.
    fill_patiently(&mut cluster, &blocks(201..=300, 10_000));
    assert!(cluster.node_mut(3).is_running(), "a full disk kills nobody");
    assert_eq!(cluster.node(3).range(1, 200).expect("it answers").len(), 200);
    let left: Vec<_> =
        fs::read_dir(cluster.node(3).data_dir.join("snapshots")).expect("it is there").collect();
    assert!(left.is_empty(), "of a snapshot that was not built: {left:?}");

    fs::remove_file(&filler).expect("it was there");
    cluster.settled_within(LATER);
    let made =
        wait_for("a snapshot is built", LATER, || Ok(cluster.node(3).call("snapshot_create", &json!({}))?));
    let verdict = cluster.node(3).call("snapshot_verify", &json!({"id": made["id"]})).expect("it answers");
    assert_eq!(verdict["ok"], true, "{verdict}");
    cluster.assert_equal_states();
    cluster.end();
}

#[test]
fn a_disk_that_fills_during_an_install_only_delays_it() {
    const BLOCKS: u64 = 80;
    let (mut cluster, net) = (Cluster::new(3, on_demand()), Net::new());
    for node in &mut cluster.nodes {
        node.advertise = Some(net.before(node.id, &node.peer));
    }
    cluster.write_configs();
    let Some(disk) = SmallDisk::mount(&cluster.node(3).data_dir.clone(), DISK_MIB) else { return };
    cluster.nodes.iter_mut().for_each(|node| node.start());
    allow_full(&mut cluster);
    let leader = not_led_by_3(&mut cluster);
    cluster.node_mut(3).kill();
    fill_patiently(&mut cluster, &blocks(1..=BLOCKS, 100_000));
    cluster.compact(leader);

    // It fills in the middle of the transfer.
    net.set_snapshots(Snapshots { hold_after: Some(2 << 20), ..Snapshots::default() });
    cluster.node_mut(3).start();
    wait_for("a part of the snapshot is there", SOON, || {
        let install = cluster.node(3).status()?["install"].clone();
        ensure!(0 < install["receivedBytes"].as_u64().unwrap_or(0), "{install}");
        Ok(())
    });
    let filler = disk.fill(0);
    net.set_snapshots(Snapshots::default());
    let refused = cluster.node(3).wait_line(&["snapshot was not installed"]);
    assert!(refused.text.contains("No space") || refused.text.contains("no room"), "{}", refused.text);
    wait_full(&mut cluster);
    // Killed there, and with so little room it opens, and is offered the rest.
    cluster.node_mut(3).kill();
    give_back(&filler, A_LITTLE);
    cluster.node_mut(3).start();
    wait_for("node 3 is back", SOON, || cluster.node(3).status());
    // The leader offers it again and again, which changes nothing; who else is there goes on.
    fill_patiently(&mut cluster, &blocks(BLOCKS + 1..=BLOCKS + 20, 1_000));
    assert!(cluster.node_mut(3).is_running(), "a full disk kills nobody");

    fs::remove_file(&filler).expect("it was there");
    wait_for("node 3 catches up by itself", LATER, || {
        ensure!(cluster.node_mut(3).is_running(), "it ended");
        let status = cluster.node(3).status()?;
        ensure!(status["head"]["height"] == BLOCKS + 20, "{}", status["head"]);
        Ok(())
    });
    let installed =
        cluster.node(3).counted("blockraft_raft_snapshots_total", &[("op", "install"), ("outcome", "ok")]);
    assert_eq!(installed, 1.0);
    cluster.assert_equal_states();
    cluster.end();
}

/// What a node does when its disk fills.
#[derive(Debug, Clone, Copy)]
enum Step {
    Appends,
    Flushes,
    Builds,
    Purges,
    Starts,
}

/// The last block that was acknowledged on a disk that is full: the next was refused, or nobody knows.
fn fill_until_refused(cluster: &Cluster, from: u64, size: usize) -> u64 {
    let api = cluster.node(1).api.clone();
    let mut stream = Stream::open(&api, None).expect("the node answers");
    let mut top = from - 1;
    loop {
        stream.send(&blocks(top + 1..=top + 1, size)).expect("the stream is open");
        match stream.next().expect("the stream goes on") {
            Some(Answer::Acknowledged { .. }) => top += 1,
            Some(Answer::Refused { error: Some(error), .. }) if error.reason() == "storage" => return top,
            Some(Answer::Unknown(_)) => return top,
            other => panic!("neither acknowledged nor refused for its disk: {other:?}"),
        }
    }
}

#[test]
fn killed_on_a_full_disk_a_node_opens_with_a_little_room() {
    let steps = [Step::Appends, Step::Flushes, Step::Builds, Step::Purges, Step::Starts];
    // Of large blocks the log keeps the payloads in files of their own.
    for (step, size) in steps.into_iter().flat_map(|step| [(step, 10_000), (step, 100_000)]) {
        let mut cluster = Cluster::new(1, on_demand());
        let Some(disk) = SmallDisk::mount(&cluster.node(1).data_dir.clone(), DISK_MIB) else { return };
        cluster.start();
        allow_full(&mut cluster);
        // RocksDB looks for space every 5 s; as long without a leader is a last resort.
        cluster.allow("nobody leads: this node stands for election although it is not fit");
        let api = cluster.node(1).api.clone();
        fill(&api, &blocks(1..=200, size));
        let mut top = 200;
        let create = |node: &Node| {
            let api = node.api.clone();
            thread::spawn(move || rpc::call(&api, "snapshot_create", &json!({})))
        };
        let filler = match step {
            Step::Appends => {
                let filler = disk.fill(0);
                top = fill_until_refused(&cluster, top + 1, 2 * size);
                filler
            }
            Step::Flushes => {
                // The flush of a build began before the disk is full, or meets it.
                let build = create(cluster.node(1));
                let filler = disk.fill(0);
                // It may have been made.
                let _ = build.join().expect("it is answered");
                filler
            }
            Step::Builds => {
                let filler = disk.fill(0);
                create(cluster.node(1)).join().expect("it is answered").expect_err("there is no room");
                filler
            }
            Step::Purges => {
                create(cluster.node(1)).join().expect("it is answered").expect("there is room");
                let filler = disk.fill(0);
                // Refused or not: nothing may be lost by it.
                let _ = cluster.node(1).call("snapshot_purgeLog", &json!({}));
                filler
            }
            Step::Starts => {
                cluster.node_mut(1).kill();
                let filler = disk.fill(0);
                cluster.node_mut(1).start();
                wait_for("it is up, or ended", SOON, || {
                    let is_running = cluster.node_mut(1).is_running();
                    ensure!(!is_running || cluster.node(1).status().is_ok(), "neither");
                    Ok(())
                });
                filler
            }
        };
        cluster.node_mut(1).kill();
        give_back(&filler, A_LITTLE);
        cluster.node_mut(1).start();
        wait_for(&format!("{step:?}, {size}: it opens"), SOON, || {
            ensure!(cluster.node_mut(1).is_running(), "it ended");
            cluster.node(1).status()
        });
        fs::remove_file(&filler).expect("it was there");
        cluster.leader();
        let head = cluster.height(1);
        assert!(
            (top..=top + 1).contains(&head),
            "{step:?}, {size}: head {head}, {top} was acknowledged last"
        );
        let rows = cluster.node(1).range(1, 200).expect("it answers");
        for (block, row) in blocks(1..=200, size).iter().zip(&rows) {
            block.assert_json(&row["block"]);
        }
        fill_patiently(&mut cluster, &blocks(head + 1..=head + 20, 1_000));
        cluster.end();
    }
}

/// Their heartbeats pass, and each of its entries is refused: it leaves again and again, and arrives nowhere.
#[test]
fn a_leader_whose_followers_are_full_holds_no_fence() {
    let mut cluster = Cluster::three(Settings::new());
    allow_full(&mut cluster);
    UNABLE.iter().for_each(|said| cluster.allow(said));
    let leader = cluster.leader();
    let restart = |cluster: &mut Cluster, id: NodeId, more: Settings| {
        let (founders, mut all) = (cluster.founders(), cluster.settings.clone());
        all.extend(more);
        cluster.node_mut(id).stop(SOON);
        cluster.node(id).write_config(CLUSTER_ID, &founders, &all);
        cluster.node_mut(id).start();
    };
    let others = cluster.others(leader);
    for id in &others {
        restart(&mut cluster, *id, settings([("store.min_free", "1000TiB".into())]));
        wait_for("it follows", SOON, || {
            let status = cluster.node(*id).status()?;
            ensure!(status["leaderId"] == leader, "{status}");
            Ok(())
        });
    }
    let params = json!({"block": Block::new(1, "waits").to_json(), "timeoutMs": 500});
    let error = cluster.node(leader).call("block_propose", &params).expect_err("nobody stores it").rpc();
    assert_eq!(error.code, -32035, "{error}");
    let is_withheld = |cluster: &Cluster| {
        let status = cluster.node(leader).status()?;
        ensure!(status["fence"].is_null(), "{status}");
        Ok(status)
    };
    // More comes all the time, and is sent behind it with each attempt.
    let mut stream =
        Stream::open_with(&cluster.node(leader).api, &[("Blockraft-Timeout", "30s")]).expect("it answers");
    let mut height = 1;
    wait_for("the fence is withdrawn", LATER, || {
        height += 1;
        // Its last line ends it, once there is no fence.
        let _ = stream.send(&[Block::new(height, "behind it")]);
        pause(Duration::from_millis(100));
        is_withheld(&cluster)
    });
    assert!(10 < height, "it took less than a second");
    // Sent again, it is not held again.
    for _ in 0..40 {
        let withheld: anyhow::Result<Value> = is_withheld(&cluster);
        withheld.unwrap_or_else(|e| panic!("{e}"));
        pause(Duration::from_millis(100));
    }
    others.iter().for_each(|id| restart(&mut cluster, *id, Settings::new()));
    let leader = cluster.leader();
    Block::new(1, "waits").propose(&mut cluster.node(leader).connect(), Way::JsonRpc, None).acknowledged();
    cluster.settled();
    cluster.end();
}
