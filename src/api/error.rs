//! The one table from what went wrong to JSON-RPC codes and HTTP statuses.
//!
//! A [`Fault`] is what a caller is answered, whichever way it asked. Every error of the parts below is
//! turned into one here, and nowhere else; domain code knows no codes.

use std::{borrow::Cow, time::Duration};

use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::api::wire::{BlockRefJson, Hex};
use crate::consensus::{handle, membership};
use crate::types::error::{Certainty, ProposeError, Refusal};
use crate::types::{Height, LogIndex, NodeId, Term};

/// How long a caller waits before it asks a node again that is starting, stopping or handing over.
/// By eye: a hand-over takes some 10 ms, a restart about a second.
const RETRY_LATER_MS: u64 = 1_000;

/// The reason of a block that is over a limit.
pub(crate) const TOO_LARGE: &str = "tooLarge";

/// The codes of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Code {
    Parse,
    InvalidRequest,
    MethodNotFound,
    InvalidParams,
    Internal,
    NotLeader,
    NoLeader,
    Fenced,
    Refused,
    Overloaded,
    Unknown,
    Precondition,
    NotFound,
    Storage,
    Auth,
    Unavailable,
    /// The JSON-RPC library's code for a body over the limit.
    BodyTooLarge,
    /// The JSON-RPC library's code for a batch over the limit.
    BatchTooLarge,
}

impl Code {
    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Parse => -32700,
            Self::InvalidRequest => -32600,
            Self::MethodNotFound => -32601,
            Self::InvalidParams => -32602,
            Self::Internal => -32603,
            Self::NotLeader => -32030,
            Self::NoLeader => -32031,
            Self::Fenced => -32032,
            Self::Refused => -32033,
            Self::Overloaded => -32034,
            Self::Unknown => -32035,
            Self::Precondition => -32036,
            Self::NotFound => -32037,
            Self::Storage => -32038,
            Self::Auth => -32039,
            Self::Unavailable => -32040,
            Self::BodyTooLarge => -32007,
            Self::BatchTooLarge => -32010,
        }
    }

    /// What the OpenRPC document says of it.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Parse => "parse error",
            Self::InvalidRequest => "not a request",
            Self::MethodNotFound => "no such method",
            Self::InvalidParams => {
                "invalid params: data.param names the one; data.reason tooLarge: over chain.max_block_bytes"
            }
            Self::Internal => "internal error",
            Self::NotLeader => "notLeader: ask data.leaderApi",
            Self::NoLeader => "noLeader: none is known",
            Self::Fenced => "fenced: the fence is not the one in force",
            Self::Refused => "conflict, stale, gap, badParent or badTimestamp",
            Self::Overloaded => "overloaded: try again after data.retryAfterMs",
            Self::Unknown => "timeout or leadershipLost: it may have happened",
            Self::Precondition => "versionMismatch, or another precondition that does not hold",
            Self::NotFound => "notFound or pruned",
            Self::Storage => "storage: the disk is full or damaged",
            Self::Auth => "unauthorized or forbidden",
            Self::Unavailable => "shuttingDown, paused or notReady",
            Self::BodyTooLarge => "the body is over api.max_body",
            Self::BatchTooLarge => "the batch is over api.max_batch",
        }
    }
}

/// Whether it may have happened all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Kind {
    Refused,
    Unknown,
}

impl From<Certainty> for Kind {
    fn from(c: Certainty) -> Self {
        match c {
            Certainty::Refused => Self::Refused,
            Certainty::Unknown => Self::Unknown,
        }
    }
}

/// What stands in an error's `data`. The inner `Option` of a doubled one is `null` where the contract
/// wants the field to be there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Data {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<Kind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    /// The parameter, field or header at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) param: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) leader_id: Option<NodeId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) leader_api: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fence: Option<Option<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) term: Option<Term>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<LogIndex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) head: Option<Option<BlockRefJson>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) height: Option<Height>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hash: Option<Hex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<LogIndex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oldest_height: Option<Option<Height>>,
}

