//! Opening a data folder: the order in which its parts are looked at, and what is mended.

use std::path::Path;
use std::sync::Arc;

use prometheus::Registry;

use crate::instants::Instants;
use crate::raft::log_id_of;
use crate::store::health::Health;
use crate::store::identity::{Identity, Lock};
use crate::store::local::Local;
use crate::store::log::payloads::Filler;
use crate::store::log::room::Room;
use crate::store::log::writer::Writer;
use crate::store::log::{self, LogStore};
use crate::store::metrics::Metrics;
use crate::store::offline::{UNFINISHED, Unfinished};
use crate::store::reader::Reader;
use crate::store::snapshot::{Snapshots, build::BuildError, last_index};
use crate::store::state::db::{self, Loaded, StateDb};
use crate::store::state::{self, StateMachine, install};
use crate::store::watermark::Watermark;
use crate::store::{Closer, Config, Open, OpenError, Opened, Who, disk, exit, files, gauges, rocks};
use crate::types::position::LogPos;

pub(super) fn open(
    config: &Config,
    who: &Who,
    registry: &Registry,
    instants: Arc<Instants>,
) -> Result<Opened, OpenError> {
    let data_dir = config.data_dir.as_path();
    let lock = Lock::take(data_dir, who)?;
    let io = |e| OpenError::io(data_dir, e);
    if let Some(unfinished) = Unfinished::read(data_dir)? {
        return Err(OpenError::damage(&data_dir.join(UNFINISHED), unfinished.says()));
    }
    let found = Identity::read(data_dir)?;
    if let Some(identity) = &found {
        identity.check(data_dir, who)?;
    }
    let metrics = Arc::new(Metrics::new(registry, instants.tracer().clone())?);
    let health = Health::new();
    let rocks = rocks::Shared::new().map_err(|e| OpenError::rocks(data_dir, &e))?;

    if found.is_none() {
        // Made by this start, or by one that was cut short.
        files::sync_name(data_dir).map_err(io)?;
        with_ballast(data_dir, || log::open::create(data_dir, &rocks))?;
    }
    let log = with_ballast(data_dir, || log::open::open(data_dir, &rocks))?;
    if found.is_none() && !log.contents.is_empty() {
        return Err(OpenError::damage(data_dir, "IDENTITY is missing beside a log that is not empty"));
    }
    let snapshots = Snapshots::open(
        data_dir,
        &who.cluster_id,
        who.node_id,
        config.snapshot_retain,
        rocks.clone(),
        metrics.clone(),
    )
    .map_err(io)?;
    let is_new = found.is_none();
    if is_new && snapshots.newest().is_some() {
        return Err(OpenError::damage(data_dir, "IDENTITY is missing beside a snapshot"));
    }
    let (db, loaded) = with_ballast(data_dir, || open_state(data_dir, is_new, &log, &snapshots, &rocks))?;
    snapshots.forget_received_after(loaded.applied.map(|p| p.index)).map_err(io)?;
    cover_purged(&log, &db, &loaded, &snapshots)?;
    let identity = match found {
        Some(identity) => identity,
        None => {
            let identity = Identity::new(who);
            identity.write(data_dir).map_err(io)?;
            identity
        }
    };
    with_ballast(data_dir, || identity.upgrade(data_dir))?;
    let had_data = !log.contents.is_empty() || loaded.applied.is_some();
    let last_exit = exit::take_last(data_dir, is_new).unwrap_or_else(|error| {
        // A full disk must not keep the node from starting.
        tracing::warn!(error = %error, "how the process before ended cannot be kept");
        exit::LastExit { cause: exit::Cause::Killed, at_ms: 0, text: String::new() }
    });
    let parts = Parts { config, metrics, health, rocks, instants, lock, snapshots };
    parts.assemble(log, (db, loaded), registry, identity, had_data, last_exit)
}

/// What is there before the databases are.
struct Parts<'a> {
    config: &'a Config,
    metrics: Arc<Metrics>,
    health: Health,
    rocks: rocks::Shared,
    instants: Arc<Instants>,
    lock: Lock,
    snapshots: Snapshots,
}

