//! The log against a map, at random, with restarts.

use std::collections::BTreeMap;

use openraft::storage::{RaftLogReader, RaftLogStorage};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::raft::{Entry, log_id_of};
use crate::store::tests::support::{
    append, block, build_snapshot, close, commit, folder, open, pos, proposed, submit, vote,
};
use crate::types::position::LogPos;

#[derive(Debug, Clone)]
enum Step {
    /// Entries, their payload size, and whether to wait for the sync.
    Append {
        n: u64,
        bytes: usize,
        is_awaited: bool,
    },
    /// Keep so many of the entries that are not purged and not applied.
    Truncate {
        keep: u64,
    },
    /// Purge so many, and never what no snapshot holds.
    Purge {
        n: u64,
    },
    Vote,
    Read {
        from: u64,
        n: u64,
    },
    /// What is in memory goes to tables, and large entries beside them.
    Flush,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..40u64, 0..300_000usize, any::<bool>())
            .prop_map(|(n, bytes, is_awaited)| Step::Append { n, bytes: bytes / n as usize, is_awaited }),
        2 => (0..50u64).prop_map(|keep| Step::Truncate { keep }),
        2 => (1..60u64).prop_map(|n| Step::Purge { n }),
        1 => Just(Step::Vote),
        3 => (0..100u64, 0..100u64).prop_map(|(from, n)| Step::Read { from, n }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ]
}

/// What the log should hold.
#[derive(Default)]
struct Model {
    entries: BTreeMap<u64, (u64, String)>,
    purged: Option<LogPos>,
    term: u64,
}

impl Model {
    fn next(&self) -> u64 {
        self.entries.keys().next_back().map_or(self.purged.map_or(0, |p| p.index + 1), |i| i + 1)
    }

    fn insert(&mut self, entry: &Entry) {
        let term = entry.log_id.committed_leader_id().term;
        self.entries.insert(entry.log_id.index, (term, format!("{entry:?}")));
    }
}

async fn run(steps: Vec<Step>) {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    let mut model = Model { term: 1, ..Model::default() };
    // One applied entry and its snapshot, so that purges have something to lean on.
    let first = proposed(1, 0, block(1, 10));
    commit(&mut opened, vec![first.clone()]).await;
    model.insert(&first);
    for step in steps {
        match step {
            Step::Append { n, bytes, is_awaited } => {
                let start = model.next();
                let entries: Vec<Entry> =
                    (start..start + n).map(|i| proposed(model.term, i, block(i + 1, bytes))).collect();
                entries.iter().for_each(|e| model.insert(e));
                match is_awaited {
                    true => append(&mut opened.log, entries).await,
                    false => drop(submit(&mut opened.log, entries).await),
                }
            }
            Step::Truncate { keep } => {
                let Some(after) = model.entries.keys().copied().nth(keep as usize) else { continue };
                if after == 0 {
                    continue;
                }
                let term = model.entries[&after].0;
                model.entries.retain(|i, _| *i <= after);
                opened.log.truncate_after(Some(log_id_of(pos(term, after)))).await.unwrap();
                // What comes next is another leader's.
                model.term += 1;
                opened.log.save_vote(&vote(model.term, true)).await.unwrap();
            }
            Step::Purge { n } => {
                // A restart wants a snapshot that reaches what was purged: index 0 alone has one here.
                let _ = n;
                if model.purged.is_none() {
                    build_snapshot(&mut opened).await;
                    opened.log.purge(log_id_of(pos(1, 0))).await.unwrap();
                    model.purged = Some(pos(1, 0));
                    model.entries.remove(&0);
                }
            }
            Step::Vote => {
                model.term += 1;
                opened.log.save_vote(&vote(model.term, true)).await.unwrap();
            }
            Step::Read { from, n } => {
                let read = opened.log.try_get_log_entries(from..from + n).await.unwrap();
                let expected: Vec<_> =
                    model.entries.range(from..from + n).map(|(_, (_, e))| e.clone()).collect();
                assert_eq!(read.iter().map(|e| format!("{e:?}")).collect::<Vec<_>>(), expected);
            }
            Step::Flush => opened.log.shared.db().unwrap().flush().unwrap(),
            Step::Reopen => {
                close(opened);
                opened = open(&dir);
            }
        }
        check(&mut opened.log, &model).await;
    }
    close(opened);
}

async fn check(log: &mut crate::store::LogStore, model: &Model) {
    let state = log.get_log_state().await.unwrap();
    let last = model.entries.iter().next_back().map(|(i, (t, _))| pos(*t, *i)).or(model.purged);
    assert_eq!(state.last_log_id, last.map(log_id_of));
    assert_eq!(state.last_purged_log_id, model.purged.map(log_id_of));
    let stats = log.shared.stats();
    assert_eq!(stats.entries, model.entries.len() as u64);
    let read = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(read.len(), model.entries.len());
    for (entry, (index, (_, text))) in read.iter().zip(&model.entries) {
        assert_eq!((entry.log_id.index, &format!("{entry:?}")), (*index, text));
    }
}

#[test]
fn the_log_is_a_map() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = Config { cases: 12, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&prop::collection::vec(step(), 1..60), |steps| {
            runtime.block_on(run(steps));
            Ok(())
        })
        .unwrap();
}
