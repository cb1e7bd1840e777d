//! Which of the folders that are left is the most advanced, and what is lost with the others.
//!
//! Decides by what [`inspect`](crate::store::inspect) found; reads and changes nothing itself.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::store::OpenError;
use crate::store::inspect::Found;
use crate::types::position::LogPos;
use crate::types::{Height, LogIndex, NodeId, Term};

/// What is told of one folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Survivor {
    pub(crate) dir: PathBuf,
    pub(crate) node_id: NodeId,
    pub(crate) cluster_id: String,
    pub(crate) epoch: u64,
    /// The end of its history.
    pub(crate) last: LogPos,
    pub(crate) committed: LogIndex,
    /// Height of the last block in the log or the state.
    pub(crate) height: Option<Height>,
    pub(crate) vote_term: Term,
    pub(crate) voters: BTreeSet<NodeId>,
    /// Index of the membership that names them.
    pub(crate) version: LogIndex,
    /// Of a newer one that does not name the node, if it was told of that.
    pub(crate) removed_at: Option<LogIndex>,
}

/// A folder of which nothing can be saved, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unusable {
    pub(crate) dir: PathBuf,
    pub(crate) why: String,
}

/// What one folder is to the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Judged {
    Survivor(Survivor),
    Unusable(Unusable),
    /// Nothing is known of what it holds, so nothing is planned. In words, with the folder and what to do.
    Refused(String),
}

/// What can be saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The most advanced first.
    pub(crate) survivors: Vec<Survivor>,
    pub(crate) unusable: Vec<Unusable>,
}

/// What becomes of what the others held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Loss {
    /// A quorum of the voters is here: starting them is enough.
    NoRecoveryNeeded,
    /// Whatever the voters that are missing acknowledged behind the best folder's end is gone.
    Unknown { missing: Vec<NodeId> },
}

impl Judged {
    /// Of what [`look`](crate::store::inspect::look) found in it. Damage is something that was found; who cannot
    /// look knows nothing.
    pub(crate) fn new(dir: &Path, looked: Result<Found, OpenError>) -> Self {
        let found = match looked {
            Ok(found) => found,
            Err(e @ OpenError::Locked { .. }) => return Self::Refused(format!("{e}: stop the node")),
            Err(OpenError::Io { path, source }) if path == dir && source.kind() == ErrorKind::NotFound => {
                return Self::Refused(format!("{}: {source}: check the path", dir.display()));
            }
            Err(e) => {
                let dir = dir.display();
                return Self::Refused(format!(
                    "{dir} cannot be looked into, leave it out if it is lost: {e}"
                ));
            }
        };
        if found.is_blank() {
            return Self::Refused(format!("{} is no data folder of a node: check the path", dir.display()));
        }
        match Survivor::new(dir, &found) {
            Ok(survivor) => Self::Survivor(survivor),
            Err(why) => Self::Unusable(Unusable { dir: dir.to_owned(), why }),
        }
    }
}

impl Survivor {
    /// `Err` says why nothing of the folder can be saved.
    pub(crate) fn new(dir: &Path, found: &Found) -> Result<Self, String> {
        if let Some(refused) = found.findings.iter().find(|f| f.refuses) {
            return Err(format!("{}: {}", refused.file.display(), refused.what));
        }
        let identity = found.identity.as_ref().ok_or("it was never used by a node: IDENTITY is missing")?;
        let members =
            found.members().ok_or("no membership is in it: the node never belonged to a cluster")?;
        let log = found.log.unwrap_or_default();
        let applied = found.state.as_ref().and_then(|s| s.applied).map_or(0, |p| p.index);
        Ok(Self {
            dir: dir.to_owned(),
            node_id: identity.node_id,
            cluster_id: identity.cluster_id.clone(),
            epoch: identity.epoch,
            last: found.end(),
            committed: log.committed.unwrap_or(0).max(applied),
            height: found.last_height(),
            vote_term: found.vote.map_or(0, |v| v.term),
            voters: members.voters,
            version: members.version,
            removed_at: found.removed_at.filter(|removed| members.version < *removed),
        })
    }
}

