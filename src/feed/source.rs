//! Where missed blocks are read: the store, or a model of it in tests.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use crate::store::Reader;
use crate::store::reader::replay::{Place, Replay, ReplayError};
use crate::store::tap::Told;

/// Reads of the store at once, for all subscriptions. By eye, for two to eight cores.
const READS_MAX: usize = 4;

pub(crate) type Replaying = BoxFuture<'static, Result<Replay, ReplayError>>;

pub(crate) trait Source: Send + Sync + 'static {
    /// Blocks from a place on, as [`Reader::replay`] gives them: never above `max_bytes`. Who waits for it may
    /// look seldom.
    fn replay(&self, from: Place, limit: usize, max_bytes: u64) -> Replaying;

    /// How far this node has applied the log.
    fn applied(&self) -> Told;
}

/// Blocking work, a few pieces at once.
#[derive(Clone)]
struct Turns(Arc<Semaphore>);

impl Turns {
    fn new(n: usize) -> Self {
        Self(Arc::new(Semaphore::new(n)))
    }

    /// `None`: it broke off.
    fn take<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> BoxFuture<'static, Option<T>> {
        let turns = self.0.clone();
        // A task of its own takes the turn and gives it back: a reader whose socket is full, or whose program is
        // busy elsewhere, does not look, and would keep the turn from all others.
        let working = AbortOnDropHandle::new(tokio::spawn(async move {
            let turn = turns.acquire_owned().await.expect("the semaphore is never closed");
            let blocking = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                work()
            });
            blocking.await.ok()
        }));
        Box::pin(async { working.await.ok().flatten() })
    }
}

/// The store, read a few times at once.
pub(crate) struct Store {
    reader: Reader,
    turns: Turns,
}

impl Store {
    pub(crate) fn new(reader: Reader) -> Self {
        Self { reader, turns: Turns::new(READS_MAX) }
    }
}

impl Source for Store {
    fn replay(&self, from: Place, limit: usize, max_bytes: u64) -> Replaying {
        let reader = self.reader.clone();
        let read = self.turns.take(move || reader.replay(from, limit, max_bytes));
        Box::pin(async {
            read.await.unwrap_or_else(|| Err(ReplayError::Storage("the read broke off".into())))
        })
    }

    fn applied(&self) -> Told {
        let view = self.reader.view();
        Told { index: view.applied.index, height: view.head.as_ref().map(|head| head.height) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_does_not_look_keeps_no_turn() {
        let turns = Turns::new(1);
        let mut waiting: Vec<_> = (0..8).map(|n| turns.take(move || n)).collect();
        assert_eq!(turns.take(|| 99).await, Some(99));
        drop(waiting.remove(0));
        for (n, work) in waiting.into_iter().enumerate() {
            assert_eq!(work.await, Some(n + 1), "it was done meanwhile");
        }
        assert_eq!(turns.take(|| panic!("on purpose")).await, None::<()>);
        assert_eq!(turns.take(|| 1).await, Some(1));
    }
}
