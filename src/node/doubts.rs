//! Snapshots that another node found damaged: what was sent is looked at here, and replaced.
//!
//! Raft offers the newest snapshot again and again. On an idle chain no other one is ever due, so that one
//! damaged file here would keep a follower away for ever.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::consensus::handle::Handle;
use crate::store::snapshot::check::Problem;
use crate::store::{Reader, Snapshots};

/// How long another snapshot may take before the matter rests until it is doubted again. By eye.
const REPLACED_WITHIN: Duration = Duration::from_secs(60);

/// Where doubts are noted. Cheap to clone.
#[derive(Clone)]
pub(super) struct Doubts {
    /// Id of the snapshot that was doubted last.
    newest: Arc<watch::Sender<Option<String>>>,
}

impl Default for Doubts {
    fn default() -> Self {
        Self { newest: Arc::new(watch::Sender::new(None)) }
    }
}

impl Doubts {
    pub(super) fn note(&self, id: &str) {
        self.newest.send_replace(Some(id.to_owned()));
    }
}

/// Looks at what is doubted.
pub(super) struct Judge {
    pub(super) reader: Reader,
    pub(super) snapshots: Snapshots,
    pub(super) raft: Handle,
}

impl Judge {
    /// Runs until it is dropped.
    pub(super) async fn run(self, doubts: Doubts) {
        let mut newest = doubts.newest.subscribe();
        while newest.changed().await.is_ok() {
            let doubted = newest.borrow_and_update().clone();
            if let Some(id) = doubted {
                self.judge(&id).await;
            }
        }
    }

    async fn judge(&self, id: &str) {
        let (snapshots, reader, looked_at) = (self.snapshots.clone(), self.reader.clone(), id.to_owned());
        let look = move || {
            let problem = snapshots.check_files(&looked_at)?.into_iter().next()?;
            let is_shared = reader.state_shares(&snapshots.file_of(&looked_at, &problem.file));
            Some((problem, is_shared))
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(Some((Problem { file, what }, true))) => {
                // A new one would link to the same file: the state itself is what is damaged.
                self.reader.state_is_damaged(&format!("{file}: {what}"));
            }
            Ok(Some((Problem { file, what }, false))) => self.replace(id, format!("{file}: {what}")).await,
            // Gone already, or damaged on its way.
            Ok(None) | Err(_) => {}
        }
    }

    /// Raft must always find a snapshot: so another one is made before this one is set aside.
    async fn replace(&self, id: &str, what: String) {
        let other = self.snapshots.reserve();
        let mut progress = self.snapshots.progress();
        self.raft.ask_snapshot();
        let made =
            async { while self.snapshots.describe(&other).is_none() && progress.changed().await.is_ok() {} };
        if tokio::time::timeout(REPLACED_WITHIN, made).await.is_err() {
            tracing::warn!(id, what, "a damaged snapshot cannot be replaced yet");
            return;
        }
        let (snapshots, id) = (self.snapshots.clone(), id.to_owned());
        let aside = tokio::task::spawn_blocking(move || snapshots.set_aside(&id, &what)).await;
        if let Ok(Err(error)) = aside {
            tracing::warn!(%error, "a damaged snapshot cannot be set aside");
        }
    }
}
