//! Receiving a snapshot: to the disk, verified, then installed by raft.
//!
//! One at a time. A newer offer takes the turn of one that is still receiving, since that is most
//! likely the same transfer over a connection that died unseen. Nothing that goes wrong here
//! reaches raft: it is only given a snapshot that is whole and verified (safety rule 28).

use std::{
    future::Future,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use openraft::{
    async_runtime::watch::WatchReceiver,
    storage::{RaftStateMachine, Snapshot},
};
use tokio::{
    sync::{OwnedMutexGuard, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::peer::{
    Receiving,
    hello::{Connection, refused_by_dialler},
    network::{Shared, lock},
    said::Topic,
    server::Context,
    session::{stopped, unsupported},
    wire::{self, WireError},
};
use crate::raft::{
    SnapshotData, SnapshotMeta, TypeConfig, Vote,
    convert::{log_id_from_proto, stored_membership_from_proto, vote_from_proto, vote_to_proto},
};
use crate::types::proto::{self, ErrorCode, FrameKind, SnapshotStage};

/// The sender hears of progress after so many bytes. By eye: a quarter of a second on a slow link.
const PROGRESS_BYTES: u64 = 4 << 20;

/// And at least so often while the snapshot is verified and installed.
pub(super) const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How long an installation waits for the own log to be flushed, which only narrows a window in
/// openraft (safety rule 29). By eye.
const LOG_FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// Files of one snapshot. By eye: a hundred times what one has.
const FILES_MAX: usize = 100_000;

/// Whose turn it is.
#[derive(Default)]
pub(super) struct Installer {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Breaks the transfer off that is receiving.
    receiving: Mutex<CancellationToken>,
}

impl Installer {
    /// `None`: the one before does not end, it is being installed.
    async fn take_turn(&self, within: Duration) -> Option<(OwnedMutexGuard<()>, CancellationToken)> {
        let cancel = CancellationToken::new();
        std::mem::replace(&mut *lock(&self.receiving), cancel.clone()).cancel();
        let turn = tokio::time::timeout(within, Arc::clone(&self.turn).lock_owned()).await.ok()?;
        Some((turn, cancel))
    }
}

/// Answers one snapshot connection.
pub(super) async fn serve<SM>(context: &Arc<Context<SM>>, mut connection: Connection) -> Result<(), WireError>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let ended = answer(context, &mut connection).await;
    match ended {
        Ok(vote) => {
            context.shared.said.clear(Topic::SnapshotReceived, connection.peer_id);
            let installed = proto::SnapshotInstalled { vote: Some(vote_to_proto(&vote)) };
            connection.outbox.put(FrameKind::SnapshotInstalled, 0, &installed);
            connection.outbox.flush().await
        }
        Err(Ended::Refused(error)) => {
            let (peer_id, reason) = (connection.peer_id, &error.reason);
            match context.shared.said.is_new_kind(Topic::SnapshotReceived, peer_id, reason) {
                true => tracing::warn!(peer_id = peer_id as i64, reason, "snapshot was not installed"),
                false => tracing::debug!(peer_id = peer_id as i64, reason, "snapshot was not installed"),
            }
            connection.outbox.put(FrameKind::Error, 0, &error);
            connection.outbox.flush().await
        }
        Err(Ended::Broken(e)) => Err(e),
    }
}

/// How a transfer ended without an installed snapshot.
enum Ended {
    /// And the sender is told.
    Refused(proto::Error),
    Broken(WireError),
}

impl From<WireError> for Ended {
    fn from(error: WireError) -> Self {
        Self::Broken(error)
    }
}

fn refused(code: ErrorCode, reason: impl Into<String>) -> Ended {
    Ended::Refused(wire::error(code, reason))
}

/// An offer that can be taken up.
struct Offer {
    vote: Vote,
    manifest: proto::SnapshotManifest,
}

async fn answer<SM>(context: &Arc<Context<SM>>, connection: &mut Connection) -> Result<Vote, Ended>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let shared = &context.shared;
    let offer = read_offer(shared, connection).await?;
    let own_vote = context.raft.server_metrics().borrow_watched().vote;
    if offer.vote < own_vote {
        return Ok(own_vote);
    }
    let (turn, cancel) = context
        .installer
        .take_turn(shared.config.snapshot_timeout / 2)
        .await
        .ok_or_else(|| refused(ErrorCode::Busy, "another snapshot is being installed"))?;
    let started = Instant::now();
    let store = Arc::clone(&shared.snapshots);
    let manifest = offer.manifest.clone();
    let turn = Arc::new(turn);
    let begun = blocking(keeping(Arc::clone(&turn), move || store.receive(&manifest))).await?;
    let mut transfer = Transfer::new(shared, connection, &offer.manifest, begun, turn);
    tokio::select! {
        biased;
        () = cancel.cancelled() => return Err(refused(ErrorCode::Busy, "a newer transfer took over")),
        received = transfer.receive() => received?,
    }
    let Transfer { store, connection, received_bytes, turn, .. } = transfer;
    let store = store.expect("the transfer has ended, nothing is being written");
    let (stage_tx, stage) = watch::channel(SnapshotStage::Verifying);
    let id = offer.manifest.id.clone();
    let installing = tokio::spawn(finish(Arc::clone(context), store, offer.vote, id, turn, stage_tx));
    let installed = while_waiting(connection, &stage, received_bytes, installing).await?;
    let vote = installed.map_err(|broken| disk_error(io::Error::other(broken)))??;
    tracing::info!(
        peer_id = connection.peer_id as i64,
        snapshot = %offer.manifest.id,
        bytes = received_bytes as i64,
        took = ?started.elapsed(),
        "snapshot received and installed"
    );
    if offer.vote.committed && vote == offer.vote {
        context.answers.leader_heard(vote.leader_id.term, vote.leader_id.voted_for);
    }
    Ok(vote)
}

/// All of it is here, so it is carried to its end whatever becomes of the connection: one that is left verified and
/// neither installed nor dropped would lie there for good.
async fn finish<SM>(
    context: Arc<Context<SM>>,
    store: Box<dyn Receiving>,
    vote: Vote,
    id: String,
    turn: Arc<OwnedMutexGuard<()>>,
    stage: watch::Sender<SnapshotStage>,
) -> Result<Vote, Ended>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let verified = tokio::task::spawn_blocking(move || store.finish()).await;
    let data = verified.map_err(io::Error::other).and_then(|verified| verified).map_err(disk_error)?;
    stage.send_replace(SnapshotStage::Installing);
    let installed = install(&context, vote, data).await;
    let store = Arc::clone(&context.shared.snapshots);
    blocking(move || {
        store.settled(&id);
        Ok(())
    })
    .await?;
    drop(turn);
    installed.map_err(Ended::Refused)
}

