//! Reading entries from the database: those that left the tail.

use std::ops::Range;

use bytes::Bytes;
use rocksdb::{DBRawIteratorWithThreadMode, ReadOptions};

use crate::raft::Entry;
use crate::store::codec::{self, CodecError, Frame};
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
    #[error("the record {key} does not decode: {why}")]
    Record { key: &'static str, why: String },
    #[error("entry {index} is missing")]
    Missing { index: LogIndex },
    #[error("entry {index} does not continue the one before it: the chain is broken")]
    Chain { index: LogIndex },
}

/// The frames and payloads of a range, in order; nothing is checked.
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

    /// The frame and payload the iterator stands at.
    pub(crate) fn current(&mut self) -> Result<Option<(Frame, &[u8])>, ReadError> {
        let Some((key, _)) = self.iterator.item() else {
            let ended = self.iterator.status();
            return ended.map(|()| None).map_err(|source| ReadError::Entry { index: self.next, source });
        };
        let frame = Frame::from_key(key)?;
        self.next = frame.pos.index + 1;
        Ok(Some((frame, self.iterator.value().expect("the iterator is valid"))))
    }

    pub(crate) fn advance(&mut self) {
        self.iterator.next();
    }
}

/// The entries of a range as far as they are stored; at most about `max_bytes`, but one.
pub(crate) fn entries(db: &Db, range: Range<LogIndex>, max_bytes: u64) -> Result<Vec<Entry>, ReadError> {
    let mut frames = Frames::new(db, range);
    let mut entries = Vec::new();
    let mut previous: Option<Frame> = None;
    let mut bytes = 0;
    while let Some((frame, payload)) = frames.current()? {
        bytes += frame.stored_bytes();
        if max_bytes < bytes && previous.is_some() {
            break;
        }
        if let Some(previous) = previous {
            check_follows(&previous, &frame)?;
        }
        frame.check_payload(payload)?;
        entries.push(codec::decode(&frame, Bytes::copy_from_slice(payload))?);
        previous = Some(frame);
        frames.advance();
    }
    Ok(entries)
}

/// The frame of the entry with an index.
pub(crate) fn frame_at(db: &Db, index: LogIndex) -> Result<Option<Frame>, ReadError> {
    Ok(Frames::new(db, index..index + 1).current()?.map(|(frame, _)| frame))
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
