//! Blocks: made, encoded by hand both ways, and proposed both ways.
//!
//! By hand, so that a mistake in the contract's own encoding is not made twice.

use std::fmt;

use serde_json::{Value, json};

use crate::support::{
    http::{Connection, Failure},
    rpc::{CallError, RpcError, call_on},
};

/// Timestamps begin here: long past, and small enough to be JSON numbers.
const TIME_ZERO: u64 = 1_000_000_000_000;
const TIME_STEP: u64 = 1_000_000;

/// What a producer proposes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) height: u64,
    pub(crate) hash: Vec<u8>,
    pub(crate) timestamp: u64,
    pub(crate) header: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) parent_hash: Option<Vec<u8>>,
    pub(crate) da_header: u64,
    pub(crate) da_data: u64,
}

/// How a block is proposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// `block_propose`.
    JsonRpc,
    /// `POST /v1/blocks`.
    Protobuf,
}

/// What became of one attempt.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Acknowledged {
        term: u64,
        index: u64,
        is_duplicate: bool,
    },
    /// Certainly did not happen.
    Refused {
        error: Option<RpcError>,
        why: String,
    },
    /// May have happened.
    Unknown(String),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acknowledged { term, index, is_duplicate: true } => {
                write!(f, "duplicate of {term}/{index}")
            }
            Self::Acknowledged { term, index, .. } => write!(f, "acknowledged at {term}/{index}"),
            Self::Refused { why, .. } => write!(f, "refused: {why}"),
            Self::Unknown(why) => write!(f, "unknown: {why}"),
        }
    }
}

impl Answer {
    /// Term and index; panics when the block was not acknowledged.
    #[track_caller]
    pub(crate) fn acknowledged(&self) -> (u64, u64) {
        match self {
            Self::Acknowledged { term, index, .. } => (*term, *index),
            other => panic!("not acknowledged but {other}"),
        }
    }

    /// The node's refusal; panics when there is none.
    #[track_caller]
    pub(crate) fn refused(&self) -> &RpcError {
        match self {
            Self::Refused { error: Some(e), .. } => e,
            other => panic!("not refused but {other}"),
        }
    }

    fn from_json(result: &Value) -> Self {
        match (result["term"].as_u64(), result["index"].as_u64(), result["duplicate"].as_bool()) {
            (Some(term), Some(index), Some(is_duplicate)) => Self::Acknowledged { term, index, is_duplicate },
            _ => Self::Unknown(format!("a result without term, index, duplicate: {result}")),
        }
    }

    pub(crate) fn from_error(error: RpcError) -> Self {
        match error.is_refusal() {
            true => Self::Refused { why: error.to_string(), error: Some(error) },
            false => Self::Unknown(error.to_string()),
        }
    }

    fn from_failure(failure: Failure) -> Self {
        match failure {
            Failure::NotSent(why) => Self::Refused { error: None, why },
            Failure::Unknown(why) => Self::Unknown(why),
        }
    }

    /// One line of the stream's answer, or the body of the fast path's.
    pub(crate) fn from_line(line: &Value, http: u16) -> Self {
        match line.get("error") {
            Some(error) => Self::from_error(RpcError::from_json(error, http)),
            None => Self::from_json(line),
        }
    }
}

impl Block {
    /// A small block; another `salt` makes another block of the same height.
    pub(crate) fn new(height: u64, salt: &str) -> Self {
        Self::sized(height, salt, 64)
    }