async fn read_offer(shared: &Shared, connection: &mut Connection) -> Result<Offer, Ended> {
    let patience = shared.config.snapshot_timeout;
    let frame = tokio::time::timeout(patience, connection.reader.next()).await;
    let frame = frame.map_err(|_| WireError::Stalled(patience))??;
    if frame.kind() == Some(FrameKind::Refusal) {
        return Err(refused_by_dialler(shared, connection.peer_id, frame).into());
    }
    if frame.kind() != Some(FrameKind::SnapshotOffer) {
        return Err(Ended::Refused(unsupported(&frame)));
    }
    let offer: proto::SnapshotOffer = frame.decode()?;
    let vote =
        offer.vote.as_ref().map(vote_from_proto).ok_or_else(|| crate::peer::convert::missing("vote"))?;
    if vote.leader_id.voted_for != connection.peer_id {
        return Err(refused(ErrorCode::Malformed, "a snapshot of somebody else"));
    }
    let manifest = offer.manifest.ok_or_else(|| crate::peer::convert::missing("manifest"))?;
    check_manifest(shared, &manifest).map_err(|reason| refused(ErrorCode::Malformed, reason))?;
    // Raft takes it for granted: its core would not survive the contrary.
    if manifest.last_log_id.is_some_and(|last| vote.leader_id.term < last.term) {
        return Err(refused(ErrorCode::Malformed, "a snapshot of a later term than its sender's"));
    }
    Ok(Offer { vote, manifest })
}

