//! One reader's end: what its backlog holds, and from the store what it does not.
//!
//! It reads the store page by page until it has nearly reached the head, joins the hub there, reads what
//! lies between, and hands over what is queued. After a gap it does the same again. So nothing is left
//! out and nothing comes twice. Inside this process a slow reader costs a page; over a connection it is handed over
//! in turns, and costs what [`turns`](crate::feed::turns) say.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::feed::backlog::{Missed, Next};
use crate::feed::hub::{READ_BYTES, Shared, Slot};
use crate::feed::live::Live;
use crate::feed::source::Replaying;
use crate::store::reader::replay::{Place, Replay, ReplayError, Replayed};
use crate::types::feed::{
    Applied, CaughtUp, End, EndReason, FeedItem, Gap, Repair, StartAt, SubscribeError, TraceContext,
};
use crate::types::{Height, LogIndex};

/// What is stored of a block beside its payload. By eye: hashes, keys and a row.
const ROW_BYTES: u64 = 1 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Nothing: what comes is queued.
    No,
    /// To the end of the store; then it joins.
    ToHead,
    /// It has joined there: what lies behind is queued.
    To(LogIndex),
}

/// Dropped, it is gone: nothing is queued for it any more.
pub(crate) struct Subscription {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    reading: Reading,
    /// Where the next read begins.
    next: Place,
    /// That read, once it was begun: whoever gives up waiting for an item finds it again.
    pending: Option<Replaying>,
    /// Bytes that the next read may take: what a page has, or the block that it begins with.
    read_bytes: u64,
    page: VecDeque<Replayed>,
    /// Bytes that this turn may still take.
    left: u64,
    /// A gap that was not told yet.
    missed: Option<Missed>,
    /// Everything up to it was handed over, or is not wanted, or was told as lost.
    position: Option<LogIndex>,
    /// What was applied when it began.
    since: LogIndex,
    has_ended: bool,
}

impl Subscription {
    pub(super) async fn begin(
        shared: Arc<Shared>,
        slot: Arc<Slot>,
        start: StartAt,
        may_be_pruned: bool,
    ) -> Result<Self, SubscribeError> {
        let since = shared.told();
        let (next, reading, position) = match start {
            StartAt::Height(height) => (Place::Height(height), Reading::ToHead, None),
            // Index 0 founds the cluster: it is no block.
            StartAt::Index(index) => {
                let index = index.max(1);
                (Place::Index(index), Reading::ToHead, Some(index - 1))
            }
            StartAt::Live => {
                let joined_at = shared.join_live(&slot);
                (Place::Index(joined_at + 1), Reading::No, Some(joined_at))
            }
        };
        let mut this = Self {
            shared,
            slot,
            reading,
            next,
            pending: None,
            read_bytes: READ_BYTES,
            page: VecDeque::new(),
            left: 0,
            missed: None,
            position,
            since,
            has_ended: false,
        };
        if this.reading == Reading::ToHead {
            // Whether it can begin, not what with: a page is for a turn of its own.
            match this.shared.read(next, 0).await {
                Ok(replay) if replay.blocks.is_empty() && !replay.has_more => this.take_page(replay),
                // From here on it is owed what it begins with, whatever is forgotten until it is read.
                Ok(Replay { needs: Some(first), .. }) => {
                    this.read_bytes = READ_BYTES.max(first.bytes);
                    if matches!(next, Place::Height(_)) {
                        this.next = Place::Index(first.index);
                    }
                }
                Ok(_) => {}
                // The first read of `next` meets it again, and tells.
                Err(ReplayError::Pruned { .. }) if may_be_pruned => {}
                Err(ReplayError::Pruned { height, .. }) => {
                    return Err(SubscribeError::Pruned { oldest_height: height });
                }
                Err(ReplayError::Storage(why)) => {
                    tracing::warn!(why, "a subscription cannot begin: the store cannot be read");
                    return Err(SubscribeError::Storage);
                }
            }
        }
        Ok(this)
    }

