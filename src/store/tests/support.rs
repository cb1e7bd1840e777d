//! A store in a temporary folder, and short names for what is done to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::{IOFlushed, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::TypeConfigExt;
use openraft::{EntryPayload, Membership};
use prometheus::Registry;
use tempfile::TempDir;

use crate::instants::Instants;
use crate::machine::Command;
use crate::raft::{Entry, NodeRecord, TypeConfig, Vote, convert, log_id_of};
use crate::store::codec::Edge;
use crate::store::log::open::{log_dir, watermark_path};
use crate::store::log::wal;
use crate::store::watermark::{Found, Mark, Slots};
use crate::store::{self, Config, LogStore, OpenError, Opened, StateMachine, Who};
use crate::types::block::Block;
use crate::types::{Height, LogIndex, Term, position::LogPos, proto};

pub(super) fn who() -> Who {
    Who { cluster_id: "c".into(), node_id: 1 }
}

pub(super) fn open_as(data_dir: &Path, who: &Who) -> Result<Opened, OpenError> {
    open_with(data_dir, who, &Registry::new())
}

pub(super) fn open_with(data_dir: &Path, who: &Who, registry: &Registry) -> Result<Opened, OpenError> {
    let instants = Arc::new(Instants::new(registry).expect("a fresh registry takes everything"));
    let config = Config { data_dir: data_dir.to_owned(), min_free: 0, snapshot_retain: 3 };
    store::open(&config, who, registry, instants)
}

pub(super) fn open(data_dir: &Path) -> Opened {
    open_as(data_dir, &who()).expect("the folder is fine")
}

/// Why a folder is refused.
pub(super) fn refusal(data_dir: &Path) -> OpenError {
    match open_as(data_dir, &who()) {
        Ok(_) => panic!("{} was opened", data_dir.display()),
        Err(e) => e,
    }
}

/// A folder of its own for one test.
pub(super) fn folder() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("data");
    (dir, path)
}

/// What a kill at this moment would leave: the files as they are.
pub(super) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    let Ok(entries) = fs::read_dir(from) else { return };
    for entry in entries {
        let source = entry.expect("an entry").path();
        let target = to.join(source.file_name().expect("a name"));
        if source.is_dir() {
            copy_dir(&source, &target);
        } else {
            match fs::copy(&source, &target) {
                // A replaced state is on its way out.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                other => assert!(other.is_ok(), "{other:?}"),
            }
        }
    }
}

pub(super) fn newest_wal(dir: &Path) -> PathBuf {
    wal::wals(&log_dir(dir)).unwrap().pop().expect("there is a log").1
}

/// Sets the watermark back: nobody was told of what lies behind.
pub(super) fn untell(dir: &Path, last: Option<Edge>) {
    let Found::Mark(mut slots, mark) = Slots::open(&watermark_path(dir)).unwrap() else { panic!("a mark") };
    slots.write(&Mark { last, ..mark }).unwrap();
}

