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
const FIRST: [u8; 2] = [2, 6];
const MIDDLE: [u8; 2] = [3, 7];
const LAST: [u8; 2] = [4, 8];

/// Where a log stops checking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) file: PathBuf,
    pub(crate) offset: u64,
    /// Whole records lie behind it, in this file or in a later one: it is no torn end.
    pub(crate) has_more: bool,
}

/// The first damage of the write-ahead logs in a folder; `None`: every record checks.
pub(crate) fn first_damage(dir: &Path) -> io::Result<Option<Damage>> {
    let logs = wals(dir)?;
    for (i, (_, path)) in logs.iter().enumerate() {
        let content = fs::read(path)?;
        if let Some(Bad { begin, end }) = first_bad(&content) {
            let later = logs[i + 1..].iter().any(|(_, p)| fs::read(p).is_ok_and(|c| !is_zero(&c)));
            let has_more = later || has_record_after(&content, end);
            return Ok(Some(Damage { file: path.clone(), offset: begin as u64, has_more }));
        }
    }
    Ok(None)
}

/// The write-ahead logs of a database, oldest first.
pub(super) fn wals(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
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

/// The first record that is not whole. Zeros up to the end are room that was reserved.
fn first_bad(content: &[u8]) -> Option<Bad> {
    let mut at = 0;
    // Where the record began whose last piece was not met yet.
    let mut begun = None;
    while at < content.len() {
        let room = BLOCK_BYTES - at % BLOCK_BYTES;
        if room < HEADER_BYTES {
            // Filled with zeros up to the next block.
            at += room;
            continue;
        }
        match record_at(content, at) {
            Some((kind, length)) => {
                if FIRST.contains(&kind) {
                    begun = Some(at);
                } else if LAST.contains(&kind) {
                    begun = None;
                }
                at += HEADER_BYTES + length;
            }
            None if is_zero(&content[at..]) => break,
            None => return Some(Bad { begin: begun.unwrap_or(at), end: at }),
        }
    }
    begun.map(|begin| Bad { begin, end: at })
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
