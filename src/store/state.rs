//! The replicated state on disk.
//!
//! openraft drives [`StateMachine`], which owns the machine and writes one batch per apply call:
//! rows, membership and the applied position together, without a WAL of its own, since the raft log
//! is one. What it published last is read through [`Shared`]. Knows nothing of how entries got here.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwapOption;
use openraft::storage::{EntryResponder, RaftStateMachine};
use tokio::sync::watch;

use crate::instants::Instants;
use crate::machine::apply::{Machine, View};
use crate::raft::{LogId, SnapshotData, SnapshotMeta, StoredMembership, TypeConfig, log_id_of};
use crate::store::health::{Fatal, Health};
use crate::store::log;
use crate::store::metrics::Metrics;
use crate::store::rocks;
use crate::store::snapshot::Snapshots;
use crate::store::snapshot::build::Builder;
use crate::store::state::db::{Loaded, StateDb};
use crate::store::state::recent::RecentBlocks;
use crate::store::tap::{Tap, Told};
use crate::types::{Height, LogIndex, Term, position::LogPos};

pub(crate) mod apply;
pub(crate) mod db;
pub(crate) mod install;
pub(crate) mod merge;
pub(crate) mod prune;
pub(crate) mod recent;
pub(crate) mod table;
mod told;

/// Blocks whose time of application is remembered: a little more than the default history.
const APPLIED_AT_MAX: usize = 16_384;
/// Hashes that others are compared with. By eye: at 5 000 entries/s those of six seconds.
const HASH_MARKS_MAX: usize = 64;

type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// A state and what the machine knows of it; readers see both of one batch, never a mix.
pub(crate) struct Published {
    pub(crate) db: Arc<StateDb>,
    pub(crate) view: Arc<View>,
}

/// What readers share with the state machine.
pub(crate) struct Shared {
    /// Emptied at close, so that the database is dropped whoever still holds a handle.
    published: ArcSwapOption<Published>,
    view: watch::Sender<Arc<View>>,
    /// Term of the newest leadership.
    leadership: watch::Sender<Term>,
    /// Height and Unix milliseconds of the blocks that this process applied, heights rising.
    /// Guards a push per block; read by provenance alone.
    applied_at: Mutex<VecDeque<(Height, u64)>>,
    /// Guards a push per block; read by those who follow the head.
    recent: Mutex<RecentBlocks>,
    /// Hashes of the state at indexes divisible by 500, oldest first. Guards a look per batch; read
    /// when nodes are compared.
    hash_marks: Mutex<VecDeque<(LogIndex, [u8; 32])>>,
    /// Entries up to it came with the state, or were applied before this process began: none of them happened here
    /// and now. Never falls.
    history_upto: AtomicU64,
}

/// The state machine, as openraft sees it.
pub(crate) struct StateMachine {
    pub(crate) shared: Arc<Shared>,
    log: Arc<log::Shared>,
    snapshots: Snapshots,
    rocks: rocks::Shared,
    data_dir: PathBuf,
    health: Health,
    metrics: Arc<Metrics>,
    instants: Arc<Instants>,
    db: Arc<StateDb>,
    machine: Machine,
    applied: Option<LogPos>,
    membership: StoredMembership,
    floor: Height,
    pruner: prune::Pruner,
    /// Entries up to it were committed before this process began: they are replayed, not counted.
    replay_upto: LogIndex,
    /// Told after every batch. Set before raft runs.
    tap: Option<Arc<dyn Tap>>,
}

/// What a state machine is made of.
pub(crate) struct Parts {
    pub(crate) log: Arc<log::Shared>,
    pub(crate) snapshots: Snapshots,
    pub(crate) rocks: rocks::Shared,
    pub(crate) data_dir: PathBuf,
    pub(crate) health: Health,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) instants: Arc<Instants>,
    pub(crate) replay_upto: LogIndex,
}

impl Shared {
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Changes with every leadership: the term of the newest one.
    pub(crate) fn watch_leadership(&self) -> watch::Receiver<Term> {
        self.leadership.subscribe()
    }

    /// Of what is read of the view, entries up to it did not happen in this process' time. Asked after the view, it
    /// is no older.
    pub(crate) fn history_upto(&self) -> LogIndex {
        self.history_upto.load(Ordering::Acquire)
    }

