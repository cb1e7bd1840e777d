//! A log and a state machine in memory, enough for openraft to run on.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    ops::RangeBounds,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::{
    EntryPayload, LogState, RaftLogReader, RaftSnapshotBuilder,
    storage::{EntryResponder, IOFlushed, RaftLogStorage, RaftStateMachine, Snapshot},
    type_config::alias::SnapshotOf,
};

use crate::machine::Outcome;
use crate::raft::{
    Entry, LogId, SnapshotData, SnapshotMeta, StoredMembership, TypeConfig, Vote,
    convert::{log_id_from_proto, log_id_to_proto, stored_membership_from_proto, stored_membership_to_proto},
};
use crate::types::{LogIndex, proto};

#[derive(Default)]
struct LogInner {
    vote: Option<Vote>,
    entries: BTreeMap<LogIndex, Entry>,
    purged: Option<LogId>,
    /// While set, appended entries wait here for their sync.
    hung: Option<Vec<IOFlushed<TypeConfig>>>,
}

/// A log. Clones are the same log.
#[derive(Clone, Default)]
pub(super) struct MemLog {
    inner: Arc<Mutex<LogInner>>,
}

impl MemLog {
    fn lock(&self) -> MutexGuard<'_, LogInner> {
        self.inner.lock().unwrap()
    }

    /// Syncs hang from here on.
    pub(super) fn hang(&self) {
        self.lock().hung = Some(Vec::new());
    }

    pub(super) fn recover(&self) {
        let hung = self.lock().hung.take();
        for callback in hung.into_iter().flatten() {
            callback.io_completed(Ok(()));
        }
    }
}

impl RaftLogReader<TypeConfig> for MemLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        Ok(self.lock().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for MemLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let inner = self.lock();
        let last = inner.entries.values().next_back().map(|entry| entry.log_id).or(inner.purged);
        Ok(LogState { last_purged_log_id: inner.purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.lock().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut inner = self.lock();
        for entry in entries {
            inner.entries.insert(entry.log_id.index(), entry);
        }
        match &mut inner.hung {
            Some(hung) => hung.push(callback),
            None => {
                drop(inner);
                callback.io_completed(Ok(()));
            }
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |id| id.index() + 1);
        self.lock().entries.split_off(&from);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let mut inner = self.lock();
        inner.purged = Some(upto);
        inner.entries = inner.entries.split_off(&(upto.index() + 1));
        Ok(())
    }
}

#[derive(Default, Clone)]
pub(super) struct MemState {
    pub(super) applied: Option<LogId>,
    pub(super) membership: StoredMembership,
    /// Payloads of the commands, in the order applied.
    pub(super) payloads: Vec<Bytes>,
    snapshot: Option<SnapshotData>,
    n_snapshots: u64,
}

/// A state machine that remembers what it was given. Clones are the same one.
#[derive(Clone)]
pub(super) struct MemMachine {
    pub(super) state: Arc<Mutex<MemState>>,
    dir: PathBuf,
    cluster_id: String,
}

impl MemMachine {
    pub(super) fn new(dir: PathBuf, cluster_id: &str) -> Self {
        Self { state: Arc::default(), dir, cluster_id: cluster_id.into() }
    }

    pub(super) fn state(&self) -> MemState {
        self.state.lock().unwrap().clone()
    }
}

impl RaftStateMachine<TypeConfig> for MemMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let state = self.state();
        Ok((state.applied, state.membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut state = self.state.lock().unwrap();
            state.applied = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(command) => state.payloads.push(command.payload),
                EntryPayload::Membership(membership) => {
                    state.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
            drop(state);
            if let Some(responder) = responder {
                responder.send(Outcome::Nothing);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let data = std::fs::read(snapshot.dir.join("payloads"))?;
        let mut state = self.state.lock().unwrap();
        state.applied = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.payloads = split(&data);
        state.snapshot = Some(snapshot);
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, SnapshotData>>, io::Error> {
        Ok(self.state().snapshot.map(with_meta))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for MemMachine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotData>, io::Error> {
        let mut state = self.state.lock().unwrap();
        state.n_snapshots += 1;
        let id = format!("built-{}", state.n_snapshots);
        let dir = self.dir.join(&id);
        std::fs::create_dir_all(&dir)?;
        let data = join(&state.payloads);
        std::fs::write(dir.join("payloads"), &data)?;
        let snapshot = SnapshotData {
            manifest: proto::SnapshotManifest {
                format_version: 1,
                id,
                cluster_id: self.cluster_id.clone(),
                last_log_id: state.applied.as_ref().map(log_id_to_proto),
                membership: Some(stored_membership_to_proto(&state.membership)),
                files: vec![file_of("payloads", &data)],
                ..Default::default()
            },
            dir,
            _pin: Arc::new(()),
        };
        state.snapshot = Some(snapshot.clone());
        Ok(with_meta(snapshot))
    }
}

pub(super) fn file_of(name: &str, data: &[u8]) -> proto::SnapshotFile {
    proto::SnapshotFile {
        name: name.into(),
        size_bytes: data.len() as u64,
        checksum: Bytes::copy_from_slice(blake3::hash(data).as_bytes()),
    }
}

fn with_meta(snapshot: SnapshotData) -> SnapshotOf<TypeConfig, SnapshotData> {
    let meta = SnapshotMeta {
        last_log_id: snapshot.manifest.last_log_id.as_ref().map(log_id_from_proto),
        last_membership: snapshot
            .manifest
            .membership
            .as_ref()
            .map(|membership| stored_membership_from_proto(membership).unwrap())
            .unwrap_or_default(),
    };
    Snapshot { meta, snapshot }
}

fn join(payloads: &[Bytes]) -> Vec<u8> {
    let mut data = Vec::new();
    for payload in payloads {
        data.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        data.extend_from_slice(payload);
    }
    data
}

fn split(mut data: &[u8]) -> Vec<Bytes> {
    let mut payloads = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<4>() {
        let (payload, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        payloads.push(Bytes::copy_from_slice(payload));
        data = rest;
    }
    payloads
}
