//! Stalls of the process, and jumps of its wall clock: what a short sleep overslept.
//!
//! Shows stolen CPU, a stopped process and a blocked runtime alike. [`Stalls::sample`] is a task;
//! who explains an election asks [`Stalls::recent`] and [`Stalls::recent_jump_ms`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use prometheus::{Counter, Registry};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::telemetry::ticks;

const SLEEP: Duration = Duration::from_millis(100);
/// What a busy machine oversleeps at times without harm, by eye.
const TOLERATED: Duration = Duration::from_millis(50);
/// What a clock that is slewed is put right by in one sleep is far below it.
const JUMP_MS_MIN: i64 = 50;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Stalls {
    seconds: Counter,
    /// Of the last stall: when it ended, in milliseconds since `started`, plus one (0: none); and how
    /// long it was. Two atomics that may be read apart: this is a hint for people.
    ended_ms: Arc<AtomicU64>,
    length_ms: Arc<AtomicU64>,
    /// Of the last jump: when it was seen, as above, and how far the wall clock went.
    jumped_ms: Arc<AtomicU64>,
    jump_ms: Arc<AtomicI64>,
    started: Instant,
}

impl Stalls {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let seconds = Counter::new(
            "blockraft_runtime_stall_seconds_total",
            "Seconds that sleeps of 100 ms overslept beyond 50 ms: stolen CPU, a stopped process, a blocked runtime.",
        )?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self {
            seconds,
            ended_ms: Arc::default(),
            length_ms: Arc::default(),
            jumped_ms: Arc::default(),
            jump_ms: Arc::default(),
            started: Instant::now(),
        })
    }

    /// Runs until `stop`.
    pub(crate) async fn sample(self, stop: CancellationToken) {
        let mut ends = ticks::every(SLEEP);
        loop {
            let (before, wall_before) = (Instant::now(), SystemTime::now());
            let Some(due) = stop.run_until_cancelled(ends.tick()).await else { return };
            self.note(SLEEP + due.elapsed());
            self.note_jump(signed_ms(wall_before, SystemTime::now()) - whole_ms(before.elapsed()) as i64);
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

    fn note_jump(&self, ms: i64) {
        if JUMP_MS_MIN <= ms.abs() {
            self.jump_ms.store(ms, Ordering::Relaxed);
            self.jumped_ms.store(whole_ms(self.started.elapsed()) + 1, Ordering::Relaxed);
        }
    }

    /// How far the wall clock went by itself, if it did within `window`; negative: backwards.
    pub(crate) fn recent_jump_ms(&self, window: Duration) -> Option<i64> {
        let seen = Duration::from_millis(self.jumped_ms.load(Ordering::Relaxed).checked_sub(1)?);
        let age = self.started.elapsed().saturating_sub(seen);
        (age <= window).then(|| self.jump_ms.load(Ordering::Relaxed))
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

fn signed_ms(from: SystemTime, to: SystemTime) -> i64 {
    match to.duration_since(from) {
        Ok(ahead) => whole_ms(ahead) as i64,
        Err(back) => -(whole_ms(back.duration()) as i64),
    }
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

    #[test]
    fn a_clock_that_is_set_is_told_of() {
        let stalls = Stalls::register(&Registry::new()).expect("a fresh registry");
        stalls.note_jump(3);
        assert_eq!(stalls.recent_jump_ms(Duration::from_secs(60)), None);
        stalls.note_jump(-7_000);
        assert_eq!(stalls.recent_jump_ms(Duration::from_secs(60)), Some(-7_000));
    }
}