/// Why a call was not answered with its result.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) code: Code,
    pub(crate) message: Cow<'static, str>,
    /// Boxed: the successful way stays small.
    pub(crate) data: Box<Data>,
}

/// An error object as it leaves the node.
#[derive(Serialize)]
struct ErrorJson<'a> {
    code: i32,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Data>,
}

impl Fault {
    pub(crate) fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), data: Box::default() }
    }

    fn refused(code: Code, reason: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        let mut fault = Self::new(code, message);
        fault.data.kind = Some(Kind::Refused);
        fault.data.reason = Some(reason);
        fault
    }

    /// A parameter that is wrong, by its name; a nested one with its path (`block.hash`).
    pub(crate) fn param(name: impl Into<String>, message: impl Into<Cow<'static, str>>) -> Self {
        let mut fault = Self::new(Code::InvalidParams, message);
        fault.data.param = Some(name.into());
        fault
    }

    /// `chain.max_block_bytes` is exceeded.
    pub(crate) fn too_large(message: String) -> Self {
        let mut fault = Self::param("block", message);
        fault.data.reason = Some(TOO_LARGE);
        fault
    }

    /// Something broke here; whether the call took effect is not known.
    pub(crate) fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        let mut fault = Self::refused(Code::Internal, "internal", message);
        fault.data.kind = Some(Kind::Unknown);
        fault
    }

    /// It was not over in time, and may still happen.
    pub(crate) fn unknown(message: impl Into<Cow<'static, str>>) -> Self {
        let mut fault = Self::refused(Code::Unknown, "timeout", message);
        fault.data.kind = Some(Kind::Unknown);
        fault
    }

    /// A bound was met, which the message names.
    pub(crate) fn overloaded(message: impl Into<Cow<'static, str>>, retry_after_ms: u64) -> Self {
        let mut fault = Self::refused(Code::Overloaded, "overloaded", message);
        fault.data.retry_after_ms = Some(retry_after_ms);
        fault
    }

    pub(crate) fn too_many_requests(wait: Duration) -> Self {
        Self::overloaded("too many requests: over api.rate_limit", wait.as_millis() as u64 + 1)
    }

    pub(crate) fn shutting_down() -> Self {
        Self::from(ProposeError::ShuttingDown)
    }

    /// What was named is not there.
    pub(crate) fn not_found(message: String) -> Self {
        Self::refused(Code::NotFound, "notFound", message)
    }

    /// The disk is full or damaged; nothing happened.
    pub(crate) fn storage(message: String) -> Self {
        Self::refused(Code::Storage, "storage", message)
    }

    pub(crate) fn not_ready(message: &'static str) -> Self {
        Self::refused(Code::Unavailable, "notReady", message)
    }

    /// Refused for who asks, by the setting that says so.
    pub(crate) fn forbidden(message: String) -> Self {
        Self::refused(Code::Auth, "forbidden", message)
    }

    /// The status of a plain HTTP route. Over JSON-RPC an error is 200, for half of the clients throw the
    /// body of any other status away.
    pub(crate) fn status(&self) -> StatusCode {
        match self.code {
            Code::InvalidParams if self.data.reason == Some(TOO_LARGE) => StatusCode::PAYLOAD_TOO_LARGE,
            Code::Parse | Code::InvalidRequest | Code::InvalidParams | Code::BatchTooLarge => {
                StatusCode::BAD_REQUEST
            }
            Code::MethodNotFound => StatusCode::NOT_FOUND,
            Code::Internal | Code::Precondition => StatusCode::INTERNAL_SERVER_ERROR,
            Code::NotLeader => StatusCode::MISDIRECTED_REQUEST,
            Code::NoLeader | Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::Fenced | Code::Refused => StatusCode::CONFLICT,
            Code::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            Code::Unknown => StatusCode::GATEWAY_TIMEOUT,
            Code::NotFound if self.data.reason == Some("pruned") => StatusCode::GONE,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::Storage => StatusCode::INSUFFICIENT_STORAGE,
            Code::Auth if self.data.reason == Some("unauthorized") => StatusCode::UNAUTHORIZED,
            Code::Auth => StatusCode::FORBIDDEN,
            Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }

    /// Whole seconds for `Retry-After`, where the caller should simply wait.
    pub(crate) fn retry_after_secs(&self) -> Option<u64> {
        match self.code {
            Code::NoLeader | Code::Overloaded | Code::Unavailable => {
                let ms = self.data.retry_after_ms.unwrap_or(RETRY_LATER_MS);
                Some(ms.div_ceil(1_000).max(1))
            }
            _ => None,
        }
    }

    /// Where the leader listens, for `Blockraft-Leader`.
    pub(crate) fn leader(&self) -> Option<&str> {
        match self.code {
            Code::NotLeader => self.data.leader_api.as_ref()?.as_deref(),
            _ => None,
        }
    }

    /// `{code,message,data}`.
    pub(crate) fn to_json(&self) -> String {
        let data = (*self.data != Data::default()).then_some(&*self.data);
        let json = ErrorJson { code: self.code.number(), message: &self.message, data };
        serde_json::to_string(&json).expect("an error object has string keys and finite numbers")
    }

    /// The answer to a request with this id, an id as JSON text.
    pub(crate) fn to_response(&self, id: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{}}}"#, self.to_json())
    }

    /// The answer of a plain HTTP route, and a line of the stream.
    pub(crate) fn to_plain(&self) -> String {
        format!(r#"{{"error":{}}}"#, self.to_json())
    }
}

