//! Questions to other nodes beside raft's own messages.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;

use crate::consensus::{
    BoxFuture, FoundingState, Handover, HandoverAsk, HandoverRefusal, PeerError, Peers, Probed,
};
use crate::peer::link::CallError;
use crate::peer::metrics::Rpc;
use crate::peer::network::{Shared, decode, lock};
use crate::peer::wire::WireError;
use crate::peer::{Incarnation, LinkState, convert, dial, hello};
use crate::types::position::LogPos;
use crate::types::proto::{self, ErrorCode, FrameKind};
use crate::types::{LogIndex, NodeId, Term};

/// Asks. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Asker {
    shared: Arc<Shared>,
}

impl Asker {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn ask<M: Message + Default>(
        &self,
        node_id: NodeId,
        rpc: Rpc,
        kinds: (FrameKind, FrameKind),
        question: Bytes,
        within: Duration,
    ) -> Result<M, PeerError> {
        self.ask_raw(node_id, rpc, kinds, question, within).await.map_err(|e| e.told(node_id))
    }

    async fn ask_raw<M: Message + Default>(
        &self,
        node_id: NodeId,
        rpc: Rpc,
        kinds: (FrameKind, FrameKind),
        question: Bytes,
        within: Duration,
    ) -> Result<M, AskError> {
        let link = self.shared.link(node_id).ok_or(AskError::Call(CallError::NoAddress))?;
        let frame = link.call(rpc, kinds.0, question, within).await.map_err(AskError::Call)?;
        decode(frame, kinds.1).map_err(AskError::Wire)
    }
}

/// Why a question has no answer that can be read.
enum AskError {
    Call(CallError),
    Wire(WireError),
}

impl AskError {
    fn told(self, node_id: NodeId) -> PeerError {
        match self {
            Self::Call(e) => peer_error(node_id, e),
            Self::Wire(e) => PeerError::Unreachable { node_id, why: e.to_string() },
        }
    }
}

fn peer_error(node_id: NodeId, error: CallError) -> PeerError {
    match error {
        CallError::NoAddress => PeerError::NoAddress(node_id),
        CallError::Unreachable { why, .. } => PeerError::Unreachable { node_id, why },
        CallError::TimedOut(after) => PeerError::TimedOut { node_id, after },
        CallError::Refused(error) if error.code() == ErrorCode::Busy => PeerError::NotYet(error.reason),
        CallError::Refused(error) => PeerError::Refused(error.reason),
    }
}

impl Asker {
    async fn who_listens(&self, addr: &str, within: Duration) -> Result<Probed, PeerError> {
        let unreachable = |why: String| PeerError::Nobody { addr: addr.to_owned(), why };
        let asked = async {
            let stream =
                dial::connect_to(&self.shared, addr).await.map_err(|e| unreachable(e.to_string()))?;
            hello::probe(&self.shared, stream).await.map_err(|e| unreachable(e.to_string()))
        };
        let hello = tokio::time::timeout(within, asked)
            .await
            .unwrap_or_else(|_| Err(unreachable(format!("no answer within {within:?}"))))?;
        let incarnation = Incarnation::try_from(hello.incarnation.as_ref())
            .map_err(|_| unreachable("its incarnation is malformed".into()))?;
        let is_blank = hello.cluster_epoch == 0 && hello.last_log_id.is_none();
        let is_of_epoch = is_blank || hello.cluster_epoch == self.shared.epoch();
        Ok(Probed {
            cluster_id: hello.cluster_id,
            is_of_epoch,
            node_id: hello.node_id,
            incarnation,
            known_commands: hello::commands_of(&hello.known_commands),
        })
    }
}