/// Names become files here: nothing may lead out of the snapshot's folder.
fn check_manifest(shared: &Shared, manifest: &proto::SnapshotManifest) -> Result<(), String> {
    let own = &shared.identity.cluster_id;
    if manifest.cluster_id != *own {
        return Err(format!("snapshot of cluster {:?}, this is {own:?}", manifest.cluster_id));
    }
    let is_plain = |name: &str| {
        !name.is_empty()
            && name.len() <= 255
            && name != "."
            && name != ".."
            && !name.contains(['/', '\\', '\0'])
    };
    if !is_plain(&manifest.id) {
        return Err(format!("snapshot id {:?} is no file name", manifest.id));
    }
    if FILES_MAX < manifest.files.len() {
        return Err(format!("snapshot of {} files", manifest.files.len()));
    }
    match manifest.files.iter().find(|file| !is_plain(&file.name)) {
        Some(file) => Err(format!("{:?} is no file name", file.name)),
        None => Ok(()),
    }
}

/// A snapshot on its way in.
struct Transfer<'a> {
    connection: &'a mut Connection,
    files: &'a [proto::SnapshotFile],
    offsets: Vec<u64>,
    received_bytes: u64,
    patience: Duration,
    /// Away while a piece is being written.
    store: Option<Box<dyn Receiving>>,
    /// Lives until the last write has ended, also when the transfer is dropped within one.
    turn: Arc<OwnedMutexGuard<()>>,
}

impl<'a> Transfer<'a> {
    fn new(
        shared: &Shared,
        connection: &'a mut Connection,
        manifest: &'a proto::SnapshotManifest,
        store: Box<dyn Receiving>,
        turn: Arc<OwnedMutexGuard<()>>,
    ) -> Self {
        let offsets: Vec<u64> = manifest.files.iter().map(|file| store.have(&file.name)).collect();
        Self {
            connection,
            files: &manifest.files,
            received_bytes: offsets.iter().sum(),
            offsets,
            patience: shared.config.snapshot_timeout,
            store: Some(store),
            turn,
        }
    }

    async fn receive(&mut self) -> Result<(), Ended> {
        let have = proto::SnapshotHave { offsets: self.offsets.clone() };
        self.connection.outbox.put(FrameKind::SnapshotHave, 0, &have);
        self.connection.outbox.flush().await?;
        let mut told_bytes = self.received_bytes;
        loop {
            let frame = tokio::time::timeout(self.patience, self.connection.reader.next()).await;
            let frame = frame.map_err(|_| WireError::Stalled(self.patience))??;
            match frame.kind() {
                Some(FrameKind::SnapshotChunk) => self.on_chunk(frame.decode()?).await?,
                Some(FrameKind::SnapshotDone) => return self.check_complete(),
                _ => return Err(Ended::Refused(unsupported(&frame))),
            }
            if PROGRESS_BYTES <= self.received_bytes - told_bytes {
                told_bytes = self.received_bytes;
                progress(self.connection, SnapshotStage::Receiving, told_bytes).await?;
            }
        }
    }

    async fn on_chunk(&mut self, chunk: proto::SnapshotChunk) -> Result<(), Ended> {
        if crc32fast::hash(&chunk.data) != chunk.crc {
            return Err(
                WireError::Corrupt(format!("piece at {} of file {}", chunk.offset, chunk.file)).into()
            );
        }
        let idx = chunk.file as usize;
        let (file, offset) = match (self.files.get(idx), self.offsets.get_mut(idx)) {
            (Some(file), Some(offset)) => (file, offset),
            _ => return Err(WireError::Malformed(format!("piece of file {idx}, which is none")).into()),
        };
        let end = chunk.offset.saturating_add(chunk.data.len() as u64);
        if chunk.offset != *offset || file.size_bytes < end {
            let reason = format!("piece at {} of file {idx}, {offset} was next", chunk.offset);
            return Err(WireError::Malformed(reason).into());
        }
        let mut store = self.store.take().expect("pieces are written one after the other");
        let name = file.name.clone();
        let write = move || store.write_chunk(&name, chunk.offset, &chunk.data).map(|()| store);
        self.store = Some(blocking(keeping(Arc::clone(&self.turn), write)).await?);
        self.received_bytes += end - *offset;
        *offset = end;
        Ok(())
    }

