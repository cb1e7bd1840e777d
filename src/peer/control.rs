//! What is answered on a control connection: heartbeats, votes, transfers, pings, questions.
//!
//! Everything is answered when its answer is there, so that a vote waits for no heartbeat and a
//! ping for no disk. Whether this node may vote or take over is for `node` to say.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use openraft::{
    raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult, VoteRequest},
    storage::RaftStateMachine,
};
use tokio::time::{Instant, timeout};

use crate::consensus::{Declined, HandoverAsk, HandoverRefusal};
use crate::peer::{
    Floor,
    clock::unix_ns,
    convert,
    hello::{Connection, refused_by_dialler},
    metrics::{Direction, Rpc},
    said::Topic,
    server::Context,
    session::{self, Answer, check_sender, stopped, unsupported},
    wire::{self, Frame, WireError},
};
use crate::raft::{SnapshotData, TypeConfig, pos_of};
use crate::types::proto::{self, ErrorCode, FrameKind, Stamps};
use crate::types::{LogIndex, NodeId};

/// raft's messages of one connection that are not answered yet: votes wait for the disk, heartbeats for one that hangs. By
/// eye: 20 a second over every patience there is.
const RAFT_MESSAGES_MAX: usize = 1024;

/// Questions of one connection under way. By eye: an operator's tools ask a few at once.
const QUESTIONS_MAX: usize = 32;

/// A control connection.
pub(super) struct Control<'a, SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    context: &'a Context<SM>,
    connection: Connection,
    /// It was pinged: neither side refused.
    is_admitted: bool,
    raft_messages: FuturesUnordered<BoxFuture<'a, Answer>>,
    questions: FuturesUnordered<BoxFuture<'a, Answer>>,
}

impl<'a, SM> Control<'a, SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    pub(super) fn new(context: &'a Arc<Context<SM>>, connection: Connection) -> Self {
        Self {
            context,
            connection,
            is_admitted: false,
            raft_messages: FuturesUnordered::new(),
            questions: FuturesUnordered::new(),
        }
    }

    pub(super) async fn run(mut self) -> Result<(), WireError> {
        let patience = self.context.shared.config.idle_timeout;
        let idle = tokio::time::sleep(patience);
        tokio::pin!(idle);
        loop {
            let Connection { reader, outbox, .. } = &mut self.connection;
            tokio::select! {
                biased;
                Some(answer) = self.raft_messages.next() => {
                    outbox.put_encoded(answer.kind, answer.id, &answer.payload);
                }
                flushed = outbox.flush(), if !outbox.is_empty() => flushed?,
                frame = reader.next() => {
                    idle.as_mut().reset(Instant::now() + patience);
                    let frame = frame?;
                    let id = frame.id;
                    if let Err(e) = self.on_frame(frame) {
                        if matches!(e, WireError::Closed) {
                            return Err(e);
                        }
                        let error = wire::error(ErrorCode::Malformed, e.to_string());
                        self.connection.outbox.put(FrameKind::Error, id, &error);
                        self.connection.outbox.flush().await?;
                        return Err(e);
                    }
                }
                Some(answer) = self.questions.next() => {
                    outbox.put_encoded(answer.kind, answer.id, &answer.payload);
                }
                // Whoever keeps a control connection pings on it: it is gone.
                () = &mut idle => return Err(WireError::Stalled(patience)),
            }
        }
    }

    fn on_frame(&mut self, frame: Frame) -> Result<(), WireError> {
        let id = frame.id;
        let received_at_ns = unix_ns();
        let context = self.context;
        let peer_id = self.connection.peer_id;
        match frame.kind() {
            Some(FrameKind::Refusal) => return Err(refused_by_dialler(&context.shared, peer_id, frame)),
            Some(FrameKind::Ping) => {
                // Once: another process that claims this id may be refused meanwhile.
                if !std::mem::replace(&mut self.is_admitted, true) {
                    context.shared.said.admitted(Topic::Accepted, peer_id);
                }
                self.pong(id, received_at_ns);
            }
            Some(FrameKind::Append) => {
                let request: proto::AppendRequest = frame.decode()?;
                let told = request.state_hashes.as_ref().and_then(convert::evidence_from_proto);
                let floors: Vec<_> = request.floors.iter().filter_map(convert::floor_from_proto).collect();
                let request = convert::append_from_proto(request)?;
                check_sender(peer_id, &request)?;
                if let Some(evidence) = told {
                    context.shared.notices.state_evidence_told(evidence);
                }
                if !request.entries.is_empty() {
                    return Err(WireError::Malformed("entries on a control connection".into()));
                }
                self.ask_raft(id, Box::pin(heartbeat(context, id, request, floors, received_at_ns)));
            }
            Some(kind @ (FrameKind::Vote | FrameKind::PreVote)) => {
                let rpc = if kind == FrameKind::Vote { Rpc::Vote } else { Rpc::PreVote };
                let request = convert::vote_request_from_proto(&frame.decode()?)?;
                if request.vote.leader_id.voted_for != peer_id {
                    return Err(WireError::Malformed("a vote for somebody else".into()));
                }
                self.ask_raft(id, Box::pin(vote(context, id, rpc, request)));
            }
            Some(FrameKind::Transfer) => {
                self.ask_raft(id, Box::pin(transfer(context, id, frame.decode()?)));
            }
            Some(FrameKind::Status) => self.ask_node(id, Box::pin(status(context, id))),
            Some(FrameKind::ReadIndex) => self.ask_node(id, Box::pin(read_index(context, id))),
            Some(FrameKind::Founding) => self.founding(id),
            Some(FrameKind::Timeline) => self.timeline(id, frame.decode()?),
            Some(FrameKind::TakeOver) => self.take_over(id, &frame.decode()?),
            Some(FrameKind::Handover) => {
                self.ask_node(id, Box::pin(hand_over(context, id, frame.decode()?)));
            }
            _ => self.connection.outbox.put(FrameKind::Error, id, &unsupported(&frame)),
        }
        Ok(())
    }

    fn ask_raft(&mut self, id: u64, answer: BoxFuture<'a, Answer>) {
        if self.raft_messages.len() < RAFT_MESSAGES_MAX {
            self.raft_messages.push(answer);
        } else {
            self.busy(id);
        }
    }

    fn ask_node(&mut self, id: u64, answer: BoxFuture<'a, Answer>) {
        if self.questions.len() < QUESTIONS_MAX {
            self.questions.push(answer);
        } else {
            self.busy(id);
        }
    }

    fn busy(&mut self, id: u64) {
        let busy = wire::error(ErrorCode::Busy, "too many messages wait for an answer");
        self.connection.outbox.put(FrameKind::Error, id, &busy);
    }

    fn pong(&mut self, id: u64, received_at_ns: u64) {
        let pong = proto::Pong {
            stamps: Some(Stamps { received_at_ns, answered_at_ns: unix_ns() }),
            not_member_version: self.context.shared.not_member(self.connection.peer_id).unwrap_or(0),
        };
        self.connection.outbox.put(FrameKind::Pong, id, &pong);
    }

    fn timeline(&mut self, id: u64, entry: proto::LogId) {
        let json = self.context.answers.timeline(entry.into());
        self.connection.outbox.put(FrameKind::TimelineAnswer, id, &proto::TimelineAnswer { json });
    }

    fn take_over(&mut self, id: u64, request: &proto::TransferRequest) {
        match may_take_over(self.context, request) {
            Ok(()) => {
                let fitness = convert::fitness_to_proto(self.context.answers.fitness());
                self.connection.outbox.put(FrameKind::TakeOverAnswer, id, &fitness);
            }
            Err(error) => self.connection.outbox.put(FrameKind::Error, id, &error),
        }
    }

    fn founding(&mut self, id: u64) {
        let state = self.context.answers.founding();
        let answer = proto::FoundingAnswer {
            list_hash: Bytes::copy_from_slice(&state.list_hash),
            has_data: state.has_data,
        };
        self.connection.outbox.put(FrameKind::FoundingAnswer, id, &answer);
    }
}

