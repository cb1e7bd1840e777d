//! What happened to the blocks of a run.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use tokio::time::Instant;

/// Longest latency that is told apart, in µs: ten minutes.
const LATENCY_US_MAX: u64 = 600_000_000;
/// Three digits: 0.1 % is finer than any run repeats.
const DIGITS: u8 = 3;

/// Counts of one run. A latency counts when its block was due in the window; a block counts for the
/// throughput when it was acknowledged in the window.
#[derive(Debug)]
pub(crate) struct Tally {
    from: Instant,
    to: Instant,
    /// Arrivals in the window, as far as the run went: set at its end. 0 in a closed loop.
    pub(crate) planned: u64,
    pub(crate) latencies: Histogram<u64>,
    pub(crate) acked_in_window: u64,
    /// All of them, warm-up included.
    pub(crate) acked: u64,
    /// Answers that the block was there already: of blocks proposed again.
    pub(crate) duplicates: u64,
    pub(crate) refused: BTreeMap<String, u64>,
    pub(crate) reconnects: u64,
    /// When the last one was acknowledged: the measured time ends there when a run is cut short.
    pub(crate) last: Option<Instant>,
    /// Longest time between two acknowledgements in the window, or from its beginning to the first.
    longest_gap: Duration,
}

impl Tally {
    pub(crate) fn new(from: Instant, to: Instant) -> Self {
        let latencies = Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS)
            .expect("the bounds are in order and the digits in range");
        Self {
            from,
            to,
            planned: 0,
            latencies,
            acked_in_window: 0,
            acked: 0,
            duplicates: 0,
            refused: BTreeMap::new(),
            reconnects: 0,
            last: None,
            longest_gap: Duration::ZERO,
        }
    }

    pub(crate) fn acked(&mut self, due: Instant, now: Instant, is_duplicate: bool) {
        self.acked += 1;
        self.duplicates += u64::from(is_duplicate);
        if (self.from..self.to).contains(&due) {
            let latency = now.saturating_duration_since(due).as_micros() as u64;
            self.latencies.saturating_record(latency);
        }
        if (self.from..self.to).contains(&now) {
            self.acked_in_window += 1;
        }
        self.longest_gap = self.longest_gap(now);
        self.last = Some(now);
    }

    pub(crate) fn refused(&mut self, reason: &str) {
        *self.refused.entry(reason.to_string()).or_default() += 1;
    }

    /// Longest time in the window without an acknowledgement, until `now`: to its end too, when none came any more.
    pub(crate) fn longest_gap(&self, now: Instant) -> Duration {
        let before = self.last.map_or(self.from, |last| last.max(self.from));
        self.longest_gap.max(self.to.min(now).saturating_duration_since(before))
    }

    /// What was measured until `now`.
    pub(crate) fn measured(&self, now: Instant) -> Duration {
        self.to.min(now).saturating_duration_since(self.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_window_counts() {
        let start = Instant::now();
        let ms = |n: u64| start + Duration::from_millis(n);
        let mut tally = Tally::new(ms(100), ms(200));
        tally.acked(ms(50), ms(60), false); // in the warm-up
        tally.acked(ms(90), ms(110), false); // due before, acknowledged in the window
        tally.acked(ms(150), ms(170), false);
        tally.acked(ms(190), ms(230), true); // due in the window, acknowledged after it
        assert_eq!(
            (tally.acked, tally.acked_in_window, tally.latencies.len(), tally.duplicates),
            (4, 2, 2, 1)
        );
        assert_eq!(tally.longest_gap(ms(900)), Duration::from_millis(60));
        assert!((19_000..41_000).contains(&tally.latencies.min()) && tally.latencies.max() >= 39_000);
        assert_eq!(tally.measured(ms(150)), Duration::from_millis(50));
        assert_eq!(tally.measured(ms(900)), Duration::from_millis(100));
    }

    #[test]
    fn an_outage_to_the_end_of_the_window_is_a_gap() {
        let start = Instant::now();
        let ms = |n: u64| start + Duration::from_millis(n);
        let mut tally = Tally::new(ms(100), ms(500));
        assert_eq!(tally.longest_gap(ms(900)), Duration::from_millis(400));
        tally.acked(ms(110), ms(120), false);
        assert_eq!(tally.longest_gap(ms(220)), Duration::from_millis(100), "cut short");
        assert_eq!(tally.longest_gap(ms(900)), Duration::from_millis(380));
        tally.acked(ms(130), ms(600), false);
        assert_eq!(tally.longest_gap(ms(900)), Duration::from_millis(380));
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        let mut tally = Tally::new(Instant::now(), Instant::now());
        for reason in ["gap", "overloaded", "gap"] {
            tally.refused(reason);
        }
        assert_eq!(tally.refused, BTreeMap::from([("gap".to_string(), 2), ("overloaded".to_string(), 1)]));
    }
}
