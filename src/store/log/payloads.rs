//! Large payloads of the log, each written once.
//!
//! RocksDB writes a value twice, to its write-ahead log and then to a table or a blob file. Where much is written at
//! once, payloads go to a file of our own instead, which is synced before the records that name their places are
//! written: a record that is there has its payload. Its frame says, by length and CRC, whether that is whole.
//!
//! A file is filled from its beginning to its end and, once all its entries are purged, from its beginning again: its
//! blocks are the disk's already, so a sync writes the payloads and nothing else.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use crate::store::disk::free_bytes;
use crate::store::files::{self, Aligned, DIRECT_BYTES};
use crate::store::log::open::log_dir;
use crate::types::LogIndex;

/// Smaller payloads lie beside their frames: at 1 KiB a place pays, at 256 B it does not, measured.
pub(crate) const PAYLOAD_BYTES_MIN: usize = 512;
/// So much is written at once at least: below it, a sync of its own costs more than a second copy.
pub(crate) const WRITE_BYTES_MIN: usize = 64 << 10;
/// A file that is so full is left for the next.
const FILE_BYTES: u64 = 64 << 20;
/// So much a file grows at once: a sync of what made it longer writes more than the payloads.
const GROWTH_BYTES: u64 = 8 << 20;
/// Files without an entry that are kept to be filled again; by eye, what a log of large entries takes between two purges.
const SPARES: usize = 4;
/// What one call of the system writes.
const CHUNK_BYTES: usize = 1 << 20;
/// What is read at once where payloads are small: about what one read of the log asks for.
const WINDOW_BYTES: usize = 1 << 20;
const EXTENSION: &str = "payloads";

/// Where the files lie in a data folder: with the log, whatever disk that is given. RocksDB looks at no folder in its own.
pub(crate) fn payload_dir(data_dir: &Path) -> PathBuf {
    log_dir(data_dir).join("payloads")
}

/// Where a payload lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    file: u64,
    offset: u64,
}

impl Place {
    pub(crate) const BYTES: usize = 8 + 8;

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.file.to_be_bytes());
        bytes[8..].copy_from_slice(&self.offset.to_be_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (file, offset) = bytes.split_first_chunk::<8>()?;
        let offset = <&[u8; 8]>::try_from(offset).ok()?;
        Some(Self { file: u64::from_be_bytes(*file), offset: u64::from_be_bytes(*offset) })
    }
}

/// What the log uses of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Used {
    /// Index of the last entry that lies in it.
    last_index: LogIndex,
    /// Where the next write begins.
    end: u64,
}

/// What the log uses of all files.
#[derive(Debug, Default)]
pub(crate) struct Usage(BTreeMap<u64, Used>);

impl Usage {
    pub(crate) fn add(&mut self, index: LogIndex, place: Place, length: u32) {
        let used = self.0.entry(place.file).or_default();
        used.last_index = used.last_index.max(index);
        used.end = used.end.max(padded(place.offset + u64::from(length)));
    }
}

/// Where a direct write may end, or the next begin.
fn padded(length: u64) -> u64 {
    length.next_multiple_of(DIRECT_BYTES as u64)
}

/// The files, to read from.
#[derive(Debug, Clone)]
pub(crate) struct Payloads {
    dir: Arc<Path>,
    is_direct: bool,
    /// Files that hold no entry. Guards a short list between the thread that writes and the one that looks at the disk.
    spares: Arc<Mutex<Vec<u64>>>,
}

impl Payloads {
    /// Changes nothing.
    pub(crate) fn of(data_dir: &Path) -> Self {
        let dir = payload_dir(data_dir);
        let is_direct = files::takes_direct_writes(if dir.is_dir() { &dir } else { files::parent(&dir) });
        Self { dir: dir.into(), is_direct, spares: Arc::default() }
    }

    fn path(&self, file: u64) -> PathBuf {
        self.dir.join(format!("{file:06}.{EXTENSION}"))
    }

    /// Never through the page cache where writes go past it: the two need not agree.
    fn open(&self, file: u64, options: &mut OpenOptions) -> io::Result<File> {
        let path = self.path(file);
        let opened = self
            .is_direct
            .then(|| options.mode(0o600).custom_flags(OFlags::DIRECT.bits() as i32).open(&path));
        match opened {
            Some(Ok(file)) => Ok(file),
            Some(Err(e)) if e.kind() != io::ErrorKind::InvalidInput => Err(e),
            // It need not lie where new files do: an overlay has several folders.
            _ => options.mode(0o600).custom_flags(0).open(&path),
        }
    }

