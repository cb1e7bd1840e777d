//! How much log data left for a node that had not left before.
//!
//! What gets no answer is sent again, and again: bytes that leave are no sign that anything arrives. So an attempt counts
//! only by what it sends beyond the furthest one since the node last acknowledged an entry.

use std::sync::{Mutex, MutexGuard};

/// A lock, held for a few additions.
#[derive(Debug, Default)]
pub(super) struct Flow(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Of all bytes that left: where this attempt began.
    began: u64,
    /// What the furthest attempt sent since an entry was acknowledged.
    furthest: u64,
    /// New bytes of attempts that are over.
    over: u64,
}

impl Inner {
    fn new_bytes(&self, total: u64) -> u64 {
        total.saturating_sub(self.began).saturating_sub(self.furthest)
    }
}

impl Flow {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Never falls. `total`: all bytes that left, those that left again too.
    pub(super) fn new_bytes(&self, total: u64) -> u64 {
        let inner = self.lock();
        inner.over + inner.new_bytes(total)
    }

    /// Entries were acknowledged: whatever is sent now was not.
    pub(super) fn acknowledged(&self, total: u64) {
        let mut inner = self.lock();
        inner.over += inner.new_bytes(total);
        (inner.began, inner.furthest) = (total, 0);
    }

    /// What was sent and not acknowledged is sent again.
    pub(super) fn failed(&self, total: u64) {
        let mut inner = self.lock();
        inner.over += inner.new_bytes(total);
        inner.furthest = inner.furthest.max(total.saturating_sub(inner.began));
        inner.began = total;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_again_is_not_new() {
        let flow = Flow::default();
        assert_eq!(flow.new_bytes(100), 100);
        flow.failed(100);
        // The same again, and again.
        assert_eq!(flow.new_bytes(150), 100);
        assert_eq!(flow.new_bytes(200), 100);
        flow.failed(200);
        flow.failed(260);
        assert_eq!(flow.new_bytes(360), 100);
        // One that gets further.
        assert_eq!(flow.new_bytes(370), 110);
        flow.failed(370);
        assert_eq!(flow.new_bytes(480), 110);
        assert_eq!(flow.new_bytes(481), 111);
        // An acknowledged entry begins anew.
        flow.acknowledged(481);
        assert_eq!(flow.new_bytes(481), 111);
        assert_eq!(flow.new_bytes(491), 121);
    }
}
