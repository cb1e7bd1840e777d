//! Opening the log: every entry is read once, and what it claims is compared with the watermark.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use crate::raft::convert::vote_from_proto;
use crate::raft::{Entry, LogId, Vote, log_id_of};
use crate::store::OpenError;
use crate::store::codec::{self, Edge, Frame, Link, edge_from_bytes};
use crate::store::log::read::{Frames, ReadError};
use crate::store::log::tail::Tail;
use crate::store::log::writer::{KEY_COMMITTED, KEY_PURGED, KEY_VOTE};
use crate::store::rocks::{self, Db, Recovery};
use crate::store::watermark::{self, Mark, Slots};
use crate::types::{LogIndex, proto};

/// Payload bytes kept in memory while the log is read; what [`Tail`] keeps.
const KEEP_BYTES: u64 = 16 << 20;

/// Where the log lies in a data folder.
pub(crate) fn log_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("log")
}

/// Where the watermark lies: beside the databases, never inside.
pub(crate) fn watermark_path(data_dir: &Path) -> PathBuf {
    data_dir.join("WATERMARK")
}

/// Everything the log holds, read and checked.
pub(crate) struct Contents {
    pub(crate) purged: Option<Edge>,
    pub(crate) last: Option<Edge>,
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    /// Stored bytes of each entry.
    pub(crate) sizes: Vec<u64>,
    /// The last entries, about [`KEEP_BYTES`].
    pub(crate) tail: Vec<(Frame, Entry)>,
    /// Link of the entry the watermark names, if the log holds it.
    marked_link: Option<Link>,
    first: LogIndex,
}

/// An open log.
pub(crate) struct Opened {
    pub(crate) db: Db,
    pub(crate) contents: Contents,
    pub(crate) slots: Slots,
    pub(crate) mark: Mark,
}

impl Contents {
    pub(crate) fn is_empty(&self) -> bool {
        self.vote.is_none() && self.last.is_none()
    }

    /// Index of the first entry.
    pub(crate) fn first_index(&self) -> LogIndex {
        self.first
    }

    pub(crate) fn into_tail(self) -> Tail {
        let mut tail = Tail::load(self.purged, self.last, self.tail, &self.sizes);
        tail.vote = self.vote;
        tail.queued_vote = self.vote;
        tail.committed = self.committed;
        tail
    }
}

/// Makes an empty log and its watermark.
pub(crate) fn create(data_dir: &Path, rocks: &rocks::Shared) -> Result<(), OpenError> {
    let dir = log_dir(data_dir);
    if !rocks::is_database(&dir) {
        let db = rocks.open_log(&dir, true, Recovery::ShortTail).map_err(|e| OpenError::rocks(&dir, &e))?;
        drop(db);
    }
    let path = watermark_path(data_dir);
    if !path.exists() {
        Slots::create(&path).map_err(|e| OpenError::io(&path, e))?;
    }
    Ok(())
}

/// Opens a log that should be there, and refuses one that holds less than it once did.
pub(crate) fn open(data_dir: &Path, rocks: &rocks::Shared) -> Result<Opened, OpenError> {
    let dir = log_dir(data_dir);
    let path = watermark_path(data_dir);
    let (slots, mark) = match Slots::open(&path).map_err(|e| OpenError::io(&path, e))? {
        (slots, watermark::Read::Mark(mark)) => (slots, mark),
        (_, watermark::Read::Missing) => return Err(OpenError::damage(&path, "the watermark is missing")),
        (_, watermark::Read::Damaged) => {
            return Err(OpenError::damage(&path, "neither slot of the watermark is whole"));
        }
    };
    if !rocks::is_database(&dir) {
        return Err(OpenError::damage(&dir, "the log is missing: no CURRENT in its folder"));
    }
    let db = rocks.open_log(&dir, false, Recovery::ShortTail).map_err(|e| OpenError::rocks(&dir, &e))?;
    let contents = read(&db, &mark).map_err(|e| describe(&dir, e))?;
    check_mark(&dir, &contents, &mark)?;
    Ok(Opened { db, contents, slots, mark })
}

