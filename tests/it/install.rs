//! Snapshots on their way from one node to another, over connections that break and files that are damaged.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_transfer_that_breaks_… | design 4: resumed, not begun again; progress is told |
//! | the_next_snapshot_sends_… | safety 29: who is away again, or for long, is not sent the whole history again |
//! | a_damaged_snapshot_is_replaced_… | safety 28: one damaged file of the sender keeps nobody away for ever |
//! | damage_that_the_senders_state_shares_… | safety 28: nothing damaged is ever served, nor sent |
//! | a_follower_far_behind_catches_up_… | safety 29: at a rate of blocks that keep coming |

use std::{
    fs,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::support::{
    NodeId,
    bench::number,
    block::Block,
    cluster::Cluster,
    config::{Settings, patient, settings},
    folder::{FOLDER, files, flip},
    net::Snapshots,
    node::binary,
    stream::{Stream, fill_patiently},
    wait::{LATER, SOON, pause, wait_for},
};

const MIB: u64 = 1 << 20;
/// Of a block in a snapshot that is large enough to be broken in pieces.
const LARGE: usize = 100_000;

fn blocks(heights: std::ops::RangeInclusive<u64>, size: usize) -> Vec<Block> {
    heights.map(|h| Block::sized(h, "kept", size)).collect()
}

/// No snapshot is made by itself, so that there is one, and one alone, to be sent.
fn on_demand() -> Settings {
    let mut all = settings([
        ("snapshot.threshold", toml::Value::Integer(1_000_000)),
        ("snapshot.threshold_bytes", "1GiB".into()),
    ]);
    all.extend(patient());
    all
}

/// One is away while blocks come; what it lacks is in a snapshot of the leader's alone. The leader, who is
/// away, and the snapshot.
fn one_lacks(cluster: &mut Cluster, n_blocks: u64, size: usize) -> (NodeId, NodeId, Value) {
    cluster.allow_deaths();
    let leader = cluster.leader();
    let away = cluster.others(leader)[0];
    cluster.node_mut(away).kill();
    fill_patiently(cluster, &blocks(1..=n_blocks, size));
    let made = cluster.compact(leader);
    (leader, away, made)
}

fn wait_height(cluster: &mut Cluster, id: NodeId, height: u64) {
    wait_for(&format!("node {id} has block {height}"), LATER, || {
        ensure!(cluster.node_mut(id).is_running(), "it ended");
        let status = cluster.node(id).status()?;
        ensure!(status["head"]["height"] == height, "{} {}", status["head"], status["install"]);
        Ok(())
    });
}

fn installs(cluster: &Cluster, id: NodeId, outcome: &str) -> f64 {
    cluster.node(id).counted("blockraft_raft_snapshots_total", &[("op", "install"), ("outcome", outcome)])
}

/// The folder of a snapshot's database files.
fn db_of(cluster: &Cluster, id: NodeId, snapshot: &Value) -> PathBuf {
    let name = snapshot["id"].as_str().expect("it has an id");
    cluster.node(id).data_dir.join("snapshots").join(name).join("db")
}

#[test]
fn a_transfer_that_breaks_ten_times_is_resumed_each_time() {
    const BREAKS: u32 = 10;
    const BLOCKS: u64 = 150;
    let (mut cluster, net) = Cluster::behind(3, on_demand(), |_| {});
    let (_, away, made) = one_lacks(&mut cluster, BLOCKS, LARGE);
    let size = made["sizeBytes"].as_u64().expect("a size");
    assert!(14 * MIB < size, "{made}");

    // Held in the middle first, to see how far it is told to be.
    net.set_snapshots(Snapshots { hold_after: Some(MIB / 2), ..Snapshots::default() });
    cluster.node_mut(away).start();
    let install = wait_for("a part of it is there", SOON, || {
        let install = cluster.node(away).status()?["install"].clone();
        ensure!(0 < install["receivedBytes"].as_u64().unwrap_or(0), "{install}");
        Ok(install)
    });
    assert_eq!(
        (&install["snapshotId"], &install["stage"], &install["sizeBytes"], &install["lastIndex"]),
        (&made["id"], &json!("receiving"), &made["sizeBytes"], &made["lastIndex"])
    );
    let node = cluster.node(away);
    assert_eq!(node.counted("blockraft_raft_snapshot_incoming_bytes", &[]), size as f64);
    let told = node.counted("blockraft_raft_snapshot_incoming_received_bytes", &[]);
    assert!(0.0 < told && told < size as f64, "{told}");
    let shown = binary().args(["ctl", "--endpoints", &node.api, "status"]).output().expect("the binary runs");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("install") && shown.contains("receiving"), "{shown}");

    net.set_snapshots(Snapshots { breaks: Some((BREAKS, MIB)), hold_after: None });
    wait_height(&mut cluster, away, BLOCKS);
    let passed = net.passed();
    assert_eq!(passed.broken, BREAKS, "{passed:?}");
    // Of each broken connection at most one piece is sent again, and what lay in the sockets.
    let again = u64::from(BREAKS) * MIB / 2;
    assert!(passed.bytes < size + again, "{passed:?} for {size} bytes: it was begun again");
    assert_eq!(installs(&cluster, away, "ok"), 1.0);
    // Each attempt says from where it goes on.
    let from: Vec<u64> = cluster
        .node(away)
        .lines()
        .iter()
        .filter(|l| l.message.contains("a snapshot is being received"))
        .filter_map(|l| serde_json::from_str::<Value>(&l.text).ok()?["received_bytes"].as_u64())
        .collect();
    assert!(BREAKS as usize <= from.len() && from.is_sorted() && from[0] == 0, "{from:?}");
    assert_eq!(cluster.node(away).status().expect("it answers")["install"], Value::Null);
    assert_eq!(cluster.node(away).counted("blockraft_raft_snapshot_incoming_bytes", &[]), 0.0);
    cluster.assert_equal_states();
    cluster.end();
}

