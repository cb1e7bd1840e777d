//! A snapshot as a tar archive: the manifest, then the files it names, below a folder of its id.
//!
//! The archive is made while it is read and holds the snapshot alive meanwhile. Its length is known
//! beforehand, so a reader sees when it was cut off. [`read_tar`] takes one apart again.

use std::any::Any;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::raft::SnapshotData;
use crate::store::snapshot::{FILES, MANIFEST, Snapshots};

/// Everything in an archive is padded to it.
const BLOCK: u64 = 512;
/// Handed out at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Two blocks of zeros end an archive.
const END_BYTES: u64 = 2 * BLOCK;
/// Longest name in a header without extensions.
const NAME_BYTES: usize = 100;
/// Sizes from it on do not fit eleven octal digits.
const OCTAL_END: u64 = 1 << 33;

/// An archive that is being read. Every call blocks.
pub(crate) struct Export {
    /// Bytes of the whole archive.
    pub(crate) size_bytes: u64,
    /// Still to come; the first one last.
    parts: Vec<Part>,
    current: Option<Open>,
    is_ended: bool,
    _pin: Arc<dyn Any + Send + Sync>,
}

struct Part {
    name: String,
    path: PathBuf,
    size_bytes: u64,
    modified: u64,
}

struct Open {
    file: File,
    name: String,
    left: u64,
    padding: u64,
}

impl Snapshots {
    /// `None`: no such snapshot.
    pub(crate) fn export(&self, id: &str) -> io::Result<Option<Export>> {
        let Some(data) = self.stored().iter().find(|s| s.manifest.id == id).map(|s| self.data(s)) else {
            return Ok(None);
        };
        Export::new(&data).map(Some)
    }
}

impl Export {
    fn new(data: &SnapshotData) -> io::Result<Self> {
        let (id, modified) = (&data.manifest.id, data.manifest.created_at_ms / 1_000);
        let manifest = data.dir.with_file_name(MANIFEST);
        let size_bytes = std::fs::metadata(&manifest)?.len();
        let mut parts = vec![Part { name: format!("{id}/{MANIFEST}"), path: manifest, size_bytes, modified }];
        for file in &data.manifest.files {
            parts.push(Part {
                name: format!("{id}/{FILES}/{}", file.name),
                path: data.dir.join(&file.name),
                size_bytes: file.size_bytes,
                modified,
            });
        }
        if let Some(long) = parts.iter().find(|p| NAME_BYTES < p.name.len()) {
            return Err(io::Error::other(format!("{} is too long a name for an archive", long.name)));
        }
        let size_bytes = END_BYTES + parts.iter().map(|p| BLOCK + padded(p.size_bytes)).sum::<u64>();
        parts.reverse();
        Ok(Self { size_bytes, parts, current: None, is_ended: false, _pin: data._pin.clone() })
    }

    /// The next bytes; `None`: that was all.
    pub(crate) fn next(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(open) = &mut self.current {
            if 0 < open.left {
                return open.read().map(Some);
            }
            let padding = open.padding;
            self.current = None;
            if 0 < padding {
                return Ok(Some(Bytes::from(vec![0; padding as usize])));
            }
        }
        if let Some(part) = self.parts.pop() {
            let header = header(&part.name, part.size_bytes, part.modified);
            let padding = padded(part.size_bytes) - part.size_bytes;
            let file = File::open(&part.path)?;
            self.current = Some(Open { file, name: part.name, left: part.size_bytes, padding });
            return Ok(Some(Bytes::copy_from_slice(&header)));
        }
        if self.is_ended {
            return Ok(None);
        }
        self.is_ended = true;
        Ok(Some(Bytes::from_static(&[0; END_BYTES as usize])))
    }
}

impl Open {
    fn read(&mut self) -> io::Result<Bytes> {
        let mut buf = vec![0; self.left.min(CHUNK_BYTES as u64) as usize];
        self.file
            .read_exact(&mut buf)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", self.name)))?;
        self.left -= buf.len() as u64;
        Ok(Bytes::from(buf))
    }
}

fn padded(size: u64) -> u64 {
    size.div_ceil(BLOCK) * BLOCK
}