impl Plan {
    /// `Err`: they do not belong together, or two claim to be one.
    pub(crate) fn new(mut survivors: Vec<Survivor>, unusable: Vec<Unusable>) -> Result<Self, String> {
        if let Some(first) = survivors.first()
            && let Some(other) =
                survivors.iter().find(|s| (&s.cluster_id, s.epoch) != (&first.cluster_id, first.epoch))
        {
            return Err(format!(
                "{} is of cluster {} (epoch {}), {} of {} (epoch {}): they cannot be compared",
                first.dir.display(),
                first.cluster_id,
                first.epoch,
                other.dir.display(),
                other.cluster_id,
                other.epoch
            ));
        }
        // Raft's own order: the later term first, then the longer log.
        survivors.sort_by_key(|s| std::cmp::Reverse((s.last, s.node_id)));
        for (i, survivor) in survivors.iter().enumerate() {
            if let Some(twin) = survivors[i + 1..].iter().find(|s| s.node_id == survivor.node_id) {
                return Err(format!(
                    "{} and {} are both node {}'s: give the one that was used last",
                    survivor.dir.display(),
                    twin.dir.display(),
                    survivor.node_id
                ));
            }
        }
        Ok(Self { survivors, unusable })
    }

    /// The folder that holds most.
    pub(crate) fn best(&self) -> Option<&Survivor> {
        self.survivors.first()
    }

    pub(crate) fn loss(&self) -> Option<Loss> {
        let best = self.best()?;
        let here: BTreeSet<NodeId> = self.survivors.iter().map(|s| s.node_id).collect();
        let missing: Vec<NodeId> = best.voters.difference(&here).copied().collect();
        let n_here = best.voters.len() - missing.len();
        Some(match best.voters.len() / 2 < n_here {
            true => Loss::NoRecoveryNeeded,
            false => Loss::Unknown { missing },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survivor(node_id: NodeId, term: Term, index: LogIndex) -> Survivor {
        Survivor {
            dir: format!("n{node_id}").into(),
            node_id,
            cluster_id: "c".into(),
            epoch: 0,
            last: LogPos { term, index },
            committed: index,
            height: Some(index),
            vote_term: term,
            voters: [1, 2, 3, 4, 5].into(),
            version: 0,
            removed_at: None,
        }
    }

    #[test]
    fn the_later_term_counts_more_than_the_longer_log() {
        let plan = Plan::new(vec![survivor(1, 3, 900), survivor(2, 4, 800)], vec![]).expect("one cluster");
        assert_eq!(plan.best().map(|s| s.node_id), Some(2));
        assert_eq!(plan.loss(), Some(Loss::Unknown { missing: vec![3, 4, 5] }));
        let all = (1..=3).map(|id| survivor(id, 4, 800)).collect();
        assert_eq!(Plan::new(all, vec![]).expect("one cluster").loss(), Some(Loss::NoRecoveryNeeded));
        assert_eq!(Plan::new(vec![], vec![]).expect("nothing").loss(), None);
    }

    #[test]
    fn a_folder_that_cannot_be_looked_into_is_no_folder_that_is_lost() {
        use crate::store::inspect::Finding;
        let dir = Path::new("n1");
        let said = |looked| match Judged::new(dir, looked) {
            Judged::Refused(why) => why,
            other => panic!("not refused: {other:?}"),
        };
        let why = said(Err(OpenError::Locked { path: dir.into(), by: "process 7".into() }));
        assert!(why.contains("n1 is in use by process 7") && why.contains("stop the node"), "{why}");
        let gone = std::io::Error::new(ErrorKind::NotFound, "there is no such folder");
        let why = said(Err(OpenError::io(dir, gone)));
        assert!(why.contains("n1: there is no such folder") && why.contains("check the path"), "{why}");
        let why = said(Err(OpenError::io(&dir.join("LOCK"), ErrorKind::PermissionDenied.into())));
        assert!(why.contains("n1 cannot be looked into"), "{why}");
        let why = said(Ok(Found::default()));
        assert!(why.contains("n1 is no data folder"), "{why}");

        let damaged = Finding { file: "WATERMARK".into(), what: "gone".into(), refuses: true };
        let mut found = Found::default();
        found.findings.push(damaged);
        let unusable = Unusable { dir: dir.into(), why: "WATERMARK: gone".into() };
        assert_eq!(Judged::new(dir, Ok(found)), Judged::Unusable(unusable));
    }

    #[test]
    fn folders_that_do_not_belong_together_are_not_compared() {
        let other = Survivor { epoch: 5, ..survivor(2, 4, 800) };
        assert!(Plan::new(vec![survivor(1, 3, 900), other], vec![]).is_err());
        let copy = Survivor { dir: "copy".into(), ..survivor(1, 3, 900) };
        let said = Plan::new(vec![survivor(1, 3, 900), copy], vec![]).expect_err("twice");
        assert!(said.contains("node 1"), "{said}");
    }
}
