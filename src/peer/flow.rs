//! How much log data left for a node that may be new to it.
//!
//! What gets no answer is sent again, and again, with what was accepted since behind it: bytes that leave are no sign that
//! anything arrives. So bytes count while there is no reason to think that they are lost: until an attempt gets no answer
//! in time, or a refusal; from then on not before the node has acknowledged an entry.

use std::sync::{Mutex, MutexGuard};

/// Connections that may break in a row, each with what it had sent counted: a large block takes its time, and a
/// connection may break in the middle of it. By eye.
const BROKEN_MAX: u32 = 3;

/// A lock, held for a few additions.
#[derive(Debug, Default)]
pub(super) struct Flow(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Of all bytes that left: where this attempt began.
    began: u64,
    /// What counted of the attempts before.
    over: u64,
    n_broken: u32,
    /// Nothing counts until an entry is acknowledged.
    is_in_vain: bool,
}

/// Why what was sent is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// There was no connection: the node is not there. When it comes back it may be another story.
    Unreachable,
    /// The connection broke.
    Broken,
    /// No answer came in time, or a refusal.
    InVain,
}

impl Inner {
    fn counted(&self, total: u64) -> u64 {
        if self.is_in_vain { 0 } else { total.saturating_sub(self.began) }
    }

    fn begin(&mut self, total: u64) {
        self.over += self.counted(total);
        self.began = total;
    }
}

impl Flow {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Never falls. `total`: all bytes that left.
    pub(super) fn counted(&self, total: u64) -> u64 {
        let inner = self.lock();
        inner.over + inner.counted(total)
    }

    /// Entries were acknowledged.
    pub(super) fn acknowledged(&self, total: u64) {
        let mut inner = self.lock();
        inner.begin(total);
        (inner.n_broken, inner.is_in_vain) = (0, false);
    }

    pub(super) fn sends_again(&self, total: u64, why: Again) {
        let mut inner = self.lock();
        inner.begin(total);
        match why {
            Again::Unreachable => (inner.n_broken, inner.is_in_vain) = (0, false),
            Again::Broken => {
                inner.n_broken += 1;
                inner.is_in_vain |= BROKEN_MAX <= inner.n_broken;
            }
            Again::InVain => inner.is_in_vain = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_in_vain_does_not_count_whatever_is_sent_behind_it() {
        let flow = Flow::default();
        assert_eq!(flow.counted(100), 100);
        flow.sends_again(100, Again::InVain);
        assert_eq!(flow.counted(250), 100);
        flow.sends_again(250, Again::InVain);
        assert_eq!(flow.counted(10_000), 100);
        flow.sends_again(10_000, Again::Broken);
        assert_eq!(flow.counted(20_000), 100);
        // An acknowledged entry begins anew.
        flow.acknowledged(20_000);
        assert_eq!(flow.counted(20_000), 100);
        assert_eq!(flow.counted(20_010), 110);
    }

    #[test]
    fn a_block_whose_connection_breaks_counts_again_a_few_times() {
        let flow = Flow::default();
        for n in 1..=u64::from(BROKEN_MAX) {
            assert_eq!(flow.counted(100 * n), 100 * n);
            flow.sends_again(100 * n, Again::Broken);
        }
        assert_eq!(flow.counted(900), 300);
        // A node that was away is another story.
        flow.sends_again(900, Again::Unreachable);
        assert_eq!(flow.counted(950), 350);
    }
}
