//! How old entries are, for the gauges that are seconds.

use std::time::Duration;

use crate::types::LogIndex;

/// How long entries have been where they are, as far as it is remembered; supplied by `node`.
pub(crate) trait Ages: Send + Sync + 'static {
    fn since_appended(&self, index: LogIndex) -> Option<Duration>;
    fn since_committed(&self, index: LogIndex) -> Option<Duration>;
}

/// Age of the oldest entry behind `matched`. One that is not remembered any more is older than all
/// that are, so the oldest of those is shown: it rises as long as the peer stands.
pub(super) fn lag_seconds(matched: LogIndex, last: LogIndex, ages: &dyn Ages) -> Duration {
    if last <= matched {
        return Duration::ZERO;
    }
    // The indexes that are remembered end with the last one: halving finds the first of them.
    let (mut forgotten, mut known) = (matched, last);
    if let Some(age) = ages.since_appended(matched + 1) {
        return age;
    }
    while forgotten + 1 < known {
        let middle = forgotten + (known - forgotten) / 2;
        match ages.since_appended(middle) {
            Some(_) => known = middle,
            None => forgotten = middle,
        }
    }
    ages.since_appended(known).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers the entries from an index on; each is as many seconds old as it lies behind the last.
    struct From(LogIndex, LogIndex);

    impl Ages for From {
        fn since_appended(&self, index: LogIndex) -> Option<Duration> {
            (self.0 <= index).then(|| Duration::from_secs(self.1 - index))
        }

        fn since_committed(&self, _: LogIndex) -> Option<Duration> {
            None
        }
    }

    #[test]
    fn the_lag_of_a_peer_is_the_age_of_what_it_lacks() {
        let lag = |matched, known_from| lag_seconds(matched, 100, &From(known_from, 100)).as_secs();
        assert_eq!(lag(100, 0), 0);
        assert_eq!(lag(89, 0), 10);
        assert_eq!(lag(89, 95), 5, "of what is remembered the oldest");
        assert_eq!(lag(89, 200), 0, "nothing is remembered");
    }
}
