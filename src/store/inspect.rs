//! Looking into a stopped node's folder: what a start would find, and what it would say of it.
//!
//! Changes nothing, neither names nor times. Each part is looked at in the order in which a start
//! opens it; one that is damaged becomes a [`Finding`], and the others are looked at all the same.

use std::io;
use std::path::{Path, PathBuf};

use crate::raft::convert::{members_of, stored_membership_from_proto};
use crate::raft::{StoredMembership, Vote, pos_of};
use crate::store::local::{REMOVED, read_removed};
use crate::store::log::open::{self as log_open, Looked};
use crate::store::offline::{UNFINISHED, Unfinished};
use crate::store::snapshot::{self, FILES, check, last_index};
use crate::store::state::db::{self, Loaded, StateDb, StateError};
use crate::store::{Identity, OpenError, exit, files, identity, rocks};
use crate::types::block::BlockRef;
use crate::types::member::Members;
use crate::types::position::LogPos;
use crate::types::proto::SnapshotManifest;
use crate::types::{Height, LogIndex, NodeId, Term};

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// What a start reads: the whole log, the index of the state, the manifests.
    Start,
    /// Every byte that has a checksum.
    All,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Below the data folder, where it lies there.
    pub(crate) file: PathBuf,
    pub(crate) what: String,
    /// A node would refuse to start.
    pub(crate) refuses: bool,
}

/// The vote that was saved last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VoteFound {
    pub(crate) term: Term,
    pub(crate) voted_for: NodeId,
    pub(crate) committed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LogFound {
    pub(crate) purged: Option<LogPos>,
    /// The last entry, or what was purged when none is left.
    pub(crate) last: Option<LogPos>,
    pub(crate) committed: Option<LogIndex>,
    /// What the watermark claims.
    pub(crate) marked: Option<LogIndex>,
    pub(crate) entries: u64,
    pub(crate) file_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateFound {
    pub(crate) applied: Option<LogPos>,
    pub(crate) head: Option<BlockRef>,
    pub(crate) oldest_height: Option<Height>,
    pub(crate) state_hash: [u8; 32],
    pub(crate) file_bytes: u64,
}

/// All that was found. `None`: it is not there, or cannot be read, which a finding says.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) identity: Option<Identity>,
    pub(crate) vote: Option<VoteFound>,
    pub(crate) log: Option<LogFound>,
    pub(crate) state: Option<StateFound>,
    /// Height of the last block among the entries that were read last.
    last_logged_height: Option<Height>,
    /// The newest in the log, else that of the state, else that of the newest snapshot.
    pub(crate) membership: Option<StoredMembership>,
    /// Newest first.
    pub(crate) snapshots: Vec<SnapshotManifest>,
    /// Version of a membership that does not name the node, as another member told it.
    pub(crate) removed_at: Option<LogIndex>,
    pub(crate) last_exit: Option<exit::LastExit>,
    pub(crate) findings: Vec<Finding>,
}

impl Found {
    /// Height of the last block, applied or not.
    pub(crate) fn last_height(&self) -> Option<Height> {
        let head = self.state.as_ref().and_then(|s| s.head.as_ref()).map(|h| h.height);
        self.last_logged_height.max(head)
    }

    /// Where the folder's history ends: with the log, or with the state where a snapshot was installed and
    /// the log is not purged yet. A state that cannot be read is the newest snapshot's, of which a start makes it.
    pub(crate) fn end(&self) -> LogPos {
        let applied = match &self.state {
            Some(state) => state.applied,
            None => self.snapshots.first().and_then(|s| s.last_log_id).map(LogPos::from),
        };
        let (last, applied) = (self.log_end(), applied.unwrap_or_default());
        if last.index < applied.index { applied } else { last }
    }

    /// Where the log ends.
    pub(crate) fn log_end(&self) -> LogPos {
        self.log.and_then(|log| log.last).unwrap_or_default()
    }

    /// Nothing of a node is in the folder.
    pub(crate) fn is_blank(&self) -> bool {
        let is_there = [
            self.identity.is_some(),
            self.vote.is_some(),
            self.log.is_some(),
            self.state.is_some(),
            self.membership.is_some(),
            self.last_exit.is_some(),
            !self.snapshots.is_empty(),
            !self.findings.is_empty(),
        ];
        !is_there.contains(&true)
    }

    /// The membership in the words of the API.
    pub(crate) fn members(&self) -> Option<Members> {
        self.membership.as_ref().map(members_of)
    }
}

/// Looks into a data folder. `Err`: nothing can be said, because a node uses it or it cannot be read.
/// Blocking.
pub(crate) fn look(data_dir: &Path, depth: Depth) -> Result<Found, OpenError> {
    is_folder(data_dir)?;
    let _lock = identity::Shared::take(data_dir)?;
    look_held(data_dir, depth)
}

