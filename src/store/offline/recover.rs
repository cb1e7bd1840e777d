//! `recover --apply`: one folder becomes the whole cluster (safety rule 10).
//!
//! A new random epoch keeps the nodes that were left behind away, the term raised by a million keeps
//! every fence they may ever have held from coming again, and an entry at the end of the log makes
//! the kept nodes the only voters.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use crate::raft::convert::members_of;
use crate::raft::{Membership, NodeRecord, StoredMembership};
use crate::store::codec::{Link, NO_LINK};
use crate::store::identity::Lock;
use crate::store::inspect::{self, Depth, Found};
use crate::store::local::{RECOVERED, REMOVED};
use crate::store::log::open as log_open;
use crate::store::offline::{OfflineError, Recovery, Rewrite, UNFINISHED, Unfinished, give_to_owner};
use crate::store::snapshot::{self, last_index};
use crate::store::state::apply::unix_ms;
use crate::store::{Identity, OpenError, Who, files, rocks};
use crate::types::position::LogPos;
use crate::types::{LogIndex, NodeId, Term};

/// Above every term that the nodes left behind can reach.
const TERM_STEP: Term = 1_000_000;
/// What is known of other nodes: they come back with empty folders.
const PEERS: &[u8] = b"peer/";

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recovered {
    pub(crate) identity: Identity,
    pub(crate) recovery: Recovery,
}

/// A folder whose recover is decided and not begun, or begun and not finished.
pub(crate) struct Pending {
    recovery: Recovery,
    identity: Identity,
    membership: Membership,
    /// Voters before.
    replaced: Vec<NodeId>,
    is_begun: bool,
    _lock: Lock,
}

impl Pending {
    /// Looks, decides, and changes nothing yet. `keep` empty: the folder's own node alone, or what a
    /// recover that was cut short had chosen. Holds the folder from here on. Blocking.
    pub(crate) fn new(data_dir: &Path, keep: &[NodeId]) -> Result<Self, OfflineError> {
        inspect::is_folder(data_dir)?;
        let begun = match Unfinished::read(data_dir)? {
            None => None,
            Some(Unfinished::Recover(recovery)) => Some(recovery),
            Some(other) => return Err(OfflineError::Refused(other.says().into())),
        };
        let refuse = |what: &str| Err(OfflineError::Refused(format!("{}: {what}", data_dir.display())));
        let Some(identity) = Identity::read(data_dir)? else {
            return refuse("it was never used by a node: IDENTITY is missing");
        };
        let who = Who { cluster_id: identity.cluster_id.clone(), node_id: identity.node_id };
        let lock = Lock::take(data_dir, &who)?;
        settle(data_dir)?;
        let mut found = inspect::look_held(data_dir, Depth::Start)?;
        if found.state.is_none() && found.log_end().index < found.end().index {
            // A snapshot is all there is of the end: it counts if every byte of it is right.
            found = inspect::look_held(data_dir, Depth::All)?;
        }
        let is_own = |file: &Path| file == Path::new(UNFINISHED);
        if let Some(refused) = found.findings.iter().find(|f| f.refuses && !is_own(&f.file)) {
            return Err(OpenError::damage(&data_dir.join(&refused.file), &refused.what).into());
        }
        let Some(stored) = &found.membership else {
            return refuse("no membership is in it: the node never belonged to a cluster");
        };
        let recovery = match begun.clone() {
            None => decide(&found, &identity, keep)?,
            Some(begun) => {
                let asked: BTreeSet<_> = keep.iter().copied().collect();
                if !keep.is_empty() && !asked.iter().eq(&begun.keep) {
                    return refuse(&format!(
                        "a recover that keeps nodes {:?} was begun: repeat it with these, or without --keep",
                        begun.keep
                    ));
                }
                begun
            }
        };
        let membership = membership(stored, &identity, &recovery.keep)?;
        let replaced = members_of(stored).voters.into_iter().collect();
        Ok(Self { recovery, identity, membership, replaced, is_begun: begun.is_some(), _lock: lock })
    }

    pub(crate) fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether an earlier attempt was cut short: this one goes on with it.
    pub(crate) fn is_begun(&self) -> bool {
        self.is_begun
    }

    /// Rewrites the folder. Durable on return; cut short at any point, the folder says so and the same
    /// call finishes it. Blocking.
    pub(crate) fn apply(self, data_dir: &Path) -> Result<Recovered, OfflineError> {
        let recovery = self.recovery;
        Unfinished::Recover(recovery.clone()).write(data_dir)?;
        let identity = Identity { epoch: recovery.epoch, ..self.identity };
        identity.write(data_dir).map_err(OfflineError::io(data_dir))?;
        let rocks = rocks::Shared::new().map_err(|e| OpenError::rocks(data_dir, &e))?;
        let log = log_open::open(data_dir, &rocks)?;
        let base_link = if recovery.is_purged { NO_LINK } else { link_of(data_dir, &log, &recovery)? };
        let rewrite = Rewrite {
            node_id: identity.node_id,
            term: recovery.term,
            base: recovery.base,
            base_link,
            is_purged: recovery.is_purged,
            membership: &self.membership,
            // Whoever removed it is of the cluster that is left behind.
            forget: &[PEERS, REMOVED],
            note: Some((RECOVERED, note(&recovery, &self.replaced))),
        };
        // The log's own handle on the watermark is closed first.
        let db = log.db;
        drop(log.slots);
        rewrite.write(data_dir, &db)?;
        drop(db);
        remove_snapshots_after(data_dir, recovery.base.index).map_err(OfflineError::io(data_dir))?;
        give_to_owner(data_dir)?;
        Unfinished::remove(data_dir)?;
        Ok(Recovered { identity, recovery })
    }
}

