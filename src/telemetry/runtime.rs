//! Stalls of the process: what a short sleep overslept.
//!
//! Shows stolen CPU, a stopped process and a blocked runtime alike. [`Stalls::sample`] is a task;
//! who explains an election asks [`Stalls::recent`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus::{Counter, Registry};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const SLEEP: Duration = Duration::from_millis(100);
/// What a busy machine oversleeps at times without harm, by eye.
const TOLERATED: Duration = Duration::from_millis(50);

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Stalls {
    seconds: Counter,
    /// Of the last stall: when it ended, in milliseconds since `started`, plus one (0: none); and how
    /// long it was. Two atomics that may be read apart: this is a hint for people.
    ended_ms: Arc<AtomicU64>,
    length_ms: Arc<AtomicU64>,
    started: Instant,
}

impl Stalls {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let seconds = Counter::new(
            "blockraft_runtime_stall_seconds_total",
            "Seconds that sleeps of 100 ms overslept beyond 50 ms: stolen CPU, a stopped process, a blocked runtime.",
        )?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self { seconds, ended_ms: Arc::default(), length_ms: Arc::default(), started: Instant::now() })
    }

    /// Runs until `stop`.
    pub(crate) async fn sample(self, stop: CancellationToken) {
        loop {
            let before = Instant::now();
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SLEEP) => self.note(before.elapsed()),
            }
        }
    }

    fn note(&self, slept: Duration) {
        let over = slept.saturating_sub(SLEEP + TOLERATED);
        if !over.is_zero() {
            self.seconds.inc_by(over.as_secs_f64());
            self.length_ms.store(whole_ms(over), Ordering::Relaxed);
            self.ended_ms.store(whole_ms(self.started.elapsed()) + 1, Ordering::Relaxed);
        }
    }

    /// The last stall that ended within `window`: how long it was.
    pub(crate) fn recent(&self, window: Duration) -> Option<Duration> {
        let ended = Duration::from_millis(self.ended_ms.load(Ordering::Relaxed).checked_sub(1)?);
        let age = self.started.elapsed().saturating_sub(ended);
        (age <= window).then(|| Duration::from_millis(self.length_ms.load(Ordering::Relaxed)))
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_beyond_the_tolerance_counts() {
        let stalls = Stalls::register(&Registry::new()).expect("a fresh registry");
        stalls.note(Duration::from_millis(149));
        assert_eq!((stalls.seconds.get(), stalls.recent(Duration::from_secs(60))), (0.0, None));
        stalls.note(Duration::from_millis(650));
        assert!((stalls.seconds.get() - 0.5).abs() < 1e-9);
        assert_eq!(stalls.recent(Duration::from_secs(60)), Some(Duration::from_millis(500)));
    }
}
