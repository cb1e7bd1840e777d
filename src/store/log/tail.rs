//! The end of the log in memory: what replication and apply read, and what is not synced yet.
//!
//! Invariants: entries are contiguous and end at `last`; one that is not synced is never dropped;
//! one that is neither here nor behind `purged` is in the database.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::raft::{Entry, LogId, Vote};
use crate::store::codec::{self, Edge, Frame, NO_LINK};
use crate::types::{LogIndex, position::LogPos};

/// Serves every follower that keeps up (performance.md, lever 3).
const TAIL_BYTES: u64 = 16 << 20;
/// What an entry weighs beside its payload; by eye.
const HELD_BYTES: u64 = 160;

pub(crate) struct Held {
    pub(crate) frame: Frame,
    pub(crate) entry: Entry,
    /// Number of the queued operation that makes it durable.
    pub(crate) seq: u64,
}

impl Held {
    fn weight(&self) -> u64 {
        u64::from(self.frame.length) + HELD_BYTES
    }
}

#[derive(Default)]
pub(crate) struct Tail {
    pub(crate) purged: Option<Edge>,
    entries: VecDeque<Held>,
    held_bytes: u64,
    last: Option<Edge>,
    /// For each entry of the log: stored bytes of the log up to and with it.
    sums: VecDeque<u64>,
    /// The sum before the first of them.
    sum_before: u64,
    /// Rises with every truncation: a read that lies across one starts anew.
    pub(crate) generation: u64,
    /// The last vote that is durable.
    pub(crate) vote: Option<Vote>,
    /// The last vote that was queued.
    pub(crate) queued_vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
}

/// What a read finds in memory, and what it must fetch from the database.
pub(crate) struct Found {
    /// First to one behind the last index to read from the database; empty when nothing is.
    pub(crate) cold: std::ops::Range<LogIndex>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) generation: u64,
}

impl Tail {
    /// The tail of a log that was read at open: `entries` end it, `sizes` are those of all.
    pub(crate) fn load(
        purged: Option<Edge>,
        last: Option<Edge>,
        entries: Vec<(Frame, Entry)>,
        sizes: &[u64],
    ) -> Self {
        let mut tail = Self { purged, last, ..Self::default() };
        sizes.iter().for_each(|s| tail.push_size(*s));
        for (frame, entry) in entries {
            tail.push(Held { frame, entry, seq: 0 });
        }
        tail.evict(0);
        tail
    }

    /// Index of the first entry that is not purged.
    pub(crate) fn first_index(&self) -> LogIndex {
        match (self.purged, self.last) {
            (Some(purged), _) => purged.pos.index + 1,
            (None, Some(last)) => last.pos.index + 1 - self.sums.len() as u64,
            (None, None) => 0,
        }
    }

    pub(crate) fn last(&self) -> Option<Edge> {
        self.last
    }

    /// Entries that are not purged.
    pub(crate) fn len(&self) -> u64 {
        self.sums.len() as u64
    }

    /// Stored bytes of the entries behind an index.
    pub(crate) fn bytes_after(&self, index: Option<LogIndex>) -> u64 {
        let Some(last) = self.sums.back() else { return 0 };
        let first = self.first_index();
        let skipped = index.map_or(0, |i| (i + 1).saturating_sub(first)) as usize;
        let before = match skipped {
            0 => self.sum_before,
            n if self.sums.len() <= n => return 0,
            n => self.sums[n - 1],
        };
        last - before
    }

    /// Adds an entry behind the last; encodes it. Panics on a hole: openraft promises none.
    pub(crate) fn append(&mut self, entry: Entry, seq: u64) -> (Frame, Bytes) {
        let previous = self.last.map_or(NO_LINK, |e| e.link);
        let (frame, payload) = codec::encode(&entry, previous);
        if let Some(last) = self.last {
            let index = frame.pos.index;
            assert!(index == last.pos.index + 1, "entry {index} appended behind {}", last.pos.index);
        }
        if let Some(vote) = &self.queued_vote
            && vote.committed
        {
            // Safety rule 2: no entry of a term is durable before the vote of that term.
            assert!(frame.pos.term <= vote.leader_id.term, "entry {:?} before its vote {vote:?}", frame.pos);
        }
        self.last = Some(frame.edge());
        self.push_size(frame.stored_bytes());
        self.push(Held { frame, entry, seq });
        (frame, payload)
    }