    /// The next item; `None` behind the end. Safe to drop: no item is lost.
    pub(crate) async fn next(&mut self) -> Option<FeedItem> {
        if self.has_ended {
            return None;
        }
        loop {
            if let Some(reason) = self.slot.end_reason() {
                return Some(self.end(reason));
            }
            if let Some(replayed) = self.page.pop_front() {
                return Some(self.replayed(replayed));
            }
            if self.reading != Reading::No {
                if let Some(item) = self.read_on().await {
                    return Some(item);
                }
                continue;
            }
            match self.slot.take() {
                Next::Wait => self.slot.changed().await,
                next => match self.on(next) {
                    Some(item) => return Some(item),
                    None => continue,
                },
            }
        }
    }

    fn on(&mut self, next: Next) -> Option<FeedItem> {
        match next {
            Next::CaughtUp(caught_up) => Some(self.caught_up(caught_up)),
            Next::Block(live) => Some(self.live(&live)),
            Next::Missed(missed) => {
                self.next = Place::Index(missed.from);
                self.missed = Some(missed);
                self.reading = Reading::ToHead;
                None
            }
            Next::Read => {
                self.reading = Reading::ToHead;
                None
            }
            Next::End(reason) => Some(self.end(reason)),
            Next::Wait => None,
        }
    }

    /// Until there is something to hand over; answers how many bytes of blocks the next turn takes. Holds none of
    /// them. Safe to drop.
    pub(super) async fn wait(&mut self) -> u64 {
        loop {
            if self.has_ended || self.slot.end_reason().is_some() || !self.page.is_empty() {
                return 0;
            }
            if self.reading != Reading::No {
                return self.read_bytes;
            }
            match self.slot.turn_bytes() {
                Some(bytes) => return bytes,
                None => self.slot.changed().await,
            }
        }
    }

    /// Until the hub has ended it. Safe to drop.
    pub(super) async fn ended(&mut self) {
        while !self.has_ended && self.slot.end_reason().is_none() {
            self.slot.changed().await;
        }
    }

    /// Its last item was handed over.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// So many bytes of blocks may be handed over in the turn that begins.
    pub(super) fn begin_turn(&mut self, bytes: u64) {
        self.left = bytes;
    }

    /// The next item of the turn, read where it must be; `None` when the turn is over. Safe to drop: no item
    /// is lost.
    pub(super) async fn next_of_turn(&mut self) -> Option<FeedItem> {
        let may_read = self.page.is_empty() && self.reading != Reading::No && self.read_bytes <= self.left;
        if may_read && !self.has_ended && self.slot.end_reason().is_none() {
            let item = self.read_on().await;
            self.left = 0;
            if item.is_some() {
                return item;
            }
        }
        self.ready()
    }

    /// The next item of the turn where it is there already.
    pub(crate) fn ready(&mut self) -> Option<FeedItem> {
        if self.has_ended {
            return None;
        }
        if let Some(reason) = self.slot.end_reason() {
            return Some(self.end(reason));
        }
        if let Some(replayed) = self.page.pop_front() {
            return Some(self.replayed(replayed));
        }
        if self.reading != Reading::No {
            return None;
        }
        let next = self.slot.take_within(self.left);
        if let Next::Block(live) = &next {
            self.left -= live.bytes();
        }
        self.on(next)
    }

    /// Everything up to it was handed over; a subscription that begins behind it misses nothing.
    pub(crate) fn position(&self) -> Option<LogIndex> {
        self.position
    }

    async fn read_on(&mut self) -> Option<FeedItem> {
        let pending = self.pending.get_or_insert_with(|| self.shared.read(self.next, self.read_bytes));
        let read = pending.await;
        self.pending = None;
        match read {
            Ok(Replay { needs: Some(first), .. }) => {
                self.read_bytes = first.bytes;
                return None;
            }
            Ok(replay) => self.take_page(replay),
            Err(ReplayError::Pruned { height, index }) => return Some(self.pruned(height, index)),
            // A store that is closing is not told apart from one that fails: the hub has ended by then.
            Err(ReplayError::Storage(why)) => {
                let reason = self.slot.end_reason().unwrap_or(EndReason::Storage);
                if reason == EndReason::Storage {
                    tracing::warn!(why, "a subscription ends: the store cannot be read");
                }
                return Some(self.end(reason));
            }
        }
        // The gap's first block is there, or none of it was a block.
        let Missed { from, to, dropped } = self.missed.take()?;
        Some(FeedItem::Gap(Gap { from_index: from, to_index: to, dropped, repair: Repair::Replay }))
    }

