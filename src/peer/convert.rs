//! Between openraft's messages and those of the wire.
//!
//! The layout of openraft's types changes between its versions; what stands here is what keeps a
//! rolling upgrade possible (safety rule 27). Entries are checked here before raft sees them.

use bytes::Bytes;
use openraft::{
    EntryPayload,
    raft::{
        AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint},
};
use tokio::io::AsyncWrite;

use crate::consensus::agreement::Evidence;
use crate::consensus::{Fitness, Handover};
use crate::peer::Floor;
use crate::peer::wire::{HEAD_BYTES, Outbox, WireError, inline_bytes};
use crate::raft::{
    Entry, LogId, TypeConfig, Vote,
    convert::{
        log_id_from_proto, log_id_to_proto, membership_from_proto, membership_to_proto, received_command,
        vote_from_proto, vote_to_proto,
    },
};
use crate::types::NodeId;
use crate::types::proto::{self, AppendOutcome, FitnessGrade, FrameKind, LeadershipCause, TransferOutcome};

const ENTRY_BLANK: u32 = 0;
const ENTRY_MEMBERSHIP: u32 = 1;
/// Kinds of commands begin here.
const ENTRY_COMMAND_MIN: u32 = 16;

/// Field numbers of `AppendRequest.entries` and `LogEntry.payload`.
const ENTRIES_FIELD: u32 = 4;
const PAYLOAD_FIELD: u32 = 7;
/// A field number below 16 and its wire type.
const KEY_BYTES: usize = 1;

/// An append ready to be written: its exact size is known, its payloads are not copied yet.
pub(super) struct OutgoingAppend {
    head: proto::AppendRequest,
    entries: Vec<proto::LogEntry>,
    payload_bytes: usize,
    inline_bytes: usize,
    pub(super) prev: Option<LogId>,
    /// Of the last entry, or `prev`.
    pub(super) last: Option<LogId>,
    /// Entries were left out, since the frame would be too large.
    pub(super) is_cut: bool,
}

impl OutgoingAppend {
    /// At least one entry is taken, whatever its size.
    pub(super) fn new(request: AppendEntriesRequest<TypeConfig>, bytes_max: usize) -> Self {
        let prev = request.prev_log_id;
        let n_given = request.entries.len();
        let head = proto::AppendRequest {
            vote: Some(vote_to_proto(&request.vote)),
            prev_log_id: prev.as_ref().map(log_id_to_proto),
            leader_commit: request.leader_commit.as_ref().map(log_id_to_proto),
            entries: Vec::new(),
            state_hashes: None,
            floors: Vec::new(),
        };
        let mut payload_bytes = head.encoded_len();
        let mut copied_bytes = payload_bytes;
        let mut last = prev;
        let mut entries = Vec::with_capacity(n_given);
        for entry in request.entries {
            let log_id = entry.log_id;
            let entry = entry_to_proto(entry);
            let entry_bytes = entry.encoded_len();
            let field_bytes = KEY_BYTES + encoded_len_varint(entry_bytes as u64) + entry_bytes;
            if !entries.is_empty() && bytes_max < HEAD_BYTES + payload_bytes + field_bytes {
                break;
            }
            payload_bytes += field_bytes;
            copied_bytes += field_bytes - entry.payload.len() + inline_bytes(&entry.payload);
            last = Some(log_id);
            entries.push(entry);
        }
        let is_cut = entries.len() < n_given;
        Self { head, entries, payload_bytes, inline_bytes: copied_bytes, prev, last, is_cut }
    }

    pub(super) fn n_entries(&self) -> usize {
        self.entries.len()
    }

    /// What it takes on the wire, but for the frame's head.
    pub(super) fn bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Small payloads are copied once, into the outbox; large ones not at all.
    pub(super) fn put<W: AsyncWrite + Unpin>(self, id: u64, outbox: &mut Outbox<W>) {
        let mut frame = outbox.frame(FrameKind::Append, id, self.payload_bytes, self.inline_bytes);
        self.head.encode_raw(frame.inline());
        for mut entry in self.entries {
            encode_key(ENTRIES_FIELD, WireType::LengthDelimited, frame.inline());
            encode_varint(entry.encoded_len() as u64, frame.inline());
            let payload = std::mem::take(&mut entry.payload);
            entry.encode_raw(frame.inline());
            if !payload.is_empty() {
                encode_key(PAYLOAD_FIELD, WireType::LengthDelimited, frame.inline());
                encode_varint(payload.len() as u64, frame.inline());
                frame.put_bytes(&payload);
            }
        }
    }