async fn heartbeat<SM>(
    context: &Context<SM>,
    id: u64,
    request: AppendEntriesRequest<TypeConfig>,
    floors: Vec<Floor>,
    received_at_ns: u64,
) -> Answer
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let answer = hear(context, request).await.map(|result| {
        // Of one whose term is over nothing is taken: a node may have been added again since.
        if !matches!(result, Err(StreamAppendError::HigherVote(_))) {
            context.shared.notices.floors_told(floors);
        }
        let mut answer = convert::append_answer_to_proto(&result);
        answer.stamps = Some(Stamps { received_at_ns, answered_at_ns: unix_ns() });
        answer.hash_mark = context
            .shared
            .notices
            .hash_mark()
            .map(|mark| proto::HashMark { index: mark.index, hash: Bytes::copy_from_slice(&mark.hash) });
        answer.fitness = Some(convert::fitness_to_proto(context.answers.fitness()));
        answer
    });
    Answer::of(id, FrameKind::AppendAnswer, answer)
}

/// Raft answers a heartbeat once all entries that it took before are durable, and the leader waits for one
/// `heartbeat_interval`: syncs that take longer would cost it the lease. That stands on less: raft took the heartbeat up,
/// so that it grants nobody else a vote for a lease from now on, and its vote for this leader is durable. Once both are
/// so that is the answer, unless the disk hangs. The leader learns nothing else from it (safety rules 11, 17 and 24).
async fn hear<SM>(
    context: &Context<SM>,
    request: AppendEntriesRequest<TypeConfig>,
) -> Result<StreamAppendResult<TypeConfig>, proto::Error>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let (vote, last) = (request.vote, request.prev_log_id);
    let answered = session::append(context, request);
    tokio::pin!(answered);
    if let Ok(answer) = timeout(context.shared.config.heartbeat_interval / 4, &mut answered).await {
        return answer;
    }
    // Raft is given this behind the heartbeat, and does one after the other: what refuses that was answered by then.
    // A task of its own: raft says that something is wrong where nobody waits for it any more.
    let raft = context.raft.clone();
    let taken_up =
        tokio::spawn(async move { raft.with_raft_state(move |state| *state.vote_ref() == vote).await });
    tokio::select! {
        biased;
        answer = &mut answered => return answer,
        is_followed = taken_up => {
            let is_durable = context.raft.watch_vote_progress().get() == Some(vote);
            let is_followed = is_followed.ok().and_then(Result::ok).unwrap_or(false);
            if !is_followed || !is_durable || context.answers.is_sync_stuck() {
                return answered.await;
            }
        }
    }
    if let Some(answer) = answered.as_mut().now_or_never() {
        return answer;
    }
    context.answers.leader_heard(vote.leader_id.term, vote.leader_id.voted_for);
    Ok(Ok(last))
}

