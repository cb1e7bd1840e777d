//! Where missed blocks are read: the store, or a model of it in tests.

use futures::future::BoxFuture;

use crate::store::Reader;
use crate::store::reader::replay::{Place, Replay, ReplayError};
use crate::store::tap::Told;

pub(crate) type Replaying = BoxFuture<'static, Result<Replay, ReplayError>>;

pub(crate) trait Source: Send + Sync + 'static {
    /// Blocks from a place on, as [`Reader::replay`] gives them.
    fn replay(&self, from: Place, limit: usize, max_bytes: u64) -> Replaying;

    /// How far this node has applied the log.
    fn applied(&self) -> Told;
}

impl Source for Reader {
    fn replay(&self, from: Place, limit: usize, max_bytes: u64) -> Replaying {
        let reader = self.clone();
        let read = tokio::task::spawn_blocking(move || Self::replay(&reader, from, limit, max_bytes));
        Box::pin(async {
            read.await.unwrap_or_else(|_| Err(ReplayError::Storage("the read broke off".into())))
        })
    }

    fn applied(&self) -> Told {
        let view = self.view();
        Told { index: view.applied.index, height: view.head.as_ref().map(|head| head.height) }
    }
}