    /// One without entries, as a payload.
    pub(super) fn into_heartbeat(mut self, evidence: Option<Evidence>, floors: Vec<Floor>) -> Bytes {
        self.head.floors = floors
            .into_iter()
            .map(|floor| proto::Floor {
                node_id: floor.node_id,
                incarnation: Bytes::copy_from_slice(&floor.incarnation),
                acknowledged: Some(proto::LogId { term: floor.pos.term, index: floor.pos.index }),
            })
            .collect();
        self.head.state_hashes = evidence.map(|evidence| proto::StateHashes {
            index: evidence.index,
            hashes: evidence
                .hashes
                .into_iter()
                .map(|(node_id, hash)| proto::NodeHash { node_id, hash: Bytes::copy_from_slice(&hash) })
                .collect(),
            is_last_word: evidence.is_last_word,
        });
        Bytes::from(self.head.encode_to_vec())
    }
}

/// What a leader knows a node to hold; nothing where it is malformed.
pub(super) fn floor_from_proto(told: &proto::Floor) -> Option<Floor> {
    let at = told.acknowledged?;
    Some(Floor {
        node_id: told.node_id,
        incarnation: told.incarnation.as_ref().try_into().ok()?,
        pos: at.into(),
    })
}

/// What a leader knows of states that differ; nothing where it is malformed.
pub(super) fn evidence_from_proto(told: &proto::StateHashes) -> Option<Evidence> {
    let hash = |h: &proto::NodeHash| Some((h.node_id, h.hash.as_ref().try_into().ok()?));
    let hashes = told.hashes.iter().map(hash).collect::<Option<_>>()?;
    Some(Evidence { index: told.index, hashes, is_last_word: told.is_last_word })
}

fn entry_to_proto(entry: Entry) -> proto::LogEntry {
    let pos = crate::raft::pos_of(&entry.log_id);
    let (kind, version, crc, payload) = match entry.payload {
        EntryPayload::Blank => (ENTRY_BLANK, 0, 0, Bytes::new()),
        EntryPayload::Membership(membership) => {
            let payload = Bytes::from(membership_to_proto(&membership).encode_to_vec());
            (ENTRY_MEMBERSHIP, 0, crc32fast::hash(&payload), payload)
        }
        EntryPayload::Normal(command) => {
            let kind = u32::from(command.kind.to_u8());
            (kind, u32::from(command.version), command.crc, command.payload)
        }
    };
    let mut entry =
        proto::LogEntry { term: pos.term, index: pos.index, kind, version, crc, payload, head_crc: 0 };
    entry.head_crc = head_crc(&entry);
    entry
}

/// Covers what the payload's CRC does not.
fn head_crc(entry: &proto::LogEntry) -> u32 {
    let mut head = [0; 28];
    head[..8].copy_from_slice(&entry.term.to_be_bytes());
    head[8..16].copy_from_slice(&entry.index.to_be_bytes());
    head[16..20].copy_from_slice(&entry.kind.to_be_bytes());
    head[20..24].copy_from_slice(&entry.version.to_be_bytes());
    head[24..].copy_from_slice(&entry.crc.to_be_bytes());
    crc32fast::hash(&head)
}