/// Reads the whole log and checks that it has no hole, one chain and whole payloads.
pub(crate) fn read(db: &Db, mark: &Mark) -> Result<Contents, ReadError> {
    let record = |key: &[u8]| db.get(key).map_err(ReadError::from);
    let edge = |key: &[u8]| Ok::<_, ReadError>(record(key)?.and_then(|v| edge_from_bytes(&v)));
    let purged: Option<Edge> = edge(KEY_PURGED)?;
    let vote = record(KEY_VOTE)?
        .map(|v| {
            proto::Vote::decode(v.as_slice())
                .map_err(|e| ReadError::Record { key: "vote", why: e.to_string() })
        })
        .transpose()?
        .map(|v| vote_from_proto(&v));
    let mut contents = Contents {
        purged,
        last: purged,
        vote,
        committed: None,
        sizes: Vec::new(),
        tail: Vec::new(),
        marked_link: None,
        first: purged.map_or(0, |p| p.pos.index + 1),
    };
    read_entries(db, mark, &mut contents)?;
    let last = contents.last.map(|e| log_id_of(e.pos));
    contents.committed = edge(KEY_COMMITTED)?.map(|e| log_id_of(e.pos)).min(last);
    Ok(contents)
}

fn read_entries(db: &Db, mark: &Mark, contents: &mut Contents) -> Result<(), ReadError> {
    let from = contents.purged.map_or(0, |p| p.pos.index + 1);
    let mut frames = Frames::new(db, from..LogIndex::MAX);
    let mut previous = contents.purged;
    let mut tail = std::collections::VecDeque::new();
    let mut kept_bytes = 0;
    while let Some((frame, payload)) = frames.current()? {
        let index = frame.pos.index;
        match previous {
            Some(previous) if index != previous.pos.index + 1 => {
                return Err(ReadError::Missing { index: previous.pos.index + 1 });
            }
            None => contents.first = index,
            Some(_) => {}
        }
        if frame.link_after(previous.map_or(codec::NO_LINK, |p| p.link)) != frame.link {
            return Err(ReadError::Chain { index });
        }
        frame.check_payload(payload)?;
        if mark.last.is_some_and(|m| m.pos == frame.pos) {
            contents.marked_link = Some(frame.link);
        }
        kept_bytes += u64::from(frame.length);
        tail.push_back((frame, codec::decode(&frame, Bytes::copy_from_slice(payload))?));
        while KEEP_BYTES < kept_bytes
            && 1 < tail.len()
            && let Some((front, _)) = tail.pop_front()
        {
            kept_bytes -= u64::from(front.length);
        }
        contents.sizes.push(frame.stored_bytes());
        previous = Some(frame.edge());
        frames.advance();
    }
    contents.last = previous;
    contents.tail = tail.into();
    Ok(())
}

/// A log that ends before its watermark, or does not hold what the watermark names, lost something.
pub(crate) fn check_mark(dir: &Path, contents: &Contents, mark: &Mark) -> Result<(), OpenError> {
    if let Some(marked) = &mark.vote {
        let holds = contents.vote.is_some_and(|v| {
            let (v, m) = (&v, marked);
            m.leader_id.term < v.leader_id.term
                || (m.leader_id.term == v.leader_id.term
                    && m.committed <= v.committed
                    && (m.committed < v.committed || m.leader_id == v.leader_id))
        });
        if !holds {
            let what =
                format!("the log's vote is {:?}, older than {marked:?}, which was saved", contents.vote);
            return Err(OpenError::damage(dir, what));
        }
    }
    let Some(marked) = mark.last else { return Ok(()) };
    let index = marked.pos.index;
    if contents.purged.is_some_and(|p| index <= p.pos.index) {
        return Ok(());
    }
    match contents.last {
        Some(last) if index <= last.pos.index => {}
        last => {
            let last = last.map_or("is empty".to_owned(), |l| format!("ends at index {}", l.pos.index));
            let what = format!("the log {last}, entries up to index {index} were written");
            return Err(OpenError::damage(dir, what));
        }
    }
    if contents.marked_link != Some(marked.link) {
        let what = format!("entry {index} is not the one that was written in term {}", marked.pos.term);
        return Err(OpenError::damage(dir, what));
    }
    Ok(())
}

/// Names the file that RocksDB names, or the folder.
pub(crate) fn describe(dir: &Path, error: ReadError) -> OpenError {
    match error {
        ReadError::Rocks(e) => OpenError::rocks(dir, &e),
        other => OpenError::damage(dir, other),
    }
}
