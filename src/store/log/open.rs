//! Opening the log: every entry is read once, and what it claims is compared with the watermark.

use std::path::{Path, PathBuf};

use openraft::EntryPayload;
use prost::Message;

use crate::raft::convert::vote_from_proto;
use crate::raft::{Entry, LogId, StoredMembership, Vote, log_id_of};
use crate::store::codec::{self, Edge, Frame, Link, edge_from_bytes};
use crate::store::log::payloads::{Payloads, Reading, Usage, payload_dir};
use crate::store::log::read::{Frames, ReadError};
use crate::store::log::tail::Tail;
use crate::store::log::wal::{self, Damage};
use crate::store::log::writer::{KEY_COMMITTED, KEY_PURGED, KEY_VOTE};
use crate::store::rocks::{self, Db, LOG_FAMILIES, Recovery};
use crate::store::watermark::{Found, Mark, Peeked, Slots};
use crate::store::{OpenError, files};
use crate::types::{Height, LogIndex, proto};

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
    /// The newest membership among the entries; `None`: none of them is one.
    pub(crate) membership: Option<StoredMembership>,
    /// Link of the entry the watermark names, if the log holds it.
    marked_link: Option<Link>,
    first: LogIndex,
    /// Where its large payloads lie.
    pub(crate) usage: Usage,
}

/// An open log.
pub(crate) struct Opened {
    pub(crate) db: Db,
    pub(crate) payloads: Payloads,
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

    /// Height of the last block among the entries of the tail.
    pub(crate) fn last_block_height(&self) -> Option<Height> {
        self.tail.iter().rev().find_map(|(_, entry)| match &entry.payload {
            EntryPayload::Normal(command) => command.block_height(),
            EntryPayload::Blank | EntryPayload::Membership(_) => None,
        })
    }

    pub(crate) fn into_tail(self) -> Tail {
        let mut tail = Tail::load(self.purged, self.last, self.tail, &self.sizes);
        tail.vote = self.vote;
        tail.queued_vote = self.vote;
        tail.committed = self.committed;
        tail
    }
}

/// Makes an empty log and its watermark, or finishes what a start that was cut short began. What is
/// there and not empty is left as it is.
pub(crate) fn create(data_dir: &Path, rocks: &rocks::Shared) -> Result<(), OpenError> {
    let dir = log_dir(data_dir);
    if !rocks::is_database(&dir) && holds_tables(&dir) {
        // RocksDB would make an empty database and delete them.
        return Err(OpenError::damage(&dir, "the log's CURRENT is missing beside its tables"));
    }
    let db = rocks.open_log(&dir, true, Recovery::ShortTail).map_err(|e| OpenError::rocks(&dir, &e))?;
    let is_empty =
        read(&db, &Payloads::of(data_dir), &Mark::default()).map_err(|e| describe(&dir, e))?.is_empty();
    drop(db);
    let path = watermark_path(data_dir);
    let is_whole = matches!(Slots::open(&path).map_err(|e| OpenError::io(&path, e))?, Found::Mark(..));
    if !is_whole && is_empty {
        Slots::create(&path).map_err(|e| OpenError::io(&path, e))?;
    }
    Ok(())
}

fn holds_tables(dir: &Path) -> bool {
    let is_table = |e: std::io::Result<std::fs::DirEntry>| {
        e.is_ok_and(|e| e.path().extension().is_some_and(|x| x == "sst"))
    };
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.any(is_table))
}

/// Opens a log that should be there, and refuses one that holds less than it once did.
pub(crate) fn open(data_dir: &Path, rocks: &rocks::Shared) -> Result<Opened, OpenError> {
    let dir = log_dir(data_dir);
    let path = watermark_path(data_dir);
    settle(data_dir)?;
    let (slots, mark) = match Slots::open(&path).map_err(|e| OpenError::io(&path, e))? {
        Found::Mark(slots, mark) => (slots, mark),
        Found::Missing => return Err(OpenError::damage(&path, "the watermark is missing")),
        Found::Damaged => return Err(OpenError::damage(&path, "neither slot of the watermark is whole")),
    };
    if !rocks::is_database(&dir) {
        return Err(OpenError::damage(&dir, "the log is missing: no CURRENT in its folder"));
    }
    let payloads = Payloads::of(data_dir);
    let db = match rocks.open_log(&dir, false, Recovery::ShortTail) {
        Ok(db) => db,
        Err(e) if e.kind() == rocksdb::ErrorKind::Corruption => recover(&dir, &payloads, rocks, &mark, &e)?,
        Err(e) => return Err(OpenError::rocks(&dir, &e)),
    };
    let contents = read(&db, &payloads, &mark).map_err(|e| describe(&dir, e))?;
    check_mark(&dir, &contents, &mark)?;
    Ok(Opened { db, payloads, contents, slots, mark })
}