impl Parts<'_> {
    fn assemble(
        self,
        log: log::open::Opened,
        (db, loaded): (StateDb, Loaded),
        registry: &Registry,
        identity: Identity,
        had_data: bool,
        last_exit: exit::LastExit,
    ) -> Result<Opened, OpenError> {
        let data_dir = &self.config.data_dir;
        let io = |e| OpenError::io(data_dir, e);
        let replay_upto = log.contents.committed.map_or(0, |id| id.index);
        let (last, first) = (log.contents.last, log.contents.first_index());
        let log_db = Arc::new(log.db);
        let payloads = log.payloads.clone();
        let filler =
            Filler::new(log.payloads.clone(), &log.contents.usage, self.config.min_free).map_err(io)?;
        let shared = log::Shared::new(
            log.contents.into_tail(),
            log_db.clone(),
            log.payloads,
            self.health.clone(),
            self.metrics.clone(),
            self.instants.clone(),
        );
        let (watermark, marker) = Watermark::start(log.slots, log.mark, self.health.clone()).map_err(io)?;
        let room = Room::new(log::open::log_dir(data_dir), self.config.min_free);
        let writer = Writer::new(shared.clone(), log_db, watermark.clone(), room, filler, last, first);
        let writer =
            std::thread::Builder::new().name("store-log".into()).spawn(move || writer.run()).map_err(io)?;
        let disk =
            disk::Watcher::start(data_dir.clone(), self.config.min_free, self.health.clone(), payloads)
                .map_err(io)?;
        let local = Local::new(shared.clone());
        self.metrics.starts.inc_by(local.count_start().map_err(io)?);
        for cause in exit::CAUSES {
            let is_it = i64::from(cause == last_exit.cause);
            self.metrics.last_exit.with_label_values(&[cause.label()]).set(is_it);
        }
        let machine = StateMachine::new(
            db,
            loaded,
            state::Parts {
                log: shared.clone(),
                snapshots: self.snapshots.clone(),
                rocks: self.rocks,
                data_dir: data_dir.clone(),
                health: self.health.clone(),
                metrics: self.metrics,
                instants: self.instants,
                replay_upto,
            },
        );
        gauges::register(registry, self.config.min_free, &self.health, &shared, &machine.shared)?;
        let closer = Closer(Some(Open {
            log: shared.clone(),
            state: machine.shared.clone(),
            watermark,
            writer,
            marker,
            disk,
            lock: self.lock,
        }));
        Ok(Opened {
            log: LogStore { shared: shared.clone() },
            reader: Reader::new(machine.shared.clone(), shared),
            machine,
            local,
            snapshots: self.snapshots,
            identity,
            health: self.health,
            closer,
            had_data,
            last_exit,
        })
    }
}

/// Opening needs space: if there is too little, the ballast is given up for it.
fn with_ballast<T>(data_dir: &Path, open: impl Fn() -> Result<T, OpenError>) -> Result<T, OpenError> {
    match open() {
        Err(OpenError::DiskFull { path, what }) if disk::drop_ballast(data_dir) => {
            tracing::warn!(path = %path.display(), what, "the disk is full: the ballast was given up to open the store");
            open()
        }
        other => other,
    }
}

/// The state in force; one that does not open, or lacks what the log no longer has, is rebuilt.
fn open_state(
    data_dir: &Path,
    is_new: bool,
    log: &log::open::Opened,
    snapshots: &Snapshots,
    rocks: &rocks::Shared,
) -> Result<(StateDb, Loaded), OpenError> {
    let io = |e| OpenError::io(data_dir, e);
    let dir = db::current_dir(data_dir).map_err(io)?;
    let purged = log.contents.purged.map(|e| e.pos.index);
    if is_new {
        files::remove_dir(&dir).map_err(io)?;
        return create_state(data_dir, &dir, rocks);
    }
    let opened = match db::is_marked_damaged(data_dir) {
        true => Err(db::StateError::Record { what: "a block that was read before" }),
        false => StateDb::open(&dir, rocks).and_then(|db| db.load().map(|loaded| (db, loaded))),
    };
    let why = match opened {
        Ok((db, loaded)) => {
            let applied = loaded.applied.map(|p| p.index);
            if purged <= applied {
                check_applied(&dir, log, loaded.applied, snapshots)?;
                // Behind it: what a switch that was cut short left may be all there is.
                db::remove_others(data_dir).map_err(io)?;
                return Ok((db, loaded));
            }
            format!("it holds entries up to {applied:?}, the log begins behind {purged:?}")
        }
        Err(error) => match state_error(&dir, error) {
            // Only damage is mended: a folder that is merely not readable is not thrown away.
            OpenError::Damage { what, .. } => what,
            other => return Err(other),
        },
    };
    tracing::warn!(path = %dir.display(), why, "the state is rebuilt");
    let built = rebuild_state(data_dir, log, snapshots, rocks)?;
    db::clear_damaged(data_dir).map_err(io)?;
    Ok(built)
}

