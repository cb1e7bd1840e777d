//! Heavy work in turns, on blocking threads.
//!
//! A turn belongs to the work, not to who waits for it: a blocking thread cannot be called back, and a
//! client that asks and goes away in a loop would otherwise have any number of them at work.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::api::error::Fault;

/// Waits for a turn, then works. Dropped before the turn came, nothing happens; after it, the work goes on
/// and keeps its turn to its end.
pub(crate) async fn run<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
    broke_off: &'static str,
) -> Result<T, Fault> {
    let turn = Arc::clone(turns).acquire_owned().await.map_err(|_| Fault::shutting_down())?;
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work()
    });
    done.await.map_err(|_| Fault::internal(broke_off))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_turn_lasts_as_long_as_the_work_though_nobody_waits_for_it() {
        let turns = Arc::new(Semaphore::new(1));
        let (end_tx, end_rx) = mpsc::channel::<()>();
        let mut asked = Box::pin(run(&turns, move || end_rx.recv(), "it broke off"));
        assert!(asked.as_mut().now_or_never().is_none(), "it is at work");
        drop(asked);
        assert_eq!(turns.available_permits(), 0, "the work goes on");
        end_tx.send(()).unwrap();
        assert_eq!(run(&turns, || 7, "it broke off").await.unwrap(), 7);
    }
}
