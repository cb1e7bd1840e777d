//! A block on its way to subscribers: one for all of them, gone with the last that takes it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::instants::Instants;
use crate::instants::event::Delivered;
use crate::types::feed::Applied;
use crate::types::position::LogPos;

/// What a block costs beside its payload, by eye.
const OVERHEAD_BYTES: u64 = 512;

/// Dropped, it tells how it was delivered.
pub(crate) struct Live {
    /// As it is handed over.
    pub(super) applied: Applied,
    applied_at: Instant,
    /// Subscribers it was for.
    offered: AtomicU32,
    /// Those that took it.
    taken: AtomicU32,
    instants: Arc<Instants>,
}

impl Live {
    pub(super) fn new(applied: Applied, applied_at: Instant, instants: Arc<Instants>) -> Self {
        Self { applied, applied_at, offered: AtomicU32::new(0), taken: AtomicU32::new(0), instants }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.applied.block.payload_bytes() + OVERHEAD_BYTES
    }

    pub(super) fn offer(&self) {
        self.offered.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn take(&self) -> Applied {
        self.taken.fetch_add(1, Ordering::Relaxed);
        self.applied.clone()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let subscribers = *self.offered.get_mut();
        let delivered = *self.taken.get_mut();
        let ended = Instant::now();
        let took = ended - self.applied_at;
        self.instants.delivered(Delivered {
            pos: LogPos { term: self.applied.term, index: self.applied.index },
            started: self.applied_at,
            ended,
            subscribers: subscribers.into(),
            delivered: delivered.into(),
        });
        // Those that read the store get it from there.
        if subscribers == 0 {
            return;
        }
        tracing::debug!(
            term = self.applied.term,
            index = self.applied.index,
            height = self.applied.block.height,
            subscribers,
            delivered,
            took_us = took.as_micros() as u64,
            "block delivered"
        );
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} at {}", self.applied.block.height, self.applied.index)
    }
}
