//! The queue between who logs and what is written to.
//!
//! A full queue, and an output that is closed or blocked, cost lines and nothing else: they are counted.

use std::{
    fs::File,
    io::{self, ErrorKind, Write},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use prometheus::{IntCounter, Registry};
use tracing_subscriber::fmt::MakeWriter;

/// Lines waiting: some seconds of a busy node at DEBUG, by eye.
pub(super) const LINES_MAX: usize = 8192;
/// Bytes waiting: 1 KiB a line.
const BYTES_MAX: usize = 8 << 20;
/// What is written at once.
pub(super) const WRITE_BYTES: usize = 64 << 10;
/// A flush that finds the queue full asks again after this.
const FULL_RETRY: Duration = Duration::from_millis(1);
/// An output that takes nothing is asked again after this.
const BLOCKED_RETRY: Duration = Duration::from_millis(10);

enum Item {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Where lines go in. Cheap to clone; never waits.
#[derive(Clone)]
pub(crate) struct Sender {
    queue: SyncSender<Item>,
    waiting: Arc<AtomicUsize>,
    dropped: IntCounter,
}

/// The other end: for flushing before the process ends.
pub(crate) struct Lines {
    queue: SyncSender<Item>,
}

impl Lines {
    /// Waits until everything logged so far is written, at most `limit`. Blocks its thread.
    pub(crate) fn flush(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let (done_tx, done_rx) = sync_channel(1);
        let mut item = Item::Flush(done_tx);
        while let Err(TrySendError::Full(back)) = self.queue.try_send(item) {
            if end <= Instant::now() {
                return;
            }
            item = back;
            thread::park_timeout(FULL_RETRY);
        }
        let _ = done_rx.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}

/// A handle of stdout that shares no lock with anybody else who prints.
pub(crate) fn stdout() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

/// Starts the thread that writes. It ends with the last [`Sender`] and [`Lines`].
pub(crate) fn start<W: Write + Send + 'static>(
    output: W,
    registry: &Registry,
) -> Result<(Sender, Lines), crate::telemetry::log::StartError> {
    let dropped = IntCounter::new(
        "blockraft_log_lines_dropped_total",
        "Log lines that were not written: the queue was full, or the output closed or blocked.",
    )?;
    registry.register(Box::new(dropped.clone()))?;
    let (queue, items) = sync_channel(LINES_MAX);
    let waiting = Arc::new(AtomicUsize::new(0));
    let mut writer = Writer { items, output, waiting: waiting.clone(), dropped: dropped.clone() };
    thread::Builder::new().name("log".into()).spawn(move || writer.run())?;
    Ok((Sender { queue: queue.clone(), waiting, dropped }, Lines { queue }))
}

impl Sender {
    fn send(&self, line: &[u8]) {
        let before = self.waiting.fetch_add(line.len(), Ordering::Relaxed);
        let is_sent = before <= BYTES_MAX
            && match self.queue.try_send(Item::Line(line.to_vec())) {
                Ok(()) => true,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
            };
        if !is_sent {
            self.waiting.fetch_sub(line.len(), Ordering::Relaxed);
            self.dropped.inc();
        }
    }
}

impl Write for Sender {
    /// One call is one line: the formatting layer writes each event at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.send(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Sender {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

struct Writer<W> {
    items: Receiver<Item>,
    output: W,
    waiting: Arc<AtomicUsize>,
    dropped: IntCounter,
}

impl<W: Write> Writer<W> {
    fn run(&mut self) {
        let mut text = Vec::with_capacity(WRITE_BYTES);
        while let Ok(item) = self.items.recv() {
            let mut flushes = Vec::new();
            let mut n_lines = 0;
            let mut next = Some(item);
            while let Some(item) = next {
                match item {
                    Item::Line(line) => {
                        text.extend_from_slice(&line);
                        n_lines += 1;
                    }
                    Item::Flush(done) => flushes.push(done),
                }
                next = if text.len() < WRITE_BYTES { self.items.try_recv().ok() } else { None };
            }
            self.waiting.fetch_sub(text.len(), Ordering::Relaxed);
            if self.write(&text).is_err() {
                self.dropped.inc_by(n_lines);
            }
            text.clear();
            for done in flushes {
                // Who waited may have gone.
                let _ = done.send(());
            }
        }
    }

    fn write(&mut self, mut text: &[u8]) -> io::Result<()> {
        while !text.is_empty() {
            match self.output.write(text) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => text = &text[n..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Somebody made the output non-blocking: this thread has nothing else to do.
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::park_timeout(BLOCKED_RETRY),
                Err(error) => return Err(error),
            }
        }
        self.output.flush()
    }
}
