//! Moments at which things are looked at: what looks in the same period looks at the same moment.
//!
//! A process that idles is woken by its timers. Ten that go off together wake it once; those of ten
//! tasks that each began when they could wake it ten times.

use std::{sync::LazyLock, time::Duration};

use tokio::time::{Instant, Interval, MissedTickBehavior};

static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The first tick comes at once, the others at the process's multiples of the period. Of those that were
/// missed one comes at once.
pub(crate) struct Ticks {
    is_first: bool,
    interval: Interval,
}

pub(crate) fn every(period: Duration) -> Ticks {
    let mut interval = tokio::time::interval_at(next(*BEGIN, Instant::now(), period), period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    Ticks { is_first: true, interval }
}

impl Ticks {
    /// When it was due. Given up, it loses no tick.
    pub(crate) async fn tick(&mut self) -> Instant {
        match std::mem::take(&mut self.is_first) {
            true => Instant::now(),
            false => self.interval.tick().await,
        }
    }
}

/// The first of the process's multiples of `period` that is not before `moment`; `moment` where it is zero.
pub(crate) fn at_or_after(moment: Instant, period: Duration) -> Instant {
    rounded_up(*BEGIN, moment, period)
}

fn rounded_up(begin: Instant, moment: Instant, period: Duration) -> Instant {
    match since_last(begin, moment, period) {
        Duration::ZERO => moment,
        _ => next(begin, moment, period),
    }
}

fn next(begin: Instant, now: Instant, period: Duration) -> Instant {
    now + (period - since_last(begin, now, period))
}

/// Less than the period, if that is not zero.
fn since_last(begin: Instant, moment: Instant, period: Duration) -> Duration {
    let since = moment.saturating_duration_since(begin).as_nanos();
    // Within one period, which fits.
    Duration::from_nanos(since.checked_rem(period.as_nanos()).unwrap_or(0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_one_period_tick_together() {
        let (begin, period) = (Instant::now(), Duration::from_millis(100));
        let at = |ms| next(begin, begin + Duration::from_millis(ms), period) - begin;
        assert_eq!(at(0), period);
        assert_eq!((at(1), at(99)), (period, period));
        assert_eq!((at(100), at(199)), (2 * period, 2 * period));
        let up = |ms, period| rounded_up(begin, begin + Duration::from_millis(ms), period) - begin;
        assert_eq!((up(0, period), up(1, period)), (Duration::ZERO, period));
        assert_eq!((up(100, period), up(101, period)), (period, 2 * period));
        assert_eq!(up(7, Duration::ZERO), Duration::from_millis(7));
    }
}
