//! The subscriptions of one WebSocket, by their ids, whichever method made them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

use jsonrpsee::server::MethodSink;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::feed::room::Outlet;

/// One WebSocket.
///
/// A lock, held for a look-up: calls of one connection run at the same time.
#[derive(Debug)]
pub(crate) struct Session {
    endings: Mutex<HashMap<String, Ending>>,
    /// What its subscriptions to blocks share.
    pub(crate) outlet: Arc<Outlet>,
    /// The way to the connection; there from the first call on.
    sink: OnceLock<MethodSink>,
    /// Of reads whose answers may be large and are not with the connection yet.
    pub(crate) large_answers: Arc<Semaphore>,
}

/// By eye: as many as keep a reader busy, each of up to twice `api.max_body`.
const LARGE_ANSWERS_MAX: usize = 4;

#[derive(Debug, Clone)]
struct Ending {
    is_wanted: CancellationToken,
    has_ended: CancellationToken,
}

impl Session {
    pub(crate) fn new(outlet: Arc<Outlet>) -> Self {
        let large_answers = Arc::new(Semaphore::new(LARGE_ANSWERS_MAX));
        Self { endings: Mutex::default(), outlet, sink: OnceLock::new(), large_answers }
    }

    pub(crate) fn attach(&self, sink: MethodSink) {
        // One that is there already is the same.
        let _ = self.sink.set(sink);
    }

    pub(crate) fn sink(&self) -> Option<&MethodSink> {
        self.sink.get()
    }

    fn endings(&self) -> MutexGuard<'_, HashMap<String, Ending>> {
        self.endings.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A subscription begins.
    pub(crate) fn begin(self: &Arc<Self>, id: &str) -> Held {
        let ending = Ending { is_wanted: CancellationToken::new(), has_ended: CancellationToken::new() };
        self.endings().insert(id.to_owned(), ending.clone());
        Held { session: self.clone(), id: id.to_owned(), ending }
    }

    /// Ends a subscription: nothing of it is sent from here on. False: there is none.
    pub(crate) async fn end(&self, id: &str) -> bool {
        let Some(ending) = self.endings().remove(id) else { return false };
        ending.is_wanted.cancel();
        ending.has_ended.cancelled().await;
        true
    }
}

/// A subscription's place in its session; given back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    session: Arc<Session>,
    id: String,
    ending: Ending,
}

impl Held {
    /// Completes when the client unsubscribes.
    pub(crate) async fn unsubscribed(&self) {
        self.ending.is_wanted.cancelled().await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.session.endings().remove(&self.id);
        self.ending.has_ended.cancel();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn an_unsubscribe_is_answered_when_nothing_more_can_come() {
        let session = Arc::new(Session::new(Outlet::lone()));
        let (first, second) = (session.begin("a"), session.begin("b"));
        assert!(!session.end("c").await);
        let mut ending = Box::pin(session.end("a"));
        assert!(ending.as_mut().now_or_never().is_none(), "it is still being sent");
        first.unsubscribed().await;
        drop(first);
        assert!(ending.await);
        assert!(!session.end("a").await);
        drop(second);
        assert!(!session.end("b").await, "it had ended by itself");
    }
}
