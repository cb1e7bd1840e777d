//! tokio as openraft's runtime, with fewer moments at which its tick goes off.
//!
//! openraft looks at its timers every 13/64 of a heartbeat, a hundred times a second at 50 ms, and an idle
//! node's processor time is mostly these wake-ups. What it looks for needs no more than three looks a
//! heartbeat: a follower's patience is drawn from a range many times as wide, and a heartbeat goes out at
//! every third, or the fourth where the core was busy.

use std::{
    future::{self, Future, Ready},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures::future::Either;
use openraft::AsyncRuntime;
use openraft_rt::{Instant as _, OptionalSend};
use openraft_rt_tokio::{TokioInstant, TokioMpsc, TokioMutex, TokioOneshot, TokioRuntime, TokioWatch};

use crate::telemetry::ticks;

/// So little is waited for on the processor: a timer has a grain of a millisecond.
const MOMENT: Duration = Duration::from_micros(2);

/// Nanoseconds between two ticks; 0: as openraft asks. For the whole process, since openraft's runtime has
/// no instances: of several nodes in one process the most impatient decides.
static GRID: AtomicU64 = AtomicU64::new(0);

/// Ticks come three times a heartbeat from now on, and a little later than that: the third after a heartbeat
/// is not to be just too early for the next, which is due from the moment at which the last was sent.
pub(crate) fn tick_for(heartbeat: Duration) {
    let late = (heartbeat / 16).max(Duration::from_millis(1));
    let grid = ((heartbeat + late) / 3).as_nanos() as u64;
    let finer = |old| (old == 0 || grid < old).then_some(grid);
    let _ = GRID.fetch_update(Ordering::Relaxed, Ordering::Relaxed, finer);
}

/// tokio, but [`AsyncRuntime::sleep_until`], which openraft's tick alone waits by, wakes at multiples of a
/// third of a heartbeat.
#[derive(Debug)]
pub(crate) struct Runtime(TokioRuntime);

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = Either<Ready<()>, <TokioRuntime as AsyncRuntime>::Sleep>;
    type Instant = TokioInstant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = TokioMpsc;
    type Watch = TokioWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    #[track_caller]
    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Either::Right(TokioRuntime::sleep(duration))
    }

    /// openraft also waits one microsecond with it, to report several ends of writes at once. It never
    /// returns early: the next tick would be due at the same moment again.
    fn sleep_until(deadline: TokioInstant) -> Self::Sleep {
        let left = deadline.saturating_duration_since(TokioInstant::now());
        if left <= MOMENT {
            let began = std::time::Instant::now();
            while began.elapsed() < left {
                std::hint::spin_loop();
            }
            return Either::Left(future::ready(()));
        }
        let grid = Duration::from_nanos(GRID.load(Ordering::Relaxed));
        Either::Right(tokio::time::sleep_until(ticks::at_or_after(tokio::time::Instant::now() + left, grid)))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: TokioInstant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft_rt::testing::Suite;

    /// openraft's own tests of a runtime, with short ticks: its tests of time want little lateness.
    #[test]
    fn openraft_finds_in_it_what_it_needs() {
        tick_for(Duration::from_millis(10));
        Suite::<Runtime>::test_all();
    }

    #[tokio::test]
    async fn nothing_sleeps_too_short() {
        for micros in [0, 1, 2, 3, 50, 900, 5_000] {
            let deadline = TokioInstant::now() + Duration::from_micros(micros);
            Runtime::sleep_until(deadline).await;
            assert!(deadline <= TokioInstant::now(), "{micros} µs");
        }
    }
}