/// Makes durable what is there, before anything is decided by it: a process that was killed between a write and its sync
/// left a record that is read now, built upon and answered for, and RocksDB syncs no log but its new one.
pub(crate) fn settle(data_dir: &Path) -> Result<(), OpenError> {
    let dir = log_dir(data_dir);
    let mark = watermark_path(data_dir);
    if mark.is_file() {
        files::settle(&mark).map_err(|e| OpenError::io(&mark, e))?;
    }
    if !dir.is_dir() {
        return Ok(());
    }
    let io = |e| OpenError::io(&dir, e);
    for (_, path) in wal::wals(&dir).map_err(io)? {
        files::settle(&path).map_err(|e| OpenError::io(&path, e))?;
    }
    let payloads = payload_dir(data_dir);
    if payloads.is_dir() {
        files::sync_dir(&payloads).map_err(io)?;
    }
    files::sync_dir(&dir).map_err(io)
}

/// A log that was read and not changed.
pub(crate) struct Looked {
    pub(crate) db: Db,
    pub(crate) contents: Contents,
    pub(crate) mark: Mark,
    /// The last record was torn by a power loss: what a start drops.
    pub(crate) torn: Option<Damage>,
}

/// Reads a log that should be there as [`open`] would, and changes nothing.
pub(crate) fn look(data_dir: &Path, rocks: &rocks::Shared) -> Result<Looked, OpenError> {
    let dir = log_dir(data_dir);
    let path = watermark_path(data_dir);
    let mark = match Slots::peek(&path).map_err(|e| OpenError::io(&path, e))? {
        Peeked::Mark(mark) => mark,
        Peeked::Missing => return Err(OpenError::damage(&path, "the watermark is missing")),
        Peeked::Damaged => return Err(OpenError::damage(&path, "neither slot of the watermark is whole")),
    };
    if !rocks::is_database(&dir) {
        return Err(OpenError::damage(&dir, "the log is missing: no CURRENT in its folder"));
    }
    let payloads = Payloads::of(data_dir);
    match rocks.open_log_read_only(&dir, Recovery::ShortTail) {
        Ok(db) => {
            let contents = read(&db, &payloads, &mark).map_err(|e| describe(&dir, e))?;
            check_mark(&dir, &contents, &mark)?;
            Ok(Looked { db, contents, mark, torn: None })
        }
        Err(e) if e.kind() == rocksdb::ErrorKind::Corruption => {
            let (db, contents, damage) = look_at_torn(&dir, &payloads, rocks, &mark, &e)?;
            Ok(Looked { db, contents, mark, torn: Some(damage) })
        }
        Err(e) => Err(OpenError::rocks(&dir, &e)),
    }
}

/// What a log holds whose last record was torn by a power loss: only if nothing that was ever
/// reported durable lies behind it. Changes nothing.
fn look_at_torn(
    dir: &Path,
    payloads: &Payloads,
    rocks: &rocks::Shared,
    mark: &Mark,
    error: &rocksdb::Error,
) -> Result<(Db, Contents, Damage), OpenError> {
    let damage = wal::first_damage(dir).map_err(|e| OpenError::io(dir, e))?;
    let Some(damage) = damage else { return Err(OpenError::damage(dir, error)) };
    let offset = damage.offset;
    if damage.has_more {
        let what = format!("damaged at byte {offset}, with whole records behind it: {error}");
        return Err(OpenError::damage(&damage.file, what));
    }
    let refuse = |e: OpenError| match e {
        OpenError::Damage { what, .. } => {
            OpenError::damage(&damage.file, format!("damaged at byte {offset}: {what}"))
        }
        other => other,
    };
    let db = rocks
        .open_log_read_only(dir, Recovery::PointInTime)
        .map_err(|e| refuse(OpenError::rocks(dir, &e)))?;
    let contents = read(&db, payloads, mark).map_err(|e| refuse(describe(dir, e)))?;
    check_mark(dir, &contents, mark).map_err(refuse)?;
    Ok((db, contents, damage))
}