/// A ustar header of an ordinary file. `name` fits.
fn header(name: &str, size: u64, modified: u64) -> [u8; BLOCK as usize] {
    let mut h = [0u8; BLOCK as usize];
    h[..name.len()].copy_from_slice(name.as_bytes());
    octal(&mut h[100..108], 0o600);
    octal(&mut h[108..116], 0);
    octal(&mut h[116..124], 0);
    match size {
        OCTAL_END.. => {
            // GNU's way: a set bit, then the number in binary.
            h[124] = 0x80;
            h[128..136].copy_from_slice(&size.to_be_bytes());
        }
        _ => octal(&mut h[124..136], size),
    }
    octal(&mut h[136..148], modified);
    h[148..156].fill(b' ');
    h[156] = b'0';
    h[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u64 = h.iter().map(|b| u64::from(*b)).sum();
    octal(&mut h[148..155], sum);
    h
}

/// Digits with zeros before them, and a zero byte behind.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    field[..digits].copy_from_slice(&text.as_bytes()[..digits]);
}

/// One file of an archive, in the order in which they stand in it.
pub(crate) struct Entry<'a, R> {
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    /// Exactly the file's bytes.
    pub(crate) content: io::Take<&'a mut R>,
}

/// Reads an archive of ordinary files and hands each to `take`, which may leave bytes unread. Folders
/// are passed over, since other programs write them; anything else is an error, as is an archive that
/// is cut off.
pub(crate) fn read_tar<R: Read>(
    from: &mut R,
    mut take: impl FnMut(&mut Entry<'_, R>) -> io::Result<()>,
) -> io::Result<()> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let cut = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => bad("the archive is cut off"),
        _ => e,
    };
    loop {
        let mut h = [0u8; BLOCK as usize];
        from.read_exact(&mut h).map_err(cut)?;
        if h == [0; BLOCK as usize] {
            return Ok(());
        }
        let sum: u64 =
            h.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) }).sum();
        if number(&h[148..156]) != Some(sum) {
            return Err(bad("a header of the archive is damaged, or it is no tar archive"));
        }
        let text = |field: &[u8]| {
            let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
            String::from_utf8(field[..end].to_vec()).map_err(|_| bad("a name in the archive is not UTF-8"))
        };
        let prefix = if &h[257..262] == b"ustar" { text(&h[345..500])? } else { String::new() };
        let name = match prefix.is_empty() {
            true => text(&h[..NAME_BYTES])?,
            false => format!("{prefix}/{}", text(&h[..NAME_BYTES])?),
        };
        let size = number(&h[124..136]).ok_or_else(|| bad("a size in the archive is no number"))?;
        let is_folder = h[156] == b'5';
        if !is_folder && h[156] != b'0' && h[156] != 0 {
            return Err(bad(&format!("{name} is no ordinary file")));
        }
        let left = if is_folder {
            size
        } else {
            let mut entry = Entry { name, size_bytes: size, content: Read::take(&mut *from, size) };
            take(&mut entry)?;
            entry.content.limit()
        };
        let rest = left + padded(size) - size;
        let skipped = io::copy(&mut Read::take(&mut *from, rest), &mut io::sink())?;
        if skipped < rest {
            return Err(bad("the archive is cut off"));
        }
    }
}

/// Octal text, or GNU's binary form.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len() - 8);
        let is_small = high.iter().enumerate().all(|(i, b)| *b == 0 || (i == 0 && *b == 0x80));
        return is_small.then(|| u64::from_be_bytes(low.try_into().expect("eight bytes")));
    }
    let text = std::str::from_utf8(field).ok()?;
    u64::from_str_radix(text.trim_matches(|c| c == '\0' || c == ' '), 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_back() {
        for size in [0, 511, 512, OCTAL_END - 1, OCTAL_END, u64::MAX / 2] {
            let h = header("id/db/000001.sst", size, 1_700_000_000);
            assert_eq!(number(&h[124..136]), Some(size));
            let mut archive = io::Cursor::new(h.to_vec());
            let mut seen = Vec::new();
            let read = read_tar(&mut archive, |entry| {
                seen.push((entry.name.clone(), entry.size_bytes));
                Ok(())
            });
            assert_eq!(seen, [("id/db/000001.sst".to_owned(), size)]);
            assert!(read.is_err(), "the archive has no end");
        }
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        for bytes in [&b""[..], &[1; 512], &[7; 100]] {
            assert!(read_tar(&mut io::Cursor::new(bytes), |_| Ok(())).is_err());
        }
    }
}
