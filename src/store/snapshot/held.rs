//! Readers of snapshots.

use std::sync::{Arc, Weak};

use crate::store::snapshot::{Inner, Snapshots};

/// A snapshot that somebody reads. One that was beyond what is retained meanwhile goes when it is let go of:
/// the next build may be far away.
pub(super) struct Held {
    pin: Arc<()>,
    of: Weak<Inner>,
}

impl Held {
    pub(super) fn new(snapshots: &Snapshots, pin: Arc<()>) -> Self {
        Self { pin, of: Arc::downgrade(&snapshots.inner) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pin = Arc::default();
        let Some(inner) = self.of.upgrade() else { return };
        let snapshots = Snapshots { inner };
        if snapshots.inner.retain < snapshots.stored().len() {
            // Whoever reads may be a task, and deleting blocks.
            let deleting = move || {
                snapshots.prune();
                snapshots.show();
            };
            if let Err(error) = std::thread::Builder::new().name("store-prune".into()).spawn(deleting) {
                tracing::warn!(%error, "an old snapshot stays until the next one is made");
            }
        }
    }
}