fn create_state(data_dir: &Path, dir: &Path, rocks: &rocks::Shared) -> Result<(StateDb, Loaded), OpenError> {
    let fail = |e: db::StateError| state_error(dir, e);
    let db = StateDb::create(dir, rocks).map_err(fail)?;
    let loaded = db.load().map_err(fail)?;
    db::switch_to(data_dir, dir).map_err(|e| OpenError::io(data_dir, e))?;
    Ok((db, loaded))
}

/// From the newest snapshot that is whole and reaches what was purged; from the log alone when it
/// still begins at its beginning.
fn rebuild_state(
    data_dir: &Path,
    log: &log::open::Opened,
    snapshots: &Snapshots,
    rocks: &rocks::Shared,
) -> Result<(StateDb, Loaded), OpenError> {
    let io = |e| OpenError::io(data_dir, e);
    let purged = log.contents.purged.map(|e| e.pos.index);
    let last = log.contents.last.map(|e| e.pos).unwrap_or_default();
    while let Some(data) = snapshots.newest_data().filter(|d| purged <= last_index(&d.manifest)) {
        let id = data.manifest.id.clone();
        let expected = data.manifest.last_log_id.map(LogPos::from);
        let metrics = snapshots.metrics();
        // Terms never fall along one history: such a snapshot came before the log took another turn.
        let is_foreign = expected.is_some_and(|end| last.index < end.index && end.term < last.term);
        let what = match snapshots.check_files(&id).unwrap_or_default().first() {
            _ if is_foreign => {
                format!("it ends at {expected:?}, the log at {last:?}: they are not of one history")
            }
            Some(problem) => {
                metrics.count("restore", "corrupt", 0.0);
                format!("{}: {}", problem.file, problem.what)
            }
            None => match install::build(data_dir, &data.dir, rocks, expected, None) {
                Ok(built) => {
                    metrics.count("restore", "ok", 0.0);
                    db::remove_others(data_dir).map_err(io)?;
                    return Ok(built);
                }
                Err(e) => match e.into_open_error(data_dir) {
                    OpenError::Damage { what, .. } => {
                        metrics.count("restore", "corrupt", 0.0);
                        what
                    }
                    // The disk's fault, not the snapshot's.
                    other => {
                        metrics.count("restore", "failed", 0.0);
                        return Err(other);
                    }
                },
            },
        };
        snapshots.set_aside(&id, &what).map_err(io)?;
    }
    if let Some(purged) = purged {
        let what =
            format!("no intact snapshot and no state reaches index {purged}, up to which the log was purged");
        return Err(OpenError::damage(data_dir, what));
    }
    let dir = db::new_dir(data_dir).map_err(io)?;
    let built = create_state(data_dir, &dir, rocks)?;
    db::remove_others(data_dir).map_err(io)?;
    Ok(built)
}

/// The state holds nothing that the log never had (safety rule 3), but what came by a snapshot.
fn check_applied(
    dir: &Path,
    log: &log::open::Opened,
    applied: Option<LogPos>,
    snapshots: &Snapshots,
) -> Result<(), OpenError> {
    let last = log.contents.last.map(|e| e.pos);
    let from_snapshot = snapshots.newest().and_then(|m| last_index(&m));
    let index = applied.map(|p| p.index);
    if last.map(|p| p.index) < index && from_snapshot < index {
        let what = format!(
            "the state holds entries up to {index:?}, the log ends at {last:?}: the log lost entries"
        );
        return Err(OpenError::damage(dir, what));
    }
    Ok(())
}

/// A log that begins behind index 0 is of use only with a snapshot that reaches its beginning.
fn cover_purged(
    log: &log::open::Opened,
    db: &StateDb,
    loaded: &Loaded,
    snapshots: &Snapshots,
) -> Result<(), OpenError> {
    let purged = log.contents.purged.map(|e| e.pos.index);
    if purged <= snapshots.newest().and_then(|m| last_index(&m)) {
        return Ok(());
    }
    tracing::warn!(purged, "no snapshot reaches the beginning of the log: one is built from the state");
    match snapshots.build_now(db, loaded.applied.map(log_id_of)) {
        Ok(_) => Ok(()),
        Err(BuildError::Io(e)) => Err(OpenError::io(db.path(), e)),
        Err(BuildError::Rocks(e)) => Err(OpenError::rocks(db.path(), &e)),
        Err(e) => Err(OpenError::damage(db.path(), format!("no snapshot can be built from the state: {e}"))),
    }
}

fn state_error(dir: &Path, error: db::StateError) -> OpenError {
    match error {
        db::StateError::Rocks(e) => OpenError::rocks(dir, &e),
        other => OpenError::damage(dir, other),
    }
}
