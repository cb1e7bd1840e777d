//! The long-running tasks of a node: named, joined, and none may end before the node does.

use std::{fmt, future::Future};

use tokio::task::JoinSet;
use tracing::Instrument;

/// A task that ended although the node goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("task {name} ended: {why}")]
pub(crate) struct EndedEarly {
    pub(crate) name: &'static str,
    pub(crate) why: String,
}

/// Owns the tasks. Dropped: they are aborted.
#[derive(Default)]
pub(crate) struct Tasks {
    set: JoinSet<(&'static str, Result<(), String>)>,
}

impl Tasks {
    /// Starts a task in a span of its name.
    pub(crate) fn spawn<E>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: fmt::Display + 'static,
    {
        let span = tracing::debug_span!("task", name);
        self.set.spawn(async move { (name, task.await.map_err(|e| e.to_string())) }.instrument(span));
    }

    /// Completes when a task ends that should not have. Tasks that may end return `Ok` and are
    /// forgotten.
    pub(crate) async fn ended_early(&mut self) -> EndedEarly {
        loop {
            match self.set.join_next().await {
                Some(Ok((_, Ok(())))) => {}
                Some(Ok((name, Err(why)))) => return EndedEarly { name, why },
                Some(Err(joined)) if joined.is_panic() => {
                    let why = panic_text(joined.into_panic());
                    return EndedEarly { name: "unnamed", why };
                }
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Waits a bounded time for tasks that were told to end.
    pub(crate) async fn drain(&mut self, within: std::time::Duration) {
        // Some tasks end with raft only: those are still there afterwards.
        let _ = tokio::time::timeout(within, async { while self.set.join_next().await.is_some() {} }).await;
    }

    /// Aborts what is left and waits for it.
    pub(crate) async fn stop(&mut self) {
        self.set.shutdown().await;
    }
}

fn panic_text(panic: Box<dyn std::any::Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast::<&'static str>().map_or("a panic".into(), |text| (*text).into()),
    }
}
