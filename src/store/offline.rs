//! Folders that are made or rewritten while no node runs: `snapshot restore` and `recover --apply`.
//!
//! Each begins with the file [`UNFINISHED`] and ends by removing it. A folder that holds it is
//! refused by a start, and the same command goes on with it or begins anew.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use prost::Message;
use rocksdb::{WriteBatch, WriteOptions};

use crate::raft::convert::{vote_from_proto, vote_to_proto};
use crate::raft::{Entry, Membership, log_id_of};
use crate::store::codec::{self, Edge, Link};
use crate::store::log::open as log_open;
use crate::store::log::writer::{KEY_PURGED, KEY_VOTE};
use crate::store::rocks::Db;
use crate::store::snapshot::receive::ReceiveError;
use crate::store::state::install::InstallError;
use crate::store::watermark::{Found, Mark, Slots};
use crate::store::{OpenError, files};
use crate::types::position::LogPos;
use crate::types::{NodeId, Term, proto};

pub(crate) mod plan;
pub(crate) mod recover;
pub(crate) mod restore;

/// Says that a folder is being made or rewritten.
pub(crate) const UNFINISHED: &str = "UNFINISHED";
/// As which it is written.
const UNFINISHED_TMP: &str = "UNFINISHED.tmp";

/// Why nothing was done, or how far it came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OfflineError {
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Refused(String),
    #[error("the export is not usable: {0}")]
    Export(String),
}

impl OfflineError {
    /// 4: the folder refuses; 1: nothing happened.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Open(e) => e.exit_code(),
            Self::Io { .. } | Self::Refused(_) | Self::Export(_) => 1,
        }
    }

    fn io(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

impl From<ReceiveError> for OfflineError {
    fn from(e: ReceiveError) -> Self {
        Self::Export(e.to_string())
    }
}

impl From<InstallError> for OfflineError {
    fn from(e: InstallError) -> Self {
        Self::Export(e.to_string())
    }
}

/// What is under way with a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unfinished {
    Restore,
    Recover(Recovery),
}

/// What a recover writes; everything is chosen before anything is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recovery {
    pub(crate) epoch: u64,
    /// Of the vote and of the entry that rewrites the membership.
    pub(crate) term: Term,
    /// The last entry that was there.
    pub(crate) base: LogPos,
    /// The log ends before it: what came by a snapshot was not purged yet.
    pub(crate) is_purged: bool,
    /// Voters from then on, ascending.
    pub(crate) keep: Vec<NodeId>,
}

impl Unfinished {
    pub(crate) fn read(data_dir: &Path) -> Result<Option<Self>, OpenError> {
        let path = data_dir.join(UNFINISHED);
        let Some(content) = files::read_optional(&path).map_err(|e| OpenError::io(&path, e))? else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&content).into_owned();
        Self::parse(&text)
            .map(Some)
            .ok_or_else(|| OpenError::damage(&path, "it says nothing that is understood"))
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |key: &str| {
            text.lines().filter_map(|l| l.split_once(" = ")).find(|(k, _)| *k == key).map(|(_, v)| v.trim())
        };
        let number = |key: &str| field(key)?.parse::<u64>().ok();
        match field("command")? {
            "restore" => Some(Self::Restore),
            "recover" => Some(Self::Recover(Recovery {
                epoch: number("epoch")?,
                term: number("term")?,
                base: LogPos { term: number("base_term")?, index: number("base_index")? },
                is_purged: field("purged") == Some("true"),
                keep: field("keep")?.split(' ').map(|id| id.parse().ok()).collect::<Option<_>>()?,
            })),
            _ => None,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Restore => "command = restore\n".into(),
            Self::Recover(r) => {
                let keep = r.keep.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
                format!(
                    "command = recover\nepoch = {}\nterm = {}\nbase_term = {}\nbase_index = {}\npurged = {}\nkeep = {keep}\n",
                    r.epoch, r.term, r.base.term, r.base.index, r.is_purged
                )
            }
        }
    }

    /// Durable on return.
    fn write(&self, data_dir: &Path) -> Result<(), OfflineError> {
        let path = data_dir.join(UNFINISHED);
        files::write_atomic(&path, self.text().as_bytes()).map_err(OfflineError::io(&path))
    }

    /// From here on the folder is whole, or as empty as it was. Durable on return.
    fn remove(data_dir: &Path) -> Result<(), OfflineError> {
        let path = data_dir.join(UNFINISHED);
        let io = OfflineError::io(&path);
        // What it spoke of first: a power loss may keep its removal and nothing else.
        files::sync_dir(data_dir).map_err(&io)?;
        fs::remove_file(&path).and_then(|()| files::sync_dir(data_dir)).map_err(&io)
    }

    /// What a person is told who starts a node on such a folder, or looks into it.
    pub(crate) fn says(&self) -> &'static str {
        match self {
            Self::Restore => {
                "a restore into this folder was begun and not finished: repeat `blockraft snapshot restore`"
            }
            Self::Recover(_) => {
                "a recover of this folder was begun and not finished: repeat `blockraft recover --apply`"
            }
        }
    }
}

