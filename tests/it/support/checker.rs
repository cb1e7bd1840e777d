//! Compares what producers were told with what the nodes hold.
//!
//! - Promise 1: no acknowledged block is missing, on any node.
//! - Promise 2: one hash per height, everywhere, with one term and index; a refused block is not there.
//! - Promise 3: under one fence one node acknowledged, and one term has one proposer.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
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

/// What each node holds, by height.
type Holdings = BTreeMap<NodeId, BTreeMap<u64, Held>>;

/// Panics on the first broken promise. Returns how many heights there are.
#[track_caller]
pub(crate) fn check(cluster: &mut Cluster, history: &History) -> usize {
    let statuses = cluster.settled_within(LATER);
    let top = statuses.first().and_then(|s| s["head"]["height"].as_u64()).unwrap_or(0);
    let attempts = history.attempts();
    let bottom = attempts.iter().map(|a| a.height).min().unwrap_or(1);
    let running = cluster.running();
    let holdings: Holdings = running.iter().map(|id| (*id, read(cluster, *id, bottom, top))).collect();
    if let Err(broken) = judge(&attempts, &holdings) {
        panic!("{broken:#}");
    }
    let first = holdings.values().next().expect("a node runs");
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

/// The first broken promise.
fn judge(attempts: &[Attempt], holdings: &Holdings) -> anyhow::Result<()> {
    let (first_id, first) = holdings.first_key_value().context("no node runs")?;
    for (id, blocks) in holdings {
        for (height, block) in blocks {
            let other = first.get(height);
            ensure!(
                other == Some(block),
                "promise 2: height {height} is {block:?} on node {id}, {other:?} on {first_id}"
            );
        }
        ensure!(blocks.len() == first.len(), "node {id} holds fewer blocks than node {first_id}");
    }
    check_order(first)?;
    check_acknowledged(attempts, first)?;
    check_refused(attempts, first)?;
    check_fences(attempts)
}

/// Heights have no holes, and rise with term and index.
fn check_order(blocks: &BTreeMap<u64, Held>) -> anyhow::Result<()> {
    for ((height, block), (next_height, next)) in blocks.iter().zip(blocks.iter().skip(1)) {
        ensure!(height + 1 == *next_height, "a hole between heights {height} and {next_height}");
        let is_behind = block.term <= next.term && block.index < next.index;
        ensure!(is_behind, "height {height} is {block:?}, the next is {next:?}");
    }
    Ok(())
}

fn check_acknowledged(attempts: &[Attempt], blocks: &BTreeMap<u64, Held>) -> anyhow::Result<()> {
    for a in attempts {
        if let Answer::Acknowledged { term, index, .. } = a.answer {
            let want = Held { hash: a.hash.clone(), term, index };
            let there = blocks.get(&a.height);
            ensure!(there == Some(&want), "promise 1: {a:?}, and there is {there:?}");
        }
    }
    Ok(())
}

/// Every attempt at a block was refused: then it did not happen.
fn check_refused(attempts: &[Attempt], blocks: &BTreeMap<u64, Held>) -> anyhow::Result<()> {
    let is_refused = |a: &&Attempt| matches!(a.answer, Answer::Refused { .. });
    let possible: BTreeSet<_> =
        attempts.iter().filter(|a| !is_refused(a)).map(|a| (a.height, a.hash.as_str())).collect();
    for a in attempts.iter().filter(is_refused) {
        let is_there = blocks.get(&a.height).is_some_and(|block| block.hash == a.hash);
        let is_explained = possible.contains(&(a.height, a.hash.as_str()));
        ensure!(!is_there || is_explained, "refused and there: {a:?}");
    }
    Ok(())
}

fn check_fences(attempts: &[Attempt]) -> anyhow::Result<()> {
    let mut holders: BTreeMap<u64, NodeId> = BTreeMap::new();
    for a in attempts {
        // A duplicate is a success whatever its fence, and whoever is asked.
        if let Answer::Acknowledged { is_duplicate: false, .. } = a.answer {
            let holder = *holders.entry(a.fence).or_insert(a.node);
            ensure!(holder == a.node, "promise 3: {a:?}, and node {holder} acknowledged under that fence");
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn held(height: u64, hash: &str, term: u64) -> (u64, Held) {
        (height, Held { hash: hash.to_owned(), term, index: height + 10 })
    }

    fn attempt(height: u64, hash: &str, answer: Answer) -> Attempt {
        Attempt { height, hash: hash.to_owned(), node: 1, fence: 1, answer }
    }

    fn acknowledged(height: u64, hash: &str, term: u64) -> Attempt {
        attempt(height, hash, Answer::Acknowledged { term, index: height + 10, is_duplicate: false })
    }

    fn refused(height: u64, hash: &str) -> Attempt {
        attempt(height, hash, Answer::Refused { error: None, why: "conflict".into() })
    }

    fn change(holdings: &mut Holdings, node: NodeId, block: (u64, Held)) {
        holdings.entry(node).or_default().extend([block]);
    }

    /// What is wrong with three nodes that all hold a, b, c, once `change` was made.
    fn verdict(change: impl Fn(&mut Vec<Attempt>, &mut Holdings)) -> Option<String> {
        let chain: BTreeMap<u64, Held> = [held(1, "a", 1), held(2, "b", 1), held(3, "c", 2)].into();
        let mut holdings: Holdings = (1..=3).map(|id| (id, chain.clone())).collect();
        let mut attempts = vec![acknowledged(1, "a", 1), acknowledged(2, "b", 1), refused(2, "x")];
        change(&mut attempts, &mut holdings);
        judge(&attempts, &holdings).err().map(|e| e.to_string())
    }

    /// A checker that never finds anything shows nothing.
    #[test]
    fn every_broken_promise_is_found() {
        assert_eq!(verdict(|_, _| {}), None);
        let found = |what: &str, change: &dyn Fn(&mut Vec<Attempt>, &mut Holdings)| {
            let verdict = verdict(change).unwrap_or_else(|| panic!("not found: {what}"));
            assert!(verdict.contains(what), "{what} is called {verdict}");
        };
        found("promise 1", &|attempts, _| attempts.push(acknowledged(4, "d", 2)));
        found("promise 1", &|attempts, _| attempts.push(acknowledged(3, "other", 2)));
        found("promise 1", &|attempts, _| attempts.push(acknowledged(3, "c", 1)));
        found("promise 2", &|_, held_by| change(held_by, 2, held(3, "other", 2)));
        found("promise 2", &|_, held_by| change(held_by, 3, held(4, "d", 2)));
        found("fewer", &|_, held_by| drop(held_by.get_mut(&3).map(|b| b.remove(&2))));
        found("refused and there", &|attempts, _| attempts.push(refused(3, "c")));
        found("promise 3", &|attempts, _| attempts.push(Attempt { node: 2, ..acknowledged(3, "c", 2) }));
        found("a hole", &|_, held_by| held_by.values_mut().for_each(|b| b.extend([held(9, "z", 2)])));
        found("the next is", &|_, held_by| held_by.values_mut().for_each(|b| b.extend([held(4, "d", 1)])));
        // Unknown first, then refused: it may be there.
        let explained = verdict(|attempts, _| {
            attempts.push(attempt(3, "c", Answer::Unknown("killed".into())));
            attempts.push(refused(3, "c"));
        });
        assert_eq!(explained, None);
    }
}
