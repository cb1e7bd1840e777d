//! The database of the replicated state: its folder, its rows, and the machine read out of them.
//!
//! The folder has a name of its own, and a small file beside it says which one is in force: so a
//! received snapshot, or a rebuilt state, takes over by one rename (safety rules 28 and 31).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use prost::Message;
use rocksdb::{ColumnFamily, DBPinnableSlice, FlushOptions, IteratorMode, ReadOptions};

use crate::machine::apply::{LoadError, Machine};
use crate::raft::StoredMembership;
use crate::raft::convert::stored_membership_from_proto;
use crate::store::files;
use crate::store::rocks::{self, Db, STATE_FAMILIES};
use crate::types::{Height, LogIndex, Term, position::LogPos, proto};

pub(crate) const KEY_MACHINE: &[u8] = b"machine";
pub(crate) const KEY_MEMBERSHIP: &[u8] = b"membership";
/// Lowest height that is kept; rows below it are leftovers of files not dropped yet.
pub(crate) const KEY_FLOOR: &[u8] = b"floor";
/// Prefix of a leadership's key; its term follows.
const LEADERSHIP: u8 = b'l';
/// Which folder holds the state; without it the first one does.
const POINTER: &str = "STATE";
const FIRST_FOLDER: &str = "state";
/// Says that the state was found damaged while it was used.
const DAMAGED: &str = "STATE_DAMAGED";

/// Why a stored state cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("{0}")]
    Rocks(#[from] rocksdb::Error),
    #[error("{0}")]
    Load(#[from] LoadError),
    #[error("{what} does not decode")]
    Record { what: &'static str },
    #[error("there is no database in {0}")]
    NoDatabase(PathBuf),
}

pub(crate) type KeyValue = (Box<[u8]>, Box<[u8]>);

/// A family of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Blocks,
    Rows,
    Meta,
}

impl Family {
    /// As RocksDB knows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Blocks => "blocks",
            Self::Rows => "rows",
            Self::Meta => "meta",
        }
    }
}

/// What the machine and raft need of a stored state.
pub(crate) struct Loaded {
    pub(crate) machine: Machine,
    /// `None` before the first entry.
    pub(crate) applied: Option<LogPos>,
    pub(crate) membership: StoredMembership,
    pub(crate) floor: Height,
}

/// An open state. Closed when the last holder lets go.
pub(crate) struct StateDb {
    db: Db,
    /// The floor that a crash leaves at least: files below a higher one are still needed.
    durable_floor: AtomicU64,
    /// Index of the last entry that a flush of ours is known to have made durable.
    flushed: AtomicU64,
    /// Held by the one merge of small files that runs.
    pub(crate) merging: Mutex<()>,
    // Behind `db`, so that the folder goes after the database is closed.
    folder: Folder,
}

struct Folder {
    path: PathBuf,
    is_doomed: AtomicBool,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.is_doomed.load(Ordering::Relaxed)
            && let Err(e) = files::remove_dir(&self.path)
        {
            tracing::warn!(error = %e, path = %self.path.display(), "a replaced state stays until the next start");
        }
    }
}

impl StateDb {
    /// Opens a state that should be there.
    pub(crate) fn open(path: &Path, rocks: &rocks::Shared) -> Result<Self, StateError> {
        if !rocks::is_database(path) {
            return Err(StateError::NoDatabase(path.to_owned()));
        }
        Ok(Self::new(rocks.open_state(path, false)?, path))
    }

    /// Makes an empty state in a folder that is being made.
    pub(crate) fn create(path: &Path, rocks: &rocks::Shared) -> Result<Self, StateError> {
        Ok(Self::new(rocks.open_state(path, true)?, path))
    }

    /// Opens a checkpoint without changing it, but for RocksDB's own info log.
    pub(crate) fn open_read_only(path: &Path, rocks: &rocks::Shared) -> Result<Self, StateError> {
        if !rocks::is_database(path) {
            return Err(StateError::NoDatabase(path.to_owned()));
        }
        Ok(Self::new(rocks.open_state_read_only(path)?, path))
    }