    pub(crate) fn sized(height: u64, salt: &str, data_bytes: usize) -> Self {
        let header = format!("header {height}").into_bytes();
        let seed = blake3::hash(format!("{height}/{salt}").as_bytes());
        let data: Vec<u8> = seed.as_bytes().iter().copied().cycle().take(data_bytes).collect();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&header).update(seed.as_bytes()).update(&data);
        Self {
            height,
            hash: hasher.finalize().as_bytes().to_vec(),
            timestamp: TIME_ZERO + height * TIME_STEP,
            header,
            data,
            parent_hash: None,
            da_header: height.saturating_sub(2),
            da_data: height.saturating_sub(3),
        }
    }

    pub(crate) fn hash_hex(&self) -> String {
        hex(&self.hash)
    }

    /// As a JSON-RPC parameter.
    pub(crate) fn to_json(&self) -> Value {
        let mut block = json!({
            "height": self.height,
            "hash": hex(&self.hash),
            "timestamp": self.timestamp.to_string(),
            "header": hex(&self.header),
            "data": hex(&self.data),
            "lastSubmittedDaHeaderHeight": self.da_header,
            "lastSubmittedDaDataHeight": self.da_data,
        });
        if let Some(parent) = &self.parent_hash {
            block["parentHash"] = hex(parent).into();
        }
        block
    }

    /// As a `RaftBlockState`.
    pub(crate) fn to_protobuf(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_number(&mut out, 1, self.height);
        put_number(&mut out, 2, self.da_header);
        put_number(&mut out, 3, self.da_data);
        put_bytes(&mut out, 4, &self.hash);
        put_number(&mut out, 5, self.timestamp);
        put_bytes(&mut out, 6, &self.header);
        put_bytes(&mut out, 7, &self.data);
        if let Some(parent) = &self.parent_hash {
            put_bytes(&mut out, 100, parent);
        }
        out
    }

    /// Panics on what is no `RaftBlockState`.
    #[track_caller]
    pub(crate) fn from_protobuf(bytes: &[u8]) -> Self {
        let mut block = Self::new(0, "");
        block.hash.clear();
        block.header.clear();
        block.data.clear();
        block.timestamp = 0;
        let mut at = 0;
        while at < bytes.len() {
            let key = take_varint(bytes, &mut at);
            let value = take_varint(bytes, &mut at);
            let mut run = || {
                let from = at;
                at += value as usize;
                bytes[from..at].to_vec()
            };
            match (key >> 3, key & 7) {
                (1, 0) => block.height = value,
                (2, 0) => block.da_header = value,
                (3, 0) => block.da_data = value,
                (4, 2) => block.hash = run(),
                (5, 0) => block.timestamp = value,
                (6, 2) => block.header = run(),
                (7, 2) => block.data = run(),
                (100, 2) => block.parent_hash = Some(run()),
                other => panic!("field {other:?} of a RaftBlockState"),
            }
        }
        block
    }

    /// Panics when a block of an answer is another one, naming the field.
    #[track_caller]
    pub(crate) fn assert_json(&self, got: &Value) {
        let want = self.to_json();
        for (key, value) in want.as_object().expect("an object") {
            assert_eq!(&got[key], value, "{key} of block {}", self.height);
        }
    }

    pub(crate) fn propose(&self, conn: &mut Connection, way: Way, fence: Option<u64>) -> Answer {
        match way {
            Way::JsonRpc => {
                let mut params = json!({"block": self.to_json()});
                if let Some(fence) = fence {
                    params["fence"] = fence.into();
                }
                match call_on(conn, "block_propose", &params) {
                    Ok(result) => Answer::from_json(&result),
                    Err(CallError::Rpc(e)) => Answer::from_error(e),
                    Err(CallError::Failed(e)) => Answer::from_failure(e),
                }
            }
            Way::Protobuf => {
                let fence = fence.map(|f| f.to_string());
                let mut headers = vec![("Content-Type", "application/x-protobuf")];
                headers.extend(fence.as_deref().map(|f| ("Blockraft-Fence", f)));
                match conn.request("POST", "/v1/blocks", &headers, &self.to_protobuf()) {
                    Ok(response) => match response.json() {
                        Some(line) => Answer::from_line(&line, response.status),
                        None => Answer::Unknown(format!("HTTP {} without JSON", response.status)),
                    },
                    Err(e) => Answer::from_failure(e),
                }
            }
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, b| text + &format!("{b:02x}"))
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while 0x80 <= n {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn put_number(out: &mut Vec<u8>, field: u64, n: u64) {
    if n != 0 {
        put_varint(out, field << 3);
        put_varint(out, n);
    }
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_varint(out, field << 3 | 2);
        put_varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

fn take_varint(bytes: &[u8], at: &mut usize) -> u64 {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes[*at];
        *at += 1;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return n;
        }
    }
    panic!("a varint of more than ten bytes");
}