    fn spares(&self) -> MutexGuard<'_, Vec<u64>> {
        self.spares.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Gives back what no entry lies in: for a disk that is nearly full. Blocking.
    pub(crate) fn remove_spares(&self) {
        self.spares().drain(..).for_each(|number| self.remove(number));
    }

    /// One that stays is found at the next start.
    fn remove(&self, number: u64) {
        let _ = fs::remove_file(self.path(number));
    }

    /// Those that are there, ascending.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let number = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok());
            numbers.extend(number.filter(|number| path == self.path(*number)));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// Reads payloads, most of which follow each other.
pub(crate) struct Reading<'a> {
    payloads: &'a Payloads,
    /// What was read last.
    window: Option<Window>,
}

struct Window {
    number: u64,
    file: File,
    begin: u64,
    bytes: Bytes,
}

impl Window {
    /// The bytes of a place, as far as they are in it.
    fn get(&self, place: Place, length: u32) -> Option<&[u8]> {
        let begin = usize::try_from(place.offset.checked_sub(self.begin)?).ok()?;
        let bytes = self.bytes.get(begin..begin + length as usize)?;
        (self.number == place.file).then_some(bytes)
    }
}

impl<'a> Reading<'a> {
    pub(crate) fn new(payloads: &'a Payloads) -> Self {
        Self { payloads, window: None }
    }

    /// The file a place lies in.
    pub(crate) fn path_of(&self, place: Place) -> PathBuf {
        self.payloads.path(place.file)
    }

    /// The bytes at a place; whether they are the payload's its frame tells.
    pub(crate) fn read(&mut self, place: Place, length: u32) -> io::Result<Bytes> {
        if let Some(bytes) = self.window.as_ref().and_then(|w| w.get(place, length)) {
            // A copy: whoever holds one small payload shall not hold all that lie around it.
            return Ok(Bytes::copy_from_slice(bytes));
        }
        let file = match self.window.take() {
            Some(window) if window.number == place.file => window.file,
            _ => self.payloads.open(place.file, OpenOptions::new().read(true))?,
        };
        let begin = place.offset - place.offset % DIRECT_BYTES as u64;
        let skip = (place.offset - begin) as usize;
        let end = skip + length as usize;
        let is_alone = WINDOW_BYTES / 4 <= length as usize;
        let wanted = if is_alone { end } else { WINDOW_BYTES };
        let mut buffer = Aligned::new(wanted.next_multiple_of(DIRECT_BYTES));
        let read = read_at_least(&file, buffer.as_mut(), begin, end)?;
        let bytes = buffer.into_bytes(0..read);
        if is_alone {
            return Ok(bytes.slice(skip..end));
        }
        let payload = Bytes::copy_from_slice(&bytes[skip..end]);
        self.window = Some(Window { number: place.file, file, begin, bytes });
        Ok(payload)
    }
}

