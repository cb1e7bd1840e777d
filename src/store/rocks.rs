//! How the two databases are opened, and what their errors mean.
//!
//! Every family is opened by a descriptor of its own: one that is left out silently takes RocksDB's
//! default options.

use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode, DBWithThreadMode,
    Env, ErrorKind, InfoLogger, LogLevel, Options, SingleThreaded, WriteBufferManager,
};

use crate::store::files;

/// An open database.
pub(crate) struct Db {
    db: Inner,
    // Behind `db`: it is told once the database is closed.
    open: Open,
}

/// Dropped with its database.
struct Open(Arc<Closing>);

/// Tells when a database is closed, whoever holds it.
#[derive(Default)]
pub(crate) struct Closing {
    /// Guards a flag that is set once.
    is_closed: Mutex<bool>,
    closed: Condvar,
}

impl Closing {
    /// Whether it is closed by then. Blocking.
    pub(crate) fn wait(&self, until: Instant) -> bool {
        let is_closed = self.is_closed.lock().unwrap_or_else(|p| p.into_inner());
        let within = until.saturating_duration_since(Instant::now());
        let waited = self.closed.wait_timeout_while(is_closed, within, |is_closed| !*is_closed);
        *waited.unwrap_or_else(|p| p.into_inner()).0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        *self.0.is_closed.lock().unwrap_or_else(|p| p.into_inner()) = true;
        self.0.closed.notify_all();
    }
}

impl Db {
    fn new(db: Inner) -> Self {
        Self { db, open: Open(Arc::default()) }
    }

    pub(crate) fn closing(&self) -> Arc<Closing> {
        Arc::clone(&self.open.0)
    }
}

/// As RocksDB's binding has it.
pub(crate) type Inner = DBWithThreadMode<SingleThreaded>;

impl Deref for Db {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.db
    }
}

/// Memtables of both databases together; the memory plan of performance.md's lever 8.
const WRITE_BUFFERS_BYTES: usize = 64 << 20;
/// Small, so that a memtable is flushed long before the budget is used up, and so that the WAL
/// reserves 17.6 MiB and not 64.
const WRITE_BUFFER_BYTES: usize = 16 << 20;
/// What RocksDB reserves for a new WAL: the write buffer and a tenth.
pub(crate) const WAL_RESERVED_BYTES: u64 = (WRITE_BUFFER_BYTES + WRITE_BUFFER_BYTES / 10) as u64;
/// Files of the log that are merged at once: 512 MiB at most, and as much less as was purged before each was written.
const LOG_FILES: i32 = 32;
const LOG_LEVEL_BYTES: u64 = 1 << 30;
const CACHE_BYTES: usize = 16 << 20;
/// `log/` and `state/`.
const DATABASES: i32 = 2;
/// Old info logs say nothing that a restart does not.
const INFO_LOGS: usize = 2;
/// The least that RocksDB takes for `max_open_files`.
const FILES_MIN: i32 = 20;
const BYTES_PER_SYNC: u64 = 1 << 20;
/// A family that is not written pins WALs; at this size RocksDB flushes it.
pub(crate) const WAL_BYTES_MAX: u64 = 64 << 20;
/// Every checkpoint copies the manifest; it is begun anew above this size.
const MANIFEST_BYTES_MAX: usize = 1 << 20;

/// Families of `log/`: entries, vote, committed and purged; records of this node alone.
pub(crate) const LOG_FAMILIES: [&str; 2] = ["default", "local"];
/// Families of `state/`: unused; blocks; their rows; everything else.
pub(crate) const STATE_FAMILIES: [&str; 4] = ["default", "blocks", "rows", "meta"];

/// What both databases share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) buffers: WriteBufferManager,
    pub(crate) cache: Cache,
    env: Env,
}

/// Whether the tail of a WAL that does not decode may be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// Only a record that is merely short.
    ShortTail,
    /// Everything behind the first damage: only after the caller looked at what that loses.
    PointInTime,
}

