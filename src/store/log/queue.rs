//! What the writer thread is to do, in the order received.
//!
//! Entries, votes, committed, truncations, purges and the node's own records share one queue, which
//! is never reordered: no entry of a term can become durable before the vote of that term (safety
//! rule 2). Bounded by the admission of proposals and the peer window, not here.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::storage::IOFlushed;
use tokio::sync::oneshot;

use crate::raft::{TypeConfig, Vote};
use crate::store::codec::{Edge, Frame};
use crate::types::position::LogPos;

/// Bytes that one synced write takes at most, but one operation (performance.md, lever 2).
pub(crate) const GROUP_BYTES: u64 = 4 << 20;
/// What may ride along waits so long for something that must be written.
const IDLE: Duration = Duration::from_millis(50);
/// And so long only where nothing would come in time anyway: it is written by itself then, and a process that is killed
/// has it all the sooner. By eye: a few proposals one after the other.
const SLOW_IDLE: Duration = Duration::from_millis(5);
/// Weight of an operation beside its payload; by eye.
const OP_BYTES: u64 = 64;

pub(crate) enum Op {
    Entry {
        frame: Frame,
        payload: Bytes,
    },
    /// Everything before it is to be reported durable.
    Flushed {
        callback: IOFlushed<TypeConfig>,
        since: Instant,
    },
    Vote {
        vote: Vote,
        done: oneshot::Sender<()>,
    },
    Committed(LogPos),
    Truncate {
        after: Option<Edge>,
    },
    Purge {
        upto: Edge,
    },
    /// Records of this node alone: `None` deletes.
    Local {
        records: Vec<(Vec<u8>, Option<Bytes>)>,
        done: Option<oneshot::Sender<()>>,
    },
}

impl Op {
    fn weight(&self) -> u64 {
        OP_BYTES
            + match self {
                Self::Entry { payload, .. } => payload.len() as u64,
                Self::Local { records, .. } => {
                    records.iter().map(|(k, v)| (k.len() + v.as_ref().map_or(0, Bytes::len)) as u64).sum()
                }
                Self::Flushed { .. }
                | Self::Vote { .. }
                | Self::Committed(_)
                | Self::Truncate { .. }
                | Self::Purge { .. } => 0,
            }
    }

    /// Whether somebody waits for it.
    fn is_pressing(&self) -> bool {
        match self {
            Self::Flushed { .. } | Self::Vote { .. } => true,
            Self::Local { done, .. } => done.is_some(),
            Self::Entry { .. } | Self::Committed(_) | Self::Truncate { .. } | Self::Purge { .. } => false,
        }
    }
}

/// Operations that are written together, and the number of the last of them.
pub(crate) struct Group {
    pub(crate) ops: Vec<Op>,
    pub(crate) bytes: u64,
    pub(crate) last_seq: u64,
}

#[derive(Default)]
struct State {
    ops: VecDeque<Op>,
    /// Number of the last operation that was queued.
    last_seq: u64,
    pressing: usize,
    /// When the oldest operation that nobody waits for came in.
    idle_since: Option<Instant>,
    /// Since when the `committed` waited that was written by itself last; until something pressing follows it.
    lone_since: Option<Instant>,
    /// What could carry a `committed` comes while that may wait.
    is_busy: bool,
    /// The writer waits without a limit: nothing came in for a while.
    is_asleep: bool,
    is_closed: bool,
    #[cfg(test)]
    is_held: bool,
}

impl State {
    fn is_committed_alone(&self) -> bool {
        self.ops.iter().all(|op| matches!(op, Op::Committed(_)))
    }

    /// How long the oldest operation that nobody waits for may wait.
    fn patience(&self) -> Duration {
        if !self.is_busy && self.is_committed_alone() { SLOW_IDLE } else { IDLE }
    }

    /// Something pressing came: whether the `committed` in front of it could have waited for it.
    fn on_pressing(&mut self, now: Instant) {
        if let Some(since) = self.lone_since.take() {
            self.is_busy = now.saturating_duration_since(since) < IDLE;
        }
    }
}

#[derive(Default)]
pub(crate) struct Queue {
    /// Guards a few pushes; the writer is a plain thread, so a task's channel would not do.
    state: Mutex<State>,
    changed: Condvar,
}

/// The queue while operations are added to it.
pub(crate) struct Adding<'a> {
    state: MutexGuard<'a, State>,
    changed: &'a Condvar,
}

