//! Waiting for a condition, with a deadline and a reason.

use std::{
    thread,
    time::{Duration, Instant},
};

/// For what takes an election or a start at most. By eye: ten times what it takes on two slow cores.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// For what moves much data first.
pub(crate) const LATER: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks until there is an answer, and returns it. Panics with the reason, and with what the last look
/// met, when the time is over.
#[track_caller]
pub(crate) fn wait_for<T>(reason: &str, within: Duration, mut look: impl FnMut() -> anyhow::Result<T>) -> T {
    let begin = Instant::now();
    loop {
        match look() {
            Ok(answer) => return answer,
            Err(e) if within < begin.elapsed() => {
                panic!("{reason}: not within {within:?}, last: {e:#}")
            }
            Err(_) => pause(PAUSE),
        }
    }
}

/// Between two attempts of something that is repeated.
#[expect(clippy::disallowed_methods, reason = "the one place in the tests where a poll waits")]
pub(crate) fn pause(time: Duration) {
    thread::sleep(time);
}
