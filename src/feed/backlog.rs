//! What waits for one subscriber: blocks, or a gap where there were too many.
//!
//! Plain state without locks, clock or I/O. Moved on by the hub as blocks are applied, emptied by the
//! subscription. When one more block does not fit, all that wait go into the gap with it: so the blocks
//! that wait are the last ones applied, and however many subscribers there are and however slow, together
//! they hold no more blocks than the largest single buffer.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::feed::live::Live;
use crate::store::reader::replay::Place;
use crate::store::tap::Told;
use crate::types::LogIndex;
use crate::types::feed::{CaughtUp, EndReason, OnFull};

/// Bytes of blocks that wait for one subscriber, but one block. By eye: a second of 32 KiB blocks at a
/// thousand a second.
pub(super) const BYTES_MAX: u64 = 32 << 20;

/// Entries whose blocks are not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Missed {
    pub(super) from: LogIndex,
    /// Inclusive.
    pub(super) to: LogIndex,
    /// Blocks that a full buffer cost.
    pub(super) dropped: u64,
}

#[derive(Debug)]
enum Mode {
    /// The subscription reads the store, and asks to join.
    Reading,
    /// It is to read again from where it stands.
    Behind,
    /// It waits: its beginning lies ahead of what this node has applied.
    Ahead(Place),
    /// What is applied is queued, or missed: what is missed lies behind the queue.
    Joined {
        missed: Option<Missed>,
    },
    Ended(EndReason),
}

/// What became of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// The subscription reads it from the store, or begins later, or has ended.
    Passed,
    Queued,
    /// So many blocks went into a gap, this one the last of them.
    Dropped {
        n: u64,
        is_new_gap: bool,
    },
    /// The subscription ends for it: so many blocks are not handed over.
    Closed {
        n: u64,
    },
}

/// What the subscription does next.
#[derive(Debug)]
pub(super) enum Next {
    CaughtUp(CaughtUp),
    Block(Arc<Live>),
    /// Tells of it, and reads the store from there.
    Missed(Missed),
    /// Reads the store from where it stands.
    Read,
    End(EndReason),
    Wait,
}

#[derive(Debug)]
pub(super) struct Backlog {
    /// Blocks, at least 1.
    capacity: usize,
    on_full: OnFull,
    mode: Mode,
    queue: VecDeque<Arc<Live>>,
    /// Of the queue.
    bytes: u64,
    /// Waited, and are not handed over: let go of outside the locks.
    gone: VecDeque<Arc<Live>>,
    /// It was not told yet that it caught up, which it is once.
    owes_caught_up: bool,
    /// Due before what is queued.
    caught_up: Option<CaughtUp>,
    /// Everything up to it was handed over, while a gap is not repaired.
    behind: Option<LogIndex>,
}

impl Backlog {
    pub(super) fn new(capacity: usize, on_full: OnFull) -> Self {
        Self {
            capacity,
            on_full,
            mode: Mode::Reading,
            queue: VecDeque::new(),
            bytes: 0,
            gone: VecDeque::new(),
            owes_caught_up: true,
            caught_up: None,
            behind: None,
        }
    }

