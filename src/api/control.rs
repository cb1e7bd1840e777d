//! Calls that steer a node: recorded before and after, made once by operation id, and carried to their end.
//!
//! Rows of the table say which these are (`audited`, `once`); the dispatch sends them through [`run`], so no
//! handler minds any of it. Such a call runs in a task of its own: a client that goes away changes nothing.

use std::{borrow::Cow, panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::value::RawValue;

use crate::api::args::{Args, Decode, Param};
use crate::api::error::{Fault, Kind};
use crate::api::handlers::Call;
use crate::api::once::Turn;
use crate::api::table::Method;
use crate::audit::chain::{Act, Ended, Outcome, Started};
use crate::types::{LogIndex, Term};

/// What a call is answered.
pub(crate) type Outcomes = Result<Box<RawValue>, Fault>;

/// Of every row that is `once`.
pub(crate) const OPERATION_ID: Param = Param::named::<OperationId>(
    "operationId",
    "Chosen by the caller: a second call with it within 10 minutes joins or answers the first.",
);

/// Of rows that can say what they would do, and not do it.
pub(crate) const DRY_RUN: &str = "dryRun";

/// Who calls, where there are no tokens.
const NOBODY: &str = "-";

/// 1 to 64 of `A-Za-z0-9-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OperationId(pub(crate) String);

impl Decode for OperationId {
    fn decode(raw: &RawValue, name: &str) -> Result<Self, Fault> {
        let id = String::decode(raw, name)?;
        let is_good =
            (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        match is_good {
            true => Ok(Self(id)),
            false => Err(Fault::param(name, format!("{name} is not 1 to 64 of A-Z, a-z, 0-9 and -"))),
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Self>()
    }
}

impl JsonSchema for OperationId {
    fn schema_name() -> Cow<'static, str> {
        "OperationId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9-]{1,64}$" })
    }
}

/// Where in the log a call ended; what a handler tells of it goes into the record.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Noted {
    pub(crate) term: Option<Term>,
    pub(crate) index: Option<LogIndex>,
    /// What was asked for may still happen.
    pub(crate) is_unknown: bool,
}

/// Carries a call out whose parameters were looked at.
pub(crate) async fn run(method: &'static Method, mut call: Call, args: Args<'_>) -> Outcomes {
    if method.once {
        call.operation_id = args.get::<OperationId>(OPERATION_ID.name)?.map(|id| id.0);
    }
    let params = args.to_object(OPERATION_ID.name);
    // A look has no outcome to be found again: the act that follows it may bear its id.
    let is_look =
        method.params.iter().any(|p| p.name == DRY_RUN) && args.get::<bool>(DRY_RUN)?.unwrap_or(false);
    let turn = match &call.operation_id {
        _ if is_look => None,
        None => None,
        Some(id) => Some(call.api.once.turn(id, method.name, &params)?),
    };
    let begun = match turn {
        Some(Turn::Join(first)) => return first.answer().await,
        Some(Turn::First(begun)) => Some(begun),
        None => None,
    };
    let api = Arc::clone(&call.api);
    let task = api.tasks.spawn(async move {
        // A panic is a fault of ours, and an outcome like any other.
        let acting = AssertUnwindSafe(act(method, &call, &params)).catch_unwind().await;
        let outcome = acting.unwrap_or_else(|_| Err(Fault::internal("the method broke off")));
        match begun {
            Some(begun) => begun.end(outcome, call.noted().is_unknown),
            None => outcome,
        }
    });
    task.await.map_err(|_| Fault::internal("the method broke off"))?
}

async fn act(method: &'static Method, call: &Call, params: &RawValue) -> Outcomes {
    let started = match method.audited {
        true => Some(begin(method, call, params)),
        false => None,
    };
    if let Some(started) = &started {
        // Save, then act: what an operator did is known even if the node dies of it.
        started.durable().await;
    }
    let args = Args::new(method.params, Some(params.get()))?;
    let outcome = (method.run)(call, args).await;
    if let Some(started) = started {
        end(started, call, &outcome);
    }
    outcome
}

fn begin(method: &'static Method, call: &Call, params: &RawValue) -> Started {
    let act = Act {
        who: NOBODY.into(),
        role: NOBODY.into(),
        remote_addr: call.remote.map_or_else(|| NOBODY.into(), |addr| addr.to_string()),
        method: method.name,
        params: params.to_owned(),
        operation_id: call.operation_id.clone(),
        trace_id: call.trace.as_ref().map(|t| t.trace_id),
    };
    call.api.parts.audit.chain.started(act, call.api.parts.leadership.now().term)
}

fn end(started: Started, call: &Call, outcome: &Outcomes) {
    let noted = call.noted();
    let (result, reason, term, index) = match outcome {
        Ok(_) if noted.is_unknown => (Outcome::Unknown, Some("timedOut".to_owned()), None, None),
        Ok(_) => (Outcome::Ok, None, None, None),
        Err(fault) => {
            let result = match fault.data.kind {
                Some(Kind::Unknown) => Outcome::Unknown,
                Some(Kind::Refused) | None => Outcome::Refused,
            };
            (result, Some(reason_of(fault)), fault.data.term, fault.data.index)
        }
    };
    started.end(&Ended {
        outcome: result,
        reason,
        term: noted.term.or(term).unwrap_or_else(|| call.api.parts.leadership.now().term),
        index: noted.index.or(index),
    });
}

/// A word of a closed set, and the parameter at fault.
fn reason_of(fault: &Fault) -> String {
    match (fault.data.reason, &fault.data.param) {
        (Some(reason), _) => reason.to_owned(),
        (None, Some(param)) => format!("invalidParams: {param}"),
        (None, None) => format!("code {}", fault.code.number()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::table;

    #[test]
    fn an_operation_id_is_short_and_plain() {
        let decode = |text: &str| {
            OperationId::decode(&RawValue::from_string(text.into()).unwrap(), "operationId").map(|id| id.0)
        };
        assert_eq!(decode(r#""a-9Z""#).unwrap(), "a-9Z");
        assert!(decode(&format!(r#""{}""#, "x".repeat(64))).is_ok());
        for bad in [r#""""#, r#""a_b""#, r#""ä""#, "7", &format!(r#""{}""#, "x".repeat(65))] {
            let fault = decode(bad).unwrap_err();
            assert_eq!(fault.data.param.as_deref(), Some("operationId"), "{bad}");
        }
    }

    #[test]
    fn a_row_that_is_once_takes_an_operation_id_and_no_other_does() {
        for row in table::methods() {
            let takes = row.params.iter().any(|p| p.name == OPERATION_ID.name);
            assert_eq!(takes, row.once || row.name == "raft_history", "{}", row.name);
        }
    }
}
