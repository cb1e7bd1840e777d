//! How far another node's clock is from this one's, from round trips as NTP takes it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Samples looked back on: the one with the shortest round trip is the least wrong. By eye.
const SAMPLES: usize = 8;

/// The two instants of the asker and the two of the answerer, in Unix nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoundTrip {
    pub(super) sent_at_ns: u64,
    pub(super) received_at_ns: u64,
    pub(super) answered_at_ns: u64,
    pub(super) returned_at_ns: u64,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    offset_ns: i128,
    delay_ns: i128,
}

/// The newest round trips with one node.
#[derive(Debug, Default)]
pub(super) struct Offset {
    samples: [Option<Sample>; SAMPLES],
    next: usize,
}

impl Offset {
    /// The other clock minus this one, in seconds; `None` while nothing usable was seen.
    pub(super) fn observe(&mut self, trip: RoundTrip) -> Option<f64> {
        let [t1, t2, t3, t4] =
            [trip.sent_at_ns, trip.received_at_ns, trip.answered_at_ns, trip.returned_at_ns].map(i128::from);
        let delay_ns = (t4 - t1) - (t3 - t2);
        // A clock that was set within the round trip, or stamps that were left out.
        if t2 != 0 && t3 != 0 && 0 <= delay_ns {
            let offset_ns = ((t2 - t1) + (t3 - t4)) / 2;
            self.samples[self.next] = Some(Sample { offset_ns, delay_ns });
            self.next = (self.next + 1) % SAMPLES;
        }
        let best = self.samples.iter().flatten().min_by_key(|sample| sample.delay_ns)?;
        Some(best.offset_ns as f64 / 1e9)
    }
}

/// 0 before 1970.
pub(super) fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trip(sent: u64, received: u64, answered: u64, returned: u64) -> RoundTrip {
        RoundTrip {
            sent_at_ns: sent,
            received_at_ns: received,
            answered_at_ns: answered,
            returned_at_ns: returned,
        }
    }

    #[test]
    fn time_spent_by_the_answerer_does_not_count() {
        let mut offset = Offset::default();
        // The other clock is 1000 ahead, each way takes 10, the answer 500.
        assert_eq!(offset.observe(trip(100, 1_110, 1_610, 620)), Some(1_000.0 / 1e9));
    }

    #[test]
    fn the_shortest_round_trip_decides() {
        let mut offset = Offset::default();
        offset.observe(trip(100, 1_110, 1_110, 120));
        // A delayed answer looks like another offset.
        assert_eq!(offset.observe(trip(1_000, 2_010, 2_010, 9_000)), Some(1_000.0 / 1e9));
    }

    #[test]
    fn a_clock_set_backwards_within_the_trip_is_no_sample() {
        let mut offset = Offset::default();
        assert_eq!(offset.observe(trip(1_000, 1_000, 1_000, 500)), None);
    }
}
