//! How old entries are, for the gauges that are seconds.

use std::time::Duration;

use crate::types::LogIndex;

/// How long entries have been where they are, as far as it is remembered; supplied by `node`.
pub(crate) trait Ages: Send + Sync + 'static {
    fn since_appended(&self, index: LogIndex) -> Option<Duration>;
    fn since_committed(&self, index: LogIndex) -> Option<Duration>;
}

/// Age of the oldest entry behind `done`, up to `last`. One that is not remembered any more is older than all
/// that are, so the oldest of those is shown: it rises as long as `done` stands.
pub(super) fn oldest(done: LogIndex, last: LogIndex, age: impl Fn(LogIndex) -> Option<Duration>) -> Duration {
    if last <= done {
        return Duration::ZERO;
    }
    // The indexes that are remembered end with the last one: halving finds the first of them.
    let (mut forgotten, mut known) = (done, last);
    if let Some(age) = age(done + 1) {
        return age;
    }
    while forgotten + 1 < known {
        let middle = forgotten + (known - forgotten) / 2;
        match age(middle) {
            Some(_) => known = middle,
            None => forgotten = middle,
        }
    }
    age(known).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_of_a_peer_is_the_age_of_what_it_lacks() {
        // The entries from an index on are remembered; each is as many seconds old as it lies behind the last.
        let lag = |matched, known_from| {
            oldest(matched, 100, |i| (known_from <= i).then(|| Duration::from_secs(100 - i))).as_secs()
        };
        assert_eq!(lag(100, 0), 0);
        assert_eq!(lag(89, 0), 10);
        assert_eq!(lag(89, 95), 5, "of what is remembered the oldest");
        assert_eq!(lag(89, 200), 0, "nothing is remembered");
    }
}
