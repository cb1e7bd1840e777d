//! What is answered on an admitted connection.
//!
//! Log data is given to raft in the order it came and answered in that order. Entries are checked
//! before raft sees them. What comes on a control connection is answered by [`Control`].

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream::FuturesOrdered};
use openraft::{
    raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult},
    storage::RaftStateMachine,
};
use prost::Message;

use crate::peer::{
    control::Control,
    convert,
    hello::{Connection, refused_by_dialler, wire_reason},
    install,
    metrics::Rpc,
    said::Topic,
    server::Context,
    wire::{self, Frame, WireError},
};
use crate::raft::{SnapshotData, TypeConfig, pos_of};
use crate::types::{
    NodeId,
    position::LogPos,
    proto::{self, ErrorCode, FrameKind, Purpose},
};

/// Answers a connection until it ends. Dropping the future ends it.
pub(super) async fn serve<SM>(context: &Arc<Context<SM>>, connection: Connection)
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let peer_id = connection.peer_id;
    let purpose = connection.purpose;
    let (rpc, ended) = match purpose {
        Purpose::Log => (Rpc::Append, Log::new(context, connection).run().await),
        Purpose::Snapshot => (Rpc::Snapshot, install::serve(context, connection).await),
        Purpose::Control | Purpose::Probe | Purpose::Unknown => {
            (Rpc::Heartbeat, Control::new(context, connection).run().await)
        }
    };
    let peer_id_field = peer_id as i64;
    match ended {
        Err(e @ (WireError::Malformed(_) | WireError::Corrupt(_) | WireError::TooLarge(_))) => {
            context.shared.metrics_of(peer_id).failed(rpc, wire_reason(&e));
            // It sends the same again until somebody mends it.
            if context.shared.said.is_new(Topic::Sent, peer_id, &e.to_string()) {
                tracing::warn!(peer_id = peer_id_field, ?purpose, error = %e, "peer sent what cannot be right");
            }
        }
        Err(e) => tracing::debug!(peer_id = peer_id_field, ?purpose, error = %e, "peer disconnected"),
        Ok(()) => tracing::debug!(peer_id = peer_id_field, ?purpose, "peer connection closed"),
    }
}

/// An answer, encoded.
pub(super) struct Answer {
    pub(super) id: u64,
    pub(super) kind: FrameKind,
    pub(super) payload: Bytes,
}

impl Answer {
    pub(super) fn new(id: u64, kind: FrameKind, message: &impl Message) -> Self {
        Self { id, kind, payload: Bytes::from(message.encode_to_vec()) }
    }

    pub(super) fn of<M: Message>(id: u64, kind: FrameKind, answer: Result<M, proto::Error>) -> Self {
        match answer {
            Ok(message) => Self::new(id, kind, &message),
            Err(error) => Self::new(id, FrameKind::Error, &error),
        }
    }
}

/// A connection for log data.
struct Log<'a, SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    context: &'a Context<SM>,
    connection: Connection,
    /// Entries came that are right.
    is_well: bool,
    unanswered: FuturesOrdered<BoxFuture<'a, (usize, Answer)>>,
    unanswered_bytes: usize,
}

