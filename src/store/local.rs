//! Records of this node alone: pause, history, audit, what is known of peers.
//!
//! They ride in the queue of the raft log and in its database, in a family of their own; they are
//! in no snapshot and in no state hash. A read sees what was written, not what is queued.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{Direction, IteratorMode, ReadOptions};
use tokio::sync::oneshot;

use crate::raft::storage_error;
use crate::store::log;
use crate::types::member::Removed;
use crate::types::{LogIndex, NodeId};

/// What a recover of the folder did, until the node has recorded it.
pub(crate) const RECOVERED: &[u8] = b"node/recovered";
/// That a member said the node is none: the version of the membership, then who said so, 8 bytes each.
pub(crate) const REMOVED: &[u8] = b"node/removed";
/// Key of the number of starts.
const STARTS: &[u8] = b"node/starts";

/// The value under [`REMOVED`].
pub(crate) fn write_removed(removed: Removed) -> Bytes {
    [removed.version.to_be_bytes(), removed.told_by.to_be_bytes()].concat().into()
}

/// `None`: it is no such value.
pub(crate) fn read_removed(value: &[u8]) -> Option<Removed> {
    let (version, told_by) = value.split_first_chunk()?;
    let told_by = NodeId::from_be_bytes(told_by.try_into().ok()?);
    Some(Removed { version: LogIndex::from_be_bytes(*version), told_by })
}

/// One change: `None` deletes.
pub(crate) type Record = (Vec<u8>, Option<Bytes>);

/// Cheap to clone; all clones are one family.
#[derive(Clone)]
pub(crate) struct Local {
    log: Arc<log::Shared>,
}

impl Local {
    pub(crate) fn new(log: Arc<log::Shared>) -> Self {
        Self { log }
    }

    /// Blocking, short.
    pub(crate) fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        let db = self.log.db()?;
        let family = db.cf_handle("local").expect("the family was opened");
        let value = db.get_pinned_cf(family, key).map_err(|e| self.failed(&e))?;
        Ok(value.map(|v| Bytes::copy_from_slice(&v)))
    }

    /// Up to `limit` records whose keys begin with `prefix`, from `from` on, in order. Blocking.
    pub(crate) fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> io::Result<Vec<(Bytes, Bytes)>> {
        self.read(prefix, from.max(prefix), Direction::Forward, limit)
    }

    /// The last `limit` records whose keys begin with `prefix`, last first. Blocking.
    pub(crate) fn scan_last(&self, prefix: &[u8], limit: usize) -> io::Result<Vec<(Bytes, Bytes)>> {
        let mut behind = prefix.to_vec();
        // No key of ours holds the greatest byte at its end, let alone sixteen of them.
        behind.extend_from_slice(&[0xff; 16]);
        self.read(prefix, &behind, Direction::Reverse, limit)
    }

    fn read(
        &self,
        prefix: &[u8],
        from: &[u8],
        direction: Direction,
        limit: usize,
    ) -> io::Result<Vec<(Bytes, Bytes)>> {
        let db = self.log.db()?;
        let family = db.cf_handle("local").expect("the family was opened");
        let mode = IteratorMode::From(from, direction);
        let mut found = Vec::new();
        for item in db.iterator_cf_opt(family, ReadOptions::default(), mode).take(limit) {
            let (key, value) = item.map_err(|e| self.failed(&e))?;
            if !key.starts_with(prefix) {
                break;
            }
            found.push((Bytes::from(key), Bytes::from(value)));
        }
        Ok(found)
    }

    /// Durable on return, and with it everything queued before, the raft log included: writing
    /// nothing waits for that alone. Dropping the future leaves the outcome unknown.
    pub(crate) async fn write(&self, records: Vec<Record>) -> io::Result<()> {
        let (done, durable) = oneshot::channel();
        self.log.write_local(records, Some(done));
        durable.await.map_err(|_| storage_error("the record could not be written"))
    }

    /// As [`Local::write`], for a thread that may block.
    pub(crate) fn write_blocking(&self, records: Vec<Record>) -> io::Result<()> {
        let (done, durable) = oneshot::channel();
        self.log.write_local(records, Some(done));
        durable.blocking_recv().map_err(|_| storage_error("the record could not be written"))
    }

    /// Rides along with what is written next, 50 ms later at most; lost when the node is killed
    /// before.
    pub(crate) fn write_later(&self, records: Vec<Record>) {
        self.log.write_local(records, None);
    }

    /// How often this node was started on this folder, this time included.
    pub(crate) fn starts(&self) -> io::Result<u64> {
        let value = self.get(STARTS)?;
        Ok(value.and_then(|v| v.as_ref().try_into().ok().map(u64::from_be_bytes)).unwrap_or(0))
    }

    /// Counts this start. Blocking.
    pub(super) fn count_start(&self) -> io::Result<u64> {
        let starts = self.starts()? + 1;
        // Not waited for: a start must not fail on a full disk.
        self.write_later(vec![(STARTS.to_vec(), Some(Bytes::copy_from_slice(&starts.to_be_bytes())))]);
        Ok(starts)
    }

    fn failed(&self, error: &rocksdb::Error) -> io::Error {
        self.log.metrics.error("log", "read");
        storage_error(error)
    }
}
