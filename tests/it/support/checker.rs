//! Compares what producers were told with what the nodes hold.
//!
//! - Promise 1: no acknowledged block is missing, on any node.
//! - Promise 2: one hash per height, everywhere, with one term and index; a refused block is not there.
//! - Promise 3: under one fence one node acknowledged, and one term has one proposer.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::{
    NodeId,
    block::Answer,
    cluster::Cluster,
    rpc::call_on,
    wait::LATER,
    writer::{Attempt, History},
};

/// Heights whose provenance is compared on all nodes.
const SAMPLE: usize = 40;

/// A block as a node holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    hash: String,
    term: u64,
    index: u64,
}

/// Panics on the first broken promise. Returns how many heights there are.
#[track_caller]
pub(crate) fn check(cluster: &mut Cluster, history: &History) -> usize {
    let statuses = cluster.settled_within(LATER);
    let top = statuses.first().and_then(|s| s["head"]["height"].as_u64()).unwrap_or(0);
    let attempts = history.attempts();
    let bottom = attempts.iter().map(|a| a.height).min().unwrap_or(1);
    let running = cluster.running();
    let held: BTreeMap<NodeId, BTreeMap<u64, Held>> =
        running.iter().map(|id| (*id, read(cluster, *id, bottom, top))).collect();
    let first = held.values().next().expect("a node runs");
    for (id, blocks) in &held {
        for (height, block) in blocks {
            assert_eq!(first.get(height), Some(block), "promise 2: node {id} at height {height}");
        }
        assert_eq!(
            blocks.len(),
            first.len(),
            "node {id} holds more or fewer blocks than node {}",
            running[0]
        );
    }
    check_order(first);
    check_acknowledged(&attempts, first);
    check_refused(&attempts, first);
    check_fences(&attempts);
    check_provenance(cluster, &running, first);
    first.len()
}

fn read(cluster: &Cluster, id: NodeId, from: u64, to: u64) -> BTreeMap<u64, Held> {
    let rows = cluster.node(id).range(from, to).expect("a node that runs answers");
    let mut held = BTreeMap::new();
    for row in rows {
        let height = row["block"]["height"].as_u64().expect("a block has a height");
        let block = Held {
            hash: row["block"]["hash"].as_str().expect("a block has a hash").to_owned(),
            term: row["term"].as_u64().expect("a block has a term"),
            index: row["index"].as_u64().expect("a block has an index"),
        };
        assert!(held.insert(height, block).is_none(), "node {id} answers height {height} twice");
    }
    held
}

/// Heights have no holes, and rise with term and index.
fn check_order(blocks: &BTreeMap<u64, Held>) {
    for ((height, block), (next_height, next)) in blocks.iter().zip(blocks.iter().skip(1)) {
        assert_eq!(height + 1, *next_height, "a hole in the chain");
        assert!(
            block.term <= next.term && block.index < next.index,
            "height {height} is at {}/{}, the next at {}/{}",
            block.term,
            block.index,
            next.term,
            next.index
        );
    }
}

fn check_acknowledged(attempts: &[Attempt], blocks: &BTreeMap<u64, Held>) {
    for a in attempts {
        if let Answer::Acknowledged { term, index, .. } = a.answer {
            let want = Held { hash: a.hash.clone(), term, index };
            let there = blocks.get(&a.height);
            assert_eq!(there, Some(&want), "promise 1: node {} acknowledged height {}", a.node, a.height);
        }
    }
}

/// Every attempt at a block was refused: then it did not happen.
fn check_refused(attempts: &[Attempt], blocks: &BTreeMap<u64, Held>) {
    let is_refused = |a: &&Attempt| matches!(a.answer, Answer::Refused { .. });
    let possible: BTreeSet<_> =
        attempts.iter().filter(|a| !is_refused(a)).map(|a| (a.height, a.hash.as_str())).collect();
    for a in attempts.iter().filter(is_refused) {
        if !possible.contains(&(a.height, a.hash.as_str()))
            && let Some(block) = blocks.get(&a.height)
        {
            assert_ne!(block.hash, a.hash, "refused and there: {a:?}");
        }
    }
}

fn check_fences(attempts: &[Attempt]) {
    let mut holders: BTreeMap<u64, NodeId> = BTreeMap::new();
    for a in attempts.iter().filter(|a| matches!(a.answer, Answer::Acknowledged { .. })) {
        let holder = *holders.entry(a.fence).or_insert(a.node);
        assert_eq!(holder, a.node, "promise 3: two nodes acknowledged under fence {}", a.fence);
    }
}

fn check_provenance(cluster: &Cluster, running: &[NodeId], blocks: &BTreeMap<u64, Held>) {
    let mut conns: Vec<_> = running.iter().map(|id| cluster.node(*id).connect()).collect();
    let mut proposers: BTreeMap<u64, Value> = BTreeMap::new();
    for (height, block) in blocks.iter().step_by((blocks.len() / SAMPLE).max(1)) {
        let params = json!({"height": height});
        let rows: Vec<Value> = conns
            .iter_mut()
            .map(|conn| {
                let p = call_on(conn, "block_provenance", &params).expect("a kept block has a provenance");
                json!([
                    p["height"],
                    p["hash"],
                    p["term"],
                    p["index"],
                    p["proposerId"],
                    p["proposedAt"],
                    p["traceId"]
                ])
            })
            .collect();
        assert!(rows.iter().all(|row| *row == rows[0]), "provenance of height {height} differs: {rows:?}");
        let want = json!([height, block.hash, block.term, block.index]);
        assert_eq!(rows[0].as_array().map(|r| &r[..4]), want.as_array().map(Vec::as_slice), "provenance");
        let proposer = proposers.entry(block.term).or_insert_with(|| rows[0][4].clone());
        assert_eq!(*proposer, rows[0][4], "promise 3: two proposers in term {}", block.term);
    }
}