impl Shared {
    pub(crate) fn new() -> Result<Self, rocksdb::Error> {
        let mut env = Env::new()?;
        // The compaction pool; a flush at low priority holds up every checkpoint.
        env.lower_thread_pool_cpu_priority();
        // One for each database: a state whose flush hangs must not keep the log from being written.
        env.set_high_priority_background_threads(DATABASES);
        Ok(Self {
            // No stall: it bounds what it can, and a write never waits for it.
            buffers: WriteBufferManager::new_write_buffer_manager(WRITE_BUFFERS_BYTES, false),
            cache: Cache::new_lru_cache(CACHE_BYTES),
            env,
        })
    }

    /// Options of a database; `create` only for a folder that is being made.
    fn options(&self, create: bool) -> Result<Options, rocksdb::Error> {
        // No setter for it, and parsing a string makes options anew: so it comes first. Without it
        // opening needs as much free space as the WAL holds.
        let mut o = Options::default().get_options_from_string("avoid_flush_during_recovery=true")?;
        o.create_if_missing(create);
        o.create_missing_column_families(create);
        o.set_env(&self.env);
        o.set_paranoid_checks(true);
        o.set_write_buffer_manager(&self.buffers);
        o.set_keep_log_file_num(INFO_LOGS);
        o.set_log_level(LogLevel::Warn);
        o.set_bytes_per_sync(BYTES_PER_SYNC);
        o.set_max_manifest_file_size(MANIFEST_BYTES_MAX);
        o.set_max_open_files(512);
        // Opening reads a dozen files at most: RocksDB's sixteen threads for it cost more than they save.
        o.set_max_file_opening_threads(1);
        o.set_skip_stats_update_on_db_open(true);
        o.set_stats_dump_period_sec(0);
        o.set_stats_persist_period_sec(0);
        Ok(o)
    }