fn decide(found: &Found, identity: &Identity, keep: &[NodeId]) -> Result<Recovery, OfflineError> {
    let last = found.end();
    let vote_term = found.vote.map_or(0, |v| v.term);
    let term = vote_term.max(last.term).checked_add(TERM_STEP);
    let term = term.ok_or_else(|| OfflineError::Refused(format!("the term {vote_term} cannot be raised")))?;
    let mut keep: Vec<NodeId> = keep.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    if keep.is_empty() {
        keep.push(identity.node_id);
    }
    if !keep.contains(&identity.node_id) {
        return Err(OfflineError::Refused(format!(
            "--keep lacks node {}, whose folder this is: it alone has the data",
            identity.node_id
        )));
    }
    // 0 is what a founded cluster has.
    let epoch = rand::random::<u64>().max(1);
    // A snapshot was installed and the log behind it never was purged: the new entry follows the state, and what the log
    // holds goes.
    let is_purged = found.log_end().index < last.index;
    Ok(Recovery { epoch, term, base: last, is_purged, keep })
}

/// What the next start records, as a JSON object.
fn note(recovery: &Recovery, replaced: &[NodeId]) -> String {
    let note = serde_json::json!({
        "at": unix_ms(),
        "epoch": recovery.epoch.to_string(),
        "term": recovery.term,
        "lastTerm": recovery.base.term,
        "lastIndex": recovery.base.index,
        "keep": recovery.keep,
        "voters": replaced,
    });
    note.to_string()
}

/// The kept nodes as voters. Those that come with empty folders may have any incarnation.
fn membership(
    stored: &StoredMembership,
    identity: &Identity,
    keep: &[NodeId],
) -> Result<Membership, OfflineError> {
    let mut nodes = BTreeMap::new();
    for id in keep {
        let known = stored.membership().get_node(id).cloned();
        let Some(record) = known else {
            let members: Vec<_> = members_of(stored).nodes.into_keys().collect();
            return Err(OfflineError::Refused(format!(
                "--keep names node {id}, which is no member; members are {members:?}"
            )));
        };
        let incarnation = (*id == identity.node_id).then_some(identity.incarnation);
        nodes.insert(*id, NodeRecord { incarnation, ..record });
    }
    let voters: BTreeSet<NodeId> = keep.iter().copied().collect();
    Membership::new(vec![voters], nodes)
        .map_err(|e| OfflineError::Refused(format!("the new membership is not valid: {e}")))
}

/// Makes durable what is there before anything is decided by it, as a start does.
fn settle(data_dir: &Path) -> Result<(), OfflineError> {
    log_open::settle(data_dir)?;
    for dir in [snapshot::folder_of(data_dir), data_dir.to_owned()] {
        if dir.is_dir() {
            files::sync_dir(&dir).map_err(OfflineError::io(&dir))?;
        }
    }
    Ok(())
}

/// Removes what was received and never became the state: it is of the history that is left behind. Durable on return.
fn remove_snapshots_after(data_dir: &Path, base: LogIndex) -> io::Result<()> {
    let dir = snapshot::folder_of(data_dir);
    if !dir.is_dir() {
        return Ok(());
    }
    for (path, read) in snapshot::read_folder(&dir)? {
        if read.is_ok_and(|manifest| Some(base) < last_index(&manifest)) {
            files::remove_dir(&path)?;
        }
    }
    files::sync_dir(&dir)
}

/// The link of the entry that the new one follows, whether or not an earlier attempt wrote that.
fn link_of(data_dir: &Path, log: &log_open::Opened, recovery: &Recovery) -> Result<Link, OfflineError> {
    let last = log.contents.last.map(|e| (e.pos, e.link));
    let written = LogPos { term: recovery.term, index: recovery.base.index + 1 };
    match last {
        Some((pos, link)) if pos == recovery.base => Ok(link),
        Some((pos, _)) if pos == written => {
            let found = crate::store::log::read::frame_at(&log.db, recovery.base.index);
            let purged = log.contents.purged.filter(|p| p.pos == recovery.base).map(|p| p.link);
            let link = found.ok().flatten().map(|frame| frame.link).or(purged);
            link.ok_or_else(|| {
                OpenError::damage(data_dir, "the entry before the new membership is gone").into()
            })
        }
        other => {
            let what = format!("the log ends at {:?}, a recover was begun behind {:?}", other, recovery.base);
            Err(OpenError::damage(data_dir, what).into())
        }
    }
}
