//! One JSON-RPC call to one node.

use std::{fmt, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use crate::client::endpoint::Endpoint;
use crate::client::http::{Answer, Ask, Http, HttpError};
use crate::types::NodeId;
use crate::types::error::Certainty;

/// A node's error object.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct RpcError {
    pub(crate) code: i64,
    #[serde(default)]
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) data: Value,
}

/// -32008 and -32011 say that the answer was too large: the call had run by then.
const ANSWER_TOO_LARGE: [i64; 2] = [-32008, -32011];
const INTERNAL: i64 = -32603;
/// Of a hash in a message. By eye: `0x` and eight bytes tell two blocks apart.
const HASH_CHARS: usize = 2 + 2 * 8;

impl RpcError {
    /// `notLeader`, `gap`, …; the code itself where the error carries none.
    pub(crate) fn reason(&self) -> String {
        match self.data.get("reason").and_then(Value::as_str) {
            Some(reason) => reason.to_string(),
            None => self.code.to_string(),
        }
    }

    pub(crate) fn is(&self, reason: &str) -> bool {
        self.data.get("reason").and_then(Value::as_str) == Some(reason)
    }

    pub(crate) fn certainty(&self) -> Certainty {
        match self.data.get("kind").and_then(Value::as_str) {
            Some("unknown") => Certainty::Unknown,
            Some(_) => Certainty::Refused,
            None if ANSWER_TOO_LARGE.contains(&self.code) || self.code == INTERNAL => Certainty::Unknown,
            None => Certainty::Refused,
        }
    }

    /// Who leads instead, when this node says so.
    pub(crate) fn leader(&self) -> Option<(NodeId, Option<Endpoint>)> {
        if !self.is("notLeader") {
            return None;
        }
        let id = self.data.get("leaderId").and_then(Value::as_u64)?;
        let api = self.data.get("leaderApi").and_then(Value::as_str).and_then(|a| a.parse().ok());
        Some((id, api))
    }

    /// What the caller must change, or what is in force instead, each in some words.
    fn facts(&self) -> Vec<String> {
        let of = |name: &str| self.data.get(name).unwrap_or(&Value::Null);
        let mut facts = Vec::new();
        if let Some(param) = of("param").as_str()
            && !self.message.split_whitespace().any(|word| word == param)
        {
            facts.push(format!("parameter {param}"));
        }
        if self.is("fenced") {
            facts.push(match of("fence") {
                Value::Null => "no fence is in force".into(),
                fence => format!("fence {fence} is in force"),
            });
        }
        if let (Some(height), Some(hash)) = (of("head")["height"].as_u64(), of("head")["hash"].as_str()) {
            facts.push(format!("the head is {height} {}", hash.get(..HASH_CHARS).unwrap_or(hash)));
        }
        if let Some(oldest) = of("oldestHeight").as_u64() {
            facts.push(format!("the oldest block kept is {oldest}"));
        }
        facts
    }

    /// How long the node asks to wait before the next attempt.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.data.get("retryAfterMs").and_then(Value::as_u64).map(Duration::from_millis)
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = if self.message.is_empty() { "no message" } else { &self.message };
        let mut words = vec![self.reason()];
        words.extend(self.facts());
        write!(f, "{message} ({})", words.join(", "))
    }
}

impl std::error::Error for RpcError {}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{0}")]
    Http(#[from] HttpError),
    #[error("{endpoint}: {error}")]
    Rpc { endpoint: Endpoint, error: RpcError },
    #[error("{endpoint}: {why}")]
    Garbled { endpoint: Endpoint, why: String },
}

impl CallError {
    pub(crate) fn certainty(&self) -> Certainty {
        match self {
            Self::Http(e) => e.certainty(),
            Self::Rpc { error, .. } => error.certainty(),
            Self::Garbled { .. } => Certainty::Unknown,
        }
    }

    pub(crate) fn rpc(&self) -> Option<&RpcError> {
        match self {
            Self::Rpc { error, .. } => Some(error),
            Self::Http(_) | Self::Garbled { .. } => None,
        }
    }
}

/// A result, as the node wrote it.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Who answered.
    pub(crate) endpoint: Endpoint,
    pub(crate) raw: Box<RawValue>,
}

impl Reply {
    pub(crate) fn value(&self) -> Value {
        serde_json::from_str(self.raw.get()).unwrap_or(Value::Null)
    }

    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, CallError> {
        serde_json::from_str(self.raw.get()).map_err(|e| CallError::Garbled {
            endpoint: self.endpoint.clone(),
            why: format!("an answer of another shape: {e}"),
        })
    }
}