    /// Takes what was read, and joins when it reaches near enough to the head that the backlog can hold
    /// what is applied meanwhile.
    fn take_page(&mut self, replay: Replay) {
        let Replay { mut blocks, has_more, needs: _ } = replay;
        // The next block is likely no larger: so one that is large is asked for once.
        let largest = blocks.iter().map(|b| b.stored.block.payload_bytes() + ROW_BYTES).max();
        self.read_bytes = READ_BYTES.max(largest.unwrap_or(0));
        let upto = match self.reading {
            Reading::To(upto) => upto,
            Reading::ToHead | Reading::No => LogIndex::MAX,
        };
        let n_read = blocks.len();
        blocks.retain(|b| b.stored.index <= upto);
        if let Some(last) = blocks.last() {
            self.next = Place::Index(last.stored.index + 1);
        }
        // A page may end right where it joined, with more behind it: that is in the queue, and may be forgotten
        // by the store before another look.
        let is_at_end = !has_more || blocks.len() < n_read || is_behind(self.next, upto);
        let is_near = is_at_end && blocks.len() <= self.slot.capacity.div_ceil(2);
        self.page = blocks.into();
        match self.reading {
            Reading::To(_) if is_at_end => self.all_read(),
            Reading::ToHead if is_near => match self.shared.join(&self.slot, self.next) {
                Some(joined_at) if is_behind(self.next, joined_at) => self.all_read(),
                Some(joined_at) => self.reading = Reading::To(joined_at),
                None => self.all_read(),
            },
            Reading::To(_) | Reading::ToHead | Reading::No => {}
        }
    }

    fn all_read(&mut self) {
        self.reading = Reading::No;
        self.repaired_with_page();
    }

    /// A gap is repaired when the last block of it is handed over, not when it is read.
    fn repaired_with_page(&self) {
        if self.page.is_empty() && self.reading == Reading::No {
            self.slot.repaired();
        }
    }

    /// What was to be read next is forgotten, up to the oldest block that is kept.
    fn pruned(&mut self, oldest_height: Height, oldest_index: LogIndex) -> FeedItem {
        let mut to = oldest_index.saturating_sub(1);
        if let Reading::To(upto) = self.reading
            && upto <= to
        {
            to = upto;
            self.all_read();
        }
        let from = match (self.missed, self.next) {
            (Some(missed), _) => missed.from,
            (None, Place::Index(index)) => index,
            (None, Place::Height(_)) => self.since + 1,
        };
        let dropped = match self.missed.take() {
            Some(missed) => missed.dropped,
            None => {
                self.shared.metrics.gap(self.slot.label);
                0
            }
        };
        self.next = Place::Index(to + 1);
        self.moved(to);
        let repair = Repair::Pruned { oldest_height };
        FeedItem::Gap(Gap { from_index: from.min(to), to_index: to, dropped, repair })
    }

    fn replayed(&mut self, replayed: Replayed) -> FeedItem {
        let Replayed { stored, trace_id } = replayed;
        self.moved(stored.index);
        self.slot.replayed(stored.index);
        self.repaired_with_page();
        self.shared.metrics.replayed(self.slot.label);
        FeedItem::Applied(Applied {
            term: stored.term,
            index: stored.index,
            block: stored.block,
            replayed: true,
            trace: trace_id.and_then(TraceContext::of_trace),
        })
    }

    fn live(&mut self, live: &Live) -> FeedItem {
        self.moved(live.applied.index);
        self.shared.metrics.delivered(self.slot.label);
        FeedItem::Applied(live.take())
    }

    fn caught_up(&mut self, caught_up: CaughtUp) -> FeedItem {
        self.moved(caught_up.index);
        FeedItem::CaughtUp(caught_up)
    }

    fn moved(&mut self, index: LogIndex) {
        assert!(self.position <= Some(index), "index {index} is handed over after {:?}", self.position);
        self.position = Some(index);
    }

    fn end(&mut self, reason: EndReason) -> FeedItem {
        self.has_ended = true;
        self.page = VecDeque::new();
        self.pending = None;
        self.shared.remove(&self.slot);
        FeedItem::End(End { reason, last_index: self.position })
    }
}

/// Whether nothing lies between a place and what was told.
fn is_behind(next: Place, told: LogIndex) -> bool {
    match next {
        Place::Height(_) => false,
        Place::Index(index) => told < index,
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.remove(&self.slot);
    }
}