/// What is written into a log that nobody uses.
struct Rewrite<'a> {
    node_id: NodeId,
    /// Of vote and entry.
    term: Term,
    /// What the entry follows.
    base: LogPos,
    base_link: Link,
    /// The log begins behind `base`.
    is_purged: bool,
    membership: &'a Membership,
    /// Prefixes of records of this node's own that are forgotten.
    forget: &'a [&'a [u8]],
    /// A record of this node's own that is written.
    note: Option<(&'a [u8], String)>,
}

impl Rewrite<'_> {
    /// Writes vote, membership and whatever else in one synced batch, then the watermark. The same
    /// again leaves the same.
    fn write(&self, data_dir: &Path, db: &Db) -> Result<(), OfflineError> {
        let dir = log_open::log_dir(data_dir);
        let rocks = |e: rocksdb::Error| OfflineError::Open(OpenError::rocks(&dir, &e));
        let pos = LogPos { term: self.term, index: self.base.index + 1 };
        let payload = openraft::EntryPayload::Membership(self.membership.clone());
        let entry = Entry { log_id: log_id_of(pos), payload };
        let (frame, payload) = codec::encode(&entry, self.base_link);
        let vote = proto::Vote { term: self.term, node_id: self.node_id, committed: false };
        let vote = vote_from_proto(&vote);
        let local = db.cf_handle("local").expect("the family was opened");
        let mut batch = WriteBatch::default();
        if self.is_purged {
            let edge = Edge { pos: self.base, link: self.base_link };
            batch.put(KEY_PURGED, codec::edge_to_bytes(edge));
            batch.delete_range(codec::first_key(0), codec::first_key(pos.index));
        }
        batch.put(KEY_VOTE, vote_to_proto(&vote).encode_to_vec());
        batch.put(frame.to_key(), &payload);
        for prefix in self.forget {
            let mut end = prefix.to_vec();
            // No key of ours holds the greatest byte behind a prefix, let alone sixteen of them.
            end.extend_from_slice(&[0xff; 16]);
            batch.delete_range_cf(local, *prefix, &end[..]);
        }
        if let Some((key, note)) = &self.note {
            batch.put_cf(local, key, note);
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        db.write_opt(batch, &options).map_err(rocks)?;
        // Behind what it records, as ever (safety rule 4).
        let path = log_open::watermark_path(data_dir);
        let mark = Mark { last: Some(frame.edge()), vote: Some(vote) };
        let mut slots = match Slots::open(&path).map_err(OfflineError::io(&path))? {
            Found::Mark(slots, _) => slots,
            Found::Missing | Found::Damaged => Slots::create(&path).map_err(OfflineError::io(&path))?,
        };
        slots.write(&mark).map_err(OfflineError::io(&path))
    }
}

/// Gives everything below a folder to the folder's owner: the command may have been run by another
/// user than the one the node runs as. Who is not root may not, and has made what is new there as the user that the
/// node runs as.
fn give_to_owner(data_dir: &Path) -> Result<(), OfflineError> {
    let io = OfflineError::io(data_dir);
    let owner = fs::metadata(data_dir).map_err(&io)?;
    let mut open = vec![data_dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).map_err(&io)? {
            let entry = entry.map_err(&io)?;
            let meta = entry.metadata().map_err(&io)?;
            // The file system's own.
            if entry.file_name() == "lost+found" {
                continue;
            }
            if (meta.uid(), meta.gid()) != (owner.uid(), owner.gid()) {
                match std::os::unix::fs::lchown(entry.path(), Some(owner.uid()), Some(owner.gid())) {
                    Err(error)
                        if error.kind() == io::ErrorKind::PermissionDenied
                            && !rustix::process::geteuid().is_root() => {}
                    given => given.map_err(OfflineError::io(&entry.path()))?,
                }
            }
            if meta.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_read_back() {
        let base = LogPos { term: 3, index: 9 };
        let recover = |is_purged| {
            Unfinished::Recover(Recovery { epoch: u64::MAX, term: 7, base, is_purged, keep: vec![1, 4] })
        };
        for unfinished in [Unfinished::Restore, recover(false), recover(true)] {
            assert_eq!(Unfinished::parse(&unfinished.text()), Some(unfinished));
        }
        for bad in ["", "command = other\n", "command = recover\nepoch = 1\n"] {
            assert_eq!(Unfinished::parse(bad), None, "{bad}");
        }
    }
}