#[test]
fn the_next_snapshot_sends_only_what_the_last_one_did_not() {
    const BLOCKS: u64 = 150;
    const MORE: u64 = 30;
    let (mut cluster, net) = Cluster::behind(3, on_demand(), |_| {});
    let (leader, away, made) = one_lacks(&mut cluster, BLOCKS, LARGE);
    let size = made["sizeBytes"].as_u64().expect("a size");
    cluster.node_mut(away).start();
    wait_height(&mut cluster, away, BLOCKS);
    let first = net.passed().bytes;
    assert!(size <= first, "{first} for {size} bytes");

    cluster.node_mut(away).kill();
    fill_patiently(&mut cluster, &blocks(BLOCKS + 1..=BLOCKS + MORE, LARGE));
    cluster.compact(leader);
    cluster.node_mut(away).start();
    wait_height(&mut cluster, away, BLOCKS + MORE);
    assert_eq!(installs(&cluster, away, "ok"), 1.0);
    let second = net.passed().bytes - first;
    let new = MORE * LARGE as u64;
    assert!((new..2 * new).contains(&second), "{second} bytes for {new} that are new");
    cluster.assert_equal_states();
    cluster.end();
}

#[test]
fn a_damaged_snapshot_is_replaced_though_the_chain_is_idle() {
    const BLOCKS: u64 = 300;
    let mut cluster = Cluster::three(on_demand());
    let (leader, away, made) = one_lacks(&mut cluster, BLOCKS, 1_000);
    for part in ["snapshot was not", "is corrupt", "is set aside"] {
        cluster.allow(part);
    }
    let dir = db_of(&cluster, leader, &made);
    let manifest = files(&dir, "").into_iter().find(|p| p.to_string_lossy().contains("MANIFEST"));
    flip(&manifest.expect("RocksDB has one"), 20);
    cluster.node_mut(away).start();
    wait_height(&mut cluster, away, BLOCKS);
    assert_eq!(installs(&cluster, away, "ok"), 1.0);
    assert!(
        1.0 <= cluster
            .node(leader)
            .counted("blockraft_raft_snapshots_total", &[("op", "send"), ("outcome", "corrupt")])
    );
    let name = format!("{}.damaged", made["id"].as_str().expect("it has an id"));
    wait_for("the damaged one is set aside", SOON, || {
        ensure!(cluster.node(leader).data_dir.join("snapshots").join(&name).is_dir(), "not yet");
        Ok(())
    });
    cluster.assert_equal_states();
    cluster.end();
}

