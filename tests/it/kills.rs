//! `kill -9` at moments of chance while RocksDB flushes and merges.
//!
//! | test | attacks |
//! | --- | --- |
//! | kills_between_flushes_… | safety 28: the applied index and the blocks of `state/` are of one moment |
//!
//! `state/` has no WAL: what a kill leaves is what was flushed. Blocks of 100 KiB fill a write buffer four
//! times a second and a snapshot is due every few entries, so some table is being written at any moment.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::support::{
    bench::number,
    block::Block,
    chance::Chance,
    cluster::Cluster,
    config::settings,
    inspect::report,
    stream::Stream,
    wait::{SOON, pause, wait_for},
};

const SIZE: usize = 100 << 10;

fn block(height: u64) -> Block {
    Block::sized(height, "kept", SIZE)
}

/// Proposes blocks from a height on until the node is gone; the last height that was acknowledged.
struct Feeder {
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Feeder {
    fn start(api: &str, from: u64) -> Self {
        let acknowledged = Arc::new(AtomicU64::new(from - 1));
        let (api, done) = (api.to_owned(), Arc::clone(&acknowledged));
        let thread = thread::spawn(move || {
            let Ok(mut stream) = Stream::open(&api, None) else { return };
            let mut next = from;
            loop {
                // Two on their way: the disk is never idle. What breaks here is the node that was killed.
                while next < done.load(Ordering::Relaxed) + 3 {
                    if stream.send(&[block(next)]).is_err() {
                        return;
                    }
                    next += 1;
                }
                let Ok(Some(answer)) = stream.next() else { return };
                answer.acknowledged();
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { acknowledged, thread }
    }

    /// Of a node that was killed.
    fn end(self) -> u64 {
        self.thread.join().expect("no answer but acknowledgements");
        self.acknowledged.load(Ordering::Relaxed)
    }
}

#[test]
fn kills_between_flushes_leave_applied_index_and_blocks_of_one_moment() {
    // `make torture` asks for 300.
    let rounds = number("BLOCKRAFT_KILLS", 12);
    let mut cluster = Cluster::new(
        1,
        settings([
            ("snapshot.threshold", 7.into()),
            ("snapshot.trailing_logs", 200.into()),
            ("snapshot.min_interval", "1ms".into()),
            ("state.history_blocks", 300.into()),
        ]),
    );
    cluster.start();
    let mut chance = Chance::new();
    let mut top = 0;
    for round in 0..rounds {
        let at = format!("kill {round} of seed {}", chance.seed);
        let feeder = Feeder::start(&cluster.node(1).api, top + 1);
        wait_for("blocks are taken", SOON, || {
            let done = feeder.acknowledged.load(Ordering::Relaxed);
            ensure!(top < done, "{done}");
            Ok(())
        });
        pause(Duration::from_micros(chance.below(400_000)));
        cluster.node_mut(1).kill();
        let acknowledged = feeder.end();

        let (found, _) = report(&cluster.node(1).data_dir, &[]);
        // A write that was cut short is told, and refuses no start.
        let refusals: Vec<_> =
            found["problems"].as_array().expect("a list").iter().filter(|p| p["refuses"] != false).collect();
        assert!(refusals.is_empty(), "{at}: {found:#}");
        let applied = found["state"]["appliedIndex"].as_u64().expect("an index");
        let head = found["state"]["head"]["height"].as_u64().unwrap_or(0);

        cluster.node_mut(1).start();
        cluster.leader();
        top = cluster.height(1);
        assert!(acknowledged <= top, "{at}: block {acknowledged} was acknowledged, {top} is the head");
        // What the state held when it was killed is what the log up to its applied index makes of it.
        for (height, row) in (head.max(1)..=head + 1).zip(rows(&cluster, head.max(1), (head + 1).min(top))) {
            block(height).assert_json(&row["block"]);
            let index = row["index"].as_u64().expect("an index");
            assert_eq!(
                height <= head,
                index <= applied,
                "{at}: block {height} has index {index}; the state held blocks up to {head}, applied {applied}"
            );
        }
        let oldest = top.saturating_sub(20).max(1);
        for (height, row) in (oldest..).zip(rows(&cluster, oldest, top)) {
            block(height).assert_json(&row["block"]);
        }
    }
    cluster.end();
}

fn rows(cluster: &Cluster, from: u64, to: u64) -> Vec<Value> {
    if to < from {
        return Vec::new();
    }
    let rows =
        cluster.node(1).range(from, to).with_context(|| format!("{from} to {to}")).expect("it answers");
    assert_eq!(rows.len() as u64, to - from + 1, "blocks {from} to {to}");
    rows
}
