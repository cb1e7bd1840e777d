//! Dropping the files that hold nothing but forgotten blocks.
//!
//! Pruning itself is the machine's and takes effect by the floor alone; here the disk space comes
//! back, in whole files, off the apply path. No range tombstones: they cost more than they free.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::store::metrics::Metrics;
use crate::store::state::db::{Family, StateDb, height_key};
use crate::types::Height;

/// Heights the floor moves between two looks. By eye: a look rewrites a little of the manifest, and
/// a block may weigh 15 MiB.
const HEIGHTS: u64 = 64;

/// Owned by the state machine.
pub(crate) struct Pruner {
    looked_at: Height,
    is_running: Arc<AtomicBool>,
}

impl Pruner {
    pub(crate) fn new(floor: Height) -> Self {
        Self { looked_at: floor, is_running: Arc::default() }
    }

    /// The floor moved. Drops files on a blocking thread, one look at a time, and never above the
    /// floor of the last flush: a crash brings that one back, and with it the blocks above it.
    pub(crate) fn pruned_to(&mut self, floor: Height, db: &Arc<StateDb>, metrics: &Arc<Metrics>) {
        let floor = floor.min(db.durable_floor());
        if floor < self.looked_at + HEIGHTS || self.is_running.swap(true, Ordering::AcqRel) {
            return;
        }
        self.looked_at = floor;
        let (db, metrics, is_running) = (db.clone(), metrics.clone(), self.is_running.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(e) = drop_files(&db, floor) {
                metrics.error("state", "write");
                tracing::warn!(error = %e, floor, "files of forgotten blocks stay for now");
            }
            is_running.store(false, Ordering::Release);
        });
    }
}

/// Drops whole files below a height; both ends of the range are inclusive.
pub(crate) fn drop_files(db: &StateDb, floor: Height) -> Result<(), rocksdb::Error> {
    let Some(last) = floor.checked_sub(1) else { return Ok(()) };
    for family in [Family::Blocks, Family::Rows] {
        db.db().delete_file_in_range_cf(db.family(family), height_key(0), height_key(last))?;
    }
    Ok(())
}
