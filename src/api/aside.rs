//! Long texts are taken apart beside the workers.
//!
//! A worker that decodes tens of MiB of JSON and hex answers no heartbeat meanwhile, and with one
//! worker (`node/run.rs`) nobody else does: a client's large request would cost the leader its lease.

use std::future::{Future, poll_fn};
use std::pin::pin;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

/// From here on the hand-over, tens of microseconds, is the smaller cost. By eye.
const LONG_BYTES: usize = 256 << 10;

/// Runs work on a text of so many bytes.
pub(crate) fn run<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    if is_long(bytes) { block_in_place(work) } else { work() }
}

/// Awaits work on a text of so many bytes.
pub(crate) async fn wait<F: Future>(bytes: usize, work: F) -> F::Output {
    if !is_long(bytes) {
        return work.await;
    }
    let mut work = pin!(work);
    poll_fn(|cx| block_in_place(|| work.as_mut().poll(cx))).await
}

/// An embedded node may run where there is one thread for all.
fn is_long(bytes: usize) -> bool {
    LONG_BYTES <= bytes && Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn others_run_while_a_long_text_is_worked_on() {
        let (tx, rx) = std::sync::mpsc::channel();
        let waiting = tokio::spawn(wait(LONG_BYTES, async move {
            // Ends only if the other task runs meanwhile.
            rx.recv_timeout(Duration::from_secs(60))
        }));
        let other = tokio::spawn(async move { tx.send(()) });
        assert!(waiting.await.unwrap().is_ok());
        other.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn where_there_is_one_thread_it_does_the_work_itself() {
        assert_eq!(run(LONG_BYTES, || 7), 7);
        assert_eq!(wait(LONG_BYTES, async { 7 }).await, 7);
    }
}
