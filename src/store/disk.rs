//! How much space the disk has left, and the ballast that keeps some of it for reopening.
//!
//! One small thread looks twice a second. The ballast is a file that is removed when a database
//! cannot be opened for lack of space, and made again once there is enough.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::store::health::Health;
use crate::store::log::payloads::Payloads;
use crate::store::rocks::WAL_BYTES_MAX;

/// Between two looks. By eye: a disk that fills at 1 GiB/s loses twice the ballast meanwhile.
const EVERY: Duration = Duration::from_millis(500);
const BALLAST: &str = "BALLAST";
/// Space that must be free beside `store.min_free` before the ballast is made again.
const BALLAST_MARGIN: u64 = 2 * WAL_BYTES_MAX;

/// Below `store.min_free` and this, the log keeps no file that holds nothing. By eye: what it may write between two looks.
const SPARES_MARGIN: u64 = 64 << 20;

/// Ends the thread when told so.
pub(crate) struct Watcher {
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Stop {
    /// Guards a flag between two plain threads.
    is_stopped: Mutex<bool>,
    changed: Condvar,
}

/// Bytes that an ordinary user may still write on the file system of a path.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

impl Watcher {
    pub(crate) fn start(
        data_dir: PathBuf,
        min_free: u64,
        health: Health,
        payloads: Payloads,
    ) -> io::Result<Self> {
        let stop = Arc::<Stop>::default();
        look(&data_dir, min_free, &health, &payloads);
        let thread = std::thread::Builder::new().name("store-disk".into()).spawn({
            let stop = stop.clone();
            move || {
                while !stop.wait() {
                    look(&data_dir, min_free, &health, &payloads);
                }
            }
        })?;
        Ok(Self { stop, thread })
    }

    pub(crate) fn stop(self) {
        *self.stop.is_stopped.lock().unwrap_or_else(|p| p.into_inner()) = true;
        self.stop.changed.notify_all();
        let _ = self.thread.join();
    }
}

impl Stop {
    fn wait(&self) -> bool {
        let is_stopped = self.is_stopped.lock().unwrap_or_else(|p| p.into_inner());
        let (is_stopped, _) = self
            .changed
            .wait_timeout_while(is_stopped, EVERY, |stopped| !*stopped)
            .unwrap_or_else(|p| p.into_inner());
        *is_stopped
    }
}

fn look(data_dir: &Path, min_free: u64, health: &Health, payloads: &Payloads) {
    match free_bytes(data_dir) {
        Ok(free) => {
            if free < min_free.saturating_add(SPARES_MARGIN) {
                payloads.remove_spares();
            }
            health.set_space(free, free < min_free);
            if min_free.saturating_add(BALLAST_MARGIN) < free
                && let Err(e) = make_ballast(data_dir)
            {
                tracing::debug!(error = %e, "the ballast could not be made");
            }
        }
        Err(e) => tracing::warn!(error = %e, path = %data_dir.display(), "the free space cannot be read"),
    }
}

/// Reserves as much as opening may need; a file that is there stays.
pub(crate) fn make_ballast(data_dir: &Path) -> io::Result<()> {
    let path = data_dir.join(BALLAST);
    if fs::metadata(&path).is_ok_and(|m| m.len() == WAL_BYTES_MAX) {
        return Ok(());
    }
    let file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    if let Err(e) = fallocate(&file, FallocateFlags::empty(), 0, WAL_BYTES_MAX) {
        drop(file);
        fs::remove_file(&path)?;
        return Err(e.into());
    }
    Ok(())
}

/// Gives the reserved space back. `false`: there was none.
pub(crate) fn drop_ballast(data_dir: &Path) -> bool {
    fs::remove_file(data_dir.join(BALLAST)).is_ok()
}