/// Verifies every entry: its bytes, and that it follows the one before.
pub(super) fn append_from_proto(
    request: proto::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, WireError> {
    let vote = request.vote.as_ref().map(vote_from_proto).ok_or_else(|| missing("vote"))?;
    let prev_log_id = request.prev_log_id.as_ref().map(log_id_from_proto);
    let mut entries = Vec::with_capacity(request.entries.len());
    let first_index = prev_log_id.as_ref().map_or(0, |id| id.index() + 1);
    for (expected, entry) in (first_index..).zip(request.entries) {
        let entry = entry_from_proto(entry)?;
        if entry.log_id.index() != expected {
            return Err(WireError::Malformed(format!("entry {} in the place of {expected}", entry.log_id)));
        }
        entries.push(entry);
    }
    Ok(AppendEntriesRequest {
        vote,
        prev_log_id,
        entries,
        leader_commit: request.leader_commit.as_ref().map(log_id_from_proto),
    })
}

fn entry_from_proto(entry: proto::LogEntry) -> Result<Entry, WireError> {
    let log_id = log_id_from_proto(&proto::LogId { term: entry.term, index: entry.index });
    let crc = crc32fast::hash(&entry.payload);
    if entry.head_crc != head_crc(&entry) {
        return Err(WireError::Corrupt(format!("head of entry {} does not match its CRC", entry.index)));
    }
    if crc != entry.crc {
        return Err(WireError::Corrupt(format!(
            "entry {} has CRC {crc:08x}, was sent with {:08x}",
            entry.index, entry.crc
        )));
    }
    let payload = match entry.kind {
        ENTRY_BLANK => EntryPayload::Blank,
        ENTRY_MEMBERSHIP => {
            let membership = proto::Membership::decode(entry.payload).map_err(malformed)?;
            EntryPayload::Membership(membership_from_proto(&membership).map_err(malformed)?)
        }
        kind if ENTRY_COMMAND_MIN <= kind => EntryPayload::Normal(received_command(
            u8::try_from(kind).map_err(malformed)?,
            u8::try_from(entry.version).map_err(malformed)?,
            entry.crc,
            entry.payload,
        )),
        kind => return Err(WireError::Malformed(format!("entry {} is of kind {kind}", entry.index))),
    };
    Ok(openraft::Entry { log_id, payload })
}

pub(super) fn append_answer_to_proto(result: &StreamAppendResult<TypeConfig>) -> proto::AppendAnswer {
    let (outcome, log_id, vote) = match result {
        Ok(matched) => (AppendOutcome::Matched, *matched, None),
        Err(StreamAppendError::Conflict(at)) => (AppendOutcome::Conflict, Some(*at), None),
        Err(StreamAppendError::HigherVote(vote)) => (AppendOutcome::HigherVote, None, Some(vote)),
    };
    proto::AppendAnswer {
        outcome: outcome as i32,
        log_id: log_id.as_ref().map(log_id_to_proto),
        vote: vote.map(vote_to_proto),
        stamps: None,
        hash_mark: None,
        fitness: None,
    }
}

pub(super) fn append_answer_from_proto(
    answer: &proto::AppendAnswer,
) -> Result<StreamAppendResult<TypeConfig>, WireError> {
    let log_id = answer.log_id.as_ref().map(log_id_from_proto);
    let outcome = AppendOutcome::try_from(answer.outcome).map_err(malformed)?;
    Ok(match outcome {
        AppendOutcome::Matched => Ok(log_id),
        AppendOutcome::Conflict => {
            Err(StreamAppendError::Conflict(log_id.ok_or_else(|| missing("log_id of a conflict"))?))
        }
        AppendOutcome::HigherVote => {
            let vote = answer.vote.as_ref().ok_or_else(|| missing("the higher vote"))?;
            Err(StreamAppendError::HigherVote(vote_from_proto(vote)))
        }
    })
}

pub(super) fn vote_request_to_proto(request: &VoteRequest<TypeConfig>) -> proto::VoteRequest {
    proto::VoteRequest {
        vote: Some(vote_to_proto(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(log_id_to_proto),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(super) fn vote_request_from_proto(
    request: &proto::VoteRequest,
) -> Result<VoteRequest<TypeConfig>, WireError> {
    let vote = request.vote.as_ref().ok_or_else(|| missing("vote"))?;
    let last_log_id = request.last_log_id.as_ref().map(log_id_from_proto);
    let mut converted = VoteRequest::new(vote_from_proto(vote), last_log_id);
    converted.leadership_transfer = request.leadership_transfer;
    Ok(converted)
}

pub(super) fn vote_answer_to_proto(answer: &VoteResponse<TypeConfig>) -> proto::VoteAnswer {
    proto::VoteAnswer {
        vote: Some(vote_to_proto(&answer.vote)),
        granted: answer.vote_granted,
        last_log_id: answer.last_log_id.as_ref().map(log_id_to_proto),
    }
}

pub(super) fn vote_answer_from_proto(
    answer: &proto::VoteAnswer,
) -> Result<VoteResponse<TypeConfig>, WireError> {
    let vote = answer.vote.as_ref().map(vote_from_proto).ok_or_else(|| missing("vote"))?;
    let last_log_id = answer.last_log_id.as_ref().map(log_id_from_proto);
    Ok(VoteResponse::new(vote, last_log_id, answer.granted))
}

/// Says no, and nothing else: a vote that equals nobody's, so that openraft cannot take it for a
/// grant, and that is below everybody's, so that it teaches no term.
pub(super) fn vote_refusal() -> proto::VoteAnswer {
    proto::VoteAnswer { vote: Some(proto::Vote::default()), granted: false, last_log_id: None }
}

pub(super) fn transfer_to_proto(request: &TransferLeaderRequest<TypeConfig>) -> proto::TransferRequest {
    proto::TransferRequest {
        from_leader: Some(vote_to_proto(request.from_leader())),
        to_node_id: *request.to_node_id(),
        last_log_id: request.last_log_id().map(log_id_to_proto),
        cause: 0,
        operation_id: String::new(),
        accepts: FitnessGrade::Unknown as i32,
    }
}

/// The question whether a node would take over: raft's own part is left out.
pub(super) fn handover_to_proto(handover: &Handover, to: NodeId) -> proto::TransferRequest {
    proto::TransferRequest {
        from_leader: Some(proto::Vote {
            term: handover.from_term,
            node_id: handover.from_node_id,
            committed: true,
        }),
        to_node_id: to,
        last_log_id: None,
        cause: handover.cause as u32,
        operation_id: handover.operation_id.clone(),
        accepts: handover.accepts as i32,
    }
}

pub(super) fn handover_from_proto(request: &proto::TransferRequest) -> Handover {
    let from = request.from_leader.unwrap_or_default();
    let cause = i32::try_from(request.cause).ok().and_then(|c| LeadershipCause::try_from(c).ok());
    Handover {
        from_term: from.term,
        from_node_id: from.node_id,
        cause: cause.unwrap_or(LeadershipCause::Unknown),
        operation_id: request.operation_id.clone(),
        accepts: request.accepts(),
    }
}

pub(super) fn fitness_to_proto(fitness: Fitness) -> proto::Fitness {
    proto::Fitness { grade: fitness.grade as i32, reason: fitness.reason }
}

pub(super) fn fitness_from_proto(fitness: &proto::Fitness) -> Fitness {
    Fitness { grade: fitness.grade(), reason: fitness.reason.clone() }
}

pub(super) fn transfer_from_proto(
    request: &proto::TransferRequest,
) -> Result<TransferLeaderRequest<TypeConfig>, WireError> {
    let from = request.from_leader.as_ref().ok_or_else(|| missing("from_leader"))?;
    let last_log_id = request.last_log_id.as_ref().map(log_id_from_proto);
    Ok(TransferLeaderRequest::new(vote_from_proto(from), request.to_node_id, last_log_id))
}

pub(super) fn transfer_answer_to_proto(answer: &TransferLeaderResponse<TypeConfig>) -> proto::TransferAnswer {
    let (outcome, vote, log_id): (_, Option<&Vote>, Option<LogId>) = match answer {
        Ok(()) => (TransferOutcome::Accepted, None, None),
        Err(TransferLeaderError::VoteChanged { actual, .. }) => {
            (TransferOutcome::VoteChanged, Some(actual), None)
        }
        Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
            (TransferOutcome::LogNotFlushed, None, *actual)
        }
    };
    proto::TransferAnswer {
        outcome: outcome as i32,
        vote: vote.map(vote_to_proto),
        log_id: log_id.as_ref().map(log_id_to_proto),
    }
}

pub(super) fn transfer_answer_from_proto(
    request: &TransferLeaderRequest<TypeConfig>,
    answer: &proto::TransferAnswer,
) -> Result<TransferLeaderResponse<TypeConfig>, WireError> {
    let outcome = TransferOutcome::try_from(answer.outcome).map_err(malformed)?;
    Ok(match outcome {
        TransferOutcome::Accepted => Ok(()),
        TransferOutcome::VoteChanged => Err(TransferLeaderError::VoteChanged {
            expected: *request.from_leader(),
            actual: answer.vote.as_ref().map(vote_from_proto).ok_or_else(|| missing("vote"))?,
        }),
        TransferOutcome::LogNotFlushed => Err(TransferLeaderError::LogNotFlushed {
            expected: request.last_log_id().copied(),
            actual: answer.log_id.as_ref().map(log_id_from_proto),
        }),
    })
}

pub(super) fn missing(what: &str) -> WireError {
    WireError::Malformed(format!("{what} is missing"))
}

pub(super) fn malformed(error: impl std::fmt::Display) -> WireError {
    WireError::Malformed(error.to_string())
}