/// The only file of a folder with an extension.
pub(super) fn file_with(dir: &Path, extension: &str) -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .expect("a folder")
        .map(|e| e.expect("an entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == extension))
        .filter(|p| 0 < fs::metadata(p).expect("a file").len())
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

pub(super) fn pos(term: Term, index: LogIndex) -> LogPos {
    LogPos { term, index }
}

pub(super) fn blank(term: Term, index: LogIndex) -> Entry {
    Entry { log_id: log_id_of(pos(term, index)), payload: EntryPayload::Blank }
}

pub(crate) fn command(term: Term, index: LogIndex, command: Command) -> Entry {
    Entry { log_id: log_id_of(pos(term, index)), payload: EntryPayload::Normal(command) }
}

pub(crate) fn membership(term: Term, index: LogIndex, voters: &[u64]) -> Entry {
    let nodes = voters.iter().map(|id| (*id, NodeRecord { name: format!("n{id}"), ..NodeRecord::default() }));
    let nodes: std::collections::BTreeMap<_, _> = nodes.collect();
    let membership =
        Membership::new(vec![voters.iter().copied().collect()], nodes).expect("every voter has a node");
    Entry { log_id: log_id_of(pos(term, index)), payload: EntryPayload::Membership(membership) }
}

pub(crate) fn block(height: Height, data_bytes: usize) -> Block {
    Block {
        height,
        hash: Bytes::from(format!("hash of {height:08}")),
        timestamp: 1_000 * height,
        header: Bytes::from_static(b"header"),
        data: Bytes::from(vec![height as u8; data_bytes]),
        ..Block::default()
    }
}

/// A block at an index, proposed by the leader of the term.
pub(crate) fn proposed(term: Term, index: LogIndex, block: Block) -> Entry {
    command(term, index, Command::block(block, term, 1, 77, None))
}

pub(super) fn configured(term: Term, index: LogIndex, history_blocks: u64) -> Entry {
    let settings = crate::types::settings::ClusterSettings { history_blocks, ..Default::default() };
    let settings = Some(crate::machine::apply::settings_to_proto(&settings));
    command(term, index, Command::configure(&proto::ConfigureCommand { settings, expected_index: 0 }))
}

pub(super) fn vote(term: Term, is_committed: bool) -> Vote {
    convert::vote_from_proto(&proto::Vote { term, node_id: 1, committed: is_committed })
}

/// Appends and waits until it is durable.
pub(super) async fn append(log: &mut LogStore, entries: Vec<Entry>) {
    submit(log, entries).await.await.expect("the callback is called").expect("the sync succeeds");
}

/// Completes when an append is durable, or failed.
pub(super) type Durable = openraft::type_config::alias::OneshotReceiverOf<TypeConfig, std::io::Result<()>>;

/// Appends; what it answers says when it is durable.
pub(super) async fn submit(log: &mut LogStore, entries: Vec<Entry>) -> Durable {
    let (tx, rx) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(tx)).await.expect("appending never fails");
    rx
}

pub(super) async fn apply(machine: &mut StateMachine, entries: Vec<Entry>) {
    let items = entries.into_iter().map(|e| Ok((e, None)));
    machine.apply(futures::stream::iter(items)).await.expect("applying never fails");
}

impl LogStore {
    pub(super) async fn try_read(mut self, start: LogIndex, end: LogIndex) -> Vec<Entry> {
        use openraft::storage::RaftLogReader;
        self.try_get_log_entries(start..end).await.expect("the log is whole")
    }
}

/// What a node leaves that is killed before it applies what it knows to be committed.
pub(crate) async fn leave_unapplied(data_dir: &Path, entries: Vec<Entry>) {
    let mut opened = open(data_dir);
    let last = entries.last().expect("one at least").log_id;
    opened.log.save_vote(&vote(last.committed_leader_id().term, true)).await.expect("the sync succeeds");
    append(&mut opened.log, entries).await;
    opened.log.save_committed(Some(last)).await.expect("it only rides along");
    close(opened);
}

/// Appends, says that they are committed, and applies.
pub(super) async fn commit(opened: &mut Opened, entries: Vec<Entry>) {
    let last = entries.last().expect("one at least").log_id;
    append(&mut opened.log, entries.clone()).await;
    opened.log.save_committed(Some(last)).await.expect("it only rides along");
    apply(&mut opened.machine, entries).await;
}

/// As [`proposed`], for a range of indexes; the height of a block is its index.
pub(super) fn blocks(
    term: Term,
    indexes: std::ops::RangeInclusive<LogIndex>,
    data_bytes: usize,
) -> Vec<Entry> {
    indexes.map(|i| proposed(term, i, block(i, data_bytes))).collect()
}

/// Gives every handle back.
pub(super) fn close(opened: Opened) {
    let Opened { log, machine, reader, local, snapshots, closer, .. } = opened;
    drop((log, machine, reader, local, snapshots));
    closer.close();
}

/// A snapshot of what was applied.
pub(super) async fn build_snapshot(opened: &mut Opened) -> crate::raft::SnapshotData {
    let mut builder = opened.machine.try_create_snapshot_builder(false).await.expect("always one");
    builder.build_snapshot().await.expect("never an error").snapshot
}