pub(crate) fn is_folder(data_dir: &Path) -> Result<(), OpenError> {
    let what = match data_dir.is_dir() {
        true => return Ok(()),
        false if data_dir.exists() => "it is no folder",
        false => "there is no such folder",
    };
    Err(OpenError::io(data_dir, io::Error::new(io::ErrorKind::NotFound, what)))
}

/// As [`look`], for who holds the folder's lock.
pub(crate) fn look_held(data_dir: &Path, depth: Depth) -> Result<Found, OpenError> {
    let rocks = rocks::Shared::new().map_err(|e| OpenError::rocks(data_dir, &e))?;
    let mut look = Look { data_dir, rocks, depth, found: Found::default() };
    look.unfinished()?;
    look.identity()?;
    let log = look.log()?;
    look.snapshots()?;
    look.state(log.as_ref())?;
    look.found.last_exit = exit::read(data_dir).map_err(|e| OpenError::io(data_dir, e))?;
    Ok(look.found)
}

struct Look<'a> {
    data_dir: &'a Path,
    rocks: rocks::Shared,
    depth: Depth,
    found: Found,
}

impl Look<'_> {
    /// What a start would be refused for is a finding; what kept us from looking is an error.
    fn refused(&mut self, error: OpenError) -> Result<(), OpenError> {
        let (path, what) = match error {
            OpenError::Damage { path, what } | OpenError::Identity { path, what } => (path, what),
            OpenError::NewerFormat { path, version, known } => {
                (path, format!("its format {version} is newer than the {known} this binary knows"))
            }
            other => return Err(other),
        };
        self.finding(&path, what, true);
        Ok(())
    }

    fn finding(&mut self, path: &Path, what: impl Into<String>, refuses: bool) {
        let file = path.strip_prefix(self.data_dir).unwrap_or(path).to_owned();
        self.found.findings.push(Finding { file, what: what.into(), refuses });
    }

    fn unfinished(&mut self) -> Result<(), OpenError> {
        match Unfinished::read(self.data_dir) {
            Ok(None) => {}
            Ok(Some(unfinished)) => {
                self.finding(&self.data_dir.join(UNFINISHED), unfinished.says(), true);
            }
            Err(e) => self.refused(e)?,
        }
        Ok(())
    }

    fn identity(&mut self) -> Result<(), OpenError> {
        match Identity::read(self.data_dir) {
            Ok(identity) => self.found.identity = identity,
            Err(e) => self.refused(e)?,
        }
        Ok(())
    }

    fn log(&mut self) -> Result<Option<Looked>, OpenError> {
        let dir = log_open::log_dir(self.data_dir);
        let path = log_open::watermark_path(self.data_dir);
        let was_made = self.found.identity.is_some() || self.holds("IDENTITY");
        if !was_made && !path.exists() && !rocks::is_database(&dir) {
            return Ok(None);
        }
        let looked = match log_open::look(self.data_dir, &self.rocks) {
            Ok(looked) => looked,
            Err(e) => {
                self.refused(e)?;
                return Ok(None);
            }
        };
        if !was_made && !looked.contents.is_empty() {
            let what = "IDENTITY is missing beside a log that is not empty";
            self.finding(&self.data_dir.join("IDENTITY"), what, true);
        }
        if let Some(torn) = &looked.torn {
            let what = format!(
                "the last record, at byte {}, is torn; nothing that was reported durable lies behind it, a start drops it",
                torn.offset
            );
            self.finding(&torn.file.clone(), what, false);
        }
        if self.depth == Depth::All
            && let Err(e) = read_local(&looked.db)
        {
            self.refused(OpenError::rocks(&dir, &e))?;
        }
        let contents = &looked.contents;
        self.found.vote = contents.vote.as_ref().map(vote_found);
        self.found.log = Some(LogFound {
            purged: contents.purged.map(|e| e.pos),
            last: contents.last.map(|e| e.pos),
            committed: contents.committed.as_ref().map(|id| pos_of(id).index),
            marked: looked.mark.last.map(|e| e.pos.index),
            entries: contents.sizes.len() as u64,
            file_bytes: files::folder_bytes(&dir).map_err(|e| OpenError::io(&dir, e))?,
        });
        self.found.membership = contents.membership.clone();
        match removed_at(&looked.db) {
            Ok(version) => self.found.removed_at = version,
            Err(e) => self.refused(OpenError::rocks(&dir, &e))?,
        }
        self.found.last_logged_height = contents.last_block_height();
        Ok(Some(looked))
    }

    fn snapshots(&mut self) -> Result<(), OpenError> {
        let dir = snapshot::folder_of(self.data_dir);
        if !dir.is_dir() {
            return Ok(());
        }
        for (path, read) in snapshot::read_folder(&dir).map_err(|e| OpenError::io(&dir, e))? {
            let manifest = match read {
                Ok(manifest) => manifest,
                Err(what) => {
                    self.finding(&path, format!("{what}; a start sets it aside"), false);
                    continue;
                }
            };
            if self.depth == Depth::All && !self.is_intact(&path, &manifest) {
                continue;
            }
            self.found.snapshots.insert(0, manifest);
        }
        if self.found.identity.is_none() && !self.holds("IDENTITY") && !self.found.snapshots.is_empty() {
            self.finding(&self.data_dir.join("IDENTITY"), "IDENTITY is missing beside a snapshot", true);
        }
        Ok(())
    }

    fn is_intact(&mut self, path: &Path, manifest: &SnapshotManifest) -> bool {
        let dir = path.join(FILES);
        let problems = check::files(&dir, manifest);
        for problem in &problems {
            self.finding(&dir.join(&problem.file), problem.what.clone(), false);
        }
        if problems.is_empty()
            && let Err(what) = check::content(&dir, manifest, &self.rocks)
        {
            self.finding(path, what, false);
            return false;
        }
        problems.is_empty()
    }

    fn state(&mut self, log: Option<&Looked>) -> Result<(), OpenError> {
        let dir = db::current_dir(self.data_dir).map_err(|e| OpenError::io(self.data_dir, e))?;
        let purged = log.and_then(|l| l.contents.purged).map(|e| e.pos.index);
        let reached = self.found.snapshots.first().and_then(last_index);
        // Rebuilt from a snapshot that reaches what was purged, or from a log that has its beginning.
        let is_rebuilt = purged.is_none() || purged <= reached;
        let fate = match is_rebuilt {
            true => "a start rebuilds it",
            false => "no intact snapshot reaches the beginning of the log, so it cannot be rebuilt",
        };
        if log.is_none() && !rocks::is_database(&dir) {
            return Ok(());
        }
        let read = self.read_state(&dir);
        let loaded = match read {
            Ok(loaded) => loaded,
            Err(StateError::Rocks(e)) if !is_damage(&dir, &e) => return Err(OpenError::rocks(&dir, &e)),
            Err(e) => {
                self.finding(&dir, format!("{e}; {fate}"), !is_rebuilt);
                self.take_membership(StoredMembership::default());
                return Ok(());
            }
        };
        if db::is_marked_damaged(self.data_dir) {
            self.finding(&dir, format!("it was found damaged while it was used; {fate}"), !is_rebuilt);
        }
        let applied = loaded.applied;
        let index = applied.map(|p| p.index);
        if log.is_some() && index < purged {
            let what = format!("it holds entries up to {index:?}, the log begins behind {purged:?}; {fate}");
            self.finding(&dir, what, !is_rebuilt);
        }
        let last = log.map(|l| l.contents.last.map(|e| e.pos.index));
        if last.is_some_and(|last| last < index) && reached < index {
            let what =
                format!("it holds entries up to {index:?}, the log ends at {last:?}: the log lost entries");
            self.finding(&dir, what, true);
        }
        let view = loaded.machine.view();
        self.found.state = Some(StateFound {
            applied,
            head: view.head.clone(),
            oldest_height: view.oldest_height,
            state_hash: view.state_hash,
            file_bytes: files::folder_bytes(&dir).map_err(|e| OpenError::io(&dir, e))?,
        });
        self.take_membership(loaded.membership);
        Ok(())
    }

    fn read_state(&self, dir: &Path) -> Result<Loaded, StateError> {
        let db = StateDb::open_read_only(dir, &self.rocks)?;
        let loaded = db.load()?;
        if self.depth == Depth::All {
            check::read_all(&db)?;
        }
        Ok(loaded)
    }

    /// That of the log is newer, where it holds one.
    fn take_membership(&mut self, of_state: StoredMembership) {
        let of_snapshot = || {
            self.found
                .snapshots
                .first()?
                .membership
                .as_ref()
                .and_then(|m| stored_membership_from_proto(m).ok())
        };
        let is_known = |m: &StoredMembership| m.log_id().is_some();
        let other = Some(of_state).filter(is_known).or_else(of_snapshot);
        self.found.membership = self.found.membership.take().or(other).filter(is_known);
    }

    fn holds(&self, name: &str) -> bool {
        self.data_dir.join(name).exists()
    }
}

fn is_damage(dir: &Path, error: &rocksdb::Error) -> bool {
    matches!(OpenError::rocks(dir, error), OpenError::Damage { .. })
}

fn vote_found(vote: &Vote) -> VoteFound {
    VoteFound { term: vote.leader_id.term, voted_for: vote.leader_id.voted_for, committed: vote.committed }
}

fn removed_at(db: &rocks::Db) -> Result<Option<LogIndex>, rocksdb::Error> {
    let family = db.cf_handle("local").expect("the family was opened");
    let value = db.get_cf(family, REMOVED)?;
    Ok(value.and_then(|value| read_removed(&value)).map(|removed| removed.version))
}

/// Reads every record of the node's own.
fn read_local(db: &rocks::Db) -> Result<(), rocksdb::Error> {
    let family = db.cf_handle("local").expect("the family was opened");
    for item in db.iterator_cf(family, rocksdb::IteratorMode::Start) {
        item?;
    }
    Ok(())
}