#[test]
fn damage_that_the_senders_state_shares_ends_the_sender() {
    const BLOCKS: u64 = 300;
    let mut cluster = Cluster::three(on_demand());
    let (leader, away, made) = one_lacks(&mut cluster, BLOCKS, 1_000);
    for part in
        ["snapshot was not", "is corrupt", "is set aside", "the store cannot go on", "rebuilt", "the node "]
    {
        cluster.allow(part);
    }
    // Until its process has ended it hands over, and is asked for a vote that it can no longer write.
    for part in ["not fit", "cannot be written", "could not be written", "failed to receive from RaftCore"] {
        cluster.allow(part);
    }
    // In place: the file is the state's too.
    let sst = files(&db_of(&cluster, leader, &made), ".sst").remove(0);
    let file = fs::File::options().read(true).write(true).open(&sst).expect("it is there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 2_000).expect("it is longer");
    file.write_all_at(&[byte[0] ^ 0x10], 2_000).expect("writable");
    drop(file);
    cluster.node_mut(away).start();
    let exit = cluster.node_mut(leader).wait_exit(LATER);
    assert_eq!(exit.code(), Some(1), "a restart looks what can be rebuilt");
    cluster
        .node(leader)
        .wait_line(&["the state is damaged", &sst.file_name().expect("a name").to_string_lossy()]);
    // The two others hold everything between them.
    cluster.leader();
    wait_height(&mut cluster, away, BLOCKS);
    cluster.assert_equal_states();
    // Its log no longer reaches back, and all that it has shares the damage: it says so.
    cluster.node_mut(leader).assert_refuses(FOLDER, &["no intact snapshot", "a restart will not help"]);
    fill_patiently(&mut cluster, &blocks(BLOCKS + 1..=BLOCKS + 10, 1_000));
    cluster.end();
}

/// Proposes at a rate until told to stop; the last height. Slower than asked where the cluster is.
fn load(addr: &str, from: u64, rate: u64, stop: &AtomicBool) -> u64 {
    const TICK: Duration = Duration::from_millis(10);
    let a_tick = (rate / 100).max(1);
    let mut stream = Stream::open(addr, None).expect("it answers");
    let (mut sent, mut answered) = (0, 0);
    let began = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
        if sent < due {
            let n = (due - sent).min(a_tick);
            let batch = blocks(from + sent..=from + sent + n - 1, 256);
            stream.send(&batch).expect("the stream is open");
            sent += n;
        } else {
            pause(TICK);
        }
        while answered + 20 * a_tick < sent {
            stream.next().expect("the stream goes on").expect("an answer for each block").acknowledged();
            answered += 1;
        }
    }
    stream.end().expect("the stream is open");
    while answered < sent {
        stream.next().expect("the stream goes on").expect("an answer for each block").acknowledged();
        answered += 1;
    }
    from + sent - 1
}

#[test]
fn a_follower_far_behind_catches_up_at_a_rate() {
    // `make catch-up` asks for 10 000 and 5 000.
    let (behind, rate) = (number("BLOCKRAFT_BEHIND", 1_000), number("BLOCKRAFT_RATE", 500));
    let mut cluster = Cluster::three(patient());
    cluster.allow_deaths();
    let leader = cluster.leader();
    let away = cluster.others(leader)[0];
    cluster.node_mut(away).kill();
    fill_patiently(&mut cluster, &blocks(1..=behind, 256));
    assert_eq!(cluster.leader(), leader, "patient timings keep it");
    let api = cluster.node(leader).api.clone();
    let stop = AtomicBool::new(false);
    let applied = |cluster: &Cluster, id| -> anyhow::Result<u64> {
        Ok(cluster.node(id).status()?["appliedIndex"].as_u64().unwrap_or(0))
    };
    let (top, arrived, caught_up) = thread::scope(|scope| {
        // Told to stop also when something below panics: the scope waits for it.
        let guard = StopOnDrop(&stop);
        let loading = scope.spawn(|| load(&api, behind + 1, rate, &stop));
        wait_for("blocks come", SOON, || {
            ensure!(behind + rate / 10 < applied(&cluster, leader)?, "not yet");
            Ok(())
        });
        cluster.node_mut(away).start();
        let (began, before) = (Instant::now(), applied(&cluster, leader).expect("it answers"));
        wait_for("it is as far as the leader was a tenth of a second ago", LATER, || {
            let of_leader = applied(&cluster, leader)?;
            let own = applied(&cluster, away)?;
            ensure!(of_leader <= own + rate / 10, "{own} of {of_leader}");
            Ok(())
        });
        let (caught_up, after) = (began.elapsed(), applied(&cluster, leader).expect("it answers"));
        drop(guard);
        let top = loading.join().expect("every block is acknowledged");
        (top, (after - before) as f64, caught_up)
    });
    wait_height(&mut cluster, away, top);
    let by_snapshot = installs(&cluster, away, "ok");
    #[expect(clippy::print_stderr, reason = "what `make catch-up` is for")]
    {
        let real = arrived / caught_up.as_secs_f64();
        eprintln!(
            "{behind} blocks behind, started again while {real:.0} blocks/s came ({rate} asked for): \
             caught up after {caught_up:?}, with {by_snapshot} snapshots"
        );
    }
    cluster.assert_equal_states();
    cluster.end();
}

/// A load ends with whoever looks at it.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