    fn check_complete(&self) -> Result<(), Ended> {
        let lacks = |(file, offset): &(&proto::SnapshotFile, &u64)| **offset != file.size_bytes;
        match self.files.iter().zip(&self.offsets).find(lacks) {
            Some((file, offset)) => {
                let reason = format!("{:?} ends at {offset} of {}", file.name, file.size_bytes);
                Err(WireError::Malformed(reason).into())
            }
            None => Ok(()),
        }
    }
}

/// Work for a blocking thread, which keeps the turn: whoever waits may be dropped, it runs on.
fn keeping<T>(turn: Arc<OwnedMutexGuard<()>>, work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    move || {
        let done = work();
        drop(turn);
        done
    }
}

/// On a blocking thread. What fails there is this node's disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Ended> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other)
        .and_then(|done| done)
        .map_err(|e| refused(ErrorCode::Storage, e.to_string()))
}

/// A damaged transfer is told from a failing disk.
fn disk_error(error: io::Error) -> Ended {
    match error.kind() {
        io::ErrorKind::InvalidData => refused(ErrorCode::Corrupt, error.to_string()),
        _ => refused(ErrorCode::Storage, error.to_string()),
    }
}

/// The sender must not take long work for a dead receiver.
async fn while_waiting<T>(
    connection: &mut Connection,
    stage: &watch::Receiver<SnapshotStage>,
    received_bytes: u64,
    work: impl Future<Output = T>,
) -> Result<T, WireError> {
    tokio::pin!(work);
    let mut tick = tokio::time::interval(PROGRESS_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            _ = tick.tick() => {
                let stage = *stage.borrow();
                progress(connection, stage, received_bytes).await?;
            }
        }
    }
}

async fn progress(connection: &mut Connection, stage: SnapshotStage, bytes: u64) -> Result<(), WireError> {
    let progress = proto::SnapshotProgress { stage: stage as i32, received_bytes: bytes };
    connection.outbox.put(FrameKind::SnapshotProgress, 0, &progress);
    connection.outbox.flush().await
}

async fn install<SM>(context: &Context<SM>, vote: Vote, data: SnapshotData) -> Result<Vote, proto::Error>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let meta = meta_of(&data.manifest).map_err(|reason| wire::error(ErrorCode::Malformed, reason))?;
    own_log_flushed(context).await;
    let snapshot = Snapshot { meta, snapshot: data };
    let installed = context.raft.install_full_snapshot(vote, snapshot).await.map_err(|e| stopped(&e))?;
    Ok(installed.vote)
}

fn meta_of(manifest: &proto::SnapshotManifest) -> Result<SnapshotMeta, String> {
    let membership = manifest.membership.as_ref().ok_or("membership of the manifest is missing")?;
    Ok(SnapshotMeta {
        last_log_id: manifest.last_log_id.as_ref().map(log_id_from_proto),
        last_membership: stored_membership_from_proto(membership).map_err(|e| e.to_string())?,
    })
}

async fn own_log_flushed<SM>(context: &Context<SM>)
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let last = context.raft.metrics().borrow_watched().last_log_index;
    let mut flushed = context.raft.watch_log_progress();
    let is_flushed = flushed.wait_until(|point| {
        let flushed = point.as_ref().and_then(|point| point.last_log_id).map(|id| id.index());
        // None: nothing was appended since the start, so that everything is durable.
        flushed.is_none() || last <= flushed
    });
    if tokio::time::timeout(LOG_FLUSH_PATIENCE, is_flushed).await.is_err() {
        tracing::info!("own log is not flushed yet, the snapshot is installed all the same");
    }
}
