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

/// Dropped, it tells how it was delivered; unless [`tell_all`] does.
pub(crate) struct Live {
    /// As it is handed over.
    pub(super) applied: Applied,
    applied_at: Instant,
    /// Subscribers it was for.
    offered: AtomicU32,
    /// Those that took it.
    taken: AtomicU32,
    is_told: bool,
    instants: Arc<Instants>,
}

/// Lets go of blocks that nobody is to be given, and tells at once of those that nobody else holds: a
/// slow subscriber may have thousands of them.
pub(super) fn tell_all(gone: impl IntoIterator<Item = Arc<Live>>, instants: &Instants) {
    let mut last: Vec<Live> = gone.into_iter().filter_map(Arc::into_inner).collect();
    let ended = Instant::now();
    instants.delivered(last.iter_mut().map(|live| live.end(ended)).collect());
}

impl Live {
    pub(super) fn new(applied: Applied, applied_at: Instant, instants: Arc<Instants>) -> Self {
        Self {
            applied,
            applied_at,
            offered: AtomicU32::new(0),
            taken: AtomicU32::new(0),
            is_told: false,
            instants,
        }
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

    /// Nobody holds it any more.
    fn end(&mut self, ended: Instant) -> Delivered {
        self.is_told = true;
        let (subscribers, delivered) = (*self.offered.get_mut(), *self.taken.get_mut());
        // Those that read the store get it from there.
        if 0 < subscribers {
            let took = ended.saturating_duration_since(self.applied_at);
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
        Delivered {
            pos: LogPos { term: self.applied.term, index: self.applied.index },
            started: self.applied_at,
            ended,
            subscribers: subscribers.into(),
            delivered: delivered.into(),
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if !self.is_told {
            let delivered = self.end(Instant::now());
            self.instants.delivered(vec![delivered]);
        }
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} at {}", self.applied.block.height, self.applied.index)
    }
}
