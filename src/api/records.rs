//! `raft_history`, `audit_list`, `audit_verify`: what this node recorded.

use std::{io, sync::Arc};

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::api::args::{Args, Param};
use crate::api::control::OperationId;
use crate::api::error::Fault;
use crate::api::handlers::{Answer, Call, to_raw};
use crate::api::wire::{Hex, TraceId};
use crate::audit::history::EventJson;
use crate::types::error::ProposeError;
use crate::types::{LogIndex, NodeId, Term};

const LIMIT_DEFAULT: u64 = 100;
const LIMIT_MAX: u64 = 1_000;

/// Parameters of every page.
pub(crate) const FROM_ID: Param =
    Param::optional::<u64>("fromId", "The first id, inclusive; without one: the newest.");
pub(crate) const LIMIT: Param = Param::optional::<u64>("limit", "1 to 1000, default 100.");

pub(crate) const HISTORY_PARAMS: &[Param] =
    &[FROM_ID, LIMIT, Param::optional::<OperationId>("operationId", "Only what this operation did.")];
pub(crate) const AUDIT_PARAMS: &[Param] = &[FROM_ID, LIMIT];

/// Where a page begins and how long it may be.
pub(crate) struct Asked {
    pub(crate) from: Option<u64>,
    pub(crate) limit: usize,
}

impl Asked {
    pub(crate) fn of(args: &Args<'_>) -> Result<Self, Fault> {
        let limit = args.get::<u64>("limit")?.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Fault::param("limit", "limit is not from 1 to 1000"));
        }
        Ok(Self { from: args.get("fromId")?, limit: limit as usize })
    }
}

/// Events, oldest first.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "HistoryPage")]
pub(crate) struct HistoryJson {
    events: Vec<EventJson>,
    /// Present if and only if more follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_id: Option<u64>,
}

pub(crate) fn raft_history<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let Asked { from, limit } = Asked::of(&args)?;
        let operation: Option<OperationId> = args.get("operationId")?;
        let history = &call.api.parts.audit.history;
        let operation = operation.as_ref().map(|id| id.0.as_str());
        let page = history.page(from, limit, operation).await.map_err(|e| unreadable(&e))?;
        // One that is damaged is left out: the log says so.
        let events = page.entries.iter().filter_map(|entry| {
            let event = EventJson::parse(entry);
            if event.is_none() {
                tracing::warn!(id = entry.id, "an event of the history is damaged");
            }
            event
        });
        Ok(to_raw(&HistoryJson { events: events.collect(), next_id: page.next }))
    })
}

fn unreadable(error: &io::Error) -> Fault {
    let mut fault = Fault::from(ProposeError::Storage);
    fault.message = format!("the record of this node cannot be read: {error}").into();
    fault
}

/// How a call stood when its record was written.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
enum AuditOutcome {
    Started,
    Ok,
    Refused,
    Unknown,
}

/// A record of the chain. `hash` is blake3 over `prevHash` and this object's text without `prevHash` and
/// `hash`.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "the records are kept as text; only the schema is used")]
struct AuditRecord {
    /// Rises from 1 on each node.
    id: u64,
    /// Unix milliseconds.
    at: u64,
    node_id: NodeId,
    /// Name of the caller's token; - without one.
    who: String,
    /// Role of the caller's token; - without one.
    role: String,
    /// host:port of the caller; - for what the node did by itself.
    remote_addr: String,
    /// The method, or handover, or lost: records that found no room while the disk was full.
    method: String,
    params: serde_json::Map<String, serde_json::Value>,
    operation_id: Option<String>,
    outcome: AuditOutcome,
    /// Of an outcome: the record that the call began with.
    #[serde(skip_serializing_if = "Option::is_none")]
    started_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    term: Term,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<LogIndex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<TraceId>,
    prev_hash: Hex,
    hash: Hex,
}

/// Records, oldest first.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "the records are kept as text; only the schema is used")]
pub(crate) struct AuditPage {
    records: Vec<AuditRecord>,
    /// Present if and only if more follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_id: Option<u64>,
}

pub(crate) fn audit_list<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let Asked { from, limit } = Asked::of(&args)?;
        let page = call.api.parts.audit.chain.page(from, limit).await;
        let (records, next) = page.map_err(|e| unreadable(&e))?;
        let next = next.map_or_else(String::new, |id| format!(r#","nextId":{id}"#));
        let json = format!(r#"{{"records":[{}]{next}}}"#, records.join(","));
        // A record whose bytes were changed may not even be JSON.
        RawValue::from_string(json).map_err(|_| {
            let damaged = io::Error::new(io::ErrorKind::InvalidData, "a record is damaged; see audit_verify");
            unreadable(&damaged)
        })
    })
}

/// What a look at every record found.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "AuditVerdict")]
pub(crate) struct VerdictJson {
    ok: bool,
    /// Records that were looked at.
    checked: u64,
    /// The first hundred.
    problems: Vec<ProblemJson>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AuditProblem")]
struct ProblemJson {
    id: u64,
    what: String,
}

pub(crate) fn audit_verify<'a>(call: &'a Call, _: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        // Each may read tens of MiB.
        let turns = Arc::clone(&call.api.large_reads);
        let turn = turns.acquire_owned().await.map_err(|_| Fault::shutting_down())?;
        let chain = call.api.parts.audit.chain.clone();
        // The turn goes along: what has begun is read to its end, whoever goes away.
        let verifying = call.api.tasks.spawn(async move {
            let _turn = turn;
            chain.verify().await
        });
        let verified = verifying.await.map_err(|_| Fault::internal("the check broke off"))?;
        let verdict = verified.map_err(|e| unreadable(&e))?;
        let problems: Vec<_> =
            verdict.problems.into_iter().map(|p| ProblemJson { id: p.id, what: p.what }).collect();
        Ok(to_raw(&VerdictJson { ok: problems.is_empty(), checked: verdict.checked, problems }))
    })
}
