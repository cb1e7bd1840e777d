//! How far the log is known to reach, kept beside it.
//!
//! Tells a log that was shortened or deleted from one that was never written. Never claims more
//! than the log holds: written after the sync it records, and lowered durably before a truncation
//! (safety rule 4). One preallocated file, two slots overwritten in turn: no rename, no directory
//! sync. A thread of its own writes it, off the log's writer thread.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::raft::Vote;
use crate::raft::convert::{vote_from_proto, vote_to_proto};
use crate::store::codec::{Edge, edge_from_bytes, edge_to_bytes};
use crate::store::files;
use crate::store::health::{Fatal, Health};
use crate::types::proto;

/// One page: a slot is overwritten by a single write.
const SLOT_BYTES: u64 = 4096;
const MAGIC: [u8; 8] = *b"brwmark1";
/// Magic, sequence, edge, vote, CRC.
const RECORD_BYTES: usize = 8 + 8 + 1 + 24 + 1 + 17 + 4;
/// What a zeroed record of the log can hide is what was synced within it. By eye: a twentieth of
/// the syncs that a busy log makes.
const LAG_MAX: Duration = Duration::from_millis(20);

/// What the log holds at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mark {
    pub(crate) last: Option<Edge>,
    pub(crate) vote: Option<Vote>,
}

/// What became of the file.
pub(crate) enum Found {
    Missing,
    /// Neither slot is whole: one write can tear one slot only.
    Damaged,
    Mark(Slots, Mark),
}

/// What the file says, for those who do not write it.
pub(crate) enum Peeked {
    Missing,
    Damaged,
    Mark(Mark),
}

/// The handle the log's writer thread uses.
#[derive(Clone)]
pub(crate) struct Watermark {
    shared: Arc<Shared>,
}

struct Shared {
    /// Guards what is to be written; a task would be a second queue between two threads.
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    target: Mark,
    durable: Mark,
    /// What the thread is writing at this moment.
    in_flight: Option<Mark>,
    /// Write without waiting for [`LAG_MAX`].
    is_urgent: bool,
    votes_waiting: Vec<oneshot::Sender<()>>,
    is_failed: bool,
    is_closed: bool,
}

/// The file, and the slot that is to be overwritten next.
pub(crate) struct Slots {
    file: File,
    sequence: u64,
}

impl Slots {
    /// Makes the file anew, durably.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all_at(&[0; 2 * SLOT_BYTES as usize], 0)?;
        let mut slots = Self { file, sequence: 0 };
        slots.write(&Mark::default())?;
        slots.file.sync_all()?;
        files::sync_dir(files::parent(path))?;
        Ok(slots)
    }

    pub(crate) fn open(path: &Path) -> io::Result<Found> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
            Err(e) => return Err(e),
        };
        Ok(match newest(&file) {
            None => Found::Damaged,
            Some((sequence, mark)) => Found::Mark(Self { file, sequence }, mark),
        })
    }

    /// Reads the file and changes nothing.
    pub(crate) fn peek(path: &Path) -> io::Result<Peeked> {
        match File::open(path) {
            Ok(file) => Ok(newest(&file).map_or(Peeked::Damaged, |(_, mark)| Peeked::Mark(mark))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Peeked::Missing),
            Err(e) => Err(e),
        }
    }

    /// Durable on return.
    pub(crate) fn write(&mut self, mark: &Mark) -> io::Result<()> {
        self.sequence += 1;
        let slot = self.sequence % 2;
        self.file.write_all_at(&encode(self.sequence, mark), slot * SLOT_BYTES)?;
        self.file.sync_data()
    }
}