impl Peers for Asker {
    fn status(&self, node_id: NodeId, within: Duration) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        Box::pin(async move {
            let kinds = (FrameKind::Status, FrameKind::StatusAnswer);
            let answer: proto::StatusAnswer =
                self.ask(node_id, Rpc::Status, kinds, Bytes::new(), within).await?;
            Ok(answer.json)
        })
    }

    fn read_index(&self, leader_id: NodeId, within: Duration) -> BoxFuture<'_, Result<LogIndex, PeerError>> {
        Box::pin(async move {
            let kinds = (FrameKind::ReadIndex, FrameKind::ReadIndexAnswer);
            let answer: proto::ReadIndexAnswer =
                self.ask(leader_id, Rpc::ReadIndex, kinds, Bytes::new(), within).await?;
            Ok(answer.index)
        })
    }

    fn founding(&self, node_id: NodeId, within: Duration) -> BoxFuture<'_, Result<FoundingState, PeerError>> {
        Box::pin(async move {
            let kinds = (FrameKind::Founding, FrameKind::FoundingAnswer);
            let answer: proto::FoundingAnswer =
                self.ask(node_id, Rpc::Founding, kinds, Bytes::new(), within).await?;
            let list_hash = answer.list_hash.as_ref().try_into().map_err(|_| PeerError::Unreachable {
                node_id,
                why: "its founding hash is malformed".into(),
            })?;
            Ok(FoundingState { list_hash, has_data: answer.has_data })
        })
    }

    fn timeline(
        &self,
        node_id: NodeId,
        pos: LogPos,
        within: Duration,
    ) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        Box::pin(async move {
            let kinds = (FrameKind::Timeline, FrameKind::TimelineAnswer);
            let entry = proto::LogId::from(pos);
            let question = Bytes::from(entry.encode_to_vec());
            let answer: proto::TimelineAnswer =
                self.ask(node_id, Rpc::Timeline, kinds, question, within).await?;
            Ok(answer.json)
        })
    }

    fn lacks(&self, node_id: NodeId, kind: u8, version: u8) -> bool {
        self.shared.notices.lacks(node_id, kind, version)
    }

    fn probe<'a>(&'a self, addr: &'a str, within: Duration) -> BoxFuture<'a, Result<Probed, PeerError>> {
        Box::pin(self.who_listens(addr, within))
    }

    fn ping(&self, node_id: NodeId, within: Duration) -> BoxFuture<'_, Result<(), PeerError>> {
        Box::pin(async move {
            let link = self.shared.link(node_id).ok_or(PeerError::NoAddress(node_id))?;
            let pong = link.call(Rpc::Ping, FrameKind::Ping, Bytes::new(), within).await;
            pong.map(|_| ()).map_err(|e| peer_error(node_id, e))
        })
    }

    fn incarnation(&self, node_id: NodeId) -> Option<[u8; 16]> {
        self.shared.incarnations.known(node_id)
    }

    fn would_take_over(
        &self,
        to: NodeId,
        handover: &Handover,
        within: Duration,
    ) -> BoxFuture<'_, Result<(), PeerError>> {
        let question = convert::handover_to_proto(handover, to);
        Box::pin(async move {
            let kinds = (FrameKind::TakeOver, FrameKind::TakeOverAnswer);
            let question = Bytes::from(question.encode_to_vec());
            let asked = self.ask_raw::<proto::Fitness>(to, Rpc::TakeOver, kinds, question, within).await;
            match asked {
                Ok(_) => Ok(()),
                // A node of an older version: raft's own request is all it knows.
                Err(AskError::Call(CallError::Refused(e))) if e.code() == ErrorCode::Unsupported => Ok(()),
                Err(e) => Err(e.told(to)),
            }
        })
    }

    fn announce_handover(&self, handover: Handover) {
        *lock(&self.shared.handover) = Some(handover);
    }

    fn ask_handover(
        &self,
        leader_id: NodeId,
        ask: HandoverAsk,
        within: Duration,
    ) -> BoxFuture<'_, Result<Result<Term, HandoverRefusal>, PeerError>> {
        Box::pin(async move {
            let kinds = (FrameKind::Handover, FrameKind::HandoverAnswer);
            let question = proto::HandoverRequest {
                to_node_id: ask.to,
                operation_id: ask.operation_id,
                timeout_ms: u64::try_from(ask.within.as_millis()).unwrap_or(u64::MAX),
            };
            let question = Bytes::from(question.encode_to_vec());
            let answer: proto::HandoverAnswer =
                self.ask(leader_id, Rpc::Handover, kinds, question, within).await?;
            Ok(match answer.refusal.is_empty() {
                true => Ok(answer.term),
                false => Err(HandoverRefusal { reason: answer.refusal, message: answer.message }),
            })
        })
    }

    fn log_bytes_sent(&self, node_id: NodeId) -> u64 {
        self.shared.metrics_of(node_id).log_bytes_counted()
    }

    fn gone(&self, node_id: NodeId) -> BoxFuture<'static, ()> {
        let state = self.shared.link(node_id).map(|link| link.watch_state());
        Box::pin(async move {
            let Some(mut state) = state else { return std::future::pending().await };
            if state.wait_for(|state| *state == LinkState::Gone).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }

    fn clock_offset_us(&self, node_id: NodeId) -> Option<i64> {
        let seconds = self.shared.metrics_of(node_id).clock_offset()?;
        Some((seconds * 1e6) as i64)
    }
}
