//! When blocks are due.
//!
//! [`Arrivals`] is pure arithmetic. [`Pacer`] wakes the sender: a thread, since the runtime's timers have
//! a resolution of a millisecond, as long as a block takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// Between two wakes at a high rate: a tenth of the millisecond that a block takes, and still cheap.
const WAKE_MIN: Duration = Duration::from_micros(100);

/// Fixed times of arrival, or none: then a block is due whenever there is room for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrivals {
    start: Instant,
    /// Blocks a second.
    rate: Option<f64>,
}

impl Arrivals {
    pub(crate) fn new(start: Instant, rate: Option<f64>) -> Self {
        Self { start, rate }
    }

    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    pub(crate) fn is_open(&self) -> bool {
        self.rate.is_some()
    }

    /// When block `n` is due, counted from zero.
    pub(crate) fn due(&self, n: u64) -> Option<Instant> {
        self.rate.map(|rate| self.start + Duration::from_secs_f64(n as f64 / rate))
    }

    /// How many are due before `at`.
    pub(crate) fn count_before(&self, at: Instant) -> u64 {
        let Some(rate) = self.rate else { return 0 };
        let Some(since) = at.checked_duration_since(self.start) else { return 0 };
        let mut n = (since.as_secs_f64() * rate).ceil() as u64;
        // The product is rounded: the exact times decide.
        while self.due(n).is_some_and(|due| due < at) {
            n += 1;
        }
        while 0 < n && self.due(n - 1).is_some_and(|due| at <= due) {
            n -= 1;
        }
        n
    }

    /// None when `to` is before `from`.
    pub(crate) fn count_between(&self, from: Instant, to: Instant) -> u64 {
        self.count_before(to).saturating_sub(self.count_before(from))
    }
}

/// Wakes whoever waits for [`Pacer::woken`] at each arrival. Ends when dropped.
pub(crate) struct Pacer {
    wake: Arc<Notify>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pacer {
    pub(crate) fn start(start: Instant, rate: f64) -> Self {
        let wake = Arc::new(Notify::new());
        let is_over = Arc::new(AtomicBool::new(false));
        let every = Duration::from_secs_f64(1.0 / rate).max(WAKE_MIN);
        let thread = std::thread::Builder::new().name("pacer".into()).spawn({
            let (wake, is_over) = (Arc::clone(&wake), Arc::clone(&is_over));
            move || pace(start, every, &wake, &is_over)
        });
        // Without the thread the sender still wakes by its own timers, a little late.
        Self { wake, is_over, thread: thread.ok() }
    }

    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It waits for nothing else.
            let _ = thread.join();
        }
    }
}

fn pace(start: Instant, every: Duration, wake: &Notify, is_over: &AtomicBool) {
    let mut next = start;
    while !is_over.load(Ordering::Relaxed) {
        let now = Instant::now();
        match next.checked_duration_since(now).filter(|d| !d.is_zero()) {
            Some(left) => std::thread::park_timeout(left),
            None => {
                wake.notify_one();
                // Wakes that were missed are one: the sender counts by itself what is due.
                let missed = now.duration_since(next).as_nanos() / every.as_nanos().max(1);
                next += every * (missed as u32 + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_stand_where_the_rate_puts_them() {
        let start = Instant::now();
        let arrivals = Arrivals::new(start, Some(1_000.0));
        let ms = Duration::from_millis;
        assert_eq!(arrivals.due(0), Some(start));
        assert_eq!(arrivals.due(1_500), Some(start + ms(1_500)));
        assert_eq!(arrivals.count_before(start), 0);
        assert_eq!(arrivals.count_before(start + Duration::from_nanos(1)), 1);
        assert_eq!(arrivals.count_before(start + ms(1)), 1);
        assert_eq!(arrivals.count_between(start + ms(2_000), start + ms(12_000)), 10_000);
        assert_eq!(arrivals.count_between(start + ms(2_000), start + ms(500)), 0, "cut short before");
    }

    #[test]
    fn every_arrival_is_counted_once_whatever_the_rate() {
        let start = Instant::now();
        for rate in [0.7, 3.0, 997.0, 33_333.3] {
            let arrivals = Arrivals::new(start, Some(rate));
            let mut total = 0;
            let mut from = start;
            for i in 1..=200 {
                let to = start + Duration::from_millis(7) * i;
                total += arrivals.count_between(from, to);
                from = to;
            }
            assert_eq!(total, arrivals.count_before(from), "{rate}");
            for n in 0..50 {
                let due = arrivals.due(n).expect("a rate");
                assert_eq!(arrivals.count_before(due), n, "{rate}");
            }
        }
    }

    #[test]
    fn a_closed_loop_has_no_times() {
        let arrivals = Arrivals::new(Instant::now(), None);
        assert!(!arrivals.is_open() && arrivals.due(3).is_none());
        assert_eq!(arrivals.count_before(Instant::now() + Duration::from_secs(9)), 0);
    }

    #[tokio::test]
    async fn the_pacer_wakes_and_ends() {
        let pacer = Pacer::start(Instant::now(), 1_000.0);
        for _ in 0..5 {
            tokio::time::timeout(Duration::from_secs(10), pacer.woken()).await.expect("woken");
        }
        drop(pacer);
    }
}
