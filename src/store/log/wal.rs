//! Reading RocksDB's write-ahead log by ourselves, as far as to tell a torn end from damage.
//!
//! A write that was cut short by a kill or a power loss leaves a record that does not check, or that
//! lacks its last pieces, and nothing behind it; a flipped bit leaves valid records behind it, which
//! recovery to a point in time would drop without a word (design 4).

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Records never cross a block; each block begins with one.
const BLOCK_BYTES: usize = 32 << 10;
/// CRC of type and payload, length of the payload, type.
const HEADER_BYTES: usize = 4 + 2 + 1;
/// RocksDB stores a CRC rotated and moved by this, so that a CRC of CRCs is none.
const MASK_DELTA: u32 = 0xa282_ead8;
/// Types of the legacy format, of compression, timestamps and of the verified chain of WALs.
const TYPES: [u8; 13] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 130, 131];
/// A record that does not fit in what is left of its block is cut in pieces: first, middle, last.
const FULL: [u8; 2] = [1, 5];
const FIRST: [u8; 2] = [2, 6];
const MIDDLE: [u8; 2] = [3, 7];
const LAST: [u8; 2] = [4, 8];
/// Sequence number and count of a batch.
const BATCH_HEAD_BYTES: usize = 8 + 4;

/// Where a log stops checking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) file: PathBuf,
    pub(crate) offset: u64,
    /// Whole records lie behind it, in this file or in a later one: it is no torn end.
    pub(crate) has_more: bool,
}

/// The first damage of the write-ahead logs in a folder; `None`: every record checks.
///
/// A torn end that was dropped at an earlier start may still lie there, with the logs of since behind it: they
/// go on with the sequence number that the torn record would have had. Behind damage they go on with another.
pub(crate) fn first_damage(dir: &Path) -> io::Result<Option<Damage>> {
    let mut torn: Option<Damage> = None;
    let mut next_seq = None;
    for (_, path) in wals(dir)? {
        let content = fs::read(&path)?;
        let found = scan(&content);
        if let (Some(damage), Some(first_seq)) = (&mut torn, found.first_seq) {
            if next_seq != Some(first_seq) {
                damage.has_more = true;
                return Ok(torn);
            }
            torn = None;
        }
        next_seq = found.next_seq.or(next_seq);
        if let Some(Bad { begin, end }) = found.bad {
            let has_more = has_record_after(&content, end);
            let damage = torn.get_or_insert(Damage { file: path, offset: begin as u64, has_more });
            damage.has_more |= has_more;
            if damage.has_more {
                return Ok(torn);
            }
        }
    }
    Ok(torn)
}

/// The write-ahead logs of a database, oldest first.
pub(crate) fn wals(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut logs: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|e| e == "log")) {
            logs.push((number, path));
        }
    }
    logs.sort();
    Ok(logs)
}

fn is_zero(content: &[u8]) -> bool {
    content.iter().all(|b| *b == 0)
}

/// A record that is not whole: where it begins, and where its pieces stop checking.
struct Bad {
    begin: usize,
    end: usize,
}

/// What one log holds.
#[derive(Default)]
struct Scanned {
    /// Sequence number of its first change.
    first_seq: Option<u64>,
    /// The one behind its last whole record.
    next_seq: Option<u64>,
    /// The first record that is not whole.
    bad: Option<Bad>,
}