impl<'a, SM> Log<'a, SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    fn new(context: &'a Context<SM>, connection: Connection) -> Self {
        Self { context, connection, is_well: false, unanswered: FuturesOrdered::new(), unanswered_bytes: 0 }
    }

    async fn run(mut self) -> Result<(), WireError> {
        loop {
            let has_room = self.has_room();
            let Connection { reader, outbox, .. } = &mut self.connection;
            tokio::select! {
                // Answers first. And since this polls a new request before the next is read, raft
                // is given them in their order.
                biased;
                Some((bytes, answer)) = self.unanswered.next() => {
                    self.unanswered_bytes -= bytes;
                    outbox.put_encoded(answer.kind, answer.id, &answer.payload);
                }
                flushed = outbox.flush(), if !outbox.is_empty() => flushed?,
                frame = reader.next(), if has_room => {
                    let frame = frame?;
                    let id = frame.id;
                    if let Err(e) = self.on_frame(frame) {
                        return self.refuse(id, e).await;
                    }
                }
            }
        }
    }

    /// The asker keeps to the same window; whoever does not waits in the socket.
    fn has_room(&self) -> bool {
        let config = &self.context.shared.config;
        self.unanswered.is_empty()
            || (self.unanswered.len() < config.window_requests_max
                && self.unanswered_bytes < 2 * config.window_bytes_max)
    }

    fn on_frame(&mut self, frame: Frame) -> Result<(), WireError> {
        let (id, bytes) = (frame.id, frame.payload.len());
        if frame.kind() == Some(FrameKind::Refusal) {
            return Err(refused_by_dialler(&self.context.shared, self.connection.peer_id, frame));
        }
        if frame.kind() != Some(FrameKind::Append) {
            let error = unsupported(&frame);
            self.connection.outbox.put(FrameKind::Error, id, &error);
            return Ok(());
        }
        let request = convert::append_from_proto(frame.decode()?)?;
        check_sender(self.connection.peer_id, &request)?;
        if !self.is_well && !request.entries.is_empty() {
            self.is_well = true;
            self.context.shared.said.clear(Topic::Sent, self.connection.peer_id);
        }
        self.unanswered_bytes += bytes;
        let context = self.context;
        let appended = async move {
            let answer = if !request.entries.is_empty() && !context.shared.notices.may_store() {
                Err(wire::error(ErrorCode::Storage, "the disk is full"))
            } else {
                append(context, request).await
            };
            let answer = answer.map(|result| convert::append_answer_to_proto(&result));
            (bytes, Answer::of(id, FrameKind::AppendAnswer, answer))
        };
        self.unanswered.push_back(Box::pin(appended));
        Ok(())
    }

    /// Says why, if the other side still listens; the connection ends with the same error.
    async fn refuse(mut self, id: u64, error: WireError) -> Result<(), WireError> {
        let code = match &error {
            WireError::Closed => return Err(error),
            WireError::Corrupt(_) => ErrorCode::Corrupt,
            _ => ErrorCode::Malformed,
        };
        self.connection.outbox.put(FrameKind::Error, id, &wire::error(code, error.to_string()));
        self.connection.outbox.flush().await?;
        Err(error)
    }
}

/// Hands one append to raft; answered when raft answers, which is after its entries are durable.
pub(super) async fn append<SM>(
    context: &Context<SM>,
    request: AppendEntriesRequest<TypeConfig>,
) -> Result<StreamAppendResult<TypeConfig>, proto::Error>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let vote = request.vote;
    let prev = request.prev_log_id;
    let committed = context.shared.notices.committed_before(vote.leader_id.term);
    if let Some((own, theirs)) = committed.and_then(|own| contradiction(&request, own)) {
        context.shared.notices.contradicted(vote.leader_id.voted_for, own, theirs);
        return Err(wire::error(ErrorCode::Refused, "this node has committed another entry there"));
    }
    let last = request.entries.last().map(|entry| entry.log_id).or(prev);
    let answer = context.raft.append_entries(request).await.map_err(|e| stopped(&e))?;
    let result = match answer {
        AppendEntriesResponse::Success => Ok(last),
        AppendEntriesResponse::PartialSuccess(matched) => Ok(matched),
        AppendEntriesResponse::Conflict => {
            let at =
                prev.ok_or_else(|| wire::error(ErrorCode::Refused, "conflict before the first entry"))?;
            Err(StreamAppendError::Conflict(at))
        }
        AppendEntriesResponse::HigherVote(higher) => return Ok(Err(StreamAppendError::HigherVote(higher))),
    };
    if vote.committed {
        context.answers.leader_heard(vote.leader_id.term, vote.leader_id.voted_for);
    }
    Ok(result)
}

/// This node's last committed entry, and the one of a leader's that cannot be of the same history. Raft compares nothing
/// up to there: what is committed is the same everywhere, unless a folder was put back from an older copy.
fn contradiction(request: &AppendEntriesRequest<TypeConfig>, own: LogPos) -> Option<(LogPos, LogPos)> {
    let entries = request.entries.iter().map(|entry| &entry.log_id);
    let sent = request.prev_log_id.iter().chain(entries).map(pos_of);
    let is_another = |theirs: &LogPos| match theirs.index.cmp(&own.index) {
        Ordering::Less => own.term < theirs.term,
        Ordering::Equal => own.term != theirs.term,
        Ordering::Greater => false,
    };
    sent.take_while(|theirs| theirs.index <= own.index).find(is_another).map(|theirs| (own, theirs))
}

/// A leader speaks for itself alone.
pub(super) fn check_sender(
    peer_id: NodeId,
    request: &AppendEntriesRequest<TypeConfig>,
) -> Result<(), WireError> {
    if request.vote.leader_id.voted_for != peer_id {
        return Err(WireError::Malformed(format!("append of leader {}", request.vote.leader_id.voted_for)));
    }
    Ok(())
}

pub(super) fn unsupported(frame: &Frame) -> proto::Error {
    wire::error(ErrorCode::Unsupported, format!("frame kind {} is not answered here", frame.kind))
}

pub(super) fn stopped(error: &impl std::fmt::Display) -> proto::Error {
    wire::error(ErrorCode::Stopped, error.to_string())
}