    fn new(db: Db, path: &Path) -> Self {
        Self {
            db,
            durable_floor: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            merging: Mutex::default(),
            folder: Folder { path: path.to_owned(), is_doomed: AtomicBool::new(false) },
        }
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder.path
    }

    /// The folder is removed once the last holder let go.
    pub(crate) fn doom(&self) {
        self.folder.is_doomed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn family(&self, family: Family) -> &ColumnFamily {
        self.db.cf_handle(family.name()).expect("every family was opened")
    }

    pub(crate) fn get(
        &self,
        family: Family,
        key: &[u8],
    ) -> Result<Option<DBPinnableSlice<'_>>, rocksdb::Error> {
        self.db.get_pinned_cf(self.family(family), key)
    }

    pub(crate) fn bytes(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, rocksdb::Error> {
        Ok(self.get(family, key)?.map(|v| Bytes::copy_from_slice(&v)))
    }

    /// The keys and values of a family from a key on, in order.
    pub(crate) fn from<'a>(
        &'a self,
        family: Family,
        key: &[u8],
    ) -> impl Iterator<Item = Result<KeyValue, rocksdb::Error>> + 'a {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(key);
        self.db.iterator_cf_opt(self.family(family), options, IteratorMode::Start)
    }

    /// Makes everything written so far durable, all families at once: with atomic flush a manual
    /// one takes only those that are named, and one left out loses what belongs together. `applied` is
    /// an entry that was written before this is called.
    pub(crate) fn flush(&self, applied: LogIndex) -> Result<(), rocksdb::Error> {
        let families: Vec<&ColumnFamily> =
            STATE_FAMILIES.iter().map(|f| self.db.cf_handle(f).expect("every family was opened")).collect();
        let families: Vec<&&ColumnFamily> = families.iter().collect();
        // Read first: what is written meanwhile may miss the flush.
        let floor = self.get(Family::Meta, KEY_FLOOR)?.and_then(|v| height_of(&v));
        self.db.flush_cfs_opt(&families, &FlushOptions::default())?;
        self.durable_floor.fetch_max(floor.unwrap_or(0), Ordering::AcqRel);
        self.flushed.fetch_max(applied, Ordering::AcqRel);
        Ok(())
    }

    /// Up to here at least everything is durable.
    pub(crate) fn flushed(&self) -> LogIndex {
        self.flushed.load(Ordering::Acquire)
    }

    pub(crate) fn durable_floor(&self) -> Height {
        self.durable_floor.load(Ordering::Acquire)
    }

    pub(crate) fn membership(&self) -> Result<StoredMembership, StateError> {
        match self.bytes(Family::Meta, KEY_MEMBERSHIP)? {
            None => Ok(StoredMembership::default()),
            Some(bytes) => proto::StoredMembership::decode(bytes)
                .ok()
                .and_then(|m| stored_membership_from_proto(&m).ok())
                .ok_or(StateError::Record { what: "the membership" }),
        }
    }

    /// The record of the machine; `None` before the first entry.
    pub(crate) fn record(&self) -> Result<Option<proto::MachineRecord>, StateError> {
        let record = self.bytes(Family::Meta, KEY_MACHINE)?.map(proto::MachineRecord::decode);
        record.transpose().map_err(|_| StateError::Record { what: "the record of the machine" })
    }

    pub(crate) fn load(&self) -> Result<Loaded, StateError> {
        let record = self.bytes(Family::Meta, KEY_MACHINE)?;
        let membership = self.membership()?;
        let floor = match self.get(Family::Meta, KEY_FLOOR)? {
            None => 0,
            Some(v) => height_of(&v).ok_or(StateError::Record { what: "the floor" })?,
        };
        let mut blocks = Vec::new();
        for item in self.from(Family::Rows, &height_key(floor)) {
            let (key, row) = item?;
            let height = height_of(&key).ok_or(StateError::Record { what: "a row's key" })?;
            let row = proto::BlockRow::decode(&row[..]).map_err(|_| StateError::Record { what: "a row" })?;
            blocks.push((height, row.stored_bytes));
        }
        let terms = self.leaderships()?.into_iter().map(|l| l.term);
        let machine = Machine::load(record.as_deref(), blocks.into_iter(), terms)?;
        let applied = record.is_some().then(|| machine.view().applied);
        // Without a WAL, what is read from a state just opened lies in its files.
        self.durable_floor.fetch_max(floor, Ordering::AcqRel);
        Ok(Loaded { machine, applied, membership, floor })
    }

    /// The kept leaderships, oldest first.
    pub(crate) fn leaderships(&self) -> Result<Vec<proto::LeadershipRow>, StateError> {
        let mut rows = Vec::new();
        for item in self.from(Family::Meta, &[LEADERSHIP]) {
            let (key, row) = item?;
            if key.len() != 9 || key[0] != LEADERSHIP {
                break;
            }
            rows.push(
                proto::LeadershipRow::decode(&row[..])
                    .map_err(|_| StateError::Record { what: "a leadership" })?,
            );
        }
        Ok(rows)
    }
}