impl From<Fault> for jsonrpsee::types::ErrorObjectOwned {
    fn from(fault: Fault) -> Self {
        let data: Option<Box<RawValue>> = (*fault.data != Data::default())
            .then(|| serde_json::value::to_raw_value(&*fault.data).expect("plain data encodes"));
        Self::owned(fault.code.number(), fault.message, data)
    }
}

impl From<ProposeError> for Fault {
    fn from(error: ProposeError) -> Self {
        let message = error.to_string();
        let kind = Some(Kind::from(error.certainty()));
        let mut fault = match error {
            ProposeError::Malformed(m) => return Self::param(m.field(), message),
            ProposeError::FenceRequired => return Self::param("fence", message),
            ProposeError::TooLarge { .. } => return Self::too_large(message),
            ProposeError::NotLeader { leader_id, leader_api } => {
                let mut f = Self::refused(Code::NotLeader, "notLeader", message);
                f.data.leader_id = Some(leader_id);
                f.data.leader_api = Some(leader_api);
                f
            }
            ProposeError::NoLeader { retry_after_ms } => {
                let mut f = Self::refused(Code::NoLeader, "noLeader", message);
                f.data.retry_after_ms = Some(retry_after_ms);
                f
            }
            ProposeError::Fenced { fence, term, head } => {
                let mut f = Self::refused(Code::Fenced, "fenced", message);
                f.data.fence = Some(fence);
                f.data.term = Some(term);
                f.data.head = Some(head.map(Into::into));
                f
            }
            ProposeError::Refused { refusal, head, oldest_height } => {
                let mut f = Self::refused(Code::Refused, reason_of(refusal), says(refusal));
                f.data.head = Some(head.map(Into::into));
                f.data.oldest_height = oldest_height.map(Some);
                f
            }
            ProposeError::Overloaded { retry_after_ms } => Self::overloaded(message, retry_after_ms),
            ProposeError::Timeout { height, hash, term, index } => {
                let mut f = Self::refused(Code::Unknown, "timeout", message);
                (f.data.height, f.data.hash) = (Some(height), Some(Hex(hash)));
                (f.data.term, f.data.index) = (term, index);
                f
            }
            ProposeError::LeadershipLost { height, hash, term, index } => {
                let mut f = Self::refused(Code::Unknown, "leadershipLost", message);
                (f.data.height, f.data.hash) = (Some(height), Some(Hex(hash)));
                (f.data.term, f.data.index) = (term, index);
                f
            }
            ProposeError::Storage => Self::refused(Code::Storage, "storage", message),
            ProposeError::ShuttingDown => Self::refused(Code::Unavailable, "shuttingDown", message),
            ProposeError::Paused => Self::refused(Code::Unavailable, "paused", message),
            ProposeError::NotReady => Self::refused(Code::Unavailable, "notReady", message),
        };
        fault.data.kind = kind;
        fault
    }
}

