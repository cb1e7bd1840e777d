//! Who subscribes, and what each of them is given of every batch.
//!
//! [`Hub`] implements the store's tap. Registering and joining happen under the lock under which a batch is
//! handed out, so there is one place in the log before which a subscription reads the store, and behind
//! which blocks are queued for it. A batch waits for nobody: both locks are held for a few stores.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use prometheus::Registry;
use tokio::sync::Notify;

use crate::feed::backlog::{Backlog, Next, Pushed};
use crate::feed::live::{self, Live};
use crate::feed::metrics::{Label, Metrics, Queues, Worst};
use crate::feed::room::{Outlet, Room};
use crate::feed::source::{Replaying, Source};
use crate::feed::subscription::Subscription;
use crate::feed::{Channel, Config};
use crate::instants::Instants;
use crate::store::reader::replay::Place;
use crate::store::tap::{Tap, Tapped, Told};
use crate::types::LogIndex;
use crate::types::feed::{Applied, BUFFER_MAX, EndReason, OnFull, StartAt, SubscribeError};

/// By eye: as many as `api.max_connections` by default.
const SUBSCRIBERS_MAX: usize = 1_000;
/// Blocks and bytes that one read takes, but for one block. A reader that stands still holds no page but within
/// its connection's turn: [`room`](crate::feed::room) bounds those of all.
const READ_BLOCKS: usize = 256;
pub(super) const READ_BYTES: u64 = 256 << 10;

/// What a subscriber asks for.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) start: StartAt,
    /// Blocks, 1 to [`BUFFER_MAX`]; `None`: `feed.buffer`.
    pub(crate) buffer: Option<usize>,
    pub(crate) on_full: OnFull,
    pub(crate) channel: Channel,
    /// One of `feed.watched` gets series of its own.
    pub(crate) name: Option<String>,
    /// A beginning below the kept history is told as a gap, not refused.
    pub(crate) may_be_pruned: bool,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Hub {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    config: Config,
    source: Arc<dyn Source>,
    instants: Arc<Instants>,
    pub(super) metrics: Metrics,
    room: Arc<Room>,
    /// Guards who is there and how far the log was told, which must not move apart. A task would have to
    /// be waited for by apply.
    state: Mutex<State>,
}

struct State {
    told: Told,
    slots: BTreeMap<u64, Arc<Slot>>,
    next_id: u64,
    /// Somebody was counted for the batch that is told next: what becomes of its blocks is waited for.
    is_awaited: bool,
    is_stopped: bool,
}

/// One subscriber, as the hub sees it.
pub(super) struct Slot {
    id: u64,
    pub(super) label: Label,
    /// Of the backlog, in blocks.
    pub(super) capacity: usize,
    /// Taken for a few stores, by the hub and by the one reader.
    backlog: Mutex<Backlog>,
    /// The backlog has something new.
    ready: Notify,
}

impl Slot {
    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn take(&self) -> Next {
        self.backlog().take()
    }

    /// Bytes that the next turn takes; `None`: there is nothing for it.
    pub(super) fn turn_bytes(&self) -> Option<u64> {
        self.backlog().turn_bytes(READ_BYTES)
    }

    /// The next one, unless it is a block of more bytes.
    pub(super) fn take_within(&self, bytes: u64) -> Next {
        let mut backlog = self.backlog();
        if backlog.next_bytes().is_some_and(|next| bytes < next) { Next::Wait } else { backlog.take() }
    }

    pub(super) fn end_reason(&self) -> Option<EndReason> {
        self.backlog().end_reason()
    }

    pub(super) async fn changed(&self) {
        self.ready.notified().await;
    }

    pub(super) fn replayed(&self, index: LogIndex) {
        self.backlog().replayed(index);
    }

    pub(super) fn repaired(&self) {
        self.backlog().repaired();
    }
}

impl Hub {
    pub(crate) fn new(
        config: Config,
        source: Arc<dyn Source>,
        instants: Arc<Instants>,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let metrics = Metrics::new(&config.watched, registry)?;
        let told = source.applied();
        let state = State { told, slots: BTreeMap::new(), next_id: 0, is_awaited: false, is_stopped: false };
        let room = Room::new();
        let shared = Arc::new(Shared { config, source, instants, metrics, room, state: Mutex::new(state) });
        let watched = shared.clone();
        Queues::register(registry, &shared.config.watched, move || watched.worst())?;
        Ok(Self { shared })
    }

    /// Begins a subscription. What is applied after it is there is not missed.
    pub(crate) async fn subscribe(&self, request: Request) -> Result<Subscription, SubscribeError> {
        let capacity = request.buffer.unwrap_or(self.shared.config.buffer);
        if !(1..=BUFFER_MAX).contains(&capacity) {
            return Err(SubscribeError::Buffer);
        }
        let label = self.shared.metrics.label(request.channel, request.name.as_deref());
        let slot = self.shared.register(label, capacity, request.on_full)?;
        Subscription::begin(self.shared.clone(), slot, request.start, request.may_be_pruned).await
    }

    /// The way out of one connection; `end` ends it, and may be called anywhere.
    pub(crate) fn outlet(&self, end: impl Fn() + Send + Sync + 'static) -> Arc<Outlet> {
        Outlet::new(self.shared.room.clone(), end)
    }