/// The request as it is sent; `params` of `null` are left out.
pub(crate) fn request(method: &str, params: &Value) -> String {
    let method = Value::from(method);
    match params {
        Value::Null => format!(r#"{{"jsonrpc":"2.0","id":1,"method":{method}}}"#),
        params => format!(r#"{{"jsonrpc":"2.0","id":1,"method":{method},"params":{params}}}"#),
    }
}

/// Calls one node and follows nothing.
pub(crate) async fn call(
    http: &Http,
    endpoint: &Endpoint,
    method: &str,
    params: &Value,
    within: Duration,
) -> Result<Reply, CallError> {
    let ask = Ask::post("/", "application/json", request(method, params).into());
    decode(endpoint, &http.ask(endpoint, ask, within).await?)
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<RpcError>,
}

fn decode(endpoint: &Endpoint, answer: &Answer) -> Result<Reply, CallError> {
    let garbled = |why: String| CallError::Garbled { endpoint: endpoint.clone(), why };
    // An error keeps its body whatever the status: 401, 413 and 429 carry one.
    let envelope: Envelope<'_> = match serde_json::from_slice(&answer.body) {
        Ok(envelope) => envelope,
        Err(_) if !answer.status.is_success() => {
            return Err(garbled(format!("HTTP {}{}", answer.status, excerpt(&answer.body))));
        }
        Err(e) => return Err(garbled(format!("not a JSON-RPC answer: {e}{}", excerpt(&answer.body)))),
    };
    match (envelope.result, envelope.error) {
        (_, Some(error)) => Err(CallError::Rpc { endpoint: endpoint.clone(), error }),
        (Some(raw), None) => Ok(Reply { endpoint: endpoint.clone(), raw: raw.to_owned() }),
        (None, None) if answer.status.is_success() => {
            Ok(Reply { endpoint: endpoint.clone(), raw: RawValue::NULL.to_owned() })
        }
        (None, None) => Err(garbled(format!("HTTP {}{}", answer.status, excerpt(&answer.body)))),
    }
}

/// The beginning of a body that cannot be understood, for the message about it.
pub(crate) fn excerpt(body: &[u8]) -> String {
    // By eye: one line of a terminal.
    const CHARS_MAX: usize = 80;
    let text: String = String::from_utf8_lossy(&body[..body.len().min(4 * CHARS_MAX)])
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(CHARS_MAX)
        .collect();
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;

    use super::*;

    fn answer(status: u16, body: &'static str) -> Answer {
        Answer { status: StatusCode::from_u16(status).expect("a status"), body: body.into() }
    }

    fn endpoint() -> Endpoint {
        "n1:7400".parse().expect("well-formed")
    }

    #[test]
    fn a_result_keeps_the_order_and_the_numbers_of_the_node() {
        let body = r#"{"jsonrpc":"2.0","id":1,"result":{"z":18446744073709551615,"a":1}}"#;
        let reply = decode(&endpoint(), &answer(200, body)).expect("a result");
        assert_eq!(reply.raw.get(), r#"{"z":18446744073709551615,"a":1}"#);
        let void = decode(&endpoint(), &answer(200, r#"{"jsonrpc":"2.0","id":1,"result":null}"#));
        assert_eq!(void.expect("a result").raw.get(), "null");
    }

    #[test]
    fn errors_are_read_whatever_the_status() {
        for status in [200, 401, 429] {
            let body = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32034,"message":"m","data":{"kind":"refused","reason":"overloaded","retryAfterMs":20}}}"#;
            let e = decode(&endpoint(), &answer(status, body)).expect_err("an error");
            let rpc = e.rpc().expect("the node's");
            assert_eq!((rpc.reason().as_str(), e.certainty()), ("overloaded", Certainty::Refused));
            assert_eq!(rpc.retry_after(), Some(Duration::from_millis(20)));
        }
        let e = decode(&endpoint(), &answer(502, "<html>\n bad gateway")).expect_err("an error");
        assert_eq!(e.to_string(), "n1:7400: HTTP 502 Bad Gateway: <html> bad gateway");
    }

    #[test]
    fn what_may_have_happened_is_unknown() {
        let unknown = |body| decode(&endpoint(), &answer(200, body)).expect_err("an error").certainty();
        assert_eq!(
            unknown(
                r#"{"error":{"code":-32035,"message":"m","data":{"kind":"unknown","reason":"timeout"}}}"#
            ),
            Certainty::Unknown
        );
        assert_eq!(unknown(r#"{"error":{"code":-32008,"message":"m"}}"#), Certainty::Unknown);
        assert_eq!(unknown(r#"{"error":{"code":-32601,"message":"m"}}"#), Certainty::Refused);
    }

    #[test]
    fn a_node_that_does_not_lead_says_who_does() {
        let error: RpcError = serde_json::from_str(
            r#"{"code":-32030,"message":"m","data":{"kind":"refused","reason":"notLeader","leaderId":2,"leaderApi":"n2:7400"}}"#,
        )
        .expect("an error object");
        assert_eq!(error.leader(), Some((2, Some("n2:7400".parse().expect("well-formed")))));
    }

    #[test]
    fn what_is_wrong_and_what_is_in_force_are_said_in_one_line() {
        use serde_json::json;
        let head = json!({"height": 41, "hash": "0x00112233445566778899", "timestamp": "1"});
        let fenced = json!({"reason": "fenced", "fence": 7, "term": 7, "head": head});
        let of_gap = "m (gap, the head is 41 0x0011223344556677)";
        for (code, message, data, want) in [
            (-32602, "unknown parameter", json!({"param": "a"}), "unknown parameter (-32602, parameter a)"),
            (-32602, "limit is too large", json!({"param": "limit"}), "limit is too large (-32602)"),
            (-32032, "m", fenced, "m (fenced, fence 7 is in force, the head is 41 0x0011223344556677)"),
            (-32032, "m", json!({"reason": "fenced", "fence": null}), "m (fenced, no fence is in force)"),
            (-32033, "m", json!({"reason": "gap", "head": head}), of_gap),
            (-32033, "m", json!({"reason": "gap", "head": null}), "m (gap)"),
            (
                -32037,
                "m",
                json!({"reason": "pruned", "oldestHeight": 9}),
                "m (pruned, the oldest block kept is 9)",
            ),
            (-32601, "", Value::Null, "no message (-32601)"),
        ] {
            let error = RpcError { code, message: message.into(), data };
            assert_eq!(error.to_string(), want);
        }
    }

    #[test]
    fn no_params_are_left_out() {
        assert_eq!(
            request("raft_status", &Value::Null),
            r#"{"jsonrpc":"2.0","id":1,"method":"raft_status"}"#
        );
    }
}