    fn push(&mut self, held: Held) {
        self.held_bytes += held.weight();
        self.entries.push_back(held);
    }

    /// Drops synced entries from the front while the tail is too heavy.
    pub(crate) fn evict(&mut self, synced: u64) {
        while TAIL_BYTES < self.held_bytes
            && let Some(front) = self.entries.front()
            && front.seq <= synced
        {
            self.held_bytes -= front.weight();
            self.entries.pop_front();
        }
    }

    fn held(&self, index: LogIndex) -> Option<&Held> {
        let first = self.entries.front()?.frame.pos.index;
        self.entries.get(usize::try_from(index.checked_sub(first)?).ok()?)
    }

    /// Number of the operation that will make this very entry durable; `None` when the log does
    /// not hold it in memory.
    pub(crate) fn seq_of(&self, pos: LogPos) -> Option<u64> {
        self.held(pos.index).filter(|h| h.frame.pos == pos).map(|h| h.seq)
    }

    /// The link of an entry that is still in memory.
    pub(crate) fn edge_of(&self, index: LogIndex) -> Option<Edge> {
        match (self.held(index), self.last, self.purged) {
            (Some(held), ..) => Some(held.frame.edge()),
            (None, Some(last), _) if last.pos.index == index => Some(last),
            (None, _, Some(purged)) if purged.pos.index == index => Some(purged),
            _ => None,
        }
    }

    /// Reads `[start, end)`, clipped to what the log holds; of what lies in memory at most
    /// `max_bytes`, but one entry.
    pub(crate) fn read(&self, start: LogIndex, end: LogIndex, max_bytes: u64) -> Found {
        let start = start.max(self.first_index());
        let end = end.min(self.last.map_or(0, |l| l.pos.index + 1));
        let mut found = Found { cold: start..start, entries: Vec::new(), generation: self.generation };
        if end <= start || self.sums.is_empty() {
            return found;
        }
        let hot = self.entries.front().map_or(end, |h| h.frame.pos.index);
        if start < hot {
            found.cold = start..hot.min(end);
        }
        let mut bytes = 0;
        for index in start.max(hot)..end {
            let held = self.held(index).expect("the tail is contiguous up to the last entry");
            bytes += held.weight();
            if max_bytes < bytes && !found.entries.is_empty() {
                break;
            }
            found.entries.push(held.entry.clone());
        }
        found
    }

    /// Forgets everything behind `after`. `false`: nothing lies there.
    pub(crate) fn truncate(&mut self, after: Option<Edge>) -> bool {
        let keep_end = after.map_or(0, |e| e.pos.index + 1).max(self.first_index());
        let old_end = self.last.map_or(0, |l| l.pos.index + 1);
        if old_end <= keep_end || self.sums.is_empty() {
            return false;
        }
        while let Some(back) = self.entries.back()
            && keep_end <= back.frame.pos.index
        {
            self.held_bytes -= back.weight();
            self.entries.pop_back();
        }
        let gone = (old_end - keep_end) as usize;
        self.sums.truncate(self.sums.len() - gone.min(self.sums.len()));
        self.last = if self.sums.is_empty() { self.purged } else { after };
        self.generation += 1;
        true
    }

    /// Forgets everything up to `upto`. Returns how many entries that are.
    pub(crate) fn purge(&mut self, upto: Edge) -> u64 {
        let gone = self.len().min((upto.pos.index + 1).saturating_sub(self.first_index()));
        for _ in 0..gone {
            self.sum_before = self.sums.pop_front().expect("no more are gone than there were");
        }
        while let Some(front) = self.entries.front()
            && front.frame.pos.index <= upto.pos.index
        {
            self.held_bytes -= front.weight();
            self.entries.pop_front();
        }
        self.purged = Some(upto);
        if self.sums.is_empty() {
            self.last = Some(upto);
        }
        gone
    }

    fn push_size(&mut self, size: u64) {
        let before = self.sums.back().copied().unwrap_or(self.sum_before);
        self.sums.push_back(before + size);
    }
}