    pub(super) fn depth(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn end_reason(&self) -> Option<EndReason> {
        match self.mode {
            Mode::Ended(reason) => Some(reason),
            Mode::Reading | Mode::Behind | Mode::Ahead(_) | Mode::Joined { .. } => None,
        }
    }

    /// The subscription has read everything before `next`, or up to the end of the store. Blocks that are
    /// told from here on are queued, but for those before `next`. True when it is joined: then the store
    /// has what lies between `next` and `told`.
    pub(super) fn join(&mut self, next: Place, told: Told) -> bool {
        if self.end_reason().is_some() {
            return false;
        }
        assert!(self.queue.is_empty(), "blocks wait for a subscription that reads the store");
        if !is_reached(next, told) {
            self.mode = Mode::Ahead(next);
            return false;
        }
        self.joined(told);
        true
    }

    fn joined(&mut self, told: Told) {
        self.mode = Mode::Joined { missed: None };
        let caught_up = CaughtUp { height: told.height, index: told.index };
        self.caught_up = self.owes_caught_up.then_some(caught_up);
    }

    /// A block was applied; `before` is how far the log was told without it.
    pub(super) fn push(&mut self, item: &Arc<Live>, before: Told) -> Pushed {
        if let Mode::Ahead(place) = self.mode {
            let is_wanted = match place {
                Place::Height(height) => height <= item.applied.block.height,
                Place::Index(index) => index <= item.applied.index,
            };
            if !is_wanted {
                return Pushed::Passed;
            }
            self.joined(before);
        }
        let index = item.applied.index;
        match &mut self.mode {
            Mode::Reading | Mode::Behind | Mode::Ended(_) => Pushed::Passed,
            Mode::Ahead(_) => unreachable!("joined above"),
            Mode::Joined { missed: None } if has_room(&self.queue, self.capacity, self.bytes, item) => {
                self.bytes += item.bytes();
                self.queue.push_back(Arc::clone(item));
                Pushed::Queued
            }
            // What came by snapshot is not the subscriber's fault, nor what follows before it looks.
            Mode::Joined { missed: Some(missed) }
                if missed.dropped == 0 && self.queue.len() < self.capacity =>
            {
                missed.to = index;
                Pushed::Passed
            }
            Mode::Joined { missed } => {
                let (from, dropped) = missed.map_or((index, 0), |m| (m.from, m.dropped));
                let is_new_gap = missed.is_none();
                let from = self.queue.front().map_or(from, |first| first.applied.index);
                let n = self.clear() + 1;
                match self.on_full {
                    OnFull::Drop => {
                        let missed = Some(Missed { from, to: index, dropped: dropped + n });
                        self.mode = Mode::Joined { missed };
                        self.behind.get_or_insert(from.saturating_sub(1));
                        Pushed::Dropped { n, is_new_gap }
                    }
                    OnFull::Close => {
                        self.mode = Mode::Ended(EndReason::Slow);
                        Pushed::Closed { n }
                    }
                }
            }
        }
    }

    /// The whole batch was told. True when the subscription has something to do for it.
    pub(super) fn told(&mut self, told: Told) -> bool {
        match self.mode {
            Mode::Ahead(place) if is_reached(place, told) => {
                self.joined(told);
                true
            }
            Mode::Ahead(_) | Mode::Reading | Mode::Behind | Mode::Joined { .. } | Mode::Ended(_) => false,
        }
    }

    /// A snapshot was installed: the entries behind `before` up to `told` were not applied one by one.
    /// True when that is a new gap.
    pub(super) fn installed(&mut self, before: Told, told: Told) -> bool {
        match &mut self.mode {
            Mode::Reading | Mode::Behind | Mode::Ended(_) => false,
            Mode::Ahead(place) => {
                // What it waits for came with it, and nothing of it was to be handed over yet.
                if is_reached(*place, told) {
                    self.mode = Mode::Behind;
                }
                false
            }
            Mode::Joined { missed: Some(missed) } => {
                missed.to = told.index;
                false
            }
            Mode::Joined { missed } => {
                let is_new = before.index < told.index;
                if is_new {
                    *missed = Some(Missed { from: before.index + 1, to: told.index, dropped: 0 });
                    self.behind.get_or_insert(before.index);
                }
                is_new
            }
        }
    }

    /// A block of a gap was handed over.
    pub(super) fn replayed(&mut self, index: LogIndex) {
        if let Some(behind) = &mut self.behind {
            *behind = index.max(*behind);
        }
    }

    /// It has everything up to where it joined.
    pub(super) fn repaired(&mut self) {
        self.behind = match self.mode {
            Mode::Joined { missed: Some(missed) } => Some(missed.from.saturating_sub(1)),
            Mode::Joined { missed: None }
            | Mode::Reading
            | Mode::Behind
            | Mode::Ahead(_)
            | Mode::Ended(_) => None,
        };
    }

    /// Entries that an unrepaired gap keeps from it.
    pub(super) fn gap_entries(&self, told: LogIndex) -> u64 {
        self.behind.map_or(0, |behind| told.saturating_sub(behind))
    }

    /// Nothing more is handed over. Answers how many blocks waited.
    pub(super) fn end(&mut self, reason: EndReason) -> u64 {
        if self.end_reason().is_some() {
            return 0;
        }
        self.mode = Mode::Ended(reason);
        self.behind = None;
        self.clear()
    }

    fn clear(&mut self) -> u64 {
        let n = self.queue.len() as u64;
        self.gone.append(&mut self.queue);
        self.bytes = 0;
        self.caught_up = None;
        n
    }

    /// Blocks that waited and are not handed over.
    pub(super) fn take_gone(&mut self) -> VecDeque<Arc<Live>> {
        std::mem::take(&mut self.gone)
    }

    /// Its subscription is gone: so is what waits.
    pub(super) fn let_go(&mut self) -> VecDeque<Arc<Live>> {
        self.clear();
        self.take_gone()
    }

    /// Of the block that is next to be handed over.
    pub(super) fn next_bytes(&self) -> Option<u64> {
        let next = self.queue.front().filter(|_| self.caught_up.is_none());
        next.map(|item| item.bytes())
    }

    /// Bytes of what waits, up to so many, but at least the next block; 0 where it is none. `None`: nothing waits.
    pub(super) fn turn_bytes(&self, max: u64) -> Option<u64> {
        match self.queue.front() {
            Some(item) => Some(self.bytes.min(max).max(item.bytes())),
            None => {
                let has_news = self.caught_up.is_some()
                    || matches!(self.mode, Mode::Joined { missed: Some(_) } | Mode::Behind | Mode::Ended(_));
                has_news.then_some(0)
            }
        }
    }

    pub(super) fn take(&mut self) -> Next {
        if let Some(reason) = self.end_reason() {
            return Next::End(reason);
        }
        if let Some(caught_up) = self.caught_up.take() {
            self.owes_caught_up = false;
            return Next::CaughtUp(caught_up);
        }
        if let Some(item) = self.queue.pop_front() {
            self.bytes -= item.bytes();
            return Next::Block(item);
        }
        match self.mode {
            Mode::Joined { missed: Some(missed) } => {
                self.mode = Mode::Reading;
                Next::Missed(missed)
            }
            Mode::Behind => {
                self.mode = Mode::Reading;
                Next::Read
            }
            Mode::Joined { missed: None } | Mode::Reading | Mode::Ahead(_) | Mode::Ended(_) => Next::Wait,
        }
    }
}

/// One block always has.
fn has_room(queue: &VecDeque<Arc<Live>>, capacity: usize, bytes: u64, item: &Live) -> bool {
    queue.is_empty() || (queue.len() < capacity && bytes + item.bytes() <= BYTES_MAX)
}

/// Whether everything before a place was told.
fn is_reached(place: Place, told: Told) -> bool {
    match place {
        Place::Height(height) => height <= told.height.map_or(0, |h| h.saturating_add(1)),
        Place::Index(index) => index <= told.index.saturating_add(1),
    }
}