/// Zeros up to the end are room that was reserved.
fn scan(content: &[u8]) -> Scanned {
    let mut found = Scanned::default();
    let mut at = 0;
    // The record whose last piece was not met yet: where it began, and what its batch begins with.
    let mut begun: Option<(usize, Vec<u8>)> = None;
    while at < content.len() {
        let room = BLOCK_BYTES - at % BLOCK_BYTES;
        if room < HEADER_BYTES {
            // Filled with zeros up to the next block.
            at += room;
            continue;
        }
        let Some((kind, length)) = record_at(content, at) else {
            if is_zero(&content[at..]) {
                break;
            }
            found.bad = Some(Bad { begin: begun.map_or(at, |(begin, _)| begin), end: at });
            return found;
        };
        let payload = &content[at + HEADER_BYTES..at + HEADER_BYTES + length];
        let head =
            |head: &[u8]| [head, &payload[..payload.len().min(BATCH_HEAD_BYTES - head.len())]].concat();
        let is_begin = FULL.contains(&kind) || FIRST.contains(&kind);
        match begun.take() {
            // One that never ended, with another behind it.
            Some((begin, _)) if is_begin => {
                found.bad = Some(Bad { begin, end: begin });
                return found;
            }
            Some((begin, so_far)) if MIDDLE.contains(&kind) => begun = Some((begin, head(&so_far))),
            Some((_, so_far)) if LAST.contains(&kind) => found.count(&head(&so_far)),
            None if FIRST.contains(&kind) => begun = Some((at, head(&[]))),
            None if FULL.contains(&kind) => found.count(&head(&[])),
            // Of no batch.
            other => begun = other,
        }
        at += HEADER_BYTES + length;
    }
    found.bad = begun.map(|(begin, _)| Bad { begin, end: at });
    found
}

impl Scanned {
    /// A batch begins with the sequence number of its first change, and with how many there are. A recovery
    /// writes one without any.
    fn count(&mut self, head: &[u8]) {
        let Some((seq, count)) = head.split_first_chunk::<8>() else { return };
        let Some(count) = count.first_chunk::<4>() else { return };
        let (seq, count) = (u64::from_le_bytes(*seq), u64::from(u32::from_le_bytes(*count)));
        if count != 0 {
            self.first_seq.get_or_insert(seq);
            self.next_seq = Some(seq + count);
        }
    }
}

/// Whether a record begins behind an offset: anywhere in its block, since its length is not known, or in a
/// later one. Pieces without a beginning are of the record that does not check: a power loss keeps pages in
/// any order, and no record is written before the one in front of it is synced.
fn has_record_after(content: &[u8], offset: usize) -> bool {
    let block_end = (offset / BLOCK_BYTES + 1) * BLOCK_BYTES;
    let begins = |kind: u8| !MIDDLE.contains(&kind) && !LAST.contains(&kind);
    let mut in_block = offset + 1..block_end.min(content.len());
    if in_block.any(|at| record_at(content, at).is_some_and(|(kind, _)| begins(kind))) {
        return true;
    }
    (block_end..content.len()).step_by(BLOCK_BYTES).any(|block| {
        let mut at = block;
        while let Some((kind, length)) = record_at(content, at) {
            if begins(kind) {
                return true;
            }
            at += HEADER_BYTES + length;
        }
        false
    })
}

/// Type, and length of the payload, of a record or a piece of one that begins here and checks.
fn record_at(content: &[u8], at: usize) -> Option<(u8, usize)> {
    let header = content.get(at..at + HEADER_BYTES)?;
    let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
    let kind = header[6];
    if !TYPES.contains(&kind) || BLOCK_BYTES - at % BLOCK_BYTES < HEADER_BYTES + length {
        return None;
    }
    let checked = content.get(at + HEADER_BYTES - 1..at + HEADER_BYTES + length)?;
    let stored = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
    let crc = crc32c(checked);
    (crc.rotate_right(15).wrapping_add(MASK_DELTA) == stored).then_some((kind, length))
}

/// The Castagnoli CRC, which RocksDB uses; bit by bit through a table, since only damage needs it.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let (mut value, mut bit) = (i as u32, 0);
            while bit < 8 {
                value = if value & 1 == 1 { (value >> 1) ^ 0x82f6_3b78 } else { value >> 1 };
                bit += 1;
            }
            table[i] = value;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, b| (crc >> 8) ^ TABLE[((crc ^ u32::from(*b)) & 0xff) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