    pub(crate) fn family_options(&self) -> Options {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&self.cache);
        let mut o = Options::default();
        o.set_block_based_table_factory(&table);
        o.set_compression_type(DBCompressionType::None);
        o.set_write_buffer_size(WRITE_BUFFER_BYTES);
        o
    }

    fn descriptors(&self, families: &[&str]) -> Vec<ColumnFamilyDescriptor> {
        families.iter().map(|name| ColumnFamilyDescriptor::new(*name, self.family_options())).collect()
    }

    /// Of the log most is purged before long: whatever is merged early is written again for nothing. A
    /// merge of many files drops what was purged and writes what is left. Large payloads lie elsewhere (`log/payloads.rs`):
    /// RocksDB looks for the bound of a read behind the tail in the first block of every newer table, and would load one
    /// of each (`findings/rocksdb-bounded-seek-reads-every-newer-table.sh`).
    fn log_descriptors(&self) -> Vec<ColumnFamilyDescriptor> {
        let options = || {
            let mut o = self.family_options();
            o.set_level_zero_file_num_compaction_trigger(LOG_FILES);
            o.set_level_zero_slowdown_writes_trigger(2 * LOG_FILES);
            o.set_level_zero_stop_writes_trigger(3 * LOG_FILES);
            // More than a log holds: it goes no further down.
            o.set_max_bytes_for_level_base(LOG_LEVEL_BYTES);
            o
        };
        LOG_FAMILIES.iter().map(|name| ColumnFamilyDescriptor::new(*name, options())).collect()
    }

    pub(crate) fn log_options(&self, create: bool, recovery: Recovery) -> Result<Options, rocksdb::Error> {
        let mut o = self.options(create)?;
        o.set_wal_recovery_mode(match recovery {
            Recovery::ShortTail => DBRecoveryMode::TolerateCorruptedTailRecords,
            Recovery::PointInTime => DBRecoveryMode::PointInTime,
        });
        o.set_track_and_verify_wals_in_manifest(true);
        o.set_max_total_wal_size(WAL_BYTES_MAX);
        Ok(o)
    }

    pub(crate) fn open_log(
        &self,
        dir: &Path,
        create: bool,
        recovery: Recovery,
    ) -> Result<Db, rocksdb::Error> {
        // A table of the log is read by who lags, and by nobody else: through the page cache each would cost fresh
        // pages, and the flushes of those keep the WAL waiting.
        let is_direct = files::takes_direct_writes(if dir.is_dir() { dir } else { files::parent(dir) });
        match self.open_log_with(dir, create, recovery, is_direct) {
            // It reads `CURRENT` that way too, which need not lie where new files do.
            Err(e) if is_direct && e.kind() == ErrorKind::InvalidArgument => {
                self.open_log_with(dir, create, recovery, false)
            }
            opened => opened,
        }
    }

    fn open_log_with(
        &self,
        dir: &Path,
        create: bool,
        recovery: Recovery,
        is_direct: bool,
    ) -> Result<Db, rocksdb::Error> {
        let mut o = self.log_options(create, recovery)?;
        o.set_use_direct_io_for_flush_and_compaction(is_direct);
        Ok(Db::new(Inner::open_cf_descriptors(&o, dir, self.log_descriptors())?))
    }

    /// Reads what a recovery would keep, and changes nothing.
    pub(crate) fn open_log_read_only(&self, dir: &Path, recovery: Recovery) -> Result<Db, rocksdb::Error> {
        let mut o = self.log_options(false, recovery)?;
        o.set_info_logger(silent());
        Ok(Db::new(Inner::open_cf_descriptors_read_only(&o, dir, self.log_descriptors(), false)?))
    }

    pub(crate) fn open_state(&self, dir: &Path, create: bool) -> Result<Db, rocksdb::Error> {
        let mut o = self.options(create)?;
        o.set_atomic_flush(true);
        Ok(Db::new(Inner::open_cf_descriptors(&o, dir, self.descriptors(&STATE_FAMILIES))?))
    }

    /// Changes nothing.
    pub(crate) fn open_state_read_only(&self, dir: &Path) -> Result<Db, rocksdb::Error> {
        let mut o = self.options(false)?;
        o.set_info_logger(silent());
        // Every snapshot is opened once for two records: the files of its history are not.
        o.set_max_open_files(FILES_MIN);
        Ok(Db::new(Inner::open_cf_descriptors_read_only(&o, dir, self.descriptors(&STATE_FAMILIES), false)?))
    }
}

/// Without a logger of its own, even an open that only reads renames the info log of the folder and
/// begins a new one.
fn silent() -> InfoLogger {
    InfoLogger::new_callback_logger(LogLevel::Fatal, |_, _| {})
}

/// Whether a folder holds a database. Looked at before RocksDB is called: at the second open after
/// `CURRENT` was lost it would make an empty database and delete every file of the old one.
pub(crate) fn is_database(dir: &Path) -> bool {
    dir.join("CURRENT").is_file()
}

/// What an error of a write means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteError {
    /// The disk is full and no sync failed: the same batch may be written again.
    NoSpace,
    /// `no_slowdown` was asked for and the write would have to wait.
    WouldStall,
    /// Everything else, a failed sync first.
    Fatal,
}

/// Any error that names a sync is fatal, whatever its cause (design 4).
pub(crate) fn classify(error: &rocksdb::Error) -> WriteError {
    let text = error.as_ref().to_ascii_lowercase();
    let names_sync =
        ["fsync", "fdatasync", "sync_file_range", "while syncing"].iter().any(|s| text.contains(s));
    if names_sync {
        return WriteError::Fatal;
    }
    match error.kind() {
        ErrorKind::Incomplete => WriteError::WouldStall,
        ErrorKind::IOError if text.contains("no space left") || text.contains("disk quota") => {
            WriteError::NoSpace
        }
        _ => WriteError::Fatal,
    }
}

/// Whether an error of opening says that the disk is full.
pub(crate) fn is_no_space(error: &rocksdb::Error) -> bool {
    error.as_ref().to_ascii_lowercase().contains("no space left")
}