/// Opens a log whose last record was torn. Everything is looked at before anything is changed.
fn recover(
    dir: &Path,
    payloads: &Payloads,
    rocks: &rocks::Shared,
    mark: &Mark,
    error: &rocksdb::Error,
) -> Result<Db, OpenError> {
    let (db, contents, damage) = look_at_torn(dir, payloads, rocks, mark, error)?;
    drop(db);
    tracing::warn!(
        file = %damage.file.display(),
        offset = damage.offset,
        last_index = contents.last.map(|e| e.pos.index),
        "the last record of the log is torn; everything that was reported durable is before it"
    );
    let db = rocks.open_log(dir, false, Recovery::PointInTime).map_err(|e| OpenError::rocks(dir, &e))?;
    // The torn file is needed no more once what it held is in tables.
    for family in LOG_FAMILIES.iter().filter_map(|f| db.cf_handle(f)) {
        db.flush_cf(family).map_err(|e| OpenError::rocks(dir, &e))?;
    }
    drop(db);
    rocks.open_log(dir, false, Recovery::ShortTail).map_err(|e| OpenError::rocks(dir, &e))
}

/// Reads the whole log and checks that it has no hole, one chain and whole payloads.
pub(crate) fn read(db: &Db, payloads: &Payloads, mark: &Mark) -> Result<Contents, ReadError> {
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
        membership: None,
        marked_link: None,
        first: purged.map_or(0, |p| p.pos.index + 1),
        usage: Usage::default(),
    };
    read_entries(db, payloads, mark, &mut contents)?;
    let last = contents.last.map(|e| log_id_of(e.pos));
    contents.committed = edge(KEY_COMMITTED)?.map(|e| log_id_of(e.pos)).min(last);
    Ok(contents)
}

fn read_entries(db: &Db, payloads: &Payloads, mark: &Mark, contents: &mut Contents) -> Result<(), ReadError> {
    let from = contents.purged.map_or(0, |p| p.pos.index + 1);
    let mut frames = Frames::new(db, from..LogIndex::MAX);
    let mut payloads = Reading::new(payloads);
    let mut previous = contents.purged;
    let mut tail = std::collections::VecDeque::new();
    let mut kept_bytes = 0;
    while let Some(frame) = frames.current()? {
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
        let payload = frames.payload(&frame, &mut payloads)?;
        if let Some(place) = frames.place(&frame) {
            contents.usage.add(index, place, frame.length);
        }
        if mark.last.is_some_and(|m| m.pos == frame.pos) {
            contents.marked_link = Some(frame.link);
        }
        kept_bytes += u64::from(frame.length);
        let entry = codec::decode(&frame, payload)?;
        if let EntryPayload::Membership(m) = &entry.payload {
            contents.membership = Some(StoredMembership::new(Some(entry.log_id), m.clone()));
        }
        tail.push_back((frame, entry));
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
    if let Some(marked) = &mark.vote
        && !contents.vote.is_some_and(|v| may_follow(&v, marked))
    {
        let what = format!("the log's vote is {:?}, older than {marked:?}, which was saved", contents.vote);
        return Err(OpenError::damage(dir, what));
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
    match &error {
        ReadError::Rocks(e) => OpenError::rocks(dir, e),
        ReadError::Payload { file, what, kind, .. } if !error.is_damage() => {
            OpenError::io(file, std::io::Error::new(*kind, what.clone()))
        }
        ReadError::Payload { file, what, .. } => OpenError::damage(file, what),
        ReadError::Entry { source, .. } if source.kind() != rocksdb::ErrorKind::Corruption => {
            OpenError::rocks(dir, source)
        }
        other => OpenError::damage(dir, other),
    }
}

/// Whether a vote may have been saved after another: of a later term, or what became of it.
fn may_follow(vote: &Vote, earlier: &Vote) -> bool {
    let is_same_term = earlier.leader_id.term == vote.leader_id.term;
    let is_same = earlier.leader_id == vote.leader_id && (vote.committed || !earlier.committed);
    let is_won = vote.committed && !earlier.committed;
    earlier.leader_id.term < vote.leader_id.term || (is_same_term && (is_same || is_won))
}
