//! Reading entries from the database: those that left the tail.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;
use rocksdb::{DBRawIteratorWithThreadMode, ReadOptions};

use crate::raft::Entry;
use crate::store::codec::{self, CodecError, Frame};
use crate::store::log::payloads::{Payloads, Place, Reading};
use crate::store::rocks::{Db, Inner};
use crate::types::LogIndex;

/// What one read of the log takes into memory at most, but one entry (performance.md, lever 6).
pub(crate) const CHUNK_BYTES: u64 = 1 << 20;

/// Why the stored log cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("{0}")]
    Rocks(#[from] rocksdb::Error),
    /// RocksDB does not always say in which file.
    #[error("entry {index}: {source}")]
    Entry { index: LogIndex, source: rocksdb::Error },
    #[error("{0}")]
    Codec(#[from] CodecError),
    /// A large payload that cannot be read, or is not the entry's.
    #[error("{}: {what}", file.display())]
    Payload { index: LogIndex, file: PathBuf, what: String, kind: io::ErrorKind },
    #[error("the record {key} does not decode: {why}")]
    Record { key: &'static str, why: String },
    #[error("entry {index} is missing")]
    Missing { index: LogIndex },
    #[error("entry {index} does not continue the one before it: the chain is broken")]
    Chain { index: LogIndex },
}

impl ReadError {
    /// Whether what is stored is at fault: anything else may be over at the next start.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Payload { kind, .. } => matches!(
                kind,
                io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
            ),
            _ => true,
        }
    }
}

/// The frames and payloads of a range, in order; their chain is not checked.
pub(crate) struct Frames<'a> {
    iterator: DBRawIteratorWithThreadMode<'a, Inner>,
    /// What comes next, where nothing is missing.
    next: LogIndex,
}

impl<'a> Frames<'a> {
    pub(crate) fn new(db: &'a Db, range: Range<LogIndex>) -> Self {
        let next = range.start;
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        options.set_iterate_lower_bound(codec::first_key(range.start));
        match range.end {
            LogIndex::MAX => options.set_iterate_upper_bound(codec::ENTRIES_END),
            end => options.set_iterate_upper_bound(codec::first_key(end)),
        }
        let mut iterator = db.raw_iterator_opt(options);
        iterator.seek_to_first();
        Self { iterator, next }
    }

    /// The frame the iterator stands at.
    pub(crate) fn current(&mut self) -> Result<Option<Frame>, ReadError> {
        let Some(key) = self.iterator.key() else {
            let ended = self.iterator.status();
            return ended.map(|()| None).map_err(|source| ReadError::Entry { index: self.next, source });
        };
        let frame = Frame::from_key(key)?;
        self.next = frame.pos.index + 1;
        Ok(Some(frame))
    }

    /// Where its payload lies, if it does not lie in the database.
    pub(crate) fn place(&self, frame: &Frame) -> Option<Place> {
        let value = self.iterator.value().expect("the iterator is valid");
        if value.len() == frame.length as usize { None } else { Place::from_bytes(value) }
    }

    /// Its payload, whole.
    pub(crate) fn payload(&self, frame: &Frame, payloads: &mut Reading<'_>) -> Result<Bytes, ReadError> {
        let Some(place) = self.place(frame) else {
            let value = self.iterator.value().expect("the iterator is valid");
            frame.check_payload(value)?;
            return Ok(Bytes::copy_from_slice(value));
        };
        let index = frame.pos.index;
        let file = payloads.path_of(place);
        let refuse = |kind, what| ReadError::Payload { index, file: file.clone(), what, kind };
        let payload = payloads
            .read(place, frame.length)
            .map_err(|e| refuse(e.kind(), format!("the payload of entry {index}: {e}")))?;
        frame.check_payload(&payload).map_err(|e| refuse(io::ErrorKind::InvalidData, e.to_string()))?;
        Ok(payload)
    }

    pub(crate) fn advance(&mut self) {
        self.iterator.next();
    }
}

/// The entries of a range as far as they are stored; at most about `max_bytes`, but one.
pub(crate) fn entries(
    db: &Db,
    payloads: &Payloads,
    range: Range<LogIndex>,
    max_bytes: u64,
) -> Result<Vec<Entry>, ReadError> {
    let mut frames = Frames::new(db, range);
    let mut payloads = Reading::new(payloads);
    let mut entries = Vec::new();
    let mut previous: Option<Frame> = None;
    let mut bytes = 0;
    while let Some(frame) = frames.current()? {
        bytes += frame.stored_bytes();
        if max_bytes < bytes && previous.is_some() {
            break;
        }
        if let Some(previous) = previous {
            check_follows(&previous, &frame)?;
        }
        entries.push(codec::decode(&frame, frames.payload(&frame, &mut payloads)?)?);
        previous = Some(frame);
        frames.advance();
    }
    Ok(entries)
}

/// The frame of the entry with an index.
pub(crate) fn frame_at(db: &Db, index: LogIndex) -> Result<Option<Frame>, ReadError> {
    Frames::new(db, index..index + 1).current()
}

/// Whether an entry follows another without a hole and continues its chain.
pub(crate) fn check_follows(previous: &Frame, frame: &Frame) -> Result<(), ReadError> {
    let expected = previous.pos.index + 1;
    if frame.pos.index != expected {
        return Err(ReadError::Missing { index: expected });
    }
    if frame.link_after(previous.link) != frame.link {
        return Err(ReadError::Chain { index: frame.pos.index });
    }
    Ok(())
}
