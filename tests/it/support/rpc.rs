//! JSON-RPC over HTTP, and what an error means for the caller.

use std::fmt;

use serde_json::{Value, json};

use crate::support::http::{Connection, Failure, Response};

/// An error object of the node.
#[derive(Debug, Clone)]
pub(crate) struct RpcError {
    pub(crate) code: i64,
    pub(crate) message: String,
    pub(crate) data: Value,
    pub(crate) http: u16,
}

impl RpcError {
    /// From `{code,message,data}`.
    pub(crate) fn from_json(error: &Value, http: u16) -> Self {
        Self {
            code: error["code"].as_i64().unwrap_or(0),
            message: error["message"].as_str().unwrap_or_default().to_owned(),
            data: error["data"].clone(),
            http,
        }
    }

    pub(crate) fn reason(&self) -> &str {
        self.data["reason"].as_str().unwrap_or_default()
    }

    /// Whether the attempt certainly did not happen. What the contract calls neither is a refusal when
    /// it fails before the call runs.
    pub(crate) fn is_refusal(&self) -> bool {
        match self.data["kind"].as_str() {
            Some(kind) => kind == "refused",
            None => matches!(self.code, -32700..=-32600) && self.code != -32603,
        }
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({}) HTTP {}", self.code, self.reason(), self.message, self.http)
    }
}

/// Why a call has no result.
#[derive(Debug)]
pub(crate) enum CallError {
    Rpc(RpcError),
    Failed(Failure),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rpc(e) => e.fmt(f),
            Self::Failed(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for CallError {}

impl CallError {
    /// The node's own error; panics with the reason when there was no answer at all.
    #[track_caller]
    pub(crate) fn rpc(self) -> RpcError {
        match self {
            Self::Rpc(e) => e,
            Self::Failed(e) => panic!("no answer: {e}"),
        }
    }
}

/// Posts bytes to `/` as JSON.
pub(crate) fn post(conn: &mut Connection, body: &[u8]) -> Result<Response, Failure> {
    conn.request("POST", "/", &[("Content-Type", "application/json")], body)
}

/// The result or the error in the answer to one call.
pub(crate) fn result_of(response: &Response) -> Result<Value, CallError> {
    let no_answer = |why: &str| {
        let body = &response.text()[..response.body.len().min(200)];
        CallError::Failed(Failure::Unknown(format!("HTTP {}: {why}: {body:?}", response.status)))
    };
    let answer = response.json().ok_or_else(|| no_answer("no JSON"))?;
    match (answer.get("result"), answer.get("error")) {
        (Some(result), None) => Ok(result.clone()),
        (None, Some(error)) => Err(CallError::Rpc(RpcError::from_json(error, response.status))),
        _ => Err(no_answer("neither result nor error")),
    }
}

/// One call on a kept connection.
pub(crate) fn call_on(conn: &mut Connection, method: &str, params: &Value) -> Result<Value, CallError> {
    let mut request = json!({"jsonrpc": "2.0", "id": 1, "method": method});
    if !params.is_null() {
        request["params"] = params.clone();
    }
    let response = post(conn, request.to_string().as_bytes()).map_err(CallError::Failed)?;
    result_of(&response)
}

/// One call on a connection of its own. `Value::Null` stands for no params.
pub(crate) fn call(addr: &str, method: &str, params: &Value) -> Result<Value, CallError> {
    let mut conn = Connection::open(addr).map_err(CallError::Failed)?;
    call_on(&mut conn, method, params)
}
