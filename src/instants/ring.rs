//! One slot for each entry of the recent log.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::types::{LogIndex, position::LogPos};

/// Entries remembered. A power of two, by eye: a third of a second at full speed, and half an hour at
/// ten blocks a second.
const SLOTS: usize = 16_384;

/// What an entry went through, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The proposal reached this node. Leader only.
    Received,
    /// It was handed to raft. Leader only.
    Handed,
    /// The log accepted it: readable, not yet durable.
    Appended,
    /// This node's own sync covers it.
    Synced,
    /// This node may apply it.
    Committed,
    /// Apply took it up.
    ApplyStarted,
    Applied,
}

const MARKS: usize = 7;

/// The synced write that made an entry durable here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sync {
    pub(crate) took: Duration,
    /// Entries that it made durable together.
    pub(crate) entries: u32,
}

/// One entry's instants, as a copy.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Timing {
    at: [Option<Instant>; MARKS],
    pub(crate) sync: Option<Sync>,
}

impl Timing {
    pub(crate) fn at(&self, mark: Mark) -> Option<Instant> {
        self.at[mark as usize]
    }

    pub(crate) fn between(&self, from: Mark, to: Mark) -> Option<Duration> {
        Some(self.at(to)?.saturating_duration_since(self.at(from)?))
    }

    /// This node proposed the entry: it led then.
    pub(crate) fn is_proposed_here(&self) -> bool {
        self.at(Mark::Handed).is_some()
    }

    #[cfg(test)]
    pub(crate) fn with(mut self, mark: Mark, at: Instant) -> Self {
        self.at[mark as usize] = Some(at);
        self
    }
}

/// Instants in nanoseconds since the ring was made, plus one; 0: not known. Half the size of instants.
#[derive(Clone, Copy, Default)]
struct Slot {
    pos: LogPos,
    at: [u64; MARKS],
    sync_us: u32,
    sync_entries: u32,
}

/// A slot belongs to one (term, index); a mark for a newer entry takes it over.
pub(crate) struct Ring {
    started: Instant,
    /// Each lock guards one slot for a few stores; a task would cost a queue on the hot path.
    slots: Vec<Mutex<Slot>>,
}

/// The slot was taken over by a newer entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost;

impl Ring {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), slots: (0..SLOTS).map(|_| Mutex::default()).collect() }
    }

    /// Remembers that an entry reached a stage; all that is known of it comes back.
    pub(crate) fn mark(&self, pos: LogPos, mark: Mark, at: Instant) -> Result<Timing, Lost> {
        let at = self.nanos(at);
        let slot = self.change(pos, |slot| slot.at[mark as usize] = at)?;
        Ok(self.timing(&slot))
    }

    pub(crate) fn synced(&self, pos: LogPos, at: Instant, sync: Sync) -> Result<(), Lost> {
        let at = self.nanos(at);
        self.change(pos, |slot| {
            slot.at[Mark::Synced as usize] = at;
            slot.sync_us = u32::try_from(sync.took.as_micros()).unwrap_or(u32::MAX).max(1);
            slot.sync_entries = sync.entries;
        })?;
        Ok(())
    }

    /// What is known of an entry; `None` once its slot was taken over.
    pub(crate) fn get(&self, pos: LogPos) -> Option<Timing> {
        let slot = *self.slot(pos.index);
        (slot.pos == pos).then(|| self.timing(&slot))
    }

    /// What is known of the newest entry with an index.
    pub(crate) fn at_index(&self, index: LogIndex) -> Option<Timing> {
        let slot = *self.slot(index);
        (slot.pos.index == index && slot.pos != LogPos::default()).then(|| self.timing(&slot))
    }

    fn change(&self, pos: LogPos, change: impl FnOnce(&mut Slot)) -> Result<Slot, Lost> {
        let mut slot = self.slot(pos.index);
        if slot.pos != pos {
            if pos < slot.pos {
                return Err(Lost);
            }
            *slot = Slot { pos, ..Slot::default() };
        }
        change(&mut slot);
        Ok(*slot)
    }

    fn timing(&self, slot: &Slot) -> Timing {
        let instant = |nanos: u64| (nanos != 0).then(|| self.started + Duration::from_nanos(nanos - 1));
        let sync = (slot.sync_us != 0)
            .then(|| Sync { took: Duration::from_micros(slot.sync_us.into()), entries: slot.sync_entries });
        Timing { at: slot.at.map(instant), sync }
    }

    fn nanos(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.started).as_nanos();
        u64::try_from(since).unwrap_or(u64::MAX - 1) + 1
    }

    fn slot(&self, index: LogIndex) -> MutexGuard<'_, Slot> {
        // A panic while a slot was held leaves plain data behind: still fine to use.
        self.slots[index as usize % SLOTS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pos(term: u64, index: u64) -> LogPos {
        LogPos { term, index }
    }

    #[test]
    fn a_slot_belongs_to_one_entry_and_goes_to_newer_ones_alone() {
        let ring = Ring::new();
        let now = Instant::now();
        ring.mark(pos(1, 5), Mark::Appended, now).expect("a fresh slot");
        // The same index of a later term, as after a truncation.
        ring.mark(pos(2, 5), Mark::Appended, now).expect("it is newer");
        assert!(ring.get(pos(1, 5)).is_none());
        assert_eq!(ring.mark(pos(1, 5), Mark::Synced, now).err(), Some(Lost));
        ring.mark(pos(2, 5 + SLOTS as u64), Mark::Appended, now).expect("it is newer");
        assert!(ring.get(pos(2, 5)).is_none() && ring.at_index(5).is_none());
        assert!(ring.at_index(5 + SLOTS as u64).is_some());
    }

    #[test]
    fn instants_come_back_as_they_were_given() {
        let ring = Ring::new();
        let at = Instant::now() + Duration::from_nanos(1_234_567);
        ring.mark(pos(1, 1), Mark::Handed, at).expect("a fresh slot");
        let sync = Sync { took: Duration::from_micros(250), entries: 3 };
        ring.synced(pos(1, 1), at + Duration::from_millis(1), sync).expect("the same slot");
        let timing = ring.get(pos(1, 1)).expect("it is there");
        assert_eq!(timing.at(Mark::Handed), Some(at));
        assert_eq!(timing.between(Mark::Handed, Mark::Synced), Some(Duration::from_millis(1)));
        assert_eq!((timing.at(Mark::Received), timing.sync), (None, Some(sync)));
        assert!(timing.is_proposed_here());
    }
}