impl Watermark {
    /// Starts the thread. `mark` is what the file says.
    pub(crate) fn start(slots: Slots, mark: Mark, health: Health) -> io::Result<(Self, JoinHandle<()>)> {
        let state = State {
            target: mark,
            durable: mark,
            in_flight: None,
            is_urgent: false,
            votes_waiting: Vec::new(),
            is_failed: false,
            is_closed: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let thread = std::thread::Builder::new().name("store-mark".into()).spawn({
            let shared = shared.clone();
            move || shared.run(slots, &health)
        })?;
        Ok((Self { shared }, thread))
    }

    /// The log is synced up to here; written when it suits.
    pub(crate) fn advance(&self, last: Option<Edge>) {
        let mut state = self.shared.lock();
        // Otherwise the thread is about to look again by itself: a wake-up a sync would be one too many.
        let is_asleep = state.target == state.durable && state.in_flight.is_none();
        if state.target.last != last {
            state.target.last = last;
            if is_asleep {
                self.shared.changed.notify_all();
            }
        }
    }

    /// The vote is synced; `done` is told once the watermark is.
    pub(crate) fn vote(&self, vote: Vote, done: oneshot::Sender<()>) {
        let mut state = self.shared.lock();
        if state.is_failed {
            // Dropping `done` tells that it was not written.
            return;
        }
        state.target.vote = Some(vote);
        state.votes_waiting.push(done);
        state.is_urgent = true;
        self.shared.changed.notify_all();
    }

    /// The log is about to be cut behind `last`: on return the file claims no more. `false`: it
    /// could not be written.
    pub(crate) fn lower(&self, last: Option<Edge>) -> bool {
        let index = |e: Option<Edge>| e.map(|e| e.pos.index);
        let mut state = self.shared.lock();
        if index(last) < index(state.target.last) {
            state.target.last = last;
        }
        let claims_more = |m: Mark| index(last) < index(m.last);
        while (claims_more(state.durable) || state.in_flight.is_some_and(claims_more)) && !state.is_failed {
            state.is_urgent = true;
            self.shared.changed.notify_all();
            state = self.shared.changed.wait(state).unwrap_or_else(|p| p.into_inner());
        }
        !state.is_failed
    }

    /// Writes what is left and ends the thread.
    pub(crate) fn close(&self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain data: what a panicking holder leaves behind is as good as any.
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn run(&self, mut slots: Slots, health: &Health) {
        let mut written = Instant::now();
        loop {
            let mut state = self.lock();
            let mark = loop {
                let is_due = state.target != state.durable || !state.votes_waiting.is_empty();
                let wait = (written + LAG_MAX).saturating_duration_since(Instant::now());
                if is_due && (state.is_urgent || state.is_closed || wait.is_zero()) {
                    break state.target;
                }
                if state.is_closed {
                    return;
                }
                let wait = if is_due { wait } else { Duration::from_secs(3600) };
                state = self.changed.wait_timeout(state, wait).unwrap_or_else(|p| p.into_inner()).0;
            };
            let votes = std::mem::take(&mut state.votes_waiting);
            state.is_urgent = false;
            state.in_flight = Some(mark);
            drop(state);

            let result = slots.write(&mark);
            written = Instant::now();
            let mut state = self.lock();
            state.in_flight = None;
            match result {
                Ok(()) => {
                    state.durable = mark;
                    for done in votes {
                        let _ = done.send(());
                    }
                }
                Err(e) => {
                    state.is_failed = true;
                    state.votes_waiting.clear();
                    health.set_fatal(Fatal::SyncFailed { what: format!("watermark: {e}") });
                }
            }
            self.changed.notify_all();
            if state.is_failed {
                return;
            }
        }
    }
}

/// The newest whole slot.
fn newest(file: &File) -> Option<(u64, Mark)> {
    let mut newest: Option<(u64, Mark)> = None;
    for slot in 0..2 {
        let mut record = [0; RECORD_BYTES];
        if file.read_exact_at(&mut record, slot * SLOT_BYTES).is_err() {
            continue;
        }
        if let Some((sequence, mark)) = decode(&record)
            && newest.is_none_or(|(newest, _)| newest < sequence)
        {
            newest = Some((sequence, mark));
        }
    }
    newest
}

fn encode(sequence: u64, mark: &Mark) -> [u8; RECORD_BYTES] {
    let mut buf = [0u8; RECORD_BYTES];
    buf[..8].copy_from_slice(&MAGIC);
    buf[8..16].copy_from_slice(&sequence.to_be_bytes());
    if let Some(last) = mark.last {
        buf[16] = 1;
        buf[17..41].copy_from_slice(&edge_to_bytes(last));
    }
    if let Some(vote) = &mark.vote {
        let vote = vote_to_proto(vote);
        buf[41] = 1;
        buf[42..50].copy_from_slice(&vote.term.to_be_bytes());
        buf[50..58].copy_from_slice(&vote.node_id.to_be_bytes());
        buf[58] = u8::from(vote.committed);
    }
    let crc = crc32fast::hash(&buf[..RECORD_BYTES - 4]);
    buf[RECORD_BYTES - 4..].copy_from_slice(&crc.to_be_bytes());
    buf
}

fn decode(buf: &[u8; RECORD_BYTES]) -> Option<(u64, Mark)> {
    let u64_at = |at: usize| u64::from_be_bytes(buf[at..at + 8].try_into().expect("eight bytes"));
    let crc = u32::from_be_bytes(buf[RECORD_BYTES - 4..].try_into().expect("four bytes"));
    if buf[..8] != MAGIC || crc32fast::hash(&buf[..RECORD_BYTES - 4]) != crc {
        return None;
    }
    let last = match buf[16] {
        0 => None,
        _ => Some(edge_from_bytes(&buf[17..41])?),
    };
    let vote = (buf[41] != 0).then(|| {
        vote_from_proto(&proto::Vote { term: u64_at(42), node_id: u64_at(50), committed: buf[58] != 0 })
    });
    Some((u64_at(8), Mark { last, vote }))
}
