//! openraft's clients of one node.
//!
//! A client holds no address and no identity: both are looked up when it dials. Votes, transfers
//! and heartbeats go over the node's link, log data and snapshots over connections of their own.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::{
    base::{BoxFuture, BoxStream},
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption},
    raft::{
        AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
    type_config::alias::SnapshotOf,
};
use prost::Message;

use crate::peer::{
    HashMark,
    append::{self, Home},
    convert,
    link::CallError,
    metrics::{Direction, Rpc},
    network::{Shared, decode, lock},
    snapshot,
    wire::Frame,
};
use crate::raft::{SnapshotData, TypeConfig, Vote};
use crate::types::{
    NodeId,
    proto::{self, ErrorCode, FrameKind},
};

/// What a client's appends travel on. Votes, transfers and snapshots have their own ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    Log,
    Heartbeat,
}

/// One of openraft's clients of one node.
pub(crate) struct Client {
    shared: Arc<Shared>,
    target: NodeId,
    traffic: Traffic,
    home: Home,
}

impl Client {
    pub(super) fn new(shared: Arc<Shared>, target: NodeId, traffic: Traffic) -> Self {
        Self { shared, target, traffic, home: Home::default() }
    }

    async fn call(
        &self,
        rpc: Rpc,
        kind: FrameKind,
        payload: Bytes,
        within: Duration,
    ) -> Result<Frame, RPCError<TypeConfig>> {
        let link = self.shared.link(self.target).ok_or_else(|| unreachable_node(&CallError::NoAddress))?;
        let frame = link.call(rpc, kind, payload, within).await;
        if let Err(CallError::Refused(error)) = &frame
            && error.code() == ErrorCode::NotMember
        {
            self.shared.notices.not_member(self.target, error.version);
        }
        frame.map_err(|e| unreachable_node(&e))
    }

    async fn ask_vote(
        &self,
        rpc: Rpc,
        kind: FrameKind,
        request: VoteRequest<TypeConfig>,
        within: Duration,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.shared.count_candidacy(self.target, request.vote.leader_id.term, rpc);
        let payload = Bytes::from(convert::vote_request_to_proto(&request).encode_to_vec());
        let frame = self.call(rpc, kind, payload, within).await?;
        let answer = decode::<proto::VoteAnswer>(frame, FrameKind::VoteAnswer)
            .and_then(|answer| convert::vote_answer_from_proto(&answer))
            .map_err(|e| unreachable_node(&e))?;
        self.shared.metrics.vote(Direction::Sent, rpc, answer.vote_granted);
        Ok(answer)
    }

    async fn beat(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
        within: Duration,
    ) -> Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>> {
        let payload = convert::OutgoingAppend::new(request, self.shared.config.frame_bytes_max)
            .into_heartbeat(self.shared.notices.state_evidence(), self.shared.notices.floors());
        let frame = self.call(Rpc::Heartbeat, FrameKind::Append, payload, within).await?;
        let answer = decode::<proto::AppendAnswer>(frame, FrameKind::AppendAnswer);
        let answer = answer.map_err(|e| unreachable_node(&e))?;
        if let Some(mark) = &answer.hash_mark
            && let Ok(hash) = mark.hash.as_ref().try_into()
        {
            let mark = HashMark { index: mark.index, hash };
            self.shared.notices.peer_hash_mark(self.target, mark);
        }
        if let Some(fitness) = &answer.fitness {
            self.shared.notices.peer_fitness(self.target, convert::fitness_from_proto(fitness));
        }
        convert::append_answer_from_proto(&answer).map_err(|e| unreachable_node(&e))
    }
}

impl NetStreamAppend<TypeConfig> for Client {
    /// Never fails itself: what goes wrong stands in the answers (safety rule 23).
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, AppendResult>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let answers: BoxStream<'s, AppendResult> = match self.traffic {
            Traffic::Log => {
                Box::pin(append::Answers::new(Arc::clone(&self.shared), self.target, &mut self.home, input))
            }
            Traffic::Heartbeat => {
                let client = &*self;
                // openraft gives a heartbeat up after this long itself.
                let within = option.hard_ttl();
                Box::pin(
                    futures::stream::once(async move {
                        let request = input.next().await?;
                        Some(client.beat(request, within).await)
                    })
                    .filter_map(futures::future::ready),
                )
            }
        };
        Box::pin(async move { Ok(answers) })
    }
}

/// An answer to an append as openraft wants it.
pub(super) type AppendResult = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

impl NetVote<TypeConfig> for Client {
    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(Rpc::Vote, FrameKind::Vote, rpc, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(Rpc::PreVote, FrameKind::PreVote, rpc, option.hard_ttl()).await
    }
}

impl NetTransferLeader<TypeConfig> for Client {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut request = convert::transfer_to_proto(&req);
        if let Some(handover) = &*lock(&self.shared.handover)
            && handover.from_term == req.from_leader().leader_id.term
        {
            request.cause = handover.cause as u32;
            request.operation_id = handover.operation_id.clone();
            request.accepts = handover.accepts as i32;
        }
        let payload = Bytes::from(request.encode_to_vec());
        let frame = self.call(Rpc::Transfer, FrameKind::Transfer, payload, option.hard_ttl()).await?;
        decode::<proto::TransferAnswer>(frame, FrameKind::TransferAnswer)
            .and_then(|answer| convert::transfer_answer_from_proto(&req, &answer))
            .map_err(|e| unreachable_node(&e))
    }
}

impl NetSnapshot<TypeConfig> for Client {
    type SnapshotData = SnapshotData;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = snapshot::send(&self.shared, self.target, vote, &snapshot.snapshot) => {
                sent.map(SnapshotResponse::new).map_err(|e| unreachable_node(&e).into())
            }
        }
    }
}

impl NetBackoff<TypeConfig> for Client {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

/// Everything that goes wrong is worth a pause before the next try (safety rule 26).
pub(super) fn unreachable_node(error: &(impl std::error::Error + 'static)) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(error))
}
