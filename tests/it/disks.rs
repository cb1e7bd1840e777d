//! Disks that hang and disks that fail, under real nodes.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_leader_whose_disk_hangs_… | design 11: the fence is withdrawn after `leadership.stall_after`, and another leads |
//! | a_disk_that_hangs_for_less_… | design 10: the patience of an election is not a disk's |
//! | slow_disks_of_the_others_… | safety 24: a lease stands on what was heard, not on what was synced |
//! | a_log_on_a_file_system_… | a folder that opened once opens again, on whatever disk its parts lie |
//! | what_a_killed_process_may_not_have_synced_… | design 3: nothing is answered for that a power loss takes |
//! | a_state_that_cannot_be_rebuilt_for_now_… | design 4: a disk's fault is not taken for a snapshot's |
//! | a_snapshot_that_cannot_be_synced_… | safety 28, 32: what a failed sync left in the page cache is not on the disk |
//! | a_transfer_whose_leaders_disk_fails_… | design 5: refused is only what did not happen |
//! | a_disk_that_fails_ends_the_node | safety 32; design 4: said, in `LAST_EXIT`, exit code 1; never tried again |

use std::{
    fs,
    ops::RangeInclusive,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::faults::UNABLE;
use crate::support::{
    block::{Block, Way},
    cluster::{Cluster, Roles},
    config::{Settings, settings},
    disk,
    exposition::Scrape,
    folder::{copy_dir, listing},
    node::{Node, binary},
    rpc::CallError,
    scene::Scene,
    small_disk::SmallDisk,
    stream::{fill, fill_patiently},
    wait::{SOON, pause, wait_for},
};

/// Three nodes on disks that obey, under load.
fn on_disks(stall_after: &str) -> Scene {
    let mut scene = Scene::with(3, settings([("leadership.stall_after", stall_after.into())]), disk::prepare);
    scene.produce("a", Way::Protobuf);
    scene.history.wait_for_more(20);
    scene
}

#[test]
fn a_leader_whose_disk_hangs_is_replaced() {
    let mut scene = on_disks("1s");
    UNABLE.iter().for_each(|said| scene.cluster.allow(said));
    let Roles { leader, fence, others } = scene.roles();
    let node = scene.cluster.node(leader);
    disk::begin(node, disk::Fault::Hangs);
    let new = scene.cluster.leader_among(&others, fence);
    // It hangs still: whoever looks is told so, and the node is up.
    let status = node.status().expect("it answers");
    let blockers = status["blockers"].as_array().expect("a list");
    assert!(blockers.iter().any(|b| b["check"] == "sync"), "{status}");
    assert_eq!((&status["ready"], &status["fence"]), (&json!(false), &json!(null)));
    scene.history.wait_for_more(20);
    scene.assert_refused(&[leader, new], fence);
    // Nor does it come back to office while it hangs.
    let error = scene.cluster.node(new).call("raft_transferLeader", &json!({"to": leader}));
    let error = error.expect_err("its disk hangs").rpc();
    // Nor are heartbeats answered by who cannot store what came before them (safety 24).
    assert!(["notFit", "notCaughtUp", "unreachable"].contains(&error.reason()), "{error}");
    disk::mend(scene.cluster.node(leader));
    scene.cluster.leader_above(fence);
    scene.end();
}

#[test]
fn a_disk_that_hangs_for_less_than_stall_after_deposes_nobody() {
    // Much longer than every timeout of an election, and much shorter than the stall.
    let mut scene = on_disks("1m");
    let Roles { leader, fence, others } = scene.roles();
    for id in [leader, others[0]] {
        disk::begin(scene.cluster.node(id), disk::Fault::Hangs);
        let begin = Instant::now();
        wait_for_a_hung_sync(scene.cluster.node(id));
        pause(Duration::from_secs(3).saturating_sub(begin.elapsed()));
        disk::mend(scene.cluster.node(id));
        scene.history.wait_for_more(20);
        let now = scene.cluster.node(leader).status().expect("it answers");
        assert_eq!((&now["term"], &now["ready"]), (&json!(fence), &json!(true)), "{now}");
    }
    scene.end();
}

/// Much longer than every patience of an election.
fn wait_for_a_hung_sync(node: &Node) {
    wait_for("its sync hangs", SOON, || {
        let scrape = Scrape::parse(&node.get("/metrics", &[])?.text());
        let seconds =
            scrape.get("blockraft_raft_log_sync_oldest_wait_seconds", &[]).context("no such series")?;
        ensure!(0.5 < seconds, "for {seconds} s");
        Ok(())
    });
}

#[test]
fn slow_disks_of_the_others_cost_no_lease() {
    // Both at once, as on one overloaded array: nothing is agreed on meanwhile, and nothing is refused.
    let mut scene = on_disks("1m");
    let Roles { leader, fence, others } = scene.roles();
    let refused = || {
        let text = scene.cluster.node(leader).get("/metrics", &[]).expect("it answers").text();
        ["no_leader", "not_ready"].map(|outcome| {
            Scrape::parse(&text).get("blockraft_raft_proposals_total", &[("outcome", outcome)])
        })
    };
    let before = refused();
    others.iter().for_each(|id| disk::begin(scene.cluster.node(*id), disk::Fault::Hangs));
    others.iter().for_each(|id| wait_for_a_hung_sync(scene.cluster.node(*id)));
    let now = scene.cluster.node(leader).status().expect("it answers");
    assert_eq!((&now["fence"], &now["ready"]), (&json!(fence), &json!(true)), "{now}");
    others.iter().for_each(|id| disk::mend(scene.cluster.node(*id)));
    scene.history.wait_for_more(20);
    let now = scene.cluster.node(leader).status().expect("it answers");
    assert_eq!((&now["term"], &now["ready"]), (&json!(fence), &json!(true)), "{now}");
    assert_eq!(refused(), before);
    scene.end();
}

#[test]
fn a_disk_that_fails_ends_the_node() {
    let mut scene = on_disks("5s");
    let Roles { leader, fence, others } = scene.roles();
    for id in [others[0], leader] {
        disk::begin(scene.cluster.node(id), disk::Fault::Fails);
        let exit = scene.cluster.node_mut(id).wait_exit(SOON);
        assert_eq!(exit.code(), Some(1), "node {id}");
        let last_exit = fs::read_to_string(scene.cluster.node(id).data_dir.join("LAST_EXIT"));
        let last_exit = last_exit.expect("the reason is on disk");
        assert!(last_exit.contains("sync"), "{last_exit}");
        // On a sound disk it is as good as killed.
        disk::mend(scene.cluster.node(id));
        scene.cluster.node_mut(id).start();
        scene.cluster.leader();
        let status = scene.cluster.node(id).status().expect("it answers");
        assert!(status["lastExit"].to_string().contains("sync"), "{}", status["lastExit"]);
        scene.history.wait_for_more(20);
    }
    scene.cluster.leader_above(fence);
    // A core that has to stop says so in many words, all of them openraft's: no quiet end.
    scene.check();
}

#[test]
fn a_log_on_a_file_system_without_direct_writes_is_opened_and_written() {
    let mut cluster = Cluster::new(1, Settings::new());
    cluster.start();
    // Large payloads have files of their own, the others go through the memtable into tables: more than it takes.
    let sized = |h| Block::sized(h, "a", if h <= 40 { 1_000_000 } else { 60_000 });
    let blocks: Vec<Block> = (1..=400).map(sized).collect();
    fill(&cluster.node(1).api.clone(), &blocks[..20]);
    assert_eq!(cluster.node_mut(1).stop(SOON).0.code(), Some(0));
    // As an operator does who gives the log a disk of its own.
    let log = cluster.node(1).data_dir.join("log");
    let before = log.with_extension("before");
    fs::rename(&log, &before).expect("nobody has it open");
    let Some(_disk) = SmallDisk::mount_without_direct_writes(&log) else { return };
    copy_dir(&before, &log);
    fs::remove_dir_all(&before).expect("it is ours");
    cluster.node_mut(1).start();
    cluster.leader();
    fill(&cluster.node(1).api.clone(), &blocks[20..]);
    cluster.node_mut(1).kill();
    cluster.node_mut(1).start();
    cluster.leader();
    assert_eq!(cluster.height(1), 400);
    for first in (1..=400).step_by(40) {
        let rows = cluster.node(1).range(first, first + 39).expect("it answers");
        assert_eq!(rows.len(), 40, "every block is there");
    }
    cluster.end();
}

#[test]
fn a_transfer_whose_leaders_disk_fails_is_not_called_refused() {
    // The next thing that it syncs is its vote for the leader that it made.
    let mut cluster = Cluster::new(3, Settings::new());
    cluster.nodes.iter_mut().for_each(disk::prepare);
    let leader = cluster.start();
    fill_patiently(&mut cluster, &small(1..=3));
    cluster.settled();
    let (term, to) = (cluster.term_of(leader), cluster.others(leader)[0]);
    disk::begin(cluster.node(leader), disk::Fault::Fails);
    let params = json!({"to": to, "operationId": "moved"});
    match cluster.node(leader).call("raft_transferLeader", &params) {
        Ok(done) => assert_ne!(done["outcome"], "refused", "{done}"),
        // What broke off says nothing.
        Err(CallError::Rpc(error)) => assert!(!error.is_refusal(), "{error}"),
        Err(CallError::Failed(_)) => {}
    }
    let exit = cluster.node_mut(leader).wait_exit(SOON);
    assert_eq!(exit.code(), Some(1));
    let others = cluster.others(leader);
    assert_eq!(cluster.leader_among(&others, term), to);
    cluster.allow_deaths();
    UNABLE.iter().for_each(|said| cluster.allow(said));
    for part in ["the store cannot go on", "the node cannot go on", "records of this node cannot be written"]
    {
        cluster.allow(part);
    }
    cluster.end();
}

/// With snapshots and purges on the way, on a disk that obeys.
fn compacting(n: u64) -> Cluster {
    let mut cluster =
        Cluster::new(n, settings([("snapshot.threshold", 50.into()), ("snapshot.trailing_logs", 10.into())]));
    cluster.nodes.iter_mut().for_each(disk::prepare);
    cluster.start();
    cluster
}

fn small(heights: RangeInclusive<u64>) -> Vec<Block> {
    heights.map(|h| Block::sized(h, "a", 500)).collect()
}

#[test]
fn a_state_that_cannot_be_rebuilt_for_now_costs_no_snapshot() {
    let mut cluster = compacting(1);
    let leader = cluster.leader();
    fill(&cluster.node(1).api.clone(), &small(1..=150));
    cluster.compact(leader);
    cluster.node_mut(1).kill();
    let dir = cluster.node(1).data_dir.clone();
    fs::write(dir.join("STATE_DAMAGED"), b"").expect("writable");
    let snapshots =
        || listing(&dir.join("snapshots")).iter().map(|l| l.path().to_owned()).collect::<Vec<_>>();
    let before = snapshots();
    disk::begin_failing(cluster.node(1), "/state.");
    // Twice: each try would cost another one.
    for _ in 0..2 {
        cluster.node_mut(1).assert_refuses(1, &["Input/output error"]);
    }
    assert_eq!(snapshots(), before);
    disk::mend(cluster.node(1));
    cluster.node_mut(1).start();
    cluster.leader();
    assert_eq!(cluster.height(1), 150);
    cluster.allow("the state is rebuilt");
    cluster.allow("the node does not start");
    cluster.end();
}

#[test]
fn a_snapshot_that_cannot_be_synced_is_sent_again() {
    let mut cluster = compacting(3);
    cluster.allow_deaths();
    let leader = cluster.leader();
    let away = cluster.others(leader)[0];
    cluster.node_mut(away).kill();
    fill_patiently(&mut cluster, &small(1..=300));
    cluster.compact(leader);
    disk::begin_failing(cluster.node(away), "/snapshots/");
    cluster.node_mut(away).start();
    cluster.node(away).wait_line(&["could not be kept", "cannot be synced"]);
    disk::mend(cluster.node(away));
    cluster.settled();
    assert_eq!(cluster.height(away), 300);
    // All of it came once more: what reads well need not be on the disk.
    let begun = cluster.node(away).lines().iter().filter(|line| line.names(&["is being received"])).count();
    assert!(2 <= begun, "it was sent {begun} times");
    for part in ["could not be kept", "snapshot was not installed", "snapshot was not sent"] {
        cluster.allow(part);
    }
    cluster.end();
}

#[test]
fn what_a_killed_process_may_not_have_synced_the_next_one_syncs() {
    // Killed between a write and its sync: the next process reads the record, and answers for what lies behind it. RocksDB
    // syncs no write-ahead log but its new one.
    let mut cluster = Cluster::new(1, Settings::new());
    cluster.start();
    // So large that they lie in the log's files of payloads.
    let blocks: Vec<Block> = (1..=10).map(|h| Block::sized(h, "a", 100_000)).collect();
    fill(&cluster.node(1).api.clone(), &blocks);
    cluster.node_mut(1).kill();
    let dir = cluster.node(1).data_dir.clone();
    let log = fs::read_dir(dir.join("log")).expect("it is there").map(|e| e.expect("it is read").path());
    let mut left: Vec<_> = log.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
    assert!(!left.is_empty(), "there is a write-ahead log");
    left.extend(["WATERMARK", "log", "log/payloads", "snapshots", ""].map(|name| dir.join(name)));
    let node = cluster.node_mut(1);
    let library = disk::build(node.config.parent().expect("it has one"));
    let list = node.log.with_extension("synced");
    let assert_synced = || {
        let synced = fs::read_to_string(&list).expect("the library is loaded");
        for path in &left {
            let is_synced = synced.lines().any(|line| Path::new(line) == path);
            assert!(is_synced, "{} is not among\n{synced}", path.display());
        }
        fs::remove_file(&list).expect("it is there");
    };
    // What it decides by is on the disk first. Nobody says yes, and nothing is done.
    let mut recover = binary();
    recover.args(["recover", "--apply"]).arg(&dir).env("LD_PRELOAD", &library).env("SYNCLOG", &list);
    let out = recover.stdin(Stdio::null()).output().expect("the binary runs");
    assert!(!out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    assert!(!dir.join("UNFINISHED").exists());
    assert_synced();

    node.env.extend([("LD_PRELOAD", library), ("SYNCLOG", list.clone())]);
    node.start();
    cluster.leader();
    assert_synced();
    cluster.end();
}