pub(crate) fn height_key(height: Height) -> [u8; 8] {
    height.to_be_bytes()
}

pub(crate) fn height_of(key: &[u8]) -> Option<Height> {
    Some(Height::from_be_bytes(key.try_into().ok()?))
}

pub(crate) fn leadership_key(term: Term) -> [u8; 9] {
    let mut key = [LEADERSHIP; 9];
    key[1..].copy_from_slice(&term.to_be_bytes());
    key
}

/// The folder that holds the state in force. Where the pointer is lost: the first folder, or else
/// the newest.
pub(crate) fn current_dir(data_dir: &Path) -> io::Result<PathBuf> {
    let name = files::read_optional(&data_dir.join(POINTER))?;
    let name = name.and_then(|n| String::from_utf8(n).ok()).map(|n| n.trim().to_owned());
    if let Some(name) = name.filter(|n| n == FIRST_FOLDER || number_of(n).is_some()) {
        return Ok(data_dir.join(name));
    }
    let first = data_dir.join(FIRST_FOLDER);
    match highest_number(data_dir)? {
        Some(number) if !first.is_dir() => Ok(data_dir.join(format!("{FIRST_FOLDER}.{number}"))),
        _ => Ok(first),
    }
}

/// The number behind the name of a folder that came after the first.
fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(FIRST_FOLDER)?.strip_prefix('.')?.parse().ok()
}

fn highest_number(data_dir: &Path) -> io::Result<Option<u64>> {
    let mut highest = None;
    for entry in fs::read_dir(data_dir)? {
        highest = highest.max(entry?.file_name().to_str().and_then(number_of));
    }
    Ok(highest)
}

/// The next start rebuilds the state.
pub(crate) fn mark_damaged(data_dir: &Path) -> io::Result<()> {
    files::write_atomic(&data_dir.join(DAMAGED), b"the state is damaged: it is rebuilt at the next start\n")
}

pub(crate) fn is_marked_damaged(data_dir: &Path) -> bool {
    data_dir.join(DAMAGED).exists()
}

pub(crate) fn clear_damaged(data_dir: &Path) -> io::Result<()> {
    match fs::remove_file(data_dir.join(DAMAGED)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A folder that does not exist yet, to build a state in.
pub(crate) fn new_dir(data_dir: &Path) -> io::Result<PathBuf> {
    let number = highest_number(data_dir)?.map_or(1, |n| n + 1);
    Ok(data_dir.join(format!("{FIRST_FOLDER}.{number}")))
}

/// From here on this folder holds the state. Durable on return.
pub(crate) fn switch_to(data_dir: &Path, dir: &Path) -> io::Result<()> {
    let name = dir.file_name().and_then(|n| n.to_str()).expect("a name of our own");
    files::write_atomic(&data_dir.join(POINTER), format!("{name}\n").as_bytes())
}

/// Removes what a switch that was cut short left behind.
pub(crate) fn remove_others(data_dir: &Path) -> io::Result<()> {
    let current = current_dir(data_dir)?;
    for entry in fs::read_dir(data_dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let is_state = name == FIRST_FOLDER || number_of(name).is_some();
        if is_state && path != current && path.is_dir() {
            files::remove_dir(&path)?;
        }
    }
    Ok(())
}