    /// Ends every subscription, and those that are asked for later.
    pub(crate) fn stop(&self) {
        let mut gone = Vec::new();
        let mut state = self.shared.state();
        state.is_stopped = true;
        for slot in state.slots.values() {
            let mut backlog = slot.backlog();
            let n = backlog.end(EndReason::ShuttingDown);
            gone.extend(backlog.take_gone());
            drop(backlog);
            self.shared.metrics.closed(slot.label, n);
            slot.ready.notify_one();
        }
        drop(state);
        live::tell_all(gone, &self.shared.instants);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn register(&self, label: Label, capacity: usize, on_full: OnFull) -> Result<Arc<Slot>, SubscribeError> {
        let mut state = self.state();
        if state.is_stopped {
            return Err(SubscribeError::ShuttingDown);
        }
        if SUBSCRIBERS_MAX <= state.slots.len() {
            return Err(SubscribeError::TooMany);
        }
        let id = state.next_id;
        state.next_id += 1;
        let backlog = Mutex::new(Backlog::new(capacity, on_full));
        let slot = Arc::new(Slot { id, label, capacity, backlog, ready: Notify::new() });
        state.slots.insert(id, slot.clone());
        Ok(slot)
    }

    pub(super) fn remove(&self, slot: &Slot) {
        self.state().slots.remove(&slot.id);
        let gone = slot.backlog().let_go();
        live::tell_all(gone, &self.instants);
    }

    /// From here on what is applied is queued for it. What lies between `next`, where it goes on, and the
    /// index that is answered is read from the store. `None`: it has ended, or waits for its beginning.
    pub(super) fn join(&self, slot: &Slot, next: Place) -> Option<LogIndex> {
        let state = self.state();
        slot.backlog().join(next, state.told).then_some(state.told.index)
    }

    /// As [`Shared::join`], where everything that was told is of no interest.
    pub(super) fn join_live(&self, slot: &Slot) -> LogIndex {
        let state = self.state();
        slot.backlog().join(Place::Index(state.told.index + 1), state.told);
        state.told.index
    }

    pub(super) fn told(&self) -> LogIndex {
        self.state().told.index
    }

    /// `max_bytes`: as [`Source::replay`] takes it.
    pub(super) fn read(&self, from: Place, max_bytes: u64) -> Replaying {
        self.source.replay(from, READ_BLOCKS, max_bytes)
    }

    /// For each label: how many subscribers there are, and the worst of them.
    fn worst(&self) -> Vec<Worst> {
        let mut all = vec![Worst::default(); self.metrics.n_labels()];
        let state = self.state();
        for slot in state.slots.values() {
            let backlog = slot.backlog();
            let gap = backlog.gap_entries(state.told.index);
            all[slot.label.index()].add(backlog.depth(), slot.capacity, gap);
        }
        all
    }

    /// Gives one subscriber a batch; true when that is news to it. `gone`: what it is not handed over.
    fn give(
        &self,
        slot: &Slot,
        items: &[(Arc<Live>, Told)],
        upto: Told,
        gone: &mut Vec<VecDeque<Arc<Live>>>,
    ) -> bool {
        let mut backlog = slot.backlog();
        let mut has_news = false;
        for (item, before) in items {
            match backlog.push(item, *before) {
                Pushed::Passed => continue,
                Pushed::Queued => {}
                Pushed::Dropped { n, is_new_gap } => {
                    self.metrics.dropped(slot.label, n);
                    if is_new_gap {
                        self.metrics.gap(slot.label);
                    }
                }
                Pushed::Closed { n } => self.metrics.closed(slot.label, n),
            }
            item.offer();
            has_news = true;
        }
        let cleared = backlog.take_gone();
        if !cleared.is_empty() {
            gone.push(cleared);
        }
        backlog.told(upto) || has_news
    }
}

impl Tap for Hub {
    fn applied(&self, upto: Told, blocks: &[Tapped]) {
        let applied_at = Instant::now();
        let mut before = {
            let mut state = self.shared.state();
            let is_awaited = std::mem::take(&mut state.is_awaited);
            // The last of those that were counted may be gone.
            if state.slots.is_empty() && !is_awaited {
                state.told = upto;
                return;
            }
            state.told
        };
        let live = |tapped: &Tapped| {
            let applied = Applied {
                term: tapped.pos.term,
                index: tapped.pos.index,
                block: tapped.decode(),
                replayed: false,
                trace: tapped.trace(),
            };
            before.index = tapped.pos.index.saturating_sub(1);
            let told = before;
            before.height = Some(tapped.height);
            (Arc::new(Live::new(applied, applied_at, self.shared.instants.clone())), told)
        };
        let items: Vec<_> = blocks.iter().map(live).collect();
        let mut gone = Vec::new();
        let mut state = self.shared.state();
        for slot in state.slots.values() {
            if self.shared.give(slot, &items, upto, &mut gone) {
                slot.ready.notify_one();
            }
        }
        state.told = upto;
        drop(state);
        let items = items.into_iter().map(|(item, _)| item);
        live::tell_all(gone.into_iter().flatten().chain(items), &self.shared.instants);
    }

    fn subscribers(&self) -> u64 {
        let mut state = self.shared.state();
        state.is_awaited = !state.slots.is_empty();
        state.slots.len() as u64
    }

    fn installed(&self, upto: Told) {
        let mut state = self.shared.state();
        for slot in state.slots.values() {
            if slot.backlog().installed(state.told, upto) {
                self.shared.metrics.gap(slot.label);
            }
            slot.ready.notify_one();
        }
        state.told = upto;
    }
}