impl Adding<'_> {
    /// The number the next operation gets.
    pub(crate) fn next_seq(&self) -> u64 {
        self.state.last_seq + 1
    }

    pub(crate) fn push(&mut self, op: Op) {
        let state = &mut *self.state;
        if state.is_closed {
            // Dropping it tells whoever waits that it was not written.
            return;
        }
        if let (Op::Committed(new), Some(Op::Committed(old))) = (&op, state.ops.back_mut()) {
            *old = *new;
            return;
        }
        state.last_seq += 1;
        if op.is_pressing() {
            state.on_pressing(Instant::now());
            state.pressing += 1;
            self.changed.notify_one();
        } else if state.idle_since.is_none() {
            state.idle_since = Some(Instant::now());
            // A writer that is not asleep looks again by itself: each commit would cost a wake-up.
            if state.is_asleep {
                self.changed.notify_one();
            }
        }
        state.ops.push_back(op);
    }
}

impl Queue {
    pub(crate) fn add(&self) -> Adding<'_> {
        Adding { state: self.lock(), changed: &self.changed }
    }

    /// The next operations to write together; waits for them. `None` once closed and empty.
    pub(crate) fn take(&self) -> Option<Group> {
        let mut state = self.lock();
        loop {
            #[cfg(test)]
            while state.is_held {
                state = self.changed.wait(state).unwrap_or_else(|p| p.into_inner());
            }
            if 0 < state.pressing || (state.is_closed && !state.ops.is_empty()) {
                break;
            }
            if state.is_closed {
                return None;
            }
            let wait = match state.idle_since {
                Some(since) => (since + state.patience()).saturating_duration_since(Instant::now()),
                None => state.patience(),
            };
            if wait.is_zero() {
                break;
            }
            let (woken, timeout) = self.changed.wait_timeout(state, wait).unwrap_or_else(|p| p.into_inner());
            state = woken;
            if timeout.timed_out() && state.ops.is_empty() && !state.is_closed {
                state.is_asleep = true;
                state = self.changed.wait(state).unwrap_or_else(|p| p.into_inner());
                state.is_asleep = false;
            }
        }
        if 0 == state.pressing && state.is_committed_alone() {
            state.lone_since = state.idle_since;
        }
        let (mut ops, mut bytes) = (Vec::with_capacity(state.ops.len().min(4096)), 0);
        while let Some(op) = state.ops.front() {
            let weight = op.weight();
            if !ops.is_empty()
                && GROUP_BYTES < bytes + weight
                && matches!(op, Op::Entry { .. } | Op::Local { .. })
            {
                break;
            }
            bytes += weight;
            state.pressing -= usize::from(op.is_pressing());
            ops.extend(state.ops.pop_front());
        }
        if state.ops.is_empty() {
            state.idle_since = None;
        }
        let last_seq = state.last_seq - state.ops.len() as u64;
        Some(Group { ops, bytes, last_seq })
    }

    /// Waits a moment before a write that met a full disk is tried again. `false`: closed meanwhile.
    pub(crate) fn pause(&self, moment: Duration) -> bool {
        let state = self.lock();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, moment, |s| !s.is_closed)
            .unwrap_or_else(|p| p.into_inner());
        !state.is_closed
    }

    /// Nothing is taken until it is released: the moment before a sync, held still.
    #[cfg(test)]
    pub(crate) fn hold(&self, is_held: bool) {
        self.lock().is_held = is_held;
        self.changed.notify_all();
    }

    /// What is queued is still written; nothing may be added.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Nothing is written any more: drops what is queued, and with it the senders of who waits.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.ops.clear();
        state.pressing = 0;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain data: what a panicking holder leaves behind is as good as any.
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_waits_for_what_is_likely_to_carry_it() {
        let queue = Queue::default();
        let committed = || queue.add().push(Op::Committed(LogPos { term: 1, index: 1 }));
        committed();
        assert_eq!(queue.lock().patience(), SLOW_IDLE, "nothing is known yet");
        assert_eq!(queue.take().map(|group| group.ops.len()), Some(1));
        let since = queue.lock().lone_since.expect("it was written by itself");
        // The next entry would have come in time.
        queue.lock().on_pressing(since + IDLE - Duration::from_millis(1));
        committed();
        assert_eq!(queue.lock().patience(), IDLE);
        assert!(queue.take().is_some(), "in vain");
        let since = queue.lock().lone_since.expect("it was written by itself");
        queue.lock().on_pressing(since + IDLE);
        assert_eq!(queue.lock().patience(), SLOW_IDLE);
    }
}