    /// `None` once the store is closed.
    pub(crate) fn published(&self) -> Option<Arc<Published>> {
        self.published.load_full()
    }

    pub(crate) fn close_db(&self) {
        self.published.store(None);
    }

    fn publish(&self, db: &Arc<StateDb>, view: Arc<View>) {
        self.note_hash(&view);
        self.published.store(Some(Arc::new(Published { db: db.clone(), view: view.clone() })));
        let term = view.leadership.as_ref().map_or(0, |l| l.pos.term);
        self.view.send_replace(view);
        self.leadership.send_if_modified(|known| std::mem::replace(known, term) != term);
    }

    fn note_hash(&self, view: &View) {
        let Some(mark) = view.hash_mark else { return };
        let mut marks = self.hash_marks.lock().unwrap_or_else(|p| p.into_inner());
        match marks.back() {
            Some(last) if *last == mark => return,
            // The state became another one.
            Some((index, _)) if mark.0 <= *index => marks.clear(),
            _ => {}
        }
        if marks.len() == HASH_MARKS_MAX {
            marks.pop_front();
        }
        marks.push_back(mark);
    }

    pub(crate) fn hash_marks(&self) -> Vec<(LogIndex, [u8; 32])> {
        self.hash_marks.lock().unwrap_or_else(|p| p.into_inner()).iter().copied().collect()
    }

    fn applied_times(&self) -> MutexGuard<'_, VecDeque<(Height, u64)>> {
        self.applied_at.lock().unwrap_or_else(|p| p.into_inner())
    }

    pub(crate) fn recent(&self) -> MutexGuard<'_, RecentBlocks> {
        self.recent.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn remember_applied(&self, height: Height, unix_ms: u64) {
        let mut times = self.applied_times();
        if times.len() == APPLIED_AT_MAX {
            times.pop_front();
        }
        times.push_back((height, unix_ms));
    }

    /// When this process applied the block at a height.
    pub(crate) fn applied_at(&self, height: Height) -> Option<u64> {
        let times = self.applied_times();
        let at = times.binary_search_by_key(&height, |(h, _)| *h).ok()?;
        Some(times[at].1)
    }
}

impl StateMachine {
    pub(crate) fn new(db: StateDb, loaded: Loaded, parts: Parts) -> Self {
        let db = Arc::new(db);
        let view = Arc::new(loaded.machine.view().clone());
        let shared = Arc::new(Shared {
            published: ArcSwapOption::empty(),
            view: watch::Sender::new(view.clone()),
            leadership: watch::Sender::new(0),
            applied_at: Mutex::new(VecDeque::new()),
            recent: Mutex::default(),
            hash_marks: Mutex::default(),
            history_upto: AtomicU64::new(view.applied.index.max(parts.replay_upto)),
        });
        shared.publish(&db, view);
        let machine = Self {
            shared,
            log: parts.log,
            snapshots: parts.snapshots,
            rocks: parts.rocks,
            data_dir: parts.data_dir,
            health: parts.health,
            metrics: parts.metrics,
            instants: parts.instants,
            db,
            machine: loaded.machine,
            applied: loaded.applied,
            membership: loaded.membership,
            pruner: prune::Pruner::new(loaded.floor),
            floor: loaded.floor,
            replay_upto: parts.replay_upto,
            tap: None,
        };
        machine.show_blocks();
        machine
    }

    /// From here on the tap is told of every batch.
    pub(crate) fn set_tap(&mut self, tap: Arc<dyn Tap>) {
        self.tap = Some(tap);
    }

    /// How far the log was applied.
    fn told(&self) -> Told {
        let view = self.machine.view();
        Told { index: view.applied.index, height: view.head.as_ref().map(|h| h.height) }
    }

    /// Says why the node ends, and waits for that: an error would end openraft's core first.
    async fn stand_still<T>(&self, fatal: Fatal) -> T {
        self.health.set_fatal(fatal);
        std::future::pending().await
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied.map(log_id_of), self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: futures::Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        self.apply_all(entries).await
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Builder> {
        Some(self.get_snapshot_builder().await)
    }

    /// Between two applies.
    async fn get_snapshot_builder(&mut self) -> Builder {
        let applied = self.applied.map(log_id_of);
        Builder::begin(self.snapshots.clone(), self.db.clone(), applied, self.shared.view.subscribe()).await
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        self.install(meta, snapshot).await;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.snapshots.current())
    }
}
