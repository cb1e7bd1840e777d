//! What is being built, and what became of what was built: for those who asked for a snapshot.
//!
//! At most one build runs. Who asks for one is told its id before it begins ([`Snapshots::reserve`]).

use tokio::sync::watch;

use crate::store::snapshot::Snapshots;
use crate::store::state::apply::unix_ms;
use crate::types::position::LogPos;

/// Where building stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    /// Id of the build that runs.
    pub(crate) building: Option<String>,
    /// Builds that ended in this process, whatever came of them.
    pub(crate) ended: u64,
    /// The last one that failed, until one succeeds: its id, and why.
    pub(crate) failed: Option<(String, String)>,
    /// The last one that was received and installed: its id and the last entry in it.
    pub(crate) received: Option<(String, LogPos)>,
    /// Id that was promised for the next build.
    reserved: Option<String>,
}

/// A build that runs. Dropped without an end, it failed.
pub(crate) struct Running {
    progress: watch::Sender<Progress>,
    pub(crate) id: String,
    is_over: bool,
}

impl Snapshots {
    /// The id of the build that runs, else of the next one, which holds at least what is applied now.
    pub(crate) fn reserve(&self) -> String {
        let mut id = String::new();
        self.inner.progress.send_modify(|p| {
            let promised = p.building.as_ref().or(p.reserved.as_ref());
            id = promised.cloned().unwrap_or_else(|| self.new_id());
            if p.building.is_none() {
                p.reserved = Some(id.clone());
            }
        });
        id
    }

    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.inner.progress.subscribe()
    }

    /// A build begins, unless the newest snapshot will do (`is_covered`) and nobody was promised one.
    /// Also says whether somebody was.
    pub(super) fn begin(&self, is_covered: bool) -> Option<(Running, bool)> {
        let mut begun = None;
        self.inner.progress.send_modify(|p| {
            let promised = p.reserved.take();
            if is_covered && promised.is_none() {
                return;
            }
            let is_promised = promised.is_some();
            let id = promised.unwrap_or_else(|| self.new_id());
            p.building = Some(id.clone());
            begun = Some((id, is_promised));
        });
        let progress = self.inner.progress.clone();
        begun.map(|(id, is_promised)| (Running { progress, id, is_over: false }, is_promised))
    }

    /// A build was asked for and there was nothing to build.
    pub(super) fn had_nothing_to_build(&self) {
        self.inner.progress.send_modify(|p| p.ended += 1);
    }

    /// When it was begun and where; the node is part of it, since the files of two nodes differ at the
    /// same position.
    fn new_id(&self) -> String {
        format!("{:x}-{}", unix_ms(), self.inner.node_id)
    }
}

impl Running {
    /// `Err` says why there is no snapshot.
    pub(super) fn end(mut self, result: Result<(), String>) {
        self.tell(result);
    }

    fn tell(&mut self, result: Result<(), String>) {
        self.is_over = true;
        self.progress.send_modify(|p| {
            p.building = None;
            p.ended += 1;
            p.failed = result.err().map(|why| (self.id.clone(), why));
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            self.tell(Err("it was broken off".into()));
        }
    }
}