/// Reads until so much is there; what comes with it is welcome.
fn read_at_least(file: &File, buffer: &mut [u8], offset: u64, least: usize) -> io::Result<usize> {
    let mut read = 0;
    while read < least {
        match file.read_at(&mut buffer[read..], offset + read as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => read += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(read)
}

/// Why payloads are not on the disk.
#[derive(Debug)]
pub(crate) enum Failed {
    Write(io::Error),
    Sync(io::Error),
}

/// Fills the files. One for a log, in the hands of the thread that writes it.
pub(crate) struct Filler {
    payloads: Payloads,
    /// So much stays free beside what is reserved.
    keep_free: u64,
    current: Option<Current>,
    /// Those before it, which hold entries.
    full: BTreeMap<u64, LogIndex>,
    next_number: u64,
    buffer: Option<Aligned>,
}

struct Current {
    number: u64,
    file: File,
    /// So far it need not grow.
    length: u64,
    used: Used,
}

impl Current {
    /// Makes it longer ahead of what is written. What fails costs speed alone: a disk that is nearly full, or a file
    /// system that cannot.
    fn grow(&mut self, end: u64, keep_free: u64, dir: &Path) {
        if end <= self.length {
            return;
        }
        let wanted = end.next_multiple_of(GROWTH_BYTES);
        let needed = keep_free.saturating_add(wanted - self.length);
        let has_space = free_bytes(dir).is_ok_and(|free| needed <= free);
        let is_made = has_space && fallocate(&self.file, FallocateFlags::empty(), 0, wanted).is_ok();
        self.length = if is_made { wanted } else { end };
    }
}

impl Filler {
    /// Goes on where the log ends. What no entry of it lies in is filled again, or removed.
    pub(crate) fn new(payloads: Payloads, usage: &Usage, min_free: u64) -> io::Result<Self> {
        let numbers = payloads.numbers()?;
        let mut filler = Self {
            keep_free: min_free.saturating_add(GROWTH_BYTES),
            current: None,
            full: usage.0.iter().map(|(number, used)| (*number, used.last_index)).collect(),
            next_number: numbers.last().map_or(1, |n| n + 1),
            buffer: None,
            payloads,
        };
        numbers.into_iter().filter(|n| !usage.0.contains_key(n)).for_each(|n| filler.put_by(n));
        if let Some((number, used)) = usage.0.iter().max_by_key(|(_, used)| used.last_index) {
            filler.full.remove(number);
            filler.current = Some(filler.open(*number, *used)?);
        }
        Ok(filler)
    }

    fn open(&self, number: u64, used: Used) -> io::Result<Current> {
        let file = self.payloads.open(number, OpenOptions::new().write(true))?;
        let length = file.metadata()?.len();
        Ok(Current { number, file, length, used })
    }

    /// Writes payloads, given with the indexes of their entries, one behind the other. Durable on return; what failed may
    /// be tried again.
    pub(crate) fn write(&mut self, payloads: &[(LogIndex, &[u8])]) -> Result<Vec<Place>, Failed> {
        let Some((last_index, _)) = payloads.last() else { return Ok(Vec::new()) };
        if self.current.as_ref().is_none_or(|c| FILE_BYTES <= c.used.end) {
            self.begin()?;
        }
        let current = self.current.as_mut().expect("one was begun");
        let bytes: u64 = payloads.iter().map(|(_, payload)| payload.len() as u64).sum();
        current.grow(padded(current.used.end + bytes), self.keep_free, &self.payloads.dir);
        let buffer = self.buffer.get_or_insert_with(|| Aligned::new(CHUNK_BYTES)).as_mut();
        let mut places = Vec::with_capacity(payloads.len());
        let (mut at, mut filled) = (current.used.end, 0);
        for (_, payload) in payloads {
            places.push(Place { file: current.number, offset: at + filled as u64 });
            let mut rest = *payload;
            while !rest.is_empty() {
                let (part, behind) = rest.split_at(rest.len().min(CHUNK_BYTES - filled));
                buffer[filled..filled + part.len()].copy_from_slice(part);
                (rest, filled) = (behind, filled + part.len());
                if filled == CHUNK_BYTES {
                    current.file.write_all_at(buffer, at).map_err(Failed::Write)?;
                    (at, filled) = (at + CHUNK_BYTES as u64, 0);
                }
            }
        }
        let end = filled.next_multiple_of(DIRECT_BYTES);
        buffer[filled..end].fill(0);
        current.file.write_all_at(&buffer[..end], at).map_err(Failed::Write)?;
        current.file.sync_data().map_err(Failed::Sync)?;
        current.used = Used { last_index: *last_index, end: at + end as u64 };
        Ok(places)
    }

    /// Goes on in another file.
    fn begin(&mut self) -> Result<(), Failed> {
        let spare = self.payloads.spares().pop();
        let next = match spare {
            Some(number) => self.open(number, Used::default()).map_err(Failed::Write)?,
            None => self.make()?,
        };
        if let Some(before) = self.current.replace(next) {
            self.full.insert(before.number, before.used.last_index);
        }
        Ok(())
    }

    fn make(&mut self) -> Result<Current, Failed> {
        let dir = &self.payloads.dir;
        if !dir.is_dir() {
            files::create_dir(dir).map_err(Failed::Write)?;
            files::sync_dir(files::parent(dir)).map_err(Failed::Sync)?;
        }
        let number = self.next_number;
        let mut options = OpenOptions::new();
        let file = self.payloads.open(number, options.write(true).create(true)).map_err(Failed::Write)?;
        files::sync_dir(dir).map_err(Failed::Sync)?;
        self.next_number += 1;
        Ok(Current { number, file, length: 0, used: Used::default() })
    }

    /// The entries up to an index are purged, durably: what holds no others is filled again.
    pub(crate) fn purged(&mut self, upto: LogIndex) {
        let free: Vec<u64> = self.full.iter().filter(|(_, last)| **last <= upto).map(|(n, _)| *n).collect();
        for number in free {
            self.full.remove(&number);
            self.put_by(number);
        }
        if let Some(current) = &mut self.current
            && current.used.last_index <= upto
        {
            current.used = Used::default();
        }
    }

    /// A file without an entry is filled again, or removed.
    fn put_by(&self, number: u64) {
        let mut spares = self.payloads.spares();
        if spares.len() < SPARES {
            spares.push(number);
        } else {
            self.payloads.remove(number);
        }
    }
}
