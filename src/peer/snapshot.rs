//! Sending a snapshot: checked pieces on a connection of its own, resumed where it broke.
//!
//! Bounded memory: two pieces are in hand at once, the rest lies on the disk and in the socket.
//! Dropping the future breaks the transfer off.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use crate::peer::{
    SendOutcome,
    dial::{self, DialError},
    hello::{Connection, wire_reason},
    link::error_reason,
    metrics::{Reason, Rpc},
    network::{Shared, decode},
    said::Topic,
    wire::{Frame, WireError},
};
use crate::raft::{
    SnapshotData, Vote,
    convert::{vote_from_proto, vote_to_proto},
};
use crate::types::{
    NodeId,
    proto::{self, ErrorCode, FrameKind, Purpose},
};

/// A piece: large enough that its overhead is nothing, small enough that a broken link costs little.
pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// Attempts without a byte of progress. By eye; openraft tries again after its own pause.
const ATTEMPTS_MAX: u32 = 5;

/// Between two attempts; doubles.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// Before a snapshot that was refused is offered again. By eye: a disk that is full is not asked, nor told of,
/// five times a second.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Why a snapshot was not installed there.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("{0}")]
    Dial(#[from] DialError),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("nothing was heard for {0:?}")]
    TimedOut(Duration),
    #[error("refused: {}", .0.reason)]
    Refused(proto::Error),
    #[error("file {name}: {error}")]
    File { name: String, error: io::Error },
}

impl SendError {
    fn label(&self) -> Reason {
        match self {
            Self::Dial(e) => e.label(),
            Self::Wire(e) => wire_reason(e),
            Self::TimedOut(_) => Reason::Timeout,
            Self::Refused(error) => error_reason(error),
            Self::File { .. } => Reason::Storage,
        }
    }

    fn is_corrupt(&self) -> bool {
        matches!(self, Self::Refused(error) if error.code() == ErrorCode::Corrupt)
    }

    /// There was no connection: the keeper of connections says so, once and not each second.
    fn is_away(&self) -> bool {
        matches!(self, Self::Dial(_))
    }

    /// Trying again within the same call may help.
    fn is_transient(&self) -> bool {
        match self {
            Self::Dial(_) | Self::Wire(_) | Self::TimedOut(_) => true,
            Self::Refused(error) => error.code() == ErrorCode::Busy,
            Self::File { .. } => false,
        }
    }
}

/// Sends the snapshot and waits until it is installed there: the receiver's vote.
pub(super) async fn send(
    shared: &Shared,
    target: NodeId,
    vote: Vote,
    snapshot: &SnapshotData,
) -> Result<Vote, SendError> {
    let started = Instant::now();
    let metrics = shared.metrics_of(target);
    let _running = Running::new(shared);
    let mut pieces = Pieces::new(snapshot);
    let mut n_failed = 0;
    loop {
        let sent_before = pieces.acknowledged;
        let error = match attempt(shared, target, vote, &mut pieces).await {
            Ok(vote) => {
                metrics.answered(Rpc::Snapshot, started.elapsed());
                shared.snapshots.sent(SendOutcome::Ok, started.elapsed());
                shared.said.clear(Topic::SnapshotSent, target);
                return Ok(vote);
            }
            Err(e) => e,
        };
        metrics.failed(Rpc::Snapshot, error.label());
        n_failed = if sent_before < pieces.acknowledged { 1 } else { n_failed + 1 };
        if !error.is_transient() || ATTEMPTS_MAX <= n_failed {
            let outcome = if error.is_corrupt() { SendOutcome::Corrupt } else { SendOutcome::Failed };
            shared.snapshots.sent(outcome, started.elapsed());
            // Tried again each second, for as long as the receiver's disk is full.
            let is_news =
                !error.is_away() && shared.said.is_new_kind(Topic::SnapshotSent, target, &error.to_string());
            match is_news {
                false => tracing::debug!(peer_id = target as i64, %error, "snapshot was not sent"),
                true => tracing::warn!(peer_id = target as i64, %error, "snapshot was not sent"),
            }
            if error.is_corrupt() {
                shared.snapshots.doubted(&snapshot.manifest.id);
            }
            if matches!(error, SendError::Refused(_)) {
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
            return Err(error);
        }
        match error.is_away() {
            true => tracing::debug!(peer_id = target as i64, %error, "a snapshot waits for its receiver"),
            false => tracing::info!(peer_id = target as i64, %error, "snapshot transfer broke, goes on"),
        }
        tokio::time::sleep(PAUSE_MIN * 2u32.pow(n_failed - 1)).await;
    }
}

/// Says that a transfer is running for as long as it lives.
struct Running<'a> {
    shared: &'a Shared,
}

impl<'a> Running<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.snapshots.sending(true);
        Self { shared }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.shared.snapshots.sending(false);
    }
}

/// The files of a snapshot, cut to pieces.
struct Pieces<'a> {
    snapshot: &'a SnapshotData,
    /// Bytes that the receiver was last known to have.
    acknowledged: u64,
}

impl<'a> Pieces<'a> {
    fn new(snapshot: &'a SnapshotData) -> Self {
        Self { snapshot, acknowledged: 0 }
    }

    fn files(&self) -> &'a [proto::SnapshotFile] {
        &self.snapshot.manifest.files
    }
}