/// `rpc` is [`Rpc::Vote`] or [`Rpc::PreVote`].
async fn vote<SM>(context: &Context<SM>, id: u64, rpc: Rpc, request: VoteRequest<TypeConfig>) -> Answer
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let answer = decide_vote(context, rpc, request).await;
    let is_granted = answer.as_ref().is_ok_and(|answer| answer.granted);
    context.shared.metrics.vote(Direction::Received, rpc, is_granted);
    Answer::of(id, FrameKind::VoteAnswer, answer)
}

async fn decide_vote<SM>(
    context: &Context<SM>,
    rpc: Rpc,
    request: VoteRequest<TypeConfig>,
) -> Result<proto::VoteAnswer, proto::Error>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let candidate = request.vote.leader_id.voted_for;
    // One whose log goes further may hold the entry that makes it a member: what its log is worth raft decides. Who was
    // removed lacks the entry that did it (safety rule 21d).
    let last = request.last_log_id.as_ref().map(pos_of);
    if let Some(version) =
        context.shared.membership_without(candidate).filter(|version| last < Some(*version))
    {
        return Err(not_member(candidate, version.index));
    }
    if !context.answers.may_vote() {
        return Ok(convert::vote_refusal());
    }
    let answer = match rpc {
        Rpc::PreVote => context.raft.pre_vote(request).await,
        _ => context.raft.vote(request).await,
    };
    answer.map(|answer| convert::vote_answer_to_proto(&answer)).map_err(|e| stopped(&e))
}

fn not_member(node_id: NodeId, version: LogIndex) -> proto::Error {
    let mut error = wire::error(
        ErrorCode::NotMember,
        format!("node {node_id} is not in the membership of version {version}"),
    );
    error.version = version;
    error
}

async fn transfer<SM>(context: &Context<SM>, id: u64, request: proto::TransferRequest) -> Answer
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    Answer::of(id, FrameKind::TransferAnswer, accept_transfer(context, &request).await)
}

/// Every voter is told, so that it lets the new leader's election pass; only the target stands.
async fn accept_transfer<SM>(
    context: &Context<SM>,
    request: &proto::TransferRequest,
) -> Result<proto::TransferAnswer, proto::Error>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let transfer = convert::transfer_from_proto(request)
        .map_err(|e| wire::error(ErrorCode::Malformed, e.to_string()))?;
    let is_target = request.to_node_id == context.shared.identity.node_id;
    if is_target {
        // openraft would stand whatever it was told about elections (safety rule 14).
        may_take_over(context, request)?;
    }
    context.shared.notices.handed_over(&convert::handover_from_proto(request), is_target);
    let answer = context.raft.handle_transfer_leader(transfer).await.map_err(|e| stopped(&e))?;
    Ok(convert::transfer_answer_to_proto(&answer))
}

fn may_take_over<SM>(context: &Context<SM>, request: &proto::TransferRequest) -> Result<(), proto::Error>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let term = request.from_leader.as_ref().map_or(0, |vote| vote.term);
    let answer = context.answers.may_take_over(term, request.accepts());
    answer.map_err(|declined| match declined {
        Declined::NotYet(why) => wire::error(ErrorCode::Busy, why),
        Declined::Unfit(why) => wire::error(ErrorCode::Refused, why),
    })
}

async fn hand_over<SM>(context: &Context<SM>, id: u64, request: proto::HandoverRequest) -> Answer
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let ask = HandoverAsk {
        to: request.to_node_id,
        operation_id: request.operation_id,
        within: Duration::from_millis(request.timeout_ms),
    };
    let answer = match context.answers.hand_over(ask).await {
        Ok(term) => proto::HandoverAnswer { term, ..Default::default() },
        Err(HandoverRefusal { reason, message }) => {
            proto::HandoverAnswer { term: 0, refusal: reason, message }
        }
    };
    Answer::new(id, FrameKind::HandoverAnswer, &answer)
}

async fn status<SM>(context: &Context<SM>, id: u64) -> Answer
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let json = context.answers.status().await;
    Answer::new(id, FrameKind::StatusAnswer, &proto::StatusAnswer { json })
}

async fn read_index<SM>(context: &Context<SM>, id: u64) -> Answer
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let answer = context.answers.read_index().await;
    let answer = answer
        .map(|index| proto::ReadIndexAnswer { index })
        .map_err(|why| wire::error(ErrorCode::Refused, why));
    Answer::of(id, FrameKind::ReadIndexAnswer, answer)
}