fn reason_of(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Conflict => "conflict",
        Refusal::Stale => "stale",
        Refusal::Gap => "gap",
        Refusal::BadParent => "badParent",
        Refusal::BadTimestamp => "badTimestamp",
    }
}

fn says(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Conflict => "another block holds that height",
        Refusal::Stale => "the height lies behind the head",
        Refusal::Gap => {
            "the height is not the next one; of the first block it is chain.first_height where that is set"
        }
        Refusal::BadParent => "the parent hash is not that of the block before",
        Refusal::BadTimestamp => {
            "the timestamp is not after the head's as chain.timestamps wants it, or more than chain.max_ahead ahead of the clock"
        }
    }
}

fn precondition(reason: membership::Reason) -> &'static str {
    match reason {
        membership::Reason::VersionMismatch => "versionMismatch",
        membership::Reason::QuorumRisk => "quorumRisk",
        membership::Reason::NotMember => "notMember",
        membership::Reason::AlreadyMember => "alreadyMember",
        membership::Reason::NotVoter => "notVoter",
        membership::Reason::NotCaughtUp => "notCaughtUp",
        membership::Reason::Unreachable => "unreachable",
        membership::Reason::InProgress => "changeInProgress",
        membership::Reason::UpgradeNeeded => "upgradeNeeded",
    }
}

impl From<membership::ChangeError> for Fault {
    fn from(error: membership::ChangeError) -> Self {
        let message = error.to_string();
        match error {
            membership::ChangeError::NotLeader { leader_id, leader_api } => {
                Self::from(ProposeError::NotLeader { leader_id, leader_api })
            }
            membership::ChangeError::NoLeader { retry_after_ms } => {
                Self::from(ProposeError::NoLeader { retry_after_ms })
            }
            membership::ChangeError::Invalid { param, .. } => Self::param(param, message),
            membership::ChangeError::Refused { reason, version, .. } => {
                let mut f = Self::refused(Code::Precondition, precondition(reason), message);
                f.data.version = Some(version);
                f
            }
            membership::ChangeError::Unknown { .. } => Self::unknown(message),
        }
    }
}

impl From<handle::ConfigureError> for Fault {
    fn from(error: handle::ConfigureError) -> Self {
        match error {
            handle::ConfigureError::NotLeader { leader_id, leader_api } => {
                Self::from(ProposeError::NotLeader { leader_id, leader_api })
            }
            handle::ConfigureError::NoLeader { retry_after_ms } => {
                Self::from(ProposeError::NoLeader { retry_after_ms })
            }
            handle::ConfigureError::VersionMismatch { version } => {
                let mut f = Self::refused(
                    Code::Precondition,
                    "versionMismatch",
                    format!("the settings in force are those of index {version}"),
                );
                f.data.version = Some(version);
                f
            }
            handle::ConfigureError::UpgradeNeeded { node_id } => {
                let message = format!("node {node_id} does not know the command: upgrade it first");
                Self::refused(Code::Precondition, "upgradeNeeded", message)
            }
            handle::ConfigureError::Unknown => Self::unknown("not committed and applied in time"),
        }
    }
}

mod leadership;
mod reads;
#[cfg(test)]
mod tests;