/// One connection's worth.
async fn attempt(
    shared: &Shared,
    target: NodeId,
    vote: Vote,
    pieces: &mut Pieces<'_>,
) -> Result<Vote, SendError> {
    let connection = dial::dial(shared, target, Purpose::Snapshot).await?;
    let mut transfer = Transfer { connection, patience: shared.config.snapshot_timeout };
    let offer = proto::SnapshotOffer {
        vote: Some(vote_to_proto(&vote)),
        manifest: Some(pieces.snapshot.manifest.clone()),
    };
    transfer.connection.outbox.put(FrameKind::SnapshotOffer, 0, &offer);
    transfer.flush().await?;
    let have = match transfer.answer(pieces).await? {
        Heard::Have(have) => have,
        Heard::Installed(vote) => return Ok(vote),
        Heard::Progress => return Err(WireError::Malformed("progress before a beginning".into()).into()),
    };
    pieces.acknowledged = pieces.acknowledged.max(have.offsets.iter().sum());
    for (idx, file) in pieces.files().iter().enumerate() {
        let from = have.offsets.get(idx).copied().unwrap_or(0);
        if let Some(vote) = transfer.send_file(pieces, idx, file, from).await? {
            return Ok(vote);
        }
    }
    transfer.connection.outbox.put_empty(FrameKind::SnapshotDone, 0);
    transfer.flush().await?;
    loop {
        match transfer.answer(pieces).await? {
            Heard::Installed(vote) => return Ok(vote),
            Heard::Progress => {}
            Heard::Have(_) => return Err(WireError::Malformed("a second beginning".into()).into()),
        }
    }
}

/// What the receiver says.
enum Heard {
    Have(proto::SnapshotHave),
    Progress,
    Installed(Vote),
}

struct Transfer {
    connection: Connection,
    patience: Duration,
}

impl Transfer {
    /// `Some`: the receiver knows a higher vote and wants no more.
    async fn send_file(
        &mut self,
        pieces: &mut Pieces<'_>,
        idx: usize,
        file: &proto::SnapshotFile,
        from: u64,
    ) -> Result<Option<Vote>, SendError> {
        if file.size_bytes <= from {
            return Ok(None);
        }
        let name = &file.name;
        let failed = |error| SendError::File { name: name.clone(), error };
        let path = pieces.snapshot.dir.join(name);
        let opened = tokio::task::spawn_blocking(move || File::open(path)).await;
        let handle = Arc::new(opened.map_err(io::Error::other).and_then(|opened| opened).map_err(failed)?);
        let mut offset = from;
        // One piece is read while the one before is on its way.
        let mut next = Some(read_piece(&handle, offset, file.size_bytes));
        while let Some(reading) = next.take() {
            let data = reading.await.map_err(io::Error::other).and_then(|read| read).map_err(failed)?;
            let chunk = proto::SnapshotChunk {
                file: u32::try_from(idx).expect("a manifest has few files"),
                offset,
                crc: crc32fast::hash(&data),
                data,
            };
            offset += chunk.data.len() as u64;
            if offset < file.size_bytes {
                next = Some(read_piece(&handle, offset, file.size_bytes));
            }
            self.connection.outbox.put(FrameKind::SnapshotChunk, 0, &chunk);
            if let Some(vote) = self.flush_and_listen(pieces).await? {
                return Ok(Some(vote));
            }
        }
        Ok(None)
    }

    /// The receiver may say no at any time.
    async fn flush_and_listen(&mut self, pieces: &mut Pieces<'_>) -> Result<Option<Vote>, SendError> {
        loop {
            let Connection { reader, outbox, .. } = &mut self.connection;
            let frame = tokio::select! {
                biased;
                frame = reader.next() => frame?,
                flushed = outbox.flush() => return flushed.map(|()| None).map_err(SendError::from),
            };
            match heard(frame, pieces)? {
                Heard::Installed(vote) => return Ok(Some(vote)),
                Heard::Progress => {}
                Heard::Have(_) => return Err(WireError::Malformed("a second beginning".into()).into()),
            }
        }
    }

    async fn flush(&mut self) -> Result<(), SendError> {
        Ok(self.connection.outbox.flush().await?)
    }

    async fn answer(&mut self, pieces: &mut Pieces<'_>) -> Result<Heard, SendError> {
        let frame = tokio::time::timeout(self.patience, self.connection.reader.next()).await;
        heard(frame.map_err(|_| SendError::TimedOut(self.patience))??, pieces)
    }
}

fn heard(frame: Frame, pieces: &mut Pieces<'_>) -> Result<Heard, SendError> {
    match frame.kind() {
        Some(FrameKind::SnapshotHave) => Ok(Heard::Have(frame.decode()?)),
        Some(FrameKind::SnapshotProgress) => {
            let progress: proto::SnapshotProgress = frame.decode()?;
            pieces.acknowledged = pieces.acknowledged.max(progress.received_bytes);
            Ok(Heard::Progress)
        }
        Some(FrameKind::Error) => Err(SendError::Refused(frame.decode()?)),
        _ => {
            let installed: proto::SnapshotInstalled = decode(frame, FrameKind::SnapshotInstalled)?;
            let vote = installed.vote.as_ref().map(vote_from_proto);
            Ok(Heard::Installed(vote.ok_or_else(|| crate::peer::convert::missing("vote"))?))
        }
    }
}

fn read_piece(file: &Arc<File>, offset: u64, size_bytes: u64) -> tokio::task::JoinHandle<io::Result<Bytes>> {
    let file = Arc::clone(file);
    let left = size_bytes - offset;
    let bytes = usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
    tokio::task::spawn_blocking(move || {
        let mut data = vec![0; bytes];
        file.read_exact_at(&mut data, offset)?;
        Ok(Bytes::from(data))
    })
}
